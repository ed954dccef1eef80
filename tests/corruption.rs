//! Damaged checkpoints: every kind of damage is noticed before anything is computed, in little memory.

#![cfg(unix)]

mod common;

use common::Workspace;
use common::run::{assert_same, outcome, train};
use std::collections::BTreeMap;
use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::Command;
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
        // The system counts in batches, so that the peak may even seem to fall.
        let (grown, checkpoint) = (after.saturating_sub(before), target.bytes() as u64);
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
        assert!(after.saturating_sub(before) < 16 << 20, "{before} to {after} bytes");
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

/// The last lines of a file's text, each of which must be JSON.
fn json_lines(workspace: &Workspace, name: &str) -> usize {
    let text = workspace.read(name);
    for line in text.lines() {
        serde_json::from_str::<serde_json::Value>(line).unwrap_or_else(|error| panic!("{name}: {error}: {line}"));
    }
    text.lines().count()
}

/// What resuming a run says about its metrics and samples.
fn warnings(workspace: &Workspace, run: &str) -> String {
    let stderr = workspace.succeeds(&format!("{} --resume -q", train(run, ""))).stderr;
    stderr.lines().filter(|line| line.contains("metrics.jsonl") || line.contains("samples.txt")).collect()
}

#[test]
fn metrics_and_samples_that_are_damaged_are_noticed_mended_and_kept_aside() {
    let workspace = Workspace::new();
    workspace.succeeds(&train("whole", ""));
    let expected = outcome(&workspace, "whole");
    let lines = json_lines(&workspace, "whole/metrics.jsonl");
    workspace.succeeds(&format!("{} --steps 4", train("half", "")));
    let resumed = |name: &str, file: &str, damage: &dyn Fn(&mut Vec<u8>)| {
        copy(&workspace, "-r", "half", name);
        let path = workspace.path(name).join(file);
        let mut bytes = fs::read(&path).unwrap();
        damage(&mut bytes);
        fs::write(&path, &bytes).unwrap();
        (warnings(&workspace, name), bytes)
    };
    // Behind what the checkpoint knows, anything may stand: it is cut off, and nothing is lost.
    for (number, tail) in
        [&b"\xff\xfe\n"[..], b"{\"step\": 5, \"elap", b"{\"step\":5,\"elapsed_s\":1.0}\n"].iter().enumerate()
    {
        for file in ["metrics.jsonl", "samples.txt"] {
            let name = format!("tail-{number}-{file}");
            let (said, _) = resumed(&name, file, &|bytes| bytes.extend_from_slice(tail));
            assert_eq!(said, "", "{name}");
            assert_same(&outcome(&workspace, &name), &expected, &name);
        }
    }
    type Damage = fn(&mut Vec<u8>);
    let damages: [(&str, &str, Damage, &str); 5] = [
        ("torn", "metrics.jsonl", |bytes| bytes.truncate(bytes.len() - 100), "4 of 5 lines are whole"),
        (
            "gone",
            "metrics.jsonl",
            |bytes| drop(bytes.drain(..=bytes.iter().position(|&b| b == b'\n').unwrap())),
            "4 of 5",
        ),
        ("flipped", "metrics.jsonl", |bytes| bytes[9] ^= 1, "is not what it was at step 4"),
        ("emptied", "metrics.jsonl", Vec::clear, "is missing or empty: what was logged until step 4 is lost"),
        ("samples", "samples.txt", |bytes| bytes.truncate(bytes.len() - 5), "0 of "),
    ];
    for (name, file, damage, warning) in damages {
        let (said, bytes) = resumed(name, file, &damage);
        assert_eq!(said.matches("warning: ").count(), 1, "{name}: {said}");
        assert!(said.contains(file) && said.contains(warning), "{name}: {said}");
        if !bytes.is_empty() {
            assert!(fs::read(workspace.path(name).join(format!("{file}.damaged"))).unwrap() == bytes, "{name}");
        }
        assert!(json_lines(&workspace, &format!("{name}/metrics.jsonl")) >= lines - 5, "{name}");
        // It is noticed once; the weights are what they would have been.
        assert_eq!(warnings(&workspace, name), "", "{name}");
        let model = "step-000008/model.safetensors";
        assert!(outcome(&workspace, name).checkpoints[model] == expected.checkpoints[model], "{name}");
    }
}

fn copy(workspace: &Workspace, how: &str, from: &str, to: &str) {
    let copied = Command::new("cp").args([how, from, to]).current_dir(workspace.path("")).status();
    assert!(copied.unwrap().success());
}

#[test]
fn a_copy_that_followed_links_is_resumed_like_the_original() {
    let workspace = Workspace::new();
    let settings = "train.keep_checkpoints=9 train.checkpoint_interval=2";
    workspace.succeeds(&train("whole", settings));
    workspace.succeeds(&format!("{} --steps 4", train("half", settings)));
    copy(&workspace, "-rL", "half", "copy");
    assert!(
        workspace.path("copy/checkpoints/latest").is_dir() && !workspace.path("copy/checkpoints/latest").is_symlink()
    );
    workspace.succeeds("eval copy");
    for _ in 0..2 {
        workspace.succeeds(&format!("{} --resume", train("copy", settings)));
        assert_same(&outcome(&workspace, "copy"), &outcome(&workspace, "whole"), "a copy");
    }
    // One of which only the link's copy came along.
    copy(&workspace, "-rL", "half", "part");
    fs::remove_dir_all(workspace.path("part/checkpoints/step-000004")).unwrap();
    workspace.succeeds(&format!("{} --resume", train("part", settings)));
    let names = |run: &str| outcome(&workspace, run).checkpoints.into_keys().collect::<Vec<_>>();
    assert_eq!(names("part"), names("whole"));
}

#[test]
fn a_checkpoint_of_a_newer_version_is_refused_with_4_and_left_where_it_is() {
    let workspace = Workspace::new();
    workspace.succeeds(&format!("{} --set train.checkpoint_interval=2 --steps 4", train("r", "")));
    let manifest = "r/checkpoints/step-000004/MANIFEST.json";
    workspace.write(manifest, workspace.read(manifest).replacen("\"format\": 1", "\"format\": 2", 1));
    let before = outcome(&workspace, "r");
    let parts = ["step-000004", "was written by a newer version", "format is 2"];
    for command in ["eval r", "sample r", "inspect r", "export r --to hf out"] {
        workspace.refuses(command, 4, &parts);
    }
    workspace.refuses(&format!("{} --resume --set train.checkpoint_interval=2", train("r", "")), 4, &parts);
    assert_same(&outcome(&workspace, "r"), &before, "nothing is changed");
}
