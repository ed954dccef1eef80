//! The whole model, top to bottom: embedding, L layers of attention and feed-forward, norm and head.
//!
//! Pre-norm RMSNorm, RoPE, grouped-query attention, SwiGLU experts behind a router: the common denominator of today's
//! open MoE models, so that a checkpoint can say that it is a `qwen3_moe`, a `mixtral` or a `glm4_moe`.

use super::attention::Attention;
use super::head::{Head, Loss, embed};
use super::moe::FeedForward;
use super::operation::Pass;
use super::parameters::{Init, Kind, Layout, Parameters};
use super::router::Routing;
use crate::config::{ModelConfig, RouterConfig};
use crate::ops::rope::RotaryTable;
use candle_core::{Device, Result, Tensor, Var};
use std::ops::Range;
use std::sync::Arc;

/// A model: its shape, its weights, and where each layer finds its own.
pub struct Transformer {
    pub model: ModelConfig,
    pub router: RouterConfig,
    pub vocab_size: usize,
    pub parameters: Arc<Parameters>,
    pub embedding_VD: Range<usize>,
    pub layers: Vec<Layer>,
    pub head: Head,
    anchor: Var,
}

pub struct Layer {
    pub attention: Arc<Attention>,
    pub feed_forward: Arc<FeedForward>,
}

/// Where the residual stream has just been; layers count from 0.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Station {
    Embedding,
    Attention(usize),
    FeedForward(usize),
}

impl std::fmt::Display for Station {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Station::Embedding => f.write_str("the embedding"),
            Station::Attention(layer) => write!(f, "layer {layer}'s attention"),
            Station::FeedForward(layer) => write!(f, "layer {layer}'s feed-forward part"),
        }
    }
}

/// What a run through the model gives.
pub struct Output {
    pub loss: Loss,
    /// One entry a MoE layer.
    pub routing: Vec<Arc<Routing>>,
}

impl Transformer {
    /// A model with initial weights drawn from `seed`.
    pub fn new(model: &ModelConfig, router: &RouterConfig, vocab_size: usize, seed: u64) -> Result<Self> {
        let transformer = Self::blank(model, router, vocab_size)?;
        transformer.parameters.initialize(seed);
        Ok(transformer)
    }

    /// A model whose weights are all zero, to be filled from a checkpoint.
    pub fn blank(model: &ModelConfig, router: &RouterConfig, vocab_size: usize) -> Result<Self> {
        let mut layout = Layout::default();
        let hidden = model.hidden_size;
        let normal = Init::Normal(model.initializer_range);
        let embedding_VD =
            layout.add("model.embed_tokens.weight".into(), &[vocab_size, hidden], Kind::Embedding, normal);
        let rotary = Arc::new(RotaryTable::new(model.max_position_embeddings, model.rotary_dim(), model.rope_theta));
        let layers = (0..model.num_hidden_layers)
            .map(|layer| Layer {
                attention: Arc::new(Attention::new(&mut layout, model, &rotary, layer)),
                feed_forward: Arc::new(FeedForward::new(&mut layout, model, router, layer)),
            })
            .collect();
        let norm = layout.add("model.norm.weight".into(), &[hidden], Kind::Gain, Init::Constant(1.0));
        let weight_VD = if model.tie_word_embeddings {
            embedding_VD.clone()
        } else {
            layout.add("lm_head.weight".into(), &[vocab_size, hidden], Kind::Embedding, normal)
        };
        Ok(Self {
            model: model.clone(),
            router: router.clone(),
            vocab_size,
            parameters: Arc::new(layout.zeros()),
            embedding_VD,
            layers,
            head: Head { norm, weight_VD, hidden, eps: model.rms_norm_eps as f32 },
            anchor: Var::zeros((), candle_core::DType::F32, &Device::Cpu)?,
        })
    }

    /// The loss of predicting `targets_N` from `ids_N`, sequences of `pass.time` tokens one after the other. In training
    /// `loss.root.backward()` adds every weight's gradient to [`Parameters::gradients`].
    pub fn forward(&self, ids_N: &[u32], targets_N: &[u32], pass: Pass) -> Result<Output> {
        let x_ND = self.embed(ids_N, pass)?;
        let (x_ND, routing) = self.sub_layers(0, x_ND, pass, |_, _| Ok(()))?;
        Ok(Output { loss: self.head.loss(&self.parameters, &x_ND, targets_N, pass)?, routing })
    }

    /// The residual stream before the first layer.
    pub fn embed(&self, ids_N: &[u32], pass: Pass) -> Result<Tensor> {
        // Candle keeps a graph only for what depends on a variable.
        let anchor =
            if pass.is_training() { self.anchor.as_tensor().clone() } else { self.anchor.as_detached_tensor() };
        let (hidden, dropout) = (self.model.hidden_size, self.model.hidden_dropout);
        embed(&anchor, &self.parameters, &self.embedding_VD, ids_N, pass, hidden, dropout)
    }

    /// The residual stream after all sub-layers from number `first` on, given that before it, and the routing of those
    /// that route. Sub-layer 2 l is the attention of layer l, 2 l + 1 its feed-forward. `watch` sees the stream after
    /// each.
    pub fn sub_layers(
        &self,
        first: usize,
        mut x_ND: Tensor,
        pass: Pass,
        mut watch: impl FnMut(Station, &Tensor) -> Result<()>,
    ) -> Result<(Tensor, Vec<Arc<Routing>>)> {
        let mut routing = Vec::new();
        for number in first..2 * self.layers.len() {
            let layer = &self.layers[number / 2];
            if number % 2 == 0 {
                x_ND = layer.attention.forward(&self.parameters, &x_ND, pass)?;
                watch(Station::Attention(number / 2), &x_ND)?;
            } else {
                let (y_ND, decisions) = layer.feed_forward.forward(&self.parameters, &x_ND, pass)?;
                x_ND = y_ND;
                routing.extend(decisions);
                watch(Station::FeedForward(number / 2), &x_ND)?;
            }
        }
        Ok((x_ND, routing))
    }

    /// Layers that route, by number.
    pub fn moe_layers(&self) -> Vec<usize> {
        (0..self.model.num_hidden_layers).filter(|&layer| self.model.is_moe_layer(layer)).collect()
    }

    /// Weights that one token passes through: all but those of the experts that it does not choose.
    pub fn active_parameters(&self) -> usize {
        let idle = self.layers.iter().filter_map(|layer| layer.feed_forward.routed.as_ref()).map(|routed| {
            let expert = |weights: &super::moe::ExpertWeights| weights.gate_up.len() + weights.down.len();
            let mut sizes: Vec<usize> = routed.experts.iter().map(expert).collect();
            sizes.sort_unstable();
            sizes[..sizes.len() - routed.router.experts_per_token].iter().sum::<usize>()
        });
        self.parameters.count() - idle.sum::<usize>()
    }
}
