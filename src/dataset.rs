//! Documents -> token arrays. The split is fixed by the data alone; a batch is a pure function of (seed, number).

use crate::random::Stream;
use crate::tokenizer::Tokenizer;
use crate::transcript::Document;
use anyhow::Result;
use std::ops::Range;

/// A part of a document on one side of the split.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Part<'a> {
    pub domain: &'a str,
    pub text: &'a str,
}

/// Cuts the last `validation_fraction` of each document off, at the end of the line in which it would begin. Returns
/// the training parts and the validation parts. A document of one line is training text altogether.
pub fn split(documents: &[Document], validation_fraction: f64) -> (Vec<Part<'_>>, Vec<Part<'_>>) {
    let (mut training, mut validation) = (Vec::new(), Vec::new());
    for Document { domain, text, .. } in documents {
        let target = (text.len() as f64 * (1.0 - validation_fraction)) as usize;
        let line_end = text.as_bytes()[target..].iter().position(|&byte| byte == b'\n');
        let cut = line_end.map_or(text.len(), |offset| target + offset + 1);
        let (head, tail) = text.split_at(cut);
        let parts = [(&mut training, head), (&mut validation, tail)];
        for (side, text) in parts.into_iter().filter(|(_, text)| !text.is_empty()) {
            side.push(Part { domain, text });
        }
    }
    (training, validation)
}

/// Texts as one array of tokens, with an end-of-text token after each.
#[derive(Clone, Debug, Default)]
pub struct Tokens {
    pub ids: Vec<u32>,
    /// Names of the domains, sorted.
    pub domains: Vec<String>,
    /// Bytes of the texts, each end of text counted as one, as in the n-gram baseline.
    pub bytes: usize,
    /// For each text in order, where its tokens are and the index of its domain.
    pub texts: Vec<(Range<usize>, usize)>,
}

impl Tokens {
    pub fn encode(parts: &[Part], tokenizer: &Tokenizer) -> Result<Self> {
        let mut domains: Vec<String> = parts.iter().map(|part| part.domain.to_owned()).collect();
        domains.sort();
        domains.dedup();
        let mut tokens = Self { domains, ..Self::default() };
        for part in parts {
            let start = tokens.ids.len();
            tokens.ids.extend(tokenizer.encode(part.text)?);
            tokens.ids.extend(tokenizer.end_of_text());
            tokens.bytes += part.text.len() + usize::from(tokenizer.end_of_text().is_some());
            let domain = tokens.domains.iter().position(|domain| domain == part.domain).unwrap_or(0);
            tokens.texts.push((start..tokens.ids.len(), domain));
        }
        Ok(tokens)
    }

    /// Bytes that all tokens but the first stand for: what a model that starts with the first one predicts.
    pub fn predicted_bytes(&self, tokenizer: &Tokenizer) -> usize {
        let first = self.ids.first().map_or(0, |&id| tokenizer.token_bytes(id).len());
        self.bytes.saturating_sub(first)
    }

    /// The domain of the token at `position`.
    pub fn domain_at(&self, position: usize) -> usize {
        let text = self.texts.partition_point(|(range, _)| range.end <= position);
        self.texts.get(text).map_or(0, |&(_, domain)| domain)
    }

    /// Consecutive, non-overlapping windows of `time` inputs that cover every position with a successor; the last one
    /// may be shorter.
    pub fn windows(&self, time: usize) -> impl Iterator<Item = Range<usize>> {
        let end = self.ids.len().saturating_sub(1);
        (0..end).step_by(time).map(move |start| start..end.min(start + time))
    }
}

/// Inputs and the tokens that follow them: `batch` sequences of `time` tokens, one after the other.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Batch {
    pub ids: Vec<u32>,
    pub targets: Vec<u32>,
    /// Where each sequence begins in the text.
    pub starts: Vec<usize>,
}

/// Batch `number` of a training run. An epoch visits every window of `time` tokens once, in shuffled order; each
/// epoch cuts the (circular) array into windows at another phase.
pub fn batch(ids: &[u32], batch_size: usize, time: usize, seed: u64, number: u64) -> Batch {
    let windows = (ids.len() / time).max(1) as u64;
    let mut batch = Batch {
        ids: Vec::with_capacity(batch_size * time),
        targets: Vec::with_capacity(batch_size * time),
        starts: Vec::with_capacity(batch_size),
    };
    for row in 0..batch_size as u64 {
        let visit = number * batch_size as u64 + row;
        let stream = Stream::new(seed, "batch", &[visit / windows]);
        let phase = (stream.uniform(u64::MAX) * ids.len() as f64) as usize;
        let start = phase + stream.permuted(visit % windows, windows) as usize * time;
        batch.starts.push(start % ids.len());
        batch.ids.extend((start..start + time).map(|position| ids[position % ids.len()]));
        batch.targets.extend((start + 1..start + time + 1).map(|position| ids[position % ids.len()]));
    }
    batch
}

#[cfg(test)]
mod tests {
    use super::*;

    fn document(text: &str) -> Document {
        Document { name: "d".into(), domain: "x".into(), text: text.into() }
    }

    #[test]
    fn validation_is_the_last_part_of_each_document_cut_at_a_line() {
        let documents = [document("one\ntwo\nthree\nfour\n"), document("a single line without end")];
        let (training, validation) = split(&documents, 0.4);
        assert_eq!(training[0].text, "one\ntwo\nthree\n");
        assert_eq!(validation, [Part { domain: "x", text: "four\n" }]);
        assert_eq!(training[1].text, "a single line without end");
    }

    #[test]
    fn a_cut_inside_a_character_moves_to_the_end_of_its_line() {
        let documents = [document("ääää\nöö\n")];
        let (training, validation) = split(&documents, 0.45);
        assert_eq!((training[0].text, validation[0].text), ("ääää\n", "öö\n"));
    }

    #[test]
    fn an_epoch_visits_every_window_once_and_the_next_one_in_another_order() {
        let ids: Vec<u32> = (0..103).collect();
        let epoch = |number: u64| {
            // Ten windows of ten tokens: two batches of five.
            (2 * number..2 * number + 2)
                .flat_map(|n| batch(&ids, 5, 10, 42, n).ids.chunks(10).map(|w| w[0]).collect::<Vec<_>>())
                .collect::<Vec<u32>>()
        };
        for number in 0..3 {
            let mut starts = epoch(number);
            starts.sort_unstable();
            let gaps: Vec<u32> = starts.windows(2).map(|pair| pair[1] - pair[0]).collect();
            assert!(gaps.iter().all(|&gap| gap == 10 || gap == 13), "epoch {number} starts at {starts:?}");
        }
        assert_ne!(epoch(0), epoch(1));
    }

    #[test]
    fn a_batch_depends_on_seed_and_number_alone_and_targets_follow_inputs() {
        let ids: Vec<u32> = (0..1000).collect();
        let first = batch(&ids, 4, 16, 1, 7);
        assert_eq!(first, batch(&ids, 4, 16, 1, 7));
        assert_ne!(first, batch(&ids, 4, 16, 2, 7));
        assert!(first.ids.iter().zip(&first.targets).all(|(id, target)| (id + 1) % 1000 == *target));
    }

    #[test]
    fn windows_cover_every_position_with_a_successor_once() {
        let tokens = Tokens { ids: (0..26).collect(), ..Tokens::default() };
        assert_eq!(tokens.windows(10).collect::<Vec<_>>(), [0..10, 10..20, 20..25]);
    }
}
