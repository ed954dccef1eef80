//! The weights: one flat buffer, with names and shapes for its parts, and a flat gradient beside it. The optimizer,
//! the checkpoint and every kernel work on slices of these buffers.

use crate::config::ModelConfig;
use crate::ops::buffer::prefer_large_pages;
use crate::random::Stream;
use std::ops::Range;
use std::sync::{Mutex, MutexGuard, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};

/// What a parameter is, which decides how the optimizer treats it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// A weight matrix: decayed.
    Matrix,
    /// The embedding or the output head: decayed, with a learning rate of its own.
    Embedding,
    /// A matrix of the router, or the gate of the shared experts: decayed, with a learning rate of its own.
    Router,
    /// A gain or bias vector: not decayed.
    Gain,
    /// Rows of which a step reads few: not decayed, and moved only where a gradient came.
    Table,
    /// State that no gradient reaches (the choice bias of bias balancing).
    State,
}

/// How a parameter starts.
#[derive(Clone, Copy, Debug)]
pub enum Init {
    /// Normal with this standard deviation, truncated at two of them.
    Normal(f64),
    Constant(f32),
}

impl Init {
    /// For matrices whose result is added to the residual stream: L layers add 2 L of them.
    pub fn residual(model: &ModelConfig) -> Self {
        match model.zero_init_residual {
            true => Init::Constant(0.0),
            false => Init::Normal(model.initializer_range / (2.0 * model.num_hidden_layers as f64).sqrt()),
        }
    }
}

/// One named tensor inside the flat buffer.
#[derive(Clone, Debug)]
pub struct Parameter {
    /// The Hugging Face name, e.g. `model.layers.0.mlp.experts.3.up_proj.weight`.
    pub name: String,
    pub shape: Vec<usize>,
    pub range: Range<usize>,
    pub kind: Kind,
    init: Init,
}

/// All weights with their gradients, in a fixed order.
pub struct Parameters {
    list: Vec<Parameter>,
    values: RwLock<Vec<f32>>,
    gradients: Mutex<Vec<f32>>,
    touched: Mutex<Vec<Range<usize>>>,
}

/// Lays parameters out one after the other.
#[derive(Default)]
pub struct Layout {
    list: Vec<Parameter>,
    len: usize,
}

impl Layout {
    /// Adds a parameter and returns its place.
    pub fn add(&mut self, name: String, shape: &[usize], kind: Kind, init: Init) -> Range<usize> {
        let range = self.len..self.len + shape.iter().product::<usize>();
        self.len = range.end;
        self.list.push(Parameter { name, shape: shape.to_vec(), range: range.clone(), kind, init });
        range
    }

    /// Parameters that are all zero.
    pub fn zeros(self) -> Parameters {
        let (values, gradients) = (vec![0.0; self.len], vec![0.0; self.len]);
        prefer_large_pages(&values);
        prefer_large_pages(&gradients);
        Parameters {
            list: self.list,
            values: RwLock::new(values),
            gradients: Mutex::new(gradients),
            touched: Mutex::default(),
        }
    }
}

impl Parameters {
    /// Draws the initial values, each from a stream of its parameter's name.
    pub fn initialize(&self, seed: u64) {
        let mut values = self.values_mut();
        for parameter in &self.list {
            let slice = &mut values[parameter.range.clone()];
            match parameter.init {
                Init::Constant(value) => slice.fill(value),
                Init::Normal(deviation) => {
                    let stream = Stream::new(seed, &parameter.name, &[]);
                    let count = slice.len() as u64;
                    for (value, index) in slice.iter_mut().zip(0..) {
                        let draw = (0..).map(|attempt| stream.normal(index + attempt * count)).find(|z| z.abs() < 2.0);
                        *value = (draw.unwrap_or(0.0) * deviation) as f32;
                    }
                }
            }
        }
    }

    pub fn list(&self) -> &[Parameter] {
        &self.list
    }

    /// The number of trainable weights.
    pub fn count(&self) -> usize {
        self.list.iter().filter(|parameter| parameter.kind != Kind::State).map(|parameter| parameter.range.len()).sum()
    }

    pub fn values(&self) -> RwLockReadGuard<'_, Vec<f32>> {
        self.values.read().unwrap_or_else(PoisonError::into_inner)
    }

    pub fn values_mut(&self) -> RwLockWriteGuard<'_, Vec<f32>> {
        self.values.write().unwrap_or_else(PoisonError::into_inner)
    }

    pub fn gradients(&self) -> MutexGuard<'_, Vec<f32>> {
        self.gradients.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The stretches of the flat buffer that are not tables. In a table, only the rows in [`Self::touched`] have a gradient
    /// other than 0.
    pub fn dense(&self) -> Vec<Range<usize>> {
        let mut stretches: Vec<Range<usize>> = Vec::new();
        for Parameter { range, .. } in self.list.iter().filter(|parameter| parameter.kind != Kind::Table) {
            match stretches.last_mut() {
                Some(last) if last.end == range.start => last.end = range.end,
                _ => stretches.push(range.clone()),
            }
        }
        stretches
    }

    /// Where rows of tables have a gradient since it was last cleared: ascending and disjoint.
    pub fn touched(&self) -> MutexGuard<'_, Vec<Range<usize>>> {
        self.touched.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Says that rows of tables have got a gradient.
    pub fn touch(&self, rows: Vec<Range<usize>>) {
        let mut touched = self.touched();
        touched.extend(rows);
        touched.sort_unstable_by_key(|row| row.start);
        touched.dedup();
    }

    pub fn clear_gradients(&self) {
        let mut gradients = self.gradients();
        self.dense().into_iter().chain(self.touched().drain(..)).for_each(|range| gradients[range].fill(0.0));
    }
}

/// The slices of `buffer` at `ranges`, which must be ascending and disjoint.
pub fn slices_mut<'a>(mut buffer: &'a mut [f32], ranges: &[Range<usize>]) -> Vec<&'a mut [f32]> {
    let mut start = 0;
    let mut slices = Vec::with_capacity(ranges.len());
    for range in ranges {
        let (upto, rest) = buffer.split_at_mut(range.end - start);
        slices.push(&mut upto[range.start - start..]);
        buffer = rest;
        start = range.end;
    }
    slices
}
