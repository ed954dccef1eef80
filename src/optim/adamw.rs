//! AdamW (Loshchilov and Hutter 2019, algorithm 2, with decoupled weight decay) over the flat parameter buffer, fused
//! with clipping by global norm (Pascanu et al. 2013). One pass reads and writes every number once.

use crate::config::OptimizerConfig;
use crate::model::parameters::{Kind, Parameters};
use crate::ops::buffer::prefer_large_pages;
use crate::ops::{pool, simd};

/// Numbers in one task.
const CHUNK: usize = 1 << 15;

/// The optimizer's state: two moments for every weight.
pub struct AdamW {
    config: OptimizerConfig,
    /// Steps taken: t in the bias correction.
    pub steps: u64,
    /// Exponential averages of the gradient and of its square, laid out like the parameters.
    pub exp_avg: Vec<f32>,
    pub exp_avg_sq: Vec<f32>,
}

/// What is the same for all numbers of a chunk in one step.
#[derive(Clone, Copy)]
struct Rule {
    clip: f32,
    beta1: f32,
    beta2: f32,
    /// Learning rate over the first moment's bias correction.
    step_size: f32,
    /// One over the square root of the second moment's bias correction.
    second_scale: f32,
    epsilon: f32,
    /// 1 - learning rate * weight decay.
    keep: f32,
}

impl AdamW {
    pub fn new(config: &OptimizerConfig, parameters: &Parameters) -> Self {
        let len = parameters.values().len();
        let (exp_avg, exp_avg_sq) = (vec![0.0; len], vec![0.0; len]);
        prefer_large_pages(&exp_avg);
        prefer_large_pages(&exp_avg_sq);
        Self { config: config.clone(), steps: 0, exp_avg, exp_avg_sq }
    }

    /// Moves every weight by its gradient and clears the gradients. `gradient_norm` is that of
    /// [`gradient_norm`]; where it exceeds the configured maximum, gradients are scaled down to it.
    pub fn step(&mut self, parameters: &Parameters, learning_rate: f64, gradient_norm: f64) {
        self.steps += 1;
        let mut values = parameters.values_mut();
        let mut gradients = parameters.gradients();
        let mut slices = [&mut values[..], &mut gradients[..], &mut self.exp_avg[..], &mut self.exp_avg_sq[..]];
        let mut tasks = Vec::new();
        for parameter in parameters.list() {
            let mut own = slices.each_mut().map(|slice| {
                slice.split_off_mut(..parameter.range.len()).expect("buffers are as long as the parameters")
            });
            if parameter.kind == Kind::State {
                continue;
            }
            let rule = rule(&self.config, self.steps, parameter.kind, learning_rate, gradient_norm);
            while !own[0].is_empty() {
                let count = own[0].len().min(CHUNK);
                let chunk = own.each_mut().map(|slice| slice.split_off_mut(..count).expect("count is within"));
                tasks.push((rule, chunk));
            }
        }
        pool::run(tasks, |(rule, [values, gradients, first, second])| {
            simd::vectorized!(|| update(rule, values, gradients, first, second));
        });
    }
}

fn rule(config: &OptimizerConfig, steps: u64, kind: Kind, learning_rate: f64, gradient_norm: f64) -> Rule {
    let multiplier = if kind == Kind::Router { config.router_lr_multiplier } else { 1.0 };
    let decay = if kind == Kind::Gain { 0.0 } else { config.weight_decay };
    let learning_rate = learning_rate * multiplier;
    let clips = config.max_grad_norm > 0.0 && gradient_norm > config.max_grad_norm;
    let steps = steps as f64;
    Rule {
        clip: if clips { (config.max_grad_norm / gradient_norm) as f32 } else { 1.0 },
        beta1: config.beta1 as f32,
        beta2: config.beta2 as f32,
        step_size: (learning_rate / (1.0 - config.beta1.powf(steps))) as f32,
        second_scale: (1.0 / (1.0 - config.beta2.powf(steps)).sqrt()) as f32,
        epsilon: config.epsilon as f32,
        keep: (1.0 - learning_rate * decay) as f32,
    }
}

#[inline(always)]
fn update(rule: Rule, values: &mut [f32], gradients: &mut [f32], first: &mut [f32], second: &mut [f32]) {
    let count = values.len();
    let (gradients, first, second) = (&mut gradients[..count], &mut first[..count], &mut second[..count]);
    for i in 0..count {
        let gradient = gradients[i] * rule.clip;
        gradients[i] = 0.0;
        first[i] = rule.beta1 * first[i] + (1.0 - rule.beta1) * gradient;
        second[i] = rule.beta2 * second[i] + (1.0 - rule.beta2) * gradient * gradient;
        let denominator = second[i].sqrt() * rule.second_scale + rule.epsilon;
        values[i] = values[i] * rule.keep - rule.step_size * first[i] / denominator;
    }
}

/// The global norm of all gradients, summed in a fixed order.
pub fn gradient_norm(parameters: &Parameters) -> f64 {
    let gradients = parameters.gradients();
    let mut squares = vec![0.0f64; gradients.len().div_ceil(CHUNK)];
    let tasks = squares.iter_mut().zip(gradients.chunks(CHUNK)).collect();
    pool::run(tasks, |(square, chunk): (&mut f64, &[f32])| {
        // Short runs in f32, added up in f64: no overflow of precision in long sums.
        *square = simd::vectorized!(|| chunk.chunks(1024).map(|run| f64::from(simd::dot(run, run))).sum());
    });
    squares.iter().sum::<f64>().sqrt()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::parameters::{Init, Layout};

    fn parameters() -> Parameters {
        let mut layout = Layout::default();
        layout.add("matrix".into(), &[3], Kind::Matrix, Init::Constant(1.0));
        layout.add("router".into(), &[1], Kind::Router, Init::Constant(1.0));
        layout.add("gain".into(), &[1], Kind::Gain, Init::Constant(1.0));
        layout.add("state".into(), &[1], Kind::State, Init::Constant(1.0));
        let parameters = layout.zeros();
        parameters.initialize(1);
        parameters
    }

    fn config() -> OptimizerConfig {
        let defaults = crate::config::Config::default().optimizer;
        OptimizerConfig { max_grad_norm: 1.0, weight_decay: 0.1, router_lr_multiplier: 3.0, ..defaults }
    }

    /// Algorithm 2 of the paper, one number at a time, in f64.
    fn reference(gradients: &[f64], lr: f64, decay: f64, config: &OptimizerConfig) -> f64 {
        let (mut value, mut m, mut v) = (1.0, 0.0, 0.0);
        for (t, gradient) in gradients.iter().enumerate() {
            m = config.beta1 * m + (1.0 - config.beta1) * gradient;
            v = config.beta2 * v + (1.0 - config.beta2) * gradient * gradient;
            let m_hat = m / (1.0 - config.beta1.powi(t as i32 + 1));
            let v_hat = v / (1.0 - config.beta2.powi(t as i32 + 1));
            value -= lr * (m_hat / (v_hat.sqrt() + config.epsilon) + decay * value);
        }
        value
    }

    #[test]
    fn steps_follow_the_algorithm_with_groups_of_their_own() {
        let (parameters, config) = (parameters(), config());
        let mut optimizer = AdamW::new(&config, &parameters);
        for gradient in [0.1f32, -0.2, 0.05] {
            parameters.gradients().fill(gradient);
            optimizer.step(&parameters, 0.01, 0.5);
        }
        let gradients = [0.1, -0.2, 0.05];
        let expected = [
            reference(&gradients, 0.01, 0.1, &config),
            reference(&gradients, 0.03, 0.1, &config),
            reference(&gradients, 0.01, 0.0, &config),
            1.0,
        ];
        let values = parameters.values();
        for (value, expected) in [values[0], values[3], values[4], values[5]].into_iter().zip(expected) {
            assert!((f64::from(value) - expected).abs() < 1e-6, "{value} != {expected}");
        }
        assert!(parameters.gradients()[..5].iter().all(|&gradient| gradient == 0.0));
    }

    #[test]
    fn a_gradient_beyond_the_maximum_norm_is_scaled_down_to_it() {
        let (parameters, config) = (parameters(), config());
        parameters.gradients()[..2].copy_from_slice(&[30.0, 40.0]);
        let norm = gradient_norm(&parameters);
        assert!((norm - 50.0).abs() < 1e-9);
        let mut optimizer = AdamW::new(&config, &parameters);
        optimizer.step(&parameters, 0.01, norm);
        assert!((optimizer.exp_avg[0] - 0.1 * 0.6).abs() < 1e-6 && (optimizer.exp_avg[1] - 0.1 * 0.8).abs() < 1e-6);
    }
}
