//! The same weights one step at a time, with a cache of keys and values: for sampling. No graph, no gradients.

use super::attention::Attention;
use super::dispatch::Dispatch;
use super::memory::{BEFORE_START, Memory, Reading};
use super::moe::{ExpertWeights, FeedForward, Routed};
use super::router::Routing;
use super::transformer::Transformer;
use crate::ops::buffer::Buffer;
use crate::ops::gemm::matrix_vector;
use crate::ops::matmul::{FEW_ROWS, linear, outputs_per_task};
use crate::ops::{norm, pool, simd, swiglu};
use anyhow::{Result, bail};

/// Sequences of equal length that are being continued.
pub struct Decoder<'a> {
    model: &'a Transformer,
    sequences: usize,
    position: usize,
    /// Positions that the caches have room for.
    capacity: usize,
    caches: Vec<Cache>,
    /// The last tokens of each sequence, as many as memories look back at.
    recent: Vec<u32>,
    step: Step,
}

/// One layer's keys and values, (sequences, G, T, C) each.
#[derive(Clone)]
struct Cache {
    keys: Vec<f32>,
    values: Vec<f32>,
}

/// What the model says about the tokens that it was given.
#[derive(Default)]
pub struct Step {
    /// The new tokens' routing, one entry per MoE layer, without losses; tokens of one sequence after the other.
    pub routing: Vec<Routing>,
    /// What the new tokens read, one entry a memory; in the same order.
    pub readings: Vec<Reading>,
    /// The new tokens' logits (N, V).
    pub logits_NV: Vec<f32>,
}

/// For which of the new tokens logits are wanted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Logits {
    /// For each sequence's last one.
    Last,
    All,
}

impl<'a> Decoder<'a> {
    /// A decoder at position 0 of one sequence, with room for a whole context.
    pub fn new(model: &'a Transformer) -> Self {
        Self::with_room(model, model.model.max_position_embeddings)
    }

    /// The same with room for `positions`, or for a whole context where that is less.
    pub fn with_room(model: &'a Transformer, positions: usize) -> Self {
        let shape = &model.model;
        let capacity = positions.min(shape.max_position_embeddings);
        let len = shape.num_key_value_heads * capacity * shape.head_dim;
        // Zeros that nobody has touched take no memory yet: a long context costs what of it is used.
        let cache = |_| Cache { keys: vec![0.0; len], values: vec![0.0; len] };
        let caches = (0..shape.num_hidden_layers).map(cache).collect();
        let step = Step {
            routing: vec![Routing::default(); model.moe_layers().len()],
            readings: vec![Reading::default(); model.memories().count()],
            ..Step::default()
        };
        let longest = model.memories().flat_map(|memory| &memory.orders).map(|(order, _)| *order).max();
        let recent = vec![BEFORE_START; longest.map_or(0, |order| order - 1)];
        Self { model, sequences: 1, position: 0, capacity, caches, recent, step }
    }

    /// This sequence `count` times, to be continued in different ways.
    pub fn repeat(mut self, count: usize) -> Self {
        if count == 1 {
            return self;
        }
        let channels = self.model.model.head_dim;
        let (head, used) = ((self.capacity * channels).max(1), self.position * channels);
        let repeated = |numbers: &[f32]| {
            // Positions that are still free are not copied, and take no memory yet either.
            let mut copies = vec![0.0; numbers.len() * count];
            for (copy, original) in copies.chunks_exact_mut(head).zip(numbers.chunks_exact(head).cycle()) {
                copy[..used].copy_from_slice(&original[..used]);
            }
            copies
        };
        for cache in &mut self.caches {
            cache.keys = repeated(&cache.keys);
            cache.values = repeated(&cache.values);
        }
        self.recent = self.recent.repeat(count);
        self.sequences *= count;
        self
    }

    /// Positions that are free.
    pub fn room(&self) -> usize {
        self.capacity - self.position
    }

    /// Back to position 0.
    pub fn clear(&mut self) {
        self.position = 0;
        self.recent.fill(BEFORE_START);
    }

    /// Appends new tokens, equally many to each sequence and one sequence's after the other's. Once a step of few tokens
    /// has been taken, further ones allocate no memory, save for the angles of 256 further positions at a time.
    ///
    /// # Errors
    /// If there is no room for them, or an id is not in the vocabulary.
    pub fn advance(&mut self, ids_N: &[u32], wanted: Logits) -> Result<&Step> {
        let (rows, added) = (ids_N.len(), ids_N.len() / self.sequences);
        if added > self.room() || added == 0 || !rows.is_multiple_of(self.sequences) {
            bail!("{rows} tokens cannot continue {} sequences with room for {}", self.sequences, self.room());
        }
        let hidden = self.model.model.hidden_size;
        let values = self.model.parameters.values();
        let mut x_ND = Buffer::any(rows * hidden);
        for (x_D, &id) in x_ND.chunks_exact_mut(hidden).zip(ids_N) {
            let table = &values[self.model.embedding_VD.clone()];
            let Some(row_D) = table.chunks_exact(hidden).nth(id as usize) else {
                bail!("token id {id} is not below the model's vocabulary size {}", self.model.vocab_size);
            };
            x_D.copy_from_slice(row_D);
        }
        let mut routing = self.step.routing.iter_mut();
        let mut readings = self.step.readings.iter_mut();
        let place = Place { sequences: self.sequences, added, position: self.position };
        for (layer, cache) in self.model.layers.iter().zip(&mut self.caches) {
            if let Some(memory) = &layer.memory
                && let Some(reading) = readings.next()
            {
                remember(memory, &values, &mut x_ND, ids_N, (&self.recent, self.sequences), reading);
            }
            attend(&layer.attention, &values, &mut x_ND, cache, place);
            feed_forward(&layer.feed_forward, &values, &mut x_ND, rows, &mut routing);
        }
        self.position += added;
        let looks_back = self.recent.len() / self.sequences;
        if looks_back > 0 {
            for (recent, ids) in self.recent.chunks_exact_mut(looks_back).zip(ids_N.chunks_exact(added)) {
                let news = added.min(looks_back);
                recent.copy_within(news.., 0);
                recent[looks_back - news..].copy_from_slice(&ids[added - news..]);
            }
        }

        let head = &self.model.head;
        let (mut h_ND, mut scales) = (Buffer::any(x_ND.len()), Buffer::any(rows));
        norm::forward(&x_ND, &values[head.norm.clone()], head.eps, &mut h_ND, &mut scales);
        let mut wanted_rows = rows;
        if wanted == Logits::Last && added > 1 {
            wanted_rows = self.sequences;
            for sequence in 0..self.sequences {
                let last = ((sequence + 1) * added - 1) * hidden;
                h_ND.copy_within(last..last + hidden, sequence * hidden);
            }
        }
        let logits_NV = &mut self.step.logits_NV;
        logits_NV.resize(wanted_rows * self.model.vocab_size, 0.0);
        linear(&h_ND[..wanted_rows * hidden], &values[head.weight_VD.clone()], logits_NV, wanted_rows);
        Ok(&self.step)
    }
}

/// Where the new tokens stand: `added` of them in each sequence, from `position` on.
#[derive(Clone, Copy)]
struct Place {
    sequences: usize,
    added: usize,
    position: usize,
}

/// x += gate v, given the `recent` tokens before the new ones of each of the sequences.
fn remember(
    layer: &Memory,
    values: &[f32],
    x_ND: &mut [f32],
    ids_N: &[u32],
    (recent, sequences): (&[u32], usize),
    reading: &mut Reading,
) {
    let (hidden, rows) = (layer.hidden, ids_N.len());
    reading.rows_NO.clear();
    for (before, ids) in recent.chunks_exact(recent.len() / sequences).zip(ids_N.chunks_exact(rows / sequences)) {
        layer.look_up(before, ids, &mut reading.rows_NO);
    }
    let (mut h_ND, mut scales) = (Buffer::any(x_ND.len()), Buffer::any(rows));
    norm::forward(x_ND, &values[layer.norm.clone()], layer.eps, &mut h_ND, &mut scales);
    let (mut e, mut kv) = (Buffer::any(rows * layer.channels()), Buffer::any(2 * x_ND.len()));
    layer.gather(values, &reading.rows_NO, &mut e);
    linear(&e, &values[layer.key_value.clone()], &mut kv, rows);
    reading.gates_N.resize(rows, 0.0);
    simd::vectorized!(|| {
        let stream = x_ND.chunks_exact_mut(hidden).zip(h_ND.chunks_exact(hidden));
        for ((x_D, h_D), (kv, gate)) in stream.zip(kv.chunks_exact(2 * hidden).zip(&mut reading.gates_N)) {
            *gate = simd::sigmoid(layer.logit(h_D, &kv[..hidden]).0);
            simd::add_scaled(x_D, *gate, &kv[hidden..]);
        }
    });
}

/// x += W_o attention(...), reading and extending the cache.
fn attend(layer: &Attention, values: &[f32], x_ND: &mut [f32], cache: &mut Cache, place: Place) {
    let Attention { hidden, heads, kv_heads, channels, .. } = *layer;
    let (rows, width) = (place.sequences * place.added, layer.qkv_width());
    let time = cache.keys.len() / (place.sequences * kv_heads * channels);
    let (mut h_ND, mut scales) = (Buffer::any(x_ND.len()), Buffer::any(rows));
    norm::forward(x_ND, &values[layer.norm.clone()], layer.eps, &mut h_ND, &mut scales);
    let mut qkv = Buffer::any(rows * width);
    linear(&h_ND, &values[layer.qkv.clone()], &mut qkv, rows);
    layer.add_bias(values, &mut qkv);
    simd::vectorized!(|| {
        for (row, qkv_row) in qkv.chunks_exact_mut(width).enumerate() {
            let (sequence, position) = (row / place.added, place.position + row % place.added);
            layer.place(values, qkv_row, position);
            let (_, kv_row) = qkv_row.split_at(heads * channels);
            let (k_row, v_row) = kv_row.split_at(kv_heads * channels);
            for (row, store) in [(k_row, &mut cache.keys), (v_row, &mut cache.values)] {
                for (kv_head, head_C) in row.chunks_exact(channels).enumerate() {
                    let start = ((sequence * kv_heads + kv_head) * time + position) * channels;
                    store[start..start + channels].copy_from_slice(head_C);
                }
            }
        }
    });
    let mut out = Buffer::any(rows * heads * channels);
    // Enough keys for a task that is worth handing over.
    let heads_per_task = ((1 << 13) / ((place.position + place.added) * channels)).clamp(1, heads);
    pool::run_pieces(&mut out, heads * channels, heads_per_task * channels, |out, row, first| {
        let (sequence, seen) = (row / place.added, place.position + row % place.added + 1);
        let mut scores = Buffer::any(seen);
        let q = &qkv[row * width + first..][..out.len()];
        for (offset, (out_C, q_C)) in out.chunks_exact_mut(channels).zip(q.chunks_exact(channels)).enumerate() {
            let kv_head = (first / channels + offset) * kv_heads / heads;
            let start = (sequence * kv_heads + kv_head) * time * channels;
            let seen = start..start + seen * channels;
            attend_one(q_C, &cache.keys[seen.clone()], &cache.values[seen], &mut scores, out_C);
        }
    });
    linear(&out, &values[layer.output.clone()], &mut h_ND, rows);
    simd::add(x_ND, &h_ND[..rows * hidden]);
}

/// One query over the keys and values of `scores.len()` positions.
fn attend_one(q_C: &[f32], keys_TC: &[f32], values_TC: &[f32], scores: &mut [f32], out_C: &mut [f32]) {
    let channels = q_C.len();
    matrix_vector(keys_TC, q_C, scores);
    let scale = 1.0 / (channels as f32).sqrt();
    simd::vectorized!(|| {
        scores.iter_mut().for_each(|score| *score *= scale);
        simd::softmax(scores);
        out_C.fill(0.0);
        for (&p, v_C) in scores.iter().zip(values_TC.chunks_exact(channels)) {
            simd::add_scaled(out_C, p, v_C);
        }
    });
}

/// x += experts(norm(x)); a layer that routes writes its decisions to the next of `routing`.
fn feed_forward<'a>(
    layer: &FeedForward,
    values: &[f32],
    x_ND: &mut [f32],
    rows: usize,
    routing: &mut impl Iterator<Item = &'a mut Routing>,
) {
    let hidden = layer.hidden;
    let (mut h_ND, mut scales) = (Buffer::any(x_ND.len()), Buffer::any(rows));
    norm::forward(x_ND, &values[layer.norm.clone()], layer.eps, &mut h_ND, &mut scales);
    if let Some((routed, routing)) = layer.routed.as_ref().and_then(|routed| Some((routed, routing.next()?))) {
        let mut scores_NE = Buffer::any(rows * routed.router.num_experts);
        linear(&h_ND, &values[routed.gate.clone()], &mut scores_NE, rows);
        let bias = routed.bias.as_ref().map(|bias| &values[bias.clone()]);
        routed.router.decide_again(&scores_NE, bias, routing);
        if rows < FEW_ROWS {
            apply_experts_to_few(routed, values, &h_ND, x_ND, routing);
        } else {
            apply_experts(routed, values, &h_ND, x_ND, routing);
        }
    }
    if let Some(shared) = &layer.shared {
        let mut y_ND = Buffer::any(h_ND.len());
        apply_expert(&shared.weights, values, &h_ND, &mut y_ND);
        for ((x_D, y_D), h_D) in
            x_ND.chunks_exact_mut(hidden).zip(y_ND.chunks_exact(hidden)).zip(h_ND.chunks_exact(hidden))
        {
            let gate = shared.gate.as_ref().map_or(1.0, |gate| simd::sigmoid(simd::dot(h_D, &values[gate.clone()])));
            simd::add_scaled(x_D, gate, y_D);
        }
    }
}

/// [`apply_experts`] without sorting: (token, expert) pairs one by one, each weight read once.
fn apply_experts_to_few(routed: &Routed, values: &[f32], h_ND: &[f32], x_ND: &mut [f32], routing: &Routing) {
    /// The most outputs in a task.
    const PIECE: usize = 64;
    let k = routed.router.experts_per_token;
    let hidden = h_ND.len() * k / routing.experts_NK.len();
    let expert = |pair: usize| &routed.experts[routing.experts_NK[pair] as usize];
    let widest = (0..routing.experts_NK.len()).map(|pair| expert(pair).width).max().unwrap_or(0);
    let mut a_SF = Buffer::any(routing.experts_NK.len() * widest);
    pool::run_pieces(&mut a_SF, widest, outputs_per_task(2 * hidden).min(PIECE), |a, pair, first| {
        let (weights, h_D) = (expert(pair), &h_ND[pair / k * hidden..][..hidden]);
        let count = a.len().min(weights.width.saturating_sub(first));
        let mut u = [0.0; 2 * PIECE];
        let (gate, up) = u[..2 * count].split_at_mut(count);
        let rows = |first: usize| &values[weights.gate_up.clone()][first * hidden..][..count * hidden];
        matrix_vector(rows(first), h_D, gate);
        matrix_vector(rows(weights.width + first), h_D, up);
        simd::vectorized!(|| swiglu::activate(&u[..2 * count], &mut a[..count]));
    });
    pool::run_pieces(x_ND, hidden, outputs_per_task(k * widest).min(PIECE), |x, token, first| {
        let mut y = [0.0; PIECE];
        for pair in token * k..(token + 1) * k {
            let (weights, width) = (expert(pair), expert(pair).width);
            let down = &values[weights.down.clone()][first * width..][..x.len() * width];
            matrix_vector(down, &a_SF[pair * widest..][..width], &mut y[..x.len()]);
            simd::vectorized!(|| simd::add_scaled(x, routing.gates_NK[pair], &y));
        }
    });
}

/// Adds the routed experts' weighted outputs to x.
fn apply_experts(routed: &Routed, values: &[f32], h_ND: &[f32], x_ND: &mut [f32], routing: &Routing) {
    let k = routed.router.experts_per_token;
    let hidden = h_ND.len() * k / routing.experts_NK.len();
    let dispatch = Dispatch::new(routing, k);
    let h_SD = dispatch.gather(h_ND, hidden);
    let mut y_SD = Buffer::any(h_SD.len());
    let busy = routed.experts.iter().zip(&dispatch.rows_E).filter(|(_, rows)| !rows.is_empty());
    let mut rest = &mut y_SD[..];
    let tasks: Vec<_> = busy
        .filter_map(|(weights, rows)| {
            let y_RD = rest.split_off_mut(..rows.len() * hidden)?;
            Some((weights, &h_SD[rows.start * hidden..rows.end * hidden], y_RD))
        })
        .collect();
    pool::run(tasks, |(weights, h_RD, y_RD)| apply_expert(weights, values, h_RD, y_RD));
    for (place, (&token, &gate)) in dispatch.tokens_S.iter().zip(&dispatch.gates_S).enumerate() {
        let x_D = &mut x_ND[token as usize * hidden..][..hidden];
        simd::add_scaled(x_D, gate, &y_SD[place * hidden..][..hidden]);
    }
}

/// One expert over its rows.
fn apply_expert(weights: &ExpertWeights, values: &[f32], h_RD: &[f32], y_RD: &mut [f32]) {
    let (rows, width) = (h_RD.len() / weights.hidden, weights.width);
    let expert = weights.over(values, 0..rows, None);
    let (mut u, mut a_RF) = (Buffer::any(rows * 2 * width), Buffer::any(rows * width));
    linear(h_RD, expert.gate_up_2FD, &mut u, rows);
    simd::vectorized!(|| {
        for (u, a) in u.chunks_exact(2 * width).zip(a_RF.chunks_exact_mut(width)) {
            swiglu::activate(u, a);
        }
    });
    linear(&a_RF, expert.down_DF, y_RD, rows);
}
