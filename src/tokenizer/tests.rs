use super::*;
use crate::error::exit_code;
use proptest::prelude::*;
use serde_json::{Value, json};

const TEXT: &str = "She said: \"we're here, we'll see.\"\n\nHe said:  we will see 2,024 naïve cafés — déjà vu…\n";

fn config(kind: TokenizerKind, vocab_size: usize) -> TokenizerConfig {
    TokenizerConfig { kind, vocab_size, path: String::new() }
}

fn made(kind: TokenizerKind) -> Tokenizer {
    Tokenizer::from_config(&config(kind, 0), &[TEXT]).unwrap()
}

/// A file in SentencePiece style, as Gemma's: spaces become marks, unknown characters become bytes.
fn sentence_piece() -> Value {
    let mut vocab = serde_json::Map::new();
    for name in ["<eos>", "\u{2581}", "o", "n", "on", "\u{2581}on"] {
        vocab.insert(name.to_string(), vocab.len().into());
    }
    for byte in 0..=255 {
        vocab.insert(format!("<0x{byte:02X}>"), vocab.len().into());
    }
    json!({
        "version": "1.0",
        "added_tokens": [{"id": 0, "content": "<eos>", "single_word": false, "lstrip": false, "rstrip": false,
                          "normalized": false, "special": true}],
        "normalizer": {"type": "Replace", "pattern": {"String": " "}, "content": "\u{2581}"},
        "pre_tokenizer": null,
        "decoder": {"type": "Sequence", "decoders": [
            {"type": "Replace", "pattern": {"String": "\u{2581}"}, "content": " "},
            {"type": "ByteFallback"},
            {"type": "Fuse"}]},
        "model": {"type": "BPE", "byte_fallback": true, "vocab": vocab,
                  "merges": [["o", "n"], ["\u{2581}", "on"]]},
    })
}

fn read(file: &Value) -> anyhow::Result<Tokenizer> {
    Tokenizer::from_json(&serde_json::to_vec(file).unwrap(), "some.json")
}

/// Why `sentence_piece` with the value at `pointer` replaced is refused.
fn refusal(pointer: &str, value: Value) -> String {
    let mut file = sentence_piece();
    *file.pointer_mut(pointer).unwrap() = value;
    let message = format!("{:#}", read(&file).err().unwrap());
    assert!(message.contains("some.json"), "{message}");
    message
}

proptest! {
    #[test]
    fn tokens_give_back_every_text(text in r"(\PC|\s|<\|endoftext\|>|'re|  ){0,40}") {
        for kind in [TokenizerKind::Bpe, TokenizerKind::Bytes] {
            let tokenizer = made(kind);
            let ids = tokenizer.encode(&text).unwrap();
            prop_assert_eq!(tokenizer.decode(&ids), text.as_bytes());
            prop_assert!(!ids.contains(&0));
        }
    }

    #[test]
    fn encoding_in_pieces_gives_the_same_tokens(text in r"[ab'res1.\u{a0}é \n\t]{0,60}") {
        for kind in [TokenizerKind::Bpe, TokenizerKind::Chars] {
            let tokenizer = made(kind);
            prop_assert!(tokenizer.independent_pieces);
            let pieces = pieces(&text, 1);
            prop_assert_eq!(pieces.concat(), text.as_str());
            let ids: Vec<u32> = pieces.into_iter().flat_map(|piece| tokenizer.encode(piece).unwrap()).collect();
            prop_assert_eq!(ids, tokenizer.encode(&text).unwrap());
        }
    }

    #[test]
    fn a_file_with_any_one_value_replaced_is_read_or_refused_without_panic(
        target: prop::sample::Index,
        replacement in prop::sample::select(vec![
            json!(null), json!(true), json!(0), json!(-1), json!(7), json!(u64::MAX), json!(""), json!("\u{2581}on"),
            json!("Metaspace"), json!([]), json!({}), json!(["o", "n"]), json!([["on", "on"]]), json!({"type": "Strip"}),
        ]),
    ) {
        let mut file = sentence_piece();
        let pointers = pointers(&file);
        let pointer: &String = target.get(&pointers);
        *file.pointer_mut(pointer).unwrap() = replacement;
        if let Ok(tokenizer) = read(&file) {
            let _ = tokenizer.encode("on and on <eos> \u{2581}");
        }
    }

    #[test]
    fn damaged_json_is_refused_without_panic(position: prop::sample::Index, byte: u8) {
        let mut json = made(TokenizerKind::Chars).to_json().unwrap();
        let position = position.index(json.len());
        json[position] = byte;
        let _ = Tokenizer::from_json(&json, "some.json");
        prop_assert!(Tokenizer::from_json(&json[..position], "some.json").is_err());
    }
}

/// JSON pointers to all values inside `value`, except the 256 byte tokens.
fn pointers(value: &Value) -> Vec<String> {
    let children: Vec<(String, &Value)> = match value {
        Value::Object(fields) => fields.iter().map(|(key, child)| (key.clone(), child)).collect(),
        Value::Array(items) => items.iter().enumerate().map(|(index, child)| (index.to_string(), child)).collect(),
        _ => Vec::new(),
    };
    let below = children.into_iter().filter(|(key, _)| !key.starts_with("<0x")).flat_map(|(key, child)| {
        pointers(child).into_iter().map(move |rest| format!("/{key}{rest}")).collect::<Vec<_>>()
    });
    std::iter::once(String::new()).chain(below).collect()
}

#[test]
fn the_name_of_a_special_token_in_a_text_is_only_text() {
    let text = "Nobody expects <|endoftext|> or <|unk|> here.";
    for kind in [TokenizerKind::Bpe, TokenizerKind::Bytes, TokenizerKind::Chars] {
        let tokenizer = Tokenizer::from_config(&config(kind, 300), &[text]).unwrap();
        assert_eq!(tokenizer.end_of_text(), Some(0));
        let ids = tokenizer.encode(text).unwrap();
        assert!(!ids.contains(&0));
        assert_eq!(tokenizer.decode(&ids), text.as_bytes());
    }
}

#[test]
fn a_long_text_is_the_sum_of_its_pieces() {
    let text = TEXT.repeat(2000);
    assert!(pieces(&text, PIECE_BYTES).len() > 1);
    let tokenizer = made(TokenizerKind::Bpe);
    let whole = tokenizer.encoder.encode_fast(text.as_str(), false).unwrap();
    assert_eq!(tokenizer.encode(&text).unwrap(), whole.get_ids());
}

#[test]
fn training_twice_gives_the_same_file() {
    // Binary numbers: many pairs occur equally often.
    let words: Vec<String> = (0..200).map(|number| format!("{number:b} ")).collect();
    let text = words.concat();
    let train = || Tokenizer::from_config(&config(TokenizerKind::Bpe, 400), &[&text]).unwrap().to_json().unwrap();
    let first = train();
    for _ in 0..10 {
        assert!(train() == first);
    }
}

#[test]
fn a_tokenizer_read_from_its_file_is_the_same_tokenizer() {
    for kind in [TokenizerKind::Bpe, TokenizerKind::Bytes, TokenizerKind::Chars] {
        let tokenizer = made(kind);
        let json = tokenizer.to_json().unwrap();
        let again = Tokenizer::from_json(&json, "tokenizer.json").unwrap();
        assert_eq!(again.to_json().unwrap(), json);
        assert_eq!(again.encode(TEXT).unwrap(), tokenizer.encode(TEXT).unwrap());
        assert_eq!(again.vocab_size(), tokenizer.vocab_size());
    }
}

#[test]
fn bpe_learns_what_is_frequent_and_stops_when_nothing_repeats() {
    let tokenizer = Tokenizer::from_config(&config(TokenizerKind::Bpe, 0), &["low lower low lowest"]).unwrap();
    assert_eq!(tokenizer.encode("low").unwrap().len(), 1);
    assert!(tokenizer.vocab_size() < 270, "{}", tokenizer.vocab_size());
    assert_eq!(Tokenizer::from_config(&config(TokenizerKind::Bpe, 257), &[TEXT]).unwrap().vocab_size(), 257);
}

#[test]
fn a_vocabulary_too_small_for_all_bytes_is_a_usage_error() {
    let error = Tokenizer::from_config(&config(TokenizerKind::Bpe, 256), &[TEXT]).err().unwrap();
    assert_eq!(exit_code(&error), 2);
    assert!(error.to_string().contains("tokenizer.vocab_size"), "{error}");
}

#[test]
fn a_byte_has_the_id_after_its_value() {
    let tokenizer = made(TokenizerKind::Bytes);
    assert_eq!(tokenizer.vocab_size(), 257);
    assert_eq!(tokenizer.encode("\na é").unwrap(), [11, 98, 33, 0xc3 + 1, 0xa9 + 1]);
}

#[test]
fn characters_are_sorted_and_unseen_ones_become_the_replacement_character() {
    let tokenizer = Tokenizer::from_config(&config(TokenizerKind::Chars, 0), &["cab\n", "é a"]).unwrap();
    assert_eq!(tokenizer.vocab_size(), 2 + "\n abcé".chars().count());
    let ids = tokenizer.encode("\n aéxb").unwrap();
    assert_eq!(ids, [2, 3, 4, 7, 1, 5]);
    assert_eq!(tokenizer.decode(&ids), "\n aé\u{fffd}b".as_bytes());
    assert_eq!(tokenizer.token_text(1), "<|unk|>");
}

#[test]
fn tokens_are_shown_as_text() {
    let tokenizer = made(TokenizerKind::Bytes);
    assert_eq!(tokenizer.token_text(0), "<|endoftext|>");
    assert_eq!(tokenizer.token_text(u32::from(b'a') + 1), "a");
    assert_eq!(tokenizer.token_text(0xc3 + 1), "\u{fffd}");
    assert_eq!(tokenizer.token_text(99_999), "");
    assert_eq!(tokenizer.token_bytes(0), b"");
    assert_eq!(tokenizer.token_bytes(99_999), b"");
}

#[test]
fn transformers_gets_the_special_tokens_by_name() {
    let config: Value = serde_json::from_slice(&made(TokenizerKind::Chars).config_json(128).unwrap()).unwrap();
    assert_eq!(config["eos_token"], "<|endoftext|>");
    assert_eq!(config["unk_token"], "<|unk|>");
    assert_eq!(config["model_max_length"], 128);
}

#[test]
fn a_sentencepiece_file_is_decoded_exactly() {
    let tokenizer = read(&sentence_piece()).unwrap();
    let ids = tokenizer.encode("on on é").unwrap();
    let bytes: Vec<&[u8]> = ids.iter().map(|&id| tokenizer.token_bytes(id)).collect();
    assert_eq!(bytes, [b"on".as_slice(), b" on", b" ", b"\xc3", b"\xa9"]);
    assert_eq!(tokenizer.end_of_text(), Some(0));
    let error = tokenizer.encode("a literal \u{2581}").unwrap_err().to_string();
    assert!(error.contains("do not give back"), "{error}");
}

#[test]
fn a_file_in_the_oldest_format_is_read() {
    let mut file: Value = serde_json::from_slice(&made(TokenizerKind::Bpe).to_json().unwrap()).unwrap();
    let model = file["model"].as_object_mut().unwrap();
    model.remove("type");
    model["unk_token"] = "".into();
    model["continuing_subword_prefix"] = "".into();
    for merge in model["merges"].as_array_mut().unwrap() {
        *merge = format!("{} {}", merge[0].as_str().unwrap(), merge[1].as_str().unwrap()).into();
    }
    assert_eq!(read(&file).unwrap().encode(TEXT).unwrap(), made(TokenizerKind::Bpe).encode(TEXT).unwrap());
}

#[test]
fn a_file_that_is_not_exact_is_refused_with_the_reason() {
    assert!(refusal("/model/type", json!("Unigram")).contains("Unigram"));
    assert!(refusal("/decoder", json!({"type": "WordPiece"})).contains("WordPiece"));
    assert!(refusal("/decoder/decoders/0", json!({"type": "Strip"})).contains("Strip"));
    assert!(refusal("/decoder", Value::Null).contains("decoder"));
    assert!(refusal("/normalizer", json!({"type": "Lowercase"})).contains("Lowercase"));
    let prefix = json!({"type": "Metaspace", "replacement": "\u{2581}", "prepend_scheme": "always", "split": true});
    assert!(refusal("/pre_tokenizer", prefix).contains("do not give back"));
    let removes = json!({"type": "Split", "pattern": {"String": "\u{2581}"}, "behavior": "Removed", "invert": false});
    assert!(refusal("/pre_tokenizer", removes).contains("do not give back"));
}

#[test]
fn a_file_whose_parts_do_not_fit_together_is_refused_with_the_reason() {
    assert!(refusal("/model/merges/0", json!(["on", "on"])).contains("onon"));
    assert!(refusal("/model/vocab/on", json!(2)).contains("same id 2"));
    assert!(refusal("/model/vocab/on", json!(u32::MAX)).contains("4294967295"));
    assert!(refusal("/model/vocab", json!({})).contains("merge"));
    assert!(refusal("/model", json!("BPE")).contains("vocab"));
    // Found by the fuzzer: another name than that of id 0 in the vocab.
    assert!(refusal("/added_tokens/0/content", json!("<eox>")).contains("\"<eox>\" cannot have the id"));
}

#[test]
fn the_configuration_names_the_file_to_read() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("tokenizer.json").to_str().unwrap().to_string();
    let config = TokenizerConfig { kind: TokenizerKind::File, vocab_size: 0, path: path.clone() };
    let error = Tokenizer::from_config(&config, &[]).err().unwrap();
    assert_eq!(exit_code(&error), 2);
    assert!(error.to_string().contains("tokenizer.path"), "{error}");

    std::fs::write(&path, made(TokenizerKind::Bpe).to_json().unwrap()).unwrap();
    assert_eq!(Tokenizer::from_config(&config, &[]).unwrap().vocab_size(), made(TokenizerKind::Bpe).vocab_size());
}

#[test]
fn the_characters_that_unknown_tokens_stand_for_are_found_again() {
    let characters = Tokenizer::from_config(&config(TokenizerKind::Chars, 0), &["abc é\n"]).unwrap();
    let of = |tokenizer: &Tokenizer, text: &str| {
        tokenizer.unknown_characters(text, &tokenizer.encode(text).unwrap()).into_iter().collect::<String>()
    };
    assert_eq!(of(&characters, "xaéλb\nωω"), "xλωω");
    assert_eq!(of(&characters, "abc"), "");
    // One unknown token for a whole run of such characters.
    let json = r#"{"model": {"type": "BPE", "vocab": {"<unk>": 0, "a": 1, "b": 2}, "merges": [], "unk_token": "<unk>",
        "fuse_unk": true}, "decoder": {"type": "Fuse"}}"#;
    let fused = Tokenizer::from_json(json.as_bytes(), "test").unwrap();
    assert_eq!(fused.encode("aλωb😀").unwrap().len(), 4);
    assert_eq!(of(&fused, "aλωb😀é"), "λω😀é");
}
