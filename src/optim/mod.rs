//! What turns gradients into better weights: clipping by global norm (Pascanu et al. 2013), then for each weight the
//! rule of its kind, [`adamw`] or, for matrices if so configured, [`muon`]; and the learning-rate [`schedule`].
//!
//! Tables move row by row, only those rows that got a gradient, and their moments with them (as torch's `SparseAdam`):
//! a step costs what it touches.

mod adamw;
mod muon;
pub mod schedule;

use crate::config::{OptimizerConfig, OptimizerKind};
use crate::model::parameters::{Kind, Parameter, Parameters};
use crate::ops::buffer::prefer_large_pages;
use crate::ops::gemm::Precision;
use crate::ops::{pool, simd};
use std::ops::Range;
use std::sync::atomic::{AtomicBool, Ordering};

/// Numbers in one task of an element-wise rule.
const CHUNK: usize = 1 << 15;

/// Rows of a table in one task.
const ROWS: usize = 256;

/// The optimizer's state: one or two moments for every weight.
pub struct Optimizer {
    config: OptimizerConfig,
    /// Of the products in Muon.
    precision: Precision,
    /// Steps taken: t in the bias correction.
    pub steps: u64,
    /// Exponential average of the gradient, laid out like the parameters.
    pub exp_avg: Vec<f32>,
    /// That of its square; unused where [`Optimizer::has_second_moment`] says so.
    pub exp_avg_sq: Vec<f32>,
}

/// A part of the weights that one thread moves, with what moves them.
enum Task<'a> {
    AdamW {
        rule: adamw::Rule,
        values: &'a mut [f32],
        gradients: &'a mut [f32],
        moments: [&'a mut [f32]; 2],
    },
    /// AdamW on rows of a table: values, gradients and moments of each.
    Rows {
        rule: adamw::Rule,
        rows: Vec<[&'a mut [f32]; 4]>,
    },
    Muon {
        rule: muon::Rule,
        values: &'a mut [f32],
        gradients: &'a mut [f32],
        momentum: &'a mut [f32],
    },
}

impl Optimizer {
    pub fn new(config: &OptimizerConfig, precision: Precision, parameters: &Parameters) -> Self {
        let len = parameters.values().len();
        let (exp_avg, exp_avg_sq) = (vec![0.0; len], vec![0.0; len]);
        prefer_large_pages(&exp_avg);
        prefer_large_pages(&exp_avg_sq);
        Self { config: config.clone(), precision, steps: 0, exp_avg, exp_avg_sq }
    }

    /// Whether the rule for this parameter keeps an average of squares.
    pub fn has_second_moment(&self, parameter: &Parameter) -> bool {
        !moves_by_muon(&self.config, parameter.kind)
    }

    /// Moves every weight by its gradient and clears the gradients. `gradient_norm` is that of
    /// [`gradient_norm`]; where it exceeds the configured maximum, gradients are scaled down to it.
    ///
    /// Returns whether all weights and moments that moved are finite. If not, the step cannot be undone in place;
    /// [`Optimizer::find_bad_number`] says what is wrong.
    #[must_use]
    pub fn step(&mut self, parameters: &Parameters, learning_rate: f64, gradient_norm: f64) -> bool {
        self.steps += 1;
        let mut values = parameters.values_mut();
        let mut gradients = parameters.gradients();
        let mut touched = parameters.touched();
        let (mut matrices, mut chunks) = (Vec::new(), Vec::new());
        let clips = self.config.max_grad_norm > 0.0 && gradient_norm > self.config.max_grad_norm;
        let clip = if clips { (self.config.max_grad_norm / gradient_norm) as f32 } else { 1.0 };
        let (config, precision, steps) = (&self.config, self.precision, self.steps);
        let mut slices = [&mut values[..], &mut gradients[..], &mut self.exp_avg[..], &mut self.exp_avg_sq[..]];
        for parameter in parameters.list() {
            let mut own = slices.each_mut().map(|slice| {
                slice.split_off_mut(..parameter.range.len()).expect("buffers are as long as the parameters")
            });
            let learning_rate = learning_rate * multiplier(config, parameter.kind);
            match parameter.kind {
                Kind::State => (),
                kind if moves_by_muon(config, kind) => {
                    let rule = muon::Rule::new(config, &parameter.shape, learning_rate, clip, precision);
                    let [values, gradients, momentum, _] = own;
                    matrices.push(Task::Muon { rule, values, gradients, momentum });
                }
                Kind::Table => {
                    let rule = adamw::Rule::new(config, steps, Kind::Table, learning_rate, clip);
                    let mut rows = rows_of(own, parameter, &touched).peekable();
                    while rows.peek().is_some() {
                        chunks.push(Task::Rows { rule, rows: rows.by_ref().take(ROWS).collect() });
                    }
                }
                kind => {
                    let rule = adamw::Rule::new(config, steps, kind, learning_rate, clip);
                    while !own[0].is_empty() {
                        let count = own[0].len().min(CHUNK);
                        let chunk = own.each_mut().map(|slice| slice.split_off_mut(..count).expect("count is within"));
                        let [values, gradients, first, second] = chunk;
                        chunks.push(Task::AdamW { rule, values, gradients, moments: [first, second] });
                    }
                }
            }
        }
        // The longest first.
        matrices.append(&mut chunks);
        let finite = AtomicBool::new(true);
        pool::run(matrices, |task| {
            if !task.run() {
                finite.store(false, Ordering::Relaxed);
            }
        });
        touched.clear();
        finite.into_inner()
    }

    /// The first weight or moment that is not finite, in words.
    pub fn find_bad_number(&self, parameters: &Parameters) -> Option<String> {
        let values = parameters.values();
        let buffers =
            [("", &values[..]), ("the first moment of ", &self.exp_avg), ("the second moment of ", &self.exp_avg_sq)];
        for parameter in parameters.list() {
            for (what, buffer) in buffers {
                let slice = &buffer[parameter.range.clone()];
                if let Some(index) = slice.iter().position(|number| !number.is_finite()) {
                    let bad = slice.iter().filter(|number| !number.is_finite()).count();
                    let (name, first, all) = (&parameter.name, slice[index], slice.len());
                    return Some(format!("{what}{name}, {bad} of {all} numbers, the first, {first}, at index {index}"));
                }
            }
        }
        None
    }
}

/// The rows of a table that were touched, in each of the table's buffers.
fn rows_of<'a>(
    mut table: [&'a mut [f32]; 4],
    parameter: &Parameter,
    touched: &[Range<usize>],
) -> impl Iterator<Item = [&'a mut [f32]; 4]> {
    let Range { start, end } = parameter.range;
    let from = touched.partition_point(|row| row.start < start);
    let upto = touched.partition_point(|row| row.start < end);
    let mut position = start;
    touched[from..upto].iter().map(move |row| {
        let skipped = row.start - position;
        position = row.end;
        table.each_mut().map(|slice| {
            slice
                .split_off_mut(..skipped + row.len())
                .map(|part| &mut part[skipped..])
                .expect("rows lie in their table")
        })
    })
}

impl Task<'_> {
    /// Whether all numbers are finite afterwards.
    fn run(self) -> bool {
        match self {
            Task::AdamW { rule, values, gradients, moments: [first, second] } => {
                simd::vectorized!(|| adamw::update(rule, values, gradients, first, second))
            }
            Task::Rows { rule, rows } => simd::vectorized!(|| {
                let mut finite = true;
                for [values, gradients, first, second] in rows {
                    finite &= adamw::update(rule, values, gradients, first, second);
                }
                finite
            }),
            Task::Muon { rule, values, gradients, momentum } => muon::update(&rule, values, gradients, momentum),
        }
    }
}

/// Whether Muon is the rule for parameters of a kind; otherwise it is AdamW.
fn moves_by_muon(config: &OptimizerConfig, kind: Kind) -> bool {
    config.kind == OptimizerKind::Muon && kind == Kind::Matrix
}

/// What the learning rate is multiplied by for parameters of a kind.
fn multiplier(config: &OptimizerConfig, kind: Kind) -> f64 {
    match kind {
        Kind::Router => config.router_lr_multiplier,
        Kind::Embedding => config.embedding_lr_multiplier,
        Kind::Table => config.memory_lr_multiplier,
        Kind::Matrix | Kind::Gain | Kind::State => 1.0,
    }
}

/// The weight decay of parameters of a kind.
fn decay(config: &OptimizerConfig, kind: Kind) -> f64 {
    if matches!(kind, Kind::Gain | Kind::Table) { 0.0 } else { config.weight_decay }
}

/// The sum of squares: short runs in f32, added up in f64, so that long sums lose no precision.
fn sum_of_squares(numbers: &[f32]) -> f64 {
    simd::vectorized!(|| numbers.chunks(1024).map(|run| f64::from(simd::dot(run, run))).sum())
}

/// The global norm of all gradients, summed in a fixed order.
pub fn gradient_norm(parameters: &Parameters) -> f64 {
    let gradients = parameters.gradients();
    let stretches = parameters.dense();
    let chunks: Vec<&[f32]> = stretches.into_iter().flat_map(|range| gradients[range].chunks(CHUNK)).collect();
    let mut squares = vec![0.0f64; chunks.len()];
    pool::run(squares.iter_mut().zip(chunks).collect(), |(square, chunk): (&mut f64, &[f32])| {
        *square = sum_of_squares(chunk);
    });
    let row = |row: &Range<usize>| f64::from(simd::dot(&gradients[row.clone()], &gradients[row.clone()]));
    squares.extend(parameters.touched().iter().map(row));
    squares.iter().sum::<f64>().sqrt()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::parameters::{Init, Layout};

    fn parameters() -> Parameters {
        let mut layout = Layout::default();
        layout.add("matrix".into(), &[1, 3], Kind::Matrix, Init::Constant(1.0));
        layout.add("embedding".into(), &[1, 1], Kind::Embedding, Init::Constant(1.0));
        layout.add("router".into(), &[1], Kind::Router, Init::Constant(1.0));
        layout.add("gain".into(), &[1], Kind::Gain, Init::Constant(1.0));
        layout.add("state".into(), &[1], Kind::State, Init::Constant(1.0));
        let parameters = layout.zeros();
        parameters.initialize(1);
        parameters
    }

    #[test]
    fn a_table_s_rows_move_when_they_are_touched_and_rest_otherwise() {
        let mut layout = Layout::default();
        layout.add("before".into(), &[2], Kind::Gain, Init::Constant(1.0));
        layout.add("table".into(), &[4, 2], Kind::Table, Init::Constant(1.0));
        layout.add("other".into(), &[1, 2], Kind::Table, Init::Constant(1.0));
        layout.add("after".into(), &[3], Kind::Gain, Init::Constant(1.0));
        let (parameters, config) = (layout.zeros(), config());
        parameters.initialize(1);
        assert_eq!(parameters.dense(), [0..2, 12..15]);
        let mut optimizer = Optimizer::new(&config, Precision::F32, &parameters);
        // Row 1 of the table in steps 1 and 3, its row 3 and the other table in step 2.
        let row = |start: usize| start..start + 2;
        let steps = [vec![row(4)], vec![row(10), row(8), row(10)], vec![row(4)]];
        for rows in steps {
            parameters.gradients()[0] = 3.0;
            rows.iter().for_each(|row| parameters.gradients()[row.clone()].fill(2.0));
            let numbers = if rows.len() == 1 { 2 } else { 4 };
            parameters.touch(rows);
            let norm = gradient_norm(&parameters);
            assert!((norm - (9.0 + 4.0 * f64::from(numbers)).sqrt()).abs() < 1e-6, "{norm}");
            assert!(optimizer.step(&parameters, 0.01, 0.5));
            assert!(parameters.touched().is_empty() && parameters.gradients().iter().all(|&gradient| gradient == 0.0));
        }
        // A row that rests keeps its moments; the bias correction counts all steps.
        let moved = |steps: &[i32]| {
            let (mut value, mut m, mut v) = (1.0, 0.0, 0.0);
            for &step in steps {
                m = config.beta1 * m + (1.0 - config.beta1) * 2.0;
                v = config.beta2 * v + (1.0 - config.beta2) * 4.0;
                let (m_hat, v_hat) = (m / (1.0 - config.beta1.powi(step)), v / (1.0 - config.beta2.powi(step)));
                value -= 0.04 * m_hat / (v_hat.sqrt() + config.epsilon);
            }
            value
        };
        let values = parameters.values();
        for (place, expected) in [(2, 1.0), (4, moved(&[1, 3])), (6, 1.0), (8, moved(&[2])), (10, moved(&[2]))] {
            for value in &values[place..place + 2] {
                assert!((f64::from(*value) - expected).abs() < 1e-6, "{place}: {value} != {expected}");
            }
        }
        parameters.touch(vec![row(4)]);
        parameters.gradients()[4] = 1.0;
        parameters.clear_gradients();
        assert!(parameters.touched().is_empty() && parameters.gradients().iter().all(|&gradient| gradient == 0.0));
    }

    fn config() -> OptimizerConfig {
        let defaults = crate::config::Config::default().optimizer;
        OptimizerConfig {
            kind: OptimizerKind::AdamW,
            max_grad_norm: 1.0,
            weight_decay: 0.1,
            embedding_lr_multiplier: 2.0,
            router_lr_multiplier: 3.0,
            memory_lr_multiplier: 4.0,
            ..defaults
        }
    }

    /// Algorithm 2 of the paper, one number at a time, in f64.
    fn reference(gradients: &[f64], lr: f64, decay: f64, config: &OptimizerConfig) -> f64 {
        let (mut value, mut m, mut v) = (1.0, 0.0, 0.0);
        for (t, gradient) in gradients.iter().enumerate() {
            m = config.beta1 * m + (1.0 - config.beta1) * gradient;
            v = config.beta2 * v + (1.0 - config.beta2) * gradient * gradient;
            let m_hat = m / (1.0 - config.beta1.powi(t as i32 + 1));
            let v_hat = v / (1.0 - config.beta2.powi(t as i32 + 1));
            value -= lr * (m_hat / (v_hat.sqrt() + config.epsilon) + decay * value);
        }
        value
    }

    #[test]
    fn steps_follow_the_algorithm_with_groups_of_their_own() {
        let (parameters, config) = (parameters(), config());
        let mut optimizer = Optimizer::new(&config, Precision::F32, &parameters);
        for gradient in [0.1f32, -0.2, 0.05] {
            parameters.gradients().fill(gradient);
            assert!(optimizer.step(&parameters, 0.01, 0.5));
        }
        let gradients = [0.1, -0.2, 0.05];
        let expected = [
            reference(&gradients, 0.01, 0.1, &config),
            reference(&gradients, 0.02, 0.1, &config),
            reference(&gradients, 0.03, 0.1, &config),
            reference(&gradients, 0.01, 0.0, &config),
            1.0,
        ];
        let values = parameters.values();
        for (value, expected) in [values[0], values[3], values[4], values[5], values[6]].into_iter().zip(expected) {
            assert!((f64::from(value) - expected).abs() < 1e-6, "{value} != {expected}");
        }
        assert!(parameters.gradients()[..6].iter().all(|&gradient| gradient == 0.0));
    }

    #[test]
    fn a_step_tells_of_a_weight_or_moment_that_is_not_finite_whatever_rule_moves_it() {
        let mut layout = Layout::default();
        layout.add("matrix".into(), &[2, 3], Kind::Matrix, Init::Constant(1.0));
        layout.add("table".into(), &[4, 2], Kind::Table, Init::Constant(1.0));
        layout.add("gain".into(), &[70_000], Kind::Gain, Init::Constant(1.0));
        let row = |start: usize| start..start + 2;
        let parameters = layout.zeros();
        for kind in [OptimizerKind::AdamW, OptimizerKind::Muon] {
            let config = OptimizerConfig { kind, ..config() };
            for (place, owner) in [(4, "matrix"), (9, "table"), (69_000, "gain")] {
                for buffer in ["", "the first moment of ", "the second moment of "] {
                    parameters.initialize(1);
                    let mut optimizer = Optimizer::new(&config, Precision::F32, &parameters);
                    parameters.touch(vec![row(8)]);
                    assert!(optimizer.step(&parameters, 0.01, 0.5) && optimizer.find_bad_number(&parameters).is_none());
                    if buffer.contains("second") && owner == "matrix" && kind == OptimizerKind::Muon {
                        continue;
                    }
                    match buffer {
                        "" => parameters.values_mut()[place] = f32::INFINITY,
                        "the first moment of " => optimizer.exp_avg[place] = f32::NAN,
                        _ => optimizer.exp_avg_sq[place] = f32::INFINITY,
                    }
                    parameters.touch(vec![row(8)]);
                    assert!(!optimizer.step(&parameters, 0.01, 0.5), "{kind:?}: {buffer}{owner}");
                    let found = optimizer.find_bad_number(&parameters).unwrap();
                    assert!(found.contains(owner) && found.contains(" at index "), "{kind:?}: {found}");
                }
            }
        }
    }

    #[test]
    fn a_gradient_beyond_the_maximum_norm_is_scaled_down_to_it() {
        let (parameters, config) = (parameters(), config());
        parameters.gradients()[..2].copy_from_slice(&[30.0, 40.0]);
        let norm = gradient_norm(&parameters);
        assert!((norm - 50.0).abs() < 1e-9);
        let mut optimizer = Optimizer::new(&config, Precision::F32, &parameters);
        assert!(optimizer.step(&parameters, 0.01, norm));
        assert!((optimizer.exp_avg[0] - 0.1 * 0.6).abs() < 1e-6 && (optimizer.exp_avg[1] - 0.1 * 0.8).abs() < 1e-6);
    }

    #[test]
    fn muon_moves_matrices_and_leaves_the_rest_to_adamw() {
        let (parameters, config) = (parameters(), OptimizerConfig { kind: OptimizerKind::Muon, ..config() });
        let mut optimizer = Optimizer::new(&config, Precision::F32, &parameters);
        for gradient in [0.1f32, -0.2, 0.05] {
            parameters.gradients().fill(gradient);
            assert!(optimizer.step(&parameters, 0.01, 0.5));
        }
        let values = parameters.values();
        let gradients = [0.1, -0.2, 0.05];
        assert!((f64::from(values[3]) - reference(&gradients, 0.02, 0.1, &config)).abs() < 1e-6);
        assert!(values[0] == values[1] && values[0] != 1.0);
        assert!(optimizer.exp_avg_sq[..3].iter().all(|&square| square == 0.0));
        assert!(
            !optimizer.has_second_moment(&parameters.list()[0]) && optimizer.has_second_moment(&parameters.list()[1])
        );
        assert!(parameters.gradients()[..6].iter().all(|&gradient| gradient == 0.0));
    }
}
