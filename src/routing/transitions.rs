//! Transitions: which expert of the next MoE layer serves the tokens of this one's.
//!
//! - share: of the tokens that expert i serves, the part that expert j of the next MoE layer serves, over all K x K pairs
//!   of choices. Rows sum to K; without dependence each is K times the next layer's load.
//! - first: tokens whose first choices are i and j, for a flow diagram.
//! - information: mutual information of the two layers' experts over all pairs, in bits.

use super::information::mutual_information;
use super::trace::{LayerTrace, ratio};
use serde::Serialize;

#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Transition {
    /// Counted among MoE layers.
    pub from: usize,
    pub to: usize,
    pub share: Vec<Vec<f64>>,
    pub first: Vec<Vec<u64>>,
    pub information: f64,
}

/// From each MoE layer to the next.
pub fn transitions(layers: &[LayerTrace], (E, K): (usize, usize)) -> Vec<Transition> {
    let between = |(from, pair): (usize, &[LayerTrace])| {
        let (mut all, mut first) = (vec![0u64; E * E], vec![vec![0u64; E]; E]);
        for (here_K, there_K) in pair[0].experts_NK.chunks_exact(K).zip(pair[1].experts_NK.chunks_exact(K)) {
            first[usize::from(here_K[0])][usize::from(there_K[0])] += 1;
            for &i in here_K {
                for &j in there_K {
                    all[usize::from(i) * E + usize::from(j)] += 1;
                }
            }
        }
        let share = |row: &[u64]| {
            let tokens = row.iter().sum::<u64>() / K as u64;
            row.iter().map(|&count| ratio(count, tokens)).collect()
        };
        Transition {
            from,
            to: from + 1,
            share: all.chunks_exact(E).map(share).collect(),
            first,
            information: mutual_information(&all, E),
        }
    };
    layers.windows(2).enumerate().map(between).collect()
}

#[cfg(test)]
mod tests {
    use super::super::trace::tests::{close, layer};
    use super::*;

    #[test]
    fn shares_counts_and_information_by_hand() {
        let found = transitions(&[layer(&[0, 0, 1, 1]), layer(&[1, 1, 0, 1]), layer(&[0, 0, 0, 0])], (2, 1));
        assert_eq!(found.len(), 2);
        assert_eq!((found[0].from, found[0].to), (0, 1));
        assert_eq!(found[0].share, [[0.0, 1.0], [0.5, 0.5]]);
        assert_eq!(found[0].first, [[0, 2], [1, 1]]);
        close(found[0].information, 0.311_278_1);
        close(found[1].information, 0.0);
    }

    #[test]
    fn with_two_choices_all_four_pairs_count_and_rows_sum_to_two() {
        let found = transitions(&[layer(&[0, 1, 0, 2]), layer(&[2, 0, 1, 2])], (3, 2));
        assert_eq!(found[0].share, [[0.5, 0.5, 1.0], [1.0, 0.0, 1.0], [0.0, 1.0, 1.0]]);
        assert_eq!(found[0].first, [[0, 1, 1], [0; 3], [0; 3]]);
    }
}
