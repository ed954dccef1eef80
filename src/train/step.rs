//! One optimizer step: micro-batches forward and backward, a look at what came out, the update, and a look at that.
//! Where the first look finds something wrong, no weight is changed; where the second does, the weights before come back
//! from the last checkpoint. The configuration decides how the run goes on.

use super::diagnosis::{self, Evidence};
use super::metrics::RoutingAverages;
use super::run_directory::RunDirectory;
use super::state::{Skipped, TrainerState};
use super::{StepReport, Trainer};
use crate::checkpoint::{self, Files};
use crate::config::{Balance, Config, Setback};
use crate::dataset::{Batch, Coverage, batch, corrupt};
use crate::fault;
use crate::model::operation::{Mode, Pass};
use crate::optim::schedule::learning_rate;
use crate::optim::{Optimizer, gradient_norm};
use crate::random::Stream;
use anyhow::{Context, Result, bail};

/// A run that is set back this often without reaching another checkpoint ends.
const MAX_SETBACKS: usize = 10;

/// What forward and backward passes over a step's micro-batches gave, besides the gradient, which lies with the
/// parameters.
struct Computed {
    loss: f64,
    predicted: Coverage,
    routed: RoutingAverages,
}

/// What went wrong with a step.
pub(super) struct Trouble {
    what: String,
    policy: Setback,
    /// Whether it showed only after the weights had moved, so that going on takes the ones before.
    moved: bool,
}

impl Trainer {
    /// Takes a step. Skipping and rewinding happen in here, so that the step taken may be an earlier one than was due.
    pub(super) fn step(&mut self) -> Result<StepReport> {
        loop {
            let computed = self.compute_checked()?;
            let gradient_norm = gradient_norm(&self.prepared.model.parameters);
            let trouble = self.find_trouble(computed.loss, gradient_norm);
            match trouble.or_else(|| self.move_weights(&computed, gradient_norm)) {
                Some(trouble) => self.set_back(&trouble, &computed.routed)?,
                None => return Ok(self.advance(computed, gradient_norm)),
            }
        }
    }

    /// Micro-batch `micro` of the next step, and what to do with it.
    fn micro_batch(&self, micro: usize) -> Result<(u64, Batch, Pass)> {
        let train = &self.config.train;
        let (time, micro_batches) = (self.config.model.max_position_embeddings, train.gradient_accumulation_steps);
        let number = self.state.batch_number(micro, micro_batches);
        let ids = &self.prepared.training.ids;
        let mut batch = batch(ids, train.batch_size, time, train.seed, number)?;
        corrupt(&mut batch.ids, train.token_corruption, ids, train.seed, number)?;
        let mode = Mode::Train { seed: train.seed, step: number, loss_scale: 1.0 / micro_batches as f32 };
        Ok((number, batch, Pass { batch: train.batch_size, time, mode, precision: train.precision }))
    }

    fn compute(&self) -> Result<Computed> {
        let model = &self.prepared.model;
        let micro_batches = self.config.train.gradient_accumulation_steps;
        let mut computed = Computed { loss: 0.0, predicted: Coverage::default(), routed: RoutingAverages::default() };
        for micro in 0..micro_batches {
            let (number, batch, pass) = self.micro_batch(micro)?;
            let output = model.forward(&batch.ids, &batch.targets, pass)?;
            computed.loss += f64::from(output.loss.root.to_scalar::<f32>()?);
            computed.predicted += self.prepared.coverage(&batch.targets);
            output.loss.root.backward()?;
            fault::gradient(number, &mut model.parameters.gradients());
            computed.routed.add(&output.routing, micro_batches);
        }
        Ok(computed)
    }

    /// As [`Self::compute`]. In a sample of the steps everything is computed twice, which must give the same bits; if
    /// it does not, a third time decides.
    ///
    /// # Errors
    /// Three different results: nothing that this machine computes can be relied on.
    fn compute_checked(&self) -> Result<Computed> {
        let computed = self.compute()?;
        let train = &self.config.train;
        let step = self.state.step as u64;
        if Stream::new(train.seed, "recompute", &[step]).uniform(0) >= train.recompute_fraction {
            return Ok(computed);
        }
        let first = self.take_gradient_bits(&computed);
        let again = self.compute()?;
        if self.has_gradient_bits(&again, &first) {
            return Ok(again);
        }
        let second = self.take_gradient_bits(&again);
        let decisive = self.compute()?;
        let step = step + 1;
        if self.has_gradient_bits(&decisive, &first) || self.has_gradient_bits(&decisive, &second) {
            log::warn!(
                "step {step} was computed twice with different results; a third time gave one of them again, which is \
                 used: a transient error of this machine (memory or processor)"
            );
            return Ok(decisive);
        }
        bail!(
            "step {step} was computed three times with three different results: this machine makes errors reproducibly \
             (test its memory and processor), or a kernel is not deterministic. No weight was changed; {}",
            self.last_checkpoint()
        )
    }

    /// The bits of loss and gradient; clears the gradient.
    fn take_gradient_bits(&self, computed: &Computed) -> (u64, Vec<f32>) {
        let parameters = &self.prepared.model.parameters;
        let bits = parameters.gradients().clone();
        parameters.clear_gradients();
        (computed.loss.to_bits(), bits)
    }

    fn has_gradient_bits(&self, computed: &Computed, (loss, bits): &(u64, Vec<f32>)) -> bool {
        let gradients = self.prepared.model.parameters.gradients();
        let same = |(a, b): (&f32, &f32)| a.to_bits() == b.to_bits();
        computed.loss.to_bits() == *loss && gradients.iter().zip(bits).all(same)
    }

    /// What is wrong with this loss and gradient, if anything, and what the configuration says about it.
    fn find_trouble(&self, loss: f64, gradient_norm: f64) -> Option<Trouble> {
        let train = &self.config.train;
        if !loss.is_finite() || !gradient_norm.is_finite() {
            let what = format!("loss {loss}, gradient norm {gradient_norm}");
            return Some(Trouble { what, policy: train.on_bad_numbers, moved: false });
        }
        let z_score = self.state.z_score(loss, train.spike_window)?;
        if z_score <= train.spike_threshold {
            return None;
        }
        let window = train.spike_window;
        let what =
            format!("loss {loss:.4} is {z_score:.1} standard deviations above the mean of the last {window} steps");
        if train.on_loss_spike == Setback::Warn {
            log::warn!("step {}: {what}", self.state.step + 1);
            return None;
        }
        Some(Trouble { what, policy: train.on_loss_spike, moved: false })
    }

    /// Clips, moves the weights, and balances the routers' biases; then all that moved must be finite. Clipping and
    /// decay, products and quotients can overflow where loss and gradient did not.
    fn move_weights(&mut self, computed: &Computed, gradient_norm: f64) -> Option<Trouble> {
        let parameters = &self.prepared.model.parameters;
        let micro_batches = self.config.train.gradient_accumulation_steps;
        let first = self.state.batch_number(0, micro_batches);
        fault::update(first..first + micro_batches as u64, &mut parameters.gradients());
        let mut finite = self.optimizer.step(parameters, self.learning_rate(), gradient_norm);
        if self.config.router.balance == Balance::Bias {
            finite &= self.move_biases(&computed.routed);
        }
        if finite {
            return None;
        }
        let found = self.optimizer.find_bad_number(&self.prepared.model.parameters).unwrap_or_default();
        let loss = computed.loss;
        let what = format!(
            "loss {loss:.4}, gradient norm {gradient_norm:.3e}, but after the update not all numbers are finite: {found}"
        );
        Some(Trouble { what, policy: self.config.train.on_bad_numbers, moved: true })
    }

    /// Counts the step as taken.
    fn advance(&mut self, computed: Computed, gradient_norm: f64) -> StepReport {
        let learning_rate = self.learning_rate();
        let Computed { loss, predicted, routed } = computed;
        self.state.push_loss(loss, self.config.train.spike_window);
        self.state.step += 1;
        self.state.tokens += self.tokens_per_step() as u64;
        StepReport { loss, predicted, gradient_norm, learning_rate, routed }
    }

    /// Takes back a step that was taken, because the validation loss is not finite after it.
    pub(super) fn take_back(&mut self, loss: f64, routed: &RoutingAverages) -> Result<()> {
        self.state.step -= 1;
        let what = format!("validation loss {loss} after it");
        let trouble = Trouble { what, policy: self.config.train.on_bad_numbers, moved: true };
        self.set_back(&trouble, routed)
    }

    fn learning_rate(&self) -> f64 {
        learning_rate(&self.config.optimizer, self.state.step, self.config.train.max_steps)
    }

    /// Goes past the batches of a step that went wrong, or ends the run.
    fn set_back(&mut self, trouble: &Trouble, routed: &RoutingAverages) -> Result<()> {
        let Trouble { what, policy, moved } = trouble;
        let evidence = self.evidence(routed, *moved)?;
        self.prepared.model.parameters.clear_gradients();
        let step = self.state.step + 1;
        let since = self.state.skipped.iter().filter(|skipped| skipped.step > self.state.due_step).count();
        if *policy == Setback::Stop || since >= MAX_SETBACKS {
            let often =
                if *policy == Setback::Stop { "" } else { ", once more after 10 setbacks without a checkpoint" };
            let harm = if *moved { "what it did to the weights is not saved" } else { "no weight was changed by it" };
            return Err(self.diverged(step, &format!("{what}{often}; {harm}\n{evidence}")).into());
        }
        let reason = format!("step {step}: {what}\n{evidence}");
        let after = if *policy == Setback::Rewind { self.state.due_step } else { self.state.step };
        let batches = ((step - after) * self.config.train.gradient_accumulation_steps) as u64;
        if *policy == Setback::Rewind {
            log::warn!("{reason}back to step {after}, and past the batches since then");
            // From there on, nothing that was passed over comes again.
            self.state.skipped.iter_mut().for_each(|skipped| skipped.after = skipped.after.min(after));
            self.go_back(self.due_checkpoint()?.as_ref())?;
        } else if *moved {
            // Steps are a matter of state and configuration alone, so that these are taken again as they were.
            let newest = self.directory.newest()?.map(|(files, _)| files);
            self.go_back(newest.as_ref())?;
            let target = self.state.step;
            log::warn!("{reason}back to step {target}, and on without this batch");
        } else {
            log::warn!("{reason}this batch is skipped");
        }
        self.state.skipped.push(Skipped { step, batches, after, reason: what.to_owned() });
        Ok(())
    }

    /// The last checkpoint that was due; none before the first.
    fn due_checkpoint(&self) -> Result<Option<Files>> {
        let step = self.state.due_step;
        let load = || checkpoint::load(&checkpoint::of_step(&self.directory.checkpoints(), step as u64));
        (step > 0).then(load).transpose().with_context(|| format!("cannot go back to step {step}"))
    }

    /// Restores the state of a checkpoint, or that before the first step, and forgets all that came later; but not which
    /// batches were skipped.
    fn go_back(&mut self, files: Option<&Files>) -> Result<()> {
        let state = match files {
            Some(files) => RunDirectory::restore(files, &mut self.prepared, &mut self.optimizer)?,
            None => {
                self.prepared.model.parameters.initialize(self.config.train.seed);
                let Config { optimizer, train, .. } = &self.config;
                self.optimizer = Optimizer::new(optimizer, train.precision, &self.prepared.model.parameters);
                TrainerState::new(&self.config, &self.prepared)?
            }
        };
        let (skipped, config_sha256) = (std::mem::take(&mut self.state.skipped), self.state.config_sha256.clone());
        self.state = TrainerState { skipped, config_sha256, ..state };
        self.directory.relink(&self.state)?;
        checkpoint::discard_after(&self.directory.checkpoints(), self.state.step as u64)?;
        self.directory.rewind(&mut self.state)?;
        Ok(())
    }

    /// What is known about a step that went wrong, a line each.
    fn evidence(&self, routed: &RoutingAverages, moved: bool) -> Result<Evidence> {
        let micro_batches = self.config.train.gradient_accumulation_steps;
        let batches = (0..micro_batches).map(|micro| self.micro_batch(micro)).collect::<Result<Vec<_>>>()?;
        diagnosis::examine(&self.prepared.model, &batches, self.learning_rate(), routed, moved)
    }
}
