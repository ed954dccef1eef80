//! Muon (Jordan et al. 2024): a matrix moves by its momentum with all singular values made nearly 1, so that no
//! direction of the update outweighs the others. Each matrix is orthogonalised by itself; an expert's three are three.
//!
//! The update is scaled by 0.2 sqrt(max(rows, columns)), which gives it the root mean square of a typical AdamW update
//! (Liu et al. 2025, "Muon is scalable for LLM training", eq. 4): one learning rate serves both.

use super::{decay, sum_of_squares};
use crate::config::OptimizerConfig;
use crate::model::parameters::Kind;
use crate::ops::buffer::Buffer;
use crate::ops::gemm::{Precision, Triangle};
use crate::ops::matmul::{Mat, MatMut, Store, matmul, triangular_matmul};
use crate::ops::simd;

/// Coefficients a, b, c of the iterations X <- a X + b (X X^T) X + c (X X^T)^2 X: the first of those of Amsel et al.
/// 2025 ("The Polar Express", algorithm 2), each the best odd polynomial of degree five for what the ones before it left.
/// A fifth iteration brings singular values nearer to 1 but no lower loss (docs/learning.md).
const POLAR_EXPRESS: [[f32; 3]; 4] = [
    [8.287_212, -23.595_886, 17.300_388],
    [4.107_059, -2.947_85, 0.544_843_1],
    [3.948_691, -2.908_902, 0.551_819_2],
    [3.318_42, -2.488_488, 0.510_048_9],
];

/// Every iteration treats singular values as if they were smaller by this factor, so that rounding does not carry one
/// beyond the range that its polynomial is for.
const SAFETY: f32 = 1.01;

/// What one matrix is moved by in one step.
pub(super) struct Rule {
    rows: usize,
    cols: usize,
    clip: f32,
    momentum: f32,
    /// Learning rate times the scale of the update.
    step_size: f32,
    /// 1 - learning rate * weight decay.
    keep: f32,
    precision: Precision,
}

impl Rule {
    /// For a matrix of `shape`; gradients are multiplied by `clip`.
    pub(super) fn new(
        config: &OptimizerConfig,
        shape: &[usize],
        learning_rate: f64,
        clip: f32,
        precision: Precision,
    ) -> Self {
        let (rows, cols) = (shape[0], shape[1]);
        let scale = 0.2 * (rows.max(cols) as f64).sqrt();
        Self {
            rows,
            cols,
            clip,
            momentum: config.muon_momentum as f32,
            step_size: (learning_rate * scale) as f32,
            keep: (1.0 - learning_rate * decay(config, Kind::Matrix)) as f32,
            precision,
        }
    }
}

/// Moves a matrix and its momentum; clears the gradient. Returns whether all numbers are finite afterwards: a momentum
/// that is not leaves no weight that is.
#[must_use]
pub(super) fn update(rule: &Rule, values: &mut [f32], gradients: &mut [f32], momentum: &mut [f32]) -> bool {
    let mut update = Buffer::any(values.len());
    simd::vectorized!(|| look_ahead(rule, gradients, momentum, &mut update));
    orthogonalize(&mut update, rule.rows, rule.cols, rule.precision);
    let largest = simd::vectorized!(|| {
        let mut largest = 0;
        for (value, update) in values.iter_mut().zip(update.iter()) {
            *value = *value * rule.keep - rule.step_size * update;
            largest = largest.max(simd::magnitude_bits(*value));
        }
        largest
    });
    f32::from_bits(largest).is_finite()
}

/// Momentum as an average of gradients, and the step that it promises (Nesterov).
#[inline(always)]
fn look_ahead(rule: &Rule, gradients: &mut [f32], momentum: &mut [f32], update: &mut [f32]) {
    let (old, new) = (rule.momentum, 1.0 - rule.momentum);
    for ((gradient, momentum), update) in gradients.iter_mut().zip(momentum).zip(update) {
        let clipped = *gradient * rule.clip;
        *gradient = 0.0;
        *momentum = old * *momentum + new * clipped;
        *update = old * *momentum + new * clipped;
    }
}

/// Replaces a matrix (rows, cols) by one with the same singular vectors and all singular values near 1: U V^T of its
/// singular value decomposition U S V^T. A matrix that [`normalize`] leaves alone stays as it is.
fn orthogonalize(matrix: &mut [f32], rows: usize, cols: usize, precision: Precision) {
    if !normalize(matrix) {
        return;
    }
    // X X^T of the shorter side, or X^T X: the same polynomial.
    let (side, is_wide) = (rows.min(cols), rows <= cols);
    let (mut gram, mut factor) = (Buffer::any(side * side), Buffer::any(side * side));
    let mut next = Buffer::any(matrix.len());
    for [a, b, c] in POLAR_EXPRESS {
        let [a, b, c] = [a / SAFETY, b / SAFETY.powi(3), c / SAFETY.powi(5)];
        let x = Mat::new(matrix, rows, cols);
        let (left, right) = if is_wide { (x, x.t()) } else { (x.t(), x) };
        symmetric_product(&mut gram, side, 1.0, (left, right), precision);
        // a I + b G + c G^2
        let g = Mat::new(&gram, side, side);
        symmetric_product(&mut factor, side, c, (g, g), precision);
        simd::vectorized!(|| simd::add_scaled(&mut factor, b, &gram));
        factor.iter_mut().step_by(side + 1).for_each(|x| *x += a);
        let factor = Mat::new(&factor, side, side);
        let (left, right) = if is_wide { (factor, x) } else { (x, factor) };
        matmul(MatMut::new(&mut next, rows, cols), left, right, Store::Overwrite, precision);
        matrix.copy_from_slice(&next);
    }
}

/// Largest magnitudes whose squares add up in f32 without underflow or overflow that matters: from about 9e-16 to 1e15.
const SQUARED_SAFELY: std::ops::RangeInclusive<f32> = 1.0 / (1u64 << 50) as f32..=(1u64 << 50) as f32;

/// Divides a matrix by its Frobenius norm, whatever its size: the momentum of an expert that gets no tokens halves every
/// 14 steps and passes through all magnitudes down to zero. Returns false for a matrix that is left alone: one of zeros,
/// one whose largest number is below f32's normal range, where too few digits are left for a direction, and one with a
/// number that is not finite.
fn normalize(matrix: &mut [f32]) -> bool {
    let largest = f32::from_bits(simd::vectorized!(|| simd::max_magnitude_bits(matrix)));
    if !(f32::MIN_POSITIVE..=f32::MAX).contains(&largest) {
        return false;
    }
    if !SQUARED_SAFELY.contains(&largest) {
        // By a power of two, which is exact: the largest magnitude comes to between 1 and 2.
        let scale = (-f64::from(largest).log2().floor()).exp2() as f32;
        matrix.iter_mut().for_each(|x| *x *= scale);
    }
    let scale = (1.0 / sum_of_squares(matrix).sqrt()) as f32;
    matrix.iter_mut().for_each(|x| *x *= scale);
    true
}

/// `dst = scale a b` (side, side) where that is known to be symmetric: half of it is computed.
fn symmetric_product(dst: &mut [f32], side: usize, scale: f32, operands: (Mat, Mat), precision: Precision) {
    let lower = Triangle::Result { ahead: 0 };
    triangular_matmul(MatMut::new(dst, side, side), scale, operands, Store::Overwrite, lower, precision);
    for row in 1..side {
        for col in 0..row {
            dst[col * side + row] = dst[row * side + col];
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::random::Stream;

    fn matrix(rows: usize, cols: usize) -> Vec<f32> {
        let stream = Stream::new(1, "muon test", &[rows as u64, cols as u64]);
        (0..(rows * cols) as u64).map(|index| stream.normal(index) as f32).collect()
    }

    /// By Jacobi rotations of pairs of rows (columns, of a tall matrix) until all are orthogonal.
    fn singular_values(matrix: &[f32], rows: usize, cols: usize) -> Vec<f64> {
        let (side, long) = (rows.min(cols), rows.max(cols));
        let at = |i: usize, j: usize| f64::from(if rows <= cols { matrix[i * cols + j] } else { matrix[j * cols + i] });
        let mut vectors: Vec<Vec<f64>> = (0..side).map(|i| (0..long).map(|j| at(i, j)).collect()).collect();
        let dot = |a: &[f64], b: &[f64]| a.iter().zip(b).map(|(a, b)| a * b).sum::<f64>();
        for _ in 0..12 {
            for p in 0..side {
                for q in p + 1..side {
                    let (a, b) = (vectors[p].clone(), vectors[q].clone());
                    let angle = 0.5 * (-2.0 * dot(&a, &b)).atan2(dot(&b, &b) - dot(&a, &a));
                    let (sin, cos) = angle.sin_cos();
                    vectors[p] = a.iter().zip(&b).map(|(a, b)| cos * a + sin * b).collect();
                    vectors[q] = a.iter().zip(&b).map(|(a, b)| cos * b - sin * a).collect();
                }
            }
        }
        vectors.iter().map(|vector| dot(vector, vector).sqrt()).collect()
    }

    #[test]
    fn an_orthogonalised_matrix_has_singular_values_near_one_and_the_old_directions() {
        for (rows, cols) in [(16, 16), (96, 128), (128, 96), (7, 33), (33, 7), (1, 9), (9, 1)] {
            let original = matrix(rows, cols);
            let nuclear: f64 = singular_values(&original, rows, cols).iter().sum();
            for precision in [Precision::F32, Precision::Bf16] {
                let mut result = original.clone();
                orthogonalize(&mut result, rows, cols, precision);
                let values = singular_values(&result, rows, cols);
                // A square matrix has singular values near 0, which four iterations do not bring up all the way.
                let near_one = values.iter().filter(|value| (0.4..1.6).contains(*value)).count();
                assert!(near_one + usize::from(rows == cols) >= rows.min(cols), "{rows} x {cols}: {values:?}");
                assert!(values.iter().all(|&value| value < 1.6), "{rows} x {cols}, {precision:?}: {values:?}");
                // The trace of O^T M is the sum of M's singular values when O = U V^T.
                let trace: f64 = result.iter().zip(&original).map(|(o, m)| f64::from(o * m)).sum();
                assert!((0.5..1.6).contains(&(trace / nuclear)), "{rows} x {cols}: {trace} of {nuclear}");
            }
        }
    }

    #[test]
    fn a_matrix_of_any_size_is_orthogonalised_like_its_multiple_or_left_alone() {
        let original = matrix(24, 40);
        for precision in [Precision::F32, Precision::Bf16] {
            let mut expected = original.clone();
            orthogonalize(&mut expected, 24, 40, precision);
            for exponent in -45..=37 {
                let size = 10f64.powi(exponent);
                let scaled: Vec<f32> = original.iter().map(|&x| (f64::from(x) * size) as f32).collect();
                let mut result = scaled.clone();
                orthogonalize(&mut result, 24, 40, precision);
                // The largest of 960 normal draws is between 2 and 5.
                if exponent < -38 {
                    assert_eq!(result, scaled, "1e{exponent} is left alone");
                } else {
                    let furthest = result.iter().zip(&expected).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
                    // Below 1e-36 some of the numbers have lost digits already.
                    let tolerance = if exponent < -36 || precision == Precision::Bf16 { 0.02 } else { 1e-4 };
                    assert!(furthest < tolerance, "1e{exponent}, {precision:?}: {furthest}");
                }
            }
        }
    }

    #[test]
    fn sizes_that_need_no_scaling_keep_their_bits() {
        let (mut found, mut expected) = (matrix(24, 40), matrix(24, 40));
        assert!(normalize(&mut found));
        let scale = (1.0 / sum_of_squares(&expected).sqrt()) as f32;
        expected.iter_mut().for_each(|x| *x *= scale);
        assert_eq!(found, expected);
    }

    #[test]
    fn zeros_and_a_single_number_of_any_size_stay_finite() {
        for number in [0.0, 1e-45, 1e-40, f32::MIN_POSITIVE, 3e-39, 1e-30, -1e-20, 1.0, -1e20, f32::MAX] {
            let mut single = vec![0.0; 12];
            single[5] = number;
            orthogonalize(&mut single, 3, 4, Precision::F32);
            let normal = number.abs() >= f32::MIN_POSITIVE;
            // Its one singular value comes near 1.
            let fits = |x: f32| if normal { (0.4..1.6).contains(&(x * number.signum())) } else { x == number };
            assert!(fits(single[5]), "{number} becomes {}", single[5]);
            assert!(single.iter().enumerate().all(|(index, &x)| index == 5 || x == 0.0), "{number}: {single:?}");
        }
    }

    #[test]
    fn an_update_tells_of_numbers_that_are_not_finite() {
        let config = crate::config::Config::default().optimizer;
        let rule = Rule::new(&config, &[3, 4], 0.01, 1.0, Precision::F32);
        for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
            for place in 0..3 {
                let mut buffers = [vec![1.0; 12], vec![0.5; 12], vec![0.1; 12]];
                let [values, gradients, momentum] = buffers.each_mut();
                assert!(update(&rule, values, gradients, momentum));
                buffers[place][7] = bad;
                let [values, gradients, momentum] = buffers.each_mut();
                assert!(!update(&rule, values, gradients, momentum), "{bad} in buffer {place}");
            }
        }
    }

    /// A gradient for some steps, then none: what an expert that gets no tokens any more goes through.
    #[test]
    fn an_idle_matrix_stays_finite_until_its_momentum_is_gone() {
        let config = crate::config::Config::default().optimizer;
        let config = OptimizerConfig { weight_decay: 0.1, muon_momentum: 0.95, ..config };
        let rule = Rule::new(&config, &[8, 12], 0.01, 1.0, Precision::F32);
        let (mut values, mut gradients, mut momentum) = (matrix(8, 12), matrix(8, 12), vec![0.0; 96]);
        for step in 0..2500 {
            assert!(update(&rule, &mut values, &mut gradients, &mut momentum), "step {step}");
            let largest = values.iter().fold(0f32, |largest, value| largest.max(value.abs()));
            assert!(largest < 5.0, "step {step}: {largest}");
        }
    }

    #[test]
    fn a_first_step_has_the_size_of_an_adamw_step_and_decays_the_weights() {
        let config = crate::config::Config::default().optimizer;
        let config = OptimizerConfig { weight_decay: 0.5, muon_momentum: 0.95, ..config };
        let rule = Rule::new(&config, &[24, 40], 0.01, 1.0, Precision::F32);
        let (mut values, mut gradients, mut momentum) = (vec![1.0; 960], matrix(24, 40), vec![0.0; 960]);
        assert!(update(&rule, &mut values, &mut gradients, &mut momentum));
        let moved = values.iter().map(|&value| f64::from(value - 0.995).powi(2)).sum::<f64>() / 960.0;
        // 0.2 times the learning rate.
        assert!((moved.sqrt() - 0.002).abs() < 2e-4, "{}", moved.sqrt());
        assert!(gradients.iter().all(|&gradient| gradient == 0.0));
    }
}
