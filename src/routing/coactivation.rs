//! Co-activation: which experts serve the same tokens (Muennighoff et al. 2024, OLMoE, section 5).
//!
//! N_ij / N_i, where N_i are the tokens that expert i serves and N_ij those that it serves together with j. All pairs of
//! a token's K experts count, whatever their ranks. The diagonal is 1; the rest of a row sums to K - 1.

use super::trace::{LayerTrace, ratio};

/// One row of E for each expert; rows of dead experts are 0.
pub fn coactivation(layer: &LayerTrace, (E, K): (usize, usize)) -> Vec<Vec<f64>> {
    let mut together = vec![0u64; E * E];
    for experts_K in layer.experts_NK.chunks_exact(K) {
        for &i in experts_K {
            for &j in experts_K {
                together[usize::from(i) * E + usize::from(j)] += 1;
            }
        }
    }
    let row = |i: usize| together[i * E..][..E].iter().map(|&both| ratio(both, together[i * E + i])).collect();
    (0..E).map(row).collect()
}

#[cfg(test)]
mod tests {
    use super::super::trace::tests::layer;
    use super::*;

    #[test]
    fn all_pairs_of_a_token_count_whatever_their_ranks() {
        // Three experts a token: 0 and 2 are never neighbours in rank, and still together twice.
        let matrix = coactivation(&layer(&[0, 1, 2, 2, 3, 0, 1, 3, 2]), (5, 3));
        assert_eq!(matrix[0], [1.0, 0.5, 1.0, 0.5, 0.0]);
        assert_eq!(matrix[1], [0.5, 1.0, 1.0, 0.5, 0.0]);
        assert_eq!(matrix[2], [2.0 / 3.0, 2.0 / 3.0, 1.0, 2.0 / 3.0, 0.0]);
        assert_eq!(matrix[4], [0.0; 5]);
        for row in &matrix[..4] {
            assert!((row.iter().sum::<f64>() - 3.0).abs() < 1e-12, "K: {row:?}");
        }
    }
}
