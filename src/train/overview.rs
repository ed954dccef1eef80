//! A run at a glance, from what its directory holds: for lists of runs, and for runs that have nothing left to do.

use super::Ending;
use super::run_directory::{Facts, ParameterCounts, RunDirectory, is_locked};
use super::state::TrainerState;
use crate::checkpoint;
use crate::config::Config;
use anyhow::{Context, Result};
use serde::{Deserialize, Serialize};
use std::fs::{self, File};
use std::io::{BufRead, BufReader, ErrorKind};
use std::path::{Path, PathBuf};

/// What a run is doing, or how far it came.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum State {
    /// A process is training in it.
    Running,
    /// Saved, with steps left.
    Paused,
    Finished,
    StoppedEarly,
    NoCheckpoint,
    /// Something in it cannot be read.
    Damaged,
}

impl State {
    pub fn name(self) -> &'static str {
        match self {
            State::Running => "running",
            State::Paused => "paused",
            State::Finished => "finished",
            State::StoppedEarly => "stopped early",
            State::NoCheckpoint => "no checkpoint",
            State::Damaged => "damaged",
        }
    }
}

/// A run at a glance. What is not known is missing.
#[derive(Clone, Debug, Serialize)]
pub struct Overview {
    #[serde(serialize_with = "shown")]
    pub path: PathBuf,
    pub state: State,
    /// What is damaged.
    pub problem: Option<String>,
    /// Steps done; of a run that is training, those that it has logged.
    pub step: Option<usize>,
    pub max_steps: Option<usize>,
    /// The lowest validation loss (nats per token), and the step in which it was measured.
    pub loss: Option<f64>,
    pub best_step: Option<usize>,
    /// That loss in bits per byte.
    pub bits_per_byte: Option<f64>,
    pub ngram_bits_per_byte: Option<f64>,
    pub parameters: Option<ParameterCounts>,
    /// Seconds of training, all sessions together.
    pub elapsed_s: Option<f64>,
    #[serde(skip)]
    pub config: Option<Config>,
}

fn shown<S: serde::Serializer>(path: &Path, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_str(&path.to_string_lossy())
}

/// The runs in `directory`, by name; or the run that `directory` itself is.
///
/// # Errors
/// If the directory cannot be listed. What is wrong with a run is part of its [`Overview`].
pub fn overviews(directory: &Path) -> Result<Vec<Overview>> {
    if looks_like_a_run(directory) {
        return Ok(vec![Overview::of(directory)]);
    }
    let unreadable = || format!("cannot list {}", directory.display());
    let mut paths = Vec::new();
    for entry in fs::read_dir(directory).with_context(unreadable)? {
        paths.push(entry.with_context(unreadable)?.path());
    }
    paths.sort();
    Ok(paths.iter().filter(|path| looks_like_a_run(path)).map(|path| Overview::of(path)).collect())
}

/// Whether `path` holds any of what a run consists of, or may do so (where that cannot be seen).
fn looks_like_a_run(path: &Path) -> bool {
    let has = |name| match path.join(name).symlink_metadata() {
        Ok(_) => true,
        Err(error) => error.kind() == ErrorKind::PermissionDenied,
    };
    path.is_dir() && ["config.toml", "run.json", "metrics.jsonl", "checkpoints"].iter().any(has)
}

impl Overview {
    /// Looks at the run in `path`. Its newest checkpoint is verified, unless the run is being trained.
    pub fn of(path: &Path) -> Self {
        let mut overview = Self {
            path: path.to_owned(),
            state: if is_locked(path) { State::Running } else { State::NoCheckpoint },
            problem: None,
            step: None,
            max_steps: None,
            loss: None,
            best_step: None,
            bits_per_byte: None,
            ngram_bits_per_byte: None,
            parameters: None,
            elapsed_s: None,
            config: None,
        };
        let read = [overview.read_facts(), overview.read_checkpoint(), overview.read_metrics()];
        if let Some(error) = read.into_iter().find_map(Result::err) {
            overview.state = State::Damaged;
            overview.problem = Some(format!("{error:#}"));
        }
        overview
    }

    fn read_facts(&mut self) -> Result<()> {
        if let Some(facts) = Facts::read(&self.path.join("run.json"))? {
            self.parameters = Some(facts.parameters);
        }
        let config = RunDirectory::draft(&self.path)?.resolve(&[])?;
        self.max_steps = Some(config.train.max_steps);
        self.config = Some(config);
        Ok(())
    }

    /// The last line and the best evaluation; of a run that nobody trains, up to where it was saved. Lines that cannot
    /// be read are passed over: the last one may be half written.
    fn read_metrics(&mut self) -> Result<()> {
        let path = self.path.join("metrics.jsonl");
        let file = match File::open(&path) {
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(()),
            file => file.with_context(|| format!("cannot read {}", path.display()))?,
        };
        for line in BufReader::new(file).split(b'\n') {
            let line = line.with_context(|| format!("cannot read {}", path.display()))?;
            let Ok(line) = serde_json::from_slice::<Line>(&line) else { continue };
            match self.state {
                State::Running => self.step = Some(line.step),
                _ if self.step.is_none_or(|step| line.step > step) => continue,
                _ => {}
            }
            self.elapsed_s = Some(line.elapsed_s);
            if line.split == "val" && self.loss.is_none_or(|best| line.loss < best) {
                self.loss = Some(line.loss);
                self.best_step = Some(line.step);
                self.bits_per_byte = line.bits_per_byte;
                self.ngram_bits_per_byte = line.ngram_bits_per_byte;
            }
        }
        Ok(())
    }

    fn read_checkpoint(&mut self) -> Result<()> {
        if self.state == State::Running {
            return Ok(());
        }
        let checkpoints = self.path.join("checkpoints");
        let Some(newest) = checkpoint::steps(&checkpoints)?.into_iter().next() else {
            self.step = Some(0);
            return Ok(());
        };
        let state = TrainerState::read(&checkpoint::load(&newest)?)?;
        self.step = Some(state.step);
        if let Some(config) = &self.config {
            self.state = match state.ending(&config.train) {
                Some(Ending::StoppedEarly) => State::StoppedEarly,
                Some(_) => State::Finished,
                None => State::Paused,
            };
        }
        Ok(())
    }
}

/// What is read of a line of `metrics.jsonl`.
#[derive(Deserialize)]
struct Line {
    step: usize,
    elapsed_s: f64,
    split: String,
    loss: f64,
    bits_per_byte: Option<f64>,
    ngram_bits_per_byte: Option<f64>,
}
