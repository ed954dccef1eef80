//! Router saturation (Muennighoff et al. 2024, OLMoE, section 5): how early in training the choices are made.
//!
//! For a checkpoint t and the last one T, the mean over tokens of |E_t intersect E_T| / K, where E_t are the K experts
//! that t chooses: 1 when all choices are the final ones, K / E in expectation when they have nothing to do with them.
//! And the same for the first choice alone (k = 1).

use super::trace::{LayerTrace, mean};
use serde::Serialize;

#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Saturation {
    /// The last checkpoint's.
    pub reference_step: usize,
    /// Tokens that it was measured on, from the start of the text.
    pub tokens: usize,
    /// The earlier ones, oldest first.
    pub checkpoints: Vec<CheckpointSaturation>,
}

#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct CheckpointSaturation {
    pub step: usize,
    /// Over all K choices, for each MoE layer.
    pub all: Vec<f64>,
    /// Of the first choice.
    pub first: Vec<f64>,
}

/// The two measures between one layer's choices at two times.
pub fn overlap(early: &LayerTrace, last: &LayerTrace, K: usize) -> (f64, f64) {
    let pairs = || early.experts_NK.chunks_exact(K).zip(last.experts_NK.chunks_exact(K));
    let common = |(a, b): (&[u16], &[u16])| a.iter().filter(|expert| b.contains(expert)).count() as f64 / K as f64;
    (mean(pairs().map(common)), mean(pairs().map(|(a, b)| f64::from(a[0] == b[0]))))
}

#[cfg(test)]
mod tests {
    use super::super::trace::tests::{close, layer};
    use super::*;

    #[test]
    fn overlap_is_of_sets_and_of_first_choices() {
        // {0, 1} and {1, 0}: 2 of 2; {2, 3} and {2, 0}: 1 of 2; {0, 1} and {2, 3}: none.
        let (all, first) = overlap(&layer(&[0, 1, 2, 3, 0, 1]), &layer(&[1, 0, 2, 0, 2, 3]), 2);
        close(all, 0.5);
        close(first, 1.0 / 3.0);
    }
}
