//! `metrics.jsonl`: one object a line, for training steps and evaluations.

use super::load_of;
use crate::model::router::Routing;
use serde::{Deserialize, Serialize};
use std::sync::Arc;

/// One line. `loss` is the cross-entropy alone, in nats per token.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct Record {
    pub step: usize,
    /// Training tokens seen.
    pub tokens: u64,
    pub elapsed_s: f64,
    /// "train" (this step's batch) or "val" (the whole validation split).
    pub split: &'static str,
    pub loss: f64,
    pub bits_per_byte: f64,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ngram_bits_per_byte: Option<f64>,
    /// Share of the predicted tokens that do not tell which character they stand for, where there are any. Their
    /// characters cost 8 bits per byte in `bits_per_byte`, and nothing in `loss`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub unknown_share: Option<f64>,
    /// Averages over MoE layers; balance is 1.0 at best.
    pub balance_loss: f64,
    pub z_loss: f64,
    /// Before clipping.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub grad_norm: Option<f64>,
    pub lr: f64,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tokens_per_s: Option<f64>,
    /// Share of (token, expert) pairs of each expert, a row for every MoE layer.
    pub expert_load: Vec<Vec<f64>>,
    /// Mean entropy of the router's probabilities in nats, for every MoE layer.
    pub router_entropy: Vec<f64>,
    /// Share of (token, expert) pairs that found their expert full and were dropped, over all MoE layers; where experts
    /// have a capacity, that is in training.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub dropped_share: Option<f64>,
}

/// The fields of a line that reading a run back needs.
#[derive(Debug, Deserialize)]
pub struct LoggedTime {
    pub step: usize,
    pub elapsed_s: f64,
}

/// Routing of a step or an evaluation, averaged over its batches.
#[derive(Clone, Debug, Default)]
pub struct RoutingAverages {
    pub balance_loss: f64,
    pub z_loss: f64,
    pub expert_load: Vec<Vec<f64>>,
    pub router_entropy: Vec<f64>,
    /// Of all pairs.
    pub dropped_share: f64,
}

impl RoutingAverages {
    /// Adds one batch out of `batches` of equal size.
    pub fn add(&mut self, layers: &[Arc<Routing>], batches: usize) {
        self.add_weighted(layers, 1.0 / batches as f64);
    }

    /// Adds a batch that is `share` of the whole.
    pub fn add_weighted(&mut self, layers: &[Arc<Routing>], share: f64) {
        self.router_entropy.resize(layers.len(), 0.0);
        self.expert_load.resize(layers.len(), Vec::new());
        for (layer, routing) in layers.iter().enumerate() {
            self.balance_loss += share * f64::from(routing.balance_loss) / layers.len() as f64;
            self.z_loss += share * f64::from(routing.z_loss) / layers.len() as f64;
            let pairs = routing.experts_NK.len().max(1) * layers.len();
            self.dropped_share += share * routing.dropped as f64 / pairs as f64;
            self.router_entropy[layer] += share * routing.mean_entropy();
            self.expert_load[layer].resize(routing.num_experts, 0.0);
            for (sum, load) in self.expert_load[layer].iter_mut().zip(load_of(routing)) {
                *sum += share * load;
            }
        }
    }
}
