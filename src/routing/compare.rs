//! Two models on the same text, expert by expert. Experts have no order that two runs share, so those of A's i-th MoE layer
//! are matched with those of B's by what they serve: the assignment of the largest total similarity (Kuhn 1955, the
//! "Hungarian method").
//!
//! Similarity is Jaccard's over bytes of the text, so that models with different tokenizers compare: the bytes that both
//! experts serve over those that either serves. A byte is served by the experts of the token that it belongs to. Chance
//! level: if both choose independently with shares a and b of the bytes, a b / (a + b - a b).

use super::trace::{LayerTrace, Trace, mean};
use crate::dataset::Tokens;
use crate::tokenizer::Tokenizer;
use serde::Serialize;

#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Comparison {
    /// The two checkpoints.
    pub a: String,
    pub b: String,
    pub unit: &'static str,
    pub a_facts: ModelFacts,
    pub b_facts: ModelFacts,
    /// The i-th MoE layers of both, as far as both have one.
    pub layers: Vec<LayerComparison>,
}

#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct ModelFacts {
    pub step: Option<usize>,
    pub parameters: usize,
    pub active_parameters: usize,
    pub experts: usize,
    pub experts_per_token: usize,
    pub loss: f64,
    pub bits_per_byte: f64,
    /// Of each MoE layer.
    pub max_over_uniform: Vec<f64>,
    pub router_entropy: Vec<f64>,
}

#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct LayerComparison {
    /// Transformer layers.
    pub a: usize,
    pub b: usize,
    /// In the order of A's experts; those of B without a partner at the end.
    pub pairs: Vec<Pair>,
    /// Over the pairs.
    pub mean: f64,
    pub expected: f64,
}

#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Pair {
    pub a: Option<usize>,
    pub b: Option<usize>,
    pub similarity: f64,
    /// By chance.
    pub expected: f64,
}

/// A model's choices on a text with the length of each token in bytes.
pub struct Side<'a> {
    pub trace: &'a Trace,
    pub bytes_N: Vec<u32>,
}

impl<'a> Side<'a> {
    pub fn new(trace: &'a Trace, tokens: &Tokens, tokenizer: &Tokenizer) -> Self {
        let inputs = &tokens.ids[..trace.tokens()];
        Self { trace, bytes_N: inputs.iter().map(|&id| tokenizer.token_bytes(id).len() as u32).collect() }
    }
}

/// Matches the experts of all MoE layers that both have.
pub fn match_layers(a: &Side, b: &Side) -> Vec<LayerComparison> {
    let overlaps = overlaps(&a.bytes_N, &b.bytes_N);
    a.trace.layers.iter().zip(&b.trace.layers).map(|(x, y)| match_layer((a, x), (b, y), &overlaps)).collect()
}

/// Pairs of tokens that share bytes, with their number.
fn overlaps(a_bytes: &[u32], b_bytes: &[u32]) -> Vec<(u32, u32, u32)> {
    let mut found = Vec::with_capacity(a_bytes.len() + b_bytes.len());
    let (mut i, mut j) = (0, 0);
    let (mut a_end, mut b_end, mut at) = (0, 0, 0);
    while i < a_bytes.len() && j < b_bytes.len() {
        let (a_next, b_next) = (a_end + u64::from(a_bytes[i]), b_end + u64::from(b_bytes[j]));
        let end = a_next.min(b_next);
        if end > at {
            found.push((i as u32, j as u32, (end - at) as u32));
        }
        at = end;
        if a_next == end {
            (a_end, i) = (a_next, i + 1);
        }
        if b_next == end {
            (b_end, j) = (b_next, j + 1);
        }
    }
    found
}

fn match_layer(
    (a, x): (&Side, &LayerTrace),
    (b, y): (&Side, &LayerTrace),
    overlaps: &[(u32, u32, u32)],
) -> LayerComparison {
    let (Ea, Ka, Eb, Kb) =
        (a.trace.num_experts, a.trace.experts_per_token, b.trace.num_experts, b.trace.experts_per_token);
    let (mut both, mut of_a, mut of_b, mut all) = (vec![0u64; Ea * Eb], vec![0u64; Ea], vec![0u64; Eb], 0u64);
    for &(i, j, bytes) in overlaps {
        let bytes = u64::from(bytes);
        let (in_a, in_b) = (&x.experts_NK[i as usize * Ka..][..Ka], &y.experts_NK[j as usize * Kb..][..Kb]);
        all += bytes;
        in_a.iter().for_each(|&expert| of_a[usize::from(expert)] += bytes);
        in_b.iter().for_each(|&expert| of_b[usize::from(expert)] += bytes);
        for &p in in_a {
            in_b.iter().for_each(|&q| both[usize::from(p) * Eb + usize::from(q)] += bytes);
        }
    }
    let quotient = |part: f64, whole: f64| if whole > 0.0 { part / whole } else { 0.0 };
    let similarity = |p: usize, q: usize| {
        let shared = both[p * Eb + q];
        quotient(shared as f64, (of_a[p] + of_b[q] - shared) as f64)
    };
    let expected = |p: usize, q: usize| {
        let (share_a, share_b) = (quotient(of_a[p] as f64, all as f64), quotient(of_b[q] as f64, all as f64));
        quotient(share_a * share_b, share_a + share_b - share_a * share_b)
    };
    // A square problem: experts without a partner are matched with nobody.
    let size = Ea.max(Eb);
    let cost = |p: usize, q: usize| if p < Ea && q < Eb { -similarity(p, q) } else { 0.0 };
    let partner = assignment(size, cost);
    let pair = |p: usize| {
        let (a, b) = ((p < Ea).then_some(p), (partner[p] < Eb).then_some(partner[p]));
        let of = |measure: &dyn Fn(usize, usize) -> f64| a.zip(b).map_or(0.0, |(p, q)| measure(p, q));
        Pair { a, b, similarity: of(&similarity), expected: of(&expected) }
    };
    let pairs: Vec<Pair> = (0..size).map(pair).collect();
    let matched = || pairs.iter().filter(|pair| pair.a.is_some() && pair.b.is_some());
    LayerComparison {
        a: x.layer,
        b: y.layer,
        mean: mean(matched().map(|pair| pair.similarity)),
        expected: mean(matched().map(|pair| pair.expected)),
        pairs,
    }
}

/// For each of `size` rows the column of the assignment of least total cost: shortest augmenting paths over the potentials
/// of rows and columns (Jonker and Volgenant 1987), O(size^3).
fn assignment(size: usize, cost: impl Fn(usize, usize) -> f64) -> Vec<usize> {
    const FREE: usize = usize::MAX;
    let (mut row_potential, mut column_potential) = (vec![0.0; size], vec![0.0; size]);
    let mut row_of = vec![FREE; size];
    for new_row in 0..size {
        // The cheapest way known to each column, the column before it on that way, and whether it is final.
        let (mut distance, mut before, mut done) = (vec![f64::INFINITY; size], vec![FREE; size], vec![false; size]);
        let (mut row, mut column) = (new_row, FREE);
        let free = loop {
            let mut nearest = FREE;
            for next in (0..size).filter(|&next| !done[next]) {
                let so_far = if column == FREE { 0.0 } else { distance[column] };
                let way = so_far + cost(row, next) - row_potential[row] - column_potential[next];
                if way < distance[next] {
                    (distance[next], before[next]) = (way, column);
                }
                if nearest == FREE || distance[next] < distance[nearest] {
                    nearest = next;
                }
            }
            done[nearest] = true;
            if row_of[nearest] == FREE {
                break nearest;
            }
            (row, column) = (row_of[nearest], nearest);
        };
        // Potentials keep every reduced cost at least 0, and those on the way at 0.
        let length = distance[free];
        for column in (0..size).filter(|&column| done[column] && row_of[column] != FREE) {
            row_potential[row_of[column]] += length - distance[column];
            column_potential[column] -= length - distance[column];
        }
        row_potential[new_row] += length;
        let mut column = free;
        while column != FREE {
            let previous = before[column];
            row_of[column] = if previous == FREE { new_row } else { row_of[previous] };
            column = previous;
        }
    }
    let mut column_of = vec![0; size];
    row_of.iter().enumerate().for_each(|(column, &row)| column_of[row] = column);
    column_of
}

#[cfg(test)]
mod tests {
    use super::super::trace::tests::{close, layer};
    use super::*;
    use crate::random::Stream;

    fn trace(E: usize, K: usize, experts: &[u16]) -> Trace {
        let tokens = experts.len() / K;
        Trace {
            memories: Vec::new(),
            time: 16,
            num_experts: E,
            experts_per_token: K,
            layers: vec![layer(experts)],
            losses_N: vec![0.0; tokens],
            likeliest_N: vec![0; tokens],
        }
    }

    #[test]
    fn assignments_are_the_best_of_all_permutations() {
        fn best(size: usize, row: usize, taken: &mut Vec<usize>, cost: &dyn Fn(usize, usize) -> f64) -> f64 {
            if row == size {
                return 0.0;
            }
            let mut least = f64::INFINITY;
            for column in 0..size {
                if !taken.contains(&column) {
                    taken.push(column);
                    least = least.min(cost(row, column) + best(size, row + 1, taken, cost));
                    taken.pop();
                }
            }
            least
        }
        for case in 0..60 {
            let size = 1 + case as usize % 6;
            let stream = Stream::new(1, "costs", &[case]);
            // Few different values, so that there are ties.
            let cost = |p: usize, q: usize| (stream.uniform((p * size + q) as u64) * 6.0).floor() - 3.0;
            let found = assignment(size, cost);
            let mut columns = found.clone();
            columns.sort_unstable();
            assert_eq!(columns, (0..size).collect::<Vec<_>>());
            let total: f64 = found.iter().enumerate().map(|(p, &q)| cost(p, q)).sum();
            close(total, best(size, 0, &mut Vec::new(), &cost));
        }
    }

    #[test]
    fn renumbered_experts_are_found_again() {
        let experts: Vec<u16> = (0..300).map(|n| (Stream::new(1, "e", &[]).uniform(n) * 5.0) as u16).collect();
        let renumbered: Vec<u16> = experts.iter().map(|&expert| [3, 0, 4, 2, 1][usize::from(expert)]).collect();
        let (a, b) = (trace(5, 1, &experts), trace(5, 1, &renumbered));
        let side = |trace| Side { trace, bytes_N: vec![2; 300] };
        let found = &match_layers(&side(&a), &side(&b))[0];
        assert_eq!(found.pairs.iter().map(|pair| pair.b.unwrap()).collect::<Vec<_>>(), [3, 0, 4, 2, 1]);
        close(found.mean, 1.0);
        assert!(found.expected < 0.2, "{}", found.expected);
    }

    #[test]
    fn similarity_counts_shared_bytes_across_tokenizers_and_spare_experts_stay_alone() {
        // A: tokens of 3 and 1 bytes at experts 0 and 1. B: tokens of 2, 1 and 1 bytes at 2, 0 and 1.
        let (a, b) = (trace(2, 1, &[0, 1]), trace(3, 1, &[2, 0, 1]));
        assert_eq!(overlaps(&[3, 1], &[2, 1, 1]), [(0, 0, 2), (0, 1, 1), (1, 2, 1)]);
        assert_eq!(overlaps(&[0, 3], &[1, 0, 2]), [(1, 0, 1), (1, 2, 2)]);
        let found = match_layers(&Side { trace: &a, bytes_N: vec![3, 1] }, &Side { trace: &b, bytes_N: vec![2, 1, 1] });
        let [first, second, third] = &found[0].pairs[..] else { panic!("{found:?}") };
        assert_eq!((first.a, first.b, second.a, second.b), (Some(0), Some(2), Some(1), Some(1)));
        assert_eq!((third.a, third.b, third.similarity), (None, Some(0), 0.0));
        close(first.similarity, 2.0 / 3.0);
        close(second.similarity, 1.0);
        // Shares 3/4 and 1/2: 3/8 over 7/8.
        close(first.expected, 3.0 / 7.0);
        close(found[0].mean, 5.0 / 6.0);
    }
}
