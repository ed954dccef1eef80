//! AdamW (Loshchilov and Hutter 2019, algorithm 2, with decoupled weight decay), fused with clipping: one pass reads and
//! writes every number once.

use super::decay;
use crate::config::OptimizerConfig;
use crate::model::parameters::Kind;
use crate::ops::simd::magnitude_bits;

/// What is the same for all numbers of a parameter in one step.
#[derive(Clone, Copy)]
pub(super) struct Rule {
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

impl Rule {
    /// `steps` counts this one; gradients are multiplied by `clip`.
    pub(super) fn new(config: &OptimizerConfig, steps: u64, kind: Kind, learning_rate: f64, clip: f32) -> Self {
        let steps = steps as f64;
        Self {
            clip,
            beta1: config.beta1 as f32,
            beta2: config.beta2 as f32,
            step_size: (learning_rate / (1.0 - config.beta1.powf(steps))) as f32,
            second_scale: (1.0 / (1.0 - config.beta2.powf(steps)).sqrt()) as f32,
            epsilon: config.epsilon as f32,
            keep: (1.0 - learning_rate * decay(config, kind)) as f32,
        }
    }
}

/// Moves `values`, and the moments with them; clears the gradients. Returns whether all numbers are finite afterwards: a
/// first moment that is not leaves no weight that is; an infinite second one would pass unseen, as it stops its weight.
#[inline(always)]
#[must_use]
pub(super) fn update(
    rule: Rule,
    values: &mut [f32],
    gradients: &mut [f32],
    first: &mut [f32],
    second: &mut [f32],
) -> bool {
    let mut largest = 0;
    let count = values.len();
    let (gradients, first, second) = (&mut gradients[..count], &mut first[..count], &mut second[..count]);
    for i in 0..count {
        let gradient = gradients[i] * rule.clip;
        gradients[i] = 0.0;
        first[i] = rule.beta1 * first[i] + (1.0 - rule.beta1) * gradient;
        second[i] = rule.beta2 * second[i] + (1.0 - rule.beta2) * gradient * gradient;
        let denominator = second[i].sqrt() * rule.second_scale + rule.epsilon;
        values[i] = values[i] * rule.keep - rule.step_size * first[i] / denominator;
        largest = largest.max(magnitude_bits(values[i])).max(magnitude_bits(second[i]));
    }
    f32::from_bits(largest).is_finite()
}
