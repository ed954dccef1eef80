//! The attention sub-layer as one operation: x + dropout(W_o attention(rope(qk_norm(W_qkv norm(x))))).
//!
//! RMSNorm, rotary positions, grouped-query attention (Ainslie et al. 2023), optional QK-norm (Henry et al. 2020) as
//! in Qwen3.

use super::operation::{Operation, Pass, Slot, apply};
use super::parameters::{Init, Kind, Layout, Parameters, slices_mut};
use crate::config::ModelConfig;
use crate::ops::attention::{self, Saved as AttentionSaved, Shape};
use crate::ops::buffer::Buffer;
use crate::ops::dropout::Dropout;
use crate::ops::matmul::{Mat, MatMut, Store, add_weight_gradient, matmul, parallel_matmul};
use crate::ops::rope::RotaryTable;
use crate::ops::{norm, pool, rows_per_task, simd};
use candle_core::{Result, Tensor};
use std::ops::Range;
use std::sync::Arc;

/// One layer's attention: where its weights are and how it is shaped.
pub struct Attention {
    pub layer: usize,
    pub hidden: usize,
    pub heads: usize,
    pub kv_heads: usize,
    pub channels: usize,
    pub eps: f32,
    pub dropout: f64,
    /// Of attention weights.
    pub weight_dropout: f64,
    pub rotary: Arc<RotaryTable>,
    pub norm: Range<usize>,
    /// W_q, W_k and W_v one below the other: ((H + 2G) C, D).
    pub qkv: Range<usize>,
    /// Added to queries, keys and values, ((H + 2G) C).
    pub bias: Option<Range<usize>>,
    /// Gains of the query and key norms: (C) each where every head is normalised on its own, (H C) and (G C) where all
    /// are together.
    pub qk_norm: Option<[Range<usize>; 2]>,
    /// (D, H C)
    pub output: Range<usize>,
}

impl Attention {
    /// Adds the layer's parameters to `layout`.
    pub fn new(layout: &mut Layout, model: &ModelConfig, rotary: &Arc<RotaryTable>, layer: usize) -> Self {
        let ModelConfig { hidden_size, num_attention_heads, num_key_value_heads, head_dim, .. } = *model;
        let name = |part: &str| format!("model.layers.{layer}.{part}.weight");
        let normal = Init::Normal(model.initializer_range);
        let residual = Init::residual(model);
        let gain = Init::Constant(1.0);
        let norm = layout.add(name("input_layernorm"), &[hidden_size], Kind::Gain, gain);
        let mut projection =
            |part, heads| layout.add(name(part), &[heads * head_dim, hidden_size], Kind::Matrix, normal);
        let q = projection("self_attn.q_proj", num_attention_heads);
        projection("self_attn.k_proj", num_key_value_heads);
        let v = projection("self_attn.v_proj", num_key_value_heads);
        let bias = model.qkv_bias.then(|| {
            let mut add = |part, heads| {
                let name = format!("model.layers.{layer}.self_attn.{part}_proj.bias");
                layout.add(name, &[heads * head_dim], Kind::Gain, Init::Constant(0.0))
            };
            let q = add("q", num_attention_heads);
            add("k", num_key_value_heads);
            q.start..add("v", num_key_value_heads).end
        });
        let qk_norm = model.qk_norm.then(|| {
            [("self_attn.q_norm", num_attention_heads), ("self_attn.k_norm", num_key_value_heads)].map(
                |(part, heads)| {
                    let together = if model.qk_norm_across_heads { heads } else { 1 };
                    layout.add(name(part), &[together * head_dim], Kind::Gain, gain)
                },
            )
        });
        let output_shape = [hidden_size, num_attention_heads * head_dim];
        let output = layout.add(name("self_attn.o_proj"), &output_shape, Kind::Matrix, residual);
        Self {
            layer,
            hidden: hidden_size,
            heads: num_attention_heads,
            kv_heads: num_key_value_heads,
            channels: head_dim,
            eps: model.rms_norm_eps as f32,
            dropout: model.hidden_dropout,
            weight_dropout: model.attention_dropout,
            rotary: rotary.clone(),
            norm,
            qkv: q.start..v.end,
            bias,
            qk_norm,
            output,
        }
    }

    /// `x_ND` with this sub-layer's output added.
    pub fn forward(self: &Arc<Self>, parameters: &Arc<Parameters>, x_ND: &Tensor, pass: Pass) -> Result<Tensor> {
        let (layer, parameters) = (self.clone(), parameters.clone());
        apply(x_ND, AttentionOp { layer, parameters, pass, saved: Slot::default() })
    }

    /// Width of a row of queries, keys and values.
    pub fn qkv_width(&self) -> usize {
        (self.heads + 2 * self.kv_heads) * self.channels
    }

    /// Adds the bias, if there is one, to rows of queries, keys and values.
    pub fn add_bias(&self, values: &[f32], rows: &mut [f32]) {
        let Some(bias) = &self.bias else { return };
        simd::vectorized!(|| {
            rows.chunks_exact_mut(bias.len()).for_each(|row| simd::add(row, &values[bias.clone()]));
        });
    }

    /// The queries and the keys in a row, each with the place of its norm's gain.
    fn normalised(&self) -> impl Iterator<Item = (Range<usize>, &Range<usize>)> {
        let (q_end, k_end) = (self.heads * self.channels, (self.heads + self.kv_heads) * self.channels);
        [0..q_end, q_end..k_end].into_iter().zip(self.qk_norm.iter().flatten())
    }

    /// Normalises the queries and keys in a row and turns them to `position`.
    #[inline(always)]
    pub fn place(&self, values: &[f32], row: &mut [f32], position: usize) {
        for (part, gain) in self.normalised() {
            for x in row[part].chunks_exact_mut(gain.len()) {
                let scale = norm::scale(x, self.eps);
                for (x, &gain) in x.iter_mut().zip(&values[gain.clone()]) {
                    *x *= scale * gain;
                }
            }
        }
        let turned = (self.heads + self.kv_heads) * self.channels;
        for head_C in row[..turned].chunks_exact_mut(self.channels) {
            self.rotary.rotate(head_C, position);
        }
    }
}

struct AttentionOp {
    layer: Arc<Attention>,
    parameters: Arc<Parameters>,
    pass: Pass,
    saved: Slot<Saved>,
}

/// What the backward pass needs.
struct Saved {
    h_ND: Buffer,
    scales_N: Buffer,
    /// Queries, keys and values before norm and rotation, kept for the QK-norm alone.
    raw_qkv: Option<Buffer>,
    qkv: Buffer,
    out: Buffer,
    lse_BHT: Buffer,
}

impl AttentionOp {
    fn shape(&self) -> Shape {
        let Attention { heads, kv_heads, channels, .. } = *self.layer;
        let Pass { batch, time, precision, .. } = self.pass;
        let dropout = self.pass.dropout("attention weights", self.layer.layer, self.layer.weight_dropout);
        Shape { batch, time, heads, kv_heads, channels, dropout, precision }
    }

    fn drop_out(&self) -> Option<Dropout> {
        self.pass.dropout("attention dropout", self.layer.layer, self.layer.dropout)
    }

    /// norm(x) and W_qkv norm(x) with its bias, row by row; then queries and keys are normalised and turned. What they
    /// were before goes to `raw_qkv`, if that is not empty.
    fn project(&self, values: &[f32], x_ND: &[f32], h_ND: &mut [f32], scales_N: &mut [f32], qkv: [&mut [f32]; 2]) {
        let (hidden, width) = (self.layer.hidden, self.layer.qkv_width());
        let weight = Mat::new(&values[self.layer.qkv.clone()], width, hidden);
        let chunk = rows_per_task(self.pass.tokens());
        let [qkv, raw_qkv] = qkv;
        let mut raw_qkv = raw_qkv.chunks_mut(chunk * width);
        let raw_qkv = std::iter::from_fn(|| Some(raw_qkv.next().unwrap_or_default()));
        let rows = x_ND.chunks(chunk * hidden).zip(h_ND.chunks_mut(chunk * hidden)).enumerate();
        let outputs = scales_N.chunks_mut(chunk).zip(qkv.chunks_mut(chunk * width)).zip(raw_qkv);
        pool::run(rows.zip(outputs).collect(), |((task, (x, h)), ((scales, qkv), raw_qkv))| {
            norm::forward(x, &values[self.layer.norm.clone()], self.layer.eps, h, scales);
            let count = scales.len();
            let (qkv_mat, h_mat) = (MatMut::new(qkv, count, width), Mat::new(h, count, hidden));
            matmul(qkv_mat, h_mat, weight.t(), Store::Overwrite, self.pass.precision);
            self.layer.add_bias(values, qkv);
            if !raw_qkv.is_empty() {
                raw_qkv.copy_from_slice(qkv);
            }
            simd::vectorized!(|| {
                for (offset, row) in qkv.chunks_exact_mut(width).enumerate() {
                    self.layer.place(values, row, (task * chunk + offset) % self.pass.time);
                }
            });
        });
    }

    /// The backward pass of [`Attention::place`] for all rows: turns gradients back and takes them through the QK-norm,
    /// whose gains' gradients it adds.
    fn take_back(&self, values: &[f32], raw_qkv: Option<&Buffer>, dqkv: &mut [f32], dgains: Option<[&mut [f32]; 2]>) {
        let layer = &*self.layer;
        let width = layer.qkv_width();
        let turned = (layer.heads + layer.kv_heads) * layer.channels;
        let chunk = norm::PARTIAL_ROWS;
        let tasks = self.pass.tokens().div_ceil(chunk);
        let gains: usize = layer.qk_norm.iter().flatten().map(ExactSizeIterator::len).sum();
        // Every task gets a slice of `partial`; without a norm it is a single zero.
        let place = gains.max(1);
        let mut partial = Buffer::zeros(tasks * place);
        let rows = dqkv.chunks_mut(chunk * width).zip(partial.chunks_exact_mut(place));
        pool::run(rows.enumerate().collect(), |(task, (dqkv, dgains))| {
            simd::vectorized!(|| {
                for (offset, drow) in dqkv.chunks_exact_mut(width).enumerate() {
                    let row = task * chunk + offset;
                    for dhead_C in drow[..turned].chunks_exact_mut(layer.channels) {
                        layer.rotary.rotate_back(dhead_C, row % self.pass.time);
                    }
                    let Some(raw) = raw_qkv else { continue };
                    let mut first = 0;
                    for (part, gain) in layer.normalised() {
                        let dgain = &mut dgains[first..first + gain.len()];
                        first += gain.len();
                        let x = raw[row * width..][part.clone()].chunks_exact(gain.len());
                        for (x, dx) in x.zip(drow[part].chunks_exact_mut(gain.len())) {
                            norm::backward_in_place(x, &values[gain.clone()], layer.eps, dx, dgain);
                        }
                    }
                }
            });
        });
        if let Some([dq_gain, dk_gain]) = dgains {
            for partial in partial.chunks_exact(place) {
                let (dq, dk) = partial.split_at(dq_gain.len());
                simd::add(dq_gain, dq);
                simd::add(dk_gain, dk);
            }
        }
    }
}

impl Operation for AttentionOp {
    const NAME: &'static str = "attention";

    fn forward(&self, x_ND: &[f32]) -> Result<(Vec<f32>, Vec<usize>)> {
        let (layer, shape, tokens) = (&*self.layer, self.shape(), self.pass.tokens());
        let hidden = layer.hidden;
        let values = self.parameters.values();
        let (mut h_ND, mut scales_N) = (Buffer::any(tokens * hidden), Buffer::any(tokens));
        let mut qkv = Buffer::any(tokens * layer.qkv_width());
        let keep_raw = self.pass.is_training() && layer.qk_norm.is_some();
        let mut raw_qkv = keep_raw.then(|| Buffer::any(qkv.len()));
        let both = [&mut *qkv, raw_qkv.as_deref_mut().unwrap_or_default()];
        self.project(&values, x_ND, &mut h_ND, &mut scales_N, both);
        let head_width = shape.out_width();
        let (mut out, mut lse_BHT) = (Buffer::any(tokens * head_width), Buffer::any(tokens * shape.heads));
        attention::forward(shape, &qkv, &mut out, &mut lse_BHT);

        let weight = Mat::new(&values[layer.output.clone()], hidden, head_width);
        let mut y_ND = vec![0.0; tokens * hidden];
        let chunk = rows_per_task(tokens);
        let tasks = y_ND.chunks_mut(chunk * hidden).zip(out.chunks(chunk * head_width)).enumerate().collect();
        let dropout = self.drop_out();
        pool::run(tasks, |(task, (y, out)): (usize, (&mut [f32], &[f32]))| {
            let count = y.len() / hidden;
            let start = task * chunk * hidden;
            matmul(
                MatMut::new(y, count, hidden),
                Mat::new(out, count, head_width),
                weight.t(),
                Store::Overwrite,
                self.pass.precision,
            );
            if let Some(dropout) = dropout {
                dropout.apply(y, start);
            }
            simd::vectorized!(|| simd::add(y, &x_ND[start..]));
        });
        if self.pass.is_training() {
            self.saved.put(Saved { h_ND, scales_N, raw_qkv, qkv, out, lse_BHT });
        }
        Ok((y_ND, vec![tokens, hidden]))
    }

    fn backward(&self, x_ND: &[f32], dy_ND: &[f32]) -> Result<Option<Vec<f32>>> {
        let saved = self.saved.take()?;
        let (layer, shape, tokens) = (&*self.layer, self.shape(), self.pass.tokens());
        let (hidden, head_width) = (layer.hidden, shape.out_width());
        let values = self.parameters.values();
        let mut gradients = self.parameters.gradients();
        let mut ranges = vec![layer.norm.clone(), layer.qkv.clone()];
        ranges.extend(layer.bias.clone());
        ranges.extend(layer.qk_norm.iter().flatten().cloned());
        ranges.push(layer.output.clone());
        let mut slices = slices_mut(&mut gradients, &ranges).into_iter();
        let mut next = || slices.next().expect("a slice for every range");
        let (dnorm, dqkv_weight) = (next(), next());
        let dbias = layer.bias.is_some().then(&mut next);
        let dgains = layer.qk_norm.is_some().then(|| [next(), next()]);
        let doutput = next();

        // Through dropout and W_o.
        let dropped = self.drop_out().map(|dropout| dropout.copy(dy_ND));
        let dresidual = dropped.as_deref().unwrap_or(dy_ND);
        let dresidual_mat = Mat::new(dresidual, tokens, hidden);
        add_weight_gradient(doutput, dresidual_mat, Mat::new(&saved.out, tokens, head_width), self.pass.precision);
        let weight = Mat::new(&values[layer.output.clone()], hidden, head_width);
        let mut dout = Buffer::any(tokens * head_width);
        parallel_matmul(&mut dout, dresidual_mat, weight, Store::Overwrite, self.pass.precision);

        // Through attention, rotation and QK-norm.
        let mut dqkv = Buffer::any(saved.qkv.len());
        let attention_saved = AttentionSaved { qkv: &saved.qkv, out: &saved.out, lse_BHT: &saved.lse_BHT, dout: &dout };
        attention::backward(shape, &attention_saved, &mut dqkv);
        self.take_back(&values, saved.raw_qkv.as_ref(), &mut dqkv, dgains);

        // Through W_qkv and the norm.
        let width = layer.qkv_width();
        if let Some(dbias) = dbias {
            simd::vectorized!(|| dqkv.chunks_exact(width).for_each(|drow| simd::add(dbias, drow)));
        }
        let dqkv_mat = Mat::new(&dqkv, tokens, width);
        add_weight_gradient(dqkv_weight, dqkv_mat, Mat::new(&saved.h_ND, tokens, hidden), self.pass.precision);
        let mut dh_ND = saved.h_ND;
        let weight = Mat::new(&values[layer.qkv.clone()], width, hidden);
        parallel_matmul(&mut dh_ND, dqkv_mat, weight, Store::Overwrite, self.pass.precision);
        let mut dx_ND = dy_ND.to_vec();
        norm::parallel_backward(x_ND, &values[layer.norm.clone()], &saved.scales_N, &dh_ND, &mut dx_ND, dnorm);
        Ok(Some(dx_ND))
    }
}
