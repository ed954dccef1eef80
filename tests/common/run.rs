//! Running trainings, and comparing what they leave.

use super::Workspace;
use serde_json::Value;
use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::process::{Child, Stdio};
use std::time::{Duration, Instant};

/// Saves every step and keeps it, draws samples, and is over after six steps.
pub const EVERY_STEP: &str =
    "train.checkpoint_interval=1 train.keep_checkpoints=100 train.max_steps=6 train.eval_interval=2";

/// Everything that must not depend on how a run came about.
#[derive(PartialEq)]
pub struct Outcome {
    /// Below `checkpoints/`: files with their content, links with their target.
    pub checkpoints: BTreeMap<String, Vec<u8>>,
    /// `metrics.jsonl` without the fields that measure time.
    pub metrics: Vec<Value>,
    pub samples: String,
}

pub fn outcome(workspace: &Workspace, run: &str) -> Outcome {
    let mut checkpoints = BTreeMap::new();
    collect(&workspace.path(run).join("checkpoints"), "", &mut checkpoints);
    let untimed = |line: &str| {
        let mut line: Value = serde_json::from_str(line).unwrap();
        let fields = line.as_object_mut().unwrap();
        fields.retain(|key, _| !["elapsed_s", "tokens_per_s"].contains(&key.as_str()));
        line
    };
    let metrics = workspace.read(&format!("{run}/metrics.jsonl")).lines().map(untimed).collect();
    let samples = fs::read_to_string(workspace.path(run).join("samples.txt")).unwrap_or_default();
    Outcome { checkpoints, metrics, samples }
}

fn collect(folder: &Path, prefix: &str, files: &mut BTreeMap<String, Vec<u8>>) {
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        let name = format!("{prefix}{}", path.file_name().unwrap().to_str().unwrap());
        if let Ok(target) = path.read_link() {
            files.insert(name, target.to_str().unwrap().into());
        } else if path.is_dir() {
            collect(&path, &format!("{name}/"), files);
        } else {
            files.insert(name, fs::read(&path).unwrap());
        }
    }
}

/// Compares without printing megabytes of weights.
pub fn assert_same(found: &Outcome, expected: &Outcome, what: &str) {
    let names = |outcome: &Outcome| outcome.checkpoints.keys().cloned().collect::<Vec<_>>();
    assert_eq!(names(found), names(expected), "{what}");
    for (name, bytes) in &expected.checkpoints {
        assert!(&found.checkpoints[name] == bytes, "{what}: other bytes in {name}");
    }
    assert_eq!(found.metrics, expected.metrics, "{what}");
    assert_eq!(found.samples, expected.samples, "{what}");
}

/// The command line that trains `run` with settings (`key=value`, separated by spaces).
pub fn train(run: &str, settings: &str) -> String {
    let set = |setting| format!(" --set {setting}");
    format!("train tiny.toml --run {run}{}", settings.split_whitespace().map(set).collect::<String>())
}

pub fn lines(path: &Path) -> usize {
    fs::read_to_string(path).map_or(0, |text| text.lines().count())
}

/// Starts a training that runs on its own.
pub fn spawn(workspace: &Workspace, arguments: &str) -> Child {
    let mut command = workspace.command();
    command.args(arguments.split_whitespace()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap()
}

/// Waits until the run has logged `count` lines, or has ended.
pub fn wait_for_metrics(workspace: &Workspace, run: &str, child: &mut Child, count: usize) {
    let metrics = workspace.path(run).join("metrics.jsonl");
    let start = Instant::now();
    while lines(&metrics) < count && child.try_wait().unwrap().is_none() {
        assert!(start.elapsed() < Duration::from_secs(120), "no line {count} in {}", metrics.display());
        std::thread::sleep(Duration::from_millis(1));
    }
}
