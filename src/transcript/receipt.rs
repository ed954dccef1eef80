//! The receipt of what was read: what each file was taken for and came to, and what was left out, and why.

use super::sources::{PassedOver, Source};
use super::{Document, Item, Skipped};
use serde::Serialize;
use sha2::{Digest, Sha256};
use std::collections::{BTreeMap, HashMap, HashSet};

/// What became of the sources.
#[derive(Debug, Default, Serialize)]
pub struct Receipt {
    /// Files that were read, in the order of their names.
    pub files: Vec<FileEntry>,
    /// Files that hold what another one beside them holds, too.
    pub other_formats: Vec<OtherFormat>,
    /// Files that cannot be read.
    pub skipped_files: Vec<SkippedFile>,
    /// What in the files that were read was left out: the first of them.
    pub skipped_rows: Vec<SkippedRow>,
    pub skipped_row_count: usize,
    /// What searching met and did not take.
    pub passed_over: Vec<PassedOver>,
    pub domains: BTreeMap<String, Total>,
    #[serde(skip)]
    open: Option<OpenFile>,
    #[serde(skip)]
    by_contents: HashMap<[u8; 32], usize>,
}

/// A file that was read.
#[derive(Clone, Debug, Default, Serialize)]
pub struct FileEntry {
    pub name: String,
    pub format: String,
    pub recognised_by: String,
    /// Of its first document.
    pub domain: String,
    pub documents: usize,
    /// In the order in which they first speak.
    pub speakers: Vec<String>,
    pub turns: usize,
    /// Of the text that is learned.
    pub bytes: usize,
    /// Of the file that became no text: markup, times, repetitions.
    pub dropped_bytes: usize,
    /// Rows and the like that were left out.
    pub skipped_rows: usize,
    /// Of the text.
    pub sha256: String,
    /// An earlier file with exactly this text. It is learned twice.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub copy_of: Option<String>,
}

#[derive(Clone, Debug, Serialize)]
pub struct OtherFormat {
    pub name: String,
    pub read_instead: String,
}

#[derive(Clone, Debug, Serialize)]
pub struct SkippedFile {
    pub name: String,
    pub reason: String,
}

#[derive(Clone, Debug, Serialize)]
pub struct SkippedRow {
    /// `file:LINE`
    pub place: String,
    pub reason: String,
}

/// Of a domain.
#[derive(Clone, Copy, Debug, Default, Serialize)]
pub struct Total {
    pub documents: usize,
    pub turns: usize,
    pub bytes: usize,
    pub dropped_bytes: usize,
}

/// The file whose items are coming in.
#[derive(Debug, Default)]
struct OpenFile {
    entry: FileEntry,
    hash: Sha256,
    speakers: HashSet<String>,
}

/// Skipped rows that are told one by one.
const MAX_ROWS: usize = 100;
/// Speakers of a file that are told by name.
const MAX_SPEAKERS: usize = 1000;

impl Receipt {
    pub(super) fn new<'a>(passed_over: &[PassedOver], other_formats: impl Iterator<Item = &'a OtherFormat>) -> Self {
        Self { passed_over: passed_over.to_vec(), other_formats: other_formats.cloned().collect(), ..Self::default() }
    }

    /// Adds what a file holds. To be followed by [`Self::close_file`] or [`Self::skip_file`].
    pub(super) fn add(&mut self, source: &Source, item: &Item) {
        let open = self.open.get_or_insert_with(|| OpenFile {
            entry: FileEntry { name: source.name.clone(), domain: source.domain.clone(), ..FileEntry::default() },
            ..OpenFile::default()
        });
        match item {
            Item::Document(document) => {
                open.add(document);
                let total = self.domains.entry(document.domain.clone()).or_default();
                total.documents += 1;
                total.turns += document.facts.turns;
                total.bytes += document.text.len();
                total.dropped_bytes += document.facts.dropped_bytes(&document.text);
            }
            Item::Skipped(Skipped { place, reason, .. }) => {
                open.entry.skipped_rows += 1;
                self.skipped_row_count += 1;
                if self.skipped_rows.len() < MAX_ROWS {
                    self.skipped_rows.push(SkippedRow { place: place.clone(), reason: reason.clone() });
                }
            }
        }
    }

    /// The file that items came from is at its end.
    pub(super) fn close_file(&mut self) {
        let Some(OpenFile { mut entry, hash, .. }) = self.open.take() else { return };
        let sha256: [u8; 32] = hash.finalize().into();
        entry.sha256 = sha256.iter().map(|byte| format!("{byte:02x}")).collect();
        let first = *self.by_contents.entry(sha256).or_insert(self.files.len());
        entry.copy_of = self.files.get(first).map(|file| file.name.clone());
        self.files.push(entry);
    }

    /// A file cannot be read, or not to its end; what was read of it stays.
    pub(super) fn skip_file(&mut self, source: &Source, error: &anyhow::Error) {
        if self.open.as_ref().is_some_and(|open| open.entry.documents > 0) {
            self.close_file();
        }
        self.open = None;
        let reason = format!("{error:#}");
        // The name stands beside it.
        let reason = match reason.strip_prefix(&source.name).and_then(|rest| rest.strip_prefix(':')) {
            Some(rest) if rest.starts_with(' ') => rest.trim_start().to_string(),
            Some(rest) => format!("line {rest}"),
            None => reason,
        };
        self.skipped_files.push(SkippedFile { name: source.name.clone(), reason });
    }

    pub fn documents(&self) -> usize {
        self.domains.values().map(|total| total.documents).sum()
    }

    /// Of all domains together.
    pub fn total(&self) -> Total {
        self.domains.values().fold(Total::default(), |sum, total| Total {
            documents: sum.documents + total.documents,
            turns: sum.turns + total.turns,
            bytes: sum.bytes + total.bytes,
            dropped_bytes: sum.dropped_bytes + total.dropped_bytes,
        })
    }

    /// Files with the text of an earlier one.
    pub fn copies(&self) -> impl Iterator<Item = (&FileEntry, &str)> {
        self.files.iter().filter_map(|file| Some((file, file.copy_of.as_deref()?)))
    }

    /// Why there is no text at all.
    pub(super) fn nothing_read(&self) -> String {
        let mut lines = vec!["nothing could be read from data.sources".to_string()];
        lines.extend(
            self.skipped_files.iter().take(10).map(|SkippedFile { name, reason }| format!("  {name}: {reason}")),
        );
        lines.extend((self.skipped_files.len() > 10).then(|| format!("  and {} more", self.skipped_files.len() - 10)));
        lines.join("\n")
    }
}

impl OpenFile {
    fn add(&mut self, document: &Document) {
        let (entry, facts) = (&mut self.entry, &document.facts);
        if entry.documents == 0 {
            entry.domain.clone_from(&document.domain);
            entry.format = match facts.variety {
                Some(variety) => format!("{} ({variety})", facts.format),
                None => facts.format.to_string(),
            };
            entry.recognised_by = facts.recognised_by.to_string();
        }
        entry.documents += 1;
        entry.turns += facts.turns;
        entry.bytes += document.text.len();
        entry.dropped_bytes += facts.dropped_bytes(&document.text);
        self.hash.update(&document.text);
        for speaker in &facts.speakers {
            if self.speakers.len() < MAX_SPEAKERS && self.speakers.insert(speaker.clone()) {
                entry.speakers.push(speaker.clone());
            }
        }
    }
}
