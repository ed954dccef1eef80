//! The configuration file: what each section holds. `defaults.toml` is the one place where defaults and their
//! explanations live; a user's file is laid over it ([`load()`]), then checked as a whole.

mod load;
pub mod shipped;
mod validate;

pub use load::{DEFAULTS, Draft, load, parse};
pub use validate::estimated_parameters;

use crate::ops::gemm::Precision;
use serde::{Deserialize, Serialize};
use std::path::Path;

/// A whole configuration: every key has a value.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    pub data: DataConfig,
    pub tokenizer: TokenizerConfig,
    pub model: ModelConfig,
    pub router: RouterConfig,
    pub optimizer: OptimizerConfig,
    pub train: TrainConfig,
}

impl Config {
    /// Tokens of an optimizer step.
    pub fn tokens_per_step(&self) -> usize {
        self.train.batch_size * self.train.gradient_accumulation_steps * self.model.max_position_embeddings
    }

    /// Makes the paths of texts and tokenizer independent of the current directory: where `data.directory` is empty it
    /// becomes `directory`. That may be empty as well, and then nothing changes.
    pub fn anchor(&mut self, directory: &str) {
        let data = &mut self.data;
        if data.directory.is_empty() {
            data.directory = directory.into();
        } else if let Ok(absolute) = std::path::absolute(&data.directory)
            && let Some(absolute) = absolute.to_str()
        {
            data.directory = absolute.into();
        }
        if !self.tokenizer.path.is_empty()
            && let Some(path) = Path::new(&data.directory).join(&self.tokenizer.path).to_str()
        {
            self.tokenizer.path = path.into();
        }
    }
}

/// Where text comes from and how it is split.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DataConfig {
    #[serde(default)]
    pub directory: String,
    pub sources: Vec<String>,
    #[serde(default)]
    pub exclude: Vec<String>,
    #[serde(default)]
    pub on_bad_file: OnBadFile,
    pub keep_timestamps: bool,
    #[serde(default = "text_column")]
    pub text_column: String,
    pub keep_speakers: bool,
    pub validation_fraction: f64,
}

/// Of runs that began before the key existed.
fn text_column() -> String {
    "text".to_string()
}

/// What to do about a file that was found by searching and cannot be read.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum OnBadFile {
    #[default]
    Skip,
    Stop,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum TokenizerKind {
    Bpe,
    Bytes,
    Chars,
    File,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TokenizerConfig {
    pub kind: TokenizerKind,
    pub vocab_size: usize,
    pub path: String,
}

/// The shape of the transformer, under the names that Hugging Face configurations use.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ModelConfig {
    pub hidden_size: usize,
    pub num_hidden_layers: usize,
    pub num_attention_heads: usize,
    pub num_key_value_heads: usize,
    pub head_dim: usize,
    pub max_position_embeddings: usize,
    pub rope_theta: f64,
    #[serde(default = "whole")]
    pub partial_rotary_factor: f64,
    pub rms_norm_eps: f64,
    pub qk_norm: bool,
    #[serde(default)]
    pub qk_norm_across_heads: bool,
    #[serde(default)]
    pub qkv_bias: bool,
    pub tie_word_embeddings: bool,
    pub num_experts: usize,
    pub num_experts_per_tok: usize,
    pub moe_intermediate_size: usize,
    pub n_shared_experts: usize,
    pub shared_expert_gate: bool,
    pub first_k_dense_replace: usize,
    pub intermediate_size: usize,
    #[serde(default)]
    pub memory_layers: Vec<usize>,
    #[serde(default)]
    pub memory_ngrams: Vec<usize>,
    #[serde(default)]
    pub memory_slots: usize,
    #[serde(default)]
    pub memory_dim: usize,
    pub initializer_range: f64,
    #[serde(default)]
    pub zero_init_residual: bool,
    pub hidden_dropout: f64,
    #[serde(default)]
    pub expert_dropout: f64,
    #[serde(default)]
    pub attention_dropout: f64,
}

/// How many tokens a memory's n-grams may have.
const NGRAM_ORDERS: std::ops::RangeInclusive<usize> = 2..=4;
/// The most rows of a memory's table.
pub const MAX_MEMORY_SLOTS: usize = 1 << 24;

/// All channels turn where a checkpoint does not say otherwise.
fn whole() -> f64 {
    1.0
}

impl ModelConfig {
    /// How many channels of a head RoPE turns.
    pub fn rotary_dim(&self) -> usize {
        (self.head_dim as f64 * self.partial_rotary_factor) as usize
    }

    /// Replaces the zeros that stand for "derived from another key" by what they derive to. `head_dim` stays 0 where
    /// the heads do not divide `hidden_size`, which is refused.
    pub fn resolve(&mut self) {
        if self.num_key_value_heads == 0 {
            self.num_key_value_heads = self.num_attention_heads;
        }
        let (width, heads) = (self.hidden_size, self.num_attention_heads);
        if self.head_dim == 0 && heads > 0 && width % heads == 0 {
            self.head_dim = width / heads;
        }
    }

    /// Whether each token reads a memory before the attention of layer `layer`.
    pub fn has_memory(&self, layer: usize) -> bool {
        self.memory_layers.contains(&layer)
    }

    /// Whether `memory_layers` are layers that there are, each once and in ascending order.
    pub fn has_fitting_memory_layers(&self) -> bool {
        let layers = &self.memory_layers;
        layers.iter().all(|&layer| layer < self.num_hidden_layers) && layers.is_sorted_by(|a, b| a < b)
    }

    /// What is wrong with the orders of the memories' n-grams; none if they are valid.
    pub fn bad_memory_ngrams(&self) -> Option<&'static str> {
        let orders = &self.memory_ngrams;
        let fit = !orders.is_empty()
            && orders.iter().all(|order| NGRAM_ORDERS.contains(order))
            && orders.is_sorted_by(|a, b| a < b);
        (!fit).then_some("one or more different orders from 2 to 4, the shortest first")
    }

    /// Whether layer `layer` routes its tokens to experts.
    pub fn is_moe_layer(&self, layer: usize) -> bool {
        self.num_experts > 0 && layer >= self.first_k_dense_replace
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ScoringFunc {
    Softmax,
    Sigmoid,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Balance {
    AuxLoss,
    Bias,
    None,
}

/// How tokens choose experts and what keeps the load even.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RouterConfig {
    pub scoring_func: ScoringFunc,
    pub norm_topk_prob: bool,
    pub routed_scaling_factor: f64,
    pub noisy_gate: bool,
    pub balance: Balance,
    pub router_aux_loss_coef: f64,
    pub router_z_loss_coef: f64,
    pub bias_update_rate: f64,
    pub capacity_factor: f64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ScheduleKind {
    Cosine,
    Linear,
    Wsd,
    Constant,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum OptimizerKind {
    AdamW,
    Muon,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct OptimizerConfig {
    pub kind: OptimizerKind,
    pub learning_rate: f64,
    pub min_lr_ratio: f64,
    pub schedule: ScheduleKind,
    pub warmup_steps: usize,
    pub decay_fraction: f64,
    pub beta1: f64,
    pub beta2: f64,
    pub epsilon: f64,
    pub weight_decay: f64,
    pub max_grad_norm: f64,
    pub router_lr_multiplier: f64,
    pub embedding_lr_multiplier: f64,
    pub memory_lr_multiplier: f64,
    pub muon_momentum: f64,
}

/// What to do about a step that went wrong, before any weight is changed by it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Setback {
    Warn,
    Stop,
    Skip,
    Rewind,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TrainConfig {
    pub seed: u64,
    pub batch_size: usize,
    pub gradient_accumulation_steps: usize,
    pub max_steps: usize,
    pub precision: Precision,
    pub token_corruption: f64,
    pub log_interval: usize,
    pub eval_interval: usize,
    pub checkpoint_interval: usize,
    pub keep_checkpoints: usize,
    pub early_stopping_patience: usize,
    pub on_bad_numbers: Setback,
    pub on_loss_spike: Setback,
    pub spike_window: usize,
    pub spike_threshold: f64,
    pub recompute_fraction: f64,
    pub sample_prompt: String,
    pub sample_tokens: usize,
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeMap;
    use toml::Table;

    /// The files in configs/ by name, each with its text and what it resolves to.
    fn shipped() -> BTreeMap<String, (String, Config)> {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("configs");
        let paths = std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path());
        paths
            .filter(|path| path.is_file())
            .map(|path| {
                let config = load(&path, &[]).unwrap_or_else(|error| panic!("{error}"));
                let text = std::fs::read_to_string(&path).unwrap();
                (path.file_stem().unwrap().to_str().unwrap().to_string(), (text, config))
            })
            .collect()
    }

    /// The keys, as `section.key`, in which two configurations differ.
    fn differences(a: &Config, b: &Config) -> Vec<String> {
        let (a, b) = (Table::try_from(a).unwrap(), Table::try_from(b).unwrap());
        let keys = a.iter().flat_map(|(section, keys)| keys.as_table().unwrap().keys().map(move |key| (section, key)));
        keys.filter(|(section, key)| a[*section][*key] != b[*section][*key])
            .map(|(section, key)| format!("{section}.{key}"))
            .collect()
    }

    /// How wide the feed-forward part is that a token passes.
    fn active_width(model: &ModelConfig) -> usize {
        match model.num_experts {
            0 => model.intermediate_size,
            _ => (model.num_experts_per_tok + model.n_shared_experts) * model.moe_intermediate_size,
        }
    }

    /// The keys of a TOML text that have no comment beside or right above them.
    fn uncommented(text: &str) -> Vec<&str> {
        let lines: Vec<_> = text.lines().collect();
        let has_key = |line: &str| !line.starts_with(['#', '[']) && line.contains('=');
        lines
            .windows(2)
            .filter(|pair| has_key(pair[1]) && !pair[0].starts_with('#') && !pair[1].contains(" # "))
            .map(|pair| pair[1])
            .collect()
    }

    #[test]
    fn every_default_has_its_comment_right_above_it() {
        assert_eq!(uncommented(DEFAULTS), Vec::<&str>::new());
        assert!(!DEFAULTS.contains(" # "), "above, not beside");
    }

    #[test]
    fn every_value_in_the_shipped_files_carries_its_reason() {
        for (name, (text, _)) in shipped() {
            let header = text.lines().take_while(|line| line.starts_with('#')).count();
            assert!((2..=5).contains(&header), "{name}: a header of {header} lines");
            assert_eq!(uncommented(&text), Vec::<&str>::new(), "{name}");
        }
    }

    #[test]
    fn variants_differ_from_the_quickstart_in_what_they_teach_and_in_nothing_else() {
        let files = shipped();
        let quickstart = &files["quickstart"].1;
        let taught: BTreeMap<&str, &[&str]> = BTreeMap::from([
            ("quickstart", [].as_slice()),
            ("dense", &["model.num_experts"]),
            ("switch-top1", &["model.moe_intermediate_size", "model.num_experts_per_tok", "router.norm_topk_prob"]),
            ("top2", &["router.norm_topk_prob"]),
            ("fine-grained", &["model.moe_intermediate_size", "model.num_experts", "model.num_experts_per_tok"]),
            (
                "shared-expert",
                &[
                    "model.moe_intermediate_size",
                    "model.n_shared_experts",
                    "model.num_experts",
                    "model.num_experts_per_tok",
                ],
            ),
            ("noisy-top2", &["router.noisy_gate"]),
            ("bias-balanced", &["router.balance", "router.scoring_func"]),
        ]);
        for (name, keys) in &taught {
            let config = &files[*name].1;
            assert_eq!(differences(quickstart, config), *keys, "{name}");
            assert_eq!(active_width(&config.model), active_width(&quickstart.model), "{name}");
        }
        let untaught: Vec<_> = files.keys().filter(|name| !taught.contains_key(name.as_str())).collect();
        assert_eq!(untaught, ["tinyshakespeare-char", "tinyshakespeare-long", "transcript"]);
    }

    #[test]
    fn equal_totals_are_equal_where_the_comments_say_so() {
        let files = shipped();
        let total = |name: &str| {
            let model = &files[name].1.model;
            (model.num_experts + model.n_shared_experts) * model.moe_intermediate_size
        };
        assert_eq!(total("fine-grained"), total("quickstart"));
        assert_eq!(total("shared-expert"), total("fine-grained"));
        assert_eq!(total("switch-top1"), 2 * total("top2"));
    }
}
