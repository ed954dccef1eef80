//! The training job: from a configuration to a run directory with checkpoints, metrics and samples.
//!
//! Everything that happens in step s follows from the state after step s - 1 and the configuration alone, so that a
//! resumed run writes the bytes that the uninterrupted one would have written.

mod diagnosis;
pub mod evaluate;
mod journal;
pub mod memory;
pub mod metrics;
pub mod overview;
pub mod prepare;
pub mod progress;
pub mod receipt;
pub mod resume;
pub mod run_directory;
pub mod state;
mod step;
mod survey;

use crate::checkpoint::Files;
use crate::config::Config;
use crate::dataset::{Coverage, IdArray};
use crate::error::Failure;
use crate::model::parameters::Parameters;
use crate::model::router::Routing;
use crate::optim::Optimizer;
use crate::sample::SamplingOptions;
use crate::sample::generate::{Prompt, generate_text};
use crate::terminal::Phase;
use anyhow::{Context, Result};
use evaluate::{Evaluation, evaluate};
use metrics::{Record, RoutingAverages};
use prepare::Prepared;
use progress::Progress;
use run_directory::RunDirectory;
use state::{TrainerState, check_same_data};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

/// A run in progress.
pub struct Trainer {
    config: Config,
    prepared: Prepared,
    optimizer: Optimizer,
    state: TrainerState,
    directory: RunDirectory,
    started: Instant,
    /// Seconds that earlier sessions of this run took.
    earlier_s: f64,
    /// Of each step since the last evaluation, the share of pairs that were dropped.
    dropped: Vec<f64>,
}

/// A larger share of dropped pairs is warned of.
const MAX_DROPPED: f64 = 0.1;

/// How a session of training ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ending {
    /// All steps are done.
    Finished,
    /// The step that was asked for is reached.
    Paused,
    /// A signal asked for the end; the state is saved.
    Interrupted,
    /// No better validation loss for as many evaluations as the configuration allows.
    StoppedEarly,
}

/// The best evaluation of a run.
#[derive(Clone, Copy, Debug)]
pub struct Best {
    /// Nats per token.
    pub loss: f64,
    pub bits_per_byte: f64,
    pub ngram_bits_per_byte: f64,
}

/// What one optimizer step was like.
struct StepReport {
    loss: f64,
    predicted: Coverage,
    gradient_norm: f64,
    learning_rate: f64,
    routed: RoutingAverages,
}

impl Trainer {
    /// A new run in `directory`, which must be fresh.
    pub fn new(config: Config, prepared: Prepared, directory: RunDirectory) -> Result<Self> {
        let optimizer = Optimizer::new(&config.optimizer, config.train.precision, &prepared.model.parameters);
        let state = TrainerState::new(&config, &prepared)?;
        let (started, dropped) = (Instant::now(), Vec::new());
        Ok(Self { config, prepared, optimizer, state, directory, started, earlier_s: 0.0, dropped })
    }

    /// The run in `directory`, continued from the checkpoint in `files`; or from the start if it has none.
    pub fn resume(config: Config, prepared: Prepared, directory: RunDirectory, files: Option<&Files>) -> Result<Self> {
        let mut trainer = Self::new(config, prepared, directory)?;
        if let Some(files) = files {
            let state = RunDirectory::restore(files, &mut trainer.prepared, &mut trainer.optimizer)?;
            state.check_belongs_to(&trainer.config)?;
            check_same_data(&trainer.state.data_sha256, &state.data_sha256)?;
            let kernels = trainer.state.kernels.take();
            trainer.state = state;
            trainer.state.continue_with(kernels);
        } else {
            trainer.directory.check_data(&trainer.prepared)?;
        }
        trainer.directory.relink(&trainer.state)?;
        // What a crash kept from being done, or left behind.
        trainer.directory.prune(&trainer.state, trainer.config.train.keep_checkpoints)?;
        trainer.state.config_sha256 = state::config_sha256(&trainer.config)?;
        trainer.directory.configure(&trainer.config)?;
        trainer.earlier_s = trainer.directory.rewind(&mut trainer.state)?;
        Ok(trainer)
    }

    pub fn config(&self) -> &Config {
        &self.config
    }

    pub fn state(&self) -> &TrainerState {
        &self.state
    }

    /// The command that goes on with this run.
    pub fn resume_command(&self) -> String {
        resume::command(self.directory.path(), &[])
    }

    /// Sizes of model and data in a line or two.
    pub fn describe(&self) -> String {
        self.prepared.describe(&self.config)
    }

    /// The validation loss of the best checkpoint beside the n-gram baseline, in bits per byte both.
    pub fn best(&mut self) -> Result<Option<Best>> {
        let ngram_bits_per_byte = self.prepared.baseline()?.bits_per_byte;
        let predicted = self.prepared.predicted;
        Ok(self.state.best_val_loss.map(|loss| Best {
            loss,
            bits_per_byte: predicted.bits_per_byte(loss),
            ngram_bits_per_byte,
        }))
    }

    /// Trains until the end, until step `pause_at`, or until `interrupted` is set; then saves.
    pub fn run(&mut self, pause_at: usize, interrupted: &AtomicBool, progress: &mut Progress) -> Result<Ending> {
        let last = self.config.train.max_steps;
        if let Some(ending) = self.state.ending(&self.config.train) {
            return Ok(ending);
        }
        if let Some(message) = self.prepared.unknown_tokens() {
            log::warn!("{message}");
        }
        let mut ending = Ending::Paused;
        while self.state.step < last.min(pause_at) {
            let report = self.step()?;
            let step = self.state.step;
            self.dropped.push(report.routed.dropped_share);
            progress.step(step, report.loss, self.tokens_per_step(), &report.routed.expert_load);
            let every = |interval: usize| step.is_multiple_of(interval) || step == last;
            if every(self.config.train.log_interval) {
                self.log(&report, progress)?;
            }
            let mut save = every(self.config.train.checkpoint_interval);
            if every(self.config.train.eval_interval) {
                let evaluation = self.evaluate(report.learning_rate, progress)?;
                match evaluation.loss.is_finite() {
                    true => save |= self.state.best_step == Some(step),
                    false => {
                        self.take_back(evaluation.loss, &report.routed)?;
                        continue;
                    }
                }
                self.warn_of_dropped();
                self.draw_sample()?;
            }
            let stop = self.state.ending(&self.config.train) == Some(Ending::StoppedEarly);
            let interrupt = interrupted.load(Ordering::SeqCst);
            if save || stop {
                self.state.due_step = step;
            }
            if save || stop || interrupt || step == pause_at {
                self.save()?;
            }
            if interrupt || stop {
                ending = if interrupt { Ending::Interrupted } else { Ending::StoppedEarly };
                break;
            }
            if step == last {
                ending = Ending::Finished;
            }
        }
        progress.finish();
        Ok(ending)
    }

    fn tokens_per_step(&self) -> usize {
        self.config.tokens_per_step()
    }

    fn diverged(&self, step: usize, what: &str) -> Failure {
        Failure::Diverged(format!(
            "training diverged in step {step}: {what}{}. Try a lower optimizer.learning_rate or a longer \
             optimizer.warmup_steps, or go on past it with `{}` (or =rewind)",
            self.last_checkpoint(),
            resume::command(self.directory.path(), &["train.on_bad_numbers=skip"])
        ))
    }

    fn last_checkpoint(&self) -> String {
        let path = self.directory.path().display();
        match self.directory.checkpoints().join("latest").exists() {
            true => format!("the last checkpoint in {path} is sound"),
            false => format!("{path} has no checkpoint yet"),
        }
    }

    /// Aux-loss-free balancing (Wang et al. 2024, algorithm 1): an expert with less than its share of the step's load
    /// gets a larger bias, one with more a smaller. Returns whether all of them are finite.
    fn move_biases(&self, routed: &RoutingAverages) -> bool {
        let mut finite = true;
        let rate = self.config.router.bias_update_rate as f32;
        let parameters: &Parameters = &self.prepared.model.parameters;
        let mut values = parameters.values_mut();
        let layers = self.prepared.model.layers.iter().filter_map(|layer| layer.feed_forward.routed.as_ref());
        for (bias, load_E) in layers.filter_map(|routed| routed.bias.clone()).zip(&routed.expert_load) {
            let share = 1.0 / load_E.len() as f64;
            for (bias, &load) in values[bias].iter_mut().zip(load_E) {
                let direction = if load < share {
                    1.0
                } else if load > share {
                    -1.0
                } else {
                    0.0
                };
                *bias += rate * direction;
                finite &= bias.is_finite();
            }
        }
        finite
    }

    /// Seconds that the run took so far, earlier sessions included.
    pub fn seconds(&self) -> f64 {
        self.earlier_s + self.started.elapsed().as_secs_f64()
    }

    fn log(&mut self, report: &StepReport, progress: &mut Progress) -> Result<()> {
        let has_capacity = self.config.router.capacity_factor > 0.0 && !report.routed.expert_load.is_empty();
        let record = Record {
            loss: report.loss,
            bits_per_byte: report.predicted.bits_per_byte(report.loss),
            unknown_share: unknown_share(&report.predicted),
            dropped_share: has_capacity.then_some(report.routed.dropped_share),
            grad_norm: Some(report.gradient_norm),
            tokens_per_s: Some(progress.tokens_per_s()),
            ..self.record("train", report.learning_rate, &report.routed)
        };
        progress.log(&record);
        self.append(&record)
    }

    fn record(&self, split: &'static str, lr: f64, routed: &RoutingAverages) -> Record {
        Record {
            step: self.state.step,
            tokens: self.state.tokens,
            elapsed_s: self.seconds(),
            split,
            lr,
            balance_loss: routed.balance_loss,
            z_loss: routed.z_loss,
            expert_load: routed.expert_load.clone(),
            router_entropy: routed.router_entropy.clone(),
            ..Record::default()
        }
    }

    fn append(&mut self, record: &Record) -> Result<()> {
        self.directory.append_metrics(record)?;
        self.state.metrics_lines += 1;
        Ok(())
    }

    /// Evaluates on the whole validation split. A loss that is not finite is neither logged nor remembered.
    fn evaluate(&mut self, lr: f64, progress: &mut Progress) -> Result<Evaluation> {
        let mut routed = RoutingAverages::default();
        let prepared = &mut self.prepared;
        let time = self.config.model.max_position_embeddings;
        let phase = Phase::new("measuring the validation loss");
        let evaluation = evaluate(&prepared.model, &prepared.validation, time, |window| {
            phase.at(window.positions.end, prepared.validation.ids.len());
            routed.add_weighted(window.routing, window.share);
        })?;
        drop(phase);
        if !evaluation.loss.is_finite() {
            return Ok(evaluation);
        }
        let record = Record {
            loss: evaluation.loss,
            bits_per_byte: prepared.predicted.bits_per_byte(evaluation.loss),
            unknown_share: unknown_share(&prepared.predicted),
            ngram_bits_per_byte: Some(prepared.baseline()?.bits_per_byte),
            ..self.record("val", lr, &routed)
        };
        progress.log(&record);
        self.append(&record)?;
        if self.state.best_val_loss.is_none_or(|best| evaluation.loss < best) {
            self.state.best_val_loss = Some(evaluation.loss);
            self.state.best_step = Some(self.state.step);
            self.state.evaluations_without_improvement = 0;
        } else {
            self.state.evaluations_without_improvement += 1;
        }
        Ok(evaluation)
    }

    /// Tokens that a full expert drops pass the layer without it: many of them, and the model learns less than it could.
    fn warn_of_dropped(&mut self) {
        let steps = std::mem::take(&mut self.dropped);
        let share = steps.iter().sum::<f64>() / steps.len().max(1) as f64;
        if share > MAX_DROPPED {
            log::warn!(
                "step {}: since the last evaluation {:.0}% of the choices were dropped because the expert was full; \
                 router.capacity_factor = {} is too small for how uneven the load is: raise it, or set it to 0, which \
                 drops none",
                self.state.step,
                100.0 * share,
                self.config.router.capacity_factor
            );
        }
    }

    fn draw_sample(&mut self) -> Result<()> {
        let train = &self.config.train;
        if train.sample_tokens == 0 {
            return Ok(());
        }
        let options = SamplingOptions { seed: train.seed, ..SamplingOptions::default() };
        let prompt = Prompt::new(&train.sample_prompt, train.sample_tokens);
        let text = generate_text(&self.prepared.model, &self.prepared.tokenizer, &prompt, &options)?;
        log::debug!("sample: {text}");
        self.state.samples_bytes += self.directory.append_sample(self.state.step, &text)?;
        Ok(())
    }

    fn save(&mut self) -> Result<()> {
        let keep = self.config.train.keep_checkpoints;
        self.directory
            .settle(&mut self.state)
            .and_then(|()| self.directory.save(&self.prepared, &self.optimizer, &self.state, keep))
            .with_context(|| format!("cannot save step {}", self.state.step))
    }
}

/// Of the predicted tokens, where any are unknown.
fn unknown_share(predicted: &Coverage) -> Option<f64> {
    (predicted.unknown_tokens > 0).then(|| predicted.unknown_share())
}

/// The load that a routing put on each expert, as shares of all pairs.
fn load_of(routing: &Arc<Routing>) -> Vec<f64> {
    let total = routing.experts_NK.len().max(1) as f64;
    routing.counts_E().into_iter().map(|count| count as f64 / total).collect()
}
