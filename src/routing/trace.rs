//! One pass over a text that keeps what every measure of the report is computed from: the experts of each token, its
//! loss, the token that the model thought likeliest, and sums over gates and probabilities. Two bytes a choice, so
//! that a text of many megabytes fits; nothing is formatted here.

use super::memory::MemoryTrace;
use crate::dataset::Tokens;
use crate::model::router::Routing;
use crate::model::transformer::{Passage, Station, Transformer};
use crate::train::evaluate::{Seen, passes};
use anyhow::Result;
use std::ops::Range;

/// What a model did with the N input positions of a text.
#[derive(Clone, Debug)]
pub struct Trace {
    /// E and K.
    pub num_experts: usize,
    pub experts_per_token: usize,
    /// Tokens in a window.
    pub time: usize,
    /// The transformer layers that route, one entry a MoE layer.
    pub layers: Vec<LayerTrace>,
    /// One entry a memory.
    pub memories: Vec<MemoryTrace>,
    /// Nats of each input's successor.
    pub losses_N: Vec<f32>,
    /// The likeliest successor of each input.
    pub likeliest_N: Vec<u32>,
}

/// One MoE layer.
#[derive(Clone, Debug)]
pub struct LayerTrace {
    /// Index of the transformer layer.
    pub layer: usize,
    /// Chosen experts of each token, best first.
    pub experts_NK: Vec<u16>,
    /// Their gates at the positions that were asked for, one after the other.
    pub kept_gates: Vec<f32>,
    pub sums: Sums,
}

/// Sums over tokens of what the gate measures and REAP need.
#[derive(Clone, Debug, Default)]
pub struct Sums {
    /// Gates by rank.
    pub gates_K: Vec<f64>,
    /// Gates by expert, over its tokens.
    pub gates_E: Vec<f64>,
    /// Gate times length of the expert's output, over its tokens.
    pub weighted_norms_E: Vec<f64>,
    /// Entropy of the router's probabilities in nats.
    pub entropy: f64,
    /// Probability of the last chosen expert less that of the best one left out, for each token.
    pub margins_N: Vec<f32>,
}

impl Trace {
    /// Runs `model` over `tokens` in windows of `time` of them. `keep_gates` are sorted ranges of positions whose gates are wanted; `observe` sees
    /// every pass as it comes.
    pub fn record(
        model: &Transformer,
        tokens: &Tokens,
        time: usize,
        keep_gates: &[Range<usize>],
        mut observe: impl FnMut(&Seen) -> Result<()>,
    ) -> Result<Self> {
        let mut trace = Self::empty(&model.moe_layers(), model.model.num_experts, model.model.num_experts_per_tok);
        trace.time = time;
        trace.memories = model.memories().map(|memory| MemoryTrace::of(memory)).collect();
        let total = tokens.ids.len().saturating_sub(1);
        for (positions, pass) in passes(tokens, time) {
            let ids_N = &tokens.ids[positions.clone()];
            let targets_N = &tokens.ids[positions.start + 1..positions.end + 1];
            let x_ND = model.embed(ids_N, pass)?;
            let passage = model.sub_layers(Station::Embedding, ids_N, x_ND, pass, |_, _| Ok(()))?;
            let Passage { x_ND, routing, readings } = passage;
            let loss = model.head.loss(&model.parameters, &x_ND, targets_N, pass)?;
            let likeliest_N = model.head.likeliest(&model.parameters, &x_ND)?;
            for (layer, routing) in trace.layers.iter_mut().zip(&routing) {
                layer.add(routing, &positions, keep_gates);
            }
            trace.memories.iter_mut().zip(&readings).for_each(|(memory, reading)| memory.add(reading));
            let share = ids_N.len() as f64 / total as f64;
            observe(&Seen {
                positions,
                ids_N,
                losses_N: &loss.losses_N,
                routing: &routing,
                readings: &readings,
                share,
            })?;
            trace.losses_N.extend_from_slice(&loss.losses_N);
            trace.likeliest_N.extend(likeliest_N);
        }
        Ok(trace)
    }

    fn empty(layers: &[usize], num_experts: usize, experts_per_token: usize) -> Self {
        let sums = Sums {
            gates_K: vec![0.0; experts_per_token],
            gates_E: vec![0.0; num_experts],
            weighted_norms_E: vec![0.0; num_experts],
            ..Sums::default()
        };
        let layer =
            |&layer: &usize| LayerTrace { layer, experts_NK: Vec::new(), kept_gates: Vec::new(), sums: sums.clone() };
        Self {
            num_experts,
            experts_per_token,
            time: 0,
            layers: layers.iter().map(layer).collect(),
            memories: Vec::new(),
            losses_N: Vec::new(),
            likeliest_N: Vec::new(),
        }
    }

    /// N
    pub fn tokens(&self) -> usize {
        self.losses_N.len()
    }

    /// Mean cross-entropy in nats per token.
    pub fn loss(&self) -> f64 {
        mean(self.losses_N.iter().map(|&loss| f64::from(loss)))
    }
}

impl LayerTrace {
    fn add(&mut self, routing: &Routing, positions: &Range<usize>, keep_gates: &[Range<usize>]) {
        let (E, K) = (routing.num_experts, routing.experts_per_token());
        self.experts_NK.extend(routing.experts_NK.iter().map(|&expert| expert as u16));
        for range in keep_gates {
            let start = range.start.max(positions.start);
            let end = range.end.min(positions.end).max(start);
            let rows = (start - positions.start) * K..(end - positions.start) * K;
            if !rows.is_empty() {
                self.kept_gates.extend_from_slice(&routing.gates_NK[rows]);
            }
        }
        let sums = &mut self.sums;
        for (pair, (&expert, &gate)) in routing.experts_NK.iter().zip(&routing.gates_NK).enumerate() {
            let gate = f64::from(gate);
            sums.gates_K[pair % K] += gate;
            sums.gates_E[expert as usize] += gate;
            sums.weighted_norms_E[expert as usize] +=
                gate * f64::from(routing.norms_NK.get(pair).copied().unwrap_or(0.0));
        }
        sums.entropy += routing.mean_entropy() * positions.len() as f64;
        let rows = routing.probs_NE.chunks_exact(E).zip(routing.experts_NK.chunks_exact(K));
        sums.margins_N.extend(rows.map(|(probs_E, chosen_K)| margin(probs_E, chosen_K)));
    }

    /// Tokens that reach each expert.
    pub fn counts_E(&self, num_experts: usize) -> Vec<u64> {
        let mut counts = vec![0; num_experts];
        for &expert in &self.experts_NK {
            counts[usize::from(expert)] += 1;
        }
        counts
    }
}

/// The smallest probability among the chosen experts less the largest among the others; 0 where there are no others.
fn margin(probs_E: &[f32], chosen_K: &[u32]) -> f32 {
    let mut worst = f32::INFINITY;
    let mut best_left_out = f32::NEG_INFINITY;
    for (expert, &prob) in (0..).zip(probs_E) {
        if chosen_K.contains(&expert) {
            worst = worst.min(prob);
        } else {
            best_left_out = best_left_out.max(prob);
        }
    }
    if best_left_out.is_finite() { worst - best_left_out } else { 0.0 }
}

/// 0 of nothing.
pub fn mean(values: impl Iterator<Item = f64>) -> f64 {
    let (sum, count) = values.fold((0.0, 0u64), |(sum, count), value| (sum + value, count + 1));
    if count == 0 { 0.0 } else { sum / count as f64 }
}

/// `part / whole`, 0 of nothing.
pub fn ratio(part: u64, whole: u64) -> f64 {
    if whole == 0 { 0.0 } else { part as f64 / whole as f64 }
}

#[cfg(test)]
pub mod tests {
    use super::*;

    /// A layer in which each token goes to the given experts, best first.
    pub fn layer(experts_NK: &[u16]) -> LayerTrace {
        LayerTrace { layer: 0, experts_NK: experts_NK.to_vec(), kept_gates: Vec::new(), sums: Sums::default() }
    }

    #[track_caller]
    pub fn close(actual: f64, expected: f64) {
        assert!((actual - expected).abs() < 1e-6, "{actual} is not {expected}");
    }

    #[test]
    fn sums_and_kept_gates_are_those_of_the_passes_by_hand() {
        let mut trace = Trace::empty(&[3], 3, 2);
        let pass = |experts: &[u32], gates: &[f32], probs: &[f32], norms: &[f32]| Routing {
            num_experts: 3,
            experts_NK: experts.to_vec(),
            gates_NK: gates.to_vec(),
            probs_NE: probs.to_vec(),
            norms_NK: norms.to_vec(),
            ..Routing::default()
        };
        let layer = &mut trace.layers[0];
        let first =
            pass(&[0, 2, 1, 0], &[0.75, 0.25, 0.5, 0.5], &[0.6, 0.1, 0.3, 0.4, 0.5, 0.1], &[2.0, 4.0, 1.0, 6.0]);
        let kept = std::slice::from_ref(&(1..3));
        layer.add(&first, &(0..2), kept);
        let second = pass(&[2, 1], &[1.0, 0.0], &[0.0, 0.0, 1.0], &[3.0, 5.0]);
        layer.add(&second, &(2..3), kept);
        assert_eq!(layer.experts_NK, [0, 2, 1, 0, 2, 1]);
        assert_eq!(layer.kept_gates, [0.5, 0.5, 1.0, 0.0]);
        assert_eq!(layer.counts_E(3), [2, 2, 2]);
        assert_eq!(layer.sums.gates_K, [2.25, 0.75]);
        assert_eq!(layer.sums.gates_E, [1.25, 0.5, 1.25]);
        // Expert 0: 0.75 * 2 + 0.5 * 6; expert 1: 0.5 * 1 + 0 * 5; expert 2: 0.25 * 4 + 1 * 3.
        assert_eq!(layer.sums.weighted_norms_E, [4.5, 0.5, 4.0]);
        // Last chosen less best left out: 0.3 - 0.1, 0.4 - 0.1, 0 - 0.
        let margins: Vec<f64> = layer.sums.margins_N.iter().map(|&margin| f64::from(margin)).collect();
        [0.2, 0.3, 0.0].iter().zip(&margins).for_each(|(&expected, &margin)| close(margin, expected));
        close(layer.sums.entropy, 0.897_945_7 + 0.943_348_4);
    }
}
