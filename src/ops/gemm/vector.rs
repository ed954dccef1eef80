//! Products of a matrix with one vector: bound by reading the matrix, whose rows stand one after the other.

// See the tiles.
#![expect(clippy::needless_range_loop)]

use super::lanes::{Avx2, Avx512, Lanes};

/// Rows that are multiplied at a time: their sums hide each other's latency, and the vector is read once for all.
const ROWS: usize = 8;

/// # Safety
/// A CPU with these instructions; likewise below, where `S` must be compiled into one of these two functions.
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx2,fma")]
pub unsafe fn avx512(matrix_OI: &[f32], x_I: &[f32], y_O: &mut [f32]) {
    // SAFETY: these are the instructions of the lanes; likewise in the next.
    unsafe { products::<Avx512>(matrix_OI, x_I, y_O) }
}

#[target_feature(enable = "avx2,fma")]
pub unsafe fn avx2(matrix_OI: &[f32], x_I: &[f32], y_O: &mut [f32]) {
    // SAFETY: as above.
    unsafe { products::<Avx2>(matrix_OI, x_I, y_O) }
}

#[inline(always)]
unsafe fn products<S: Lanes>(matrix_OI: &[f32], x_I: &[f32], y_O: &mut [f32]) {
    let inner = x_I.len();
    let (mut rest_y, mut rest) = (y_O, matrix_OI);
    macro_rules! take_rows {
        ($rows:expr) => {{
            let (now, later) = rest.split_at($rows * inner);
            let (y, later_y) = rest_y.split_at_mut($rows);
            // SAFETY: the caller's CPU has the instructions; slices are cut with their bounds checked.
            y.copy_from_slice(&unsafe { some_rows::<S, { $rows }>(now, x_I) });
            (rest, rest_y) = (later, later_y);
        }};
    }
    while rest_y.len() >= ROWS {
        take_rows!(ROWS);
    }
    while !rest_y.is_empty() {
        take_rows!(1);
    }
}

#[inline(always)]
unsafe fn some_rows<S: Lanes, const R: usize>(rows_RI: &[f32], x_I: &[f32]) -> [f32; R] {
    let inner = x_I.len();
    assert!(rows_RI.len() >= R * inner);
    let whole = inner / S::COUNT * S::COUNT;
    // SAFETY: the caller's CPU has the instructions; vectors end at `whole`, which is within `x_I` and within each of
    // the R rows, which the assertion above has found.
    let mut sums: [f32; R] = unsafe {
        let mut sums = [S::zero(); R];
        let (x, rows) = (x_I.as_ptr(), rows_RI.as_ptr());
        for start in (0..whole).step_by(S::COUNT) {
            let x = S::load(x.add(start));
            for r in 0..R {
                sums[r] = S::multiply_add(S::load(rows.add(r * inner + start)), x, sums[r]);
            }
        }
        sums.map(|sum| S::total(sum))
    };
    for (r, sum) in sums.iter_mut().enumerate() {
        for i in whole..inner {
            *sum += rows_RI[r * inner + i] * x_I[i];
        }
    }
    sums
}
