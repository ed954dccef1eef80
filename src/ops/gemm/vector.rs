//! Products of a matrix with one vector: bound by reading the matrix, so it is read in its order, row by row. Several rows
//! at a time would hide more of the sums' latency, but the memory system fetches ahead along one row, not across eight:
//! from main memory that gave less than half as many bytes per second.

use super::lanes::{Avx2, Avx512, Lanes};

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
    let whole = inner / S::COUNT * S::COUNT;
    for (row, y) in y_O.iter_mut().enumerate() {
        let row_I = &matrix_OI[row * inner..][..inner];
        // SAFETY: the caller's CPU has the instructions; vectors end at `whole`, which is within both slices.
        *y = unsafe {
            let mut sum = S::zero();
            for start in (0..whole).step_by(S::COUNT) {
                sum = S::multiply_add(S::load(row_I.as_ptr().add(start)), S::load(x_I.as_ptr().add(start)), sum);
            }
            S::total(sum)
        };
        for i in whole..inner {
            *y += row_I[i] * x_I[i];
        }
    }
}
