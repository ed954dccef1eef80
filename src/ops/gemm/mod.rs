//! Matrix products on one thread, in vector registers: `c = scale a b` or `c += scale a b`.
//!
//! A block of the summed dimension at a time, the right operand is copied into panels of two vectors' width; a tile of
//! sums stays in registers while it runs along a panel and some rows of the left operand, which is read where it stands
//! (Goto and van de Geijn 2008). Every sum adds its products one by one in the order of the summed dimension, so the
//! result does not depend on how a product is cut into tasks, and is the same with AVX2 and AVX-512.
//!
//! In bf16 both operands are rounded while they are copied, and products are summed in f32. CPUs without
//! instructions for that get rounded copies and f32 products. Other CPUs than x86 get the `gemm` crate's products.

#[cfg(target_arch = "x86_64")]
mod lanes;
#[cfg(target_arch = "x86_64")]
mod pack;
#[cfg(target_arch = "x86_64")]
mod tiles;
#[cfg(target_arch = "x86_64")]
mod vector;

use super::buffer::Buffer;
use super::simd;
#[cfg(target_arch = "x86_64")]
use super::simd::Path;
use serde::{Deserialize, Serialize};

/// The numbers that matrix products multiply; they are summed in f32 always.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Precision {
    #[default]
    F32,
    /// 8 bits of mantissa instead of 24, rounded to nearest even.
    Bf16,
}

/// One product: `c[i][j] = scale * sum_l a[i][l] b[l][j]`, plus the old `c` where `add` is set.
#[derive(Clone, Copy)]
pub struct Problem {
    pub rows: usize,
    pub cols: usize,
    /// Length of the summed dimension.
    pub depth: usize,
    pub a: Operand,
    pub b: Operand,
    pub c: *mut f32,
    pub c_row_stride: usize,
    pub scale: f32,
    pub add: bool,
    pub triangle: Triangle,
}

/// Which part of a product is worth computing. In causal attention query row i sees the keys up to `ahead + i`; of a
/// symmetric result the lower half says all.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Triangle {
    /// All of it.
    #[default]
    None,
    /// Scores: `c[i][j]` is wanted where `j <= ahead + i`; elsewhere it may be anything.
    Result { ahead: usize },
    /// Scores times keys or values: `a[i][l]` is zero where `l > ahead + i`.
    Left { ahead: usize },
    /// Transposed scores times queries or gradients: `a[i][l]` is zero where `i > ahead + l`.
    LeftTransposed { ahead: usize },
}

/// Element (i, j) is at `data + i * row_stride + j * col_stride`; one of the strides is 1.
#[derive(Clone, Copy)]
pub struct Operand {
    pub data: *const f32,
    pub row_stride: usize,
    pub col_stride: usize,
}

/// Whether this CPU multiplies bf16 numbers itself.
pub fn has_bf16() -> bool {
    #[cfg(target_arch = "x86_64")]
    return simd::path() == Path::Avx512 && std::arch::is_x86_feature_detected!("avx512bf16");
    #[cfg(not(target_arch = "x86_64"))]
    return false;
}

/// Computes `problem` on this thread.
///
/// # Safety
/// All elements of the operands must be readable and those of `c` writable, each operand's within one allocation, and
/// `c` must not overlap the operands. One of each operand's strides must be 1, and rows of `c` must not overlap.
pub unsafe fn product(problem: &Problem, precision: Precision) {
    let Problem { rows, cols, depth, a, b, c, c_row_stride, add, .. } = *problem;
    debug_assert!([a, b].iter().all(|operand| operand.row_stride == 1 || operand.col_stride == 1));
    debug_assert!(c_row_stride >= cols || rows <= 1);
    if depth == 0 {
        // Then the operands may be slices without an address that could be counted from.
        for row in (0..rows).filter(|_| !add) {
            // SAFETY: these are the elements of a row of `c`, which the caller lets us write.
            unsafe { std::slice::from_raw_parts_mut(c.add(row * c_row_stride), cols).fill(0.0) };
        }
        return;
    }
    if precision == Precision::Bf16 && !has_bf16() {
        // SAFETY: what the caller promises of `problem` is what this function asks for.
        return unsafe { rounded_product(problem) };
    }
    // SAFETY: what the caller promises is what all of these ask for; `path` and `has_bf16` have found the
    // instructions of the path that is taken on this CPU.
    unsafe {
        #[cfg(target_arch = "x86_64")]
        match simd::path() {
            Path::Avx512 if precision == Precision::Bf16 => return tiles::avx512_bf16(problem),
            Path::Avx512 => return tiles::avx512(problem),
            Path::Avx2 => return tiles::avx2(problem),
            _ => (),
        }
        library_product(problem);
    }
}

/// `y_O = matrix_OI x_I` in f32 on this thread.
///
/// # Panics
/// If `matrix_OI` is not as large as the two vectors say.
pub fn matrix_vector(matrix_OI: &[f32], x_I: &[f32], y_O: &mut [f32]) {
    assert_eq!(matrix_OI.len(), x_I.len() * y_O.len(), "a matrix of the vectors' lengths");
    #[cfg(target_arch = "x86_64")]
    match simd::path() {
        // SAFETY: a path is chosen only where the CPU has its instructions; likewise the next.
        Path::Avx512 => return unsafe { vector::avx512(matrix_OI, x_I, y_O) },
        // SAFETY: as above.
        Path::Avx2 => return unsafe { vector::avx2(matrix_OI, x_I, y_O) },
        _ => (),
    }
    simd::vectorized!(|| {
        for (y, row_I) in y_O.iter_mut().zip(matrix_OI.chunks_exact(x_I.len().max(1))) {
            *y = simd::dot(row_I, x_I);
        }
    });
}

/// The product of copies that are rounded to bf16.
///
/// # Safety
/// That of [`product`]; likewise below.
unsafe fn rounded_product(problem: &Problem) {
    let copy = |operand: Operand, rows: usize, cols: usize| {
        let mut copy = Buffer::any(rows * cols);
        for (row, numbers) in copy.chunks_exact_mut(cols.max(1)).enumerate() {
            for (col, number) in numbers.iter_mut().enumerate() {
                // SAFETY: (row, col) is an element of the operand, and the caller lets us read them all.
                *number =
                    round_to_bf16(unsafe { *operand.data.add(row * operand.row_stride + col * operand.col_stride) });
            }
        }
        copy
    };
    let a = copy(problem.a, problem.rows, problem.depth);
    let b = copy(problem.b, problem.depth, problem.cols);
    let dense = |copy: &Buffer, cols| Operand { data: copy.as_ptr(), row_stride: cols, col_stride: 1 };
    let rounded = Problem { a: dense(&a, problem.depth), b: dense(&b, problem.cols), ..*problem };
    // SAFETY: the copies are dense, live until the end of this function and hold as many elements as the operands;
    // they are ours, so `c`, of which the caller's promise still holds, does not overlap them.
    unsafe { product(&rounded, Precision::F32) }
}

/// The nearest number with 8 bits of mantissa, ties to even; NaN stays NaN.
pub fn round_to_bf16(x: f32) -> f32 {
    if x.is_nan() {
        return x;
    }
    let bits = x.to_bits();
    f32::from_bits(bits.wrapping_add(0x7fff + (bits >> 16 & 1)) & 0xffff_0000)
}

unsafe fn library_product(problem: &Problem) {
    let Problem { rows, cols, depth, a, b, c, c_row_stride, scale, add, .. } = *problem;
    // SAFETY: the library asks for what the caller promises: readable operands, a writable `c` apart from them.
    unsafe {
        gemm::gemm(
            rows,
            cols,
            depth,
            c,
            1,
            c_row_stride as isize,
            add,
            a.data,
            a.col_stride as isize,
            a.row_stride as isize,
            b.data,
            b.col_stride as isize,
            b.row_stride as isize,
            1.0,
            scale,
            false,
            false,
            false,
            gemm::Parallelism::None,
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::random::Stream;

    /// Sizes that are no multiple of a tile, a panel or a block, and a depth of several blocks. Miri is slow.
    const SIZES: &[[usize; 3]] = if cfg!(miri) {
        &[[1, 1, 1], [13, 33, 5], [7, 17, 9], [12, 32, 1], [1, 3, 1030], [2, 70, 0]]
    } else {
        &[[1, 1, 1], [13, 33, 19], [7, 65, 256], [12, 32, 1], [25, 17, 1030], [2, 70, 0], [31, 300, 513]]
    };

    fn numbers(count: usize, seed: u64) -> Vec<f32> {
        let stream = Stream::new(seed, "gemm test", &[]);
        (0..count as u64).map(|i| stream.normal(i) as f32).collect()
    }

    /// `0.5 a b + 1` by `compute`, with either operand stored by rows or by columns.
    fn result(
        [rows, cols, depth]: [usize; 3],
        [a_by_rows, b_by_rows]: [bool; 2],
        compute: impl Fn(&Problem),
    ) -> (Vec<f32>, impl Fn(usize, bool) -> f64) {
        let (a, b) = (numbers(rows * depth, 1), numbers(depth * cols, 2));
        let operand = |data: &[f32], rows: usize, cols: usize, by_rows: bool| {
            let (row_stride, col_stride) = if by_rows { (cols, 1) } else { (1, rows) };
            Operand { data: data.as_ptr(), row_stride, col_stride }
        };
        let mut c = vec![1.0; rows * cols];
        compute(&Problem {
            rows,
            cols,
            depth,
            a: operand(&a, rows, depth, a_by_rows),
            b: operand(&b, depth, cols, b_by_rows),
            c: c.as_mut_ptr(),
            c_row_stride: cols,
            scale: 0.5,
            add: true,
            triangle: Triangle::None,
        });
        let exact = move |index: usize, rounded: bool| {
            let round = |x: f32| f64::from(if rounded { round_to_bf16(x) } else { x });
            let (row, col) = (index / cols, index % cols);
            let product = |l: usize| {
                let left = a[if a_by_rows { row * depth + l } else { l * rows + row }];
                let right = b[if b_by_rows { l * cols + col } else { col * depth + l }];
                round(left) * round(right)
            };
            1.0 + 0.5 * (0..depth).map(product).sum::<f64>()
        };
        (c, exact)
    }

    const LAYOUTS: [[bool; 2]; 4] = [[true, true], [true, false], [false, true], [false, false]];

    #[test]
    fn products_match_the_definition_in_every_layout_size_and_precision() {
        for &size in SIZES {
            for layout in LAYOUTS {
                for precision in [Precision::F32, Precision::Bf16] {
                    // SAFETY: `result` makes dense operands and a result of the sizes that the problem says.
                    let (c, exact) = result(size, layout, |problem| unsafe { product(problem, precision) });
                    for (index, &value) in c.iter().enumerate() {
                        let error = (f64::from(value) - exact(index, precision == Precision::Bf16)).abs();
                        assert!(error < 1e-4, "{size:?} {layout:?} {precision:?} at {index}: off by {error:e}");
                    }
                }
            }
        }
    }

    #[test]
    fn rounding_without_instructions_for_it_gives_the_same_products() {
        for &size in SIZES {
            // SAFETY: as above.
            let (native, _) = result(size, LAYOUTS[1], |problem| unsafe { product(problem, Precision::Bf16) });
            // SAFETY: as above.
            let (emulated, _) = result(size, LAYOUTS[1], |problem| unsafe { rounded_product(problem) });
            assert!(native.iter().zip(&emulated).all(|(a, b)| (a - b).abs() < 1e-4), "{size:?}");
        }
    }

    #[cfg(target_arch = "x86_64")]
    #[test]
    fn avx2_and_avx512_give_the_same_bits() {
        if pulp::x86::V4::try_new().is_none() {
            eprintln!("skipped: this CPU has no AVX-512");
            return;
        }
        // Without a summed dimension there is nothing to multiply.
        for &size in SIZES.iter().filter(|[.., depth]| *depth > 0) {
            for layout in LAYOUTS {
                // SAFETY: as above, and a CPU with AVX-512 has AVX2.
                let (narrow, _) = result(size, layout, |problem| unsafe { tiles::avx2(problem) });
                // SAFETY: as above, and this CPU has what pulp's V4 stands for.
                let (wide, _) = result(size, layout, |problem| unsafe { tiles::avx512(problem) });
                assert_eq!(narrow, wide, "{size:?} {layout:?}");
            }
        }
    }

    #[test]
    fn matrix_times_vector_is_the_same_product() {
        for (outer, inner) in [(1, 1), (7, 67), (8, 32), (29, 130)] {
            let (matrix, x) = (numbers(outer * inner, 3), numbers(inner, 4));
            let mut y = vec![0.0; outer];
            matrix_vector(&matrix, &x, &mut y);
            for (row, y) in matrix.chunks_exact(inner).zip(y) {
                let exact: f64 = row.iter().zip(&x).map(|(a, b)| f64::from(*a) * f64::from(*b)).sum();
                assert!((f64::from(y) - exact).abs() < 1e-4, "{outer} x {inner}");
            }
        }
    }

    #[test]
    fn bf16_rounds_to_nearest_even_and_keeps_what_is_not_a_number() {
        for (x, rounded) in [(1.0, 1.0), (1.0 + 1.0 / 256.0, 1.0), (1.0 + 3.0 / 256.0, 1.0 + 4.0 / 256.0), (3e38, 3e38)]
        {
            assert!((round_to_bf16(x) - rounded).abs() <= rounded * 0.005 && round_to_bf16(x).to_bits() & 0xffff == 0);
        }
        assert_eq!(round_to_bf16(1.0 + 1.0 / 256.0), 1.0);
        assert_eq!(round_to_bf16(1.0 + 3.0 / 256.0), 1.0 + 4.0 / 256.0);
        assert!(round_to_bf16(f32::NAN).is_nan() && round_to_bf16(f32::INFINITY) == f32::INFINITY);
    }

    #[test]
    fn a_triangle_leaves_out_nothing_that_counts() {
        // Blocks of queries in a context of several depth blocks, and keys that no tile divides.
        let contexts: &[_] =
            if cfg!(miri) { &[(1, 0), (13, 0), (9, 12)] } else { &[(1, 0), (13, 0), (40, 1100), (129, 0), (64, 64)] };
        for &(queries, ahead) in contexts {
            let keys = ahead + queries;
            let sees = |query: usize, key: usize| key <= ahead + query;
            let masked = |mut scores: Vec<f32>| {
                (0..scores.len()).filter(|i| !sees(i / keys, i % keys)).for_each(|i| scores[i] = 0.0);
                scores
            };
            let (scores, by_keys) = (masked(numbers(queries * keys, 3)), numbers(keys * 33, 4));
            let by_rows = |data: &[f32], cols| Operand { data: data.as_ptr(), row_stride: cols, col_stride: 1 };
            let transposed = |o: Operand| Operand { row_stride: o.col_stride, col_stride: o.row_stride, ..o };
            let (s, k) = (by_rows(&scores, keys), by_rows(&by_keys, 33));
            let cases = [
                (Triangle::Left { ahead }, [queries, 33, keys], s, k),
                (Triangle::LeftTransposed { ahead }, [keys, 33, queries], transposed(s), k),
                (Triangle::Result { ahead }, [queries, keys, 33], k, transposed(k)),
            ];
            for (triangle, [rows, cols, depth], a, b) in cases {
                for precision in [Precision::F32, Precision::Bf16] {
                    let compute = |triangle| {
                        let mut c = vec![1.0f32; rows * cols];
                        let (c_row_stride, scale, add) = (cols, 0.5, true);
                        let problem =
                            Problem { rows, cols, depth, a, b, c: c.as_mut_ptr(), c_row_stride, scale, add, triangle };
                        // SAFETY: all operands are as large as the problem says.
                        unsafe { product(&problem, precision) };
                        if matches!(triangle, Triangle::Result { .. }) { masked(c) } else { c }
                    };
                    let whole = compute(Triangle::None);
                    let whole = if matches!(triangle, Triangle::Result { .. }) { masked(whole) } else { whole };
                    assert_eq!(compute(triangle), whole, "{triangle:?}, {precision:?}, {queries} queries");
                }
            }
        }
    }
}
