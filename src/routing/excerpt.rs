//! Stretches of the text, one for each domain, with everything that happened at each token: what the page colours.

use super::classes::Class;
use super::domains::Block;
use super::trace::Trace;
use crate::dataset::Tokens;
use crate::tokenizer::Tokenizer;
use serde::Serialize;
use std::ops::Range;

/// Choices (tokens x layers x K) that all excerpts have together at most: what keeps a page small.
const CHOICES: usize = 200_000;
/// And tokens.
const TOKENS: usize = 6_000;

#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Excerpt {
    pub name: String,
    pub domain: String,
    /// Pieces whose concatenation is the text; a character that several tokens share is in the last of them.
    pub tokens: Vec<String>,
    /// Index into the report's classes.
    pub class: Vec<usize>,
    /// Natural logarithm of the probability that the model gave the token; none for the text's first.
    pub logprob: Vec<Option<f32>>,
    /// What it thought likeliest in the token's place.
    pub expected: Vec<Option<String>>,
    /// By token, layer and rank.
    pub experts: Vec<u16>,
    /// Hundredths.
    pub gates: Vec<u16>,
}

/// Where the excerpts are: the start of each domain's first text, of equal length as far as there is text. Sorted.
pub fn excerpt_positions(tokens: &Tokens, choices_per_token: usize) -> Vec<Range<usize>> {
    let inputs = tokens.ids.len().saturating_sub(1);
    let all = TOKENS.min(CHOICES / choices_per_token.max(1));
    let length = (all / tokens.domains.len().max(1)).max(1);
    let mut chosen: Vec<Range<usize>> = Vec::new();
    for domain in 0..tokens.domains.len() {
        let first = tokens.texts.iter().find(|(range, of)| *of == domain && range.start < inputs);
        chosen.extend(first.map(|(range, _)| range.start..range.end.min(range.start + length).min(inputs)));
    }
    chosen.sort_by_key(|range| range.start);
    chosen
}

/// `positions` are those that the trace kept gates of; `name` names the text that a position is in.
pub fn excerpts(
    trace: &Trace,
    positions: &[Range<usize>],
    tokens: &Tokens,
    tokenizer: &Tokenizer,
    (classes, present): (&[Class], &[Class]),
    name: impl Fn(usize) -> String,
) -> Vec<Excerpt> {
    let K = trace.experts_per_token;
    let mut kept = 0;
    let excerpt = |range: &Range<usize>| {
        let first_kept = kept;
        kept += range.len();
        let by_layer = |position: usize| trace.layers.iter().map(move |layer| (layer, position));
        let experts =
            |(layer, position): (&super::trace::LayerTrace, usize)| layer.experts_NK[position * K..][..K].to_vec();
        let gates = |(layer, position): (&super::trace::LayerTrace, usize)| {
            let row = first_kept + position - range.start;
            layer.kept_gates[row * K..][..K].iter().map(|&gate| (gate * 100.0).round() as u16).collect::<Vec<_>>()
        };
        let class = |&class: &Class| present.iter().position(|&other| other == class).unwrap_or(0);
        let likeliest = |before: usize| tokenizer.token_text(trace.likeliest_N[before]);
        Excerpt {
            name: name(range.start),
            domain: tokens.domains[tokens.domain_at(range.start)].clone(),
            tokens: pieces(&tokens.ids[range.clone()], tokenizer),
            class: classes[range.clone()].iter().map(class).collect(),
            logprob: range.clone().map(|at| at.checked_sub(1).map(|before| -trace.losses_N[before])).collect(),
            expected: range.clone().map(|at| at.checked_sub(1).map(likeliest)).collect(),
            experts: range.clone().flat_map(by_layer).flat_map(experts).collect(),
            gates: range.clone().flat_map(by_layer).flat_map(gates).collect(),
        }
    };
    positions.iter().map(excerpt).collect()
}

/// The text of each token; the bytes of an unfinished character wait for the token that completes it.
fn pieces(ids: &[u32], tokenizer: &Tokenizer) -> Vec<String> {
    let mut stream = crate::sample::Utf8Stream::default();
    let piece = |&id: &u32| match tokenizer.token_bytes(id) {
        [] => tokenizer.token_text(id),
        bytes => stream.push(bytes),
    };
    ids.iter().map(piece).collect()
}

/// The domain of each of the first positions, from blocks that cover them.
pub fn domains_of(blocks: &[Block]) -> Vec<u16> {
    blocks.iter().flat_map(|block| std::iter::repeat_n(block.domain as u16, block.positions.len())).collect()
}
