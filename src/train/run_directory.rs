//! A run's directory: configuration, facts about the run, metrics, samples, checkpoints.

use super::journal::{Journal, untimed};
use super::metrics::Record;
use super::prepare::Prepared;
use super::receipt;
use super::resume;
use super::state::{TrainerState, check_same_data};
use crate::checkpoint::directory::sync_directory;
use crate::checkpoint::{self, Files, model_files};
use crate::config::{Config, Draft};
use crate::dataset::IdArray;
use crate::error::Failure;
use crate::fault;
use crate::ops::{pool, simd};
use crate::optim::Optimizer;
use anyhow::{Context, Result};
use serde::{Deserialize, Serialize};
use serde_json::json;
use std::fs::{self, File, OpenOptions, TryLockError};
use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// Locked by the process that trains in the run.
const LOCK: &str = ".lock";

/// A run's directory, made by [`RunDirectory::create`] or found by [`RunDirectory::open`]. No other process can have
/// it at the same time.
pub struct RunDirectory {
    path: PathBuf,
    metrics: Journal,
    samples: Journal,
    /// Locked as long as it is open; the system unlocks it for a process that dies.
    _lock: File,
}

impl RunDirectory {
    /// Refuses a path where something is already: a run is never overwritten.
    ///
    /// # Errors
    /// [`Failure::Usage`]
    pub fn check_free(path: &Path) -> Result<()> {
        let occupied = match fs::read_dir(path) {
            // A lock, or what a crash left before there was a run.
            Ok(entries) => entries.flatten().any(|entry| !entry.file_name().as_encoded_bytes().starts_with(b".")),
            Err(_) => path.symlink_metadata().is_ok(),
        };
        if !occupied {
            return Ok(());
        }
        let name = path.display();
        let is_run = path.join("config.toml").exists();
        let hint = if is_run {
            format!("continue that run with `{}`, or ", resume::command(path, &[]))
        } else {
            String::new()
        };
        Err(Failure::Usage(format!("{name} exists already; {hint}choose another directory with --run")).into())
    }

    /// Makes the directory of a new run.
    pub fn create(path: &Path) -> Result<Self> {
        Self::check_free(path)?;
        fs::create_dir_all(path).with_context(|| format!("cannot create {}", path.display()))?;
        Self::at(path)
    }

    fn at(path: &Path) -> Result<Self> {
        let [metrics, samples] = ["metrics.jsonl", "samples.txt"].map(|name| Journal::new(path.join(name)));
        Ok(Self { path: path.to_owned(), metrics, samples, _lock: lock(path)? })
    }

    /// The configuration of the run in `path`, to be read.
    ///
    /// # Errors
    /// [`Failure::Usage`] if there is no run.
    pub fn draft(path: &Path) -> Result<Draft> {
        let file = path.join("config.toml");
        if !file.exists() {
            let name = path.display();
            return Err(Failure::Usage(format!("there is no run in {name}: it has no config.toml")).into());
        }
        Draft::read(&file)
    }

    /// The directory of a run to be continued under `config`, whose paths are made to start where the run's do, and the
    /// configuration that the run has had so far.
    ///
    /// # Errors
    /// [`Failure::Usage`] if there is no run, or one of another configuration.
    pub fn open(path: &Path, config: &mut Config) -> Result<(Self, Config)> {
        let saved = Self::draft(path)?.resolve(&[])?;
        config.anchor(&saved.data.directory);
        resume::check_compatible(path, &saved, config)?;
        Ok((Self::at(path)?, saved))
    }

    pub fn path(&self) -> &Path {
        &self.path
    }

    pub fn checkpoints(&self) -> PathBuf {
        self.path.join("checkpoints")
    }

    /// Writes `config.toml`, which may have got more steps since the last session, and makes room for checkpoints.
    pub fn configure(&self, config: &Config) -> Result<()> {
        self.write("config.toml", toml::to_string(config)?.as_bytes())?;
        let checkpoints = self.checkpoints();
        fault::system_call();
        fs::create_dir_all(&checkpoints).with_context(|| format!("cannot create {}", checkpoints.display()))
    }

    /// Writes `run.json`, the facts about the session that began the run, unless it is there.
    pub fn describe(&self, prepared: &Prepared) -> Result<()> {
        if self.path.join("run.json").exists() {
            return Ok(());
        }
        let (files, receipt) = receipt::facts(&prepared.receipt);
        let facts = json!({
            "version": env!("CARGO_PKG_VERSION"),
            "git_revision": git_revision(),
            // A path may be something else than UTF-8, where `args` would panic.
            "command_line": std::env::args_os().map(|arg| arg.to_string_lossy().into_owned()).collect::<Vec<_>>(),
            "threads": pool::threads(),
            "cpu": { "architecture": std::env::consts::ARCH, "kernels": simd::path().name() },
            "data_sha256": prepared.data_sha256,
            "split": prepared.split,
            "data": files,
            "receipt": receipt,
            "tokens": { "training": prepared.training.ids.len(), "validation": prepared.validation.ids.len() },
            "parameters": {
                "total": prepared.model.parameters.count(),
                "active": prepared.model.active_parameters(),
            },
        });
        self.write("run.json", format!("{facts:#}\n").as_bytes())
    }

    /// Refuses other texts than those that `run.json` describes, for a run that has no checkpoint yet to tell.
    ///
    /// # Errors
    /// [`Failure::Usage`] for other texts, [`Failure::CorruptCheckpoint`] where the file cannot be understood.
    pub fn check_data(&self, prepared: &Prepared) -> Result<()> {
        let path = self.path.join("run.json");
        let Some(facts) = Facts::read(&path)? else { return Ok(()) };
        check_same_data(&prepared.data_sha256, &facts.data_sha256)
    }

    fn write(&self, name: &str, bytes: &[u8]) -> Result<()> {
        checkpoint::replace(&self.path.join(name), bytes)
    }

    pub fn append_metrics(&mut self, record: &Record) -> Result<()> {
        let mut line = serde_json::to_vec(record)?;
        line.push(b'\n');
        self.metrics.append(&line, &untimed(&line)?)
    }

    /// Appends a sample and returns how many bytes that took.
    pub fn append_sample(&mut self, step: usize, text: &str) -> Result<u64> {
        let entry = format!("=== step {step} ===\n{text}\n\n");
        self.samples.append(entry.as_bytes(), entry.as_bytes())?;
        Ok(entry.len() as u64)
    }

    /// Cuts metrics and samples back to where `state` was saved; returns the seconds logged until then. If they are not
    /// what they were then, `state` is brought in line with what is left of them.
    pub fn rewind(&mut self, state: &mut TrainerState) -> Result<f64> {
        self.samples.rewind_samples(state)?;
        self.metrics.rewind_metrics(state)
    }

    /// Flushes metrics and samples to disk and notes in `state` what they are.
    pub fn settle(&self, state: &mut TrainerState) -> Result<()> {
        self.metrics.sync()?;
        self.samples.sync()?;
        sync_directory(&self.path)?;
        state.metrics_sha256 = Some(self.metrics.sha256());
        state.samples_sha256 = Some(self.samples.sha256());
        Ok(())
    }

    /// Saves a checkpoint, points `latest` (and, where it is the best so far, `best`) at it, and removes old ones.
    pub fn save(&self, prepared: &Prepared, optimizer: &Optimizer, state: &TrainerState, keep: usize) -> Result<()> {
        let checkpoints = self.checkpoints();
        let mut files = model_files::encode(&prepared.model, &prepared.tokenizer)?;
        files.push(("optimizer.safetensors", model_files::encode_optimizer(&prepared.model, optimizer)?));
        let mut state_json = serde_json::to_vec_pretty(state)?;
        state_json.push(b'\n');
        files.push(("trainer_state.json", state_json));
        let saved = checkpoint::save(&checkpoints, state.step as u64, &files)?;
        checkpoint::link(&checkpoints, "latest", &saved)?;
        if state.best_step == Some(state.step) {
            checkpoint::link(&checkpoints, "best", &saved)?;
        }
        self.prune(state, keep)
    }

    /// Removes old checkpoints and leftovers of crashes; see [`checkpoint::prune`].
    pub fn prune(&self, state: &TrainerState, keep: usize) -> Result<()> {
        checkpoint::prune(&self.checkpoints(), keep, state.due_step as u64)
    }

    /// The newest checkpoint that verifies. Newer ones that do not are warned of and renamed, because among
    /// the checkpoints that are to come they would pass for the newest.
    ///
    /// # Errors
    /// [`Failure::CorruptCheckpoint`] if there are checkpoints and none of them verifies, or if the one that does is of
    /// another step than its name says.
    pub fn newest(&self) -> Result<Option<(Files, TrainerState)>> {
        let newest = checkpoint::newest(&self.checkpoints())?;
        if let (None, Some((path, reason))) = (&newest.found, newest.rejected.first()) {
            return Err(Failure::CorruptCheckpoint(format!(
                "no checkpoint in {} is sound; the newest: {}: {reason}. Nothing was changed; start another run with --run",
                self.checkpoints().display(),
                path.display()
            ))
            .into());
        }
        for (path, reason) in &newest.rejected {
            let aside = checkpoint::set_aside(path)?;
            log::warn!("passing over {}, now {}: {reason}", path.display(), aside.display());
        }
        let Some((path, files)) = newest.found else { return Ok(None) };
        let state = TrainerState::read(&files).with_context(|| format!("{} cannot be resumed", path.display()))?;
        if path != checkpoint::of_step(&self.checkpoints(), state.step as u64) {
            return Err(Failure::CorruptCheckpoint(format!(
                "{} cannot be resumed: its trainer_state.json is of step {}",
                path.display(),
                state.step
            ))
            .into());
        }
        Ok(Some((files, state)))
    }

    /// Points `latest` and `best` at the checkpoints that `state` knows of and that are still there: a crash may have
    /// come between a save and its links, or a damaged checkpoint have been passed over.
    pub fn relink(&self, state: &TrainerState) -> Result<()> {
        let checkpoints = self.checkpoints();
        for (name, step) in [("latest", Some(state.step)), ("best", state.best_step)] {
            let checkpoint = step.map(|step| checkpoint::of_step(&checkpoints, step as u64));
            match checkpoint.filter(|checkpoint| checkpoint.is_dir()) {
                Some(checkpoint) => checkpoint::link(&checkpoints, name, &checkpoint)?,
                None => checkpoint::unlink(&checkpoints, name)?,
            }
        }
        Ok(())
    }

    /// Loads weights and moments from a checkpoint's files; returns the state that was saved with them.
    pub fn restore(files: &Files, prepared: &mut Prepared, optimizer: &mut Optimizer) -> Result<TrainerState> {
        model_files::decode_weights(files, &prepared.model)?;
        let state = TrainerState::read(files)?;
        model_files::decode_optimizer(files, &prepared.model, optimizer)?;
        optimizer.steps = state.step as u64;
        Ok(state)
    }
}

/// Takes the run for this process.
fn lock(path: &Path) -> Result<File> {
    let file = path.join(LOCK);
    let open = || OpenOptions::new().create(true).truncate(false).write(true).open(&file);
    let lock = open().with_context(|| format!("cannot open {}", file.display()))?;
    let mut taken = lock.try_lock();
    // Whoever lists runs holds it for an instant.
    for _ in 0..5 {
        if !matches!(taken, Err(TryLockError::WouldBlock)) {
            break;
        }
        std::thread::sleep(Duration::from_millis(20));
        taken = lock.try_lock();
    }
    match taken {
        Err(TryLockError::WouldBlock) => {
            let name = path.display();
            Err(Failure::Usage(format!("another process is training in {name}; wait for it, or stop it")).into())
        }
        // Where the file system knows no locks, there is none.
        _ => Ok(lock),
    }
}

/// Whether a process is training in the run.
pub(super) fn is_locked(path: &Path) -> bool {
    let lock = File::open(path.join(LOCK));
    lock.is_ok_and(|lock| matches!(lock.try_lock_shared(), Err(TryLockError::WouldBlock)))
}

/// What of `run.json` is read again.
#[derive(Deserialize)]
pub(super) struct Facts {
    data_sha256: String,
    pub parameters: ParameterCounts,
}

/// Of a model.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub struct ParameterCounts {
    pub total: usize,
    /// Per token.
    pub active: usize,
}

impl Facts {
    /// The facts in the file at `path`; none if it is not there.
    pub fn read(path: &Path) -> Result<Option<Self>> {
        match fs::read(path) {
            Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error).with_context(|| format!("cannot read {}", path.display())),
            Ok(bytes) => match serde_json::from_slice(&bytes) {
                Ok(facts) => Ok(Some(facts)),
                Err(error) => Err(Failure::CorruptCheckpoint(format!("{} is damaged: {error}", path.display())).into()),
            },
        }
    }
}

fn git_revision() -> Option<String> {
    let output = std::process::Command::new("git").args(["rev-parse", "HEAD"]).output().ok()?;
    let revision = String::from_utf8(output.stdout).ok()?;
    (output.status.success() && !revision.trim().is_empty()).then(|| revision.trim().to_owned())
}
