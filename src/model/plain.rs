//! The whole model once more in plain candle: slow, obvious, differentiated by candle alone. It is documentation, the
//! path for devices other than the CPU, and the oracle that the tests hold the fast operations against.
//!
//! Weights are slices of one flat tensor, laid out as in [`Parameters`](super::parameters::Parameters), so that its
//! gradient compares with theirs number by number.

use super::attention::Attention;
use super::memory::Memory;
use super::moe::{ExpertWeights, FeedForward, Routed};
use super::operation::Pass;
use super::transformer::Transformer;
use crate::config::{Balance, ScoringFunc};
use crate::ops::swiglu::ActivationDropout;
use candle_core::{D, DType, Result, Tensor};
use std::ops::Range;

/// What [`forward`] gives.
pub struct PlainOutput {
    /// (N, V)
    pub logits: Tensor,
    /// Mean cross-entropy plus balance loss and z-loss, each times its coefficient; times the pass's loss scale.
    pub total: Tensor,
}

/// Runs `model` with the weights in `flat` on sequences of `pass.time` tokens, one after the other.
pub fn forward(model: &Transformer, flat: &Tensor, ids: &[u32], targets: &[u32], pass: Pass) -> Result<PlainOutput> {
    let (hidden, eps) = (model.model.hidden_size, model.head.eps);
    let device = flat.device();
    let embedding = weight(flat, &model.embedding_VD, &[model.vocab_size, hidden])?;
    let mut x = embedding.index_select(&Tensor::new(ids, device)?, 0)?;
    x = drop_out(&x, model.model.hidden_dropout, "embedding dropout", 0, pass)?;
    let mut auxiliary = Tensor::zeros((), DType::F32, device)?;
    for layer in &model.layers {
        if let Some(layer) = &layer.memory {
            x = (&x + memory(layer, flat, ids, &x, pass)?)?;
        }
        x = (&x + attention(&layer.attention, flat, &x, pass)?)?;
        let (y, losses) = feed_forward(&layer.feed_forward, flat, &x, pass)?;
        x = (x + y)?;
        auxiliary = (auxiliary + losses)?;
    }
    let h = rms_norm(&x, &weight(flat, &model.head.norm, &[hidden])?, eps)?;
    let logits = h.matmul(&weight(flat, &model.head.weight_VD, &[model.vocab_size, hidden])?.t()?)?;
    let targets = Tensor::new(targets, device)?.unsqueeze(1)?;
    let cross_entropy = (log_sum_exp(&logits)? - logits.gather(&targets, 1)?)?.mean_all()?;
    let total = ((cross_entropy + auxiliary)? * f64::from(pass.loss_scale()))?;
    Ok(PlainOutput { logits, total })
}

/// What the last tokens call up, weighted by how well it fits.
fn memory(layer: &Memory, flat: &Tensor, ids: &[u32], x: &Tensor, pass: Pass) -> Result<Tensor> {
    let (hidden, table) = (layer.hidden, layer.slots * layer.width);
    let rows = Tensor::from_vec(layer.rows(ids, pass.time), (pass.tokens(), layer.orders.len()), x.device())?;
    let parts = (0..layer.orders.len()).map(|order| {
        let start = layer.tables.start + order * table;
        let table = weight(flat, &(start..start + table), &[layer.slots, layer.width])?;
        table.index_select(&rows.narrow(1, order, 1)?.squeeze(1)?.contiguous()?, 0)
    });
    let e = Tensor::cat(&parts.collect::<Result<Vec<_>>>()?, 1)?;
    let key_value = e.matmul(&weight(flat, &layer.key_value, &[2 * hidden, layer.channels()])?.t()?)?;
    let (k, v) = (key_value.narrow(1, 0, hidden)?, key_value.narrow(1, hidden, hidden)?);
    let h = rms_norm(x, &weight(flat, &layer.norm, &[hidden])?, layer.eps)?;
    let k = rms_norm(&k, &Tensor::ones(hidden, DType::F32, x.device())?, layer.eps)?;
    let gate = sigmoid(&((h * k)?.sum_keepdim(1)? * (hidden as f64).powf(-0.5))?)?;
    drop_out(&v.broadcast_mul(&gate)?, layer.dropout, "memory dropout", layer.layer, pass)
}

fn attention(layer: &Attention, flat: &Tensor, x: &Tensor, pass: Pass) -> Result<Tensor> {
    let (batch, time) = (pass.batch, pass.time);
    let Attention { hidden, heads, kv_heads, channels, .. } = *layer;
    let h = rms_norm(x, &weight(flat, &layer.norm, &[hidden])?, layer.eps)?;
    let mut qkv = h.matmul(&weight(flat, &layer.qkv, &[layer.qkv_width(), hidden])?.t()?)?;
    if let Some(bias) = &layer.bias {
        qkv = qkv.broadcast_add(&weight(flat, bias, &[layer.qkv_width()])?)?;
    }
    let part = |start: usize, count: usize| qkv.narrow(1, start * channels, count * channels);
    let (mut q, mut k, v) = (part(0, heads)?, part(heads, kv_heads)?, part(heads + kv_heads, kv_heads)?);
    if let Some(gains) = &layer.qk_norm {
        // The gain is as long as what is normalised together: one head, or all of them.
        let norm = |x: &Tensor, gain: &Range<usize>| {
            let rows = x.reshape((x.elem_count() / gain.len(), gain.len()))?;
            rms_norm(&rows, &weight(flat, gain, &[gain.len()])?, layer.eps)
        };
        (q, k) = (norm(&q, &gains[0])?, norm(&k, &gains[1])?);
    }
    let split = |x: Tensor, count: usize| x.reshape((batch, time, count, channels))?.transpose(1, 2);
    let (q, k, v) = (split(q, heads)?, split(k, kv_heads)?, split(v, kv_heads)?);
    let (q, k) = (rotate(layer, &q, time)?, rotate(layer, &k, time)?);
    let repeat = |kv: Tensor| {
        let wide = kv.unsqueeze(2)?.broadcast_as((batch, kv_heads, heads / kv_heads, time, channels))?;
        wide.contiguous()?.reshape((batch, heads, time, channels))
    };
    let (k, v) = (repeat(k)?, repeat(v)?);
    let mask: Vec<f32> = (0..time * time).map(|i| if i % time > i / time { -1e30 } else { 0.0 }).collect();
    let mask = Tensor::from_vec(mask, (time, time), x.device())?;
    let scores = (q.contiguous()?.matmul(&k.t()?.contiguous()?)? * (channels as f64).powf(-0.5))?;
    let scores = scores.broadcast_add(&mask)?;
    let weights = drop_out(&softmax(&scores)?, layer.weight_dropout, "attention weights", layer.layer, pass)?;
    let out = weights.matmul(&v)?.transpose(1, 2)?.reshape((batch * time, heads * channels))?;
    let y = out.matmul(&weight(flat, &layer.output, &[hidden, heads * channels])?.t()?)?;
    drop_out(&y, layer.dropout, "attention dropout", layer.layer, pass)
}

/// Rotary positions in the half-split layout.
fn rotate(layer: &Attention, x: &Tensor, time: usize) -> Result<Tensor> {
    let half = layer.rotary.width() / 2;
    let (mut cos, mut sin) = (Vec::new(), Vec::new());
    for position in 0..time {
        // A unit vector turned to a position holds its cosines and sines.
        let mut unit: Vec<f32> = (0..2 * half).map(|i| if i < half { 1.0 } else { 0.0 }).collect();
        layer.rotary.rotate(&mut unit, position);
        cos.extend_from_slice(&unit[..half]);
        sin.extend_from_slice(&unit[half..]);
    }
    let (cos, sin) = (Tensor::new(cos, x.device())?, Tensor::new(sin, x.device())?);
    let (cos, sin) = (cos.reshape((time, half))?, sin.reshape((time, half))?);
    let (a, b) = (x.narrow(3, 0, half)?, x.narrow(3, half, half)?);
    let first = (a.broadcast_mul(&cos)? - b.broadcast_mul(&sin)?)?;
    let second = (b.broadcast_mul(&cos)? + a.broadcast_mul(&sin)?)?;
    let rest = x.narrow(3, 2 * half, layer.channels - 2 * half)?;
    Tensor::cat(&[first, second, rest], 3)
}

/// The sub-layer's output and its auxiliary losses, weighted.
fn feed_forward(layer: &FeedForward, flat: &Tensor, x: &Tensor, pass: Pass) -> Result<(Tensor, Tensor)> {
    let hidden = layer.hidden;
    let h = rms_norm(x, &weight(flat, &layer.norm, &[hidden])?, layer.eps)?;
    let mut y = x.zeros_like()?;
    let mut losses = Tensor::zeros((), DType::F32, x.device())?;
    if let Some(routed) = &layer.routed {
        let (gates_NE, routing_losses) = route(layer, routed, flat, &h, pass)?;
        for (expert, weights) in routed.experts.iter().enumerate() {
            let gate = gates_NE.narrow(1, expert, 1)?;
            y = (y + swiglu(layer, expert, weights, flat, &h, pass)?.broadcast_mul(&gate)?)?;
        }
        losses = (routing_losses * f64::from(layer.loss_share))?;
    }
    if let Some(shared) = &layer.shared {
        let mut out = swiglu(layer, layer.routed_experts(), &shared.weights, flat, &h, pass)?;
        if let Some(gate) = &shared.gate {
            out = out.broadcast_mul(&sigmoid(&h.matmul(&weight(flat, gate, &[1, hidden])?.t()?)?)?)?;
        }
        y = (y + out)?;
    }
    Ok((drop_out(&y, layer.dropout, "feed-forward dropout", layer.layer, pass)?, losses))
}

/// Gates of all experts (0 where not chosen) and the weighted balance loss and z-loss.
fn route(layer: &FeedForward, routed: &Routed, flat: &Tensor, h: &Tensor, pass: Pass) -> Result<(Tensor, Tensor)> {
    let router = &routed.router;
    let (experts, k, tokens) = (router.num_experts, router.experts_per_token, pass.tokens());
    let mut scores = h.matmul(&weight(flat, &routed.gate, &[experts, layer.hidden])?.t()?)?;
    if let (Some(noise), Some(stream)) = (&routed.noise, pass.stream("router noise", layer.layer)) {
        let draws: Vec<f32> = (0..(tokens * experts) as u64).map(|index| stream.normal(index) as f32).collect();
        let draws = Tensor::from_vec(draws, (tokens, experts), h.device())?;
        let raw = h.matmul(&weight(flat, noise, &[experts, layer.hidden])?.t()?)?;
        scores = (scores + (draws * (raw.exp()? + 1.0)?.log()?)?)?;
    }
    let raw = match router.config.scoring_func {
        ScoringFunc::Softmax => softmax(&scores)?,
        ScoringFunc::Sigmoid => sigmoid(&scores)?,
    };
    let bias = match &routed.bias {
        Some(bias) => weight(flat, bias, &[experts])?.detach(),
        None => Tensor::zeros(experts, DType::F32, h.device())?,
    };
    let capacity = match router.config.capacity_factor {
        factor if factor > 0.0 && pass.is_training() => (factor * (tokens * k) as f64 / experts as f64).ceil() as usize,
        _ => usize::MAX,
    };
    let (chosen, kept) = choices(&raw.broadcast_add(&bias)?.to_vec2()?, k, capacity);
    let (chosen, kept) = (
        Tensor::from_vec(chosen, (tokens, experts), h.device())?,
        Tensor::from_vec(kept, (tokens, experts), h.device())?,
    );
    let mut gates = (&raw * &chosen)?;
    if router.config.norm_topk_prob {
        gates = gates.broadcast_div(&gates.sum_keepdim(1)?)?;
    }
    let gates = ((gates * kept)? * router.config.routed_scaling_factor)?;
    let probs = raw.broadcast_div(&raw.sum_keepdim(1)?)?;
    let balance = (chosen.sum(0)? * probs.mean(0)?)?.sum_all()? * (experts as f64 / (k * tokens) as f64);
    let aux_coef = if router.config.balance == Balance::AuxLoss { router.config.router_aux_loss_coef } else { 0.0 };
    let z = log_sum_exp(&scores)?.sqr()?.mean_all()?;
    Ok((gates, ((balance? * aux_coef)? + (z * router.config.router_z_loss_coef)?)?))
}

/// 0/1 tables of the K best experts of each token, and of those that had room for it.
fn choices(scores: &[Vec<f32>], k: usize, capacity: usize) -> (Vec<f32>, Vec<f32>) {
    let experts = scores[0].len();
    let (mut chosen, mut kept) = (vec![0.0; scores.len() * experts], vec![0.0; scores.len() * experts]);
    let mut load = vec![0; experts];
    for (token, scores_E) in scores.iter().enumerate() {
        let mut ranked: Vec<usize> = (0..experts).collect();
        ranked.sort_by(|&a, &b| scores_E[b].total_cmp(&scores_E[a]));
        for &expert in &ranked[..k] {
            load[expert] += 1;
            chosen[token * experts + expert] = 1.0;
            kept[token * experts + expert] = if load[expert] <= capacity { 1.0 } else { 0.0 };
        }
    }
    (chosen, kept)
}

/// Expert number `expert` of a layer; shared experts count as one more than the routed ones.
fn swiglu(
    layer: &FeedForward,
    expert: usize,
    weights: &ExpertWeights,
    flat: &Tensor,
    h: &Tensor,
    pass: Pass,
) -> Result<Tensor> {
    let (tokens, hidden) = h.dims2()?;
    let width = weights.down.len() / hidden;
    let gate_up = h.matmul(&weight(flat, &weights.gate_up, &[2 * width, hidden])?.t()?)?;
    let (gate, up) = (gate_up.narrow(1, 0, width)?, gate_up.narrow(1, width, width)?);
    let mut a = ((&gate * sigmoid(&gate)?)? * up)?;
    if let Some(dropout) = pass.dropout("expert dropout", layer.layer, layer.expert_dropout) {
        let dropout = ActivationDropout { dropout, tokens_S: &[], expert, experts: layer.routed_experts() + 1 };
        let mut mask = vec![1.0; tokens * width];
        mask.chunks_exact_mut(width).enumerate().for_each(|(token, mask_F)| dropout.apply(token, mask_F));
        a = (a * Tensor::from_vec(mask, (tokens, width), h.device())?)?;
    }
    a.matmul(&weight(flat, &weights.down, &[hidden, width])?.t()?)
}

fn weight(flat: &Tensor, range: &Range<usize>, shape: &[usize]) -> Result<Tensor> {
    flat.narrow(0, range.start, range.len())?.reshape(shape)
}

fn rms_norm(x: &Tensor, gain: &Tensor, eps: f32) -> Result<Tensor> {
    let scale = (x.sqr()?.mean_keepdim(D::Minus1)? + f64::from(eps))?.sqrt()?;
    x.broadcast_div(&scale)?.broadcast_mul(gain)
}

fn sigmoid(x: &Tensor) -> Result<Tensor> {
    (x.neg()?.exp()? + 1.0)?.recip()
}

fn softmax(x: &Tensor) -> Result<Tensor> {
    let e = x.broadcast_sub(&x.max_keepdim(D::Minus1)?.detach())?.exp()?;
    e.broadcast_div(&e.sum_keepdim(D::Minus1)?)
}

fn log_sum_exp(x: &Tensor) -> Result<Tensor> {
    let largest = x.max_keepdim(D::Minus1)?.detach();
    x.broadcast_sub(&largest)?.exp()?.sum_keepdim(D::Minus1)?.log()? + largest
}

fn drop_out(x: &Tensor, probability: f64, purpose: &str, layer: usize, pass: Pass) -> Result<Tensor> {
    match pass.dropout(purpose, layer, probability) {
        Some(dropout) => {
            let mask = dropout.copy(&vec![1.0; x.elem_count()]).to_vec();
            x * Tensor::from_vec(mask, x.shape(), x.device())?
        }
        None => Ok(x.clone()),
    }
}
