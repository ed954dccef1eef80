//! RMSNorm (Zhang and Sennrich 2019): y = w * x / sqrt(mean(x^2) + eps), row by row.

use super::buffer::Buffer;
use super::{pool, rows_per_task, simd};

/// Normalises rows: `y = w * x * scale` with `scales_R` = 1 / sqrt(mean(x^2) + eps), which the backward pass needs.
/// All three slices hold rows of `w.len()` numbers.
pub fn forward(x: &[f32], w: &[f32], eps: f32, y: &mut [f32], scales_R: &mut [f32]) {
    let width = w.len();
    simd::vectorized!(|| {
        for ((x, y), scale) in x.chunks_exact(width).zip(y.chunks_exact_mut(width)).zip(scales_R) {
            *scale = forward_row(x, w, eps, y);
        }
    });
}

/// 1 / sqrt(mean(x^2) + eps)
#[inline(always)]
pub fn scale(x: &[f32], eps: f32) -> f32 {
    1.0 / (simd::dot(x, x) / x.len() as f32 + eps).sqrt()
}

/// [`forward`] with the rows cut into tasks.
pub fn parallel_forward(x: &[f32], w: &[f32], eps: f32, y: &mut [f32], scales_R: &mut [f32]) {
    let (width, chunk) = (w.len(), rows_per_task(scales_R.len()));
    let outputs = y.chunks_mut(chunk * width).zip(scales_R.chunks_mut(chunk));
    pool::run(x.chunks(chunk * width).zip(outputs).collect(), |(x, (y, scales_R))| forward(x, w, eps, y, scales_R));
}

/// One row of [`forward`]; returns its scale.
#[inline(always)]
pub fn forward_row(x: &[f32], w: &[f32], eps: f32, y: &mut [f32]) -> f32 {
    let scale = scale(x, eps);
    for ((y, &x), &w) in y.iter_mut().zip(x).zip(w) {
        *y = x * scale * w;
    }
    scale
}

/// The backward pass: adds to `dx` the gradient of the rows, and to `dw` that of the weight.
pub fn backward(x: &[f32], w: &[f32], scales_R: &[f32], dy: &[f32], dx: &mut [f32], dw: &mut [f32]) {
    let width = w.len();
    simd::vectorized!(|| {
        let rows = x.chunks_exact(width).zip(dy.chunks_exact(width)).zip(dx.chunks_exact_mut(width));
        for (((x, dy), dx), &scale) in rows.zip(scales_R) {
            let projection = weighted_dot(x, dy, w) * scale * scale / width as f32;
            for i in 0..width {
                dx[i] += scale * (dy[i] * w[i] - x[i] * projection);
                dw[i] += dy[i] * x[i] * scale;
            }
        }
    });
}

/// Rows whose weight gradients are added up first, one task: not cut like other kernels' rows, as sums depend on it.
pub const PARTIAL_ROWS: usize = 96;

/// [`backward`] with the rows cut into tasks.
pub fn parallel_backward(x: &[f32], w: &[f32], scales_R: &[f32], dy: &[f32], dx: &mut [f32], dw: &mut [f32]) {
    let (width, chunk) = (w.len(), PARTIAL_ROWS);
    let mut partial = Buffer::zeros(scales_R.len().div_ceil(chunk) * width);
    let inputs = x.chunks(chunk * width).zip(dy.chunks(chunk * width)).zip(scales_R.chunks(chunk));
    let outputs = dx.chunks_mut(chunk * width).zip(partial.chunks_exact_mut(width));
    pool::run(inputs.zip(outputs).collect(), |(((x, dy), scales_R), (dx, dw))| {
        backward(x, w, scales_R, dy, dx, dw);
    });
    for partial in partial.chunks_exact(width) {
        simd::add(dw, partial);
    }
}

/// The backward pass of one row whose scale was not kept: replaces `dy` by the gradient of the row.
#[inline(always)]
pub fn backward_in_place(x: &[f32], w: &[f32], eps: f32, dy: &mut [f32], dw: &mut [f32]) {
    let width = w.len();
    let scale = scale(x, eps);
    let projection = weighted_dot(x, dy, w) * scale * scale / width as f32;
    for i in 0..width {
        dw[i] += dy[i] * x[i] * scale;
        dy[i] = scale * (dy[i] * w[i] - x[i] * projection);
    }
}

/// sum_i x_i dy_i w_i
#[inline(always)]
fn weighted_dot(x: &[f32], dy: &[f32], w: &[f32]) -> f32 {
    let (x, dy) = (&x[..w.len()], &dy[..w.len()]);
    simd::sum_of(w.len(), |i| x[i] * dy[i] * w[i])
}
