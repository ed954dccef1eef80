//! The router: which experts serve a token, and with what weight. This is the file to edit for a new idea about
//! routing; everything around it (dispatch, experts, logging, inspection) reads the [`Routing`] that it returns.
//!
//! In: scores of every expert for every token, computed in f32. Out: K experts per token, their gates, the full
//! probabilities and the two losses that keep the router healthy.
//!
//! - softmax top-k: Shazeer et al. 2017; Fedus et al. 2021 (Switch, K = 1); Jiang et al. 2024 (Mixtral).
//! - sigmoid scores with a bias on the choice alone: DeepSeek-V3 (2024), after Wang et al. 2024.

use super::operation::{Knockout, Removal};
use crate::config::{Balance, RouterConfig, ScoringFunc};
use crate::ops::{pool, rows_per_task, simd};

/// The decisions of one MoE layer for N tokens: what training, logging and inspection all read.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Routing {
    /// E
    pub num_experts: usize,
    /// Chosen experts of each token, best first.
    pub experts_NK: Vec<u32>,
    /// Their weights in the output; 0 for a pair that was dropped.
    pub gates_NK: Vec<f32>,
    /// Probabilities of all experts before the choice; rows sum to 1.
    pub probs_NE: Vec<f32>,
    /// E / (K N) sum_e count_e mean_prob_e: 1.0 at perfect balance (Fedus et al. 2021, eq. 4, for K >= 1).
    pub balance_loss: f32,
    /// Mean squared log-sum-exp of the scores (Zoph et al. 2022, eq. 5).
    pub z_loss: f32,
    /// (token, expert) pairs dropped because the expert was full.
    pub dropped: usize,
    /// Euclidean length of each pair's expert output, before the gate; filled when evaluating only.
    pub norms_NK: Vec<f32>,
}

impl Routing {
    /// K
    pub fn experts_per_token(&self) -> usize {
        self.experts_NK.len() * self.num_experts / self.probs_NE.len().max(1)
    }

    /// Mean entropy of the tokens' probabilities in nats.
    pub fn mean_entropy(&self) -> f64 {
        let surprise = |&p: &f32| if p > 0.0 { -f64::from(p) * f64::from(p).ln() } else { 0.0 };
        let tokens = self.probs_NE.len() / self.num_experts;
        self.probs_NE.iter().map(surprise).sum::<f64>() / tokens.max(1) as f64
    }

    /// How many tokens chose each expert, dropped ones included.
    pub fn counts_E(&self) -> Vec<usize> {
        let mut counts = vec![0; self.num_experts];
        for &expert in &self.experts_NK {
            counts[expert as usize] += 1;
        }
        counts
    }
}

/// The rule by which one layer routes.
#[derive(Clone, Debug)]
pub struct Router {
    pub config: RouterConfig,
    /// E and K.
    pub num_experts: usize,
    pub experts_per_token: usize,
}

impl Router {
    /// Chooses experts from `scores_NE`. `bias_E` is added for the choice, not for the gates. `capacity` is the
    /// largest number of tokens an expert takes, if there is one.
    pub fn decide(&self, scores_NE: &[f32], bias_E: Option<&[f32]>, capacity: Option<usize>) -> Routing {
        let (experts, k) = (self.num_experts, self.experts_per_token);
        let tokens = scores_NE.len() / experts;
        let mut probs_NE = scores_NE.to_vec();
        let (mut experts_NK, mut gates_NK) = (vec![0; tokens * k], vec![0.0; tokens * k]);
        let mut lse_N = vec![0.0; tokens];
        let chunk = rows_per_task(tokens);
        let outputs = experts_NK.chunks_mut(chunk * k).zip(gates_NK.chunks_mut(chunk * k));
        let rows = probs_NE.chunks_mut(chunk * experts).zip(lse_N.chunks_mut(chunk));
        pool::run(rows.zip(outputs).collect(), |((probs, lse), (chosen, gates))| {
            let choices = chosen.chunks_exact_mut(k).zip(gates.chunks_exact_mut(k));
            simd::vectorized!(|| {
                for ((probs_E, lse), (chosen_K, gates_K)) in probs.chunks_exact_mut(experts).zip(lse).zip(choices) {
                    *lse = self.decide_token(probs_E, bias_E, chosen_K, gates_K);
                }
            });
        });
        let mut routing = Routing { num_experts: experts, experts_NK, gates_NK, probs_NE, ..Routing::default() };
        routing.balance_loss = balance_loss(&routing);
        routing.z_loss = (lse_N.iter().map(|&lse| f64::from(lse).powi(2)).sum::<f64>() / tokens as f64) as f32;
        if let Some(capacity) = capacity {
            drop_overflow(&mut routing, capacity);
        }
        routing
    }

    /// [`Self::decide`] for a few tokens, on this thread and into memory that `routing` has already; leaves out the
    /// losses, which matter in training alone.
    pub fn decide_again(&self, scores_NE: &[f32], bias_E: Option<&[f32]>, routing: &mut Routing) {
        let (experts, k) = (self.num_experts, self.experts_per_token);
        let pairs = scores_NE.len() / experts * k;
        routing.num_experts = experts;
        routing.probs_NE.clear();
        routing.probs_NE.extend_from_slice(scores_NE);
        routing.experts_NK.resize(pairs, 0);
        routing.gates_NK.resize(pairs, 0.0);
        let choices = routing.experts_NK.chunks_exact_mut(k).zip(routing.gates_NK.chunks_exact_mut(k));
        let rows = routing.probs_NE.chunks_exact_mut(experts).zip(choices);
        simd::vectorized!(|| {
            for (probs_E, (chosen_K, gates_K)) in rows {
                self.decide_token(probs_E, bias_E, chosen_K, gates_K);
            }
        });
    }

    /// As [`Self::decide`] without capacity, with one expert missing. With no more than K experts there is no other to
    /// choose, and the token has one less.
    pub fn decide_without(&self, knockout: Knockout, mut scores_NE: Vec<f32>, bias_E: Option<&[f32]>) -> Routing {
        let (experts, missing) = (self.num_experts, knockout.expert);
        let mut bias_E = bias_E.map_or_else(|| vec![0.0; experts], <[f32]>::to_vec);
        if knockout.removal == Removal::Renormalised {
            bias_E[missing] = f32::NEG_INFINITY;
            scores_NE.iter_mut().skip(missing).step_by(experts).for_each(|score| *score = f32::NEG_INFINITY);
        }
        let mut routing = self.decide(&scores_NE, Some(&bias_E), None);
        for (_, gate) in
            routing.experts_NK.iter().zip(&mut routing.gates_NK).filter(|&(&expert, _)| expert as usize == missing)
        {
            *gate = 0.0;
            routing.dropped += 1;
        }
        routing
    }

    /// One token: turns its scores into probabilities, fills in its choice, and returns the scores' log-sum-exp.
    #[inline(always)]
    fn decide_token(
        &self,
        scores_E: &mut [f32],
        bias_E: Option<&[f32]>,
        chosen_K: &mut [u32],
        gates_K: &mut [f32],
    ) -> f32 {
        let raw_E = scores_E;
        let lse = match self.config.scoring_func {
            ScoringFunc::Softmax => simd::softmax(raw_E),
            ScoringFunc::Sigmoid => {
                let largest = simd::max(raw_E);
                let total: f32 = raw_E.iter().map(|&z| simd::exp(z - largest)).sum();
                raw_E.iter_mut().for_each(|z| *z = simd::sigmoid(*z));
                largest + total.ln()
            }
        };
        for (slot, gate) in gates_K.iter_mut().enumerate() {
            let expert = best_of(raw_E, bias_E, &chosen_K[..slot]);
            chosen_K[slot] = expert;
            *gate = raw_E[expert as usize];
        }
        let scaling = self.config.routed_scaling_factor as f32;
        let total: f32 = if self.config.norm_topk_prob { gates_K.iter().sum() } else { 1.0 };
        gates_K.iter_mut().for_each(|gate| *gate *= scaling / total);
        if self.config.scoring_func == ScoringFunc::Sigmoid {
            let total: f32 = raw_E.iter().sum();
            raw_E.iter_mut().for_each(|score| *score /= total);
        }
        lse
    }

    /// The gradient of the scores, given that of the gates: from the language loss through the gates, and from the
    /// balance loss and the z-loss, each times its coefficient and `loss_weight`. `scores_NE` and `bias_E` are those
    /// of [`Self::decide`].
    pub fn backward(&self, scores_NE: &[f32], routing: &Routing, dgates_NK: &[f32], loss_weight: f32) -> Vec<f32> {
        let (experts, k) = (self.num_experts, self.experts_per_token);
        let tokens = scores_NE.len() / experts;
        // d(balance loss) / d(probability), the same for every token.
        let balance_coef = if self.config.balance == Balance::AuxLoss { self.config.router_aux_loss_coef } else { 0.0 };
        let per_count = balance_coef * f64::from(loss_weight) * experts as f64 / (k as f64 * (tokens as f64).powi(2));
        let dbalance_E: Vec<f32> = routing.counts_E().iter().map(|&count| (per_count * count as f64) as f32).collect();
        let dz = (self.config.router_z_loss_coef * f64::from(loss_weight) * 2.0 / tokens as f64) as f32;
        let mut dscores_NE = vec![0.0; scores_NE.len()];
        let chunk = rows_per_task(tokens);
        let tasks = dscores_NE.chunks_mut(chunk * experts).enumerate().collect();
        pool::run(tasks, |(task, dscores): (usize, &mut [f32])| {
            let mut scratch_E = vec![0.0; experts];
            simd::vectorized!(|| {
                for (offset, dscores_E) in dscores.chunks_exact_mut(experts).enumerate() {
                    let token = task * chunk + offset;
                    let scores_E = &scores_NE[token * experts..][..experts];
                    let probs_E = &routing.probs_NE[token * experts..][..experts];
                    let chosen = (&routing.experts_NK[token * k..][..k], &dgates_NK[token * k..][..k]);
                    self.backward_token(scores_E, probs_E, chosen, &dbalance_E, &mut scratch_E, dscores_E);
                    if dz > 0.0 {
                        scratch_E.copy_from_slice(scores_E);
                        let lse = simd::softmax(&mut scratch_E);
                        simd::add_scaled(dscores_E, dz * lse, &scratch_E);
                    }
                }
            });
        });
        dscores_NE
    }

    /// One token, without the z-loss. `draw_E` is scratch: the gradient of what the gates were made of.
    #[inline(always)]
    fn backward_token(
        &self,
        scores_E: &[f32],
        probs_E: &[f32],
        (chosen_K, dgates_K): (&[u32], &[f32]),
        dbalance_E: &[f32],
        draw_E: &mut [f32],
        dscores_E: &mut [f32],
    ) {
        let sigmoid = self.config.scoring_func == ScoringFunc::Sigmoid;
        // What the gates were made of: probabilities, or sigmoids not yet normalised.
        let raw = |expert: usize| if sigmoid { simd::sigmoid(scores_E[expert]) } else { probs_E[expert] };
        let scaling = self.config.routed_scaling_factor as f32;
        let (mut total, mut mean) = (1.0, 0.0);
        if self.config.norm_topk_prob {
            total = chosen_K.iter().map(|&expert| raw(expert as usize)).sum::<f32>();
            let weighted = chosen_K.iter().zip(dgates_K).map(|(&expert, &dgate)| raw(expert as usize) * dgate);
            mean = weighted.sum::<f32>() / total;
        }
        let experts = scores_E.len();
        draw_E.fill(0.0);
        for (&expert, &dgate) in chosen_K.iter().zip(dgates_K) {
            draw_E[expert as usize] = scaling * (dgate - mean) / total;
        }
        if sigmoid {
            // The balance loss reaches them through the normalisation of the probabilities.
            let total: f32 = (0..experts).map(raw).sum();
            let mean = simd::dot(dbalance_E, probs_E);
            for expert in 0..experts {
                let s = raw(expert);
                dscores_E[expert] = (draw_E[expert] + (dbalance_E[expert] - mean) / total) * s * (1.0 - s);
            }
        } else {
            simd::add(draw_E, dbalance_E);
            let mean = simd::dot(draw_E, probs_E);
            for expert in 0..experts {
                dscores_E[expert] = probs_E[expert] * (draw_E[expert] - mean);
            }
        }
    }
}

/// The expert with the largest score plus bias that is not taken yet; ties go to the lowest number.
fn best_of(scores_E: &[f32], bias_E: Option<&[f32]>, taken: &[u32]) -> u32 {
    let mut best: Option<(usize, f32)> = None;
    for (expert, &score) in scores_E.iter().enumerate() {
        let score = score + bias_E.map_or(0.0, |bias| bias[expert]);
        // The first free expert stands until a better one comes, also when scores are NaN.
        if !taken.contains(&(expert as u32)) && best.is_none_or(|(_, value)| score > value) {
            best = Some((expert, score));
        }
    }
    best.map_or(0, |(expert, _)| expert as u32)
}

fn balance_loss(routing: &Routing) -> f32 {
    let experts = routing.num_experts;
    let mut mass_E = vec![0.0f64; experts];
    for probs_E in routing.probs_NE.chunks_exact(experts) {
        for (mass, &prob) in mass_E.iter_mut().zip(probs_E) {
            *mass += f64::from(prob);
        }
    }
    // Divided by the mass there is, not by N: softmax rows sum to 1 only up to rounding.
    let agreement: f64 = routing.counts_E().iter().zip(&mass_E).map(|(&count, mass)| count as f64 * mass).sum();
    let total = routing.experts_NK.len() as f64 * mass_E.iter().sum::<f64>();
    (agreement * experts as f64 / total) as f32
}

/// Sets the gates of pairs beyond an expert's capacity to 0, in the order of the tokens.
fn drop_overflow(routing: &mut Routing, capacity: usize) {
    let mut counts = vec![0; routing.num_experts];
    for (&expert, gate) in routing.experts_NK.iter().zip(&mut routing.gates_NK) {
        counts[expert as usize] += 1;
        if counts[expert as usize] > capacity {
            *gate = 0.0;
            routing.dropped += 1;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config() -> RouterConfig {
        crate::config::Config::default().router
    }

    fn router(num_experts: usize, experts_per_token: usize, config: RouterConfig) -> Router {
        Router { config, num_experts, experts_per_token }
    }

    #[test]
    fn uniform_scores_tie_to_the_lowest_experts_with_equal_gates() {
        let routing = router(4, 2, config()).decide(&[0.0; 4], None, None);
        assert_eq!(routing.experts_NK, [0, 1]);
        assert_eq!(routing.gates_NK, [0.5, 0.5]);
        assert_eq!(routing.probs_NE, [0.25; 4]);
        assert!((routing.z_loss - 4f32.ln().powi(2)).abs() < 1e-6);
    }

    #[test]
    fn deciding_into_old_memory_gives_the_same_decisions() {
        let scores: Vec<f32> = (0..24).map(|i| (i as f32 * 1.7).sin()).collect();
        let router = router(4, 2, config());
        let mut again = router.decide(&[1.0; 80], None, None);
        router.decide_again(&scores, None, &mut again);
        let fresh = router.decide(&scores, None, None);
        assert_eq!((again.experts_NK, again.gates_NK), (fresh.experts_NK, fresh.gates_NK));
        assert_eq!(again.probs_NE, fresh.probs_NE);
    }

    #[test]
    fn balance_loss_is_exactly_one_at_perfect_balance() {
        // Each of four tokens prefers another expert by the same margin.
        let mut scores = vec![0.0; 16];
        (0..4).for_each(|token| scores[token * 4 + token] = 2.0);
        assert_eq!(
            router(4, 1, RouterConfig { norm_topk_prob: false, ..config() }).decide(&scores, None, None).balance_loss,
            1.0
        );
    }

    #[test]
    fn balance_loss_of_a_collapsed_router_is_experts_over_k() {
        // All tokens send all probability to experts 0 and 1, half each: 4 / (2 * 3) * (3 * 0.5 + 3 * 0.5) = 2.
        let scores = [100.0, 100.0, 0.0, 0.0].repeat(3);
        let routing = router(4, 2, config()).decide(&scores, None, None);
        assert_eq!(routing.counts_E(), [3, 3, 0, 0]);
        assert!((routing.balance_loss - 2.0).abs() < 1e-6);
    }

    #[test]
    fn gates_are_probabilities_and_renormalised_only_on_request() {
        let scores = [1f32.ln(), 2f32.ln(), 4f32.ln(), 1f32.ln()];
        let plain = router(4, 2, RouterConfig { norm_topk_prob: false, ..config() }).decide(&scores, None, None);
        assert_eq!(plain.experts_NK, [2, 1]);
        assert!((plain.gates_NK[0] - 0.5).abs() < 1e-6 && (plain.gates_NK[1] - 0.25).abs() < 1e-6);
        let normalised = router(4, 2, config()).decide(&scores, None, None);
        assert!((normalised.gates_NK[0] - 2.0 / 3.0).abs() < 1e-6);
    }

    #[test]
    fn the_choice_bias_changes_who_is_chosen_but_not_the_gate() {
        let sigmoid = RouterConfig {
            scoring_func: ScoringFunc::Sigmoid,
            balance: Balance::Bias,
            norm_topk_prob: false,
            routed_scaling_factor: 2.0,
            ..config()
        };
        let routing = router(3, 1, sigmoid).decide(&[2.0, 0.0, -1.0], Some(&[0.0, 0.5, 0.0]), None);
        assert_eq!(routing.experts_NK, [1]);
        assert!((routing.gates_NK[0] - 1.0).abs() < 1e-6, "2 * sigmoid(0)");
        assert!((routing.probs_NE.iter().sum::<f32>() - 1.0).abs() < 1e-6);
    }

    #[test]
    fn without_an_expert_the_rest_share_its_probability_or_its_gate_is_lost() {
        let scores = [1f32.ln(), 2f32.ln(), 4f32.ln(), 1f32.ln()];
        let knockout = |removal| Knockout { layer: 0, expert: 2, removal };
        for normalised in [false, true] {
            let router = router(4, 2, RouterConfig { norm_topk_prob: normalised, ..config() });
            // Probabilities of the rest: 1/4, 1/2, 1/4.
            let routing = router.decide_without(knockout(Removal::Renormalised), scores.to_vec(), None);
            assert_eq!(routing.experts_NK, [1, 0]);
            let total = if normalised { 0.75 } else { 1.0 };
            assert!((routing.gates_NK[0] - 0.5 / total).abs() < 1e-6, "{:?}", routing.gates_NK);
            assert!((routing.gates_NK[1] - 0.25 / total).abs() < 1e-6, "{:?}", routing.gates_NK);
            assert_eq!(routing.dropped, 0);

            let routing = router.decide_without(knockout(Removal::Zeroed), scores.to_vec(), None);
            assert_eq!(routing.experts_NK, [2, 1]);
            let expected = if normalised { 1.0 / 3.0 } else { 0.25 };
            assert_eq!((routing.gates_NK[0], routing.dropped), (0.0, 1));
            assert!((routing.gates_NK[1] - expected).abs() < 1e-6, "{:?}", routing.gates_NK);
        }
        // A bias however large does not bring it back; where all must serve, one is missing.
        let sigmoid = RouterConfig { scoring_func: ScoringFunc::Sigmoid, balance: Balance::Bias, ..config() };
        let biased = router(3, 2, sigmoid.clone()).decide_without(
            Knockout { layer: 0, expert: 2, removal: Removal::Renormalised },
            vec![0.0, 1.0, 2.0],
            Some(&[0.0, 0.0, 9.0]),
        );
        assert_eq!(biased.experts_NK, [1, 0]);
        let all = router(3, 3, sigmoid).decide_without(knockout(Removal::Renormalised), vec![0.0, 1.0, 2.0], None);
        assert_eq!((all.gates_NK[2], all.dropped), (0.0, 1));
        assert!((all.gates_NK.iter().sum::<f32>() - 1.0).abs() < 1e-6);
    }

    #[test]
    fn sigmoid_scores_tie_collapse_and_balance_as_softmax_ones_do() {
        let sigmoid = RouterConfig { scoring_func: ScoringFunc::Sigmoid, ..config() };
        let uniform = router(4, 2, sigmoid.clone()).decide(&[0.0; 4], None, None);
        assert_eq!((&uniform.experts_NK[..], &uniform.gates_NK[..]), (&[0, 1][..], &[0.5, 0.5][..]));
        assert_eq!(uniform.probs_NE, [0.25; 4], "sigmoid(0) = 1/2 each, normalised");
        // 20 and -20: sigmoids of 1 and 0, so half of all probability lies on each of the two chosen experts.
        let collapsed = router(4, 2, sigmoid).decide(&[20.0, 20.0, -20.0, -20.0].repeat(3), None, None);
        assert_eq!(collapsed.counts_E(), [3, 3, 0, 0]);
        assert!((collapsed.balance_loss - 2.0).abs() < 1e-6);
    }

    #[test]
    fn capacity_drops_the_latest_tokens_of_a_full_expert() {
        let routing = router(2, 1, RouterConfig { norm_topk_prob: false, ..config() }).decide(
            &[1.0, 0.0].repeat(3),
            None,
            Some(2),
        );
        assert_eq!(routing.dropped, 1);
        assert!(routing.gates_NK[0] > 0.0 && routing.gates_NK[1] > 0.0 && routing.gates_NK[2] == 0.0);
    }

    #[test]
    fn nan_scores_still_choose_k_different_experts() {
        let routing = router(4, 3, config()).decide(&[f32::NAN; 4], None, None);
        assert_eq!(routing.experts_NK, [0, 1, 2]);
    }
}
