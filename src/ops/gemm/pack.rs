//! Copying an operand's words to where the tiles find them one after the other.

use std::arch::x86_64::*;

/// Columns whose rows are copied together: neighbours in memory, but not so many that the panels that they go to push
/// each other out of the first-level cache.
const GROUP: usize = 256;

/// Numbers in a cache line.
const LINE: usize = 16;

/// Rows that are fetched ahead. The memory system follows a row, but cannot know where the next one begins.
const AHEAD: usize = 16;

/// Asks for the cache lines of some rows of `width` numbers; nothing needs to be there.
///
/// # Safety
/// SSE.
#[inline(always)]
pub unsafe fn fetch_rows(from: *const f32, row_stride: usize, rows: usize, width: usize) {
    for row in 0..rows {
        for line in (0..width).step_by(LINE) {
            // SAFETY: the caller has the instruction, and it reads nothing.
            unsafe { _mm_prefetch::<_MM_HINT_T0>(from.wrapping_add(row * row_stride + line).cast()) }
        }
    }
}

/// [`fetch_rows`] for one row, [`AHEAD`] rows below `from`.
///
/// # Safety
/// SSE.
#[inline(always)]
pub unsafe fn fetch_ahead(from: *const f32, row_stride: usize, width: usize) {
    // SAFETY: the caller has the instruction.
    unsafe { fetch_rows(from.wrapping_add(AHEAD * row_stride), row_stride, 1, width) }
}

/// Copies rows of `cols` words into panels of `W` columns, one after the other; the last one is filled up with zeros.
///
/// # Safety
/// `from` holds the rows, `row_stride` apart, and `to`, which does not overlap them, has room for all panels: `rows` times
/// `cols` rounded up to `W`.
#[inline(always)]
pub unsafe fn copy_rows<const W: usize>(from: *const f32, row_stride: usize, to: *mut f32, rows: usize, cols: usize) {
    let whole = cols / W * W;
    // SAFETY: of a row's `cols` words those of whole panels are read `W` at a time, and the rest one by one; a panel's row
    // has room for `W` words.
    unsafe {
        for group in (0..whole).step_by(GROUP / W * W) {
            let end = whole.min(group + GROUP / W * W);
            for row in 0..rows {
                for first in (group..end).step_by(W) {
                    let (from, to) = (from.add(row * row_stride + first), to.add(first * rows + row * W));
                    fetch_ahead(from, row_stride, W);
                    to.copy_from_nonoverlapping(from, W);
                }
            }
        }
        let rest = cols - whole;
        for row in 0..if rest > 0 { rows } else { 0 } {
            let to = to.add(whole * rows + row * W);
            to.copy_from_nonoverlapping(from.add(row * row_stride + whole), rest);
            to.add(rest).write_bytes(0, W - rest);
        }
    }
}

/// Copies `cols` columns whose `rows` words are neighbours in memory into rows of `padded` words, the last of which are
/// zero. With `ahead`, the same rows of as many columns behind them are fetched: they will be wanted next.
///
/// # Safety
/// AVX2; `from` holds the columns, `stride` apart, and `to`, which does not overlap them, has room for `rows * padded`
/// words; `padded` is at least `cols`.
#[inline(always)]
pub unsafe fn transpose(
    from: *const f32,
    stride: usize,
    to: *mut f32,
    rows: usize,
    cols: usize,
    padded: usize,
    ahead: bool,
) {
    // SAFETY: eight by eight words are taken while there are so many of both; the rest one by one, below `rows` and,
    // when read, below `cols`.
    unsafe {
        debug_assert!(cols <= padded);
        let (whole_rows, whole_cols) = (rows / 8 * 8, cols / 8 * 8);
        for row in (0..whole_rows).step_by(8) {
            for col in (0..whole_cols).step_by(8) {
                if ahead && row.is_multiple_of(LINE) {
                    fetch_rows(from.wrapping_add((col + padded) * stride + row), stride, 8, 1);
                }
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
