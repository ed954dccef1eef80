//! The memory sub-layer as one operation: x + dropout(gate v), an n-gram's value read from tables.
//!
//! Conditional memory (Engram: Cheng et al. 2026, "Conditional Memory via Scalable Lookup"; hashed n-gram embeddings).
//! The last few tokens, hashed, name a row in a table for each order of n-grams. The rows e, one after the other, become
//! a key W_k e and a value W_v e, and a gate lets in what fits the context:
//!
//! ```text
//! gate = sigmoid(norm(x) . norm(W_k e) / sqrt(D))        x += dropout(gate W_v e)
//! ```
//!
//! Tables start as zeros, so training starts as if there were no memory, and an n-gram that never occurred adds nothing.
//! A step reads and changes the rows of its own n-grams alone: its cost does not depend on how many rows there are.

use super::operation::{Operation, Pass, Slot, apply};
use super::parameters::{Init, Kind, Layout, Parameters, slices_mut};
use crate::config::ModelConfig;
use crate::ops::buffer::Buffer;
use crate::ops::dropout::Dropout;
use crate::ops::matmul::{Mat, MatMut, Store, add_weight_gradient, matmul, parallel_matmul};
use crate::ops::{norm, pool, rows_per_task, simd};
use crate::random::{Stream, mix};
use candle_core::{Result, Tensor, bail};
use std::ops::Range;
use std::sync::{Arc, OnceLock};

/// Stands for the tokens before a sequence's first; no token has this id.
pub const BEFORE_START: u32 = u32::MAX;

/// One layer's memory: where its weights are and how its tables are addressed.
pub struct Memory {
    pub layer: usize,
    pub hidden: usize,
    pub eps: f32,
    pub dropout: f64,
    /// Of each table: the order of its n-grams, and where their hash starts.
    pub orders: Vec<(usize, u64)>,
    /// Rows of a table, and channels of a row.
    pub slots: usize,
    pub width: usize,
    pub norm: Range<usize>,
    /// W_k above W_v, (2D, O times `width`).
    pub key_value: Range<usize>,
    /// One table (`slots`, `width`) for each of the O orders, one after the other.
    pub tables: Range<usize>,
}

/// What N tokens read from one memory: what logging and inspection look at.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Reading {
    /// The row in each of the O tables.
    pub rows_NO: Vec<u32>,
    pub gates_N: Vec<f32>,
}

impl Reading {
    /// The rows of one token, the shortest n-gram's first.
    pub fn rows(&self, token: usize) -> &[u32] {
        let orders = self.rows_NO.len() / self.gates_N.len();
        &self.rows_NO[token * orders..][..orders]
    }
}

impl Memory {
    /// Adds the layer's parameters to `layout`.
    pub fn new(layout: &mut Layout, model: &ModelConfig, layer: usize) -> Self {
        let ModelConfig { hidden_size: hidden, memory_slots: slots, memory_dim: width, .. } = *model;
        let name = |part: &str| format!("model.layers.{layer}.memory.{part}.weight");
        let shape = [hidden, model.memory_ngrams.len() * width];
        let normal = Init::Normal(model.initializer_range);
        let norm = layout.add(name("norm"), &[hidden], Kind::Gain, Init::Constant(1.0));
        let key = layout.add(name("key_proj"), &shape, Kind::Matrix, normal);
        let value = layout.add(name("value_proj"), &shape, Kind::Matrix, normal);
        let mut table = |order: &usize| {
            layout.add(name(&format!("table_{order}")), &[slots, width], Kind::Table, Init::Constant(0.0))
        };
        let tables: Vec<Range<usize>> = model.memory_ngrams.iter().map(&mut table).collect();
        // Part of the architecture: no run's seed has to be known to read its tables.
        let start = |&order: &usize| Stream::new(0, "n-gram", &[layer as u64, order as u64]).bits(0);
        Self {
            layer,
            hidden,
            eps: model.rms_norm_eps as f32,
            dropout: model.hidden_dropout,
            orders: model.memory_ngrams.iter().map(|order| (*order, start(order))).collect(),
            slots,
            width,
            norm,
            key_value: key.start..value.end,
            tables: value.end..tables.last().map_or(value.end, |table| table.end),
        }
    }

    /// Channels of all rows that a token reads.
    pub fn channels(&self) -> usize {
        self.orders.len() * self.width
    }

    /// Weights of the tables that a token does not read.
    pub fn idle(&self) -> usize {
        self.tables.len() - self.channels()
    }

    /// Appends to `rows_NO` the rows for `ids`, which follow `before` in a sequence.
    pub fn look_up(&self, before: &[u32], ids: &[u32], rows_NO: &mut Vec<u32>) {
        for position in 0..ids.len() {
            let id = |back: usize| match position.checked_sub(back) {
                Some(index) => ids[index],
                None => before.len().checked_sub(back - position).map_or(BEFORE_START, |index| before[index]),
            };
            rows_NO.extend(self.orders.iter().map(|&(order, start)| {
                let hash = (0..order).fold(start, |hash, back| mix(hash ^ u64::from(id(back))));
                (hash % self.slots as u64) as u32
            }));
        }
    }

    /// The rows of N tokens in sequences of `time`.
    pub fn rows(&self, ids_N: &[u32], time: usize) -> Vec<u32> {
        let mut rows_NO = Vec::with_capacity(ids_N.len() * self.orders.len());
        ids_N.chunks(time).for_each(|ids| self.look_up(&[], ids, &mut rows_NO));
        rows_NO
    }

    /// Where the rows of one token are in the flat buffer.
    #[inline(always)]
    fn places<'a>(&'a self, rows_O: &'a [u32]) -> impl Iterator<Item = Range<usize>> + 'a {
        rows_O.iter().enumerate().map(|(table, &row)| {
            let start = self.tables.start + (table * self.slots + row as usize) * self.width;
            start..start + self.width
        })
    }

    /// Copies the rows of tokens out of the tables.
    #[inline(always)]
    pub fn gather(&self, values: &[f32], rows_NO: &[u32], e: &mut [f32]) {
        let tokens = rows_NO.chunks_exact(self.orders.len()).zip(e.chunks_exact_mut(self.channels()));
        for (rows_O, e) in tokens {
            for (place, e) in self.places(rows_O).zip(e.chunks_exact_mut(self.width)) {
                e.copy_from_slice(&values[place]);
            }
        }
    }

    /// The logit of a token's gate, and the scale that normalises its key.
    #[inline(always)]
    pub fn logit(&self, h_D: &[f32], k_D: &[f32]) -> (f32, f32) {
        let scale = norm::scale(k_D, self.eps);
        (simd::dot(h_D, k_D) * scale / (self.hidden as f32).sqrt(), scale)
    }

    /// `x_ND` with what `ids_N` call up added, and what that was.
    pub fn forward(
        self: &Arc<Self>,
        parameters: &Arc<Parameters>,
        ids_N: &[u32],
        x_ND: &Tensor,
        pass: Pass,
    ) -> Result<(Tensor, Arc<Reading>)> {
        if ids_N.len() != pass.tokens() {
            bail!("{} ids for the memory of {} tokens", ids_N.len(), pass.tokens());
        }
        let reading = Arc::new(OnceLock::new());
        let operation = MemoryOp {
            layer: self.clone(),
            parameters: parameters.clone(),
            rows_NO: self.rows(ids_N, pass.time),
            pass,
            reading: reading.clone(),
            saved: Slot::default(),
        };
        let y_ND = apply(x_ND, operation)?;
        Ok((y_ND, reading.get().cloned().unwrap_or_default()))
    }
}

struct MemoryOp {
    layer: Arc<Memory>,
    parameters: Arc<Parameters>,
    rows_NO: Vec<u32>,
    pass: Pass,
    reading: Arc<OnceLock<Arc<Reading>>>,
    saved: Slot<Saved>,
}

/// What the backward pass needs.
struct Saved {
    h_ND: Buffer,
    scales_N: Buffer,
    /// The rows of each token, one after the other.
    e: Buffer,
    /// Key and value of each token.
    kv: Buffer,
}

impl MemoryOp {
    fn drop_out(&self) -> Option<Dropout> {
        self.pass.dropout("memory dropout", self.layer.layer, self.layer.dropout)
    }

    /// Gradients of keys and values, and of h, from that of gate v.
    fn backward_gates(&self, saved: &Saved, dresidual: &[f32], dkv: &mut [f32], dh_ND: &mut [f32]) {
        let (layer, hidden) = (&*self.layer, self.layer.hidden);
        let chunk = rows_per_task(self.pass.tokens());
        let tasks = dkv.chunks_mut(chunk * 2 * hidden).zip(dh_ND.chunks_mut(chunk * hidden)).enumerate().collect();
        let root = (hidden as f32).sqrt();
        pool::run(tasks, |(task, (dkv, dh_ND)): (usize, (&mut [f32], &mut [f32]))| {
            simd::vectorized!(|| {
                let rows = dkv.chunks_exact_mut(2 * hidden).zip(dh_ND.chunks_exact_mut(hidden)).enumerate();
                for (offset, (dkv, dh_D)) in rows {
                    let token = task * chunk + offset;
                    let h_D = &saved.h_ND[token * hidden..][..hidden];
                    let dy_D = &dresidual[token * hidden..][..hidden];
                    let (k_D, v_D) = saved.kv[token * 2 * hidden..][..2 * hidden].split_at(hidden);
                    let (dk_D, dv_D) = dkv.split_at_mut(hidden);
                    let (logit, scale) = layer.logit(h_D, k_D);
                    let gate = simd::sigmoid(logit);
                    let dlogit = simd::dot(dy_D, v_D) * gate * (1.0 - gate);
                    // With k' = scale k: logit = h . k' / sqrt(D), so k' . dk' = dlogit logit.
                    let (to_other, to_self) = (dlogit * scale / root, dlogit * logit * scale * scale / hidden as f32);
                    for i in 0..hidden {
                        dv_D[i] = gate * dy_D[i];
                        dk_D[i] = to_other * h_D[i] - to_self * k_D[i];
                        dh_D[i] = to_other * k_D[i];
                    }
                }
            });
        });
    }
}

impl Operation for MemoryOp {
    const NAME: &'static str = "memory";

    fn forward(&self, x_ND: &[f32]) -> Result<(Vec<f32>, Vec<usize>)> {
        let (layer, tokens) = (&*self.layer, self.pass.tokens());
        let (hidden, channels, orders) = (layer.hidden, layer.channels(), layer.orders.len());
        let values = self.parameters.values();
        let (norm_D, weight) = (&values[layer.norm.clone()], &values[layer.key_value.clone()]);
        let (mut h_ND, mut scales_N) = (Buffer::any(tokens * hidden), Buffer::any(tokens));
        let (mut e, mut kv) = (Buffer::any(tokens * channels), Buffer::any(tokens * 2 * hidden));
        let (mut y_ND, mut gates_N) = (vec![0.0; tokens * hidden], vec![0.0; tokens]);
        let chunk = rows_per_task(tokens);
        let inputs = x_ND.chunks(chunk * hidden).zip(self.rows_NO.chunks(chunk * orders));
        let kept = h_ND.chunks_mut(chunk * hidden).zip(scales_N.chunks_mut(chunk));
        let read = e.chunks_mut(chunk * channels).zip(kv.chunks_mut(chunk * 2 * hidden));
        let outputs = y_ND.chunks_mut(chunk * hidden).zip(gates_N.chunks_mut(chunk));
        let dropout = self.drop_out();
        let tasks = inputs.zip(kept).zip(read.zip(outputs)).enumerate().collect();
        pool::run(tasks, |(task, (((x, rows_NO), (h, scales)), ((e, kv), (y, gates))))| {
            let count = scales.len();
            norm::forward(x, norm_D, layer.eps, h, scales);
            layer.gather(&values, rows_NO, e);
            let (e_mat, weight) = (Mat::new(e, count, channels), Mat::new(weight, 2 * hidden, channels));
            let kv_mat = MatMut::new(kv, count, 2 * hidden);
            matmul(kv_mat, e_mat, weight.t(), Store::Overwrite, self.pass.precision);
            simd::vectorized!(|| {
                let rows = h.chunks_exact(hidden).zip(kv.chunks_exact(2 * hidden));
                for ((h_D, kv), (y_D, gate)) in rows.zip(y.chunks_exact_mut(hidden).zip(gates.iter_mut())) {
                    *gate = simd::sigmoid(layer.logit(h_D, &kv[..hidden]).0);
                    simd::add_scaled(y_D, *gate, &kv[hidden..]);
                }
            });
            if let Some(dropout) = dropout {
                dropout.apply(y, task * chunk * hidden);
            }
            simd::vectorized!(|| simd::add(y, x));
        });
        self.reading.get_or_init(|| Arc::new(Reading { rows_NO: self.rows_NO.clone(), gates_N }));
        if self.pass.is_training() {
            self.saved.put(Saved { h_ND, scales_N, e, kv });
        }
        Ok((y_ND, vec![tokens, hidden]))
    }

    fn backward(&self, x_ND: &[f32], dy_ND: &[f32]) -> Result<Option<Vec<f32>>> {
        let saved = self.saved.take()?;
        let (layer, tokens) = (&*self.layer, self.pass.tokens());
        let (hidden, channels) = (layer.hidden, layer.channels());
        let values = self.parameters.values();
        let dropped = self.drop_out().map(|dropout| dropout.copy(dy_ND));
        let dresidual = dropped.as_deref().unwrap_or(dy_ND);
        let (mut dkv, mut dh_ND) = (Buffer::any(tokens * 2 * hidden), Buffer::any(tokens * hidden));
        self.backward_gates(&saved, dresidual, &mut dkv, &mut dh_ND);

        let mut gradients = self.parameters.gradients();
        let ranges = [layer.norm.clone(), layer.key_value.clone()];
        let [dnorm, dweight] = slices_mut(&mut gradients, &ranges).try_into().expect("a slice for each range");
        let dkv_mat = Mat::new(&dkv, tokens, 2 * hidden);
        add_weight_gradient(dweight, dkv_mat, Mat::new(&saved.e, tokens, channels), self.pass.precision);
        let mut dx_ND = dy_ND.to_vec();
        norm::parallel_backward(x_ND, &values[layer.norm.clone()], &saved.scales_N, &dh_ND, &mut dx_ND, dnorm);

        let mut de = saved.e;
        let weight = Mat::new(&values[layer.key_value.clone()], 2 * hidden, channels);
        parallel_matmul(&mut de, dkv_mat, weight, Store::Overwrite, self.pass.precision);
        // On one thread, token by token: rows that several tokens share get their sums in a fixed order.
        let mut places = Vec::with_capacity(self.rows_NO.len());
        for (rows_O, de) in self.rows_NO.chunks_exact(layer.orders.len()).zip(de.chunks_exact(channels)) {
            for (place, de) in layer.places(rows_O).zip(de.chunks_exact(layer.width)) {
                simd::add(&mut gradients[place.clone()], de);
                places.push(place);
            }
        }
        self.parameters.touch(places);
        Ok(Some(dx_ND))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Config;

    fn memory(slots: usize) -> Memory {
        let mut config = Config::default();
        (config.model.memory_layers, config.model.memory_ngrams) = (vec![1], vec![2, 4]);
        config.model.memory_slots = slots;
        Memory::new(&mut Layout::default(), &config.model, 1)
    }

    #[test]
    fn a_row_depends_on_its_n_gram_alone() {
        let memory = memory(1 << 20);
        let rows = memory.rows(&[5, 6, 7, 8, 9, 6, 7, 8, 9, 1], 10);
        let row = |position: usize, table: usize| rows[position * 2 + table];
        // Positions 4 and 8 end in 6 7 8 9, and so in 8 9.
        assert_eq!((row(4, 0), row(4, 1)), (row(8, 0), row(8, 1)));
        // Positions 2 and 6 end in 6 7, but in different four.
        assert_eq!(row(2, 0), row(6, 0));
        assert_ne!(row(2, 1), row(6, 1));
        // All others differ: here nothing collides.
        let mut all: Vec<u32> = rows.clone();
        all.sort_unstable();
        all.dedup();
        assert_eq!(all.len(), 20 - 3 - 1);
    }

    #[test]
    fn sequences_know_nothing_of_each_other_and_a_cut_sequence_goes_on() {
        let memory = memory(1 << 20);
        let ids = [3, 1, 4, 1, 5, 9];
        let whole = memory.rows(&ids, 6);
        assert_eq!(memory.rows(&[ids, ids].concat(), 6), [&whole[..], &whole].concat());
        for cut in 0..6 {
            let mut parts = Vec::new();
            memory.look_up(&[], &ids[..cut], &mut parts);
            memory.look_up(&ids[..cut], &ids[cut..], &mut parts);
            assert_eq!(parts, whole, "cut at {cut}");
            // As a decoder has it: padded, and no more than is needed.
            let padded = [&[BEFORE_START; 3], &ids[..cut]].concat();
            let mut rest = Vec::new();
            memory.look_up(&padded[padded.len() - 3..], &ids[cut..], &mut rest);
            assert_eq!(rest, whole[2 * cut..]);
        }
    }

    #[test]
    fn rows_spread_evenly_over_any_number_of_slots() {
        for slots in [1, 7, 100, 128] {
            let memory = memory(slots);
            let ids: Vec<u32> = (0..100_000).map(|i| (i * i + i / 7) % 65_521).collect();
            let mut counts = vec![0u32; slots];
            memory.rows(&ids, ids.len()).iter().step_by(2).for_each(|&row| counts[row as usize] += 1);
            let even = 1e5 / slots as f64;
            assert!(
                counts.iter().all(|&count| (f64::from(count) - even).abs() < 6.0 * even.sqrt() + 1.0),
                "{counts:?}"
            );
        }
    }
}
