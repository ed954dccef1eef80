//! The transcripts that come with the program: what they promise, and that the quickstart can train on them.

mod common;

use common::{Output, Workspace, output};
use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};
use tinymoe::transcript::{Document, ReadOptions, read_sources};

const SPEAKERS: ReadOptions = ReadOptions::DEFAULT;

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn documents(options: &ReadOptions) -> Vec<Document> {
    read_sources(&[root().join("data").to_str().unwrap().to_string()], options).unwrap()
}

fn files_below(folder: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path());
    entries.flat_map(|path| if path.is_dir() { files_below(&path) } else { vec![path] }).collect()
}

/// The names before the turns of a document: `Name: `, on several lines.
fn speakers(document: &Document) -> BTreeSet<&str> {
    let mut turns: BTreeMap<&str, usize> = BTreeMap::new();
    for line in document.text.lines() {
        if let Some((name, _)) = line.split_once(": ").filter(|(name, _)| name.len() < 20) {
            *turns.entry(name).or_default() += 1;
        }
    }
    turns.into_iter().filter(|&(_, count)| count > 3).map(|(name, _)| name).collect()
}

#[test]
fn every_file_is_read_and_nothing_else_lies_there() {
    let files = files_below(&root().join("data"));
    let documents = documents(&SPEAKERS);
    assert_eq!(documents.len(), files.len());
    for document in &documents {
        assert!(document.text.len() > 10_000, "{} is short", document.name);
        assert!(document.text.lines().count() > 20, "{} cannot be cut well", document.name);
        assert!(!document.text.contains("-->") && !document.text.contains("**"), "{}: markup is left", document.name);
    }
}

#[test]
fn there_is_enough_text_in_several_domains_and_formats() {
    let documents = documents(&SPEAKERS);
    let bytes: usize = documents.iter().map(|document| document.text.len()).sum();
    assert!(bytes >= 120_000, "{bytes} bytes");
    let domains: BTreeSet<_> = documents.iter().map(|document| &document.domain).collect();
    assert!(domains.len() >= 4, "{domains:?}");
    let formats: BTreeSet<_> = documents.iter().map(|document| document.name.rsplit('.').next().unwrap()).collect();
    assert!(formats.len() >= 4, "{formats:?}");
}

#[test]
fn every_domain_is_a_conversation() {
    let mut voices: BTreeMap<&str, BTreeSet<&str>> = BTreeMap::new();
    let transcripts = documents(&SPEAKERS);
    for document in transcripts.iter().filter(|document| !document.name.ends_with(".txt")) {
        let speakers = speakers(document);
        assert!(speakers.len() >= 2, "{}: {speakers:?}", document.name);
        voices.entry(&document.domain).or_default().extend(speakers);
    }
    assert!(voices.len() >= 4, "{voices:?}");
    // Podcast pages name nobody: there, questions are answered in the same paragraph.
    for document in transcripts.iter().filter(|document| document.name.ends_with(".txt")) {
        assert!(document.text.matches("? ").count() > 20, "{} is a monologue", document.name);
        assert!(!document.text.contains("Starting point is"), "{}: markup is left", document.name);
    }
    let words = documents(&ReadOptions { keep_speakers: false, ..SPEAKERS });
    assert!(words.iter().all(|document| speakers(document).is_empty()), "names remain with keep_speakers = false");
}

#[test]
fn every_shipped_configuration_for_this_data_prepares_on_it() {
    // Not in the repository, where a user's runs may be.
    let workspace = Workspace::new();
    for file in files_below(&root().join("data")) {
        let copy = workspace.path(file.strip_prefix(root()).unwrap().to_str().unwrap());
        fs::create_dir_all(copy.parent().unwrap()).unwrap();
        fs::copy(file, copy).unwrap();
    }
    for config in files_below(&root().join("configs")) {
        // Others name a text that is not included.
        if fs::read_to_string(&config).unwrap().contains(".txt\"]") {
            continue;
        }
        let Output { code, stdout, stderr } = output(workspace.command().arg("train").arg(&config).arg("--dry-run"));
        assert_eq!(code, 0, "{}: {stderr}", config.display());
        assert!(stdout.contains("parameters") && stdout.contains("n-gram baseline: "), "{stdout}");
    }
}
