//! Vocabulary specialisation (Muennighoff et al. 2024, OLMoE, section 5): which tokens an expert is for. Three ways to
//! ask: by the token that comes in, by the one that the model thinks likeliest to come next, and by the one that does.
//!
//! For a token x that occurs c_x times, c_xe of them at expert e: P(e | x) = c_xe / c_x is OLMoE's measure; lift is
//! P(e | x) / P(e) with P(e) = n_e / N, from 0 to N / n_e; z is the distance of c_xe from c_x P(e) in binomial standard
//! deviations. A token that occurs once reaches its experts with P = 1 whatever they are, so tokens below a minimum
//! count are left out: five, and one in ten thousand.
//!
//! Concentration: the mean over the occurrences of such tokens of max_e P(e | x), beside what a token without preference
//! would have, max_e P(e).

use super::information::z_score;
use super::trace::{LayerTrace, ratio};
use crate::dataset::Tokens;
use crate::tokenizer::Tokenizer;
use serde::Serialize;
use std::cmp::Ordering;

/// Bytes of context on either side of an example.
const CONTEXT: usize = 28;

#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Vocabulary {
    /// Occurrences that a token needs.
    pub minimum: u64,
    /// Input tokens that have as many.
    pub frequent: usize,
    /// For each expert the tokens of the highest lift, best first; only those with a lift above 1.
    pub input: Vec<Vec<TokenLift>>,
    pub predicted: Vec<Vec<TokenLift>>,
    pub target: Vec<Vec<TokenLift>>,
    pub concentration: Concentration,
    /// max_e P(e)
    pub even: f64,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
pub struct Concentration {
    pub input: f64,
    pub predicted: f64,
    pub target: f64,
}

/// How much a token prefers an expert.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct TokenLift {
    pub id: u32,
    pub text: String,
    /// Occurrences c_x, and how many of them reached the expert, c_xe.
    pub count: u64,
    pub served: u64,
    pub lift: f64,
    pub z: f64,
    /// Text before, the token, text after, of some occurrences that reached the expert.
    pub contexts: Vec<[String; 3]>,
}

/// How much to list.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Tokens for each expert.
    pub tokens: usize,
    /// Examples for each token.
    pub contexts: usize,
}

/// Which token of a position is asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    Input,
    Predicted,
    Target,
}

/// The positions of each token in one role.
pub struct Occurrences {
    role: Role,
    /// Where in `positions` each token's begin.
    starts_V: Vec<usize>,
    positions: Vec<u32>,
}

impl Occurrences {
    /// `ids_N` has the token of each position.
    pub fn new(role: Role, ids_N: &[u32], vocab: usize) -> Self {
        let mut starts_V = vec![0; vocab + 1];
        ids_N.iter().for_each(|&id| starts_V[id as usize + 1] += 1);
        for id in 0..vocab {
            starts_V[id + 1] += starts_V[id];
        }
        let mut next = starts_V.clone();
        let mut positions = vec![0; ids_N.len()];
        for (position, &id) in (0..).zip(ids_N) {
            positions[next[id as usize]] = position;
            next[id as usize] += 1;
        }
        Self { role, starts_V, positions }
    }

    fn of(&self, id: u32) -> &[u32] {
        &self.positions[self.starts_V[id as usize]..self.starts_V[id as usize + 1]]
    }

    fn vocab(&self) -> u32 {
        self.starts_V.len() as u32 - 1
    }
}

/// Occurrences that a token needs in a text of `tokens`.
pub fn minimum_count(tokens: usize) -> u64 {
    (tokens as u64).div_ceil(10_000).max(5)
}

/// What the tables of one layer are made from.
pub struct Source<'a> {
    pub layer: &'a LayerTrace,
    pub counts_E: &'a [u64],
    /// K
    pub experts_per_token: usize,
    pub tokens: &'a Tokens,
    pub tokenizer: &'a Tokenizer,
    pub limits: Limits,
}

impl Source<'_> {
    /// For one layer: input, predicted and target tokens.
    pub fn vocabulary(&self, [input, predicted, target]: &[Occurrences; 3]) -> Vocabulary {
        let inputs = self.inputs();
        let minimum = minimum_count(inputs);
        let is_frequent = |id: &u32| input.of(*id).len() as u64 >= minimum;
        let frequent = (0..input.vocab()).filter(is_frequent).count();
        let [(input, a), (predicted, b), (target, c)] = [input, predicted, target].map(|o| self.by_expert(o));
        Vocabulary {
            minimum,
            frequent,
            input,
            predicted,
            target,
            concentration: Concentration { input: a, predicted: b, target: c },
            even: self.counts_E.iter().map(|&count| ratio(count, inputs as u64)).fold(0.0, f64::max),
        }
    }

    fn inputs(&self) -> usize {
        self.layer.experts_NK.len() / self.experts_per_token
    }

    /// The best tokens of each expert, and the concentration.
    fn by_expert(&self, occurrences: &Occurrences) -> (Vec<Vec<TokenLift>>, f64) {
        let (E, inputs) = (self.counts_E.len(), self.inputs() as u64);
        let minimum = minimum_count(self.inputs());
        let mut best = vec![Vec::new(); E];
        let (mut favourite, mut frequent) = (0, 0);
        let mut served_E = vec![0u64; E];
        for id in 0..occurrences.vocab() {
            let positions = occurrences.of(id);
            let count = positions.len() as u64;
            if count < minimum {
                continue;
            }
            served_E.fill(0);
            for &position in positions {
                self.experts_at(position).iter().for_each(|&expert| served_E[usize::from(expert)] += 1);
            }
            favourite += served_E.iter().max().copied().unwrap_or(0);
            frequent += count;
            for (expert, &served) in served_E.iter().enumerate().filter(|&(_, &served)| served > 0) {
                let lift = ratio(served, count) / ratio(self.counts_E[expert], inputs);
                if lift > 1.0 {
                    let z = z_score(served, count, self.counts_E[expert], inputs);
                    best[expert].push(TokenLift { id, text: String::new(), count, served, lift, z, contexts: vec![] });
                }
            }
        }
        for (expert, tokens) in best.iter_mut().enumerate() {
            tokens.sort_by(rank);
            tokens.truncate(self.limits.tokens);
            for token in tokens {
                token.text = self.tokenizer.token_text(token.id);
                token.contexts = self.contexts(occurrences, token.id, expert as u16);
            }
        }
        (best, ratio(favourite, frequent))
    }

    fn experts_at(&self, position: u32) -> &[u16] {
        &self.layer.experts_NK[position as usize * self.experts_per_token..][..self.experts_per_token]
    }

    /// Examples from all over the text: the middle one of each of as many equal parts of the occurrences.
    fn contexts(&self, occurrences: &Occurrences, id: u32, expert: u16) -> Vec<[String; 3]> {
        let served: Vec<u32> = occurrences
            .of(id)
            .iter()
            .copied()
            .filter(|&position| self.experts_at(position).contains(&expert))
            .collect();
        let wanted = self.limits.contexts.min(served.len());
        let place = |example: usize| served[(2 * example + 1) * served.len() / (2 * wanted)] as usize;
        (0..wanted).map(|example| self.context(place(example), id, occurrences.role)).collect()
    }

    /// The text around the token `id` in its role at an input position.
    fn context(&self, position: usize, id: u32, role: Role) -> [String; 3] {
        let text = self.tokens.texts.partition_point(|(range, _)| range.end <= position);
        let range = self.tokens.texts.get(text).map_or(0..self.tokens.ids.len(), |(range, _)| range.clone());
        let at = if role == Role::Input { position } else { (position + 1).min(range.end) };
        let after = (at + usize::from(role != Role::Predicted)).min(range.end);
        let before = &self.tokens.ids[at.saturating_sub(CONTEXT).max(range.start)..at];
        let after = &self.tokens.ids[after..(after + CONTEXT).min(range.end)];
        let before = String::from_utf8_lossy(&self.tokenizer.decode(before)).into_owned();
        let after = String::from_utf8_lossy(&self.tokenizer.decode(after)).into_owned();
        [last(&before, CONTEXT).to_string(), self.tokenizer.token_text(id), first(&after, CONTEXT).to_string()]
    }
}

/// The higher lift first, then the more frequent, then the lower id.
fn rank(a: &TokenLift, b: &TokenLift) -> Ordering {
    b.lift.total_cmp(&a.lift).then(b.count.cmp(&a.count)).then(a.id.cmp(&b.id))
}

/// At most `bytes` of the start of a text.
fn first(text: &str, bytes: usize) -> &str {
    let end = (0..=bytes.min(text.len())).rev().find(|&end| text.is_char_boundary(end));
    &text[..end.unwrap_or(0)]
}

/// At most `bytes` of its end.
fn last(text: &str, bytes: usize) -> &str {
    let start = (text.len().saturating_sub(bytes)..text.len()).find(|&start| text.is_char_boundary(start));
    &text[start.unwrap_or(text.len())..]
}

#[cfg(test)]
mod tests {
    use super::super::trace::tests::{close, layer};
    use super::*;
    use crate::config::{TokenizerConfig, TokenizerKind};

    fn bytes_tokenizer() -> Tokenizer {
        let config = TokenizerConfig { kind: TokenizerKind::Bytes, vocab_size: 0, path: String::new() };
        Tokenizer::from_config(&config, &[]).unwrap()
    }

    fn vocabulary(text: &str, predicted: &str, experts: &[u16]) -> Vocabulary {
        let tokenizer = bytes_tokenizer();
        let ids = tokenizer.encode(text).unwrap();
        let tokens = Tokens { texts: vec![(0..ids.len(), 0)], ids, ..Tokens::default() };
        let inputs = tokens.ids.len() - 1;
        let layer = layer(experts);
        let vocab = tokenizer.vocab_size();
        let occurrences = [
            Occurrences::new(Role::Input, &tokens.ids[..inputs], vocab),
            Occurrences::new(Role::Predicted, &tokenizer.encode(predicted).unwrap(), vocab),
            Occurrences::new(Role::Target, &tokens.ids[1..], vocab),
        ];
        let source = Source {
            layer: &layer,
            counts_E: &layer.counts_E(2),
            experts_per_token: 1,
            tokens: &tokens,
            tokenizer: &tokenizer,
            limits: Limits { tokens: 10, contexts: 2 },
        };
        source.vocabulary(&occurrences)
    }

    #[test]
    fn rare_tokens_do_not_win_and_equal_lifts_rank_by_frequency() {
        // x once and y four times, always at expert 1: too rare. a and b five times, c six times, always at expert 1.
        // d eleven times, ten of them at expert 0. The last byte is a target only.
        let text = "xyyyybbbbbaaaaaccccccddddddddddd.";
        let experts: Vec<u16> = (0..32).map(|n| u16::from(!(21..31).contains(&n))).collect();
        let found = vocabulary(text, &"d".repeat(32), &experts);
        assert_eq!(found.minimum, 5);
        let names: Vec<&str> = found.input[1].iter().map(|token| token.text.as_str()).collect();
        assert_eq!(names, ["c", "a", "b"]);
        close(found.input[1][0].lift, 32.0 / 22.0);
        // Six tokens, 22 / 32 expected of each: 4.125, with a variance of 6 * 22 / 32 * 10 / 32.
        close(found.input[1][0].z, 1.875 / (6.0 * 220.0 / 1024f64).sqrt());
        let [d] = &found.input[0][..] else { panic!("{:?}", found.input[0]) };
        assert_eq!((d.text.as_str(), d.count, d.served), ("d", 11, 10));
        close(d.lift, (10.0 / 11.0) / (10.0 / 32.0));
        // a, b, c: 16 of 16 at their favourite; d: 10 of 11.
        close(found.concentration.input, 26.0 / 27.0);
        close(found.even, 22.0 / 32.0);
        // What all positions predict is nobody's speciality.
        assert!(found.predicted.iter().all(Vec::is_empty));
        close(found.concentration.predicted, 22.0 / 32.0);
    }

    #[test]
    fn contexts_show_the_token_in_its_role() {
        // Inputs abababababab, targets bababababab.; expert 0 serves the a.
        let found = vocabulary("ababababababa", "cccccccccccc", &[0, 1, 0, 1, 0, 1, 0, 1, 0, 1, 0, 1]);
        let contexts = |tokens: &[TokenLift]| tokens[0].contexts.clone();
        let texts = |context: [&str; 3]| context.map(str::to_string);
        // The second and the fifth of six.
        assert_eq!(contexts(&found.input[0]), [texts(["ab", "a", "bababababa"]), texts(["abababab", "a", "baba"])]);
        assert_eq!(found.target[0][0].text, "b");
        assert_eq!(contexts(&found.target[0])[0], texts(["aba", "b", "ababababa"]));
        assert!(found.predicted[0].is_empty());
    }
}
