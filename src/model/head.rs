//! The two ends of the model as operations: token embedding, and final norm with output head and cross-entropy.

use super::operation::{Operation, Pass, Slot, apply};
use super::parameters::{Parameters, slices_mut};
use crate::ops::buffer::Buffer;
use crate::ops::dropout::Dropout;
use crate::ops::gemm::Precision;
use crate::ops::matmul::{Mat, MatMut, Store, matmul};
use crate::ops::{cross_entropy, norm, pool, rows_per_task, simd};
use candle_core::{Result, Tensor, bail};
use std::ops::Range;
use std::sync::{Arc, OnceLock};

/// Looks tokens up in the embedding matrix. candle runs a backward pass only for what depends on a tensor that it tracks;
/// weights are not tensors here, so `anchor`, whose value is never used, is tracked in their place.
pub fn embed(
    anchor: &Tensor,
    parameters: &Arc<Parameters>,
    weight_VD: &Range<usize>,
    ids_N: &[u32],
    pass: Pass,
    hidden: usize,
    dropout: f64,
) -> Result<Tensor> {
    let operation = EmbeddingOp {
        parameters: parameters.clone(),
        weight_VD: weight_VD.clone(),
        ids_N: ids_N.to_vec(),
        hidden,
        dropout: pass.dropout("embedding dropout", 0, dropout),
    };
    apply(anchor, operation)
}

struct EmbeddingOp {
    parameters: Arc<Parameters>,
    weight_VD: Range<usize>,
    ids_N: Vec<u32>,
    hidden: usize,
    dropout: Option<Dropout>,
}

impl Operation for EmbeddingOp {
    const NAME: &'static str = "embedding";

    fn forward(&self, _anchor: &[f32]) -> Result<(Vec<f32>, Vec<usize>)> {
        let values = self.parameters.values();
        let weight_VD = &values[self.weight_VD.clone()];
        let mut x_ND = vec![0.0; self.ids_N.len() * self.hidden];
        for (x_D, &id) in x_ND.chunks_exact_mut(self.hidden).zip(&self.ids_N) {
            let Some(row_D) = weight_VD.chunks_exact(self.hidden).nth(id as usize) else {
                bail!("token id {id} is not below the vocabulary size {}", weight_VD.len() / self.hidden);
            };
            x_D.copy_from_slice(row_D);
        }
        if let Some(dropout) = &self.dropout {
            dropout.apply(&mut x_ND, 0);
        }
        Ok((x_ND, vec![self.ids_N.len(), self.hidden]))
    }

    fn backward(&self, _anchor: &[f32], dx_ND: &[f32]) -> Result<Option<Vec<f32>>> {
        let dropped = self.dropout.map(|dropout| dropout.copy(dx_ND));
        let dx_ND = dropped.as_deref().unwrap_or(dx_ND);
        let mut gradients = self.parameters.gradients();
        let dweight_VD = &mut gradients[self.weight_VD.clone()];
        for (dx_D, &id) in dx_ND.chunks_exact(self.hidden).zip(&self.ids_N) {
            simd::add(&mut dweight_VD[id as usize * self.hidden..][..self.hidden], dx_D);
        }
        Ok(None)
    }
}

/// The model's end: final norm and output head.
#[derive(Clone)]
pub struct Head {
    pub norm: Range<usize>,
    /// (V, D): a matrix of its own, or the embedding.
    pub weight_VD: Range<usize>,
    pub hidden: usize,
    pub eps: f32,
}

/// Cross-entropy of a batch.
pub struct Loss {
    /// Mean over tokens in nats, times the pass's loss scale: the root to call `backward` on.
    pub root: Tensor,
    /// Nats of each token.
    pub losses_N: Arc<Vec<f32>>,
}

impl Head {
    /// The loss of the next tokens `targets_N`. In training the gradients of this operation's weights are added during
    /// the forward pass already, so the result must be the root of exactly one backward pass.
    pub fn loss(&self, parameters: &Arc<Parameters>, x_ND: &Tensor, targets_N: &[u32], pass: Pass) -> Result<Loss> {
        let losses_N = Arc::new(OnceLock::new());
        let operation = LossOp {
            head: self.clone(),
            parameters: parameters.clone(),
            targets_N: targets_N.to_vec(),
            pass,
            losses_N: losses_N.clone(),
            dx_ND: Slot::default(),
        };
        let root = apply(x_ND, operation)?;
        Ok(Loss { root, losses_N: losses_N.get().cloned().unwrap_or_default() })
    }

    /// The token that is likeliest to come next, for each position; of equally likely ones the lowest.
    pub fn likeliest(&self, parameters: &Parameters, x_ND: &Tensor) -> Result<Vec<u32>> {
        let x_ND = x_ND.flatten_all()?.to_vec1::<f32>()?;
        let values = parameters.values();
        let weight_VD = &values[self.weight_VD.clone()];
        let (hidden, vocab) = (self.hidden, weight_VD.len() / self.hidden);
        let tokens = x_ND.len() / hidden;
        let (mut h_ND, mut scales_N) = (Buffer::any(x_ND.len()), Buffer::any(tokens));
        norm::parallel_forward(&x_ND, &values[self.norm.clone()], self.eps, &mut h_ND, &mut scales_N);
        let mut likeliest_N = vec![0; tokens];
        let chunk = rows_per_task(tokens);
        let tasks = likeliest_N.chunks_mut(chunk).zip(h_ND.chunks(chunk * hidden)).collect();
        pool::run(tasks, |(likeliest, h): (&mut [u32], &[f32])| {
            let mut logits = Buffer::any(likeliest.len() * vocab);
            let (h, w) = (Mat::new(h, likeliest.len(), hidden), Mat::new(weight_VD, vocab, hidden));
            matmul(MatMut::new(&mut logits, likeliest.len(), vocab), h, w.t(), Store::Overwrite, Precision::F32);
            simd::vectorized!(|| {
                for (logits_V, likeliest) in logits.chunks_exact(vocab).zip(likeliest) {
                    let largest = simd::max(logits_V);
                    *likeliest = logits_V.iter().position(|&logit| logit == largest).unwrap_or(0) as u32;
                }
            });
        });
        Ok(likeliest_N)
    }
}

struct LossOp {
    head: Head,
    parameters: Arc<Parameters>,
    targets_N: Vec<u32>,
    pass: Pass,
    losses_N: Arc<OnceLock<Arc<Vec<f32>>>>,
    dx_ND: Slot<Vec<f32>>,
}

impl Operation for LossOp {
    const NAME: &'static str = "loss";

    fn forward(&self, x_ND: &[f32]) -> Result<(Vec<f32>, Vec<usize>)> {
        let Head { hidden, eps, .. } = self.head;
        let tokens = self.targets_N.len();
        let values = self.parameters.values();
        let (norm_D, weight_VD) = (&values[self.head.norm.clone()], &values[self.head.weight_VD.clone()]);
        if let Some(&id) = self.targets_N.iter().find(|&&id| id as usize >= weight_VD.len() / hidden) {
            bail!("token id {id} is not below the vocabulary size {}", weight_VD.len() / hidden);
        }
        let (mut h_ND, mut scales_N) = (Buffer::any(x_ND.len()), Buffer::any(tokens));
        norm::parallel_forward(x_ND, norm_D, eps, &mut h_ND, &mut scales_N);
        let mut losses_N = vec![0.0; tokens];
        if self.pass.is_training() {
            let mut gradients = self.parameters.gradients();
            let scale = self.pass.loss_scale() / tokens as f32;
            let mut dh_ND = Buffer::any(x_ND.len());
            let wanted = cross_entropy::Gradients {
                scale,
                dh_ND: &mut dh_ND,
                dw_VD: &mut gradients[self.head.weight_VD.clone()],
            };
            cross_entropy::forward(&h_ND, weight_VD, &self.targets_N, &mut losses_N, Some(wanted), self.pass.precision);
            let mut dx_ND = vec![0.0; x_ND.len()];
            let dnorm = slices_mut(&mut gradients, std::slice::from_ref(&self.head.norm)).remove(0);
            norm::parallel_backward(x_ND, norm_D, &scales_N, &dh_ND, &mut dx_ND, dnorm);
            self.dx_ND.put(dx_ND);
        } else {
            cross_entropy::forward(&h_ND, weight_VD, &self.targets_N, &mut losses_N, None, self.pass.precision);
        }
        let mean = losses_N.iter().map(|&loss| f64::from(loss)).sum::<f64>() / tokens as f64;
        self.losses_N.get_or_init(|| Arc::new(losses_N));
        Ok((vec![mean as f32 * self.pass.loss_scale()], vec![]))
    }

    fn backward(&self, _x_ND: &[f32], dloss: &[f32]) -> Result<Option<Vec<f32>>> {
        if dloss != [1.0] {
            bail!("the loss must be the root of the backward pass");
        }
        self.dx_ND.take().map(Some)
    }
}
