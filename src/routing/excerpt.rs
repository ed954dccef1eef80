//! Stretches of the text, one for each document as far as a page has room, with everything that happened at each token:
//! what the page colours.

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
const TOKENS: usize = 9_000;
/// Of one document at least, where it has as many: fewer documents are shown rather than shorter stretches.
const SHORTEST: usize = 200;

#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Excerpt {
    pub name: String,
    /// Which of the text's documents it is the start of, and the tokens that this has.
    pub document: usize,
    pub document_tokens: usize,
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

/// Where the excerpts are: the starts of documents, of equal length as far as there is text. Sorted.
pub fn excerpt_positions(tokens: &Tokens, choices_per_token: usize) -> Vec<Range<usize>> {
    let inputs = tokens.ids.len().saturating_sub(1);
    let all = TOKENS.min(CHOICES / choices_per_token.max(1));
    let mut documents = by_turns(tokens, inputs);
    documents.truncate((all / SHORTEST).max(1));
    let length = (all / documents.len().max(1)).max(1);
    let start = |range: &Range<usize>| range.start..range.end.min(range.start + length).min(inputs);
    let mut chosen: Vec<Range<usize>> = documents.into_iter().map(start).collect();
    chosen.sort_by_key(|range| range.start);
    chosen
}

/// Documents in turn from every domain, so that those that are left out are not all of one.
fn by_turns(tokens: &Tokens, inputs: usize) -> Vec<&Range<usize>> {
    let mut seen = vec![0usize; tokens.domains.len()];
    let mut documents: Vec<(usize, usize, &Range<usize>)> = Vec::new();
    for (range, domain) in tokens.texts.iter().filter(|(range, _)| range.start < inputs && !range.is_empty()) {
        documents.push((seen[*domain], *domain, range));
        seen[*domain] += 1;
    }
    documents.sort_by_key(|&(turn, domain, range)| (turn, domain, range.start));
    documents.into_iter().map(|(_, _, range)| range).collect()
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
            document: tokens.texts.partition_point(|(text, _)| text.end <= range.start),
            document_tokens: tokens
                .texts
                .iter()
                .find(|(text, _)| text.contains(&range.start))
                .map_or(0, |(text, _)| text.len()),
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

#[cfg(test)]
mod tests {
    use super::*;

    fn tokens(lengths: &[(usize, usize)], domains: usize) -> Tokens {
        let mut start = 0;
        let text = |&(length, domain): &(usize, usize)| {
            start += length;
            (start - length..start, domain)
        };
        let texts: Vec<_> = lengths.iter().map(text).collect();
        let domains = (0..domains).map(|domain| domain.to_string()).collect();
        Tokens { ids: vec![0; start], domains, texts, ..Tokens::default() }
    }

    #[test]
    fn every_document_is_shown_as_far_as_there_is_room() {
        // The last token is a target only.
        assert_eq!(excerpt_positions(&tokens(&[(10, 0), (7, 1), (5, 0)], 2), 8), [0..10, 10..17, 17..21]);
        let long = excerpt_positions(&tokens(&[(20_000, 0), (20_000, 0)], 1), 8);
        assert_eq!(long, [0..4_500, 20_000..24_500]);
    }

    #[test]
    fn of_many_documents_those_shown_come_from_all_domains() {
        let mut lengths = vec![(300, 0); 100];
        lengths.extend([(300, 1); 3]);
        let chosen = excerpt_positions(&tokens(&lengths, 2), 8);
        assert_eq!((chosen.len(), chosen[0].len()), (45, 200));
        assert_eq!(chosen.iter().filter(|range| range.start >= 30_000).count(), 3);
    }
}
