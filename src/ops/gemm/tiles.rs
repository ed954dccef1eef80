//! Blocks, panels and tiles of a product; see [`super`].

// Loops over tiles count, so that they read like the tile and are unrolled into registers.
#![expect(clippy::needless_range_loop)]

use super::lanes::{Avx2, Avx512, Avx512Bf16, Lanes};
use super::{Operand, Problem, Triangle, pack};
use std::cell::RefCell;
use std::ops::Range;

/// Words of the summed dimension in a block: a panel of them takes 64 KB, a small part of the second-level cache.
const MAX_BLOCK: usize = 512;

/// Words of the right operand that are packed at a time: 512 KB, half of the second-level cache.
const MAX_PANELS: usize = 1 << 17;

/// Rows of a packed left operand start this much more than a block apart: powers of two would put all of a tile's rows
/// into the same few places of the first-level cache.
const SKEW: usize = 16;

/// A thread's memory for packed words.
#[derive(Default)]
struct Scratch {
    left: Vec<f32>,
    panels: Vec<f32>,
    lines: Vec<f32>,
}

thread_local! {
    static SCRATCH: RefCell<Scratch> = RefCell::default();
}

/// The start of at least `len` numbers.
fn room(vector: &mut Vec<f32>, len: usize) -> *mut f32 {
    if vector.len() < len {
        vector.resize(len.next_power_of_two(), 0.0);
    }
    vector.as_mut_ptr()
}

/// # Safety
/// That of [`super::product`], at least one number in the summed dimension, and a CPU with these instructions; likewise
/// below, where `S` must be compiled into one of these three functions.
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx2,fma")]
pub unsafe fn avx512(problem: &Problem) {
    // SAFETY: the caller's promise, and these are the instructions of the lanes; likewise in the next two.
    SCRATCH.with_borrow_mut(|scratch| unsafe { blocks::<Avx512>(problem, scratch) });
}

#[target_feature(enable = "avx2,fma")]
pub unsafe fn avx2(problem: &Problem) {
    // SAFETY: as above.
    SCRATCH.with_borrow_mut(|scratch| unsafe { blocks::<Avx2>(problem, scratch) });
}

#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512bf16,avx2,fma")]
pub unsafe fn avx512_bf16(problem: &Problem) {
    // SAFETY: as above.
    SCRATCH.with_borrow_mut(|scratch| unsafe { blocks::<Avx512Bf16>(problem, scratch) });
}

/// The left operand's words of one block.
#[derive(Clone, Copy)]
struct Left {
    words: *const f32,
    row_stride: usize,
    /// From one word of the summed dimension to the next.
    depth_stride: usize,
    /// From a full tile's first row to the next one's.
    tile_stride: usize,
}

/// Adds up the product block by block of the summed dimension.
#[inline(always)]
unsafe fn blocks<S: Lanes>(problem: &Problem, scratch: &mut Scratch) {
    // SAFETY: `start` is below `depth` and `start + depth_here` at most `depth`, so that the parts are products of
    // columns of `a` and rows of `b` that exist; `c` is the same.
    unsafe {
        let Problem { a, b, depth, .. } = *problem;
        debug_assert!(depth > 0);
        let count = depth.div_ceil(MAX_BLOCK * S::PER_WORD).max(1);
        let size = depth.div_ceil(count).next_multiple_of(S::PER_WORD);
        let mut start = 0;
        loop {
            let depth_here = size.min(depth - start);
            let part = Problem {
                depth: depth_here,
                a: Operand { data: a.data.add(start * a.col_stride), ..a },
                b: Operand { data: b.data.add(start * b.row_stride), ..b },
                add: problem.add || start > 0,
                ..*problem
            };
            block::<S>(&part, start, scratch);
            start += depth_here;
            if start >= depth {
                break;
            }
        }
    }
}

/// The part of the summed dimension that begins at `start`.
#[inline(always)]
unsafe fn block<S: Lanes>(problem: &Problem, start: usize, scratch: &mut Scratch) {
    // SAFETY: columns `first..first + count` exist in `b`. `panels` has room for `words` rows of `group` columns, of
    // which `count` rounded up to `width` are written, since `group` is a multiple of `width`; `lines` has room for a
    // panel's `width` lines of `words`. Both vectors keep their length until they are read, and neither is `left`'s.
    // Where `b`'s columns are not neighbours its rows are, so that a column can be read as a line.
    unsafe {
        let Problem { cols, depth, b, .. } = *problem;
        let (width, words) = (2 * S::COUNT, depth.div_ceil(S::PER_WORD));
        let left = left_words::<S>(problem, words, &mut scratch.left);
        let group = (MAX_PANELS / words.max(1)).next_multiple_of(width).min(cols.next_multiple_of(width));
        let panels = room(&mut scratch.panels, words * group);
        for first in (0..cols).step_by(group) {
            let count = group.min(cols - first);
            let from = b.data.add(first * b.col_stride);
            if b.col_stride == 1 {
                S::pack_rows(from, b.row_stride, panels, depth, count, width);
            } else {
                let lines = room(&mut scratch.lines, words * width);
                for col in (0..count).step_by(width) {
                    let (from, to) = (from.add(col * b.col_stride), panels.add(col * words));
                    let (mut lines, mut stride, here) = (lines.cast_const(), words, width.min(count - col));
                    if S::PER_WORD == 1 {
                        (lines, stride) = (from, b.col_stride);
                    } else {
                        for line in 0..here {
                            S::pack_line(from.add(line * b.col_stride), lines.cast_mut().add(line * words), depth);
                        }
                    }
                    pack::transpose(lines, stride, to, words, here, width, S::PER_WORD == 1);
                }
            }
            for col in (0..count).step_by(width) {
                let here = width.min(count - col);
                let panel = panels.add(col * words);
                let columns = Columns { panel, words, start, first: first + col, count: here };
                if here > S::COUNT {
                    rows::<S, 2>(problem, left, columns);
                } else {
                    rows::<S, 1>(problem, left, columns);
                }
            }
        }
    }
}

/// The left operand as words: where it stands if it can be used there, else packed.
#[inline(always)]
unsafe fn left_words<S: Lanes>(problem: &Problem, words: usize, packed: &mut Vec<f32>) -> Left {
    // SAFETY: rows of `a` are read where they are neighbours in one of the two directions. A packed line of `depth`
    // numbers has `words` words and a row has room for them; packed panels are `words` rows of `S::ROWS` words, and
    // there is room for as many as hold all rows.
    unsafe {
        let Problem { rows, cols, depth, a, .. } = *problem;
        let (one_panel, collides) = (cols <= 2 * S::COUNT, a.row_stride.is_multiple_of(512));
        if S::PER_WORD == 1 && (one_panel || a.col_stride == 1 && !collides) {
            let tile_stride = S::ROWS * a.row_stride;
            Left { words: a.data, row_stride: a.row_stride, depth_stride: a.col_stride, tile_stride }
        } else if a.col_stride == 1 {
            let row_stride = words + SKEW;
            let to = room(packed, rows * row_stride);
            for row in 0..rows {
                S::pack_line(a.data.add(row * a.row_stride), to.add(row * row_stride), depth);
            }
            Left { words: to, row_stride, depth_stride: 1, tile_stride: S::ROWS * row_stride }
        } else {
            let to = room(packed, rows.next_multiple_of(S::ROWS) * words);
            S::pack_rows(a.data, a.col_stride, to, depth, rows, S::ROWS);
            Left { words: to, row_stride: 1, depth_stride: S::ROWS, tile_stride: S::ROWS * words }
        }
    }
}

/// Some columns of the right operand, packed.
#[derive(Clone, Copy)]
struct Columns {
    panel: *const f32,
    words: usize,
    /// Where the words begin in the summed dimension.
    start: usize,
    first: usize,
    count: usize,
}

/// All rows of the result's `columns`, `V` vectors wide.
#[inline(always)]
unsafe fn rows<S: Lanes, const V: usize>(problem: &Problem, left: Left, columns: Columns) {
    let mut row = match problem.triangle {
        Triangle::Result { ahead } => columns.first.saturating_sub(ahead) / S::ROWS * S::ROWS,
        _ => 0,
    };
    while row < problem.rows {
        let rest = problem.rows - row;
        macro_rules! tile {
            ($rows:literal) => {{
                // SAFETY: a tile is not higher than the rows that are left, and one that starts within a panel of
                // `S::ROWS` rows ends in it: full tiles come first. The columns from `columns.first` on exist in `c`.
                unsafe {
                    let words = left.words.add(row / S::ROWS * left.tile_stride + row % S::ROWS * left.row_stride);
                    let range = words_of_rows::<S>(problem.triangle, row, $rows, columns);
                    let columns =
                        Columns { panel: columns.panel.add(range.start * 2 * S::COUNT), words: range.len(), ..columns };
                    // Rows of which no word counts read nothing, wherever this points.
                    let words = words.wrapping_add(range.start * left.depth_stride);
                    let to = problem.c.add(row * problem.c_row_stride + columns.first);
                    fetch_sums::<S>(problem, columns, row, $rows);
                    if left.depth_stride == 1 {
                        tile::<S, $rows, V, true>(problem, Left { words, ..left }, columns, to);
                    } else {
                        tile::<S, $rows, V, false>(problem, Left { words, ..left }, columns, to);
                    }
                }
                row += $rows;
            }};
        }
        match rest {
            12.. if S::ROWS == 12 => tile!(12),
            8.. if S::ROWS == 12 => tile!(8),
            6.. if S::ROWS == 6 => tile!(6),
            4.. => tile!(4),
            2.. => tile!(2),
            _ => tile!(1),
        }
    }
}

/// Asks for the numbers that the tile after the next will add to, if it adds: behind the last row, those at the top of the
/// next panel. Gradients come from main memory, one short piece of a row after the other, which no hardware foresees.
#[inline(always)]
unsafe fn fetch_sums<S: Lanes>(problem: &Problem, columns: Columns, row: usize, count: usize) {
    if !problem.add {
        return;
    }
    let (after, width) = (row + 2 * count, 2 * S::COUNT);
    let (row, col) = if after < problem.rows { (after, 0) } else { (after - problem.rows, width) };
    let first = problem.c.wrapping_add(row * problem.c_row_stride + columns.first + col);
    // SAFETY: the caller has the instructions.
    unsafe { pack::fetch_rows(first, problem.c_row_stride, count, width) }
}

/// The words of a block that count for `count` rows of the left operand from `row` on; the others are zeros.
#[inline(always)]
fn words_of_rows<S: Lanes>(triangle: Triangle, row: usize, count: usize, columns: Columns) -> Range<usize> {
    let Columns { words, start, .. } = columns;
    match triangle {
        Triangle::None | Triangle::Result { .. } => 0..words,
        Triangle::Left { ahead } => 0..(ahead + row + count).saturating_sub(start).div_ceil(S::PER_WORD).min(words),
        Triangle::LeftTransposed { ahead } => (row.saturating_sub(ahead + start) / S::PER_WORD).min(words)..words,
    }
}

/// `R` rows and `V` vectors of sums. `LINES` says that a row's words are neighbours in memory.
#[inline(always)]
unsafe fn tile<S: Lanes, const R: usize, const V: usize, const LINES: bool>(
    problem: &Problem,
    left: Left,
    columns: Columns,
    to: *mut f32,
) {
    // SAFETY: the caller has `R` rows of `columns.words` words each in `left`, rows of a panel as wide as two vectors,
    // and `R` rows of `columns.count` numbers at `to`. A whole vector is stored only where all of its columns exist.
    // Both steps may end behind the last word, where nothing is read: that is why they wrap.
    unsafe {
        debug_assert!(columns.count <= V * S::COUNT && S::COUNT <= 16);
        let mut sums = [[S::zero(); V]; R];
        let (mut a, mut b) = (left.words, columns.panel);
        for _ in 0..columns.words {
            let mut words = [S::load(b); V];
            for v in 1..V {
                words[v] = S::load(b.add(v * S::COUNT));
            }
            for r in 0..R {
                let word = S::splat(a.add(r * if LINES { left.row_stride } else { 1 }));
                for v in 0..V {
                    sums[r][v] = S::multiply_add(word, words[v], sums[r][v]);
                }
            }
            a = a.wrapping_add(if LINES { 1 } else { left.depth_stride });
            b = b.wrapping_add(2 * S::COUNT);
        }
        let (scale, add) = (problem.scale, problem.add);
        if columns.count == V * S::COUNT {
            for r in 0..R {
                for v in 0..V {
                    S::store(to.add(r * problem.c_row_stride + v * S::COUNT), scale, sums[r][v], add);
                }
            }
        } else {
            // Through memory of our own, because the tile is wider than the columns that are left.
            let mut whole = [[[0.0f32; 16]; V]; R];
            for r in 0..R {
                for v in 0..V {
                    S::store(whole[r][v].as_mut_ptr(), scale, sums[r][v], false);
                }
            }
            for r in 0..R {
                for col in 0..columns.count {
                    let (to, sum) = (to.add(r * problem.c_row_stride + col), whole[r][col / S::COUNT][col % S::COUNT]);
                    *to = if add { *to + sum } else { sum };
                }
            }
        }
    }
}
