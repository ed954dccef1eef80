//! Copying an operand's words to where the tiles find them one after the other.

use std::arch::x86_64::*;

/// Copies rows of `cols` words into panels of `width` columns, one after the other; the last one is filled up with
/// zeros.
///
/// # Safety
/// AVX2; `from` holds the rows, `row_stride` apart, and `to`, which does not overlap them, has room for all panels:
/// `rows` times `cols` rounded up to `width`.
#[inline(always)]
pub unsafe fn copy_rows(from: *const f32, row_stride: usize, to: *mut f32, rows: usize, cols: usize, width: usize) {
    // SAFETY: of a row's `cols` words the `here` from `first` on are read, in vectors only while they are so many;
    // the panel's row has room for `width` words.
    unsafe {
        // Row by row, so that memory is read in its order.
        for row in 0..rows {
            for first in (0..cols).step_by(width) {
                let (from, to) = (from.add(row * row_stride + first), to.add(first * rows + row * width));
                let (here, mut col) = (width.min(cols - first), 0);
                while col + 8 <= here {
                    _mm256_storeu_ps(to.add(col), _mm256_loadu_ps(from.add(col)));
                    col += 8;
                }
                if col + 4 <= here {
                    _mm_storeu_ps(to.add(col), _mm_loadu_ps(from.add(col)));
                    col += 4;
                }
                for col in col..width {
                    *to.add(col) = if col < here { *from.add(col) } else { 0.0 };
                }
            }
        }
    }
}

/// Copies `cols` columns whose `rows` words are neighbours in memory into rows of `padded` words, the last of which are
/// zero.
///
/// # Safety
/// AVX2; `from` holds the columns, `stride` apart, and `to`, which does not overlap them, has room for `rows * padded`
/// words; `padded` is at least `cols`.
#[inline(always)]
pub unsafe fn transpose(from: *const f32, stride: usize, to: *mut f32, rows: usize, cols: usize, padded: usize) {
    // SAFETY: eight by eight words are taken while there are so many of both; the rest one by one, below `rows` and,
    // when read, below `cols`.
    unsafe {
        debug_assert!(cols <= padded);
        let (whole_rows, whole_cols) = (rows / 8 * 8, cols / 8 * 8);
        for row in (0..whole_rows).step_by(8) {
            for col in (0..whole_cols).step_by(8) {
                transpose_eight(from.add(col * stride + row), stride, to.add(row * padded + col), padded);
            }
        }
        for col in 0..padded {
            let first = if col < whole_cols { whole_rows } else { 0 };
            for row in first..rows {
                *to.add(row * padded + col) = if col < cols { *from.add(col * stride + row) } else { 0.0 };
            }
        }
    }
}

/// Transposes eight times eight words.
///
/// # Safety
/// AVX2; eight words at each of eight places, `stride` apart in `from` and `to_stride` apart in `to`.
#[inline(always)]
unsafe fn transpose_eight(from: *const f32, stride: usize, to: *mut f32, to_stride: usize) {
    // SAFETY: the caller has the words and the instructions; unaligned loads and stores need no more.
    unsafe {
        let lines: [__m256; 8] = std::array::from_fn(|i| _mm256_loadu_ps(from.add(i * stride)));
        let pair = |i: usize| {
            let (a, b) = (lines[2 * i], lines[2 * i + 1]);
            [_mm256_unpacklo_ps(a, b), _mm256_unpackhi_ps(a, b)]
        };
        let quad = |i: usize| {
            let ([a, b], [c, d]) = (pair(2 * i), pair(2 * i + 1));
            [
                _mm256_shuffle_ps(a, c, 0x44),
                _mm256_shuffle_ps(a, c, 0xee),
                _mm256_shuffle_ps(b, d, 0x44),
                _mm256_shuffle_ps(b, d, 0xee),
            ]
        };
        let (low, high) = (quad(0), quad(1));
        for i in 0..4 {
            _mm256_storeu_ps(to.add(i * to_stride), _mm256_permute2f128_ps(low[i], high[i], 0x20));
            _mm256_storeu_ps(to.add((i + 4) * to_stride), _mm256_permute2f128_ps(low[i], high[i], 0x31));
        }
    }
}
