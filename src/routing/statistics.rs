//! Routing statistics of a text: how evenly the experts are used, how sure the router is, and what each expert
//! specialises in. Counts go in batch by batch ([`Statistics::add`]), a [`Summary`] comes out.
//!
//! Notation: N tokens, E experts, K of them chosen for each token, n_e the tokens that expert e serves, p_e = n_e /
//! (N K) its share of the load. A pair that was dropped for capacity counts: these are statistics of the choice.

use super::Routing;
use serde::Serialize;
use std::sync::Arc;

/// Tokens listed for each expert.
const TOP_TOKENS: usize = 10;

/// Counts, accumulated over batches.
#[derive(Clone, Debug)]
pub struct Statistics {
    num_experts: usize,
    experts_per_token: usize,
    domains: Vec<String>,
    /// Tokens of each domain.
    domain_tokens: Vec<u64>,
    /// Occurrences of each vocabulary entry.
    occurrences_V: Vec<u64>,
    layers: Vec<LayerCounts>,
}

/// Tokens that reach each expert, divided by domain and by vocabulary entry.
#[derive(Clone, Debug)]
struct LayerCounts {
    /// One row of E for each domain.
    by_domain: Vec<u64>,
    by_token_VE: Vec<u64>,
    top1_gate_sum: f64,
    entropy_sum: f64,
}

/// What [`Statistics`] has to say. All numbers are 0 before any token was added.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Summary {
    pub tokens: u64,
    pub num_experts: usize,
    pub experts_per_token: usize,
    pub domains: Vec<DomainTokens>,
    /// Occurrences that a vocabulary entry needs to appear in `top_tokens`: five, and one in ten thousand tokens. Rarer
    /// ones reach the highest lift by chance.
    pub min_occurrences: u64,
    pub layers: Vec<LayerSummary>,
}

#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct DomainTokens {
    pub name: String,
    pub tokens: u64,
}

/// One MoE layer.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct LayerSummary {
    /// Index of the transformer layer.
    pub layer: usize,
    /// p_e of each expert; they sum to 1.
    pub expert_load: Vec<f64>,
    /// max_e p_e * E: 1 is perfect balance, E / K the worst.
    pub max_over_uniform: f64,
    /// Standard deviation of the p_e (over the population of E) divided by their mean: 0 is perfect balance. The
    /// square root of the importance loss of Shazeer 2017 (arXiv 1701.06538, equation 7), taken of loads.
    pub coefficient_of_variation: f64,
    /// -sum_e p_e ln p_e / ln E: 1 is perfect balance (and defined so for E = 1).
    pub load_entropy: f64,
    /// Experts that no token reached.
    pub dead_experts: Vec<usize>,
    /// Mean weight of the best of a token's K experts, as applied to its output.
    pub mean_top1_gate: f64,
    /// Mean over tokens of the entropy of the router's probabilities, in nats: 0 when it is always sure, ln E when it
    /// never has a preference.
    pub router_entropy: f64,
    /// For each domain the share of its tokens that reach each expert: "domain specialization" of OLMoE (Muennighoff
    /// 2024, arXiv 2409.02060). Rows sum to K; without specialisation each is K times `expert_load`, K / E if balanced.
    pub domain_share: Vec<Vec<f64>>,
    /// For each expert the ten tokens that are most over-represented in it, best first; of equal lift the more frequent
    /// first, then the lower id. Tokens with a lift of 1 or less are left out.
    pub top_tokens: Vec<Vec<TokenLift>>,
}

/// How much a token prefers an expert.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct TokenLift {
    pub id: u32,
    pub text: String,
    /// Occurrences of the token, and how many of them reached the expert.
    pub occurrences: u64,
    pub served: u64,
    /// P(expert | token) / P(expert): `served / occurrences`, which is the "vocabulary specialization" of OLMoE, over
    /// the share n_e / N of all tokens that reach the expert. From 0 to N / n_e.
    pub lift: f64,
}

impl Statistics {
    /// For a model with `num_layers` MoE layers; `domains` are the labels that [`Statistics::add`] refers to by index.
    pub fn new(
        num_layers: usize,
        num_experts: usize,
        experts_per_token: usize,
        vocab_size: usize,
        domains: Vec<String>,
    ) -> Self {
        let layer = LayerCounts {
            by_domain: vec![0; domains.len() * num_experts],
            by_token_VE: vec![0; vocab_size * num_experts],
            top1_gate_sum: 0.0,
            entropy_sum: 0.0,
        };
        Self {
            num_experts,
            experts_per_token,
            domain_tokens: vec![0; domains.len()],
            domains,
            occurrences_V: vec![0; vocab_size],
            layers: vec![layer; num_layers],
        }
    }

    /// Counts N tokens of one domain: the model's input ids and what each MoE layer decided at their positions.
    ///
    /// # Panics
    /// If ids, domain or layers do not fit what [`Statistics::new`] was given.
    pub fn add(&mut self, ids_N: &[u32], domain: usize, layers: &[Arc<Routing>]) {
        assert_eq!(layers.len(), self.layers.len(), "MoE layers");
        let (E, K) = (self.num_experts, self.experts_per_token);
        self.domain_tokens[domain] += ids_N.len() as u64;
        for &id in ids_N {
            self.occurrences_V[id as usize] += 1;
        }
        for (counts, routing) in self.layers.iter_mut().zip(layers) {
            assert_eq!(routing.experts_NK.len(), ids_N.len() * K, "chosen experts");
            assert_eq!(routing.probs_NE.len(), ids_N.len() * E, "router probabilities");
            for (&id, experts_K) in ids_N.iter().zip(routing.experts_NK.chunks_exact(K)) {
                for &expert in experts_K {
                    counts.by_domain[domain * E + expert as usize] += 1;
                    counts.by_token_VE[id as usize * E + expert as usize] += 1;
                }
            }
            counts.top1_gate_sum += routing.gates_NK.iter().step_by(K).map(|&gate| f64::from(gate)).sum::<f64>();
            counts.entropy_sum += routing.mean_entropy() * ids_N.len() as f64;
        }
    }

    /// `layer_numbers` gives the transformer layer of each MoE layer, `token_text` the text of a token.
    pub fn summary(&self, layer_numbers: &[usize], token_text: impl Fn(u32) -> String) -> Summary {
        let tokens = self.tokens();
        let domains = self.domains.iter().zip(&self.domain_tokens);
        let layers = layer_numbers.iter().zip(&self.layers);
        Summary {
            tokens,
            num_experts: self.num_experts,
            experts_per_token: self.experts_per_token,
            domains: domains.map(|(name, &tokens)| DomainTokens { name: name.clone(), tokens }).collect(),
            min_occurrences: self.min_occurrences(),
            layers: layers.map(|(&layer, counts)| self.layer_summary(layer, counts, &token_text)).collect(),
        }
    }

    fn tokens(&self) -> u64 {
        self.domain_tokens.iter().sum()
    }

    fn min_occurrences(&self) -> u64 {
        self.tokens().div_ceil(10_000).max(5)
    }

    fn layer_summary(&self, layer: usize, counts: &LayerCounts, token_text: impl Fn(u32) -> String) -> LayerSummary {
        let E = self.num_experts;
        let served_E: Vec<u64> = (0..E).map(|e| counts.by_domain.iter().skip(e).step_by(E).sum()).collect();
        let pairs: u64 = served_E.iter().sum();
        let expert_load: Vec<f64> = served_E.iter().map(|&served| ratio(served, pairs)).collect();
        let variance = expert_load.iter().map(|load| (load - 1.0 / E as f64).powi(2)).sum::<f64>() / E as f64;
        let load_entropy = -expert_load.iter().filter(|&&load| load > 0.0).map(|load| load * load.ln()).sum::<f64>();
        let tokens = self.tokens().max(1) as f64;
        LayerSummary {
            layer,
            max_over_uniform: expert_load.iter().copied().fold(0.0, f64::max) * E as f64,
            coefficient_of_variation: if pairs > 0 { variance.sqrt() * E as f64 } else { 0.0 },
            load_entropy: if E > 1 { load_entropy / (E as f64).ln() } else { 1.0 },
            dead_experts: (0..E).filter(|&e| served_E[e] == 0).collect(),
            mean_top1_gate: counts.top1_gate_sum / tokens,
            router_entropy: counts.entropy_sum / tokens,
            domain_share: (counts.by_domain.chunks_exact(E).zip(&self.domain_tokens))
                .map(|(served_E, &tokens)| served_E.iter().map(|&served| ratio(served, tokens)).collect())
                .collect(),
            top_tokens: (0..E).map(|e| self.top_tokens(counts, e, served_E[e], &token_text)).collect(),
            expert_load,
        }
    }

    fn top_tokens(
        &self,
        counts: &LayerCounts,
        expert: usize,
        served_by_expert: u64,
        token_text: impl Fn(u32) -> String,
    ) -> Vec<TokenLift> {
        let baseline = ratio(served_by_expert, self.tokens());
        let min_occurrences = self.min_occurrences();
        let served_V = counts.by_token_VE.iter().skip(expert).step_by(self.num_experts);
        let mut tokens: Vec<TokenLift> = (0..)
            .zip(self.occurrences_V.iter().zip(served_V))
            .filter(|&(_, (&occurrences, &served))| occurrences >= min_occurrences && served > 0)
            .map(|(id, (&occurrences, &served))| {
                let lift = ratio(served, occurrences) / baseline;
                TokenLift { id, text: String::new(), occurrences, served, lift }
            })
            .filter(|token| token.lift > 1.0)
            .collect();
        tokens.sort_by(|a, b| b.lift.total_cmp(&a.lift).then(b.occurrences.cmp(&a.occurrences)).then(a.id.cmp(&b.id)));
        tokens.truncate(TOP_TOKENS);
        for token in &mut tokens {
            token.text = token_text(token.id);
        }
        tokens
    }
}

/// `part / whole`, 0 of nothing.
fn ratio(part: u64, whole: u64) -> f64 {
    if whole == 0 { 0.0 } else { part as f64 / whole as f64 }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A layer that sends each token to the given experts, the gates shared equally, every expert equally probable.
    fn routing(num_experts: usize, experts_NK: &[u32], K: usize) -> Routing {
        let N = experts_NK.len() / K;
        Routing {
            num_experts,
            experts_NK: experts_NK.to_vec(),
            gates_NK: vec![1.0 / K as f32; N * K],
            probs_NE: vec![1.0 / num_experts as f32; N * num_experts],
            ..Routing::default()
        }
    }

    fn one_domain(num_experts: usize, K: usize, ids_N: &[u32], experts_NK: &[u32]) -> Summary {
        let mut statistics = Statistics::new(1, num_experts, K, 100, vec!["all".into()]);
        statistics.add(ids_N, 0, &[Arc::new(routing(num_experts, experts_NK, K))]);
        statistics.summary(&[3], |id| format!("<{id}>"))
    }

    #[track_caller]
    fn close(actual: f64, expected: f64) {
        assert!((actual - expected).abs() < 1e-6, "{actual} is not {expected}");
    }

    #[test]
    fn uniform_routing_reads_as_perfect_balance() {
        let summary = one_domain(4, 2, &[1, 2, 3, 4], &[0, 1, 2, 3, 1, 0, 3, 2]);
        let layer = &summary.layers[0];
        assert_eq!((summary.tokens, layer.layer), (4, 3));
        assert_eq!(layer.expert_load, [0.25; 4]);
        close(layer.max_over_uniform, 1.0);
        close(layer.coefficient_of_variation, 0.0);
        close(layer.load_entropy, 1.0);
        assert!(layer.dead_experts.is_empty());
        close(layer.mean_top1_gate, 0.5);
        close(layer.router_entropy, 4f64.ln());
        assert_eq!(layer.domain_share, [[0.5; 4]], "K / E");
    }

    #[test]
    fn collapsed_routing_reads_as_the_worst_balance() {
        let summary = one_domain(4, 1, &[1; 8], &[2; 8]);
        let layer = &summary.layers[0];
        assert_eq!(layer.expert_load, [0.0, 0.0, 1.0, 0.0]);
        close(layer.max_over_uniform, 4.0);
        // Deviations 1/4, 1/4, 3/4, 1/4: variance 3/16, over the mean 1/4.
        close(layer.coefficient_of_variation, 3f64.sqrt());
        close(layer.load_entropy, 0.0);
        assert_eq!(layer.dead_experts, [0, 1, 3]);
        assert!(layer.top_tokens.iter().all(Vec::is_empty), "what every token does is no specialisation");
    }

    #[test]
    fn an_uneven_load_has_the_metrics_computed_by_hand() {
        // Shares 1/2, 1/4, 1/4, 0.
        let layer = &one_domain(4, 1, &[1; 4], &[0, 0, 1, 2]).layers[0];
        close(layer.max_over_uniform, 2.0);
        // Deviations 1/4, 0, 0, 1/4: variance 1/32, over the mean 1/4.
        close(layer.coefficient_of_variation, 0.5f64.sqrt());
        close(layer.load_entropy, 0.75);
    }

    #[test]
    fn router_means_are_taken_over_tokens_of_all_batches() {
        let mut statistics = Statistics::new(1, 2, 1, 10, vec!["all".into()]);
        let batch = |gate: f32, probs: [f32; 2]| Routing {
            num_experts: 2,
            experts_NK: vec![0],
            gates_NK: vec![gate],
            probs_NE: probs.to_vec(),
            ..Routing::default()
        };
        statistics.add(&[1], 0, &[Arc::new(batch(0.75, [0.75, 0.25]))]);
        statistics.add(&[1], 0, &[Arc::new(batch(1.0, [1.0, 0.0]))]);
        let layer = &statistics.summary(&[0], |_| String::new()).layers[0];
        close(layer.mean_top1_gate, 0.875);
        close(layer.router_entropy, 0.562_335_144_6 / 2.0);
    }

    #[test]
    fn domain_share_is_of_the_domains_own_tokens() {
        let mut statistics = Statistics::new(1, 2, 1, 10, vec!["a".into(), "b".into(), "none".into()]);
        statistics.add(&[1, 1, 1, 1], 0, &[Arc::new(routing(2, &[0, 0, 0, 1], 1))]);
        statistics.add(&[1], 1, &[Arc::new(routing(2, &[1], 1))]);
        let summary = statistics.summary(&[0], |_| String::new());
        assert_eq!(summary.layers[0].domain_share, [[0.75, 0.25], [0.0, 1.0], [0.0, 0.0]]);
        assert_eq!(summary.domains.iter().map(|domain| domain.tokens).collect::<Vec<_>>(), [4, 1, 0]);
    }

    #[test]
    fn singletons_do_not_win_and_equal_lifts_rank_by_frequency_then_id() {
        // Token 9 once and token 5 four times, always to expert 1: too rare. Tokens 1 and 2 five times, token 3 six
        // times, always to expert 1. Token 4 eleven times, ten of them to expert 0.
        let runs = [(9, 1, 1), (5, 1, 4), (2, 1, 5), (1, 1, 5), (3, 1, 6), (4, 0, 10), (4, 1, 1)];
        let expand = |pick: fn(&(u32, u32, usize)) -> u32| -> Vec<u32> {
            runs.iter().flat_map(|run| std::iter::repeat_n(pick(run), run.2)).collect()
        };
        let summary = one_domain(2, 1, &expand(|run| run.0), &expand(|run| run.1));
        assert_eq!((summary.tokens, summary.min_occurrences), (32, 5));
        let top = &summary.layers[0].top_tokens;
        assert_eq!(top[1].iter().map(|token| token.id).collect::<Vec<_>>(), [3, 1, 2]);
        close(top[1][0].lift, 32.0 / 22.0);
        assert_eq!(top[0].len(), 1);
        assert_eq!((top[0][0].text.as_str(), top[0][0].occurrences, top[0][0].served), ("<4>", 11, 10));
        close(top[0][0].lift, (10.0 / 11.0) / (10.0 / 32.0));
    }

    #[test]
    fn one_expert_no_tokens_and_no_layers_are_defined() {
        let layer = &one_domain(1, 1, &[1; 6], &[0; 6]).layers[0];
        assert_eq!((layer.load_entropy, layer.max_over_uniform, layer.coefficient_of_variation), (1.0, 1.0, 0.0));
        let empty = &one_domain(2, 1, &[], &[]).layers[0];
        assert_eq!((empty.max_over_uniform, empty.coefficient_of_variation, empty.router_entropy), (0.0, 0.0, 0.0));
        let dense = Statistics::new(0, 0, 0, 10, vec!["all".into()]).summary(&[], |_| String::new());
        assert!(dense.layers.is_empty());
    }
}
