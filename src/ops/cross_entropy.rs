//! The output head and its loss in one: logits = h W^T and the cross-entropy of the targets, whose gradient is
//! computed on the spot, for a block of rows at a time. The (N, V) logits of a whole batch never exist.

use super::buffer::Buffer;
use super::gemm::Precision;
use super::matmul::{Mat, MatMut, Store, add_weight_gradient, matmul};
use super::{pool, rows_per_task, simd};

/// Logits that exist at a time: 16 MB.
const MAX_LOGITS: usize = 1 << 22;

/// Where gradients go. The loss is `scale` times the sum of the tokens' cross-entropies.
pub struct Gradients<'a> {
    pub scale: f32,
    /// Overwritten.
    pub dh_ND: &'a mut [f32],
    /// Added to.
    pub dw_VD: &'a mut [f32],
}

/// Writes each token's cross-entropy in nats to `losses_N`, and the gradients where they are asked for.
pub fn forward(
    h_ND: &[f32],
    w_VD: &[f32],
    targets_N: &[u32],
    losses_N: &mut [f32],
    mut gradients: Option<Gradients>,
    precision: Precision,
) {
    let count = targets_N.len();
    let hidden = h_ND.len() / count;
    let vocab = w_VD.len() / hidden;
    let block = (MAX_LOGITS / vocab).next_multiple_of(64).min(count);
    let w = Mat::new(w_VD, vocab, hidden);
    let mut logits = Buffer::any(block * vocab);
    for start in (0..count).step_by(block) {
        let rows = block.min(count - start);
        let chunk = rows_per_task(rows);
        let h = &h_ND[start * hidden..][..rows * hidden];
        let tasks: Vec<_> = logits[..rows * vocab]
            .chunks_mut(chunk * vocab)
            .zip(losses_N[start..][..rows].chunks_mut(chunk))
            .zip(h.chunks(chunk * hidden).zip(targets_N[start..].chunks(chunk)))
            .collect();
        let scale = gradients.as_ref().map(|gradients| gradients.scale);
        pool::run(tasks, |((logits, losses), (h, targets))| {
            let h = Mat::new(h, losses.len(), hidden);
            matmul(MatMut::new(logits, losses.len(), vocab), h, w.t(), Store::Overwrite, precision);
            simd::vectorized!(|| {
                for ((logits_V, loss), &target) in logits.chunks_exact_mut(vocab).zip(losses).zip(targets) {
                    *loss = row_loss(logits_V, target as usize, scale);
                }
            });
        });
        if let Some(Gradients { dh_ND, dw_VD, .. }) = &mut gradients {
            let dlogits = Mat::new(&logits, rows, vocab);
            super::matmul::parallel_matmul(&mut dh_ND[start * hidden..], dlogits, w, Store::Overwrite, precision);
            add_weight_gradient(dw_VD, dlogits, Mat::new(h, rows, hidden), precision);
        }
    }
}

/// One token's cross-entropy; with a scale, its logits become `scale` times their gradient.
#[inline(always)]
fn row_loss(logits_V: &mut [f32], target: usize, scale: Option<f32>) -> f32 {
    let logit = logits_V[target];
    let lse = simd::softmax(logits_V);
    if let Some(scale) = scale {
        logits_V[target] -= 1.0;
        for x in logits_V.iter_mut() {
            *x *= scale;
        }
    }
    lse - logit
}
