//! Joins our kernels to candle's graph: an [`Operation`] on slices becomes a node whose backward pass candle calls.
//! Weights do not travel as tensors: operations read them from [`Parameters`](super::parameters::Parameters) and add
//! their gradients there.

use crate::ops::dropout::Dropout;
use crate::ops::gemm::Precision;
use crate::random::Stream;
use candle_core::{CpuStorage, CustomOp1, Layout, Result, Shape, Storage, Tensor, bail};
use std::collections::BTreeMap;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

/// What one run through the model is for.
#[derive(Clone, Copy, Debug)]
pub struct Pass {
    /// Sequences B and positions T of the batch.
    pub batch: usize,
    pub time: usize,
    pub mode: Mode,
    /// Of matrix products; the router's are in f32 always.
    pub precision: Precision,
}

#[derive(Clone, Copy, Debug)]
pub enum Mode {
    /// Keep what the backward pass needs; draw dropout and router noise from `stream(seed, purpose, [step, layer])`.
    /// `step` counts micro-batches, and `loss_scale` is one over their number in an optimizer step.
    Train { seed: u64, step: u64, loss_scale: f32 },
    /// Keep nothing; no randomness.
    Evaluate,
    /// As [`Mode::Evaluate`], with one expert taken out.
    Knockout(Knockout),
}

/// An expert that does not serve its tokens, to see what they lose by it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Knockout {
    /// The transformer layer.
    pub layer: usize,
    pub expert: usize,
    pub removal: Removal,
}

/// What becomes of the tokens that chose the missing expert.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Removal {
    /// The router chooses among the other experts, its probabilities renormalised over them.
    Renormalised,
    /// The expert's output is zero; its gate is lost, those of the others stay as they were.
    Zeroed,
}

impl Pass {
    /// The number of tokens N.
    pub fn tokens(&self) -> usize {
        self.batch * self.time
    }

    pub fn is_training(&self) -> bool {
        matches!(self.mode, Mode::Train { .. })
    }

    /// What the batch's mean loss is multiplied by in the gradient.
    pub fn loss_scale(&self) -> f32 {
        match self.mode {
            Mode::Train { loss_scale, .. } => loss_scale,
            Mode::Evaluate | Mode::Knockout(_) => 1.0,
        }
    }

    /// The random stream of this pass for one purpose in one layer; none when evaluating.
    pub fn stream(&self, purpose: &str, layer: usize) -> Option<Stream> {
        match self.mode {
            Mode::Train { seed, step, .. } => Some(Stream::new(seed, purpose, &[step, layer as u64])),
            Mode::Evaluate | Mode::Knockout(_) => None,
        }
    }

    /// The dropout of this pass for one purpose in one layer; none when evaluating, or if nothing is to be dropped.
    pub fn dropout(&self, purpose: &str, layer: usize, probability: f64) -> Option<Dropout> {
        let stream = self.stream(purpose, layer).filter(|_| probability > 0.0)?;
        Some(Dropout::new(probability, stream))
    }

    /// The expert that is missing in this layer, if one is.
    pub fn knockout(&self, layer: usize) -> Option<Knockout> {
        match self.mode {
            Mode::Knockout(knockout) if knockout.layer == layer => Some(knockout),
            _ => None,
        }
    }
}

/// A differentiable function of one tensor. A value of this type serves a single forward and backward pass and may
/// keep what the latter needs.
pub trait Operation: Send + Sync + 'static {
    const NAME: &'static str;

    /// The result and its dimensions.
    fn forward(&self, x: &[f32]) -> Result<(Vec<f32>, Vec<usize>)>;

    /// The gradient with respect to `x`, given that of the result; adds the gradients of weights to theirs. `None`
    /// where `x` has none.
    fn backward(&self, x: &[f32], dy: &[f32]) -> Result<Option<Vec<f32>>>;
}

/// What a forward pass leaves for its backward pass.
pub struct Slot<T>(Mutex<Option<T>>);

impl<T> Default for Slot<T> {
    fn default() -> Self {
        Self(Mutex::new(None))
    }
}

impl<T> Slot<T> {
    pub fn put(&self, value: T) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = Some(value);
    }

    /// What was put; an error if the forward pass kept nothing or a backward pass has run already.
    pub fn take(&self) -> Result<T> {
        match self.0.lock().unwrap_or_else(PoisonError::into_inner).take() {
            Some(value) => Ok(value),
            None => bail!("there are no activations for a backward pass here"),
        }
    }
}

/// Applies an operation to a tensor as one node of candle's graph.
pub fn apply(x: &Tensor, operation: impl Operation) -> Result<Tensor> {
    x.apply_op1(Node(operation))
}

struct Node<O>(O);

/// Time spent in operations since the start of the program.
static TIMES: Mutex<BTreeMap<(&str, Direction), Spent>> = Mutex::new(BTreeMap::new());

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Direction {
    Forward,
    Backward,
}

/// How often an operation ran, and for how long altogether.
#[derive(Clone, Copy, Debug, Default)]
pub struct Spent {
    pub calls: u64,
    pub time: Duration,
}

/// The time spent in each operation so far.
pub fn times() -> BTreeMap<(&'static str, Direction), Spent> {
    TIMES.lock().unwrap_or_else(PoisonError::into_inner).clone()
}

/// Runs a part of a step and books its time under `name`.
pub fn timed<T>(name: &'static str, direction: Direction, part: impl FnOnce() -> T) -> T {
    let started = Instant::now();
    let result = part();
    let mut times = TIMES.lock().unwrap_or_else(PoisonError::into_inner);
    let spent = times.entry((name, direction)).or_default();
    spent.calls += 1;
    spent.time += started.elapsed();
    result
}

impl<O: Operation> CustomOp1 for Node<O> {
    fn name(&self) -> &'static str {
        O::NAME
    }

    fn cpu_fwd(&self, storage: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        let x = contiguous(storage, layout, O::NAME)?;
        let (result, dims) = timed(O::NAME, Direction::Forward, || self.0.forward(x))?;
        Ok((CpuStorage::F32(result), Shape::from(dims)))
    }

    fn bwd(&self, x: &Tensor, _result: &Tensor, dy: &Tensor) -> Result<Option<Tensor>> {
        let dy = dy.contiguous()?;
        let (x_storage, x_layout) = x.storage_and_layout();
        let (dy_storage, dy_layout) = dy.storage_and_layout();
        let (Storage::Cpu(x_storage), Storage::Cpu(dy_storage)) = (&*x_storage, &*dy_storage) else {
            bail!("{} runs on the CPU alone", O::NAME);
        };
        let x_slice = contiguous(x_storage, x_layout, O::NAME)?;
        let dy_slice = contiguous(dy_storage, dy_layout, O::NAME)?;
        let dx = timed(O::NAME, Direction::Backward, || self.0.backward(x_slice, dy_slice))?;
        dx.map(|dx| Tensor::from_vec(dx, x.shape(), x.device())).transpose()
    }
}

fn contiguous<'a>(storage: &'a CpuStorage, layout: &Layout, name: &str) -> Result<&'a [f32]> {
    let CpuStorage::F32(numbers) = storage else { bail!("{name} wants f32 numbers") };
    match layout.contiguous_offsets() {
        Some((start, end)) => Ok(&numbers[start..end]),
        None => bail!("{name} wants a contiguous tensor"),
    }
}
