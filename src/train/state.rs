//! The trainer's state besides weights and moments: `trainer_state.json` of a checkpoint.

use super::Ending;
use super::prepare::Prepared;
use crate::checkpoint::Files;
use crate::config::{Config, TrainConfig};
use crate::dataset::split::SplitRule;
use crate::error::Failure;
use crate::ops::gemm::{self, Precision};
use crate::ops::simd;
use anyhow::Result;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

/// Consecutive micro-batches that the run went past without learning from them, and why.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Skipped {
    /// The step that went wrong.
    pub step: usize,
    pub batches: u64,
    /// How many steps came before them. A run that goes back further meets them again in their place, and passes over
    /// them there.
    #[serde(default)]
    pub after: usize,
    pub reason: String,
}

/// Everything that the next step depends on and that is not a tensor.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct TrainerState {
    /// Optimizer steps done.
    pub step: usize,
    /// Training tokens seen.
    pub tokens: u64,
    pub seed: u64,
    /// Lowest validation loss so far (nats per token) and the step in which it was measured.
    pub best_val_loss: Option<f64>,
    pub best_step: Option<usize>,
    pub evaluations_without_improvement: usize,
    /// The step of the last checkpoint that was due, be it by interval or as the best: where a rewind goes back to.
    /// One that a pause or an interruption asked for does not count, so that they change nothing.
    #[serde(default)]
    pub due_step: usize,
    /// Training losses of the last steps, oldest first: what a jump of the loss is measured against.
    #[serde(default)]
    pub recent_losses: Vec<f64>,
    /// Batches that were dropped.
    #[serde(default)]
    pub skipped: Vec<Skipped>,
    /// How much of the run's `metrics.jsonl` and `samples.txt` had been written.
    pub metrics_lines: usize,
    pub samples_bytes: u64,
    /// The SHA-256 of that, of the metrics without times. Checkpoints of earlier versions do not have it.
    #[serde(default)]
    pub metrics_sha256: Option<String>,
    #[serde(default)]
    pub samples_sha256: Option<String>,
    /// How the text is divided. Checkpoints of the first round do not say: by its rule.
    #[serde(default)]
    pub split: SplitRule,
    /// Of the run's `config.toml`.
    pub config_sha256: String,
    pub data_sha256: String,
    /// The kernels that computed the last step, whose last bits other kernels' sums do not have. Checkpoints of earlier
    /// versions do not say.
    #[serde(default)]
    pub kernels: Option<String>,
}

/// The kernels that compute a step here, as results depend on them.
fn kernels(config: &Config) -> String {
    let bf16 = match config.train.precision {
        Precision::F32 => "",
        Precision::Bf16 if gemm::has_bf16() => " bf16",
        Precision::Bf16 => " with emulated bf16",
    };
    format!("{}{bf16}", simd::path().name())
}

impl TrainerState {
    /// The state before the first step.
    pub fn new(config: &Config, prepared: &Prepared) -> Result<Self> {
        Ok(Self {
            step: 0,
            tokens: 0,
            seed: config.train.seed,
            best_val_loss: None,
            best_step: None,
            evaluations_without_improvement: 0,
            due_step: 0,
            recent_losses: Vec::new(),
            skipped: Vec::new(),
            metrics_lines: 0,
            samples_bytes: 0,
            metrics_sha256: None,
            samples_sha256: None,
            split: prepared.split,
            config_sha256: config_sha256(config)?,
            data_sha256: prepared.data_sha256.clone(),
            kernels: Some(kernels(config)),
        })
    }

    /// Takes over from the session that saved this state: says so where its kernels are not this machine's.
    pub fn continue_with(&mut self, kernels: Option<String>) {
        if let (Some(before), Some(now)) = (&self.kernels, &kernels)
            && before != now
        {
            log::warn!(
                "the run's steps so far were computed with {before} kernels, the next ones will be with {now}: it will not \
                 end with the bytes of a run on one kind (docs/trust.md, \"Other kernels\")"
            );
        }
        self.kernels = kernels;
    }

    /// The number of micro-batch `micro` of the next step: one after the other, past those that were skipped.
    pub fn batch_number(&self, micro: usize, micro_batches: usize) -> u64 {
        let behind = self.skipped.iter().filter(|skipped| skipped.after <= self.step);
        let skipped: u64 = behind.map(|skipped| skipped.batches).sum();
        (self.step * micro_batches + micro) as u64 + skipped
    }

    /// By how many standard deviations `loss` is above the mean of the last `window` losses; none before there are as
    /// many.
    pub fn z_score(&self, loss: f64, window: usize) -> Option<f64> {
        if window == 0 || self.recent_losses.len() < window {
            return None;
        }
        let losses = &self.recent_losses[self.recent_losses.len() - window..];
        let mean = losses.iter().sum::<f64>() / window as f64;
        let variance = losses.iter().map(|loss| (loss - mean).powi(2)).sum::<f64>() / window as f64;
        Some((loss - mean) / variance.sqrt().max(f64::MIN_POSITIVE))
    }

    /// Remembers the loss of a step that was taken.
    pub fn push_loss(&mut self, loss: f64, window: usize) {
        self.recent_losses.push(loss);
        let excess = self.recent_losses.len().saturating_sub(window);
        self.recent_losses.drain(..excess);
    }

    /// The state in a checkpoint's files.
    ///
    /// # Errors
    /// [`Failure::CorruptCheckpoint`] where it cannot be read or contradicts itself.
    pub fn read(files: &Files) -> Result<Self> {
        let corrupt = |reason: String| Failure::CorruptCheckpoint(format!("trainer_state.json: {reason}"));
        let state: Self =
            serde_json::from_slice(files.get("trainer_state.json")?).map_err(|error| corrupt(error.to_string()))?;
        let Self { step, best_step, due_step, .. } = state;
        if best_step.is_some_and(|best| best > step) || due_step > step {
            return Err(corrupt(format!("best_step or due_step lies behind step {step}")).into());
        }
        Ok(state)
    }

    /// How the run has ended, if it has: no step is left, or no patience.
    pub fn ending(&self, train: &TrainConfig) -> Option<Ending> {
        let patience = train.early_stopping_patience;
        if patience > 0 && self.evaluations_without_improvement >= patience {
            return Some(Ending::StoppedEarly);
        }
        (self.step >= train.max_steps).then_some(Ending::Finished)
    }

    /// Refuses a saved state that no run of this configuration can have come to.
    pub fn check_belongs_to(&self, config: &Config) -> Result<()> {
        let tokens = (self.step as u64).checked_mul(config.tokens_per_step() as u64);
        if self.seed != config.train.seed || Some(self.tokens) != tokens {
            return Err(Failure::CorruptCheckpoint(format!(
                "trainer_state.json: step {} with seed {} and {} tokens is not of this run's configuration",
                self.step, self.seed, self.tokens
            ))
            .into());
        }
        Ok(())
    }
}

/// Refuses to continue a run on other texts: SHA-256 of those that were read now, and of those that it began with.
pub fn check_same_data(now: &str, before: &str) -> Result<()> {
    if now != before {
        return Err(Failure::Usage(format!(
            "the text in data.sources is not what this run was trained on so far (SHA-256 {} instead of {}); resume with \
             the same files, or start another run in another directory",
            now.get(..16).unwrap_or_default(),
            before.get(..16).unwrap_or_default()
        ))
        .into());
    }
    Ok(())
}

/// SHA-256 of `config.toml` as a run directory holds it.
pub fn config_sha256(config: &Config) -> Result<String> {
    Ok(format!("{:x}", Sha256::digest(toml::to_string(config)?)))
}
