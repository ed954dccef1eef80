//! The configuration file: what each section holds. `defaults.toml` is the one place where defaults and their
//! explanations live; a user's file is laid over it ([`load`]), then checked as a whole ([`validate`]).

mod load;
mod validate;

pub use load::{DEFAULTS, load, parse};
pub use validate::validate;

use serde::{Deserialize, Serialize};

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

/// Where text comes from and how it is split.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DataConfig {
    pub sources: Vec<String>,
    pub keep_timestamps: bool,
    pub keep_speakers: bool,
    pub validation_fraction: f64,
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
    pub rms_norm_eps: f64,
    pub qk_norm: bool,
    pub tie_word_embeddings: bool,
    pub num_experts: usize,
    pub num_experts_per_tok: usize,
    pub moe_intermediate_size: usize,
    pub n_shared_experts: usize,
    pub shared_expert_gate: bool,
    pub first_k_dense_replace: usize,
    pub intermediate_size: usize,
    pub initializer_range: f64,
    pub hidden_dropout: f64,
}

impl ModelConfig {
    /// Replaces the zeros that stand for "derived from another key" by what they derive to.
    pub fn resolve(&mut self) {
        if self.num_key_value_heads == 0 {
            self.num_key_value_heads = self.num_attention_heads;
        }
        if self.head_dim == 0 && self.num_attention_heads > 0 {
            self.head_dim = self.hidden_size / self.num_attention_heads;
        }
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

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct OptimizerConfig {
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
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TrainConfig {
    pub seed: u64,
    pub batch_size: usize,
    pub gradient_accumulation_steps: usize,
    pub max_steps: usize,
    pub log_interval: usize,
    pub eval_interval: usize,
    pub checkpoint_interval: usize,
    pub keep_checkpoints: usize,
    pub early_stopping_patience: usize,
    pub sample_prompt: String,
    pub sample_tokens: usize,
}
