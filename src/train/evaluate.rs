//! The one protocol of evaluation: mean cross-entropy over all positions of consecutive, non-overlapping windows over
//! the whole of a text, nothing random in it. Windows are as long as the training context unless a shorter one is asked
//! for.

use crate::dataset::{IdArray, Tokens};
use crate::model::memory::Reading;
use crate::model::operation::{Mode, Pass};
use crate::model::router::Routing;
use crate::model::transformer::Transformer;
use crate::ops::gemm::Precision;
use anyhow::Result;
use std::ops::Range;
use std::sync::Arc;

/// Tokens in one forward pass.
const TOKENS_PER_PASS: usize = 4096;

/// The loss over a text.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Evaluation {
    /// Mean cross-entropy in nats per token.
    pub loss: f64,
    /// Predicted tokens.
    pub tokens: usize,
}

/// Some consecutive windows after the model has seen them.
pub struct Seen<'a> {
    /// Where the input tokens are in the text.
    pub positions: Range<usize>,
    pub ids_N: &'a [u32],
    /// Nats of each input's successor.
    pub losses_N: &'a [f32],
    /// One entry a MoE layer.
    pub routing: &'a [Arc<Routing>],
    /// One entry a memory.
    pub readings: &'a [Arc<Reading>],
    /// Share of the text's predicted tokens.
    pub share: f64,
}

/// The windows of `time` tokens of a text, those of full length together as far as a pass has room: where their inputs are, and the pass.
pub fn passes<I: IdArray>(tokens: &Tokens<I>, time: usize) -> impl Iterator<Item = (Range<usize>, Pass)> {
    let mut windows = tokens.windows(time).peekable();
    std::iter::from_fn(move || {
        let Range { start, mut end } = windows.next()?;
        let pass_time = end - start;
        let mut batch = 1;
        while batch * time < TOKENS_PER_PASS && pass_time == time {
            let Some(next) = windows.next_if(|next| next.len() == time) else { break };
            batch += 1;
            end = next.end;
        }
        Some((start..end, Pass { batch, time: pass_time, mode: Mode::Evaluate, precision: Precision::F32 }))
    })
}

/// Evaluates `model` on `tokens` in windows of `time` tokens, at most the model's positions, and shows every part to
/// `observe`.
pub fn evaluate<I: IdArray>(
    model: &Transformer,
    tokens: &Tokens<I>,
    time: usize,
    mut observe: impl FnMut(&Seen),
) -> Result<Evaluation> {
    let total = tokens.ids.len().saturating_sub(1);
    let mut sum = 0.0;
    for (positions, pass) in passes(tokens, time) {
        let ids = tokens.ids.read(positions.start..positions.end + 1)?;
        let (ids_N, targets_N) = (&ids[..positions.len()], &ids[1..]);
        let output = model.forward(ids_N, targets_N, pass)?;
        let losses_N = &output.loss.losses_N[..];
        sum += losses_N.iter().map(|&loss| f64::from(loss)).sum::<f64>();
        let share = ids_N.len() as f64 / total as f64;
        let (routing, readings) = (&output.routing[..], &output.readings[..]);
        observe(&Seen { positions, ids_N, losses_N, routing, readings, share });
    }
    Ok(Evaluation { loss: sum / total.max(1) as f64, tokens: total })
}
