//! Load: how evenly the experts are used.
//!
//! With n_e the tokens that reach expert e and p_e = n_e / (N K) its share of the work:
//! - max / uniform: E max_e p_e. 1 is perfect balance, E / K the worst.
//! - coefficient of variation: standard deviation of the p_e (over the population of E) over their mean 1 / E. 0 is
//!   perfect balance. The square root of the importance loss of Shazeer et al. 2017 (eq. 7), taken of loads.
//! - normalised entropy: -sum_e p_e ln p_e / ln E. 1 is perfect balance (and defined so for E = 1).
//! - dead experts: n_e = 0.

use super::trace::ratio;
use serde::Serialize;

#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Load {
    /// p_e; they sum to 1.
    pub share: Vec<f64>,
    pub max_over_uniform: f64,
    pub coefficient_of_variation: f64,
    pub entropy: f64,
    pub dead: Vec<usize>,
}

/// From the tokens that reach each expert. All numbers are 0 before any token was seen.
pub fn load(counts_E: &[u64]) -> Load {
    let E = counts_E.len();
    let pairs: u64 = counts_E.iter().sum();
    let share: Vec<f64> = counts_E.iter().map(|&count| ratio(count, pairs)).collect();
    let variance = share.iter().map(|share| (share - 1.0 / E as f64).powi(2)).sum::<f64>() / E as f64;
    let entropy = -share.iter().filter(|&&share| share > 0.0).map(|share| share * share.ln()).sum::<f64>();
    Load {
        max_over_uniform: share.iter().copied().fold(0.0, f64::max) * E as f64,
        coefficient_of_variation: if pairs > 0 { variance.sqrt() * E as f64 } else { 0.0 },
        entropy: if E > 1 { entropy / (E as f64).ln() } else { 1.0 },
        dead: (0..E).filter(|&expert| counts_E[expert] == 0).collect(),
        share,
    }
}

#[cfg(test)]
mod tests {
    use super::super::trace::tests::close;
    use super::*;

    #[test]
    fn an_even_load_reads_as_perfect_balance() {
        let load = load(&[2; 4]);
        assert_eq!((&load.share[..], &load.dead[..]), (&[0.25; 4][..], &[][..]));
        close(load.max_over_uniform, 1.0);
        close(load.coefficient_of_variation, 0.0);
        close(load.entropy, 1.0);
    }

    #[test]
    fn a_collapsed_load_reads_as_the_worst_balance() {
        let load = load(&[0, 0, 8, 0]);
        close(load.max_over_uniform, 4.0);
        // Deviations 1/4, 1/4, 3/4, 1/4: variance 3/16, over the mean 1/4.
        close(load.coefficient_of_variation, 3f64.sqrt());
        close(load.entropy, 0.0);
        assert_eq!(load.dead, [0, 1, 3]);
    }

    #[test]
    fn an_uneven_load_by_hand() {
        // Shares 1/2, 1/4, 1/4, 0.
        let load = load(&[2, 1, 1, 0]);
        close(load.max_over_uniform, 2.0);
        // Deviations 1/4, 0, 0, 1/4: variance 1/32, over the mean 1/4.
        close(load.coefficient_of_variation, 0.5f64.sqrt());
        close(load.entropy, 0.75);
    }

    #[test]
    fn one_expert_and_no_tokens_are_defined() {
        let one = load(&[6]);
        assert_eq!((one.entropy, one.max_over_uniform, one.coefficient_of_variation), (1.0, 1.0, 0.0));
        let empty = load(&[0, 0]);
        assert_eq!((empty.max_over_uniform, empty.coefficient_of_variation), (0.0, 0.0));
    }
}
