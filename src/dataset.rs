//! Documents -> token arrays. The split is fixed by the data alone; a batch is a pure function of (seed, number).

pub mod split;
pub mod stored;

use crate::random::Stream;
use crate::tokenizer::{TextStream, Tokenizer};
use anyhow::{Context, Result};
use serde::{Deserialize, Serialize};
use std::borrow::Cow;
use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::ops::{AddAssign, Range};
use std::path::PathBuf;
use std::sync::{Mutex, PoisonError};

/// A part of a document on one side of the split.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Part<'a> {
    pub domain: &'a str,
    pub text: &'a str,
}

/// Where token ids are.
pub trait IdArray {
    fn len(&self) -> usize;

    fn is_empty(&self) -> bool {
        self.len() == 0
    }

    fn append(&mut self, new: &[u32]) -> Result<()>;

    /// The ids at these positions, which must be within the array.
    fn read(&self, positions: Range<usize>) -> Result<Cow<'_, [u32]>>;
}

impl IdArray for Vec<u32> {
    fn len(&self) -> usize {
        self.len()
    }

    fn append(&mut self, new: &[u32]) -> Result<()> {
        self.extend_from_slice(new);
        Ok(())
    }

    fn read(&self, positions: Range<usize>) -> Result<Cow<'_, [u32]>> {
        Ok(Cow::Borrowed(&self[positions]))
    }
}

/// Arrays of more ids than this are kept in a file: 16 MiB in memory.
const MAX_IN_MEMORY: usize = 1 << 22;

/// An array of token ids, in memory or, a long one, in a file: a temporary one without a name, or the cache's.
#[derive(Debug)]
pub enum Ids {
    Memory(Vec<u32>),
    /// Little-endian, from byte `start` on.
    File {
        file: Mutex<File>,
        start: u64,
        len: usize,
    },
}

impl Default for Ids {
    fn default() -> Self {
        Ids::Memory(Vec::new())
    }
}

impl IdArray for Ids {
    fn len(&self) -> usize {
        match self {
            Ids::Memory(ids) => ids.len(),
            Ids::File { len, .. } => *len,
        }
    }

    /// An array that has become too long for memory moves to a file.
    fn append(&mut self, new: &[u32]) -> Result<()> {
        match self {
            Ids::Memory(ids) if ids.len() + new.len() <= MAX_IN_MEMORY => ids.extend_from_slice(new),
            Ids::Memory(ids) => {
                let ids = std::mem::take(ids);
                let folder = temporary_folder();
                let file = tempfile::tempfile_in(&folder).with_context(|| unwritable(&folder))?;
                *self = Ids::File { file: Mutex::new(file), start: 0, len: 0 };
                self.append(&ids)?;
                self.append(new)?;
            }
            Ids::File { file, len, .. } => {
                let bytes: Vec<u8> = new.iter().flat_map(|id| id.to_le_bytes()).collect();
                let file = file.get_mut().unwrap_or_else(PoisonError::into_inner);
                file.write_all(&bytes).with_context(|| unwritable(&temporary_folder()))?;
                *len += new.len();
            }
        }
        Ok(())
    }

    fn read(&self, positions: Range<usize>) -> Result<Cow<'_, [u32]>> {
        match self {
            Ids::Memory(ids) => ids.read(positions),
            Ids::File { file, start, .. } => {
                let mut bytes = vec![0; positions.len() * 4];
                let mut file = file.lock().unwrap_or_else(PoisonError::into_inner);
                let read = |file: &mut File, bytes: &mut [u8]| -> io::Result<()> {
                    file.seek(SeekFrom::Start(start + positions.start as u64 * 4))?;
                    file.read_exact(bytes)
                };
                read(&mut file, &mut bytes).context("cannot read the file of token ids")?;
                Ok(bytes.as_chunks().0.iter().map(|bytes| u32::from_le_bytes(*bytes)).collect())
            }
        }
    }
}

/// Where files may be large: `/tmp` often lies in memory.
fn temporary_folder() -> PathBuf {
    let large = PathBuf::from("/var/tmp");
    if std::env::var_os("TMPDIR").is_none() && large.is_dir() { large } else { std::env::temp_dir() }
}

fn unwritable(folder: &std::path::Path) -> String {
    format!("cannot write a temporary file of token ids in {} (TMPDIR names another folder)", folder.display())
}

/// Texts as one array of tokens, with an end-of-text token after each, and before each what the tokenizer's
/// post-processor puts there.
#[derive(Debug, Default)]
pub struct Tokens<I = Vec<u32>> {
    pub ids: I,
    /// Names of the domains, sorted once all texts are there.
    pub domains: Vec<String>,
    /// Bytes of the texts, each end of text counted as one, as in the n-gram baseline.
    pub bytes: usize,
    /// For each text in order, where its tokens are and the index of its domain.
    pub texts: Vec<(Range<usize>, usize)>,
    /// Texts that the tokenizer's normal form has changed. Bytes and tokens are those of the changed text.
    pub normalized_texts: usize,
    pub unknown: Unknown,
    /// Bytes that the first token stands for.
    pub first_bytes: usize,
}

/// Tokens that do not tell which character they stand for.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Unknown {
    pub tokens: usize,
    /// What they stand for, and how often.
    pub characters: BTreeMap<char, usize>,
}

/// Characters that a description names.
const NAMED_CHARACTERS: usize = 8;

impl Unknown {
    /// Bytes that they stand for.
    pub fn bytes(&self) -> usize {
        self.characters.iter().map(|(character, count)| character.len_utf8() * count).sum()
    }

    /// The most frequent characters in words: "α 120, β 80 and 12 more".
    pub fn names(&self) -> String {
        let mut frequent: Vec<_> = self.characters.iter().collect();
        frequent.sort_by_key(|&(&character, &count)| (std::cmp::Reverse(count), character));
        let more = frequent.len().saturating_sub(NAMED_CHARACTERS);
        let named = frequent.into_iter().take(NAMED_CHARACTERS);
        let named: Vec<_> = named.map(|(character, count)| format!("{} {count}", character.escape_debug())).collect();
        named.join(", ") + &if more > 0 { format!(" and {more} more") } else { String::new() }
    }

    fn add(&mut self, text: &str, ids: &[u32], tokenizer: &Tokenizer) {
        let Some(unknown) = tokenizer.unknown().filter(|unknown| ids.contains(unknown)) else { return };
        self.tokens += ids.iter().filter(|&&id| id == unknown).count();
        for character in tokenizer.unknown_characters(text, ids) {
            *self.characters.entry(character).or_default() += 1;
        }
    }
}

/// What the predicted tokens of a text stand for: what turns their loss into bits per byte.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Coverage {
    pub tokens: usize,
    pub bytes: usize,
    /// Of these, tokens that do not tell which character they stand for, and the bytes of those characters.
    pub unknown_tokens: usize,
    pub unknown_bytes: usize,
}

impl Coverage {
    /// Bits per byte of a mean cross-entropy in nats per token. An unknown token is not the text that it stands for:
    /// whoever wants the text back needs its bytes too, at 8 bits each, and these are counted.
    pub fn bits_per_byte(&self, loss: f64) -> f64 {
        let predicted = loss * self.tokens as f64 / std::f64::consts::LN_2;
        (predicted + 8.0 * self.unknown_bytes as f64) / self.bytes.max(1) as f64
    }

    /// Share of the tokens that are unknown.
    pub fn unknown_share(&self) -> f64 {
        self.unknown_tokens as f64 / self.tokens.max(1) as f64
    }
}

impl Tokens {
    pub fn encode(parts: &[Part], tokenizer: &Tokenizer) -> Result<Self> {
        let mut tokens = Self::default();
        for part in parts {
            tokens.push(part, tokenizer)?;
        }
        tokens.sort_domains();
        Ok(tokens)
    }
}

impl<I: IdArray> Tokens<I> {
    /// Appends a text.
    pub fn push(&mut self, part: &Part, tokenizer: &Tokenizer) -> Result<()> {
        let start = self.ids.len();
        let (around, text) = (tokenizer.around_text(), tokenizer.normalized(part.text));
        let ids = tokenizer.encode(part.text)?;
        self.normalized_texts += usize::from(text != part.text);
        self.unknown.add(&text, &ids, tokenizer);
        if start == 0 && around.before.is_empty() {
            self.first_bytes = bytes_of_first(&text, &ids, tokenizer);
        }
        self.ids.append(&around.before)?;
        self.ids.append(&ids)?;
        self.ids.append(&around.after)?;
        self.bytes += text.len() + around.after.len();
        let domain = self.domains.iter().position(|domain| domain == part.domain).unwrap_or_else(|| {
            self.domains.push(part.domain.to_owned());
            self.domains.len() - 1
        });
        self.texts.push((start..self.ids.len(), domain));
        Ok(())
    }

    /// To be called after the last text.
    pub fn sort_domains(&mut self) {
        let before = self.domains.clone();
        self.domains.sort();
        for (_, domain) in &mut self.texts {
            *domain = self.domains.binary_search(&before[*domain]).unwrap_or(0);
        }
    }

    /// Of all tokens but the first: what a model that starts with the first one predicts.
    pub fn predicted(&self, tokenizer: &Tokenizer) -> Coverage {
        let first = self.ids.read(0..self.ids.len().min(1)).unwrap_or_default();
        let starts_unknown = first.first().copied().is_some_and(|id| Some(id) == tokenizer.unknown());
        let unknown_first = if starts_unknown { self.first_bytes } else { 0 };
        Coverage {
            tokens: self.ids.len().saturating_sub(1),
            bytes: self.bytes.saturating_sub(self.first_bytes),
            unknown_tokens: self.unknown.tokens - usize::from(starts_unknown),
            unknown_bytes: self.unknown.bytes().saturating_sub(unknown_first),
        }
    }

    /// The domain of the token at `position`.
    pub fn domain_at(&self, position: usize) -> usize {
        let text = self.texts.partition_point(|(range, _)| range.end <= position);
        self.texts.get(text).map_or(0, |&(_, domain)| domain)
    }

    /// Consecutive, non-overlapping windows of `time` inputs that cover every position with a successor; the last one
    /// may be shorter.
    pub fn windows(&self, time: usize) -> impl Iterator<Item = Range<usize>> {
        let end = self.ids.len().saturating_sub(1);
        (0..end).step_by(time).map(move |start| start..end.min(start + time))
    }
}

impl AddAssign for Coverage {
    fn add_assign(&mut self, other: Self) {
        self.tokens += other.tokens;
        self.bytes += other.bytes;
        self.unknown_tokens += other.unknown_tokens;
        self.unknown_bytes += other.unknown_bytes;
    }
}

/// Bytes of `text` that its first token stands for; an end of text counts as one.
fn bytes_of_first(text: &str, ids: &[u32], tokenizer: &Tokenizer) -> usize {
    match ids.first() {
        None => usize::from(tokenizer.end_of_text().is_some()),
        Some(&id) if Some(id) == tokenizer.unknown() => {
            tokenizer.unknown_characters(text, &ids[..1]).first().map_or(0, |character| character.len_utf8())
        }
        Some(&id) => TextStream::new(tokenizer).push(id).len(),
    }
}

/// Inputs and the tokens that follow them: `batch` sequences of `time` tokens, one after the other.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Batch {
    pub ids: Vec<u32>,
    pub targets: Vec<u32>,
    /// Where each sequence begins in the text.
    pub starts: Vec<usize>,
}

/// Batch `number` of a training run. An epoch visits every window of `time` tokens once, in shuffled order; each
/// epoch cuts the (circular) array into windows at another phase.
///
/// # Errors
/// Where the ids are in a file that cannot be read.
pub fn batch(ids: &Ids, batch_size: usize, time: usize, seed: u64, number: u64) -> Result<Batch> {
    let windows = (ids.len() / time).max(1) as u64;
    let mut batch = Batch {
        ids: Vec::with_capacity(batch_size * time),
        targets: Vec::with_capacity(batch_size * time),
        starts: Vec::with_capacity(batch_size),
    };
    for row in 0..batch_size as u64 {
        let visit = number * batch_size as u64 + row;
        let stream = Stream::new(seed, "batch", &[visit / windows]);
        let phase = (stream.uniform(u64::MAX) * ids.len() as f64) as usize;
        let start = phase + stream.permuted(visit % windows, windows) as usize * time;
        let start = start % ids.len();
        batch.starts.push(start);
        let mut row = Vec::with_capacity(time + 1);
        while row.len() <= time {
            let from = (start + row.len()) % ids.len();
            row.extend_from_slice(&ids.read(from..ids.len().min(from + time + 1 - row.len()))?);
        }
        batch.ids.extend_from_slice(&row[..time]);
        batch.targets.extend_from_slice(&row[1..]);
    }
    Ok(batch)
}

/// Replaces each of a batch's inputs with this probability by a token from a random place of the text.
///
/// # Errors
/// Where the ids are in a file that cannot be read.
pub fn corrupt(inputs: &mut [u32], probability: f64, ids: &Ids, seed: u64, number: u64) -> Result<()> {
    if probability == 0.0 {
        return Ok(());
    }
    let stream = Stream::new(seed, "corruption", &[number]);
    for (input, index) in inputs.iter_mut().zip(0..) {
        if stream.uniform(2 * index) < probability {
            let place = (stream.uniform(2 * index + 1) * ids.len() as f64) as usize;
            *input = ids.read(place..place + 1)?[0];
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_epoch_visits_every_window_once_and_the_next_one_in_another_order() {
        let ids = Ids::Memory((0..103).collect());
        let epoch = |number: u64| {
            // Ten windows of ten tokens: two batches of five.
            (2 * number..2 * number + 2)
                .flat_map(|n| batch(&ids, 5, 10, 42, n).unwrap().ids.chunks(10).map(|w| w[0]).collect::<Vec<_>>())
                .collect::<Vec<u32>>()
        };
        for number in 0..3 {
            let mut starts = epoch(number);
            starts.sort_unstable();
            let gaps: Vec<u32> = starts.windows(2).map(|pair| pair[1] - pair[0]).collect();
            assert!(gaps.iter().all(|&gap| gap == 10 || gap == 13), "epoch {number} starts at {starts:?}");
        }
        assert_ne!(epoch(0), epoch(1));
    }

    #[test]
    fn ids_in_a_file_are_those_in_memory() {
        let all: Vec<u32> = (0..MAX_IN_MEMORY as u32 + 5000).map(|id| id.wrapping_mul(2_654_435_761)).collect();
        let mut ids = Ids::default();
        for piece in all.chunks(70_001) {
            ids.append(piece).unwrap();
        }
        assert!(matches!(ids, Ids::File { .. }));
        assert_eq!(ids.len(), all.len());
        for range in [0..1, 17..90_000, all.len() - 3..all.len(), 5..5] {
            assert!(*ids.read(range.clone()).unwrap() == all[range]);
        }
        let in_memory = Ids::Memory(all);
        for number in [0, 3, 1_000_000] {
            let from = |ids: &Ids| batch(ids, 4, 200, 9, number).unwrap();
            assert_eq!(from(&ids), from(&in_memory));
        }
    }

    #[test]
    fn a_batch_depends_on_seed_and_number_alone_and_targets_follow_inputs() {
        let ids = Ids::Memory((0..1000).collect());
        let batch = |seed| batch(&ids, 4, 16, seed, 7).unwrap();
        let first = batch(1);
        assert_eq!(first, batch(1));
        assert_ne!(first, batch(2));
        assert!(first.ids.iter().zip(&first.targets).all(|(id, target)| (id + 1) % 1000 == *target));
    }

    #[test]
    fn corruption_replaces_as_many_inputs_as_it_should_by_tokens_of_the_text() {
        let ids = Ids::Memory((0..1000).map(|index| 5 + index % 2).collect());
        let corrupted = |probability, number| {
            let mut inputs = vec![0; 10_000];
            corrupt(&mut inputs, probability, &ids, 1, number).unwrap();
            inputs
        };
        let count = |inputs: &[u32], id| inputs.iter().filter(|&&input| input == id).count();
        let inputs = corrupted(0.2, 3);
        let (fives, sixes) = (count(&inputs, 5), count(&inputs, 6));
        assert!(fives + sixes + count(&inputs, 0) == 10_000);
        assert!((800..1200).contains(&fives) && (800..1200).contains(&sixes), "{fives} and {sixes}");
        assert!(inputs == corrupted(0.2, 3) && inputs != corrupted(0.2, 4));
        assert_eq!(count(&corrupted(0.0, 3), 0), 10_000);
    }

    #[test]
    fn unknown_characters_are_counted_and_their_bytes_cost_eight_bits_each() {
        let kind = crate::config::TokenizerKind::Chars;
        let config = crate::config::TokenizerConfig { kind, vocab_size: 0, path: String::new() };
        let tokenizer = Tokenizer::from_config(&config, &["ab\n"]).unwrap();
        let parts = [Part { domain: "d", text: "aλbλ\n" }, Part { domain: "d", text: "😀\n" }];
        let tokens = Tokens::<Vec<u32>>::encode(&parts, &tokenizer).unwrap();
        assert_eq!((tokens.unknown.tokens, tokens.unknown.names().as_str()), (3, "λ 2, 😀 1"));
        // Nine tokens, two of them ends of text; the first "a" is given.
        let predicted = tokens.predicted(&tokenizer);
        assert_eq!(predicted, Coverage { tokens: 8, bytes: 13, unknown_tokens: 3, unknown_bytes: 8 });
        // A model that is always sure and right pays for the bytes all the same.
        assert_eq!(predicted.bits_per_byte(0.0), 8.0 * 8.0 / 13.0);
        let one_bit = std::f64::consts::LN_2;
        assert!((predicted.bits_per_byte(one_bit) - (8.0 + 64.0) / 13.0).abs() < 1e-12);
        // An unknown token at the start is given as well.
        let tokens = Tokens::<Vec<u32>>::encode(&[Part { domain: "d", text: "λab" }], &tokenizer).unwrap();
        assert_eq!(tokens.predicted(&tokenizer), Coverage { tokens: 3, bytes: 3, ..Coverage::default() });
    }

    #[test]
    fn windows_cover_every_position_with_a_successor_once() {
        let tokens = Tokens { ids: (0..26).collect::<Vec<u32>>(), ..Tokens::default() };
        assert_eq!(tokens.windows(10).collect::<Vec<_>>(), [0..10, 10..20, 20..25]);
    }
}
