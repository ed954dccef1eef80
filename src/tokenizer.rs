//! Text <-> token ids, around the `tokenizers` crate: byte-level BPE trained here, raw bytes, characters, or an existing
//! `tokenizer.json`. What is saved loads in transformers and encodes identically there.

use crate::config::{TokenizerConfig, TokenizerKind};
use crate::error::Failure;
use anyhow::{Result, anyhow};
use serde_json::json;
use std::collections::{BTreeSet, HashMap};
use std::fs;
use std::sync::Arc;
use tokenizers::decoders::fuse::Fuse;
use tokenizers::models::TrainerWrapper;
use tokenizers::models::bpe::{BPE, BpeTrainerBuilder, Vocab};
use tokenizers::pre_tokenizers::byte_level::ByteLevel;
use tokenizers::{AddedToken, DecoderWrapper, ModelWrapper, Tokenizer as Inner};

/// Follows every text; always id 0 in tokenizers made here.
const END_OF_TEXT: &str = "<|endoftext|>";

/// What a character tokenizer makes of characters that the training split lacks.
const UNKNOWN: &str = "<|unk|>";

/// The end of a text as other tokenizers call it.
const OTHER_ENDS: [&str; 3] = ["</s>", "<|im_end|>", "<eos>"];

/// The largest tokenizer.json that is read.
const MAX_BYTES: u64 = 256 << 20;

/// A tokenizer with the bytes that each of its tokens stands for.
#[derive(Clone)]
pub struct Tokenizer {
    inner: Arc<Inner>,
    token_bytes_V: Arc<Vec<Vec<u8>>>,
    end_of_text: Option<u32>,
}

impl Tokenizer {
    /// The tokenizer that the configuration asks for: trained on `texts` (bpe, chars), built (bytes) or read (file).
    ///
    /// # Errors
    /// [`Failure::Usage`] for a file that cannot be read or used.
    pub fn from_config(config: &TokenizerConfig, texts: &[&str]) -> Result<Self> {
        match config.kind {
            TokenizerKind::Bpe => {
                let bytes = texts.iter().map(|text| text.len()).sum();
                let size = if config.vocab_size > 0 { config.vocab_size } else { default_vocab_size(bytes) };
                train_bpe(size, texts)
            }
            TokenizerKind::Bytes => train_bpe(257, &[]),
            TokenizerKind::Chars => characters(texts),
            TokenizerKind::File => read_file(&config.path),
        }
    }

    /// From the content of a tokenizer.json that came from `origin` (a name for errors).
    ///
    /// # Errors
    /// If it is not a tokenizer, or one whose tokens do not stand for definite bytes.
    pub fn from_json(json: &[u8], origin: &str) -> Result<Self> {
        let inner = Inner::from_bytes(json).map_err(|error| anyhow!("{origin} is not a tokenizer: {error}"))?;
        Self::from_inner(inner, origin)
    }

    fn from_inner(mut inner: Inner, origin: &str) -> Result<Self> {
        // Text that happens to spell a special token is text.
        inner.set_encode_special_tokens(true);
        let token_bytes_V = Arc::new(token_bytes(&inner, origin)?);
        let end_of_text = [END_OF_TEXT].iter().chain(&OTHER_ENDS).find_map(|name| inner.token_to_id(name));
        Ok(Self { inner: Arc::new(inner), token_bytes_V, end_of_text })
    }

    /// The content of tokenizer.json: the same bytes in every process.
    pub fn to_json(&self) -> Result<Vec<u8>> {
        self.inner
            .to_string(true)
            .map(String::into_bytes)
            .map_err(|error| anyhow!("cannot write the tokenizer: {error}"))
    }

    /// The content of tokenizer_config.json, for transformers. `max_length` is the model's context in tokens.
    pub fn config_json(&self, max_length: usize) -> Result<Vec<u8>> {
        let end = self.end_of_text.and_then(|id| self.inner.id_to_token(id));
        let unknown = self.inner.token_to_id(UNKNOWN).map(|_| UNKNOWN);
        let config = json!({
            "tokenizer_class": "PreTrainedTokenizerFast",
            "model_max_length": max_length,
            "bos_token": null,
            "eos_token": end,
            "unk_token": unknown,
            "add_bos_token": false,
            "add_eos_token": false,
            "add_prefix_space": false,
            "clean_up_tokenization_spaces": false,
        });
        Ok(format!("{config:#}\n").into_bytes())
    }

    /// One more than the highest id.
    pub fn vocab_size(&self) -> usize {
        self.token_bytes_V.len()
    }

    /// The token that follows every text.
    pub fn end_of_text(&self) -> Option<u32> {
        self.end_of_text
    }

    /// The tokens of a text. No special token is added, and none comes from text that spells one.
    pub fn encode(&self, text: &str) -> Result<Vec<u32>> {
        let encoding = self.inner.encode_fast(text, false).map_err(|error| anyhow!("cannot encode text: {error}"))?;
        Ok(encoding.get_ids().to_vec())
    }

    /// The bytes that a token contributes to the text: none for special tokens.
    pub fn token_bytes(&self, id: u32) -> &[u8] {
        self.token_bytes_V.get(id as usize).map_or(&[], Vec::as_slice)
    }

    /// The bytes of a sequence of tokens.
    pub fn decode(&self, ids: &[u32]) -> Vec<u8> {
        ids.iter().flat_map(|&id| self.token_bytes(id)).copied().collect()
    }

    /// A token for display: its text, or a special token's name.
    pub fn token_text(&self, id: u32) -> String {
        match self.token_bytes(id) {
            [] => self.inner.id_to_token(id).unwrap_or_default(),
            bytes => String::from_utf8_lossy(bytes).into_owned(),
        }
    }
}

/// More text can fill more tokens.
fn default_vocab_size(bytes: usize) -> usize {
    match bytes {
        0..262_144 => 1024,
        262_144..2_097_152 => 2048,
        _ => 4096,
    }
}

fn special(name: &str) -> AddedToken {
    AddedToken::from(name, true)
}

/// Byte-level BPE (Sennrich et al. 2016; the byte alphabet and split of GPT-2): every byte is a token, so nothing is
/// unknown. Without texts there are no merges, and tokens are bytes.
fn train_bpe(vocab_size: usize, texts: &[&str]) -> Result<Tokenizer> {
    let byte_level = ByteLevel::new(false, true, true);
    let mut inner = Inner::new(ModelWrapper::BPE(BPE::default()));
    inner.with_pre_tokenizer(Some(byte_level)).with_decoder(Some(byte_level));
    let trainer = BpeTrainerBuilder::new()
        .vocab_size(vocab_size)
        .show_progress(false)
        .special_tokens(vec![special(END_OF_TEXT)])
        .initial_alphabet(ByteLevel::alphabet().into_iter().collect())
        .build();
    inner
        .train(&mut TrainerWrapper::from(trainer), texts.iter())
        .map_err(|error| anyhow!("cannot train a tokenizer: {error}"))?;
    Tokenizer::from_inner(inner, "the trained tokenizer")
}

/// Each character is a token, in the order of code points: a BPE without merges.
fn characters(texts: &[&str]) -> Result<Tokenizer> {
    let characters: BTreeSet<char> = texts.iter().flat_map(|text| text.chars()).collect();
    let names = [END_OF_TEXT, UNKNOWN].map(str::to_owned).into_iter();
    let vocab: Vocab = names.chain(characters.into_iter().map(String::from)).zip(0..).collect();
    let bpe = BPE::builder().vocab_and_merges(vocab, Vec::new()).unk_token(UNKNOWN.into()).build();
    let bpe = bpe.map_err(|error| anyhow!("cannot build a character tokenizer: {error}"))?;
    let mut inner = Inner::new(ModelWrapper::BPE(bpe));
    inner.with_decoder(Some(DecoderWrapper::Fuse(Fuse::new())));
    let added = inner.add_special_tokens([special(END_OF_TEXT), special(UNKNOWN)]);
    added.map_err(|error| anyhow!("cannot build a character tokenizer: {error}"))?;
    Tokenizer::from_inner(inner, "the character tokenizer")
}

fn read_file(path: &str) -> Result<Tokenizer> {
    let usage = |problem: String| anyhow::Error::from(Failure::Usage(format!("tokenizer.path = {path:?}: {problem}")));
    let size = fs::metadata(path).map_err(|error| usage(error.to_string()))?.len();
    if size > MAX_BYTES {
        return Err(usage(format!("{size} bytes are more than a tokenizer.json has")));
    }
    let json = fs::read(path).map_err(|error| usage(error.to_string()))?;
    Tokenizer::from_json(&json, path).map_err(|error| usage(format!("{error:#}")))
}

/// For each id, the bytes that it stands for.
fn token_bytes(inner: &Inner, origin: &str) -> Result<Vec<Vec<u8>>> {
    let vocab = inner.get_vocab(true);
    let size = vocab.values().max().map_or(0, |&id| id as usize + 1);
    if size > 1 << 24 {
        return Err(anyhow!("{origin} has a token id of {size}, which is absurd"));
    }
    let specials = inner.get_added_tokens_decoder();
    let bytes_of = text_decoder(inner, origin)?;
    let mut table = vec![Vec::new(); size];
    for (token, id) in vocab {
        table[id as usize] = match specials.get(&id) {
            Some(_) if token == UNKNOWN => "\u{fffd}".into(),
            Some(added) if added.special => Vec::new(),
            Some(_) => token.into_bytes(),
            None => {
                bytes_of(&token).ok_or_else(|| anyhow!("{origin}: token {token:?} stands for no definite bytes"))?
            }
        };
    }
    Ok(table)
}

/// From a token as the vocabulary spells it to its bytes, by the kind of decoder.
fn text_decoder(inner: &Inner, origin: &str) -> Result<Box<dyn Fn(&str) -> Option<Vec<u8>>>> {
    match inner.get_decoder() {
        Some(DecoderWrapper::ByteLevel(_)) => {
            let byte_of = byte_alphabet();
            Ok(Box::new(move |token| token.chars().map(|character| byte_of.get(&character).copied()).collect()))
        }
        Some(DecoderWrapper::Fuse(_)) => Ok(Box::new(|token| Some(token.as_bytes().to_vec()))),
        other => {
            let kind = serde_json::to_value(other).ok().and_then(|value| Some(value.get("type")?.as_str()?.to_owned()));
            let kind = kind.unwrap_or_else(|| "none".into());
            Err(anyhow!(
                "{origin} has the decoder {kind}, of which single tokens have no definite bytes; supported are ByteLevel \
                 and Fuse"
            ))
        }
    }
}

/// GPT-2's printable stand-in of each byte: itself where it is printable, else the next free code point from 256 on.
fn byte_alphabet() -> HashMap<char, u8> {
    let printable = |byte: u8| matches!(byte, b'!'..=b'~' | 0xa1..=0xac | 0xae..=0xff);
    let free = (256..).map(char::from_u32).map(Option::unwrap_or_default);
    let (plain, others): (Vec<u8>, Vec<u8>) = (0..=255).partition(|&byte| printable(byte));
    plain.into_iter().map(|byte| (char::from(byte), byte)).chain(free.zip(others)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const TEXT: &str = "Ann: the cat sat on the mat, the cat sat.\nBob: naïve café — 42 times!\n\n  two spaces\n";

    fn tokenizer(kind: TokenizerKind) -> Tokenizer {
        let config = TokenizerConfig { kind, vocab_size: 0, path: String::new() };
        Tokenizer::from_config(&config, &[TEXT]).unwrap()
    }

    #[test]
    fn every_kind_gives_its_training_text_back_from_bytes_that_add_up() {
        for kind in [TokenizerKind::Bpe, TokenizerKind::Bytes, TokenizerKind::Chars] {
            let tokenizer = tokenizer(kind);
            let ids = tokenizer.encode(TEXT).unwrap();
            assert_eq!(tokenizer.decode(&ids), TEXT.as_bytes(), "{kind:?}");
            assert!(ids.iter().all(|&id| (id as usize) < tokenizer.vocab_size()));
            assert_eq!(tokenizer.end_of_text(), Some(0));
        }
    }

    #[test]
    fn vocabularies_have_the_promised_sizes() {
        assert_eq!(tokenizer(TokenizerKind::Bytes).vocab_size(), 257);
        let characters: BTreeSet<char> = TEXT.chars().collect();
        assert_eq!(tokenizer(TokenizerKind::Chars).vocab_size(), characters.len() + 2);
        let bpe = tokenizer(TokenizerKind::Bpe);
        assert!(bpe.vocab_size() > 257 && bpe.encode(TEXT).unwrap().len() < TEXT.len());
    }

    #[test]
    fn saving_and_loading_keeps_every_byte_and_id() {
        for kind in [TokenizerKind::Bpe, TokenizerKind::Bytes, TokenizerKind::Chars] {
            let tokenizer = tokenizer(kind);
            let json = tokenizer.to_json().unwrap();
            let loaded = Tokenizer::from_json(&json, "test").unwrap();
            assert_eq!(loaded.to_json().unwrap(), json, "{kind:?}");
            assert_eq!(loaded.encode(TEXT).unwrap(), tokenizer.encode(TEXT).unwrap());
        }
    }

    #[test]
    fn text_that_spells_a_special_token_stays_text() {
        for kind in [TokenizerKind::Bpe, TokenizerKind::Bytes] {
            let tokenizer = tokenizer(kind);
            let ids = tokenizer.encode("a<|endoftext|>b").unwrap();
            assert!(!ids.contains(&0), "{kind:?}: {ids:?}");
            assert_eq!(tokenizer.decode(&ids), b"a<|endoftext|>b");
        }
    }

    #[test]
    fn a_character_never_seen_is_unknown() {
        let tokenizer = tokenizer(TokenizerKind::Chars);
        assert_eq!(tokenizer.encode("t€").unwrap()[1], 1);
        assert_eq!(tokenizer.decode(&[1]), "\u{fffd}".as_bytes());
    }

    #[test]
    fn a_file_that_is_no_tokenizer_is_refused_by_name() {
        let error = Tokenizer::from_json(b"{\"model\": 3}", "x/tokenizer.json").err().unwrap();
        assert!(error.to_string().starts_with("x/tokenizer.json is not a tokenizer"), "{error}");
        let config = TokenizerConfig { kind: TokenizerKind::File, vocab_size: 0, path: "/no/such/file".into() };
        let error = Tokenizer::from_config(&config, &[]).err().unwrap();
        assert_eq!(crate::error::exit_code(&error), 2);
    }

    proptest! {
        #[test]
        fn any_text_comes_back_from_byte_level_tokens(text in any::<String>()) {
            let tokenizer = tokenizer(TokenizerKind::Bpe);
            prop_assert_eq!(tokenizer.decode(&tokenizer.encode(&text).unwrap()), text.as_bytes());
        }
    }
}
