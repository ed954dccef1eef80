//! Makes the `tokenizer.json` of the tokenizers that need no file.

use super::json::byte_characters;
use super::{END_OF_TEXT, MAX_VOCABULARY, PIECE_BYTES, UNKNOWN, pieces};
use crate::error::Failure;
use anyhow::anyhow;
use std::collections::BTreeSet;
use tokenizers::decoders::fuse::Fuse;
use tokenizers::models::bpe::{BPE, BpeTrainer, Vocab};
use tokenizers::pre_tokenizers::byte_level::ByteLevel;
use tokenizers::{AddedToken, OffsetReferential, OffsetType, PreTokenizedString, PreTokenizer, Tokenizer, Trainer};

/// The special token and the 256 bytes.
const SMALLEST_BPE: usize = 257;
/// Longer words are cut for training: each merge costs as much as the words that it occurs in are long, so that one
/// word of megabytes would take minutes. No word of a language is as long.
const MAX_WORD_BYTES: usize = 256;

/// Byte-level BPE (Sennrich et al. 2016; on bytes: Radford et al. 2019, GPT-2, whose splitting into words it uses)
/// with at most `vocab_size` tokens, 0 for the default. The vocabulary stays smaller when every pair that is left
/// occurs only once.
pub fn bpe(vocab_size: usize, texts: &[&str]) -> anyhow::Result<Vec<u8>> {
    let vocab_size = match vocab_size {
        0 => default_vocab_size(texts.iter().map(|text| text.len()).sum()),
        SMALLEST_BPE..=MAX_VOCABULARY => vocab_size,
        _ => {
            return Err(Failure::Usage(format!(
                "tokenizer.vocab_size is {vocab_size}; a byte-level BPE has at least {SMALLEST_BPE} tokens (256 bytes \
                 and {END_OF_TEXT}) and here at most {MAX_VOCABULARY}. 0 chooses by the size of the corpus"
            ))
            .into());
        }
    };
    let mut trainer = BpeTrainer::builder()
        .show_progress(false)
        .vocab_size(vocab_size)
        .min_frequency(2)
        .initial_alphabet(byte_characters().into_iter().collect())
        .special_tokens(vec![AddedToken::from(END_OF_TEXT, true)])
        .build();
    let mut model = BPE::default();
    let special = trainer
        .feed(texts.iter().flat_map(|text| pieces(text, PIECE_BYTES)), words)
        .and_then(|()| trainer.train(&mut model))
        .map_err(|error| anyhow!("cannot train the tokenizer on the training split: {error}"))?;
    let mut tokenizer = byte_level(model);
    tokenizer.add_special_tokens(special).map_err(|error| anyhow!("cannot build the tokenizer: {error}"))?;
    Ok(serde_json::to_vec_pretty(&tokenizer)?)
}

/// The words of a text as the trainer counts them, a character for each byte.
fn words(text: &str) -> tokenizers::Result<Vec<String>> {
    let mut text = PreTokenizedString::from(text);
    splitting().pre_tokenize(&mut text)?;
    let words = text.get_splits(OffsetReferential::Original, OffsetType::Byte);
    Ok(words.into_iter().flat_map(|(word, ..)| chunks(word)).map(str::to_owned).collect())
}

/// Cuts a long word, whose characters stand for one byte each, between characters of the text.
pub(super) fn chunks(word: &str) -> Vec<&str> {
    // No character has more bytes than two (in UTF-8).
    if word.len() <= MAX_WORD_BYTES {
        return vec![word];
    }
    let inside = &byte_characters()[0x80..0xc0];
    let mut chunks = Vec::new();
    let mut rest = word;
    while let Some((end, _)) =
        rest.char_indices().skip(MAX_WORD_BYTES).find(|(_, character)| !inside.contains(character))
    {
        let (chunk, after) = rest.split_at(end);
        chunks.push(chunk);
        rest = after;
    }
    chunks.push(rest);
    chunks
}

/// Twice the vocabulary for about eight times the text, so that a token is seen often enough to be learned.
fn default_vocab_size(corpus_bytes: usize) -> usize {
    match corpus_bytes {
        0..256_000 => 1024,
        256_000..2_000_000 => 2048,
        _ => 4096,
    }
}

/// The bytes themselves: byte `b` is id `b + 1`.
pub fn bytes() -> anyhow::Result<Vec<u8>> {
    let names = byte_characters().map(String::from);
    let names = std::iter::once(END_OF_TEXT.to_string()).chain(names);
    let model = without_merges(names, None)?;
    finish(byte_level(model), &[END_OF_TEXT])
}

/// The characters of `texts` in the order of their code points, from id 2 on.
pub fn chars(texts: &[&str]) -> anyhow::Result<Vec<u8>> {
    let characters: BTreeSet<char> = texts.iter().flat_map(|text| text.chars()).collect();
    let names = [END_OF_TEXT, UNKNOWN].map(String::from).into_iter().chain(characters.into_iter().map(String::from));
    let mut tokenizer = Tokenizer::new(without_merges(names, Some(UNKNOWN))?);
    tokenizer.with_decoder(Some(Fuse::new()));
    finish(tokenizer, &[END_OF_TEXT, UNKNOWN])
}

/// A BPE without merges takes its text apart into characters.
fn without_merges(names: impl Iterator<Item = String>, unknown: Option<&str>) -> anyhow::Result<BPE> {
    let vocab: Vocab = names.zip(0..).collect();
    let mut builder = BPE::builder().vocab_and_merges(vocab, Vec::new());
    if let Some(unknown) = unknown {
        builder = builder.unk_token(unknown.to_string());
    }
    builder.build().map_err(|error| anyhow!("cannot build the tokenizer: {error}"))
}

/// Splits into words as GPT-2 does, and words into bytes.
fn byte_level(model: BPE) -> Tokenizer {
    let mut tokenizer = Tokenizer::new(model);
    tokenizer.with_pre_tokenizer(Some(splitting())).with_decoder(Some(splitting()));
    tokenizer
}

fn splitting() -> ByteLevel {
    ByteLevel::default().add_prefix_space(false).trim_offsets(false)
}

fn finish(mut tokenizer: Tokenizer, special: &[&str]) -> anyhow::Result<Vec<u8>> {
    tokenizer
        .add_special_tokens(special.iter().map(|name| AddedToken::from(*name, true)))
        .map_err(|error| anyhow!("cannot build the tokenizer: {error}"))?;
    Ok(serde_json::to_vec_pretty(&tokenizer)?)
}
