//! What the memories are used for.
//!
//! - gate: mean over tokens of how far the gate was open, from 0 to 1.
//! - rows in use: of each table the share of rows that some token of the text read.
//! - n-grams: those whose tokens open the gate widest in the mean, of the longest order. An n-gram needs five
//!   occurrences, and one in ten thousand tokens; those that reach over the start of a context window are left out,
//!   because the model cannot see them whole.

use super::trace::{Trace, mean};
use super::vocabulary::minimum_count;
use crate::dataset::Tokens;
use crate::model::memory::{Memory, Reading};
use crate::model::transformer::Transformer;
use crate::tokenizer::Tokenizer;
use serde::Serialize;
use std::collections::BTreeMap;

/// N-grams that are listed for each memory.
const LISTED: usize = 20;

/// What N tokens read from one memory.
#[derive(Clone, Debug)]
pub struct MemoryTrace {
    /// Index of the transformer layer before whose attention it is read.
    pub layer: usize,
    pub gates_N: Vec<f32>,
    /// Of each table, for each row, whether it was read.
    used: Vec<Vec<bool>>,
}

impl MemoryTrace {
    pub fn of(memory: &Memory) -> Self {
        let used = vec![vec![false; memory.slots]; memory.orders.len()];
        Self { layer: memory.layer, gates_N: Vec::new(), used }
    }

    pub fn add(&mut self, reading: &Reading) {
        self.gates_N.extend_from_slice(&reading.gates_N);
        for rows_O in reading.rows_NO.chunks_exact(self.used.len()) {
            rows_O.iter().zip(&mut self.used).for_each(|(&row, used)| used[row as usize] = true);
        }
    }
}

#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct MemoryReport {
    /// Index of the transformer layer before whose attention it is read.
    pub layer: usize,
    /// Orders of the n-grams, one table each.
    pub ngrams: Vec<usize>,
    pub slots: usize,
    pub mean_gate: f64,
    /// Share of each table's rows that the text reads.
    pub rows_in_use: Vec<f64>,
    /// Occurrences that an n-gram needs.
    pub minimum: u64,
    /// The n-grams of the longest order that open the gate widest.
    pub widest: Vec<NgramGate>,
}

#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct NgramGate {
    pub ids: Vec<u32>,
    pub text: String,
    pub count: u64,
    pub mean_gate: f64,
}

/// One entry a memory.
pub fn memories(model: &Transformer, trace: &Trace, tokens: &Tokens, tokenizer: &Tokenizer) -> Vec<MemoryReport> {
    let minimum = minimum_count(trace.tokens());
    let time = trace.time;
    let report = |memory: &MemoryTrace| MemoryReport {
        layer: memory.layer,
        ngrams: model.model.memory_ngrams.clone(),
        slots: model.model.memory_slots,
        mean_gate: mean(memory.gates_N.iter().map(|&gate| f64::from(gate))),
        rows_in_use: memory.used.iter().map(|used| mean(used.iter().map(|&used| f64::from(u8::from(used))))).collect(),
        minimum,
        widest: widest(&memory.gates_N, model.model.memory_ngrams.last().copied().unwrap_or(1), time, minimum, tokens)
            .into_iter()
            .map(|(ids, count, mean_gate)| NgramGate {
                ids: ids.to_vec(),
                text: text_of(ids, tokenizer),
                count,
                mean_gate,
            })
            .collect(),
    };
    trace.memories.iter().map(report).collect()
}

/// N-grams of `order` tokens with their number and mean gate, the widest first.
fn widest<'a>(
    gates_N: &[f32],
    order: usize,
    time: usize,
    minimum: u64,
    tokens: &'a Tokens,
) -> Vec<(&'a [u32], u64, f64)> {
    let mut sums: BTreeMap<&[u32], (u64, f64)> = BTreeMap::new();
    for (position, &gate) in gates_N.iter().enumerate().filter(|(position, _)| position % time + 1 >= order) {
        let (count, sum) = sums.entry(&tokens.ids[position + 1 - order..=position]).or_default();
        *count += 1;
        *sum += f64::from(gate);
    }
    let means = sums.into_iter().filter(|&(_, (count, _))| count >= minimum);
    let mut means: Vec<_> = means.map(|(ids, (count, sum))| (ids, count, sum / count as f64)).collect();
    // Of equal ones the more frequent first, then by id.
    means.sort_by(|a, b| b.2.total_cmp(&a.2).then(b.1.cmp(&a.1)));
    means.truncate(LISTED);
    means
}

fn text_of(ids: &[u32], tokenizer: &Tokenizer) -> String {
    let bytes: Vec<u8> = ids.iter().flat_map(|&id| tokenizer.token_bytes(id)).copied().collect();
    String::from_utf8_lossy(&bytes).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn n_grams_are_ranked_by_their_mean_gate_and_not_across_windows() {
        let ids = vec![1, 2, 1, 2, 3, 1, 2, 1, 9];
        let tokens = Tokens { ids, ..Tokens::default() };
        let gates = [0.9, 0.5, 0.1, 0.7, 0.9, 0.2, 0.3, 0.4];
        // Windows 1 2 1 2 and 3 1 2 1: pairs 12 at 1, 3 and 6, 21 at 2 and 7, 31 at 5.
        let found = widest(&gates, 2, 4, 2, &tokens);
        assert_eq!(
            found.iter().map(|(ids, count, _)| (*ids, *count)).collect::<Vec<_>>(),
            [(&[1, 2][..], 3), (&[2, 1][..], 2)]
        );
        assert!((found[0].2 - 0.5).abs() < 1e-6 && (found[1].2 - 0.25).abs() < 1e-6);
        assert_eq!(widest(&gates, 2, 4, 1, &tokens).len(), 3);
    }
}
