//! Gate: how sure the router is, and how close its decisions are.
//!
//! - mean gate by rank: the mean over tokens of the weight of the first, second, ... chosen expert, as applied to its
//!   output (renormalised and scaled where the model does so).
//! - router entropy: the mean over tokens of -sum_e p_e ln p_e in nats, over the full probabilities: 0 when the router is
//!   always sure, ln E when it never has a preference.
//! - margin: the probability of the last chosen expert less that of the best one left out, p_(K) - p_(K+1). A small
//!   margin is a decision that a small change of the input would turn. Negative where a choice bias (Wang et al. 2024)
//!   overruled the probabilities.

use super::trace::{Sums, ratio};
use serde::Serialize;

/// A decision with a margin smaller than this part of an even share 1 / E is a close one.
const CLOSE: f64 = 0.1;

#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Gate {
    pub mean_by_rank: Vec<f64>,
    /// Mean gate of each expert when it was chosen; none for a dead one.
    pub mean_by_expert: Vec<Option<f64>>,
    pub router_entropy: f64,
    /// ln E
    pub router_entropy_max: f64,
    /// None where every token has all experts, so that nothing is decided.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub margin_mean: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub margin_quantiles: Option<Quantiles>,
    /// Share of tokens with a margin below a tenth of 1 / E.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub close: Option<f64>,
}

#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Quantiles {
    #[serde(rename = "10")]
    pub tenth: f64,
    #[serde(rename = "50")]
    pub median: f64,
    #[serde(rename = "90")]
    pub ninetieth: f64,
}

/// From sums over the tokens, and the tokens that reach each expert.
pub fn gate(sums: &Sums, counts_E: &[u64]) -> Gate {
    let tokens = sums.margins_N.len();
    let mut margins = sums.margins_N.clone();
    margins.sort_by(f32::total_cmp);
    // The smallest margin that is at least as large as the given share of all.
    let quantile =
        |percent: usize| margins.get((tokens * percent).div_ceil(100).saturating_sub(1)).map_or(0.0, |&m| f64::from(m));
    let close = margins.partition_point(|&margin| f64::from(margin) < CLOSE / counts_E.len() as f64);
    let decides = sums.gates_K.len() < counts_E.len();
    let over = |sum: f64| if tokens == 0 { 0.0 } else { sum / tokens as f64 };
    let by_expert = sums.gates_E.iter().zip(counts_E);
    Gate {
        mean_by_rank: sums.gates_K.iter().map(|&sum| over(sum)).collect(),
        mean_by_expert: by_expert.map(|(&sum, &count)| (count > 0).then(|| sum / count as f64)).collect(),
        router_entropy: over(sums.entropy),
        router_entropy_max: (counts_E.len() as f64).ln(),
        margin_mean: decides.then(|| over(margins.iter().map(|&margin| f64::from(margin)).sum())),
        margin_quantiles: decides.then(|| Quantiles {
            tenth: quantile(10),
            median: quantile(50),
            ninetieth: quantile(90),
        }),
        close: decides.then(|| ratio(close as u64, tokens as u64)),
    }
}

#[cfg(test)]
mod tests {
    use super::super::trace::tests::close;
    use super::*;

    #[test]
    fn means_quantiles_and_close_decisions_by_hand() {
        let sums = Sums {
            gates_K: vec![2.4, 1.6],
            gates_E: vec![2.5, 0.0, 1.5],
            entropy: 2.0,
            margins_N: vec![0.4, 0.03, -0.1, 0.2],
            ..Sums::default()
        };
        let gate = gate(&sums, &[5, 0, 3]);
        [0.6, 0.4].iter().zip(&gate.mean_by_rank).for_each(|(&expected, &mean)| close(mean, expected));
        assert_eq!(gate.mean_by_expert, [Some(0.5), None, Some(0.5)]);
        close(gate.router_entropy, 0.5);
        close(gate.router_entropy_max, 3f64.ln());
        close(gate.margin_mean.unwrap(), 0.53 / 4.0);
        let Quantiles { tenth, median, ninetieth } = gate.margin_quantiles.unwrap();
        [(tenth, -0.1), (median, 0.03), (ninetieth, 0.4)]
            .iter()
            .for_each(|&(quantile, expected)| close(quantile, expected));
        close(gate.close.unwrap(), 0.5);
        // With both of two experts for every token nothing is decided.
        let all = super::gate(&Sums { gates_E: vec![2.0, 2.0], ..sums }, &[4, 4]);
        assert_eq!((all.close, all.margin_mean, all.margin_quantiles), (None, None, None));
    }
}
