//! One talk in several formats. Whisper and its relatives write `NAME.txt`, `.srt`, `.vtt`, `.tsv` and `.json` side by
//! side; the same words are to be learned once. Of files of one folder and name that hold the same words, the one that
//! tells most is read: one that knows speakers before one that does not, then JSON, subtitles, tables, text.

use super::receipt::OtherFormat;
use super::sources::{self, Source};
use super::{Item, ReadOptions, file};
use crate::ops::pool;
use sha2::{Digest, Sha256};
use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::path::{Path, PathBuf};

/// How much a format tells, by extension: the last tells most.
const BY_RICHNESS: [&str; 8] = ["txt", "text", "csv", "tsv", "sbv", "srt", "vtt", "json"];
/// Larger files are not compared.
const MAX_BYTES: u64 = 64 << 20;

/// Each file that is another format of a talk, by its path, and what is read instead.
pub(super) fn other_formats(files: &[Source], options: &ReadOptions) -> BTreeMap<PathBuf, OtherFormat> {
    let mut groups: BTreeMap<(Option<&Path>, Option<&OsStr>), Vec<&Source>> = BTreeMap::new();
    for source in files {
        groups.entry((source.path.parent(), source.path.file_stem())).or_default().push(source);
    }
    let mut compared: Vec<(&Source, Option<Words>)> =
        groups.into_values().filter(|group| group.len() > 1).flatten().map(|source| (source, None)).collect();
    let options = ReadOptions { keep_timestamps: false, keep_speakers: false, ..options.clone() };
    pool::run(compared.iter_mut().collect(), |(source, words)| *words = words_of(source, &options));
    let mut same: BTreeMap<_, Vec<(&Source, Words)>> = BTreeMap::new();
    for (source, words) in compared {
        if let Some(words) = words {
            same.entry((source.path.parent(), source.path.file_stem(), words.sha256))
                .or_default()
                .push((source, words));
        }
    }
    let mut others = BTreeMap::new();
    for talk in same.into_values() {
        let richest = talk.iter().max_by_key(|(source, words)| (words.has_speakers, richness(source))).map(|(s, _)| *s);
        for (source, _) in &talk {
            if let Some(richest) = richest.filter(|richest| richest != source) {
                let other = OtherFormat { name: source.name.clone(), read_instead: richest.name.clone() };
                others.insert(source.path.clone(), other);
            }
        }
    }
    others
}

fn richness(source: &Source) -> Option<usize> {
    let extension = sources::extension(&source.path);
    BY_RICHNESS.iter().position(|known| *known == extension)
}

/// What a file says, whatever its format.
struct Words {
    sha256: [u8; 32],
    has_speakers: bool,
}

/// The words of a file, without case and punctuation; none if it cannot be read or holds none.
fn words_of(source: &Source, options: &ReadOptions) -> Option<Words> {
    if std::fs::metadata(&source.path).ok()?.len() > MAX_BYTES {
        return None;
    }
    let (mut hash, mut has_words, mut has_speakers) = (Sha256::new(), false, false);
    file::read(source, options, &mut |item| {
        if let Item::Document(document) = item {
            has_speakers |= !document.facts.speakers.is_empty();
            for word in document.text.split(|character: char| !character.is_alphanumeric()) {
                if !word.is_empty() {
                    has_words = true;
                    hash.update(word.to_lowercase());
                    hash.update(" ");
                }
            }
        }
        Ok(())
    })
    .ok()?;
    has_words.then(|| Words { sha256: hash.finalize().into(), has_speakers })
}
