//! The experts: SwiGLU feed-forward networks (Shazeer 2020), y = W_down (silu(W_gate x) * W_up x), each over its own
//! rows of one matrix of gathered tokens, so that no work is spent on padding (Gale et al. 2022, "MegaBlocks").
//!
//! Experts are a table of row ranges, widths and weights: they may differ in width and have no rows at all. A dense
//! feed-forward layer is one expert with every row.

use super::buffer::Buffer;
use super::dropout::Dropout;
use super::gemm::Precision;
use super::matmul::{Mat, MatMut, Store, matmul};
use super::{pool, simd};
use std::ops::Range;

/// Rows of one task: enough that packing a weight for a matrix product is paid for, few enough to share the work out.
const MAX_ROWS: usize = 256;

/// One expert's rows and weights.
#[derive(Clone, Debug)]
pub struct Expert<'a> {
    pub rows: Range<usize>,
    /// W_gate above W_up, (2F, D).
    pub gate_up_2FD: &'a [f32],
    /// W_down, (D, F).
    pub down_DF: &'a [f32],
    pub dropout: Option<ActivationDropout<'a>>,
}

/// Dropout of the F hidden activations (the "expert dropout" of Fedus et al. 2021, section 2.4): what is dropped depends
/// on token and expert, not on the row that the pair happens to have.
#[derive(Clone, Copy, Debug)]
pub struct ActivationDropout<'a> {
    pub dropout: Dropout,
    /// The token of each gathered row; empty where rows are tokens.
    pub tokens_S: &'a [u32],
    /// The expert's number, and how many there are.
    pub expert: usize,
    pub experts: usize,
}

impl ActivationDropout<'_> {
    /// Drops activations of a row, or their gradient.
    pub fn apply(&self, row: usize, a_F: &mut [f32]) {
        let token = self.tokens_S.get(row).map_or(row, |&token| token as usize);
        self.dropout.apply(a_F, (token * self.experts + self.expert) * a_F.len());
    }
}

impl Expert<'_> {
    fn drop_out(&self, row: usize, a_F: &mut [f32]) {
        if let Some(dropout) = &self.dropout {
            dropout.apply(row, a_F);
        }
    }

    fn width(&self, hidden: usize) -> usize {
        self.down_DF.len() / hidden
    }
}

/// Numbers in the pre-activations of all experts: 2F for every row.
pub fn preactivations_len(hidden: usize, experts: &[Expert]) -> usize {
    experts.iter().map(|expert| expert.rows.len() * 2 * expert.width(hidden)).sum()
}

/// A piece of one expert's rows with the slices that a task works on.
struct Piece<'a, 'w> {
    expert: &'a Expert<'w>,
    rows: Range<usize>,
    width: usize,
    slices: Vec<&'a mut [f32]>,
}

/// What a buffer holds for one row of an expert of width F.
#[derive(Clone, Copy)]
enum PerRow {
    One,
    Hidden,
    Width,
    TwoWidths,
}

/// Cuts every expert's rows into pieces, and each buffer along with them. The largest pieces come first.
fn pieces<'a, 'w>(
    hidden: usize,
    experts: &'a [Expert<'w>],
    mut buffers: Vec<(&'a mut [f32], PerRow)>,
) -> Vec<Piece<'a, 'w>> {
    let mut pieces = Vec::new();
    for expert in experts {
        let width = expert.width(hidden);
        let count = expert.rows.len().div_ceil(MAX_ROWS).max(1);
        let size = expert.rows.len().div_ceil(count).next_multiple_of(8);
        let mut start = expert.rows.start;
        while start < expert.rows.end {
            let rows = start..expert.rows.end.min(start + size);
            start = rows.end;
            let cut = |(buffer, per_row): &mut (&'a mut [f32], PerRow)| {
                let numbers = match per_row {
                    PerRow::One => 1,
                    PerRow::Hidden => hidden,
                    PerRow::Width => width,
                    PerRow::TwoWidths => 2 * width,
                };
                buffer.split_off_mut(..rows.len() * numbers).expect("a buffer covers all rows")
            };
            let slices = buffers.iter_mut().map(cut).collect();
            pieces.push(Piece { expert, rows, width, slices });
        }
    }
    pieces.sort_by_key(|piece| std::cmp::Reverse(piece.rows.len() * piece.width));
    pieces
}

/// Computes `y_SD` for the gathered rows `x_SD`. `u` receives the pre-activations (W_gate x next to W_up x in every
/// row), one expert's after the other's.
pub fn forward(hidden: usize, experts: &[Expert], x_SD: &[f32], u: &mut [f32], y_SD: &mut [f32], precision: Precision) {
    let pieces = pieces(hidden, experts, vec![(u, PerRow::TwoWidths), (y_SD, PerRow::Hidden)]);
    pool::run(pieces, |piece| {
        let (rows, width) = (piece.rows.len(), piece.width);
        let [u, y_SD] = <[&mut [f32]; 2]>::try_from(piece.slices).expect("two buffers were cut");
        let x = Mat::new(&x_SD[piece.rows.start * hidden..], rows, hidden);
        let gate_up = Mat::new(piece.expert.gate_up_2FD, 2 * width, hidden);
        matmul(MatMut::new(u, rows, 2 * width), x, gate_up.t(), Store::Overwrite, precision);
        let mut a_SF = Buffer::any(rows * width);
        simd::vectorized!(|| {
            for ((u, a), row) in u.chunks_exact(2 * width).zip(a_SF.chunks_exact_mut(width)).zip(piece.rows.clone()) {
                activate(u, a);
                piece.expert.drop_out(row, a);
            }
        });
        let down = Mat::new(piece.expert.down_DF, hidden, width);
        matmul(MatMut::new(y_SD, rows, hidden), Mat::new(&a_SF, rows, width), down.t(), Store::Overwrite, precision);
    });
}

/// a = silu(gate) * up for one row of pre-activations.
#[inline(always)]
pub fn activate(u: &[f32], a: &mut [f32]) {
    let (gate, up) = u.split_at(a.len());
    for i in 0..a.len() {
        a[i] = gate[i] * simd::sigmoid(gate[i]) * up[i];
    }
}

/// What the backward pass reads: the gathered rows, the weight (gate) of each row in the output, and the gradient of
/// each row's token before that weight.
pub struct Upstream<'a> {
    pub x_SD: &'a [f32],
    pub gates_S: &'a [f32],
    pub dy_SD: &'a [f32],
    pub precision: Precision,
}

/// The backward pass for an output sum_s gate_s y_s. Writes the gradients of the rows and of the gates, and adds those
/// of the weights to `dweights` (a `(gate_up, down)` pair of slices an expert). `u` is used up.
///
/// The gate's gradient is dy . y = (W_down^T dy) . a: outputs of experts are never stored.
pub fn backward(
    hidden: usize,
    experts: &[Expert],
    upstream: &Upstream,
    u: &mut [f32],
    dx_SD: &mut [f32],
    dgates_S: &mut [f32],
    dweights: Vec<(&mut [f32], &mut [f32])>,
) {
    let mut a_SF = Buffer::any(u.len() / 2);
    let buffers = vec![
        (&mut *u, PerRow::TwoWidths),
        (&mut *a_SF, PerRow::Width),
        (dx_SD, PerRow::Hidden),
        (dgates_S, PerRow::One),
    ];
    pool::run(pieces(hidden, experts, buffers), |piece| backward_piece(hidden, piece, upstream));
    weight_gradients(hidden, experts, upstream, u, &a_SF, dweights);
}

/// Gradients of one piece's rows: replaces `u` by its gradient and leaves gate * a in `a`.
fn backward_piece(hidden: usize, piece: Piece, upstream: &Upstream) {
    let (rows, width) = (piece.rows.len(), piece.width);
    let [u, a_SF, dx_SD, dgates_S] = <[&mut [f32]; 4]>::try_from(piece.slices).expect("four buffers were cut");
    let dy = Mat::new(&upstream.dy_SD[piece.rows.start * hidden..], rows, hidden);
    let mut da_SF = Buffer::any(rows * width);
    let down = Mat::new(piece.expert.down_DF, hidden, width);
    matmul(MatMut::new(&mut da_SF, rows, width), dy, down, Store::Overwrite, upstream.precision);
    simd::vectorized!(|| {
        for (row, gate) in upstream.gates_S[piece.rows.clone()].iter().enumerate() {
            let (u, a) = (&mut u[row * 2 * width..][..2 * width], &mut a_SF[row * width..][..width]);
            let da = &mut da_SF[row * width..][..width];
            piece.expert.drop_out(piece.rows.start + row, da);
            dgates_S[row] = backward_activation(u, a, da, *gate);
            piece.expert.drop_out(piece.rows.start + row, a);
        }
    });
    let gate_up = Mat::new(piece.expert.gate_up_2FD, 2 * width, hidden);
    matmul(
        MatMut::new(dx_SD, rows, hidden),
        Mat::new(u, rows, 2 * width),
        gate_up,
        Store::Overwrite,
        upstream.precision,
    );
}

/// One row: replaces the pre-activations by their gradient, writes `weight * a`, and returns da . a, the gradient of
/// the weight. `da` is used up.
#[inline(always)]
fn backward_activation(u: &mut [f32], a: &mut [f32], da: &mut [f32], weight: f32) -> f32 {
    let (gate, up) = u.split_at_mut(a.len());
    let (up, da) = (&mut up[..a.len()], &mut da[..a.len()]);
    for i in 0..a.len() {
        let sigmoid = simd::sigmoid(gate[i]);
        let silu = gate[i] * sigmoid;
        let (activation, weighted) = (silu * up[i], weight * da[i]);
        gate[i] = weighted * up[i] * (sigmoid + silu * (1.0 - sigmoid));
        up[i] = weighted * silu;
        a[i] = weight * activation;
        da[i] *= activation;
    }
    simd::sum(da)
}

/// A block of rows of one weight's gradient: `dst += left right`, summed over an expert's rows.
struct GradientBlock<'a> {
    dst: &'a mut [f32],
    left: Mat<'a>,
    right: Mat<'a>,
    cost: usize,
}

fn weight_gradients(
    hidden: usize,
    experts: &[Expert],
    upstream: &Upstream,
    du: &[f32],
    a_SF: &[f32],
    dweights: Vec<(&mut [f32], &mut [f32])>,
) {
    let total: usize = experts.iter().map(|expert| expert.rows.len() * 3 * expert.width(hidden)).sum();
    let (mut blocks, mut du_start, mut a_start) = (Vec::new(), 0, 0);
    for (expert, (dgate_up, ddown)) in experts.iter().zip(dweights) {
        let (rows, width, first) = (expert.rows.len(), expert.width(hidden), expert.rows.start * hidden);
        if rows == 0 {
            continue;
        }
        let du = (&du[du_start..][..rows * 2 * width], 2 * width);
        let a = Mat::new(&a_SF[a_start..], rows, width);
        let x = Mat::new(&upstream.x_SD[first..], rows, hidden);
        let dy = (&upstream.dy_SD[first..][..rows * hidden], hidden);
        du_start += rows * 2 * width;
        a_start += rows * width;
        for (dst, (left, left_width), right, right_width) in [(dgate_up, du, x, hidden), (ddown, dy, a, width)] {
            // Of the whole layer's work no block is more than a sixteenth, as far as 32 rows at least allow.
            let cost = rows * left_width * right_width / hidden;
            let size = left_width.div_ceil((cost * 16).div_ceil(total)).next_multiple_of(8).max(32);
            for (block, dst) in dst.chunks_mut(size * right_width).enumerate() {
                let count = dst.len() / right_width;
                let left = Mat::strided(&left[block * size..], rows, count, left_width).t();
                blocks.push(GradientBlock { dst, left, right, cost: count * right_width * rows });
            }
        }
    }
    blocks.sort_by_key(|block| std::cmp::Reverse(block.cost));
    pool::run(blocks, |block| {
        let (rows, cols) = (block.left.rows(), block.right.cols());
        matmul(MatMut::new(block.dst, rows, cols), block.left, block.right, Store::Add, upstream.precision);
    });
}
