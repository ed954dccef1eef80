//! The token arrays of a large corpus in the cache, so that the next run on the same text need not encode it again.

use super::{IdArray, Ids, Tokens, Unknown};
use crate::cache::Cache;
use anyhow::{Context, Result, ensure};
use serde::{Deserialize, Serialize};
use std::fs::File;
use std::io::{BufRead, BufReader, Read, Seek, SeekFrom};
use std::sync::Mutex;

/// Ids that are copied at once.
const BLOCK: usize = 1 << 18;
/// Bytes of a text's entry: where it ends, and its domain.
const ENTRY: usize = 12;

/// What stands before the arrays, as a line of JSON.
#[derive(Serialize, Deserialize)]
struct Header {
    tokenizer_bytes: usize,
    splits: [Shape; 2],
}

/// All of a [`Tokens`] but its arrays.
#[derive(Serialize, Deserialize)]
struct Shape {
    ids: usize,
    texts: usize,
    bytes: usize,
    domains: Vec<String>,
    normalized_texts: usize,
    unknown: Unknown,
    first_bytes: usize,
}

impl Shape {
    fn of(tokens: &Tokens<Ids>) -> Self {
        Self {
            ids: tokens.ids.len(),
            texts: tokens.texts.len(),
            bytes: tokens.bytes,
            domains: tokens.domains.clone(),
            normalized_texts: tokens.normalized_texts,
            unknown: tokens.unknown.clone(),
            first_bytes: tokens.first_bytes,
        }
    }
}

/// Keeps the `tokenizer.json` and the token arrays of the two splits.
///
/// # Errors
/// Where the cache cannot be written to.
pub fn put(cache: &Cache, key: &str, tokenizer: &[u8], splits: [&Tokens<Ids>; 2]) -> Result<()> {
    cache.put(key, |out| {
        let header = Header { tokenizer_bytes: tokenizer.len(), splits: splits.map(Shape::of) };
        serde_json::to_writer(&mut *out, &header)?;
        out.write_all(b"\n")?;
        out.write_all(tokenizer)?;
        for tokens in splits {
            for (range, domain) in &tokens.texts {
                out.write_all(&(range.end as u64).to_le_bytes())?;
                out.write_all(&(*domain as u32).to_le_bytes())?;
            }
        }
        for tokens in splits {
            for start in (0..tokens.ids.len()).step_by(BLOCK) {
                let ids = tokens.ids.read(start..tokens.ids.len().min(start + BLOCK))?;
                let bytes: Vec<u8> = ids.iter().flat_map(|id| id.to_le_bytes()).collect();
                out.write_all(&bytes)?;
            }
        }
        Ok(())
    })
}

/// The `tokenizer.json` and the token arrays of the two splits, if they were kept. The ids stay in the cache's file,
/// which is there as long as they are, also if it is removed from the folder.
pub fn get(cache: &Cache, key: &str) -> Option<(Vec<u8>, [Tokens<Ids>; 2])> {
    let (path, file, _) = cache.get(key)?;
    let read = || -> Result<_> {
        let mut input = BufReader::new(file);
        let mut line = Vec::new();
        input.by_ref().take(1 << 24).read_until(b'\n', &mut line)?;
        let Header { tokenizer_bytes, splits: [training, validation] } = serde_json::from_slice(&line)?;
        let mut tokenizer = vec![0; tokenizer_bytes];
        input.read_exact(&mut tokenizer)?;
        let mut splits = [texts(&mut input, training)?, texts(&mut input, validation)?];
        let mut start = input.stream_position()?;
        for (tokens, len) in &mut splits {
            tokens.ids = Ids::File { file: Mutex::new(File::open(&path)?), start, len: *len };
            start += *len as u64 * 4;
        }
        ensure!(input.seek(SeekFrom::End(0))? == start, "another length");
        Ok((tokenizer, splits.map(|(tokens, _)| tokens)))
    };
    read().ok()
}

/// A split without its ids, and how many these are.
fn texts(input: &mut impl Read, shape: Shape) -> Result<(Tokens<Ids>, usize)> {
    let Shape { bytes, domains, normalized_texts, unknown, first_bytes, .. } = shape;
    let mut tokens = Tokens { bytes, domains, normalized_texts, unknown, first_bytes, ..Tokens::default() };
    let mut start = 0;
    for _ in 0..shape.texts {
        let mut entry = [0; ENTRY];
        input.read_exact(&mut entry)?;
        let (end, domain) = entry.split_first_chunk().context("an entry is longer than that")?;
        let end = u64::from_le_bytes(*end) as usize;
        let domain = u32::from_le_bytes(domain.try_into()?) as usize;
        ensure!(start <= end && end <= shape.ids && domain < tokens.domains.len(), "a text outside of the array");
        tokens.texts.push((start..end, domain));
        start = end;
    }
    Ok((tokens, shape.ids))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tokens_come_back_as_they_were_and_outlive_their_file() {
        let folder = tempfile::tempdir().unwrap();
        let cache = Cache::new(folder.path().join("c"), 1 << 30);
        let mut training = Tokens::<Ids> { domains: vec!["a".into(), "b".into()], bytes: 77, ..Tokens::default() };
        training.unknown = Unknown { tokens: 3, characters: [('λ', 2), ('"', 1)].into() };
        training.first_bytes = 2;
        training.ids.append(&(0..300_000).map(|id: u32| id.wrapping_mul(2_654_435_761)).collect::<Vec<_>>()).unwrap();
        training.texts = vec![(0..10, 1), (10..10, 0), (10..300_000, 0)];
        let mut validation = Tokens::<Ids> { domains: vec!["a".into()], bytes: 3, ..Tokens::default() };
        validation.ids.append(&[1, 2, 3]).unwrap();
        validation.texts = vec![(0..3, 0)];
        assert!(get(&cache, "k").is_none());
        put(&cache, "k", b"{}", [&training, &validation]).unwrap();
        let (tokenizer, kept) = get(&cache, "k").unwrap();
        std::fs::remove_dir_all(folder.path().join("c")).unwrap();
        assert_eq!(tokenizer, b"{}");
        for (kept, original) in kept.iter().zip([&training, &validation]) {
            assert_eq!((&kept.domains, kept.bytes, &kept.texts), (&original.domains, original.bytes, &original.texts));
            assert_eq!((&kept.unknown, kept.first_bytes), (&original.unknown, original.first_bytes));
            assert_eq!(kept.ids.len(), original.ids.len());
            for range in [0..1, 0..original.ids.len(), original.ids.len() - 2..original.ids.len()] {
                assert_eq!(kept.ids.read(range.clone()).unwrap(), original.ids.read(range).unwrap());
            }
        }
    }
}
