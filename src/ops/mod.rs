//! Kernels: fast CPU forward and backward passes on plain slices, and what they run on.
//!
//! Every kernel cuts its work by the problem's shape alone and adds partial sums in a fixed order, so that the result
//! has the same bits with any number of threads. The sub-layers in [`crate::model`] compose kernels into candle
//! operations; each sub-layer has a twin in plain candle there, against which kernels are tested.
//!
//! - [`pool`]: the one thread pool. - [`simd`]: vector code for the instructions this CPU has.
//! - [`buffer`]: recycled memory. - [`matmul`]: matrix views and products. - [`gemm`]: one product on one thread.
//! - [`norm`], [`rope`], [`attention`], [`swiglu`], [`cross_entropy`], [`dropout`]: the mathematics.

pub mod attention;
pub mod buffer;
pub mod cross_entropy;
pub mod dropout;
pub mod gemm;
pub mod matmul;
pub mod norm;
pub mod pool;
pub mod rope;
pub mod simd;
pub mod swiglu;

/// How many of `rows` one task takes: few enough for a number of equal tasks that two, four or eight threads share evenly,
/// enough that packing a weight for a matrix product is paid for. Never 0, also of no rows.
pub fn rows_per_task(rows: usize) -> usize {
    let tasks = 1 << (rows / 96).clamp(2, 16).ilog2();
    rows.max(1).div_ceil(tasks).next_multiple_of(8).min(256)
}
