//! The fast operations against their plain-candle twin and against finite differences, for every routing variant.

use candle_core::{Device, Tensor, Var};
use tinymoe::config::{Balance, Config, ScoringFunc};
use tinymoe::model::decode::{Decoder, Logits};
use tinymoe::model::operation::{Mode, Pass};
use tinymoe::model::parameters::Kind;
use tinymoe::model::plain;
use tinymoe::model::transformer::Transformer;
use tinymoe::ops::gemm::Precision;
use tinymoe::random::Stream;

const VOCAB: usize = 23;

/// A small model of awkward sizes that routes by softmax top-2.
fn base() -> Config {
    let mut config = Config::default();
    let model = &mut config.model;
    model.hidden_size = 20;
    model.num_hidden_layers = 2;
    model.num_attention_heads = 4;
    model.num_key_value_heads = 2;
    model.head_dim = 6;
    model.max_position_embeddings = 70;
    model.num_experts = 5;
    model.num_experts_per_tok = 2;
    model.moe_intermediate_size = 11;
    model.intermediate_size = 22;
    // Large enough weights that every part of the model matters.
    model.initializer_range = 0.3;
    config.router.router_aux_loss_coef = 0.1;
    config.router.router_z_loss_coef = 0.05;
    config
}

type Change = fn(&mut Config);

const VARIANTS: &[(&str, Change)] = &[
    ("softmax top-2", |_| ()),
    ("switch top-1", |c| (c.model.num_experts_per_tok, c.router.norm_topk_prob) = (1, false)),
    ("every expert", |c| c.model.num_experts_per_tok = 5),
    ("one expert", |c| {
        (c.model.num_experts, c.model.num_experts_per_tok, c.router.norm_topk_prob) = (1, 1, false);
    }),
    ("not renormalised, scaled", |c| {
        (c.router.norm_topk_prob, c.router.routed_scaling_factor) = (false, 1.7);
    }),
    ("noisy", |c| c.router.noisy_gate = true),
    ("sigmoid with bias", |c| {
        (c.router.scoring_func, c.router.balance) = (ScoringFunc::Sigmoid, Balance::Bias);
        c.router.routed_scaling_factor = 2.5;
    }),
    ("sigmoid with balance loss", |c| {
        (c.router.scoring_func, c.router.norm_topk_prob) = (ScoringFunc::Sigmoid, false);
    }),
    ("no balance", |c| (c.router.balance, c.router.router_z_loss_coef) = (Balance::None, 0.0)),
    ("capacity", |c| c.router.capacity_factor = 0.8),
    ("shared expert", |c| c.model.n_shared_experts = 2),
    ("gated shared expert", |c| (c.model.n_shared_experts, c.model.shared_expert_gate) = (1, true)),
    ("leading dense layer", |c| c.model.first_k_dense_replace = 1),
    ("dense", |c| c.model.num_experts = 0),
    ("untied", |c| c.model.tie_word_embeddings = false),
    ("no QK-norm", |c| c.model.qk_norm = false),
    ("QK-norm across heads", |c| c.model.qk_norm_across_heads = true),
    ("biases", |c| c.model.qkv_bias = true),
    ("partial rotation", |c| c.model.partial_rotary_factor = 0.7),
    ("dropout", |c| c.model.hidden_dropout = 0.3),
    ("memory", |c| {
        (c.model.memory_layers, c.model.memory_ngrams) = (vec![0, 1], vec![2, 3, 4]);
        (c.model.memory_slots, c.model.memory_dim) = (13, 5);
    }),
    ("memory of bigrams, dropout, dense", |c| {
        (c.model.memory_layers, c.model.memory_ngrams) = (vec![1], vec![2]);
        (c.model.memory_slots, c.model.memory_dim) = (300, 8);
        (c.model.hidden_dropout, c.model.num_experts) = (0.3, 0);
    }),
    ("dropout in experts", |c| (c.model.expert_dropout, c.model.n_shared_experts) = (0.3, 1)),
    ("dropout of attention weights", |c| c.model.attention_dropout = 0.3),
    ("dropout in a dense layer", |c| (c.model.expert_dropout, c.model.num_experts) = (0.3, 0)),
];

struct Case {
    model: Transformer,
    ids: Vec<u32>,
    targets: Vec<u32>,
    pass: Pass,
}

impl Case {
    fn new(change: Change, batch: usize, time: usize) -> Self {
        let mut config = base();
        change(&mut config);
        let model = Transformer::new(&config.model, &config.router, VOCAB, 7).unwrap();
        // Gains, biases and noise weights start as constants; move them, so that mistakes with them show.
        let stream = Stream::new(11, "perturbation", &[]);
        for parameter in model.parameters.list() {
            if !matches!(parameter.kind, Kind::Matrix | Kind::Embedding) {
                let mut values = model.parameters.values_mut();
                for index in parameter.range.clone() {
                    values[index] += 0.2 * stream.normal(index as u64) as f32;
                }
            }
        }
        let draw = |purpose| {
            let stream = Stream::new(5, purpose, &[]);
            (0..batch * time).map(|i| (stream.uniform(i as u64) * VOCAB as f64) as u32).collect()
        };
        let pass =
            Pass { batch, time, mode: Mode::Train { seed: 3, step: 9, loss_scale: 0.5 }, precision: Precision::F32 };
        Self { model, ids: draw("ids"), targets: draw("targets"), pass }
    }

    /// The fast path's loss and flat gradient.
    fn fast(&self) -> (f32, Vec<f32>) {
        self.model.parameters.clear_gradients();
        let output = self.model.forward(&self.ids, &self.targets, self.pass).unwrap();
        output.loss.root.backward().unwrap();
        let mut total = output.loss.root.to_scalar::<f32>().unwrap();
        let router = &self.model.router;
        for routing in &output.routing {
            let aux = if router.balance == Balance::AuxLoss { router.router_aux_loss_coef as f32 } else { 0.0 };
            let losses = aux * routing.balance_loss + router.router_z_loss_coef as f32 * routing.z_loss;
            total += 0.5 * losses / output.routing.len() as f32;
        }
        (total, self.model.parameters.gradients().clone())
    }

    /// Every layer's choice of experts.
    fn choices(&self) -> Vec<Vec<u32>> {
        let output = self.model.forward(&self.ids, &self.targets, self.pass).unwrap();
        output.routing.iter().map(|routing| routing.experts_NK.clone()).collect()
    }

    fn plain(&self, values: &Tensor) -> plain::PlainOutput {
        plain::forward(&self.model, values, &self.ids, &self.targets, self.pass).unwrap()
    }

    fn values(&self) -> Var {
        Var::from_vec(self.model.parameters.values().clone(), self.model.parameters.values().len(), &Device::Cpu)
            .unwrap()
    }
}

#[test]
fn loss_and_every_gradient_match_the_plain_twin() {
    for (name, change) in VARIANTS {
        for (batch, time) in [(1, 1), (2, 7), (3, 70)] {
            let case = Case::new(*change, batch, time);
            let (loss, gradient) = case.fast();
            let values = case.values();
            let total = case.plain(&values).total;
            let expected_loss = total.to_scalar::<f32>().unwrap();
            assert!((loss - expected_loss).abs() < 2e-5 * expected_loss.abs(), "{name}: {loss} != {expected_loss}");
            let expected: Vec<f32> = total.backward().unwrap().get(&values).unwrap().to_vec1().unwrap();
            let largest_of = |numbers: &[f32]| numbers.iter().fold(0.0f32, |largest, x| largest.max(x.abs()));
            // Where a gradient is zero but for rounding, what it is rounded from gives the scale.
            let least = 2e-2 * largest_of(&expected);
            for parameter in case.model.parameters.list() {
                let (ours, theirs) = (&gradient[parameter.range.clone()], &expected[parameter.range.clone()]);
                let largest = largest_of(theirs).max(least);
                for (index, (a, b)) in ours.iter().zip(theirs).enumerate() {
                    let error = (a - b).abs() / largest;
                    assert!(error < 1e-5, "{name} {batch}x{time}: {}[{index}]: {a} != {b}", parameter.name);
                }
            }
        }
    }
}

#[test]
fn bf16_gradients_are_those_of_f32_but_for_rounding() {
    // Where every expert is chosen, rounding cannot change the choice.
    for (name, change) in VARIANTS.iter().filter(|(name, _)| ["every expert", "dense", "untied"].contains(name)) {
        let mut case = Case::new(*change, 3, 70);
        let (loss, gradient) = case.fast();
        let choices = case.choices();
        case.pass.precision = Precision::Bf16;
        let (rounded_loss, rounded) = case.fast();
        assert!((loss - rounded_loss).abs() < 0.01 * loss && loss != rounded_loss, "{name}: {loss}, {rounded_loss}");
        if case.choices() != choices {
            continue;
        }
        let dot = |a: &[f32], b: &[f32]| a.iter().zip(b).map(|(a, b)| f64::from(*a) * f64::from(*b)).sum::<f64>();
        let cosine = dot(&gradient, &rounded) / (dot(&gradient, &gradient) * dot(&rounded, &rounded)).sqrt();
        assert!(cosine > 0.998, "{name}: {cosine}");
    }
}

#[test]
fn every_trainable_parameter_receives_a_gradient() {
    for (name, change) in VARIANTS {
        let case = Case::new(*change, 4, 40);
        let (_, gradient) = case.fast();
        // A lone expert's probability is 1 whatever its score: there the router has nothing to learn.
        let lone = case.model.model.num_experts == 1;
        for parameter in case.model.parameters.list() {
            let touched = gradient[parameter.range.clone()].iter().any(|&x| x != 0.0);
            let wanted = parameter.kind != Kind::State;
            assert!(touched == wanted || lone, "{name}: {} has gradient: {touched}", parameter.name);
        }
    }
}

#[test]
fn gradients_match_finite_differences() {
    for (name, change) in VARIANTS {
        let case = Case::new(*change, 2, 7);
        let (_, gradient) = case.fast();
        // A step along the gradient itself: first-order change = step * |gradient|^2.
        let square: f64 = gradient.iter().map(|&x| f64::from(x).powi(2)).sum();
        let at = |step: f64| {
            let before = case.model.parameters.values().clone();
            let moved = before.iter().zip(&gradient).map(|(&x, &g)| x + (step * f64::from(g)) as f32).collect();
            *case.model.parameters.values_mut() = moved;
            let outcome = (f64::from(case.fast().0), case.choices());
            *case.model.parameters.values_mut() = before;
            outcome
        };
        // The loss jumps where a token's choice of experts flips: the step shrinks until none does.
        let slope = (0..6).map(|halvings| 2e-3 / square.sqrt() * 0.5f64.powi(halvings)).find_map(|step| {
            let ((above, choices_above), (below, choices_below)) = (at(step), at(-step));
            (choices_above == choices_below).then(|| (above - below) / (2.0 * step))
        });
        let slope = slope.unwrap_or_else(|| panic!("{name}: choices flip within every step"));
        assert!((slope / square - 1.0).abs() < 0.02, "{name}: slope {slope}, |gradient|^2 {square}");
    }
}

#[test]
fn a_noisy_gate_draws_noise_in_training_only() {
    let mut case = Case::new(|c| c.router.noisy_gate = true, 2, 7);
    let noisy = case.choices();
    case.pass.mode = Mode::Train { seed: 3, step: 10, loss_scale: 0.5 };
    assert_ne!(case.choices(), noisy, "another step draws other noise");
    case.pass.mode = Mode::Evaluate;
    let quiet = case.choices();
    // Without the noise's weights the scores are the same: in evaluation they play no part.
    for parameter in case.model.parameters.list().iter().filter(|parameter| parameter.name.ends_with("noise_weight")) {
        case.model.parameters.values_mut()[parameter.range.clone()].fill(9.0);
    }
    assert_eq!(case.choices(), quiet);
}

#[test]
fn gradients_have_the_same_bits_with_any_number_of_threads() {
    let case = Case::new(|_| (), 3, 70);
    let gradients: Vec<_> = [1, 2, 4]
        .map(|threads| {
            tinymoe::ops::pool::set_threads(threads);
            case.fast().1
        })
        .into();
    assert!(
        gradients.windows(2).all(|pair| pair[0].iter().map(|x| x.to_bits()).eq(pair[1].iter().map(|x| x.to_bits())))
    );
}

#[test]
fn decoding_with_a_cache_gives_the_logits_of_the_full_forward_pass() {
    for (name, change) in VARIANTS {
        let mut case = Case::new(*change, 1, 70);
        case.pass.mode = Mode::Evaluate;
        let expected: Vec<Vec<f32>> = case.plain(&case.values()).logits.to_vec2().unwrap();
        let mut decoder = Decoder::new(&case.model);
        let mut logits = Vec::new();
        // A prompt at once, a few tokens at once, then one by one.
        for step in [&case.ids[..50], &case.ids[50..53]].into_iter().chain(case.ids[53..].chunks(1)) {
            logits.extend_from_slice(&decoder.advance(step, Logits::All).unwrap().logits_NV);
        }
        for (position, (ours, theirs)) in logits.chunks(VOCAB).zip(&expected).enumerate() {
            for (a, b) in ours.iter().zip(theirs) {
                assert!((a - b).abs() < 1e-4 * (1.0 + b.abs()), "{name}, position {position}: {a} != {b}");
            }
        }
        assert_eq!(decoder.room(), 0);
        assert!(decoder.advance(&[1], Logits::Last).is_err());
    }
}

#[test]
fn repeated_sequences_continue_independently() {
    let case = Case::new(|_| (), 1, 20);
    let continued = |ids: [u32; 2]| {
        let mut decoder = Decoder::new(&case.model);
        decoder.advance(&case.ids, Logits::Last).unwrap();
        let mut decoder = decoder.repeat(2);
        decoder.advance(&ids, Logits::Last).unwrap();
        decoder.advance(&[3, 3], Logits::Last).unwrap().logits_NV.clone()
    };
    let (both, first, second) = (continued([1, 2]), continued([1, 1]), continued([2, 2]));
    assert_eq!(both[..VOCAB], first[..VOCAB]);
    assert_eq!(both[VOCAB..], second[VOCAB..]);
}
