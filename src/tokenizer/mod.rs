//! Text to token ids and back.
//!
//! The `tokenizers` crate encodes; what each id stands for in bytes is worked out here once, so that bits per byte are
//! exact and a token is printed the moment it is sampled. A tokenizer is its `tokenizer.json`: one that was just
//! trained goes through the same reader as one from a checkpoint.

mod build;
mod frame;
mod json;
mod normal;

pub use frame::Frame;

use crate::config::{TokenizerConfig, TokenizerKind};
use crate::error::Failure;
use crate::ops::pool;
use anyhow::{Context, bail, ensure};
use json::{AtStart, Prefix};
use normal::NormalForms;
use serde::Serialize;
use std::borrow::Cow;
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
/// A piece is at most this many times longer than asked for; only words longer than that are cut.
const MAX_STRETCH: usize = 4;

/// A tokenizer; cloning shares it.
#[derive(Clone)]
pub struct Tokenizer {
    encoder: Arc<tokenizers::Tokenizer>,
    json: Arc<[u8]>,
    /// By id.
    tokens: Arc<[Token]>,
    /// How many ids the model knows: no token from there on can be used.
    ids: usize,
    roles: Roles,
    frame: Frame,
    unknown: Option<u32>,
    /// Whether [`pieces`] of a text can be encoded on their own.
    independent_pieces: bool,
    normal_forms: NormalForms,
    prefix: Option<Prefix>,
    at_start: AtStart,
    origin: String,
}

/// Which tokens have a meaning of their own.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Roles {
    /// Starts a text that has no prompt.
    pub begins: Option<u32>,
    /// Each of these ends a text; the first stands between texts.
    pub ends: Vec<u32>,
    /// Fills up batches of unequal length.
    pub pads: Option<u32>,
}

/// What an id stands for. Ids that no token has are empty.
#[derive(Clone, Default)]
struct Token {
    bytes: Vec<u8>,
    /// Name of a special token.
    special: Option<String>,
    /// Found in the text before it is taken apart.
    is_added: bool,
}

impl Tokenizer {
    /// The tokenizer that the configuration asks for: trained on `texts`, the training split (`bpe`, `chars`), fixed
    /// (`bytes`) or read (`file`).
    pub fn from_config(config: &TokenizerConfig, texts: &[&str]) -> anyhow::Result<Self> {
        match config.kind {
            TokenizerKind::Bpe => Self::from_json(&build::bpe(config.vocab_size, texts)?, "trained BPE"),
            TokenizerKind::Bytes => Self::from_json(&build::bytes()?, "bytes"),
            TokenizerKind::Chars => Self::from_json(&build::chars(texts)?, "characters"),
            TokenizerKind::File => Self::from_json(&json::unframed(read_file(&config.path)?)?, &config.path),
        }
    }

    /// From the bytes of a `tokenizer.json`; errors name `origin`. It must hold a BPE whose tokens stand for exact
    /// bytes: byte-level, or SentencePiece-like.
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
            pad_token: Option<&'a str>,
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
            bos_token: name(self.end_of_text()),
            eos_token: name(self.end_of_text()),
            // What transformers batches has none of its own: the attention mask hides it.
            pad_token: name(self.roles.pads),
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
        self.roles.ends.first().copied()
    }

    pub fn roles(&self) -> &Roles {
        &self.roles
    }

    /// With what other files say of the special tokens. Without it they are guessed from their names.
    pub fn with_roles(self, roles: Roles) -> Self {
        Self { roles, ..self }
    }

    /// For a model that knows `ids` ids; the names of tokens that it cannot use, which are an error in a text.
    pub fn limited_to(self, ids: usize) -> (Self, Vec<String>) {
        let beyond =
            (ids..self.tokens.len()).map(|id| self.token_text(id as u32)).filter(|name| !name.is_empty()).collect();
        (Self { ids, ..self }, beyond)
    }

    /// The id of the token of that name.
    pub fn id_of(&self, name: &str) -> Option<u32> {
        self.encoder.token_to_id(name)
    }

    /// The ids of the special tokens before and after a text of its own: those of the post-processor, and an end of
    /// text where that has none.
    pub fn around_text(&self) -> Frame {
        let mut frame = self.frame.clone();
        if !frame.after.last().is_some_and(|id| self.roles.ends.contains(id)) {
            frame.after.extend(self.end_of_text());
        }
        frame
    }

    /// What the post-processor puts around a text.
    pub fn frame(&self) -> &Frame {
        &self.frame
    }

    /// The normalizer's Unicode normal forms, if it has any ("NFC").
    pub fn normal_forms(&self) -> Option<String> {
        self.normal_forms.names()
    }

    /// The text that is encoded: in the normal form that the tokenizer asks for.
    pub fn normalized<'a>(&self, text: &'a str) -> Cow<'a, str> {
        self.normal_forms.apply(text)
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
        let mut is_prefixed = self.prefix.is_some_and(|prefix| prefix.is_put_before(text.as_bytes(), true));
        for &id in ids {
            let (mut bytes, unknown) = (self.token_bytes(id), Some(id) == self.unknown);
            if std::mem::take(&mut is_prefixed) {
                bytes = bytes.strip_prefix(b" ").unwrap_or(bytes);
            }
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

    /// The ids of `text`, whose bytes they give back exactly, save for characters that are unknown, for a normal form,
    /// and for a space that the tokenizer puts in front. No special token is added, and none is recognised in the text.
    pub fn encode(&self, text: &str) -> anyhow::Result<Vec<u32>> {
        let text = self.normalized(text);
        let least = if self.independent_pieces { PIECE_BYTES } else { usize::MAX };
        let mut pieces: Vec<(&str, anyhow::Result<Vec<u32>>)> =
            pieces(&text, least).into_iter().map(|piece| (piece, Ok(Vec::new()))).collect();
        pool::run(pieces.iter_mut().collect(), |(piece, ids)| *ids = self.encode_piece(&self.encoder, piece));
        let mut ids = Vec::new();
        for (_, piece_ids) in pieces {
            ids.append(&mut piece_ids?);
        }
        ensure!(
            self.gives_back(&text, &ids),
            "the tokenizer {} changes the text that starts {:?}: its tokens do not give back the same bytes. Only \
             tokenizers that lose and add nothing can be used; try tokenizer.kind = \"bpe\"",
            self.origin,
            text.chars().take(40).collect::<String>()
        );
        Ok(ids)
    }

    /// The ids of a prompt as transformers has them: special tokens are recognised by their names, and the post-processor
    /// puts its own in front. What it puts behind a text is left out: the prompt goes on.
    pub fn encode_prompt(&self, text: &str) -> anyhow::Result<Vec<u32>> {
        let has = |name: &String| !name.is_empty() && text.contains(name);
        let mut ids = self.frame.before.clone();
        if self.tokens.iter().any(|token| token.special.as_ref().is_some_and(has)) {
            let mut encoder = tokenizers::Tokenizer::clone(&self.encoder);
            encoder.set_encode_special_tokens(false);
            ids.extend(self.encode_piece(&encoder, text)?);
        } else {
            ids.extend(self.encode(text)?);
        }
        Ok(ids)
    }

    fn encode_piece(&self, encoder: &tokenizers::Tokenizer, piece: &str) -> anyhow::Result<Vec<u32>> {
        match encoder.encode_fast(piece, false) {
            Ok(encoding) => self.checked(encoding.get_ids().to_vec()),
            Err(error) => bail!("the tokenizer {} failed: {error}", self.origin),
        }
    }

    fn checked(&self, ids: Vec<u32>) -> anyhow::Result<Vec<u32>> {
        if let Some(&id) = ids.iter().find(|&&id| id as usize >= self.ids) {
            let (name, ids) = (self.token_text(id), self.ids);
            bail!("the text has the token {name:?} (id {id}), but the model's vocabulary has only {ids} ids");
        }
        Ok(ids)
    }

    fn gives_back(&self, text: &str, ids: &[u32]) -> bool {
        let mut rest = text.as_bytes();
        // Whether a token stands at the start of the text, or behind one that was cut out of it.
        let (mut is_start, mut is_cut) = (true, true);
        for &id in ids {
            if Some(id) == self.unknown {
                return true;
            }
            let Some(token) = self.tokens.get(id as usize) else { return false };
            let mut bytes = &token.bytes[..];
            if is_cut && !token.is_added && self.prefix.is_some_and(|prefix| prefix.is_put_before(rest, is_start)) {
                bytes = bytes.strip_prefix(b" ").unwrap_or(bytes);
            }
            match rest.strip_prefix(bytes) {
                Some(after) => rest = after,
                None => return false,
            }
            (is_start, is_cut) = (false, token.is_added);
        }
        rest.is_empty()
    }

    /// The bytes that a token adds to the text: none for special tokens and ids that no token has, U+FFFD for the
    /// unknown character.
    pub fn token_bytes(&self, id: u32) -> &[u8] {
        self.tokens.get(id as usize).map_or(&[], |token| &token.bytes)
    }

    /// The bytes of `ids`, which may stand anywhere in a text. Not a `String`, since a byte-level token may end inside a
    /// character.
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

/// The bytes of a text token by token, from its start.
pub struct TextStream<'a> {
    tokenizer: &'a Tokenizer,
    is_start: bool,
}

impl<'a> TextStream<'a> {
    pub fn new(tokenizer: &'a Tokenizer) -> Self {
        Self { tokenizer, is_start: true }
    }

    /// What the next token adds to the text.
    pub fn push(&mut self, id: u32) -> Cow<'a, [u8]> {
        let bytes = self.tokenizer.token_bytes(id);
        if bytes.is_empty() || !std::mem::take(&mut self.is_start) {
            return bytes.into();
        }
        match self.tokenizer.at_start {
            AtStart::AsElsewhere => bytes.into(),
            AtStart::LessOneSpace => bytes.strip_prefix(b" ").unwrap_or(bytes).into(),
            AtStart::LessAllSpaces => bytes.iter().copied().filter(|&byte| byte != b' ').collect::<Vec<_>>().into(),
        }
    }
}

/// Cuts a text into pieces of at least `least` bytes that fall into the same words as the whole, where GPT-2's pattern,
/// `'s|...| ?\p{L}+| ?\p{N}+|...|\s+(?!\S)|\s+`, makes the words. A place to cut is [`is_word_end`]. Where none comes
/// for as long as [`MAX_STRETCH`] pieces, the text is cut between any two characters: such a word (a genome, an image in
/// base 64) gets other tokens around the cut.
fn pieces(text: &str, least: usize) -> Vec<&str> {
    let mut pieces = Vec::new();
    let mut rest = text;
    while let Some(end) = piece_end(rest, least) {
        let (piece, after) = rest.split_at(end);
        pieces.push(piece);
        rest = after;
    }
    pieces.push(rest);
    pieces
}

/// Where the first piece of a text ends; none where it is the whole.
fn piece_end(text: &str, least: usize) -> Option<usize> {
    let most = least.saturating_mul(MAX_STRETCH);
    // The character that ends at `least` or after it, and those that follow.
    let first = char_boundary(text, least.saturating_sub(1));
    let mut characters = text[first..].char_indices().map(|(offset, character)| (first + offset, character)).peekable();
    while let Some((start, before)) = characters.next() {
        let end = start + before.len_utf8();
        let &(_, after) = characters.peek()?;
        if end >= least && (is_word_end(before, after) || end >= most) {
            return Some(end);
        }
    }
    None
}

/// The last place between two characters of a text that is not behind byte `at`.
pub(crate) fn char_boundary(text: &str, at: usize) -> usize {
    let at = at.min(text.len());
    (0..=at).rev().find(|&place| text.is_char_boundary(place)).unwrap_or(0)
}

/// Whether no match of GPT-2's pattern can reach over the place between two characters, or depends on what is behind
/// it. Between a character that is no white space and a space or line feed: only matches of white space contain these
/// after their first character, and only they look ahead. Between a letter and a digit, or one of them and
/// punctuation: no match goes on from the one to the other. (In ASCII, and behind Chinese, Japanese and Korean letters:
/// elsewhere marks may count as letters or not.)
fn is_word_end(before: char, after: char) -> bool {
    let letter = before.is_ascii_alphabetic()
        || matches!(before, '\u{3041}'..='\u{3096}' | '\u{30a1}'..='\u{30fa}' | '\u{4e00}'..='\u{9fff}' | '\u{ac00}'..='\u{d7a3}');
    match after {
        ' ' | '\n' => !before.is_whitespace(),
        '0'..='9' => letter,
        'A'..='Z' | 'a'..='z' => before.is_ascii_digit(),
        '!'..='~' | '\u{3001}'..='\u{3003}' | '\u{ff01}' | '\u{ff0c}' | '\u{ff1f}' => letter || before.is_ascii_digit(),
        _ => false,
    }
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
