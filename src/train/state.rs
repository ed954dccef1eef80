//! The trainer's state besides weights and moments: `trainer_state.json` of a checkpoint.

use super::prepare::Prepared;
use crate::config::Config;
use crate::error::Failure;
use anyhow::Result;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

/// Everything that the next step depends on and that is not a tensor.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
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
    /// How much of the run's `metrics.jsonl` and `samples.txt` had been written.
    pub metrics_lines: usize,
    pub samples_bytes: u64,
    /// Of the run's `config.toml`.
    pub config_sha256: String,
    pub data_sha256: String,
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
            metrics_lines: 0,
            samples_bytes: 0,
            config_sha256: config_sha256(config)?,
            data_sha256: prepared.data_sha256.clone(),
        })
    }

    /// Refuses to continue `saved` on other data.
    pub fn check_same_data(&self, saved: &Self) -> Result<()> {
        if self.data_sha256 != saved.data_sha256 {
            return Err(Failure::Usage(format!(
                "the text in data.sources is not what this run was trained on so far (SHA-256 {} instead of {}); \
                 resume with the same files, or start another run with --run",
                &self.data_sha256[..16],
                saved.data_sha256.get(..16).unwrap_or_default()
            ))
            .into());
        }
        Ok(())
    }
}

/// SHA-256 of `config.toml` as a run directory holds it.
pub fn config_sha256(config: &Config) -> Result<String> {
    Ok(format!("{:x}", Sha256::digest(toml::to_string(config)?)))
}
