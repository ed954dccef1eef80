//! Matrix views over slices and their product ([`gemm`](super::gemm)), alone or cut into tasks.

use super::gemm::{self, Operand, Precision, Problem, Triangle};
use super::{pool, rows_per_task};
use std::marker::PhantomData;
use std::ops::Range;

/// A view of a matrix: element (i, j) is `data[i * row_stride + j * col_stride]`.
#[derive(Clone, Copy)]
pub struct Mat<'a> {
    data: &'a [f32],
    rows: usize,
    cols: usize,
    row_stride: usize,
    col_stride: usize,
}

impl<'a> Mat<'a> {
    /// A dense row-major matrix.
    pub fn new(data: &'a [f32], rows: usize, cols: usize) -> Self {
        Self::strided(data, rows, cols, cols)
    }

    /// Rows of `cols` numbers that start `row_stride` apart.
    pub fn strided(data: &'a [f32], rows: usize, cols: usize, row_stride: usize) -> Self {
        check_extent(data.len(), rows, cols, row_stride);
        Self { data, rows, cols, row_stride, col_stride: 1 }
    }

    pub fn rows(&self) -> usize {
        self.rows
    }

    pub fn cols(&self) -> usize {
        self.cols
    }

    /// Whether all elements lie within the slice, as they do in every view that [`Self::strided`] has let through.
    fn is_within(&self) -> bool {
        let last = |count: usize, stride: usize| count.checked_sub(1).map(|last| last * stride);
        let last = last(self.rows, self.row_stride).zip(last(self.cols, self.col_stride));
        last.is_none_or(|(row, col)| row + col < self.data.len())
    }

    /// Some rows and columns of rows whose numbers are neighbours.
    pub fn block(self, rows: Range<usize>, cols: Range<usize>) -> Self {
        assert!(rows.end <= self.rows && cols.end <= self.cols && self.col_stride == 1, "a block of the matrix");
        Self::strided(&self.data[rows.start * self.row_stride + cols.start..], rows.len(), cols.len(), self.row_stride)
    }

    /// One row of rows whose numbers are neighbours.
    #[inline(always)]
    pub fn row(&self, row: usize) -> &'a [f32] {
        assert!(row < self.rows && self.col_stride == 1, "a row of the matrix");
        &self.data[row * self.row_stride..][..self.cols]
    }

    /// The transpose.
    pub fn t(self) -> Self {
        Self { rows: self.cols, cols: self.rows, row_stride: self.col_stride, col_stride: self.row_stride, ..self }
    }
}

/// A writable view of rows of `cols` numbers that start `row_stride` apart. What lies between the rows is not the
/// view's: side by side, several of them may write to one buffer.
pub struct MatMut<'a> {
    data: *mut f32,
    rows: usize,
    cols: usize,
    row_stride: usize,
    memory: PhantomData<&'a mut [f32]>,
}

// SAFETY: a view is the only way to its numbers while it lives, like the mutable slice that it was made of.
unsafe impl Send for MatMut<'_> {}

impl<'a> MatMut<'a> {
    /// A dense row-major matrix.
    pub fn new(data: &'a mut [f32], rows: usize, cols: usize) -> Self {
        check_extent(data.len(), rows, cols, cols);
        Self { data: data.as_mut_ptr(), rows, cols, row_stride: cols, memory: PhantomData }
    }

    /// The first `at` columns and the others.
    pub fn split_cols(self, at: usize) -> (Self, Self) {
        assert!(at <= self.cols, "a column of the matrix");
        // SAFETY: one past the first part's columns; where there are rows, that lies within the view or at its end.
        let second = unsafe { self.data.add(if self.rows > 0 { at } else { 0 }) };
        (Self { cols: at, ..self }, Self { data: second, cols: self.cols - at, ..self })
    }

    /// All columns, `width` at a time.
    pub fn column_blocks(self, width: usize) -> impl Iterator<Item = Self> {
        let mut rest = Some(self);
        std::iter::from_fn(move || {
            let (block, others) = rest.take().filter(|rest| rest.cols >= width.max(1))?.split_cols(width);
            rest = Some(others);
            Some(block)
        })
    }

    /// Some rows and columns.
    pub fn block(&mut self, rows: Range<usize>, cols: Range<usize>) -> MatMut<'_> {
        assert!(rows.start < rows.end && rows.end <= self.rows && cols.end <= self.cols, "a block of the matrix");
        // SAFETY: the block's first row is one of ours, and its columns are too.
        let data = unsafe { self.data.add(rows.start * self.row_stride + cols.start) };
        MatMut { data, rows: rows.len(), cols: cols.len(), ..*self }
    }

    /// The same numbers, for a shorter time.
    pub fn all(&mut self) -> MatMut<'_> {
        MatMut { ..*self }
    }

    /// Sets all numbers.
    pub fn fill(&mut self, number: f32) {
        for row in 0..self.rows {
            // SAFETY: a view's rows lie within its memory, and nobody else has them.
            unsafe { std::slice::from_raw_parts_mut(self.data.add(row * self.row_stride), self.cols) }.fill(number);
        }
    }
}

fn check_extent(len: usize, rows: usize, cols: usize, row_stride: usize) {
    let needed = match rows.checked_sub(1) {
        Some(gaps) if cols > 0 => gaps.checked_mul(row_stride).and_then(|start| start.checked_add(cols)),
        _ => Some(0),
    };
    assert!(
        needed.is_some_and(|needed| needed <= len) && (cols <= row_stride || rows <= 1),
        "{rows} x {cols} do not fit into {len} numbers"
    );
}

/// What happens to the destination's old content.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Store {
    Overwrite,
    Add,
}

/// `dst = a b`, or `dst += a b`, on this thread.
pub fn matmul(dst: MatMut, a: Mat, b: Mat, store: Store, precision: Precision) {
    triangular_matmul(dst, 1.0, (a, b), store, Triangle::None, precision);
}

/// `dst = scale a b`, or `dst += scale a b`, on this thread; what `triangle` says may be left out.
pub fn triangular_matmul(
    dst: MatMut,
    scale: f32,
    (a, b): (Mat, Mat),
    store: Store,
    triangle: Triangle,
    precision: Precision,
) {
    assert!(
        a.cols == b.rows && dst.rows == a.rows && dst.cols == b.cols,
        "({} x {}) x ({} x {}) into {} x {}",
        a.rows,
        a.cols,
        b.rows,
        b.cols,
        dst.rows,
        dst.cols
    );
    if dst.rows == 0 || dst.cols == 0 {
        return;
    }
    let operand =
        |mat: Mat| Operand { data: mat.data.as_ptr(), row_stride: mat.row_stride, col_stride: mat.col_stride };
    let problem = Problem {
        rows: dst.rows,
        cols: dst.cols,
        depth: a.cols,
        a: operand(a),
        b: operand(b),
        c: dst.data,
        c_row_stride: dst.row_stride,
        scale,
        add: store == Store::Add,
        triangle,
    };
    debug_assert!(a.is_within() && b.is_within());
    // SAFETY: the views' extents were checked against their slices when they were made, one of their strides is 1, the
    // shapes agree, and `dst` is a mutable view, the only way to its numbers, so it overlaps neither operand.
    unsafe { gemm::product(&problem, precision) }
}

/// `dst = a b` (or `+=`) for a dense row-major `dst` with `b.cols` columns, its rows cut into tasks.
pub fn parallel_matmul(dst: &mut [f32], a: Mat, b: Mat, store: Store, precision: Precision) {
    let (rows, cols) = (a.rows, b.cols);
    let chunk = rows_per_task(rows);
    let tasks = dst[..rows * cols].chunks_mut((chunk * cols).max(1)).enumerate().collect();
    pool::run(tasks, |(task, dst): (usize, &mut [f32])| {
        let count = dst.len() / cols;
        let part = Mat { data: &a.data[task * chunk * a.row_stride..], rows: count, ..a };
        matmul(MatMut::new(dst, count, cols), part, b, store, precision);
    });
}

/// Rows below which a product with a weight matrix is bound by reading the weight: then it is multiplied row by row.
pub const FEW_ROWS: usize = 8;

/// `y_NO = x_NI w_OI^T` in f32, for any number of rows.
pub fn linear(x_NI: &[f32], w_OI: &[f32], y_NO: &mut [f32], rows: usize) {
    let (inner, outer) = (x_NI.len() / rows, y_NO.len() / rows);
    if rows >= FEW_ROWS {
        let (x, w) = (Mat::new(x_NI, rows, inner), Mat::new(w_OI, outer, inner).t());
        return parallel_matmul(y_NO, x, w, Store::Overwrite, Precision::F32);
    }
    pool::run_pieces(y_NO, outer, outputs_per_task(inner), |y, row, first| {
        let w = &w_OI[first * inner..][..y.len() * inner];
        gemm::matrix_vector(w, &x_NI[row * inner..][..inner], y);
    });
}

/// How many products with vectors of `inner` numbers make a task: 64 KB of weights.
pub fn outputs_per_task(inner: usize) -> usize {
    ((1 << 14) / inner.max(1)).next_multiple_of(8).max(8)
}

/// `grad_OI += dy_NO^T x_NI`: the gradient of a weight of shape (O, I) in `y = x W^T`, its rows cut into tasks.
pub fn add_weight_gradient(grad_OI: &mut [f32], dy_NO: Mat, x_NI: Mat, precision: Precision) {
    parallel_matmul(grad_OI, dy_NO.t(), x_NI, Store::Add, precision);
}

#[cfg(test)]
mod tests {
    use super::*;

    fn numbers(count: usize, seed: u64) -> Vec<f32> {
        let stream = crate::random::Stream::new(seed, "matmul test", &[]);
        (0..count as u64).map(|i| stream.normal(i) as f32).collect()
    }

    #[test]
    fn products_of_all_layouts_match_the_definition() {
        // Miri is slow.
        let (m, k, n) = if cfg!(miri) { (20, 9, 19) } else { (70, 33, 19) };
        let (a, b) = (numbers(m * k, 1), numbers(k * n, 2));
        let exact = |i: usize, j: usize| (0..k).map(|l| f64::from(a[i * k + l]) * f64::from(b[l * n + j])).sum::<f64>();
        let a_t: Vec<f32> = (0..k * m).map(|i| a[i % m * k + i / m]).collect();
        let b_t: Vec<f32> = (0..n * k).map(|i| b[i % k * n + i / k]).collect();
        for (a, b) in [
            (Mat::new(&a, m, k), Mat::new(&b, k, n)),
            (Mat::new(&a_t, k, m).t(), Mat::new(&b, k, n)),
            (Mat::new(&a, m, k), Mat::new(&b_t, n, k).t()),
        ] {
            let mut dst = vec![1.0; m * n];
            parallel_matmul(&mut dst, a, b, Store::Add, Precision::F32);
            for (index, &value) in dst.iter().enumerate() {
                assert!((f64::from(value) - 1.0 - exact(index / n, index % n)).abs() < 1e-4);
            }
        }
    }

    #[test]
    fn linear_gives_the_same_for_few_and_many_rows_and_for_any_width() {
        for (inner, outer) in [(if cfg!(miri) { 70 } else { 40_000 }, 3), (33, 10), (1, 1)] {
            let (x, w) = (numbers(9 * inner, 3), numbers(outer * inner, 4));
            let (mut many, mut few) = (vec![0.0; 9 * outer], vec![0.0; outer]);
            linear(&x, &w, &mut many, 9);
            for row in 0..9 {
                linear(&x[row * inner..][..inner], &w, &mut few, 1);
                let close = |(a, b): (&f32, &f32)| (a - b).abs() < 1e-3 * (inner as f32).sqrt();
                assert!(few.iter().zip(&many[row * outer..]).all(close), "{inner} x {outer}, row {row}");
            }
        }
    }

    #[test]
    fn views_side_by_side_write_to_their_own_columns() {
        let mut data = vec![0.0; 3 * 7];
        let (left, right) = MatMut::new(&mut data, 3, 7).split_cols(4);
        for (number, mut block) in left.column_blocks(2).chain([right]).enumerate() {
            block.fill(-1.0);
            block.block(1..3, 1..2).fill(number as f32);
        }
        assert_eq!(data[..7], [-1.0; 7]);
        assert_eq!(data[7..14], data[14..]);
        assert_eq!(data[7..14], [-1.0, 0.0, -1.0, 1.0, -1.0, 2.0, -1.0]);
    }

    #[test]
    #[should_panic(expected = "do not fit")]
    fn a_view_beyond_its_slice_is_refused() {
        Mat::new(&[0.0; 5], 2, 3);
    }
}
