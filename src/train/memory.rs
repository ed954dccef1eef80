//! How much memory a training run takes, estimated from its configuration before anything is allocated, beside what
//! the system has to give.

use crate::config::{Config, ModelConfig, estimated_parameters};
use crate::error::Failure;
use anyhow::Result;
use std::fs;

/// Bytes of each parameter: weight, gradient and two moments in f32.
const BYTES_PER_PARAMETER: f64 = 16.0;
/// Bytes that a run of any size takes: the program, token ids in memory, a block of logits, the n-gram baseline.
const FIXED_BYTES: f64 = 100e6;
const MIB: f64 = (1 << 20) as f64;

/// What a run needs, in bytes.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Needed {
    /// Weights, gradients and moments, which are there for the whole run.
    pub parameters: f64,
    /// What a micro-batch keeps for its backward pass; about right, within a third or so.
    pub activations: f64,
}

impl Needed {
    pub fn of(config: &Config) -> Self {
        let parameters = BYTES_PER_PARAMETER * estimated_parameters(&config.model, config.tokenizer.vocab_size);
        let tokens = (config.train.batch_size * config.model.max_position_embeddings) as f64;
        Self { parameters, activations: 4.0 * tokens * numbers_per_token(&config.model) }
    }

    /// All of it, in bytes.
    pub fn total(&self) -> f64 {
        self.parameters + self.activations + FIXED_BYTES
    }

    /// Refuses a run whose parameters alone do not fit in `available` bytes, and warns of one that may not fit.
    ///
    /// # Errors
    /// [`Failure::Usage`]
    fn check(&self, available: f64) -> Result<()> {
        let remedy = "make the model smaller ([model]), train.batch_size or model.max_position_embeddings";
        let [needed, parameters, available_mib] = [self.total(), self.parameters, available].map(|bytes| bytes / MIB);
        if self.parameters > available {
            return Err(Failure::Usage(format!(
                "weights, gradients and moments take {parameters:.0} MiB, and {available_mib:.0} MiB of memory are \
                 available; {remedy}, or close other programs"
            ))
            .into());
        }
        if self.total() > available {
            log::warn!(
                "training takes about {needed:.0} MiB of memory, and {available_mib:.0} MiB are available; if it does not \
                 fit, {remedy}"
            );
        }
        Ok(())
    }
}

/// Compares what `config` needs with what the system has, where the system tells.
///
/// # Errors
/// [`Failure::Usage`] if the parameters cannot fit.
pub fn check(config: &Config) -> Result<()> {
    available().map_or(Ok(()), |available| Needed::of(config).check(available))
}

/// Numbers that all layers keep for each token, shared and routed experts with their three hidden vectors.
fn numbers_per_token(m: &ModelConfig) -> f64 {
    let [width, heads, kv_heads, channels] =
        [m.hidden_size, m.num_attention_heads, m.num_key_value_heads, m.head_dim].map(|size| size as f64);
    let attention = 3.0 * width + 2.0 * (heads + 2.0 * kv_heads) * channels + heads * channels;
    let swiglu = |hidden: usize| 3.0 * hidden as f64 + width;
    let dense_layers =
        if m.num_experts == 0 { m.num_hidden_layers } else { m.first_k_dense_replace.min(m.num_hidden_layers) };
    let moe_layers = (m.num_hidden_layers - dense_layers) as f64;
    let moe = (m.num_experts_per_tok + m.n_shared_experts) as f64 * swiglu(m.moe_intermediate_size)
        + 3.0 * m.num_experts as f64;
    let memory = 2.0 * (m.memory_ngrams.len() * m.memory_dim) as f64 + 2.0 * width;
    m.num_hidden_layers as f64 * (attention + 3.0 * width)
        + dense_layers as f64 * swiglu(m.intermediate_size)
        + moe_layers * moe
        + m.memory_layers.len() as f64 * memory
}

/// Bytes that this process may still take: what the system says is available, or what limits leave of it, whichever is
/// less. None where the system does not tell.
pub fn available() -> Option<f64> {
    let system = fs::read_to_string("/proc/meminfo").ok().and_then(|text| field(&text, "MemAvailable:"));
    let own = fs::read_to_string("/proc/self/status").ok();
    let limit = fs::read_to_string("/proc/self/limits").ok().and_then(|text| field(&text, "Max address space"));
    let taken = own.and_then(|text| field(&text, "VmSize:"));
    let address_space = limit.zip(taken).map(|(limit, taken)| limit - taken * 1024.0);
    [system.map(|kib| kib * 1024.0), control_group(), address_space].into_iter().flatten().reduce(f64::min)
}

/// What the limit of this process's control group (a container's memory) leaves.
fn control_group() -> Option<f64> {
    let number = |path: String| fs::read_to_string(path).ok()?.trim().parse::<f64>().ok();
    let groups = fs::read_to_string("/proc/self/cgroup").ok()?;
    let group = groups.lines().find_map(|line| line.strip_prefix("0::"))?;
    let folder = format!("/sys/fs/cgroup{}", group.trim_end_matches('/'));
    Some(number(format!("{folder}/memory.max"))? - number(format!("{folder}/memory.current"))?)
}

/// The first number behind `name` at the start of a line; none if there is no such line, or it says "unlimited".
fn field(text: &str, name: &str) -> Option<f64> {
    text.lines().find_map(|line| line.strip_prefix(name))?.split_whitespace().next()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_estimate_is_near_what_was_measured() {
        // scripts/memory_check.sh: the quickstart takes 243 MB.
        let config =
            crate::config::parse(include_str!("../../configs/quickstart.toml"), "quickstart.toml", &[]).unwrap();
        let megabytes = Needed::of(&config).total() / 1e6;
        assert!((160.0..330.0).contains(&megabytes), "{megabytes} MB");
    }

    #[test]
    fn a_model_that_cannot_fit_is_refused_with_both_numbers() {
        let needed = Needed { parameters: 3000.0 * MIB, activations: 500.0 * MIB };
        needed.check(8000.0 * MIB).unwrap();
        // Activations are an estimate: they do not stop a run.
        needed.check(3100.0 * MIB).unwrap();
        let error = needed.check(2000.0 * MIB).unwrap_err().to_string();
        assert!(error.contains("take 3000 MiB, and 2000 MiB of memory are available"), "{error}");
    }

    #[test]
    fn what_the_system_says_is_read() {
        let text = "MemTotal:       24684184 kB\nMemAvailable:   18425852 kB\n";
        assert_eq!(field(text, "MemAvailable:"), Some(18425852.0));
        assert_eq!(
            field("Max address space         unlimited            unlimited            bytes", "Max address space"),
            None
        );
        assert_eq!(
            field("Max address space         1048576000  unlimited  bytes", "Max address space"),
            Some(1048576000.0)
        );
        if cfg!(target_os = "linux") {
            assert!(available().unwrap() > 0.0);
        }
    }
}
