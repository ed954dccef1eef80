//! Text to token ids and back.
//!
//! The `tokenizers` crate encodes; what each id stands for in bytes is worked out here once, so that bits per byte are
//! exact and a token is printed the moment it is sampled. A tokenizer is its `tokenizer.json`: one that was just
//! trained goes through the same reader as one from a checkpoint.

mod build;
mod json;

use crate::config::{TokenizerConfig, TokenizerKind};
use crate::error::Failure;
use crate::ops::pool;
use anyhow::{Context, bail, ensure};
use serde::Serialize;
use std::io::Read;
use std::sync::Arc;

/// Ends every document. Id 0 in every tokenizer made here.
pub const END_OF_TEXT: &str = "<|endoftext|>";
/// Stands for characters that the training split does not have. Id 1 of the character tokenizer.
const UNKNOWN: &str = "<|unk|>";
/// Largest vocabulary: four times that of today's largest models.
const MAX_VOCABULARY: usize = 1 << 20;
const MAX_FILE_BYTES: u64 = 256 << 20;
/// Texts are encoded in pieces of about this length: the crate takes some 200 bytes of memory for each byte of text.
const PIECE_BYTES: usize = 1 << 16;

/// A tokenizer; cloning shares it.
#[derive(Clone)]
pub struct Tokenizer {
    encoder: Arc<tokenizers::Tokenizer>,
    json: Arc<[u8]>,
    /// By id.
    tokens: Arc<[Token]>,
    end_of_text: Option<u32>,
    unknown: Option<u32>,
    /// Whether [`pieces`] of a text can be encoded on their own.
    independent_pieces: bool,
    origin: String,
}

/// What an id stands for. Ids that no token has are empty.
#[derive(Clone, Default)]
struct Token {
    bytes: Vec<u8>,
    /// Name of a special token.
    special: Option<String>,
}

impl Tokenizer {
    /// The tokenizer that the configuration asks for: trained on `texts`, the training split (`bpe`, `chars`), fixed
    /// (`bytes`) or read (`file`).
    pub fn from_config(config: &TokenizerConfig, texts: &[&str]) -> anyhow::Result<Self> {
        match config.kind {
            TokenizerKind::Bpe => Self::from_json(&build::bpe(config.vocab_size, texts)?, "trained BPE"),
            TokenizerKind::Bytes => Self::from_json(&build::bytes()?, "bytes"),
            TokenizerKind::Chars => Self::from_json(&build::chars(texts)?, "characters"),
            TokenizerKind::File => Self::from_json(&read_file(&config.path)?, &config.path),
        }
    }

    /// From the bytes of a `tokenizer.json`; errors name `origin`. It must hold a BPE whose tokens stand for exact
    /// bytes: byte-level, or SentencePiece-like without a space put in front of the text.
    pub fn from_json(json: &[u8], origin: &str) -> anyhow::Result<Self> {
        json::read(json, origin).with_context(|| format!("cannot use the tokenizer {origin}"))
    }

    /// `tokenizer.json`, byte for byte what the tokenizer was read from.
    pub fn to_json(&self) -> anyhow::Result<Vec<u8>> {
        Ok(self.json.to_vec())
    }

    /// `tokenizer_config.json` for transformers; `max_length` is the model's context in tokens.
    pub fn config_json(&self, max_length: usize) -> anyhow::Result<Vec<u8>> {
        #[derive(Serialize)]
        struct TransformersConfig<'a> {
            tokenizer_class: &'a str,
            model_max_length: usize,
            #[serde(skip_serializing_if = "Option::is_none")]
            bos_token: Option<&'a str>,
            #[serde(skip_serializing_if = "Option::is_none")]
            eos_token: Option<&'a str>,
            #[serde(skip_serializing_if = "Option::is_none")]
            unk_token: Option<&'a str>,
            add_bos_token: bool,
            clean_up_tokenization_spaces: bool,
        }
        let name = |id: Option<u32>| id.and_then(|id| self.tokens.get(id as usize)?.special.as_deref());
        let config = TransformersConfig {
            tokenizer_class: "PreTrainedTokenizerFast",
            model_max_length: max_length,
            // What ends a document also stands in front of the next one.
            bos_token: name(self.end_of_text),
            eos_token: name(self.end_of_text),
            unk_token: name(self.unknown),
            add_bos_token: false,
            clean_up_tokenization_spaces: false,
        };
        Ok(serde_json::to_vec_pretty(&config)?)
    }

    /// Highest id plus 1.
    pub fn vocab_size(&self) -> usize {
        self.tokens.len()
    }

    /// Id of the token that ends a document.
    pub fn end_of_text(&self) -> Option<u32> {
        self.end_of_text
    }

    /// Id of the token that stands for any character that has none of its own; such a token does not tell which.
    pub fn unknown(&self) -> Option<u32> {
        self.unknown
    }

    /// The characters of `text` that unknown tokens among its `ids` stand for: one for each such token and, where the
    /// tokenizer puts several into one, as many more as it takes until the next token's bytes follow.
    pub fn unknown_characters(&self, text: &str, ids: &[u32]) -> Vec<char> {
        let mut characters = Vec::new();
        let mut at = 0;
        let mut after_unknown = false;
        for &id in ids {
            let (bytes, unknown) = (self.token_bytes(id), Some(id) == self.unknown);
            let mut skip = |at: &mut usize| {
                let character = text.get(*at..).and_then(|rest| rest.chars().next());
                *at += character.map_or(1, char::len_utf8);
                characters.extend(character);
            };
            while after_unknown && !unknown && at < text.len() && !text.as_bytes()[at..].starts_with(bytes) {
                skip(&mut at);
            }
            if unknown {
                skip(&mut at);
            } else {
                at += bytes.len();
            }
            after_unknown = unknown;
        }
        if after_unknown {
            characters.extend(text.get(at..).unwrap_or_default().chars());
        }
        characters
    }

    /// The ids of `text`, whose bytes they give back exactly, save for characters that are unknown. No special token
    /// is added, and none is recognised in the text.
    pub fn encode(&self, text: &str) -> anyhow::Result<Vec<u32>> {
        let least = if self.independent_pieces { PIECE_BYTES } else { usize::MAX };
        let mut pieces: Vec<(&str, anyhow::Result<Vec<u32>>)> =
            pieces(text, least).into_iter().map(|piece| (piece, Ok(Vec::new()))).collect();
        pool::run(pieces.iter_mut().collect(), |(piece, ids)| *ids = self.encode_piece(piece));
        let mut ids = Vec::new();
        for (_, piece_ids) in pieces {
            ids.append(&mut piece_ids?);
        }
        ensure!(
            self.gives_back(text, &ids),
            "the tokenizer {} changes the text that starts {:?}: its tokens do not give back the same bytes. Only \
             tokenizers that lose and add nothing can be used; try tokenizer.kind = \"bpe\"",
            self.origin,
            text.chars().take(40).collect::<String>()
        );
        Ok(ids)
    }

    fn encode_piece(&self, piece: &str) -> anyhow::Result<Vec<u32>> {
        match self.encoder.encode_fast(piece, false) {
            Ok(encoding) => Ok(encoding.get_ids().to_vec()),
            Err(error) => bail!("the tokenizer {} failed: {error}", self.origin),
        }
    }

    fn gives_back(&self, text: &str, ids: &[u32]) -> bool {
        let mut rest = text.as_bytes();
        for &id in ids {
            if Some(id) == self.unknown {
                return true;
            }
            match rest.strip_prefix(self.token_bytes(id)) {
                Some(after) => rest = after,
                None => return false,
            }
        }
        rest.is_empty()
    }

    /// The bytes that a token adds to the text: none for special tokens and ids that no token has, U+FFFD for the
    /// unknown character.
    pub fn token_bytes(&self, id: u32) -> &[u8] {
        self.tokens.get(id as usize).map_or(&[], |token| &token.bytes)
    }

    /// The text of `ids`. Not a `String`, since a byte-level token may end inside a character.
    pub fn decode(&self, ids: &[u32]) -> Vec<u8> {
        ids.iter().flat_map(|&id| self.token_bytes(id)).copied().collect()
    }

    /// A token for display: special tokens by name, U+FFFD for bytes that are no whole character.
    pub fn token_text(&self, id: u32) -> String {
        match self.tokens.get(id as usize) {
            Some(Token { special: Some(name), .. }) => name.clone(),
            _ => String::from_utf8_lossy(self.token_bytes(id)).into_owned(),
        }
    }
}

/// Cuts a text between a character that is no white space and a space or line feed after it, into pieces of at least
/// `least` bytes. No match of GPT-2's pattern, `'s|...|\s+(?!\S)|\s+`, can reach over such a place or depends on what is
/// behind it: only matches of white space contain a space or line feed after their first character, and only they look
/// ahead, but the one before the cut is of other characters. So the pieces fall into the same words as the whole.
fn pieces(text: &str, least: usize) -> Vec<&str> {
    let mut pieces = Vec::new();
    let mut rest = text;
    let cut = |text: &str| {
        text.char_indices()
            .zip(text.chars().skip(1))
            .skip_while(|&((start, before), _)| start + before.len_utf8() < least)
            .find(|&((_, before), after)| !before.is_whitespace() && matches!(after, ' ' | '\n'))
            .map(|((start, before), _)| start + before.len_utf8())
    };
    while let Some(end) = cut(rest) {
        let (piece, after) = rest.split_at(end);
        pieces.push(piece);
        rest = after;
    }
    pieces.push(rest);
    pieces
}

fn read_file(path: &str) -> anyhow::Result<Vec<u8>> {
    let unreadable = |error| {
        Failure::Usage(format!("cannot read {path:?}, which tokenizer.path in the configuration names: {error}"))
    };
    let file = std::fs::File::open(path).map_err(unreadable)?;
    let mut json = Vec::new();
    // One byte more than allowed, so that the reader sees that it is too long.
    file.take(MAX_FILE_BYTES + 1).read_to_end(&mut json).map_err(unreadable)?;
    Ok(json)
}

#[cfg(test)]
mod tests;
