//! Importance: what is lost without an expert.
//!
//! - knockout: the change in validation cross-entropy, in nats per token over the whole text, when one expert does not
//!   serve. Two variants. Renormalised: the router chooses K among the others, its probabilities renormalised over them,
//!   as if the expert had been pruned. Zeroed: the choices stay, and the expert's output is zero. Also by domain. The
//!   standard error is that of the mean of the paired differences, taken over windows of context: within a window they are
//!   not independent.
//! - REAP (Lasby et al. 2025, eq. 9): the mean, over the tokens that an expert serves, of its gate times the Euclidean
//!   length of its output. It needs no knockout.
//! - agreement: Spearman's rank correlation of these three over the experts of a layer.
//!
//! A knockout in layer l changes nothing before l's feed-forward: the residual stream there is kept from one pass with
//! all experts, and only what follows runs again, for each expert.

use super::information::rank_correlation;
use super::trace::{LayerTrace, ratio};
use crate::dataset::Tokens;
use crate::model::operation::{Knockout, Mode, Pass, Removal};
use crate::model::transformer::{Station, Transformer};
use crate::train::evaluate::passes;
use anyhow::Result;
use serde::Serialize;
use std::ops::Range;

#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Importance {
    /// None for experts without tokens.
    pub reap: Vec<Option<f64>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub knockout: Option<Knockouts>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub agreement: Option<Agreement>,
}

/// Of the experts of one layer.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Knockouts {
    pub renormalised: Losses,
    pub zeroed: Losses,
}

/// Change in cross-entropy in nats per token; positive where the model needs the expert.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct Losses {
    pub delta: Vec<f64>,
    pub standard_error: Vec<f64>,
    /// A row for each domain; none where it has no tokens.
    pub by_domain: Vec<Vec<Option<f64>>>,
}

#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Agreement {
    pub reap_renormalised: Option<f64>,
    pub reap_zeroed: Option<f64>,
    pub renormalised_zeroed: Option<f64>,
}

/// For one layer, with the knockouts if there were any.
pub fn importance(layer: &LayerTrace, counts_E: &[u64], knockout: Option<Knockouts>) -> Importance {
    let sums = layer.sums.weighted_norms_E.iter().zip(counts_E);
    let reap: Vec<Option<f64>> = sums.map(|(&sum, &count)| (count > 0).then(|| sum / count as f64)).collect();
    let agreement = knockout.as_ref().map(|Knockouts { renormalised, zeroed }| {
        // A dead expert is the least important by any measure.
        let reap: Vec<f64> = reap.iter().map(|reap| reap.unwrap_or(0.0)).collect();
        Agreement {
            reap_renormalised: rank_correlation(&reap, &renormalised.delta),
            reap_zeroed: rank_correlation(&reap, &zeroed.delta),
            renormalised_zeroed: rank_correlation(&renormalised.delta, &zeroed.delta),
        }
    });
    Importance { reap, knockout, agreement }
}

/// Sums of differences, for one layer, one removal and one expert.
#[derive(Clone, Default)]
struct Differences {
    by_domain: Vec<f64>,
    windows: u64,
    /// Of the windows' sums, and of their squares.
    sum: f64,
    squares: f64,
}

impl Differences {
    fn add(&mut self, with_N: &[f32], without_N: &[f32], domains_N: &[u16], time: usize) {
        for ((with, without), domains) in with_N.chunks(time).zip(without_N.chunks(time)).zip(domains_N.chunks(time)) {
            let mut window = 0.0;
            for ((&with, &without), &domain) in with.iter().zip(without).zip(domains) {
                let difference = f64::from(without) - f64::from(with);
                self.by_domain[usize::from(domain)] += difference;
                window += difference;
            }
            self.windows += 1;
            self.sum += window;
            self.squares += window * window;
        }
    }

    /// The standard error of `sum / tokens`.
    fn standard_error(&self, tokens: usize) -> f64 {
        let windows = self.windows as f64;
        let variance = (self.squares - self.sum * self.sum / windows).max(0.0) / (windows - 1.0).max(1.0);
        (windows * variance).sqrt() / tokens as f64
    }
}

const REMOVALS: [Removal; 2] = [Removal::Renormalised, Removal::Zeroed];

/// About how many passes over a text [`knock_out`] takes, as parts of a layer's depth: two for each expert, from its layer
/// on.
pub fn knockout_passes(model: &Transformer) -> f64 {
    let depth = model.model.num_hidden_layers.max(1) as f64;
    let of = |layer: usize| (REMOVALS.len() * model.model.num_experts) as f64 * (depth - layer as f64) / depth;
    1.0 + model.moe_layers().into_iter().map(of).sum::<f64>()
}

/// Takes out every expert of every MoE layer in turn, in windows of `time` tokens. `losses_N` are those with all experts, `domains_N` the domain of
/// each position. `progress` hears how many of the text's tokens are done.
pub fn knock_out(
    model: &Transformer,
    tokens: &Tokens,
    time: usize,
    losses_N: &[f32],
    domains_N: &[u16],
    mut progress: impl FnMut(usize),
) -> Result<Vec<Knockouts>> {
    let layers = model.moe_layers();
    let experts = model.model.num_experts;
    let nothing = Differences { by_domain: vec![0.0; tokens.domains.len()], ..Differences::default() };
    let mut differences = vec![nothing; layers.len() * REMOVALS.len() * experts];
    for (positions, pass) in passes(tokens, time) {
        let ids_N = &tokens.ids[positions.clone()];
        let targets_N = &tokens.ids[positions.start + 1..positions.end + 1];
        // The residual stream before each layer's feed-forward.
        let mut streams = Vec::new();
        model.sub_layers(Station::Embedding, ids_N, model.embed(ids_N, pass)?, pass, |station, x_ND| {
            if matches!(station, Station::Attention(_)) {
                streams.push(x_ND.clone());
            }
            Ok(())
        })?;
        let mut slots = differences.iter_mut();
        for &layer in &layers {
            let start = Station::Attention(layer);
            for removal in REMOVALS {
                for expert in 0..experts {
                    let mode = Mode::Knockout(Knockout { layer, expert, removal });
                    let pass = Pass { mode, ..pass };
                    let passage = model.sub_layers(start, ids_N, streams[layer].clone(), pass, |_, _| Ok(()))?;
                    let loss = model.head.loss(&model.parameters, &passage.x_ND, targets_N, pass)?;
                    let Range { start, end } = positions;
                    let slot = slots.next().expect("a slot for each layer, removal and expert");
                    slot.add(&losses_N[start..end], &loss.losses_N, &domains_N[start..end], pass.time);
                }
            }
        }
        progress(positions.end);
    }
    let mut domain_tokens = vec![0u64; tokens.domains.len()];
    domains_N.iter().for_each(|&domain| domain_tokens[usize::from(domain)] += 1);
    let mut of_removal = differences.chunks_exact(experts).map(|of_experts| losses(of_experts, &domain_tokens));
    let mut next = || of_removal.next().expect("losses for each layer and removal");
    Ok(layers.iter().map(|_| Knockouts { renormalised: next(), zeroed: next() }).collect())
}

fn losses(of_experts: &[Differences], domain_tokens: &[u64]) -> Losses {
    let tokens = domain_tokens.iter().sum::<u64>() as usize;
    let of_domain = |(domain, &count): (usize, &u64)| {
        let delta = |of: &Differences| (count > 0).then(|| of.by_domain[domain] / count as f64);
        of_experts.iter().map(delta).collect()
    };
    Losses {
        delta: of_experts.iter().map(|of| of.sum / tokens as f64).collect(),
        standard_error: of_experts.iter().map(|of| of.standard_error(tokens)).collect(),
        by_domain: domain_tokens.iter().enumerate().map(of_domain).collect(),
    }
}

/// For each expert the mean loss of the positions that it serves, in nats; none for dead ones.
pub fn loss_served(layer: &LayerTrace, losses_N: &[f32], (E, K): (usize, usize)) -> Vec<Option<f64>> {
    let (mut sums, mut counts) = (vec![0.0; E], vec![0u64; E]);
    for (&loss, experts_K) in losses_N.iter().zip(layer.experts_NK.chunks_exact(K)) {
        for &expert in experts_K {
            sums[usize::from(expert)] += f64::from(loss);
            counts[usize::from(expert)] += 1;
        }
    }
    sums.iter().zip(&counts).map(|(sum, &count)| (count > 0).then(|| sum / count as f64)).collect()
}

/// For each domain its tokens and their mean loss.
pub fn domain_losses(losses_N: &[f32], domains_N: &[u16], domains: usize) -> Vec<(u64, f64)> {
    let mut totals = vec![(0u64, 0.0f64); domains];
    for (&loss, &domain) in losses_N.iter().zip(domains_N) {
        let (tokens, sum) = &mut totals[usize::from(domain)];
        *tokens += 1;
        *sum += f64::from(loss);
    }
    totals.iter().map(|&(tokens, sum)| (tokens, sum * ratio(1, tokens))).collect()
}

#[cfg(test)]
mod tests {
    use super::super::trace::tests::{close, layer};
    use super::super::trace::{Sums, Trace};
    use super::*;
    use crate::config::Config;

    #[test]
    fn reap_is_the_mean_of_gate_times_norm_over_the_experts_own_tokens() {
        let mut layer = layer(&[0, 2, 0, 2]);
        layer.sums = Sums { weighted_norms_E: vec![3.0, 0.0, 1.0], ..Sums::default() };
        assert_eq!(importance(&layer, &[2, 0, 2], None).reap, [Some(1.5), None, Some(0.5)]);
    }

    #[test]
    fn differences_by_domain_and_their_error_over_windows_by_hand() {
        let mut differences = Differences { by_domain: vec![0.0; 2], ..Differences::default() };
        differences.add(&[1.0, 2.0, 3.0, 4.0], &[2.0, 2.0, 3.0, 7.0], &[0, 0, 1, 1], 2);
        let losses = losses(&[differences], &[2, 2]);
        // Windows gain 1 and 3 nats: their mean is 2, their variance 2, that of their sum 4.
        close(losses.delta[0], 1.0);
        close(losses.standard_error[0], 0.5);
        assert_eq!(losses.by_domain, [[Some(0.5)], [Some(1.5)]]);
    }

    #[test]
    fn losses_are_those_of_the_positions_that_an_expert_or_domain_has() {
        let served = loss_served(&layer(&[0, 1, 0, 2]), &[1.0, 3.0], (4, 2));
        assert_eq!(served, [Some(2.0), Some(1.0), Some(3.0), None]);
        assert_eq!(domain_losses(&[1.0, 3.0, 5.0], &[0, 0, 2], 3), [(2, 2.0), (0, 0.0), (1, 5.0)]);
    }

    fn tiny(experts_per_token: usize) -> Transformer {
        let mut config = Config::default();
        config.model.hidden_size = 16;
        config.model.num_hidden_layers = 3;
        config.model.num_attention_heads = 2;
        config.model.num_key_value_heads = 0;
        config.model.head_dim = 0;
        config.model.num_experts = 3;
        config.model.num_experts_per_tok = experts_per_token;
        config.model.moe_intermediate_size = 8;
        config.model.max_position_embeddings = 8;
        config.model.first_k_dense_replace = 1;
        config.model.intermediate_size = 8;
        config.model.initializer_range = 0.3;
        config.model.resolve();
        Transformer::new(&config.model, &config.router, 20, 1).unwrap()
    }

    #[test]
    fn a_window_may_lose_the_only_expert_of_all_its_tokens() {
        // One input, one expert for it: zeroed, nobody serves anything.
        let model = tiny(1);
        let tokens = Tokens { domains: vec!["a".into()], texts: vec![(0..2, 0)], ids: vec![3, 4], ..Tokens::default() };
        let trace = Trace::record(&model, &tokens, 8, &[], |_| Ok(())).unwrap();
        let knockouts = knock_out(&model, &tokens, 8, &trace.losses_N, &[0], |_| ()).unwrap();
        for (layer, knockouts) in trace.layers.iter().zip(&knockouts) {
            let only = usize::from(layer.experts_NK[0]);
            let delta = &knockouts.zeroed.delta;
            assert!((0..3).all(|expert| (delta[expert] != 0.0) == (expert == only)), "{only}: {delta:?}");
        }
    }

    /// The dumb way: for every knockout a full pass with the expert's weights at zero.
    #[test]
    fn a_zeroed_expert_costs_what_the_model_without_its_weights_does() {
        let model = tiny(2);
        let ids: Vec<u32> = (0..30u32).map(|n| n * 7 % 20).collect();
        let domains = vec!["a".into(), "b".into()];
        let tokens = Tokens { domains, texts: vec![(0..10, 0), (10..30, 1)], ids, ..Tokens::default() };
        let domains_N: Vec<u16> = (0..29).map(|position| u16::from(position >= 10)).collect();
        let trace = Trace::record(&model, &tokens, 8, &[], |_| Ok(())).unwrap();
        let knockouts = knock_out(&model, &tokens, 8, &trace.losses_N, &domains_N, |_| ()).unwrap();
        assert_eq!(knockouts.len(), 2);
        for (moe_layer, knockouts) in knockouts.iter().enumerate() {
            let Knockouts { renormalised, zeroed } = knockouts;
            let routed = model.layers[moe_layer + 1].feed_forward.routed.as_ref().unwrap();
            for expert in 0..3 {
                let down = routed.experts[expert].down.clone();
                let kept = model.parameters.values()[down.clone()].to_vec();
                model.parameters.values_mut()[down.clone()].fill(0.0);
                let without = Trace::record(&model, &tokens, 8, &[], |_| Ok(())).unwrap();
                model.parameters.values_mut()[down].copy_from_slice(&kept);
                close(zeroed.delta[expert], without.loss() - trace.loss());
                let in_b = |trace: &Trace| trace.losses_N[10..].iter().map(|&loss| f64::from(loss)).sum::<f64>() / 19.0;
                close(zeroed.by_domain[1][expert].unwrap(), in_b(&without) - in_b(&trace));
            }
            let differ = zeroed.delta.iter().zip(&renormalised.delta).any(|(a, b)| (a - b).abs() > 1e-4);
            assert!(differ, "the two removals are not the same: {knockouts:?}");
            assert!(renormalised.delta.iter().any(|delta| delta.abs() > 1e-4));
        }
    }
}
