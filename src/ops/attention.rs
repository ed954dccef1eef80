//! Causal softmax attention for grouped queries, one (sequence, key/value head) per task. Scores exist for a block of
//! query rows at a time; the backward pass computes them again from the log-sum-exp (Dao et al. 2022,
//! "FlashAttention").
//!
//! Heads are read and written where the projections have them, without copies: a row of `qkv` holds a position's H query
//! heads, G key heads and G value heads, C numbers each, already turned by RoPE; a row of `out` its H outputs.

use super::buffer::Buffer;
use super::dropout::Dropout;
use super::gemm::{Precision, Triangle};
use super::matmul::{Mat, MatMut, Store, triangular_matmul};
use super::{pool, simd};
use std::ops::Range;

/// The most query rows whose scores exist at a time. Their keys and values are packed once for all of them.
const MAX_BLOCK: usize = 128;

/// The sizes of an attention problem.
#[derive(Clone, Copy, Debug)]
pub struct Shape {
    /// Sequences B, and positions T of each.
    pub batch: usize,
    pub time: usize,
    /// Query heads H, key/value heads G, and channels C of a head.
    pub heads: usize,
    pub kv_heads: usize,
    pub channels: usize,
    /// Of the softmax's results, element (b, h, i, j) of (B, H, T, T).
    pub dropout: Option<Dropout>,
    pub precision: Precision,
}

impl Shape {
    /// Numbers in a row of queries, keys and values.
    pub fn qkv_width(&self) -> usize {
        (self.heads + 2 * self.kv_heads) * self.channels
    }

    /// Numbers in a row of outputs.
    pub fn out_width(&self) -> usize {
        self.heads * self.channels
    }

    fn scale(&self) -> f32 {
        1.0 / (self.channels as f32).sqrt()
    }

    /// Drops some of the weights that query `query` of head `head` (of all sequences' B H) gives to the first keys.
    fn drop_out(&self, weights: &mut [f32], head: usize, query: usize) {
        if let Some(dropout) = self.dropout {
            dropout.apply(weights, (head * self.time + query) * self.time);
        }
    }

    fn heads_per_kv(&self) -> usize {
        self.heads / self.kv_heads
    }

    /// Head number `head` in the rows of one sequence.
    fn head<'a>(&self, rows: &'a [f32], width: usize, batch: usize, head: usize) -> Mat<'a> {
        let sequence = Mat::new(&rows[batch * self.time * width..], self.time, width);
        sequence.block(0..self.time, head * self.channels..(head + 1) * self.channels)
    }

    /// The queries of head `head` of a sequence, and the keys and values that it reads.
    fn query_key_value<'a>(&self, qkv: &'a [f32], batch: usize, head: usize) -> [Mat<'a>; 3] {
        let (first, kv_head) = (self.heads, head / self.heads_per_kv());
        [head, first + kv_head, first + self.kv_heads + kv_head]
            .map(|head| self.head(qkv, self.qkv_width(), batch, head))
    }
}

/// `out = softmax(q k^T / sqrt(C)) v`, and the log-sum-exp of every query's scores.
pub fn forward(shape: Shape, qkv: &[f32], out: &mut [f32], lse_BHT: &mut [f32]) {
    let Shape { time, heads, channels, .. } = shape;
    let sequences = out.chunks_exact_mut(time * shape.out_width());
    let outputs = sequences.flat_map(|out| MatMut::new(out, time, heads * channels).column_blocks(channels));
    let tasks = outputs.zip(lse_BHT.chunks_exact_mut(time)).enumerate().collect();
    pool::run(tasks, |(index, (mut out_TC, lse_T)): (usize, (MatMut, &mut [f32]))| {
        let [q_TC, k_TC, v_TC] = shape.query_key_value(qkv, index / heads, index % heads);
        let mut scores = Buffer::any(MAX_BLOCK.min(time) * time);
        for Block { queries, keys, ahead } in blocks(time) {
            let rows = queries.len();
            let (q, k) = (q_TC.block(queries.clone(), 0..channels), k_TC.block(0..keys, 0..channels));
            let scores_mat = MatMut::new(&mut scores, rows, keys);
            let wanted = Triangle::Result { ahead };
            triangular_matmul(scores_mat, shape.scale(), (q, k.t()), Store::Overwrite, wanted, shape.precision);
            simd::vectorized!(|| {
                for (row, score) in scores.chunks_exact_mut(keys).take(rows).enumerate() {
                    let (seen, unseen) = score.split_at_mut(ahead + row + 1);
                    lse_T[queries.start + row] = simd::softmax(seen);
                    shape.drop_out(seen, index, queries.start + row);
                    unseen.fill(0.0);
                }
            });
            let out = out_TC.block(queries, 0..channels);
            let (p, v) = (Mat::new(&scores, rows, keys), v_TC.block(0..keys, 0..channels));
            triangular_matmul(out, 1.0, (p, v), Store::Overwrite, Triangle::Left { ahead }, shape.precision);
        }
    });
}

/// Some queries and the number of keys that they see: query i of the block sees `ahead + i + 1` of them.
struct Block {
    queries: Range<usize>,
    keys: usize,
    ahead: usize,
}

fn blocks(time: usize) -> impl Iterator<Item = Block> {
    (0..time).step_by(MAX_BLOCK).map(move |start| {
        let end = time.min(start + MAX_BLOCK);
        Block { queries: start..end, keys: end, ahead: start }
    })
}

/// What the backward pass reads: the forward pass's input and outputs, and the gradient of its output.
pub struct Saved<'a> {
    pub qkv: &'a [f32],
    pub out: &'a [f32],
    pub lse_BHT: &'a [f32],
    pub dout: &'a [f32],
}

/// Writes the gradients of all queries, keys and values to `dqkv`.
pub fn backward(shape: Shape, saved: &Saved, dqkv: &mut [f32]) {
    let Shape { time, heads, kv_heads, channels, .. } = shape;
    let group = shape.heads_per_kv();
    let mut tasks = Vec::with_capacity(shape.batch * kv_heads);
    for (batch, sequence) in dqkv.chunks_exact_mut(time * shape.qkv_width()).enumerate() {
        let (dq, dkv) = MatMut::new(sequence, time, shape.qkv_width()).split_cols(heads * channels);
        let (dk, dv) = dkv.split_cols(kv_heads * channels);
        let dkv = dk.column_blocks(channels).zip(dv.column_blocks(channels));
        tasks.extend(dq.column_blocks(group * channels).zip(dkv).enumerate().map(|(kv_head, d)| (batch, kv_head, d)));
    }
    pool::run(tasks, |(batch, kv_head, (mut dq, (mut dk_TC, mut dv_TC)))| {
        dk_TC.fill(0.0);
        dv_TC.fill(0.0);
        for offset in 0..group {
            let dq_TC = dq.block(0..time, offset * channels..(offset + 1) * channels);
            backward_head(shape, saved, (batch, kv_head * group + offset), [dq_TC, dk_TC.all(), dv_TC.all()]);
        }
    });
}

/// One query head: writes its gradient, adds to those of its key and value heads.
fn backward_head(
    shape: Shape,
    saved: &Saved,
    (batch, head): (usize, usize),
    [mut dq_TC, mut dk_TC, mut dv_TC]: [MatMut; 3],
) {
    let Shape { time, heads, channels, precision, .. } = shape;
    let [q_TC, k_TC, v_TC] = shape.query_key_value(saved.qkv, batch, head);
    let [out_TC, dout_TC] = [saved.out, saved.dout].map(|rows| shape.head(rows, shape.out_width(), batch, head));
    let lse_T = &saved.lse_BHT[(batch * heads + head) * time..][..time];
    let block_len = MAX_BLOCK.min(time) * time;
    let (mut p, mut ds) = (Buffer::any(block_len), Buffer::any(block_len));
    for Block { queries, keys, ahead } in blocks(time) {
        let rows = queries.len();
        let [q, dout] = [q_TC, dout_TC].map(|mat| mat.block(queries.clone(), 0..channels));
        let [k, v] = [k_TC, v_TC].map(|mat| mat.block(0..keys, 0..channels));
        let wanted = Triangle::Result { ahead };
        let p_mat = MatMut::new(&mut p, rows, keys);
        triangular_matmul(p_mat, shape.scale(), (q, k.t()), Store::Overwrite, wanted, precision);
        let ds_mat = MatMut::new(&mut ds, rows, keys);
        triangular_matmul(ds_mat, 1.0, (dout, v.t()), Store::Overwrite, wanted, precision);
        simd::vectorized!(|| {
            for row in 0..rows {
                let (position, seen) = (queries.start + row, ahead + row + 1);
                let mean = simd::dot(dout_TC.row(position), out_TC.row(position));
                let (p, p_unseen) = p[row * keys..][..keys].split_at_mut(seen);
                let (ds, ds_unseen) = ds[row * keys..][..keys].split_at_mut(seen);
                shape.drop_out(ds, batch * heads + head, position);
                for (p, ds) in p.iter_mut().zip(&mut *ds) {
                    *p = simd::exp(*p - lse_T[position]);
                    *ds = *p * (*ds - mean);
                }
                shape.drop_out(p, batch * heads + head, position);
                p_unseen.fill(0.0);
                ds_unseen.fill(0.0);
            }
        });
        let (p, ds) = (Mat::new(&p, rows, keys), Mat::new(&ds, rows, keys));
        let dq = dq_TC.block(queries, 0..channels);
        triangular_matmul(dq, shape.scale(), (ds, k), Store::Overwrite, Triangle::Left { ahead }, precision);
        let transposed = Triangle::LeftTransposed { ahead };
        let (dk, dv) = (dk_TC.block(0..keys, 0..channels), dv_TC.block(0..keys, 0..channels));
        triangular_matmul(dk, shape.scale(), (ds.t(), q), Store::Add, transposed, precision);
        triangular_matmul(dv, 1.0, (p.t(), dout), Store::Add, transposed, precision);
    }
}
