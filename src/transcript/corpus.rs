//! From sources to documents: which files there are, which of them say the same, what becomes of bad ones, and the
//! receipt of it all. Files are read on all threads and handed over in the order of their names.

use super::receipt::{OtherFormat, Receipt};
use super::sources::{self, PassedOver, Source};
use super::{Document, Item, ReadOptions, file, talks};
use crate::error::Failure;
use crate::ops::pool;
use anyhow::{Error, Result, anyhow};
use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

/// What to read, and how.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Selection {
    /// Files, directories searched recursively, and globs; `path=domain` carries a label unless a file of that whole
    /// name exists.
    pub sources: Vec<String>,
    /// Globs of files and folders that are left out.
    pub exclude: Vec<String>,
    /// Whether a file that was found by searching and cannot be read is skipped. One that a source names is an error.
    pub skip_bad_files: bool,
    pub options: ReadOptions,
}

/// The files of a selection.
#[derive(Debug)]
pub struct Corpus {
    files: Vec<Source>,
    passed_over: Vec<PassedOver>,
    /// Files with the words of another one beside them, which is read instead.
    other_formats: BTreeMap<PathBuf, OtherFormat>,
    skip_bad_files: bool,
    options: ReadOptions,
}

/// Files that are read at the same time have together about as many bytes; a larger one is read alone, in parts.
const BATCH_BYTES: u64 = 16 << 20;
/// The most of them.
const BATCH_FILES: usize = 256;
/// Errors that are shown together.
const MAX_ERRORS: usize = 10;

impl Corpus {
    /// Finds the files.
    ///
    /// # Errors
    /// [`Failure::Usage`] where a source names nothing to read.
    pub fn find(selection: &Selection) -> Result<Self> {
        let found = sources::expand(Path::new(&*selection.options.directory), &selection.sources, &selection.exclude)?;
        Ok(Self {
            other_formats: talks::other_formats(&found.files, &selection.options),
            files: found.files,
            passed_over: found.passed_over,
            skip_bad_files: selection.skip_bad_files,
            options: selection.options.clone(),
        })
    }

    /// Hands over every document, in the order of the files' names; returns what became of every file.
    ///
    /// # Errors
    /// That of `visit`, at once. Otherwise they tell file and line of what cannot be read: of a file that a source
    /// names, and where bad files are not skipped, of any; up to ten files together.
    pub fn read(&self, mut visit: impl FnMut(Document) -> Result<()>) -> Result<Receipt> {
        self.read_files(|_, document| visit(document))
    }

    /// As [`Self::read`], with the name of the file that each document is, or is a part or row of.
    ///
    /// # Errors
    /// As [`Self::read`].
    pub fn read_files(&self, mut visit: impl FnMut(&str, Document) -> Result<()>) -> Result<Receipt> {
        let mut receipt = Receipt::new(&self.passed_over, self.other_formats.values());
        let mut errors = Vec::new();
        let wanted: Vec<&Source> =
            self.files.iter().filter(|source| !self.other_formats.contains_key(&source.path)).collect();
        for batch in batches(&wanted) {
            for (source, read) in self.read_batch(batch) {
                let mut stopped = None;
                let mut take = |item| {
                    receipt.add(source, &item);
                    match item {
                        // After an error nothing will be done with it.
                        Item::Document(document) if errors.is_empty() => {
                            visit(&source.name, document).map_err(|error| {
                                stopped = Some(error);
                                anyhow!("stopped")
                            })
                        }
                        _ => Ok(()),
                    }
                };
                let outcome = match read {
                    Some(items) => items.and_then(|items| items.into_iter().try_for_each(&mut take)),
                    None => file::read(source, &self.options, &mut take),
                };
                if let Some(error) = stopped {
                    return Err(error);
                }
                match outcome {
                    Ok(()) => receipt.close_file(),
                    Err(error) if self.skip_bad_files && !source.is_named => receipt.skip_file(source, &error),
                    Err(error) => errors.push(error),
                }
            }
            if errors.len() >= MAX_ERRORS {
                break;
            }
        }
        match errors.len() {
            0 if receipt.documents() == 0 => Err(Failure::Usage(receipt.nothing_read()).into()),
            0 => Ok(receipt),
            _ => Err(together(errors)),
        }
    }

    /// What the files of a batch hold; nothing yet of one that is alone because it is large.
    fn read_batch<'a>(&self, batch: &[&'a Source]) -> Vec<(&'a Source, Option<Result<Vec<Item>>>)> {
        if let [source] = batch
            && size(source) > BATCH_BYTES
        {
            return vec![(*source, None)];
        }
        let mut read: Vec<(&Source, Option<Result<Vec<Item>>>)> = batch.iter().map(|source| (*source, None)).collect();
        pool::run(read.iter_mut().collect(), |(source, items)| {
            let mut found = Vec::new();
            let outcome = file::read(source, &self.options, &mut |item| {
                found.push(item);
                Ok(())
            });
            *items = Some(outcome.map(|()| found));
        });
        read
    }
}

/// Runs of files to read together.
fn batches<'a, 'b>(files: &'b [&'a Source]) -> Vec<&'b [&'a Source]> {
    let mut batches = Vec::new();
    let (mut start, mut bytes) = (0, 0);
    for (index, source) in files.iter().enumerate() {
        let size = size(source);
        if index > start && (bytes + size > BATCH_BYTES || index - start == BATCH_FILES) {
            batches.push(&files[start..index]);
            (start, bytes) = (index, 0);
        }
        bytes += size;
    }
    batches.push(&files[start..]);
    batches
}

/// In bytes; 0 where the file is gone, which reading it will tell.
fn size(source: &Source) -> u64 {
    fs::metadata(&source.path).map_or(0, |metadata| metadata.len())
}

/// One error that says what several say.
fn together(mut errors: Vec<Error>) -> Error {
    if errors.len() == 1 {
        return errors.remove(0);
    }
    let count = if errors.len() < MAX_ERRORS { errors.len().to_string() } else { format!("{MAX_ERRORS} or more") };
    let lines: Vec<String> = errors.iter().take(MAX_ERRORS).map(|error| format!("  {error:#}")).collect();
    anyhow!("{count} files cannot be read:\n{}", lines.join("\n"))
}
