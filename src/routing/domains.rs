//! Domain specialisation: do the experts divide the domains among themselves?
//!
//! - share: the part of a domain's tokens that reach expert e (Muennighoff et al. 2024, OLMoE, section 5, "domain
//!   specialization"). Rows sum to K; without specialisation each is the expert's share of all tokens, K / E if balanced.
//! - information: mutual information of domain and expert over all (token, expert) pairs, in bits.
//! - baseline: the same with the domains' labels permuted over blocks of text. Neighbouring tokens share their topic
//!   and their speaker, so any cut of a text into parts looks specialised to some degree; permuting single tokens would
//!   hide that and read noise as meaning. A block is a context window, cut where a document ends. z is the distance of
//!   the information from the baseline's mean in its standard deviations, p = (1 + permutations that reach the
//!   information) / (1 + permutations) (Phipson and Smyth 2010).
//!
//! Where every domain has few documents, blocks of one document still resemble each other, and a small p says that the
//! documents differ, which need not be because of their domains.

use super::information::{explained, mutual_information};
use super::load::load;
use super::trace::{LayerTrace, mean, ratio};
use crate::dataset::Tokens;
use crate::random::Stream;
use serde::Serialize;
use std::ops::Range;

const PERMUTATIONS: u64 = 200;

#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct DomainSpecialisation {
    /// Tokens of each domain.
    #[serde(skip)]
    pub tokens: Vec<u64>,
    /// One row of E for each domain.
    pub share: Vec<Vec<f64>>,
    /// Bits.
    pub information: f64,
    /// What the domain explains of the choice of experts: information beyond the baseline's mean, over all that there is
    /// to tell. None where there is nothing to tell, or no baseline.
    pub explained: Option<f64>,
    /// None with a single domain or block.
    pub baseline: Option<Baseline>,
    pub z: Option<f64>,
    pub p: Option<f64>,
}

/// The information that permuted labels have.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Baseline {
    pub mean: f64,
    pub sd: f64,
    pub largest: f64,
    pub permutations: u64,
    pub unit: String,
}

/// Consecutive tokens of one domain: the unit of permutation.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Block {
    pub positions: Range<usize>,
    pub domain: usize,
}

/// Cuts the first `inputs` tokens into blocks of at most `length` that do not reach across documents.
pub fn blocks(tokens: &Tokens, inputs: usize, length: usize) -> Vec<Block> {
    let mut blocks = Vec::new();
    for (text, domain) in &tokens.texts {
        let end = text.end.min(inputs);
        for start in (text.start..end).step_by(length) {
            blocks.push(Block { positions: start..end.min(start + length), domain: *domain });
        }
    }
    blocks
}

/// For one layer; `domains` is their number.
pub fn domain_specialisation(
    layer: &LayerTrace,
    blocks: &[Block],
    domains: usize,
    (E, K): (usize, usize),
    block_length: usize,
) -> DomainSpecialisation {
    let mut by_block = vec![0u32; blocks.len() * E];
    for (block, counts_E) in blocks.iter().zip(by_block.chunks_exact_mut(E)) {
        for &expert in &layer.experts_NK[block.positions.start * K..block.positions.end * K] {
            counts_E[usize::from(expert)] += 1;
        }
    }
    let table = |domain_of: &dyn Fn(usize) -> usize| {
        let mut counts = vec![0u64; domains * E];
        for (block, counts_E) in by_block.chunks_exact(E).enumerate() {
            let row = &mut counts[domain_of(block) * E..][..E];
            row.iter_mut().zip(counts_E).for_each(|(sum, &count)| *sum += u64::from(count));
        }
        counts
    };
    let observed = table(&|block| blocks[block].domain);
    let information = mutual_information(&observed, E);
    let several = blocks.iter().any(|block| block.domain != blocks[0].domain);
    let permuted: Vec<f64> = (0..if several { PERMUTATIONS } else { 0 })
        .map(|permutation| {
            let stream = Stream::new(0, "domain labels", &[permutation]);
            let domain_of = |block| blocks[stream.permuted(block as u64, blocks.len() as u64) as usize].domain;
            mutual_information(&table(&domain_of), E)
        })
        .collect();
    let average = mean(permuted.iter().copied());
    let sd = mean(permuted.iter().map(|bits| (bits - average).powi(2))).sqrt();
    let reached = permuted.iter().filter(|&&bits| bits >= information).count() as u64;
    let tokens_of = |row: &[u64]| row.iter().sum::<u64>() / K as u64;
    let load = load(&layer.counts_E(E)).share;
    DomainSpecialisation {
        explained: several.then(|| explained(information, average, &load, K)).flatten(),
        tokens: observed.chunks_exact(E).map(tokens_of).collect(),
        share: observed
            .chunks_exact(E)
            .map(|row| row.iter().map(|&count| ratio(count, tokens_of(row))).collect())
            .collect(),
        information,
        z: (sd > 0.0).then(|| (information - average) / sd),
        p: several.then(|| (1 + reached) as f64 / (1 + PERMUTATIONS) as f64),
        baseline: several.then(|| Baseline {
            mean: average,
            sd,
            largest: permuted.iter().copied().fold(0.0, f64::max),
            permutations: PERMUTATIONS,
            unit: format!("blocks of {block_length} tokens"),
        }),
    }
}

#[cfg(test)]
mod tests {
    use super::super::trace::tests::{close, layer};
    use super::*;

    fn tokens(texts: &[(Range<usize>, usize)]) -> Tokens {
        Tokens { texts: texts.to_vec(), ..Tokens::default() }
    }

    #[test]
    fn blocks_end_with_their_document_and_with_the_inputs() {
        let blocks = blocks(&tokens(&[(0..5, 1), (5..8, 0)]), 7, 3);
        let expected = [(0..3, 1), (3..5, 1), (5..7, 0)];
        assert_eq!(blocks, expected.map(|(positions, domain)| Block { positions, domain }));
    }

    #[test]
    fn shares_are_of_the_domains_own_tokens_and_information_is_by_hand() {
        // Domain 0: experts 0, 0, 0, 1; domain 1: expert 1 four times.
        let layer = layer(&[0, 0, 0, 1, 1, 1, 1, 1]);
        let blocks = blocks(&tokens(&[(0..4, 0), (4..9, 1)]), 8, 1);
        let found = domain_specialisation(&layer, &blocks, 3, (2, 1), 1);
        assert_eq!(found.share, [[0.75, 0.25], [0.0, 1.0], [0.0, 0.0]]);
        // 3/8 log2 2 + 1/8 log2 (2/5) + 4/8 log2 (8/5)
        close(found.information, 0.548_794_9);
    }

    #[test]
    fn two_experts_share_a_token_and_rows_sum_to_two() {
        let found = domain_specialisation(&layer(&[0, 1, 0, 2]), &blocks(&tokens(&[(0..2, 0)]), 2, 1), 1, (3, 2), 1);
        assert_eq!((&found.share[0][..], found.p, found.baseline), (&[1.0, 0.5, 0.5][..], None, None));
    }

    #[test]
    fn labels_that_mean_something_stand_out_and_those_that_do_not_do_not() {
        // Ten blocks of four tokens, each of a single expert; domains follow the experts, or alternate.
        let experts: Vec<u16> = (0..40).map(|n| u16::from(n >= 20)).collect();
        let with = |domain: fn(usize) -> usize| {
            let blocks: Vec<Block> =
                (0..10).map(|block| Block { positions: 4 * block..4 * block + 4, domain: domain(block) }).collect();
            domain_specialisation(&layer(&experts), &blocks, 2, (2, 1), 4)
        };
        let real = with(|block| block / 5);
        close(real.information, 1.0);
        // Of the 252 ways to label five of ten blocks, two are as good.
        assert!(real.p.unwrap() < 0.05 && real.z.unwrap() > 2.0, "{real:?}");
        let noise = with(|block| block % 2);
        assert!(noise.p.unwrap() > 0.3 && noise.z.unwrap() < 1.0, "{noise:?}");
        assert!(noise.information > 0.02, "by chance alone, information is not 0: {noise:?}");
    }
}
