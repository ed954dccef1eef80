//! The feed-forward sub-layer as one operation: x + dropout(sum_k gate_k expert_k(h) + shared(h)) with h = norm(x).
//!
//! The router chooses K experts per token; (token, expert) pairs are sorted by expert, so that each expert multiplies
//! its tokens in one go (dropless, Gale et al. 2022); the results go back to their tokens. A dense layer is the same
//! sub-layer with nothing but a shared expert.

use super::dispatch::Dispatch;
use super::operation::{Operation, Pass, Slot, apply};
use super::parameters::{Init, Kind, Layout, Parameters, slices_mut};
use super::router::{Router, Routing};
use crate::config::{Balance, ModelConfig, RouterConfig};
use crate::ops::buffer::Buffer;
use crate::ops::dropout::Dropout;
use crate::ops::gemm::Precision;
use crate::ops::matmul::{Mat, Store, add_weight_gradient, parallel_matmul};
use crate::ops::swiglu::{self, ActivationDropout, Expert, Upstream};
use crate::ops::{norm, pool, rows_per_task, simd};
use candle_core::{Result, Tensor};
use std::ops::Range;
use std::sync::{Arc, OnceLock};

/// One layer's feed-forward: where its weights are and how it routes.
pub struct FeedForward {
    pub layer: usize,
    pub hidden: usize,
    pub eps: f32,
    pub dropout: f64,
    /// Of the experts' hidden activations.
    pub expert_dropout: f64,
    pub norm: Range<usize>,
    pub routed: Option<Routed>,
    pub shared: Option<Shared>,
    /// One over the number of MoE layers: over them, balance loss and z-loss are averaged.
    pub loss_share: f32,
}

/// The routed experts and their router.
pub struct Routed {
    pub router: Router,
    /// (E, D)
    pub gate: Range<usize>,
    /// Noise of the scores, (E, D): Shazeer et al. 2017, eq. 4.
    pub noise: Option<Range<usize>>,
    /// Added to the scores for the choice alone, (E).
    pub bias: Option<Range<usize>>,
    pub experts: Vec<ExpertWeights>,
}

/// Where one expert's weights are, and their sizes D and F.
#[derive(Clone)]
pub struct ExpertWeights {
    pub hidden: usize,
    pub width: usize,
    /// W_gate above W_up, (2F, D).
    pub gate_up: Range<usize>,
    /// (D, F)
    pub down: Range<usize>,
}

/// The expert that every token passes.
pub struct Shared {
    pub weights: ExpertWeights,
    /// Sigmoid gate, (1, D), as in Qwen2-MoE.
    pub gate: Option<Range<usize>>,
}

impl ExpertWeights {
    fn new(layout: &mut Layout, model: &ModelConfig, prefix: &str, width: usize) -> Self {
        let hidden = model.hidden_size;
        let normal = Init::Normal(model.initializer_range);
        let residual = Init::residual(model);
        let mut add = |part: &str, shape: [usize; 2], init| {
            layout.add(format!("{prefix}.{part}_proj.weight"), &shape, Kind::Matrix, init)
        };
        let gate = add("gate", [width, hidden], normal);
        let up = add("up", [width, hidden], normal);
        let gate_up = gate.start..up.end;
        Self { hidden, width, gate_up, down: add("down", [hidden, width], residual) }
    }

    /// The weights over the given rows of gathered tokens.
    pub fn over<'a>(
        &self,
        values: &'a [f32],
        rows: Range<usize>,
        dropout: Option<ActivationDropout<'a>>,
    ) -> Expert<'a> {
        Expert { rows, gate_up_2FD: &values[self.gate_up.clone()], down_DF: &values[self.down.clone()], dropout }
    }
}

impl Routed {
    fn new(layout: &mut Layout, model: &ModelConfig, router: &RouterConfig, prefix: &str) -> Self {
        let (experts, hidden) = (model.num_experts, model.hidden_size);
        let shape = [experts, hidden];
        let normal = Init::Normal(model.initializer_range);
        let gate = layout.add(format!("{prefix}.gate.weight"), &shape, Kind::Router, normal);
        let noise = router
            .noisy_gate
            .then(|| layout.add(format!("{prefix}.gate.noise_weight"), &shape, Kind::Router, Init::Constant(0.0)));
        let bias = (router.balance == Balance::Bias).then(|| {
            let name = format!("{prefix}.gate.e_score_correction_bias");
            layout.add(name, &[experts], Kind::State, Init::Constant(0.0))
        });
        let width = model.moe_intermediate_size;
        let expert = |expert| ExpertWeights::new(layout, model, &format!("{prefix}.experts.{expert}"), width);
        let experts = (0..experts).map(expert).collect();
        let router = Router {
            config: router.clone(),
            num_experts: model.num_experts,
            experts_per_token: model.num_experts_per_tok,
        };
        Self { router, gate, noise, bias, experts }
    }

    /// The most tokens that one expert takes in this pass: a limit in training only, and only where one is set.
    fn capacity(&self, pass: Pass) -> Option<usize> {
        let factor = self.router.config.capacity_factor;
        let share = (pass.tokens() * self.router.experts_per_token) as f64 / self.router.num_experts as f64;
        (pass.is_training() && factor > 0.0).then(|| (factor * share).ceil() as usize)
    }
}

impl FeedForward {
    /// Adds the layer's parameters to `layout`.
    pub fn new(layout: &mut Layout, model: &ModelConfig, router: &RouterConfig, layer: usize) -> Self {
        let prefix = format!("model.layers.{layer}");
        let name = format!("{prefix}.post_attention_layernorm.weight");
        let norm = layout.add(name, &[model.hidden_size], Kind::Gain, Init::Constant(1.0));
        let mlp = format!("{prefix}.mlp");
        let is_moe = model.is_moe_layer(layer);
        let routed = is_moe.then(|| Routed::new(layout, model, router, &mlp));
        let shared = if !is_moe {
            Some(Shared { weights: ExpertWeights::new(layout, model, &mlp, model.intermediate_size), gate: None })
        } else if model.n_shared_experts > 0 {
            let width = model.n_shared_experts * model.moe_intermediate_size;
            let weights = ExpertWeights::new(layout, model, &format!("{mlp}.shared_experts"), width);
            let gate = model.shared_expert_gate.then(|| {
                let name = format!("{mlp}.shared_expert_gate.weight");
                layout.add(name, &[1, model.hidden_size], Kind::Router, Init::Normal(model.initializer_range))
            });
            Some(Shared { weights, gate })
        } else {
            None
        };
        let moe_layers = (0..model.num_hidden_layers).filter(|&layer| model.is_moe_layer(layer)).count();
        Self {
            layer,
            hidden: model.hidden_size,
            eps: model.rms_norm_eps as f32,
            dropout: model.hidden_dropout,
            expert_dropout: model.expert_dropout,
            norm,
            routed,
            shared,
            loss_share: 1.0 / moe_layers.max(1) as f32,
        }
    }

    /// E, or 0 in a dense layer.
    pub fn routed_experts(&self) -> usize {
        self.routed.as_ref().map_or(0, |routed| routed.experts.len())
    }

    /// `x_ND` with this sub-layer's output added, and the routing if there is any.
    pub fn forward(
        self: &Arc<Self>,
        parameters: &Arc<Parameters>,
        x_ND: &Tensor,
        pass: Pass,
    ) -> Result<(Tensor, Option<Arc<Routing>>)> {
        let routing = Arc::new(OnceLock::new());
        let operation = FeedForwardOp {
            layer: self.clone(),
            parameters: parameters.clone(),
            pass,
            routing: routing.clone(),
            saved: Slot::default(),
        };
        let y_ND = apply(x_ND, operation)?;
        Ok((y_ND, routing.get().cloned()))
    }
}

struct FeedForwardOp {
    layer: Arc<FeedForward>,
    parameters: Arc<Parameters>,
    pass: Pass,
    routing: Arc<OnceLock<Arc<Routing>>>,
    saved: Slot<Saved>,
}

/// What the backward pass needs.
struct Saved {
    h_ND: Buffer,
    scales_N: Buffer,
    routed: Option<SavedRouted>,
    shared: Option<SavedShared>,
}

struct SavedRouted {
    scores_NE: Buffer,
    /// h W_noise^T, of which the softplus is the noise's standard deviation.
    noise_NE: Option<Buffer>,
    routing: Arc<Routing>,
    dispatch: Dispatch,
    u: Buffer,
}

struct SavedShared {
    u: Buffer,
    /// Sigmoid gate of each token, or ones.
    gates_N: Vec<f32>,
}

impl FeedForwardOp {
    fn drop_out(&self) -> Option<Dropout> {
        self.pass.dropout("feed-forward dropout", self.layer.layer, self.layer.dropout)
    }

    /// The standard normal draw for each score, in training with a noisy gate.
    fn noise(&self) -> impl Fn(usize) -> f32 {
        let stream = self.pass.stream("router noise", self.layer.layer);
        move |index| stream.map_or(0.0, |stream| stream.normal(index as u64) as f32)
    }

    /// Which activations expert `expert` drops; shared experts count as one more than the routed ones.
    fn expert_dropout<'a>(&self, expert: usize, tokens_S: &'a [u32]) -> Option<ActivationDropout<'a>> {
        let dropout = self.pass.dropout("expert dropout", self.layer.layer, self.layer.expert_dropout)?;
        Some(ActivationDropout { dropout, tokens_S, expert, experts: self.layer.routed_experts() + 1 })
    }

    fn experts_over<'a>(&self, routed: &Routed, values: &'a [f32], dispatch: &'a Dispatch) -> Vec<Expert<'a>> {
        let over = |(expert, (weights, rows)): (usize, (&ExpertWeights, &Range<usize>))| {
            weights.over(values, rows.clone(), self.expert_dropout(expert, &dispatch.tokens_S))
        };
        routed.experts.iter().zip(&dispatch.rows_E).enumerate().map(over).collect()
    }

    fn shared_over<'a>(&self, shared: &Shared, values: &'a [f32]) -> Expert<'a> {
        shared.weights.over(values, 0..self.pass.tokens(), self.expert_dropout(self.layer.routed_experts(), &[]))
    }

    fn forward_routed(&self, routed: &Routed, values: &[f32], h_ND: &[f32]) -> (SavedRouted, Buffer) {
        let (hidden, experts, tokens) = (self.layer.hidden, routed.router.num_experts, self.pass.tokens());
        let h = Mat::new(h_ND, tokens, hidden);
        let project = |weight: &Range<usize>| {
            let mut scores_NE = Buffer::any(tokens * experts);
            let weight = Mat::new(&values[weight.clone()], experts, hidden);
            parallel_matmul(&mut scores_NE, h, weight.t(), Store::Overwrite, Precision::F32);
            scores_NE
        };
        let mut scores_NE = project(&routed.gate);
        let noise_NE = routed.noise.as_ref().filter(|_| self.pass.is_training()).map(project);
        if let Some(noise_NE) = &noise_NE {
            let draw = self.noise();
            for (index, (score, &noise)) in scores_NE.iter_mut().zip(noise_NE.iter()).enumerate() {
                *score += draw(index) * softplus(noise);
            }
        }
        let bias = routed.bias.as_ref().map(|bias| &values[bias.clone()]);
        let mut routing = match self.pass.knockout(self.layer.layer) {
            Some(knockout) => routed.router.decide_without(knockout, scores_NE.to_vec(), bias),
            None => routed.router.decide(&scores_NE, bias, routed.capacity(self.pass)),
        };
        let dispatch = Dispatch::new(&routing, routed.router.experts_per_token);
        let experts = self.experts_over(routed, values, &dispatch);
        let x_SD = dispatch.gather(h_ND, hidden);
        let mut u = Buffer::any(swiglu::preactivations_len(hidden, &experts));
        let mut y_SD = Buffer::any(x_SD.len());
        swiglu::forward(hidden, &experts, &x_SD, &mut u, &mut y_SD, self.pass.precision);
        if !self.pass.is_training() {
            routing.norms_NK = dispatch.norms(&y_SD, hidden);
        }
        (SavedRouted { scores_NE, noise_NE, routing: Arc::new(routing), dispatch, u }, y_SD)
    }

    fn forward_shared(&self, shared: &Shared, values: &[f32], h_ND: &[f32]) -> (SavedShared, Buffer) {
        let (hidden, tokens) = (self.layer.hidden, self.pass.tokens());
        let experts = [self.shared_over(shared, values)];
        let mut u = Buffer::any(swiglu::preactivations_len(hidden, &experts));
        let mut y_ND = Buffer::any(h_ND.len());
        swiglu::forward(hidden, &experts, h_ND, &mut u, &mut y_ND, self.pass.precision);
        let gates_N = match &shared.gate {
            Some(gate) => {
                let gate_D = &values[gate.clone()];
                h_ND.chunks_exact(hidden).map(|h_D| simd::sigmoid(simd::dot(h_D, gate_D))).collect()
            }
            None => vec![1.0; tokens],
        };
        (SavedShared { u, gates_N }, y_ND)
    }

    /// x + dropout(sum_k gate_k y_k + gate shared).
    fn combine(
        &self,
        x_ND: &[f32],
        routed: Option<(&SavedRouted, &Buffer)>,
        shared: Option<(&SavedShared, &Buffer)>,
    ) -> Vec<f32> {
        let hidden = self.layer.hidden;
        let mut y_ND = vec![0.0; x_ND.len()];
        let chunk = rows_per_task(self.pass.tokens());
        let dropout = self.drop_out();
        pool::run(y_ND.chunks_mut(chunk * hidden).enumerate().collect(), |(task, y): (usize, &mut [f32])| {
            simd::vectorized!(|| {
                for (offset, y_D) in y.chunks_exact_mut(hidden).enumerate() {
                    let token = task * chunk + offset;
                    if let Some((saved, y_SD)) = routed {
                        for place in saved.places(token) {
                            simd::add_scaled(y_D, saved.dispatch.gates_S[place], &y_SD[place * hidden..][..hidden]);
                        }
                    }
                    if let Some((saved, shared_ND)) = shared {
                        simd::add_scaled(y_D, saved.gates_N[token], &shared_ND[token * hidden..][..hidden]);
                    }
                }
            });
            if let Some(dropout) = dropout {
                dropout.apply(y, task * chunk * hidden);
            }
            simd::vectorized!(|| simd::add(y, &x_ND[task * chunk * hidden..]));
        });
        y_ND
    }

    /// Gradients of the experts, of the router's scores, and of each pair's row of h.
    fn backward_routed(
        &self,
        routed: &Routed,
        (values, h_ND, dy_ND): (&[f32], &[f32], &[f32]),
        saved: &mut SavedRouted,
        mut gradients: GradientSlices,
    ) -> RoutedGradients {
        let (hidden, tokens, k) = (self.layer.hidden, self.pass.tokens(), routed.router.experts_per_token);
        let experts = self.experts_over(routed, values, &saved.dispatch);
        let x_SD = saved.dispatch.gather(h_ND, hidden);
        let dy_SD = saved.dispatch.gather(dy_ND, hidden);
        let upstream =
            Upstream { x_SD: &x_SD, gates_S: &saved.dispatch.gates_S, dy_SD: &dy_SD, precision: self.pass.precision };
        let (mut dx_SD, mut dgates_S) = (Buffer::any(x_SD.len()), vec![0.0; saved.dispatch.gates_S.len()]);
        swiglu::backward(hidden, &experts, &upstream, &mut saved.u, &mut dx_SD, &mut dgates_S, gradients.experts);

        let mut dgates_NK = vec![0.0; tokens * k];
        for (dgate, place) in dgates_NK.iter_mut().zip(&saved.dispatch.places_NK) {
            *dgate = place.map_or(0.0, |place| dgates_S[place as usize]);
        }
        let loss_weight = self.layer.loss_share * self.pass.loss_scale();
        let dscores = routed.router.backward(&saved.scores_NE, &saved.routing, &dgates_NK, loss_weight);
        let experts = routed.router.num_experts;
        let h = Mat::new(h_ND, tokens, hidden);
        add_weight_gradient(gradients.gate, Mat::new(&dscores, tokens, experts), h, Precision::F32);
        let dnoise = saved.noise_NE.as_ref().zip(gradients.noise.as_mut()).map(|(noise_NE, gradient)| {
            let draw = self.noise();
            let derivative = |index: usize| draw(index) * simd::sigmoid(noise_NE[index]);
            let dnoise: Vec<f32> = dscores.iter().enumerate().map(|(index, &d)| d * derivative(index)).collect();
            add_weight_gradient(gradient, Mat::new(&dnoise, tokens, experts), h, Precision::F32);
            dnoise
        });
        RoutedGradients { dx_SD, dscores_NE: dscores, dnoise_NE: dnoise }
    }
}

/// What flows back from the routed experts towards h.
struct RoutedGradients {
    dx_SD: Buffer,
    dscores_NE: Vec<f32>,
    dnoise_NE: Option<Vec<f32>>,
}

/// Where the gradients of a layer's routed weights go.
struct GradientSlices<'a> {
    gate: &'a mut [f32],
    noise: Option<&'a mut [f32]>,
    experts: Vec<(&'a mut [f32], &'a mut [f32])>,
}

impl SavedRouted {
    /// Where the pairs of a token went.
    #[inline(always)]
    fn places(&self, token: usize) -> impl Iterator<Item = usize> {
        let k = self.routing.experts_per_token();
        self.dispatch.places_NK[token * k..][..k].iter().flatten().map(|&place| place as usize)
    }
}

/// ln(1 + e^x)
fn softplus(x: f32) -> f32 {
    x.max(0.0) + (-x.abs()).exp().ln_1p()
}

impl Operation for FeedForwardOp {
    const NAME: &'static str = "feed-forward";

    fn forward(&self, x_ND: &[f32]) -> Result<(Vec<f32>, Vec<usize>)> {
        let (layer, tokens) = (&*self.layer, self.pass.tokens());
        let values = self.parameters.values();
        let (mut h_ND, mut scales_N) = (Buffer::any(x_ND.len()), Buffer::any(tokens));
        norm::parallel_forward(x_ND, &values[layer.norm.clone()], layer.eps, &mut h_ND, &mut scales_N);
        let routed = layer.routed.as_ref().map(|routed| self.forward_routed(routed, &values, &h_ND));
        let shared = layer.shared.as_ref().map(|shared| self.forward_shared(shared, &values, &h_ND));
        let y_ND = self.combine(x_ND, routed.as_ref().map(|(a, b)| (a, b)), shared.as_ref().map(|(a, b)| (a, b)));
        if let Some((routed, _)) = &routed {
            self.routing.get_or_init(|| routed.routing.clone());
        }
        if self.pass.is_training() {
            let (routed, shared) = (routed.map(|(saved, _)| saved), shared.map(|(saved, _)| saved));
            self.saved.put(Saved { h_ND, scales_N, routed, shared });
        }
        Ok((y_ND, vec![tokens, layer.hidden]))
    }

    fn backward(&self, x_ND: &[f32], dy_ND: &[f32]) -> Result<Option<Vec<f32>>> {
        let mut saved = self.saved.take()?;
        let (layer, hidden, tokens) = (&*self.layer, self.layer.hidden, self.pass.tokens());
        let values = self.parameters.values();
        let mut gradients = self.parameters.gradients();
        let mut slices = slices_mut(&mut gradients, &layer.ranges()).into_iter();
        let mut next = || slices.next().expect("a slice for every range");
        let dnorm = next();
        let dropped = self.drop_out().map(|dropout| dropout.copy(dy_ND));
        let dresidual = dropped.as_deref().unwrap_or(dy_ND);

        let mut dh_ND = Buffer::zeros(x_ND.len());
        if let (Some(routed), Some(saved_routed)) = (&layer.routed, &mut saved.routed) {
            let slices = GradientSlices {
                gate: next(),
                noise: routed.noise.is_some().then(&mut next),
                experts: routed.experts.iter().map(|_| (next(), next())).collect(),
            };
            let back = self.backward_routed(routed, (&values, &saved.h_ND, dresidual), saved_routed, slices);
            let experts = routed.router.num_experts;
            let through = |dh: &mut [f32], dscores: &[f32], weight: &Range<usize>| {
                let weight = Mat::new(&values[weight.clone()], experts, hidden);
                parallel_matmul(dh, Mat::new(dscores, tokens, experts), weight, Store::Add, Precision::F32);
            };
            through(&mut dh_ND, &back.dscores_NE, &routed.gate);
            if let (Some(dnoise), Some(weight)) = (&back.dnoise_NE, &routed.noise) {
                through(&mut dh_ND, dnoise, weight);
            }
            let chunk = rows_per_task(tokens);
            pool::run(dh_ND.chunks_mut(chunk * hidden).enumerate().collect(), |(task, dh): (usize, &mut [f32])| {
                simd::vectorized!(|| {
                    for (offset, dh_D) in dh.chunks_exact_mut(hidden).enumerate() {
                        for place in saved_routed.places(task * chunk + offset) {
                            simd::add(dh_D, &back.dx_SD[place * hidden..][..hidden]);
                        }
                    }
                });
            });
        }
        if let (Some(shared), Some(saved_shared)) = (&layer.shared, &mut saved.shared) {
            let weights = vec![(next(), next())];
            let experts = [self.shared_over(shared, &values)];
            let (mut dx_ND, mut dgates_N) = (Buffer::any(x_ND.len()), vec![0.0; tokens]);
            let upstream = Upstream {
                x_SD: &saved.h_ND,
                gates_S: &saved_shared.gates_N,
                dy_SD: dresidual,
                precision: self.pass.precision,
            };
            swiglu::backward(hidden, &experts, &upstream, &mut saved_shared.u, &mut dx_ND, &mut dgates_N, weights);
            simd::vectorized!(|| simd::add(&mut dh_ND, &dx_ND));
            if let Some(gate) = &shared.gate {
                let (gate_D, dgate_D) = (&values[gate.clone()], next());
                for (token, (&dgate, &sigmoid)) in dgates_N.iter().zip(&saved_shared.gates_N).enumerate() {
                    let dlogit = dgate * sigmoid * (1.0 - sigmoid);
                    let row = token * hidden..(token + 1) * hidden;
                    simd::add_scaled(dgate_D, dlogit, &saved.h_ND[row.clone()]);
                    simd::add_scaled(&mut dh_ND[row], dlogit, gate_D);
                }
            }
        }
        let mut dx_ND = dy_ND.to_vec();
        norm::parallel_backward(x_ND, &values[layer.norm.clone()], &saved.scales_N, &dh_ND, &mut dx_ND, dnorm);
        Ok(Some(dx_ND))
    }
}

impl FeedForward {
    /// The weights that get a gradient, in the order in which they were laid out.
    fn ranges(&self) -> Vec<Range<usize>> {
        let mut ranges = vec![self.norm.clone()];
        if let Some(routed) = &self.routed {
            ranges.push(routed.gate.clone());
            ranges.extend(routed.noise.clone());
            ranges.extend(routed.experts.iter().flat_map(|expert| [expert.gate_up.clone(), expert.down.clone()]));
        }
        if let Some(shared) = &self.shared {
            ranges.extend([shared.weights.gate_up.clone(), shared.weights.down.clone()]);
            ranges.extend(shared.gate.clone());
        }
        ranges
    }
}
