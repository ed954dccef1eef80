//! The whole model, top to bottom: embedding, L layers of attention and feed-forward (before some of them a memory),
//! norm and head.
//!
//! Pre-norm RMSNorm, RoPE, grouped-query attention, SwiGLU experts behind a router: the common denominator of today's
//! open MoE models, so that a checkpoint can say that it is a `qwen3_moe`, a `mixtral` or a `glm4_moe`.

use super::attention::Attention;
use super::head::{Head, Loss, embed};
use super::memory::{Memory, Reading};
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
    pub memory: Option<Arc<Memory>>,
    pub attention: Arc<Attention>,
    pub feed_forward: Arc<FeedForward>,
}

/// Where the residual stream has just been; layers count from 0.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Station {
    Embedding,
    Memory(usize),
    Attention(usize),
    FeedForward(usize),
}

impl std::fmt::Display for Station {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Station::Embedding => f.write_str("the embedding"),
            Station::Memory(layer) => write!(f, "layer {layer}'s memory"),
            Station::Attention(layer) => write!(f, "layer {layer}'s attention"),
            Station::FeedForward(layer) => write!(f, "layer {layer}'s feed-forward part"),
        }
    }
}

/// What a run through the model gives.
pub struct Output {
    pub loss: Loss,
    /// One entry per MoE layer.
    pub routing: Vec<Arc<Routing>>,
    /// One entry a memory.
    pub readings: Vec<Arc<Reading>>,
}

/// What the layers make of the residual stream.
pub struct Passage {
    pub x_ND: Tensor,
    /// One entry per MoE layer on the way.
    pub routing: Vec<Arc<Routing>>,
    /// One entry a memory on the way.
    pub readings: Vec<Arc<Reading>>,
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
                memory: model.has_memory(layer).then(|| Arc::new(Memory::new(&mut layout, model, layer))),
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
        let passage = self.sub_layers(Station::Embedding, ids_N, x_ND, pass, |_, _| Ok(()))?;
        let Passage { x_ND, routing, readings } = passage;
        Ok(Output { loss: self.head.loss(&self.parameters, &x_ND, targets_N, pass)?, routing, readings })
    }

    /// The residual stream before the first layer.
    pub fn embed(&self, ids_N: &[u32], pass: Pass) -> Result<Tensor> {
        // Candle keeps a graph only for what depends on a variable.
        let anchor =
            if pass.is_training() { self.anchor.as_tensor().clone() } else { self.anchor.as_detached_tensor() };
        let (hidden, dropout) = (self.model.hidden_size, self.model.hidden_dropout);
        embed(&anchor, &self.parameters, &self.embedding_VD, ids_N, pass, hidden, dropout)
    }

    /// Where the residual stream goes by, in order.
    fn stations(&self) -> impl Iterator<Item = Station> + '_ {
        let of_layer = |(number, layer): (usize, &Layer)| {
            let memory = layer.memory.as_ref().map(|_| Station::Memory(number));
            memory.into_iter().chain([Station::Attention(number), Station::FeedForward(number)])
        };
        [Station::Embedding].into_iter().chain(self.layers.iter().enumerate().flat_map(of_layer))
    }

    /// Runs the residual stream, which is `x_ND` at `start`, through all sub-layers behind `start`. `watch` sees it after
    /// each of them.
    pub fn sub_layers(
        &self,
        start: Station,
        ids_N: &[u32],
        x_ND: Tensor,
        pass: Pass,
        mut watch: impl FnMut(Station, &Tensor) -> Result<()>,
    ) -> Result<Passage> {
        let mut passage = Passage { x_ND, routing: Vec::new(), readings: Vec::new() };
        let parameters = &self.parameters;
        for station in self.stations().skip_while(|&station| station != start).skip(1) {
            let x_ND = &passage.x_ND;
            passage.x_ND = match station {
                Station::Embedding => self.embed(ids_N, pass)?,
                Station::Memory(layer) => match &self.layers[layer].memory {
                    Some(memory) => {
                        let (y_ND, reading) = memory.forward(parameters, ids_N, x_ND, pass)?;
                        passage.readings.push(reading);
                        y_ND
                    }
                    None => continue,
                },
                Station::Attention(layer) => self.layers[layer].attention.forward(parameters, x_ND, pass)?,
                Station::FeedForward(layer) => {
                    let (y_ND, routing) = self.layers[layer].feed_forward.forward(parameters, x_ND, pass)?;
                    passage.routing.extend(routing);
                    y_ND
                }
            };
            watch(station, &passage.x_ND)?;
        }
        Ok(passage)
    }

    /// Layers that route, by number.
    pub fn moe_layers(&self) -> Vec<usize> {
        (0..self.model.num_hidden_layers).filter(|&layer| self.model.is_moe_layer(layer)).collect()
    }

    /// The memories, in the order in which they are read.
    pub fn memories(&self) -> impl Iterator<Item = &Arc<Memory>> {
        self.layers.iter().filter_map(|layer| layer.memory.as_ref())
    }

    /// Weights that one token passes through: all but those of the experts that it does not choose, and of the tables'
    /// rows that it does not read.
    pub fn active_parameters(&self) -> usize {
        let idle = self.layers.iter().filter_map(|layer| layer.feed_forward.routed.as_ref()).map(|routed| {
            let expert = |weights: &super::moe::ExpertWeights| weights.gate_up.len() + weights.down.len();
            let mut sizes: Vec<usize> = routed.experts.iter().map(expert).collect();
            sizes.sort_unstable();
            sizes[..sizes.len() - routed.router.experts_per_token].iter().sum::<usize>()
        });
        let unread = self.memories().map(|memory| memory.idle());
        self.parameters.count() - idle.sum::<usize>() - unread.sum::<usize>()
    }
}
