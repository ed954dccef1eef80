//! The first of two readings of a run's text, document by document: its hash, and a sample of bounded size for what
//! is made from the text besides token arrays.

use super::prepare::{DataHash, grouped};
use crate::config::{Config, TokenizerConfig, TokenizerKind};
use crate::dataset::split::{Shares, Split, SplitRule};
use crate::terminal::Phase;
use crate::tokenizer::{Tokenizer, char_boundary};
use crate::transcript::{Corpus, Receipt};
use anyhow::Result;
use std::collections::BTreeSet;

/// A corpus of up to this size is its own sample.
const SAMPLE_BYTES: usize = 16 << 20;
/// A large one is sampled in pieces of at least this size, cut at a line that ends before twice as much.
const PIECE_BYTES: usize = 1 << 16;

/// What the first reading found.
pub(super) struct Survey {
    pub data_sha256: String,
    pub receipt: Receipt,
    pub split: Split,
    pub shares: Shares,
    pub training: Sample,
    pub validation: Sample,
    /// Of the training split, if the tokenizer needs them.
    characters: BTreeSet<char>,
}

impl Survey {
    /// Reads the text once, or, where its short documents are few, twice.
    pub fn of(config: &Config, corpus: &Corpus, rule: SplitRule) -> Result<Self> {
        let split = Split::new(rule, config.data.validation_fraction);
        let survey = Self::under(config, corpus, split)?;
        match split.settled(&survey.shares) {
            settled if settled == split => Ok(survey),
            settled => Self::under(config, corpus, settled),
        }
    }

    fn under(config: &Config, corpus: &Corpus, split: Split) -> Result<Self> {
        let (mut hash, mut shares, mut characters) = (DataHash::default(), Shares::default(), BTreeSet::new());
        let (mut training, mut validation) = (Sample::default(), Sample::default());
        let _phase = Phase::new("reading the texts");
        let receipt = corpus.read(|document| {
            hash.add(&document);
            shares.add(&document, &split);
            let (head, tail) = split.parts(&document);
            if let Some(part) = head {
                training.add(part.text);
                if config.tokenizer.kind == TokenizerKind::Chars {
                    characters.extend(part.text.chars());
                }
            }
            if let Some(part) = tail {
                validation.add(part.text);
            }
            Ok(())
        })?;
        Ok(Self { data_sha256: hash.finish(), receipt, split, shares, training, validation, characters })
    }

    /// The tokenizer that the configuration asks for. A BPE is trained on the sample; characters are all there.
    pub fn tokenizer(&self, config: &TokenizerConfig) -> Result<Tokenizer> {
        let characters = String::from_iter(&self.characters);
        match config.kind {
            TokenizerKind::Chars => Tokenizer::from_config(config, &[&characters]),
            TokenizerKind::Bytes | TokenizerKind::File => Tokenizer::from_config(config, &[]),
            TokenizerKind::Bpe => {
                let _phase = Phase::new("training the tokenizer");
                let texts = self.training.clone().texts();
                Tokenizer::from_config(config, &texts.iter().map(String::as_str).collect::<Vec<_>>())
            }
        }
    }
}

/// All of a small text; of a large one every n-th piece, n the smallest power of two that makes them few enough.
#[derive(Clone, Debug)]
pub(super) struct Sample {
    /// (number of the text, number of the piece, piece)
    pieces: Vec<(usize, usize, String)>,
    every: usize,
    bytes: usize,
    texts: usize,
    seen_pieces: usize,
    seen_bytes: usize,
}

impl Default for Sample {
    fn default() -> Self {
        Self { pieces: Vec::new(), every: 1, bytes: 0, texts: 0, seen_pieces: 0, seen_bytes: 0 }
    }
}

impl Sample {
    fn add(&mut self, mut text: &str) {
        self.seen_bytes += text.len();
        while !text.is_empty() {
            let least = text.len().min(PIECE_BYTES);
            let most = char_boundary(text, 2 * PIECE_BYTES);
            let line_end = text.as_bytes()[least..most].iter().position(|&byte| byte == b'\n');
            let (piece, rest) = text.split_at(line_end.map_or(most, |offset| least + offset + 1));
            if self.seen_pieces.is_multiple_of(self.every) {
                self.bytes += piece.len();
                self.pieces.push((self.texts, self.seen_pieces, piece.to_owned()));
            }
            self.seen_pieces += 1;
            text = rest;
            while self.bytes > SAMPLE_BYTES && self.pieces.len() > 1 {
                self.every *= 2;
                self.pieces.retain(|(_, number, _)| number.is_multiple_of(self.every));
                self.bytes = self.pieces.iter().map(|(_, _, piece)| piece.len()).sum();
            }
        }
        self.texts += 1;
    }

    pub fn is_partial(&self) -> bool {
        self.every > 1
    }

    /// A line for people.
    pub fn describe(&self) -> String {
        let (bytes, all) = (grouped(self.bytes), grouped(self.seen_bytes));
        format!("\na BPE tokenizer and the n-gram baseline learn from a sample of {bytes} of the {all} training bytes")
    }

    /// The sample; pieces that follow each other in a text are joined.
    pub fn texts(self) -> Vec<String> {
        let mut texts: Vec<String> = Vec::new();
        let mut last = None;
        for (text, number, piece) in self.pieces {
            match texts.last_mut() {
                Some(joined) if number > 0 && last == Some((text, number - 1)) => joined.push_str(&piece),
                _ => texts.push(piece),
            }
            last = Some((text, number));
        }
        texts
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_small_corpus_is_its_own_sample_text_by_text() {
        let long = "some words in a line\n".repeat(10_000);
        let texts = ["one\ntwo\n", &long, "three", &long];
        let mut sample = Sample::default();
        texts.iter().for_each(|text| sample.add(text));
        assert!(!sample.is_partial());
        assert!(sample.texts() == texts);
    }

    #[test]
    fn a_sample_of_a_large_corpus_is_bounded_and_from_all_over_it() {
        let mut sample = Sample::default();
        for text in 0..100 {
            sample.add(&format!("line of text {text}\n").repeat(100_000));
        }
        assert!(sample.is_partial());
        assert!(sample.bytes <= SAMPLE_BYTES && sample.bytes > SAMPLE_BYTES / 4, "{}", sample.bytes);
        let texts = sample.clone().texts();
        assert_eq!(texts.iter().map(String::len).sum::<usize>(), sample.bytes);
        for text in 0..100 {
            assert!(
                texts.iter().any(|piece| piece.starts_with(&format!("line of text {text}\n"))),
                "nothing of {text}"
            );
        }
    }
}
