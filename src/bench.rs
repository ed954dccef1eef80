//! How fast this machine trains and samples a model, and how that compares with what its arithmetic allows.
//!
//! A training step is what the trainer does: forward, backward, gradient norm, update. Tokens are random, the model is
//! freshly initialised. Sampling is greedy, one sequence, with the cache of keys and values.

use crate::config::{Config, ModelConfig, TokenizerKind};
use crate::model::decode::{Decoder, Logits};
use crate::model::operation::{Direction, Mode, Pass, times};
use crate::model::transformer::Transformer;
use crate::ops::gemm::Precision;
use crate::ops::matmul::{Mat, MatMut, Store, matmul};
use crate::ops::pool;
use crate::optim::{Optimizer, gradient_norm};
use crate::random::Stream;
use anyhow::{Result, bail};
use serde::Serialize;
use std::collections::BTreeMap;
use std::time::{Duration, Instant};

/// Steps before the clock counts, and how long it counts at least.
const WARMUP_STEPS: u64 = 3;
const MIN_STEPS: usize = 10;
const MIN_TIME: Duration = Duration::from_secs(3);

/// What one workload gave.
#[derive(Debug, Serialize)]
pub struct Report {
    pub name: String,
    pub threads: usize,
    pub parameters: usize,
    pub active_parameters: usize,
    pub tokens_per_step: usize,
    pub training: Training,
    pub sampling: Sampling,
    /// The largest resident memory of the process so far, in MB; where the system tells.
    pub peak_memory_mb: Option<u64>,
}

/// Medians over steps.
#[derive(Debug, Serialize)]
pub struct Training {
    pub tokens_per_s: f64,
    pub ms_per_step: f64,
    pub gflop_per_s: f64,
    /// Of the matrix-product peak measured beside it.
    pub share_of_peak: f64,
    /// Milliseconds a step by operation.
    pub operations: BTreeMap<String, f64>,
}

#[derive(Debug, Serialize)]
pub struct Sampling {
    pub tokens_per_s: f64,
    pub new_tokens: usize,
}

/// Runs one workload. `peak_gflop_per_s` is that of [`matmul_peak`].
pub fn run(name: &str, config: &Config, peak_gflop_per_s: f64) -> Result<Report> {
    let vocab = vocab_size(config);
    let model = Transformer::new(&config.model, &config.router, vocab, config.train.seed)?;
    let tokens_per_step = config.train.batch_size * config.model.max_position_embeddings;
    let training = train(config, &model, peak_gflop_per_s)?;
    Ok(Report {
        name: name.to_owned(),
        threads: pool::threads(),
        parameters: model.parameters.count(),
        active_parameters: model.active_parameters(),
        tokens_per_step,
        sampling: sample(&model)?,
        training,
        peak_memory_mb: peak_memory_mb(),
    })
}

/// The vocabulary where no text is at hand: as configured, or that of the tokenizer's kind.
fn vocab_size(config: &Config) -> usize {
    match config.tokenizer.kind {
        TokenizerKind::Bytes => 257,
        TokenizerKind::Chars => 65,
        TokenizerKind::Bpe | TokenizerKind::File => config.tokenizer.vocab_size.max(1024),
    }
}

fn train(config: &Config, model: &Transformer, peak_gflop_per_s: f64) -> Result<Training> {
    let (batch, time) = (config.train.batch_size, config.model.max_position_embeddings);
    let mut optimizer = Optimizer::new(&config.optimizer, config.train.precision, &model.parameters);
    let mut step_times = Vec::new();
    let mut before = times();
    let mut step = 0;
    let mut optimizer_time = Duration::ZERO;
    while step_times.len() < MIN_STEPS || step_times.iter().sum::<Duration>() < MIN_TIME {
        if step == WARMUP_STEPS {
            (before, optimizer_time) = (times(), Duration::ZERO);
        }
        let started = Instant::now();
        let ids: Vec<u32> = random_ids(model.vocab_size, batch * time + 1, step);
        let mode = Mode::Train { seed: config.train.seed, step, loss_scale: 1.0 };
        let pass = Pass { batch, time, mode, precision: config.train.precision };
        let output = model.forward(&ids[..batch * time], &ids[1..], pass)?;
        output.loss.root.backward()?;
        let updating = Instant::now();
        let norm = gradient_norm(&model.parameters);
        if !optimizer.step(&model.parameters, config.optimizer.learning_rate, norm) {
            bail!("the weights are no longer finite after {step} steps; lower optimizer.learning_rate");
        }
        optimizer_time += updating.elapsed();
        if step >= WARMUP_STEPS {
            step_times.push(started.elapsed());
        }
        step += 1;
    }
    let steps = step_times.len() as f64;
    let ms = |time: Duration| time.as_secs_f64() * 1e3 / steps;
    let mut operations: BTreeMap<String, f64> = times()
        .into_iter()
        .map(|(key, spent)| {
            let earlier = before.get(&key).map_or(Duration::ZERO, |spent| spent.time);
            let direction = if key.1 == Direction::Forward { "forward" } else { "backward" };
            (format!("{} {direction}", key.0), ms(spent.time - earlier))
        })
        .collect();
    operations.insert("optimizer".into(), ms(optimizer_time));
    step_times.sort_unstable();
    let step_s = step_times[step_times.len() / 2].as_secs_f64();
    let tokens = (batch * time) as f64;
    let gflop_per_s = flop_per_token(&config.model, model.vocab_size) * tokens / step_s / 1e9;
    Ok(Training {
        tokens_per_s: tokens / step_s,
        ms_per_step: step_s * 1e3,
        gflop_per_s,
        share_of_peak: gflop_per_s / peak_gflop_per_s,
        operations,
    })
}

fn random_ids(vocab: usize, count: usize, step: u64) -> Vec<u32> {
    let stream = Stream::new(1, "bench", &[step]);
    (0..count as u64).map(|index| (stream.uniform(index) * vocab as f64) as u32).collect()
}

/// Floating-point operations of forward and backward pass for one token: six for each weight of a matrix that the
/// token meets, and causal attention's scores and sums.
fn flop_per_token(model: &ModelConfig, vocab: usize) -> f64 {
    let hidden = model.hidden_size;
    let heads = model.num_attention_heads * model.head_dim;
    let kv_heads = model.num_key_value_heads * model.head_dim;
    let attention = hidden * (2 * heads + 2 * kv_heads);
    let feed_forward = |layer| {
        if model.is_moe_layer(layer) {
            let experts = model.num_experts_per_tok + model.n_shared_experts;
            hidden * (model.num_experts + 3 * experts * model.moe_intermediate_size)
        } else {
            hidden * 3 * model.intermediate_size
        }
    };
    let layers: usize = (0..model.num_hidden_layers).map(|layer| attention + feed_forward(layer)).sum();
    let scores = model.num_hidden_layers * heads * model.max_position_embeddings;
    (6 * (layers + hidden * vocab + scores)) as f64
}

fn sample(model: &Transformer) -> Result<Sampling> {
    let time = model.model.max_position_embeddings;
    let prompt = (time / 2).clamp(1, 8);
    let new_tokens = time - prompt;
    let mut rates = Vec::new();
    let started = Instant::now();
    while rates.len() < 5 || started.elapsed() < MIN_TIME / 2 {
        let mut decoder = Decoder::new(model);
        let ids = random_ids(model.vocab_size, prompt, 0);
        let mut id = likeliest(&decoder.advance(&ids, Logits::Last)?.logits_NV);
        let started = Instant::now();
        for _ in 0..new_tokens {
            id = likeliest(&decoder.advance(&[id], Logits::Last)?.logits_NV);
        }
        rates.push(new_tokens as f64 / started.elapsed().as_secs_f64());
    }
    rates.sort_by(f64::total_cmp);
    Ok(Sampling { tokens_per_s: rates[rates.len() / 2], new_tokens })
}

fn likeliest(logits_V: &[f32]) -> u32 {
    let mut best = 0;
    for (id, logit) in logits_V.iter().enumerate() {
        if *logit > logits_V[best] {
            best = id;
        }
    }
    best as u32
}

/// GFLOP/s of matrix products of a size that fits the caches, on all threads: the median of some rounds.
pub fn matmul_peak(precision: Precision) -> f64 {
    const SIZE: usize = 384;
    const REPEATS: usize = 20;
    let operands: Vec<_> =
        (0..pool::threads()).map(|_| (vec![0.5f32; SIZE * SIZE], vec![0.25f32; SIZE * SIZE])).collect();
    let mut results: Vec<_> = operands.iter().map(|_| vec![0.0f32; SIZE * SIZE]).collect();
    let mut rates: Vec<f64> = (0..9)
        .map(|_| {
            let started = Instant::now();
            let tasks = results.iter_mut().zip(&operands).collect();
            pool::run(tasks, |(result, (a, b)): (&mut Vec<f32>, &(Vec<f32>, Vec<f32>))| {
                for _ in 0..REPEATS {
                    let (a, b) = (Mat::new(a, SIZE, SIZE), Mat::new(b, SIZE, SIZE));
                    matmul(MatMut::new(result, SIZE, SIZE), a, b, Store::Overwrite, precision);
                }
            });
            let operations = (2 * SIZE.pow(3) * REPEATS * pool::threads()) as f64;
            operations / started.elapsed().as_secs_f64() / 1e9
        })
        .collect();
    rates.sort_by(f64::total_cmp);
    rates[rates.len() / 2]
}

fn peak_memory_mb() -> Option<u64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find(|line| line.starts_with("VmHWM:"))?;
    line.split_whitespace().nth(1)?.parse::<u64>().ok().map(|kb| kb / 1024)
}
