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
    fn encoding_in_pieces_gives_the_same_tokens(text in r"[ab'res1.\u{a0}é \n\t四语。]{0,60}") {
        for kind in [TokenizerKind::Bpe, TokenizerKind::Chars] {
            let tokenizer = made(kind);
            prop_assert!(tokenizer.independent_pieces);
            let pieces = pieces_at_all_word_ends(&text);
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

/// Cut wherever a long text may be.
fn pieces_at_all_word_ends(text: &str) -> Vec<&str> {
    let mut starts = vec![0];
    for ((_, before), (start, after)) in text.char_indices().zip(text.char_indices().skip(1)) {
        if is_word_end(before, after) {
            starts.push(start);
        }
    }
    starts.push(text.len());
    starts.windows(2).map(|pair| &text[pair[0]..pair[1]]).collect()
}

#[test]
fn pieces_stay_short_where_words_do_not_and_lose_nothing() {
    let words = ["a".repeat(1000), "语".repeat(400), "é1.".repeat(300), "a b ".repeat(200), "\u{a0}".repeat(300)];
    let text = words.concat();
    for least in [1, 7, 64] {
        let pieces = pieces(&text, least);
        assert_eq!(pieces.concat(), text);
        assert!(pieces.iter().all(|piece| piece.len() <= least * MAX_STRETCH + 2), "{least}");
        assert!(pieces[..pieces.len() - 1].iter().all(|piece| piece.len() >= least));
    }
    assert_eq!(pieces("", 3), [""]);
}

/// Without the cut, this takes minutes: training is quadratic in the length of a word.
#[test]
fn a_word_of_a_megabyte_is_learned_from_and_comes_back() {
    let bases = |n: u64| ['A', 'C', 'G', 'T'][crate::random::Stream::new(5, "bases", &[]).bits(n) as usize % 4];
    let genome: String = (0..1 << 20).map(bases).collect();
    let tokenizer = Tokenizer::from_config(&config(TokenizerKind::Bpe, 300), &[&genome]).unwrap();
    assert_eq!(tokenizer.vocab_size(), 300);
    let ids = tokenizer.encode(&genome).unwrap();
    assert!(ids.len() < genome.len() / 2, "{}", ids.len());
    assert_eq!(tokenizer.decode(&ids), genome.as_bytes());
}

#[test]
fn a_long_word_is_cut_between_characters_and_others_are_left_alone() {
    let name = |byte: u8| json::byte_characters()[byte as usize];
    let spelt = |text: &str| text.bytes().map(name).collect::<String>();
    let word = spelt(&"é语a".repeat(200));
    let chunks = build::chunks(&word);
    assert_eq!(chunks.concat(), word);
    assert!(chunks.len() > 3);
    assert!(chunks.iter().all(|chunk| chunk.chars().count() < 260 && !chunk.starts_with(name(0xa9))));
    let ordinary = spelt(&"-".repeat(200));
    assert_eq!(build::chunks(&ordinary), [ordinary.as_str()]);
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
    assert_eq!((&config["eos_token"], &config["pad_token"]), (&json!("<|endoftext|>"), &json!("<|endoftext|>")));
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
    // A Strip that would take a space from every token, or from the end of the text.
    let strip = |start: u32, stop: u32| json!({"type": "Strip", "content": " ", "start": start, "stop": stop});
    assert!(refusal("/decoder/decoders/1", strip(1, 0)).contains("Strip"));
    assert!(refusal("/decoder/decoders", json!([{"type": "Fuse"}, strip(0, 1)])).contains("Strip"));
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

const MARK: &str = "\u{2581}";

/// A file in SentencePiece style with these steps, and added tokens (content, id, special) behind the 262 others.
fn sentence_piece_with(normalizer: Value, pre_tokenizer: Value, decoder: Value, added: &[(&str, u32, bool)]) -> Value {
    let mut file = sentence_piece();
    (file["normalizer"], file["pre_tokenizer"], file["decoder"]) = (normalizer, pre_tokenizer, decoder);
    for (content, id, special) in added {
        file["added_tokens"].as_array_mut().unwrap().push(json!({
            "id": id, "content": content, "special": special, "single_word": false, "lstrip": false, "rstrip": false,
            "normalized": false
        }));
    }
    file
}

fn replace() -> Value {
    json!({"type": "Replace", "pattern": {"String": " "}, "content": MARK})
}

/// Llama's and Mixtral's normalizer: a mark in front, and marks for spaces.
fn prepend() -> Value {
    json!({"type": "Sequence", "normalizers": [{"type": "Prepend", "prepend": MARK}, replace()]})
}

fn metaspace(scheme: &str) -> Value {
    json!({"type": "Metaspace", "replacement": MARK, "prepend_scheme": scheme, "split": false})
}

fn and_bytes(decoder: Value) -> Value {
    json!({"type": "Sequence", "decoders": [{"type": "ByteFallback"}, decoder]})
}

/// Llama's and Mixtral's decoder, which takes one space from the start.
fn strip() -> Value {
    json!({"type": "Sequence", "decoders": [
        {"type": "Replace", "pattern": {"String": MARK}, "content": " "},
        {"type": "ByteFallback"}, {"type": "Fuse"}, {"type": "Strip", "content": " ", "start": 1, "stop": 0}]})
}

/// A text as [`TextStream`] shows it.
fn shown(tokenizer: &Tokenizer, ids: &[u32]) -> String {
    let mut stream = TextStream::new(tokenizer);
    String::from_utf8(ids.iter().flat_map(|&id| stream.push(id).into_owned()).collect()).unwrap()
}

#[test]
fn a_space_that_the_tokenizer_puts_in_front_is_a_token_and_no_text() {
    // 1 is the mark, 5 the mark with "on", 4 "on", 2 "o".
    let pipelines = [
        (prepend(), Value::Null, strip()),
        (Value::Null, metaspace("first"), strip()),
        (Value::Null, metaspace("always"), and_bytes(metaspace("always"))),
    ];
    for (number, (normalizer, pre_tokenizer, decoder)) in pipelines.into_iter().enumerate() {
        let tokenizer = read(&sentence_piece_with(normalizer, pre_tokenizer, decoder, &[])).unwrap();
        for (text, ids) in [("on on", vec![5, 5]), ("", vec![]), ("oon", vec![1, 2, 4]), ("on  on", vec![5, 1, 5])] {
            assert_eq!(tokenizer.encode(text).unwrap(), ids, "pipeline {number}, {text:?}");
            assert_eq!(shown(&tokenizer, &ids), text, "pipeline {number}");
        }
        // Metaspace leaves a text alone that has a space in front already.
        let spaced = if number == 0 { vec![1, 5] } else { vec![5] };
        assert_eq!(tokenizer.encode(" on").unwrap(), spaced, "pipeline {number}");
        assert_eq!(tokenizer.normal_forms(), None);
    }
}

#[test]
fn metaspace_shows_no_space_of_the_first_token_and_strip_one_less() {
    for (decoder, expected) in
        [(and_bytes(metaspace("first")), "on"), (and_bytes(metaspace("never")), "   on"), (strip(), "  on")]
    {
        let mut file = sentence_piece_with(replace(), Value::Null, decoder, &[]);
        file["model"]["vocab"][MARK.repeat(3)] = 262.into();
        assert_eq!(shown(&read(&file).unwrap(), &[0, 262, 4]), expected);
    }
}

#[test]
fn a_byte_level_tokenizer_may_put_a_space_in_front() {
    let mut file: Value = serde_json::from_slice(&made(TokenizerKind::Bpe).to_json().unwrap()).unwrap();
    file["pre_tokenizer"]["add_prefix_space"] = true.into();
    let (tokenizer, plain) = (read(&file).unwrap(), made(TokenizerKind::Bpe));
    let text = "we see\n\n we will\n".repeat(PIECE_BYTES / 8);
    assert_eq!(tokenizer.encode(&text).unwrap(), plain.encode(&format!(" {text}")).unwrap());
    assert_eq!(tokenizer.encode(" we").unwrap(), plain.encode(" we").unwrap());
}

#[test]
fn the_space_in_front_comes_again_behind_an_added_token_where_the_tokenizer_puts_it() {
    let added = [("@@", 262, false)];
    let tokenizer = read(&sentence_piece_with(prepend(), Value::Null, strip(), &added)).unwrap();
    assert_eq!(tokenizer.encode("on@@on").unwrap(), [5, 262, 5]);
    assert_eq!(tokenizer.encode("on@@ on").unwrap(), [5, 262, 1, 5]);
    let tokenizer = read(&sentence_piece_with(Value::Null, metaspace("first"), strip(), &added)).unwrap();
    assert_eq!(tokenizer.encode("on@@on").unwrap(), [5, 262, 4]);
}

#[test]
fn added_tokens_are_decoded_as_the_decoder_says() {
    // Runs of white space, as Gemma and others have them: added, and in the vocabulary.
    let mut file = sentence_piece_with(
        replace(),
        Value::Null,
        sentence_piece()["decoder"].take(),
        &[(&MARK.repeat(2), 262, false)],
    );
    file["model"]["vocab"][MARK.repeat(2)] = 262.into();
    file["added_tokens"][1]["normalized"] = true.into();
    let tokenizer = read(&file).unwrap();
    assert_eq!(tokenizer.encode("on  on").unwrap(), [4, 262, 4]);
    assert_eq!(tokenizer.token_bytes(262), b"  ");
    // A byte-level one has them as they stand in the text, unless the vocabulary lists them.
    let mut file: Value = serde_json::from_slice(&made(TokenizerKind::Bytes).to_json().unwrap()).unwrap();
    for (content, id) in [("\u{120}\u{120}", 257), ("caf\u{e9}", 258)] {
        let token = json!({"id": id, "content": content, "special": false, "single_word": false, "lstrip": false,
                           "rstrip": false, "normalized": false});
        file["added_tokens"].as_array_mut().unwrap().push(token);
    }
    file["model"]["vocab"]["\u{120}\u{120}"] = 257.into();
    let tokenizer = read(&file).unwrap();
    assert_eq!((tokenizer.token_bytes(257), tokenizer.token_bytes(258)), (&b"  "[..], "caf\u{e9}".as_bytes()));
    assert_eq!(tokenizer.encode("a caf\u{e9}").unwrap(), [98, 33, 258]);
}

#[test]
fn a_text_is_put_into_the_normal_form_that_the_tokenizer_asks_for() {
    let decomposed = "cafe\u{301} nai\u{308}ve\n\u{212b}\n";
    for (form, normal) in [
        ("NFC", "caf\u{e9} na\u{ef}ve\n\u{c5}\n"),
        ("NFKC", "caf\u{e9} na\u{ef}ve\n\u{c5}\n"),
        ("NFD", "cafe\u{301} nai\u{308}ve\nA\u{30a}\n"),
        ("NFKD", "cafe\u{301} nai\u{308}ve\nA\u{30a}\n"),
    ] {
        let mut file: Value = serde_json::from_slice(&made(TokenizerKind::Bytes).to_json().unwrap()).unwrap();
        file["normalizer"] = json!({"type": form});
        let tokenizer = read(&file).unwrap();
        assert_eq!(tokenizer.normal_forms().as_deref(), Some(form));
        assert_eq!(tokenizer.normalized(decomposed), normal, "{form}");
        let ids = tokenizer.encode(decomposed).unwrap();
        assert_eq!(ids.len(), normal.len(), "{form}");
        assert_eq!(tokenizer.decode(&ids), normal.as_bytes(), "{form}");
    }
}

/// A byte tokenizer with two more special tokens, 257 and 258, and this post-processor.
fn framed(post_processor: Value) -> anyhow::Result<Tokenizer> {
    let mut file: Value = serde_json::from_slice(&made(TokenizerKind::Bytes).to_json().unwrap()).unwrap();
    for (content, id) in [("<s>", 257), ("<end>", 258)] {
        let token = json!({"id": id, "content": content, "special": true, "single_word": false, "lstrip": false,
                           "rstrip": false, "normalized": false});
        file["added_tokens"].as_array_mut().unwrap().push(token);
    }
    file["post_processor"] = post_processor;
    read(&file)
}

fn template(single: Value) -> Value {
    let special = |id: u32, name: &str| json!({"id": name, "ids": [id], "tokens": [name]});
    json!({"type": "TemplateProcessing", "single": single, "pair": [],
           "special_tokens": {"<s>": special(257, "<s>"), "<end>": special(258, "<end>")}})
}

#[test]
fn the_post_processor_puts_its_tokens_around_a_text() {
    let (text, special) =
        (json!({"Sequence": {"id": "A", "type_id": 0}}), |name| json!({"SpecialToken": {"id": name, "type_id": 0}}));
    let begin = template(json!([special("<s>"), text]));
    let both = template(json!([special("<s>"), text, special("<end>")]));
    let levels = json!({"type": "ByteLevel", "add_prefix_space": true, "trim_offsets": false, "use_regex": true});
    let sequence = json!({"type": "Sequence", "processors": [levels, begin]});
    let roberta = json!({"type": "RobertaProcessing", "sep": ["<end>", 258], "cls": ["<s>", 257], "trim_offsets": true,
                         "add_prefix_space": false});
    for (post_processor, before, after) in [
        (Value::Null, vec![], vec![]),
        (levels.clone(), vec![], vec![]),
        (begin.clone(), vec![257], vec![]),
        (sequence, vec![257], vec![]),
        (both, vec![257], vec![258]),
        (roberta, vec![257], vec![258]),
    ] {
        let tokenizer = framed(post_processor).unwrap();
        assert_eq!(*tokenizer.frame(), Frame { before: before.clone(), after: after.clone() });
        assert_eq!(tokenizer.encode("Hi").unwrap(), [73, 106]);
        assert_eq!(tokenizer.encode_prompt("Hi").unwrap(), [&before[..], &[73, 106]].concat());
        // Between texts stands an end of text, once.
        let roles = Roles { ends: vec![258, 0], ..Roles::default() };
        assert_eq!(tokenizer.with_roles(roles).around_text(), Frame { before, after: vec![258] });
    }
    for (post_processor, what) in [
        (json!({"type": "Other"}), "Other is not supported"),
        (template(json!([special("<s>")])), "0 times"),
        (template(json!([special("<x>"), text])), "<x> has no ids"),
        (
            json!({"type": "BertProcessing", "sep": ["<end>", 258], "cls": ["<s>", 999]}),
            "token 999, which does not exist",
        ),
    ] {
        let message = format!("{:#}", framed(post_processor).err().expect(what));
        assert!(message.contains("post_processor") && message.contains(what), "{message}");
    }
    // What is trained on has no such tokens, and neither has what is saved.
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("tokenizer.json");
    std::fs::write(&path, framed(begin).unwrap().to_json().unwrap()).unwrap();
    let config = TokenizerConfig { kind: TokenizerKind::File, vocab_size: 0, path: path.to_str().unwrap().into() };
    let tokenizer = Tokenizer::from_config(&config, &[]).unwrap();
    assert_eq!(*tokenizer.frame(), Frame::default());
    assert_eq!(
        *read(&serde_json::from_slice(&tokenizer.to_json().unwrap()).unwrap()).unwrap().frame(),
        Frame::default()
    );
}

#[test]
fn special_tokens_are_recognised_in_a_prompt_and_in_no_other_text() {
    let tokenizer = framed(Value::Null).unwrap();
    assert_eq!(tokenizer.encode_prompt("<s>u<end>").unwrap(), [257, 118, 258]);
    assert_eq!(tokenizer.encode("<s>u").unwrap(), [61, 116, 63, 118]);
    assert_eq!((tokenizer.id_of("<end>"), tokenizer.id_of("<ends>")), (Some(258), None));
}

#[test]
fn tokens_beyond_the_models_vocabulary_are_an_error_only_where_a_text_has_them() {
    let (tokenizer, beyond) = framed(Value::Null).unwrap().limited_to(258);
    assert_eq!(beyond, ["<end>"]);
    assert_eq!(tokenizer.encode_prompt("<s>u").unwrap(), [257, 118]);
    let error = tokenizer.encode_prompt("u<end>").unwrap_err();
    assert_eq!(exit_code(&error), 1);
    assert!(error.to_string().contains("\"<end>\" (id 258)"), "{error}");
}
