//! Repetition: does the next token go to the same expert? (Jiang et al. 2024, Mixtral, table 5.)
//!
//! - first: the share of consecutive tokens of a document with the same first choice. By chance sum_e f_e^2 with f_e the
//!   share of tokens whose first choice is e; 1 / E if these are even.
//! - any: the share of consecutive tokens with any expert in common. By chance what the same tokens give when each is
//!   paired with a random other one; 1 - C(E - K, K) / C(E, K) if every choice were equally likely.
//! - by expert: of the tokens whose first choice is e, the share of whose successors it is the first choice, too.

use super::trace::{LayerTrace, mean, ratio};
use crate::dataset::Tokens;
use crate::random::Stream;
use serde::Serialize;

#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Repetition {
    pub first: f64,
    pub first_expected: f64,
    pub first_even: f64,
    pub any: f64,
    pub any_expected: f64,
    pub any_even: f64,
    pub by_expert: Vec<f64>,
    /// Consecutive tokens of one document.
    pub pairs: u64,
}

pub fn repetition(layer: &LayerTrace, tokens: &Tokens, (E, K): (usize, usize)) -> Repetition {
    let of = |position: usize| &layer.experts_NK[position * K..][..K];
    let inputs = layer.experts_NK.len() / K;
    let (mut pairs, mut same_first, mut common) = (0u64, 0u64, 0u64);
    let (mut firsts_E, mut with_successor_E, mut repeated_E) = (vec![0u64; E], vec![0u64; E], vec![0u64; E]);
    for (range, _) in &tokens.texts {
        for position in range.start..range.end.min(inputs) {
            let first = usize::from(of(position)[0]);
            firsts_E[first] += 1;
            if position + 1 < range.end.min(inputs) {
                let next = of(position + 1);
                let same = usize::from(next[0]) == first;
                pairs += 1;
                with_successor_E[first] += 1;
                same_first += u64::from(same);
                repeated_E[first] += u64::from(same);
                common += u64::from(overlaps(of(position), next));
            }
        }
    }
    let stream = Stream::new(0, "repetition", &[]);
    let random_other = |position: usize| stream.permuted(position as u64, inputs as u64) as usize;
    let by_chance = (0..inputs).filter(|&position| random_other(position) != position);
    let any_expected = mean(by_chance.map(|position| f64::from(overlaps(of(position), of(random_other(position))))));
    Repetition {
        first: ratio(same_first, pairs),
        first_expected: firsts_E.iter().map(|&count| ratio(count, inputs as u64).powi(2)).sum(),
        first_even: 1.0 / E as f64,
        any: ratio(common, pairs),
        any_expected,
        any_even: 1.0 - disjoint(E, K),
        by_expert: repeated_E.iter().zip(&with_successor_E).map(|(&repeated, &all)| ratio(repeated, all)).collect(),
        pairs,
    }
}

fn overlaps(a: &[u16], b: &[u16]) -> bool {
    a.iter().any(|expert| b.contains(expert))
}

/// C(E - K, K) / C(E, K): the chance that two random choices of K out of E have nothing in common.
fn disjoint(E: usize, K: usize) -> f64 {
    (0..K).map(|i| (E as f64 - K as f64 - i as f64).max(0.0) / (E as f64 - i as f64)).product()
}

#[cfg(test)]
mod tests {
    use super::super::trace::tests::{close, layer};
    use super::*;

    #[test]
    fn repeats_are_counted_within_documents_by_hand() {
        // Two documents: 0 0 1 | 1 1; the pair across the border does not count.
        let tokens = Tokens { texts: vec![(0..3, 0), (3..6, 0)], ..Tokens::default() };
        let found = repetition(&layer(&[0, 0, 1, 1, 1]), &tokens, (2, 1));
        assert_eq!(found.pairs, 3);
        close(found.first, 2.0 / 3.0);
        close(found.first_expected, (4.0 + 9.0) / 25.0);
        close(found.first_even, 0.5);
        assert_eq!(found.by_expert, [0.5, 1.0]);
        // With one choice, an expert in common is the same first choice.
        close(found.any, 2.0 / 3.0);
    }

    #[test]
    fn chance_of_an_expert_in_common_is_mixtrals_for_two_of_eight() {
        // 1 - (6 * 5) / (8 * 7)
        close(1.0 - disjoint(8, 2), 0.464_285_7);
        close(1.0 - disjoint(3, 2), 1.0);
        let tokens = Tokens { texts: vec![(0..3, 0)], ..Tokens::default() };
        let found = repetition(&layer(&[0, 1, 1, 2, 3, 0]), &tokens, (8, 2));
        close(found.any, 0.5);
        close(found.first, 0.0);
    }

    #[test]
    fn independent_choices_repeat_as_often_as_the_baseline_says() {
        let stream = Stream::new(5, "test", &[]);
        let experts: Vec<u16> = (0..20_000)
            .flat_map(|n| {
                let first = (stream.uniform(2 * n) * 4.0) as u16;
                [first, (first + 1 + (stream.uniform(2 * n + 1) * 3.0) as u16) % 4]
            })
            .collect();
        let tokens = Tokens { texts: vec![(0..20_001, 0)], ..Tokens::default() };
        let found = repetition(&layer(&experts), &tokens, (4, 2));
        assert!((found.first - found.first_expected).abs() < 0.01, "{found:?}");
        assert!((found.any - found.any_expected).abs() < 0.015, "{found:?}");
        assert!((found.any_expected - found.any_even).abs() < 0.01, "{found:?}");
    }
}
