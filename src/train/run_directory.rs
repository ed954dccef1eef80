//! A run's directory: configuration, facts about the run, metrics, samples, checkpoints.

use super::metrics::{LoggedTime, Record};
use super::prepare::Prepared;
use super::state::TrainerState;
use crate::checkpoint::{self, Files, model_files};
use crate::config::{self, Config};
use crate::dataset::IdArray;
use crate::error::Failure;
use crate::fault;
use crate::ops::{pool, simd};
use crate::optim::Optimizer;
use anyhow::{Context, Result};
use serde_json::json;
use std::fs::{self, File, OpenOptions, TryLockError};
use std::io::Write;
use std::path::{Path, PathBuf};

/// Keys that may have another value when a run is resumed: how far it goes, and what becomes of steps that go wrong.
const MAY_CHANGE: [&str; 6] = [
    "train.max_steps",
    "train.on_bad_numbers",
    "train.on_loss_spike",
    "train.spike_window",
    "train.spike_threshold",
    "train.recompute_fraction",
];

/// A run's directory, made by [`RunDirectory::create`] or found by [`RunDirectory::open`]. No other process can have
/// it at the same time.
pub struct RunDirectory {
    path: PathBuf,
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
        let hint = if path.join("config.toml").exists() { "continue that run with --resume, or " } else { "" };
        let name = path.display();
        Err(Failure::Usage(format!("{name} exists already; {hint}choose another directory with --run")).into())
    }

    /// Makes the directory of a new run.
    pub fn create(path: &Path) -> Result<Self> {
        Self::check_free(path)?;
        fs::create_dir_all(path).with_context(|| format!("cannot create {}", path.display()))?;
        Ok(Self { path: path.to_owned(), _lock: lock(path)? })
    }

    /// The directory of a run to be continued, which `config` must belong to.
    ///
    /// # Errors
    /// [`Failure::Usage`] if there is no run, or one of another configuration.
    pub fn open(path: &Path, config: &Config) -> Result<Self> {
        let file = path.join("config.toml");
        let Ok(text) = fs::read_to_string(&file) else {
            let name = path.display();
            return Err(Failure::Usage(format!("there is no run in {name} to resume; leave --resume out")).into());
        };
        let saved = config::parse(&text, &file.display().to_string(), &[])?;
        let differences = differing_keys(&saved, config)?;
        if !differences.is_empty() {
            return Err(Failure::Usage(format!(
                "the run in {} has another configuration: {}; resume it unchanged (only {} may change), or start another \
                 run with --run",
                path.display(),
                differences.join(", "),
                MAY_CHANGE.join(", ")
            ))
            .into());
        }
        Ok(Self { path: path.to_owned(), _lock: lock(path)? })
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
        let facts = json!({
            "version": env!("CARGO_PKG_VERSION"),
            "git_revision": git_revision(),
            // A path may be something else than UTF-8, where `args` would panic.
            "command_line": std::env::args_os().map(|arg| arg.to_string_lossy().into_owned()).collect::<Vec<_>>(),
            "threads": pool::threads(),
            "cpu": { "architecture": std::env::consts::ARCH, "kernels": simd::path().name() },
            "data_sha256": prepared.data_sha256,
            "data": prepared.files,
            "tokens": { "training": prepared.training.ids.len(), "validation": prepared.validation.ids.len() },
            "parameters": {
                "total": prepared.model.parameters.count(),
                "active": prepared.model.active_parameters(),
            },
        });
        self.write("run.json", format!("{facts:#}\n").as_bytes())
    }

    fn write(&self, name: &str, bytes: &[u8]) -> Result<()> {
        checkpoint::replace(&self.path.join(name), bytes)
    }

    pub fn append_metrics(&self, record: &Record) -> Result<()> {
        let mut line = serde_json::to_vec(record)?;
        line.push(b'\n');
        self.append("metrics.jsonl", &line)
    }

    /// Appends a sample and returns how many bytes that took.
    pub fn append_sample(&self, step: usize, text: &str) -> Result<u64> {
        let entry = format!("=== step {step} ===\n{text}\n\n");
        self.append("samples.txt", entry.as_bytes())?;
        Ok(entry.len() as u64)
    }

    fn append(&self, name: &str, bytes: &[u8]) -> Result<()> {
        let path = self.path.join(name);
        let append = || {
            fault::system_call();
            let mut file = OpenOptions::new().create(true).append(true).open(&path)?;
            let (head, tail) = bytes.split_at(bytes.len() / 2);
            for part in [head, tail] {
                fault::system_call();
                file.write_all(part)?;
            }
            Ok::<_, std::io::Error>(())
        };
        append().with_context(|| format!("cannot write to {}", path.display()))
    }

    /// Cuts metrics and samples back to where `state` was saved; returns the seconds logged until then.
    pub fn rewind(&self, state: &TrainerState) -> Result<f64> {
        let mut elapsed_s = 0.0;
        let metrics = self.path.join("metrics.jsonl");
        if let Ok(text) = fs::read_to_string(&metrics) {
            let kept: Vec<&str> = text.split_inclusive('\n').take(state.metrics_lines).collect();
            let last = kept.last().and_then(|line| serde_json::from_str::<LoggedTime>(line).ok());
            elapsed_s = last.map_or(0.0, |line| line.elapsed_s);
            cut(&metrics, kept.iter().map(|line| line.len() as u64).sum())?;
        }
        let samples = self.path.join("samples.txt");
        if samples.exists() {
            cut(&samples, state.samples_bytes)?;
        }
        Ok(elapsed_s)
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
    /// [`Failure::CorruptCheckpoint`] if there are checkpoints and none of them verifies.
    pub fn newest(&self) -> Result<Option<Files>> {
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
        Ok(newest.found.map(|(_, files)| files))
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
        let bytes = files.get("trainer_state.json")?;
        let state: TrainerState = serde_json::from_slice(bytes)
            .map_err(|error| Failure::CorruptCheckpoint(format!("trainer_state.json: {error}")))?;
        model_files::decode_optimizer(files, &prepared.model, optimizer)?;
        optimizer.steps = state.step as u64;
        Ok(state)
    }
}

/// Takes the run for this process.
fn lock(path: &Path) -> Result<File> {
    let file = path.join(".lock");
    let open = || OpenOptions::new().create(true).truncate(false).write(true).open(&file);
    let lock = open().with_context(|| format!("cannot open {}", file.display()))?;
    match lock.try_lock() {
        Err(TryLockError::WouldBlock) => {
            let name = path.display();
            Err(Failure::Usage(format!("another process is training in {name}; wait for it, or stop it")).into())
        }
        // Where the file system knows no locks, there is none.
        _ => Ok(lock),
    }
}

/// Shortens a file to `len` bytes; one that is shorter already stays.
fn cut(path: &Path, len: u64) -> Result<()> {
    let cut = || -> std::io::Result<()> {
        let file = OpenOptions::new().write(true).open(path)?;
        fault::system_call();
        if file.metadata()?.len() > len { file.set_len(len) } else { Ok(()) }
    };
    cut().with_context(|| format!("cannot shorten {}", path.display()))
}

/// Keys with different values, apart from those that may change.
fn differing_keys(saved: &Config, config: &Config) -> Result<Vec<String>> {
    let (saved, config) = (toml::Table::try_from(saved)?, toml::Table::try_from(config)?);
    let mut keys = Vec::new();
    for (section, values) in &config {
        for (key, value) in values.as_table().into_iter().flatten() {
            let name = format!("{section}.{key}");
            let before = saved.get(section).and_then(|values| values.get(key));
            if before != Some(value) && !MAY_CHANGE.contains(&name.as_str()) {
                keys.push(name);
            }
        }
    }
    Ok(keys)
}

fn git_revision() -> Option<String> {
    let output = std::process::Command::new("git").args(["rev-parse", "HEAD"]).output().ok()?;
    let revision = String::from_utf8(output.stdout).ok()?;
    (output.status.success() && !revision.trim().is_empty()).then(|| revision.trim().to_owned())
}
