//! Causal softmax attention for grouped queries, one (sequence, key/value head) a task. Scores exist for a block of
//! query rows at a time; the backward pass computes them again from the log-sum-exp (Dao et al. 2022,
//! "FlashAttention").
//!
//! Heads are laid out one after the other: `heads_BHTC` holds for every sequence H query heads, G key heads and G
//! value heads of T x C numbers each, positions already turned by RoPE.

use super::buffer::Buffer;
use super::gemm::Precision;
use super::matmul::{Mat, MatMut, Store, matmul, scaled_matmul};
use super::{pool, simd};

/// Query rows whose scores exist at a time. Half of a block on the diagonal is computed in vain, so that short contexts
/// want small blocks.
fn block_rows(time: usize) -> usize {
    (time / 2).next_multiple_of(8).clamp(8, 64)
}

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
    pub precision: Precision,
}

impl Shape {
    /// Heads of a sequence: queries, keys and values.
    pub fn all_heads(&self) -> usize {
        self.heads + 2 * self.kv_heads
    }

    /// Numbers in one head of one sequence.
    pub fn head_len(&self) -> usize {
        self.time * self.channels
    }

    fn scale(&self) -> f32 {
        1.0 / (self.channels as f32).sqrt()
    }

    fn heads_per_kv(&self) -> usize {
        self.heads / self.kv_heads
    }

    /// The key and value heads that query head `head` of a sequence reads, from the sequence's heads.
    fn key_value<'a>(&self, sequence: &'a [f32], kv_head: usize) -> (&'a [f32], &'a [f32]) {
        let len = self.head_len();
        let (key, value) = (self.heads + kv_head, self.heads + self.kv_heads + kv_head);
        (&sequence[key * len..][..len], &sequence[value * len..][..len])
    }
}

/// `out_BHTC = softmax(q k^T / sqrt(C)) v`, and the log-sum-exp of every query's scores.
pub fn forward(shape: Shape, heads_BHTC: &[f32], out_BHTC: &mut [f32], lse_BHT: &mut [f32]) {
    let Shape { time, heads, channels, .. } = shape;
    let len = shape.head_len();
    let outputs = out_BHTC.chunks_exact_mut(len).zip(lse_BHT.chunks_exact_mut(time));
    pool::run(outputs.enumerate().collect(), |(index, (out_TC, lse_T)): (usize, (&mut [f32], &mut [f32]))| {
        let (batch, head) = (index / heads, index % heads);
        let sequence = &heads_BHTC[batch * shape.all_heads() * len..][..shape.all_heads() * len];
        let q_TC = &sequence[head * len..][..len];
        let (k_TC, v_TC) = shape.key_value(sequence, head / shape.heads_per_kv());
        let mut scores = Buffer::any(block_rows(time) * time);
        for start in (0..time).step_by(block_rows(time)) {
            let (rows, keys) = block(start, time);
            let q = Mat::new(&q_TC[start * channels..], rows, channels);
            let k = Mat::new(k_TC, keys, channels);
            scaled_matmul(
                MatMut::new(&mut scores, rows, keys),
                shape.scale(),
                q,
                k.t(),
                Store::Overwrite,
                shape.precision,
            );
            simd::vectorized!(|| {
                for (row, score) in scores.chunks_exact_mut(keys).take(rows).enumerate() {
                    let (seen, unseen) = score.split_at_mut(start + row + 1);
                    lse_T[start + row] = simd::softmax(seen);
                    unseen.fill(0.0);
                }
            });
            let out = MatMut::new(&mut out_TC[start * channels..], rows, channels);
            matmul(
                out,
                Mat::new(&scores, rows, keys),
                Mat::new(v_TC, keys, channels),
                Store::Overwrite,
                shape.precision,
            );
        }
    });
}

/// The query rows of the block that starts at `start`, and the keys that its last row sees.
fn block(start: usize, time: usize) -> (usize, usize) {
    let rows = block_rows(time).min(time - start);
    (rows, start + rows)
}

/// What the backward pass reads: the forward pass's input and outputs, and the gradient of its output.
pub struct Saved<'a> {
    pub heads_BHTC: &'a [f32],
    pub out_BHTC: &'a [f32],
    pub lse_BHT: &'a [f32],
    pub dout_BHTC: &'a [f32],
}

/// Writes the gradients of all query, key and value heads to `dheads_BHTC`.
pub fn backward(shape: Shape, saved: &Saved, dheads_BHTC: &mut [f32]) {
    let Shape { heads, kv_heads, .. } = shape;
    let (len, group) = (shape.head_len(), shape.heads_per_kv());
    let mut tasks = Vec::with_capacity(shape.batch * kv_heads);
    for (batch, sequence) in dheads_BHTC.chunks_exact_mut(shape.all_heads() * len).enumerate() {
        let (dq, dkv) = sequence.split_at_mut(heads * len);
        let (dk, dv) = dkv.split_at_mut(kv_heads * len);
        let per_kv = dq.chunks_exact_mut(group * len).zip(dk.chunks_exact_mut(len)).zip(dv.chunks_exact_mut(len));
        tasks.extend(per_kv.enumerate().map(|(kv_head, ((dq, dk), dv))| (batch, kv_head, dq, dk, dv)));
    }
    pool::run(tasks, |(batch, kv_head, dq, dk, dv)| {
        dk.fill(0.0);
        dv.fill(0.0);
        for (offset, dq_TC) in dq.chunks_exact_mut(len).enumerate() {
            backward_head(shape, saved, (batch, kv_head, kv_head * group + offset), dq_TC, dk, dv);
        }
    });
}

/// One query head: writes its gradient, adds to those of its key and value heads.
fn backward_head(
    shape: Shape,
    saved: &Saved,
    (batch, kv_head, head): (usize, usize, usize),
    dq_TC: &mut [f32],
    dk_TC: &mut [f32],
    dv_TC: &mut [f32],
) {
    let Shape { time, heads, channels, .. } = shape;
    let len = shape.head_len();
    let sequence = &saved.heads_BHTC[batch * shape.all_heads() * len..][..shape.all_heads() * len];
    let q_TC = &sequence[head * len..][..len];
    let (k_TC, v_TC) = shape.key_value(sequence, kv_head);
    let index = batch * heads + head;
    let (out_TC, dout_TC) = (&saved.out_BHTC[index * len..][..len], &saved.dout_BHTC[index * len..][..len]);
    let lse_T = &saved.lse_BHT[index * time..][..time];
    let block_len = block_rows(time) * time;
    let (mut p, mut ds) = (Buffer::any(block_len), Buffer::any(block_len));
    for start in (0..time).step_by(block_rows(time)) {
        let (rows, keys) = block(start, time);
        let block_rows = start * channels..(start + rows) * channels;
        let q = Mat::new(&q_TC[block_rows.clone()], rows, channels);
        let (k, v) = (Mat::new(k_TC, keys, channels), Mat::new(v_TC, keys, channels));
        let dout = Mat::new(&dout_TC[block_rows.clone()], rows, channels);
        scaled_matmul(MatMut::new(&mut p, rows, keys), shape.scale(), q, k.t(), Store::Overwrite, shape.precision);
        matmul(MatMut::new(&mut ds, rows, keys), dout, v.t(), Store::Overwrite, shape.precision);
        simd::vectorized!(|| {
            for row in 0..rows {
                let (position, seen) = (start + row, start + row + 1);
                let channels = position * channels..(position + 1) * channels;
                let mean = simd::dot(&dout_TC[channels.clone()], &out_TC[channels]);
                let (p, ds) = (&mut p[row * keys..][..keys], &mut ds[row * keys..][..keys]);
                for (p, ds) in p[..seen].iter_mut().zip(&mut ds[..seen]) {
                    *p = simd::exp(*p - lse_T[position]);
                    *ds = *p * (*ds - mean);
                }
                p[seen..].fill(0.0);
                ds[seen..].fill(0.0);
            }
        });
        let (p, ds) = (Mat::new(&p, rows, keys), Mat::new(&ds, rows, keys));
        scaled_matmul(
            MatMut::new(&mut dq_TC[block_rows], rows, channels),
            shape.scale(),
            ds,
            k,
            Store::Overwrite,
            shape.precision,
        );
        scaled_matmul(MatMut::new(dk_TC, keys, channels), shape.scale(), ds.t(), q, Store::Add, shape.precision);
        matmul(MatMut::new(dv_TC, keys, channels), p.t(), dout, Store::Add, shape.precision);
    }
}
