//! Damaged checkpoints: every kind of damage is noticed before anything is computed, in little memory.

#![cfg(unix)]

mod common;

use common::Workspace;
use common::run::train;
use std::collections::BTreeMap;
use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use tinymoe::checkpoint;
use tinymoe::error::exit_code;
use tinymoe::random::Stream;

/// A checkpoint's files, and a directory to put damaged ones into.
struct Target {
    workspace: Workspace,
    files: BTreeMap<String, Vec<u8>>,
}

impl Target {
    fn new() -> Self {
        let workspace = Workspace::trained();
        let read = |path: &Path| fs::read(path).unwrap();
        let entries = fs::read_dir(workspace.path("r/checkpoints/latest")).unwrap();
        let paths = entries.map(|entry| entry.unwrap().path());
        let files = paths.map(|path| (path.file_name().unwrap().to_str().unwrap().to_owned(), read(&path))).collect();
        Self { workspace, files }
    }

    fn bytes(&self) -> usize {
        self.files.values().map(Vec::len).sum()
    }

    /// The file and the position in it that a position in all files together falls on.
    fn locate(&self, mut position: usize) -> (&str, usize) {
        for (name, bytes) in &self.files {
            if position < bytes.len() {
                return (name, position);
            }
            position -= bytes.len();
        }
        unreachable!("the position is in none of the files")
    }

    fn directory(&self) -> PathBuf {
        self.workspace.path("r/checkpoints/step-000008")
    }

    fn assert_noticed(&self, what: &str) {
        let error = checkpoint::load(&self.directory()).map(|_| ()).expect_err(what);
        assert_eq!(exit_code(&error), 4, "{what}: {error:#}");
        assert!(format!("{error:#}").contains("step-000008"), "{what}: {error:#}");
    }
}

/// The most memory that this process has had so far, in bytes.
fn peak_memory() -> Option<u64> {
    let status = fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find(|line| line.starts_with("VmHWM:"))?;
    Some(line.split_whitespace().nth(1)?.parse::<u64>().ok()? << 10)
}

/// Another piece of the checkpoint over, between or instead of a piece of this file.
fn splice(target: &Target, name: &str, position: usize, draw: impl Fn(u64, usize) -> usize) -> Vec<u8> {
    let mut bytes = target.files[name].clone();
    let (donor_name, from) = target.locate(draw(0, target.bytes()));
    let donor = &target.files[donor_name][from..];
    let piece = &donor[..donor.len().min(1 + draw(1, 200))];
    let removed = draw(2, 200).min(bytes.len() - position);
    bytes.splice(position..position + removed, piece.iter().copied());
    bytes
}

#[test]
fn every_truncation_flip_and_splice_is_noticed() {
    let target = Target::new();
    let directory = target.directory();
    let before = peak_memory();
    let mut cases = [0; 3];
    // All of the small files; of the large ones the header, and some of what follows.
    for (name, bytes) in &target.files {
        let header = match name.ends_with(".safetensors") {
            true => 8 + u64::from_le_bytes(*bytes.first_chunk().unwrap()) as usize,
            false => bytes.len(),
        };
        assert!(header > 40 || bytes.len() < 200, "{name}: a header of {header} bytes");
        let damaged = File::options().write(true).open(directory.join(name)).unwrap();
        let every = if name == "tokenizer.json" { 23 } else { 1 };
        let lengths = (0..header).step_by(every).chain((header..bytes.len()).step_by(997));
        for length in lengths.rev() {
            damaged.set_len(length as u64).unwrap();
            target.assert_noticed(&format!("{name} cut to {length} bytes"));
            cases[0] += 1;
        }
        fs::write(directory.join(name), bytes).unwrap();
    }
    for seed in 0..1000 {
        let stream = Stream::new(seed, "flip", &[]);
        let (name, position) = target.locate(stream.bits(0) as usize % target.bytes());
        let file = File::options().write(true).open(directory.join(name)).unwrap();
        let byte = target.files[name][position];
        file.write_all_at(&[byte ^ 1 << (stream.bits(1) % 8)], position as u64).unwrap();
        target.assert_noticed(&format!("flip {seed} at {position} of {name}"));
        file.write_all_at(&[byte], position as u64).unwrap();
        cases[1] += 1;
    }
    for seed in 0..1000 {
        let stream = Stream::new(seed, "splice", &[]);
        let (name, position) = target.locate(stream.bits(9) as usize % target.bytes());
        let bytes = splice(&target, name, position, |index, below| stream.bits(index) as usize % below);
        // Now and then a piece is replaced by its like.
        if bytes != target.files[name] {
            fs::write(directory.join(name), bytes).unwrap();
            target.assert_noticed(&format!("splice {seed} at {position} of {name}"));
            fs::write(directory.join(name), &target.files[name]).unwrap();
            cases[2] += 1;
        }
    }
    assert!(cases[2] > 950, "{cases:?}");
    checkpoint::load(&directory).expect("put back together, it is sound");
    if let (Some(before), Some(after)) = (before, peak_memory()) {
        let (grown, checkpoint) = (after - before, target.bytes() as u64);
        println!("truncations, flips, splices: {cases:?}, all noticed; {grown} bytes for files of {checkpoint}");
        assert!(grown < 16 << 20, "{grown} bytes more memory for a checkpoint of {checkpoint} bytes");
    }
}

#[test]
fn a_file_that_claims_to_be_huge_costs_no_memory() {
    let target = Target::new();
    let directory = target.directory();
    let before = peak_memory();
    // Sparse files: 16 GiB each that take no room on the disk.
    for name in target.files.keys() {
        File::options().write(true).open(directory.join(name)).unwrap().set_len(16 << 30).unwrap();
        let error = checkpoint::load(&directory).map(|_| ()).unwrap_err();
        assert_eq!(exit_code(&error), 4, "{name}: {error:#}");
        fs::write(directory.join(name), &target.files[name]).unwrap();
    }
    if let (Some(before), Some(after)) = (before, peak_memory()) {
        assert!(after - before < 16 << 20, "{} bytes", after - before);
    }
}

#[test]
fn the_program_refuses_damage_with_4_and_a_resumed_run_falls_back() {
    let target = Target::new();
    let workspace = &target.workspace;
    for (number, name) in target.files.keys().enumerate() {
        let path = workspace.path("r/checkpoints/step-000008").join(name);
        let stream = Stream::new(number as u64, "program", &[]);
        let bytes =
            splice(&target, name, target.files[name].len() / 2, |index, below| stream.bits(index) as usize % below);
        fs::write(&path, &bytes).unwrap();
        workspace.refuses("eval r/checkpoints/step-000008", 4, &["step-000008", name]);
        let resumed = workspace.succeeds(&format!("{} --resume", train("r", "")));
        let warning = "warning: passing over r/checkpoints/step-000008";
        assert!(resumed.stderr.contains(warning) && resumed.stderr.contains(name), "{name}: {}", resumed.stderr);
        for (name, whole) in &target.files {
            let again = fs::read(workspace.path("r/checkpoints/step-000008").join(name)).unwrap();
            assert!(&again == whole, "the resumed run wrote another {name}");
        }
    }
}
