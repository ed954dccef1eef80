//! What the tiles need of an instruction set: vectors of 32-bit words and a multiply-add into f32 sums.

use super::pack;
use std::arch::x86_64::*;

/// An instruction set and the numbers that it multiplies. A word is one f32, or two bf16 numbers that are neighbours
/// along the summed dimension; words are moved about as f32.
///
/// # Safety
/// All functions need a CPU that has the instructions and a caller that is compiled for them. `load`, `splat` and
/// `store` need `COUNT`, one and `COUNT` elements at their pointer, at any address; the packing functions as many
/// readable ones as they say and room for the words that they make, which must not overlap.
pub trait Lanes {
    /// A vector, of words or of sums.
    type Vector: Copy;
    /// Its lanes.
    const COUNT: usize;
    /// Rows of a tile: two vectors of sums each, beside the words, fill the registers.
    const ROWS: usize;
    /// Numbers in a word.
    const PER_WORD: usize;

    unsafe fn zero() -> Self::Vector;
    unsafe fn load(words: *const f32) -> Self::Vector;
    unsafe fn splat(word: *const f32) -> Self::Vector;
    unsafe fn multiply_add(a: Self::Vector, b: Self::Vector, sum: Self::Vector) -> Self::Vector;
    /// The sum of all lanes.
    unsafe fn total(sum: Self::Vector) -> f32;
    /// `to = scale * sum`, or `+=`.
    unsafe fn store(to: *mut f32, scale: f32, sum: Self::Vector, add: bool);

    /// Makes words of `count` numbers that are neighbours in memory and along the summed dimension.
    unsafe fn pack_line(from: *const f32, to: *mut f32, count: usize);
    /// Makes words of `depth` rows of `cols` numbers, where the summed dimension runs across the rows. They go into
    /// panels of `width` columns, one after the other; the last one is filled up with zeros.
    unsafe fn pack_rows(from: *const f32, row_stride: usize, to: *mut f32, depth: usize, cols: usize, width: usize);
}

pub struct Avx512;
pub struct Avx2;
pub struct Avx512Bf16;

/// The functions that differ between two instruction sets by names alone.
macro_rules! vector_functions {
    ($vector:ty, $zero:ident, $load:ident, $splat:ident, $store:ident, $add:ident, $multiply:ident) => {
        type Vector = $vector;

        #[inline(always)]
        unsafe fn zero() -> $vector {
            // SAFETY: the caller has the instructions.
            unsafe { $zero() }
        }

        #[inline(always)]
        unsafe fn load(words: *const f32) -> $vector {
            // SAFETY: the caller has the instructions and a vector of words; the load is an unaligned one.
            unsafe { $load(words) }
        }

        #[inline(always)]
        unsafe fn splat(word: *const f32) -> $vector {
            // SAFETY: the caller has the instructions and a word.
            unsafe { $splat(*word) }
        }

        #[inline(always)]
        unsafe fn store(to: *mut f32, scale: f32, sum: $vector, add: bool) {
            // SAFETY: the caller has the instructions and a vector's room; load and store are unaligned ones.
            unsafe {
                let scaled = $multiply(sum, $splat(scale));
                $store(to, if add { $add($load(to), scaled) } else { scaled });
            }
        }
    };
}

/// 16 lanes, whatever is multiplied in them.
macro_rules! avx512_vectors {
    () => {
        const COUNT: usize = 16;
        const ROWS: usize = 12;
        vector_functions!(
            __m512,
            _mm512_setzero_ps,
            _mm512_loadu_ps,
            _mm512_set1_ps,
            _mm512_storeu_ps,
            _mm512_add_ps,
            _mm512_mul_ps
        );

        #[inline(always)]
        unsafe fn total(sum: __m512) -> f32 {
            // SAFETY: the caller has the instructions.
            unsafe { _mm512_reduce_add_ps(sum) }
        }
    };
}

/// How f32 numbers become words: they are words.
macro_rules! f32_words {
    () => {
        const PER_WORD: usize = 1;

        #[inline(always)]
        unsafe fn pack_line(from: *const f32, to: *mut f32, count: usize) {
            // SAFETY: the caller has `count` numbers and, elsewhere, room for as many words.
            unsafe { std::ptr::copy_nonoverlapping(from, to, count) }
        }

        #[inline(always)]
        unsafe fn pack_rows(
            from: *const f32,
            row_stride: usize,
            to: *mut f32,
            depth: usize,
            cols: usize,
            width: usize,
        ) {
            // SAFETY: what the trait asks of the caller is what these functions ask for, with a word for each number.
            unsafe {
                if width == Self::ROWS {
                    pack::copy_rows::<{ Self::ROWS }>(from, row_stride, to, depth, cols);
                } else {
                    pack::copy_rows::<{ 2 * Self::COUNT }>(from, row_stride, to, depth, cols);
                }
            }
        }
    };
}

impl Lanes for Avx512 {
    avx512_vectors!();
    f32_words!();

    #[inline(always)]
    unsafe fn multiply_add(a: __m512, b: __m512, sum: __m512) -> __m512 {
        // SAFETY: the caller has the instructions.
        unsafe { _mm512_fmadd_ps(a, b, sum) }
    }
}

impl Lanes for Avx2 {
    const COUNT: usize = 8;
    const ROWS: usize = 6;
    vector_functions!(
        __m256,
        _mm256_setzero_ps,
        _mm256_loadu_ps,
        _mm256_set1_ps,
        _mm256_storeu_ps,
        _mm256_add_ps,
        _mm256_mul_ps
    );
    f32_words!();

    #[inline(always)]
    unsafe fn multiply_add(a: __m256, b: __m256, sum: __m256) -> __m256 {
        // SAFETY: the caller has the instructions.
        unsafe { _mm256_fmadd_ps(a, b, sum) }
    }

    #[inline(always)]
    unsafe fn total(sum: __m256) -> f32 {
        // SAFETY: the caller has the instructions.
        unsafe {
            let four = _mm_add_ps(_mm256_castps256_ps128(sum), _mm256_extractf128_ps(sum, 1));
            let two = _mm_add_ps(four, _mm_movehl_ps(four, four));
            _mm_cvtss_f32(_mm_add_ss(two, _mm_movehdup_ps(two)))
        }
    }
}

impl Lanes for Avx512Bf16 {
    const PER_WORD: usize = 2;
    avx512_vectors!();

    #[inline(always)]
    unsafe fn multiply_add(a: __m512, b: __m512, sum: __m512) -> __m512 {
        // SAFETY: the caller has the instructions; both types are 512 bits of any value.
        unsafe {
            let pairs = |words| std::mem::transmute::<__m512, __m512bh>(words);
            _mm512_dpbf16_ps(sum, pairs(a), pairs(b))
        }
    }

    #[inline(always)]
    unsafe fn pack_line(from: *const f32, to: *mut f32, count: usize) {
        // SAFETY: the caller has the instructions; masks keep loads within the caller's `count` numbers and stores within
        // the words of two that they make, and a pointer is at most behind the last number. Both types that are
        // transmuted are 512 bits of any value.
        unsafe {
            for start in (0..count).step_by(32) {
                let half = |offset: usize| {
                    let first = (start + offset).min(count);
                    _mm512_maskz_loadu_ps(mask(count - first), from.add(first))
                };
                let pairs = std::mem::transmute::<__m512bh, __m512>(_mm512_cvtne2ps_pbh(half(16), half(0)));
                _mm512_mask_storeu_ps(to.add(start / 2), mask((count - start).div_ceil(2)), pairs);
            }
        }
    }

    #[inline(always)]
    unsafe fn pack_rows(from: *const f32, row_stride: usize, to: *mut f32, depth: usize, cols: usize, width: usize) {
        // SAFETY: the caller has the instructions; masks keep loads within a row and stores within a row of a panel, and
        // a pointer is at most behind a row's last number. Both types that are transmuted are 256 bits of any value.
        unsafe {
            debug_assert!(depth > 0);
            let words = depth.div_ceil(2);
            for word in 0..words {
                for first in (0..cols).step_by(width) {
                    for col in (first..first + width).step_by(16) {
                        let numbers = |row: usize| {
                            let lanes = if row < depth { mask(cols.saturating_sub(col)) } else { 0 };
                            pack::fetch_ahead(from.wrapping_add(row * row_stride + col), row_stride, 16);
                            let row = from.add(row.min(depth - 1) * row_stride + col.min(cols));
                            let rounded = _mm512_cvtneps_pbh(_mm512_maskz_loadu_ps(lanes, row));
                            _mm512_cvtepu16_epi32(std::mem::transmute::<__m256bh, __m256i>(rounded))
                        };
                        let pairs = _mm512_or_si512(numbers(2 * word), _mm512_slli_epi32(numbers(2 * word + 1), 16));
                        let to = to.add(first * words + word * width + col - first);
                        _mm512_mask_storeu_epi32(to.cast(), mask(first + width - col), pairs);
                    }
                }
            }
        }
    }
}

/// The first `count` of 16 lanes.
#[inline(always)]
fn mask(count: usize) -> __mmask16 {
    if count >= 16 { !0 } else { (1 << count) - 1 }
}
