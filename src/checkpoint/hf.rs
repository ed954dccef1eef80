//! Hugging Face's `config.json` and tensor names, so that a checkpoint directory is one of transformers' models.
//!
//! Every key was compared with the configuration and modelling sources of transformers 4.57.3 and 5.23.0, which differ
//! in defaults and in where they look for a value; that is why some values stand here twice.

mod parse;

pub use parse::{contradictions, parse_config_json, parse_foreign_config_json};

use crate::config::{Balance, ModelConfig, RouterConfig, ScoringFunc};
use anyhow::Result;
use serde_json::{Map, Value, json};

/// The `model_type` of what no architecture of transformers computes.
pub const OURS: &str = "tinymoe";

/// `config.json` for a model of this shape: of the architecture that computes the same function, else `"tinymoe"` with
/// the option that stands in the way under `"tinymoe_reason"`.
pub fn config_json(model: &ModelConfig, router: &RouterConfig, vocab_size: usize, eos: Option<u32>) -> Result<Vec<u8>> {
    let mut config = common_keys(model, vocab_size, eos);
    if has_experts(model) {
        config.extend(expert_keys(model, router));
    }
    let model_type = match architecture(model, router) {
        Ok(model_type) => model_type,
        Err(reason) => {
            config.insert("tinymoe_reason".to_string(), reason.into());
            OURS
        }
    };
    config.extend(own_keys(model_type, model, router));
    config.insert("model_type".to_string(), model_type.into());
    config.insert("architectures".to_string(), json!([class(model_type)]));
    // What the keys above cannot say (settings of training only), for an exact way back.
    config.insert("tinymoe".to_string(), json!({ "model": model, "router": router }));
    Ok(serde_json::to_vec_pretty(&config)?)
}

/// `generation_config.json`: sampling, ended by `eos`.
pub fn generation_config_json(eos: Option<u32>) -> Result<Vec<u8>> {
    // The padding id only fills up batches of unequal length here; without one transformers warns at every call.
    let config = json!({ "bos_token_id": eos, "eos_token_id": eos, "pad_token_id": eos, "do_sample": true });
    Ok(serde_json::to_vec_pretty(&config)?)
}

/// The `model_type` under which a model of this shape is stored, which decides its tensors' names.
pub fn model_type(model: &ModelConfig, router: &RouterConfig) -> &'static str {
    architecture(model, router).unwrap_or(OURS)
}

/// Whether a tensor has a part in training only, so that other programs do not know it: the noise of noisy gates.
pub fn is_for_training_only(name: &str) -> bool {
    name.ends_with(".gate.noise_weight")
}

/// The name that the architecture `model_type` has for the tensor that we call `canonical`.
pub fn tensor_name(model_type: &str, canonical: &str) -> String {
    match model_type {
        // w1 is the gate, w3 goes up, w2 goes down.
        "mixtral" => canonical
            .replace(".mlp.", ".block_sparse_moe.")
            .replace(".gate_proj.", ".w1.")
            .replace(".up_proj.", ".w3.")
            .replace(".down_proj.", ".w2."),
        "qwen2_moe" => canonical.replace(".mlp.shared_experts.", ".mlp.shared_expert."),
        _ => canonical.to_string(),
    }
}

/// The architecture of transformers whose forward pass is ours, or the option that none of them has. Options that
/// matter in training only (capacity, the noisy gate, dropout, the losses) are no obstacle.
pub fn architecture(model: &ModelConfig, router: &RouterConfig) -> Result<&'static str, String> {
    let obstacle = |what: &str| Err(what.to_string());
    // transformers 5 refuses such a llama, transformers 4 such a qwen2_moe.
    let heads_fill_width = model.num_attention_heads * model.head_dim == model.hidden_size;
    let experts = has_experts(model);
    let sigmoid = experts && router.scoring_func == ScoringFunc::Sigmoid;
    if !model.memory_layers.is_empty() {
        return obstacle("model.memory_layers: no architecture reads a memory of n-grams");
    }
    if model.qk_norm_across_heads && (!experts || sigmoid) {
        return obstacle("model.qk_norm_across_heads = true: only olmoe has it, with softmax-routed experts");
    }
    if model.rotary_dim() != model.head_dim && !sigmoid {
        return obstacle(
            "model.partial_rotary_factor: only glm4_moe, which scores with a sigmoid, turns a part of a head",
        );
    }
    if model.qkv_bias && !sigmoid && !(experts && model.n_shared_experts > 0) {
        return obstacle("model.qkv_bias = true: only qwen2_moe, which has a shared expert, and glm4_moe have biases");
    }
    if !experts {
        return match (model.qk_norm, heads_fill_width) {
            (true, _) => Ok("qwen3"),
            (false, true) => Ok("llama"),
            (false, false) => obstacle("model.head_dim: llama needs num_attention_heads * head_dim = hidden_size"),
        };
    }
    match (router.scoring_func, router.balance) {
        (ScoringFunc::Sigmoid, Balance::Bias) => {
            if model.n_shared_experts > 0 && model.shared_expert_gate {
                return obstacle("model.shared_expert_gate = true: glm4_moe has no gate on shared experts");
            }
            if model.num_experts < 2 {
                return obstacle("model.num_experts = 1: glm4_moe scores its groups by their two best experts");
            }
            return Ok("glm4_moe");
        }
        (ScoringFunc::Sigmoid, _) => {
            return obstacle("router.scoring_func = \"sigmoid\": glm4_moe also needs router.balance = \"bias\"");
        }
        (ScoringFunc::Softmax, Balance::Bias) => {
            return obstacle("router.balance = \"bias\": glm4_moe also needs router.scoring_func = \"sigmoid\"");
        }
        (ScoringFunc::Softmax, _) => {}
    }
    if router.routed_scaling_factor != 1.0 {
        return obstacle("router.routed_scaling_factor: only glm4_moe, which scores with a sigmoid, scales its gates");
    }
    if model.n_shared_experts > 0 {
        return match (model.shared_expert_gate, model.qk_norm, heads_fill_width) {
            (false, ..) => obstacle("model.shared_expert_gate = false: qwen2_moe has a gate on its shared expert"),
            (_, true, _) => obstacle("model.qk_norm = true: qwen2_moe, which has a shared expert, has no QK-norm"),
            (.., false) => obstacle("model.head_dim: qwen2_moe needs num_attention_heads * head_dim = hidden_size"),
            _ => Ok("qwen2_moe"),
        };
    }
    if model.qk_norm_across_heads {
        return match (model.first_k_dense_replace, heads_fill_width) {
            (0, true) => Ok("olmoe"),
            (0, false) => obstacle("model.head_dim: olmoe needs num_attention_heads * head_dim = hidden_size"),
            _ => obstacle("model.first_k_dense_replace: olmoe, which has QK-norm across heads, has no dense layers"),
        };
    }
    match (model.qk_norm, router.norm_topk_prob, model.first_k_dense_replace) {
        (true, ..) => Ok("qwen3_moe"),
        (false, true, 0) => Ok("mixtral"),
        (false, true, _) => obstacle("model.first_k_dense_replace: mixtral, which has no QK-norm, has no dense layers"),
        (false, false, _) => obstacle("router.norm_topk_prob = false: mixtral, which has no QK-norm, renormalises"),
    }
}

fn has_experts(model: &ModelConfig) -> bool {
    (0..model.num_hidden_layers).any(|layer| model.is_moe_layer(layer))
}

fn class(model_type: &str) -> &'static str {
    match model_type {
        "qwen3" => "Qwen3ForCausalLM",
        "llama" => "LlamaForCausalLM",
        "qwen3_moe" => "Qwen3MoeForCausalLM",
        "mixtral" => "MixtralForCausalLM",
        "qwen2_moe" => "Qwen2MoeForCausalLM",
        "olmoe" => "OlmoeForCausalLM",
        "glm4_moe" => "Glm4MoeForCausalLM",
        _ => "TinymoeForCausalLM",
    }
}

/// The keys that all architectures share. Those that switch something off are written because some default is on.
fn common_keys(model: &ModelConfig, vocab_size: usize, eos: Option<u32>) -> Map<String, Value> {
    object(json!({
        "vocab_size": vocab_size,
        "hidden_size": model.hidden_size,
        "intermediate_size": model.intermediate_size,
        "num_hidden_layers": model.num_hidden_layers,
        "num_attention_heads": model.num_attention_heads,
        "num_key_value_heads": model.num_key_value_heads,
        // qwen3 takes 128 without it, the others hidden_size / num_attention_heads.
        "head_dim": model.head_dim,
        "max_position_embeddings": model.max_position_embeddings,
        "hidden_act": "silu",
        "rms_norm_eps": model.rms_norm_eps,
        "initializer_range": model.initializer_range,
        "tie_word_embeddings": model.tie_word_embeddings,
        // Version 4 reads the first, version 5 the second; mixtral's default is 1e6.
        "rope_theta": model.rope_theta,
        "rope_parameters": { "rope_type": "default", "rope_theta": model.rope_theta },
        "attention_bias": false,
        "attention_dropout": model.attention_dropout,
        "sliding_window": null,
        "use_sliding_window": false,
        "use_cache": true,
        // llama and mixtral take ids 1 and 2 without these. A padding id would be one that training leaves alone
        // (torch's padding_idx), and we have no id to spare.
        "bos_token_id": eos,
        "eos_token_id": eos,
        "pad_token_id": null,
        // The older and the newer name.
        "torch_dtype": "float32",
        "dtype": "float32",
    }))
}

fn expert_keys(model: &ModelConfig, router: &RouterConfig) -> Map<String, Value> {
    object(json!({
        // Each architecture and version reads one of the two.
        "num_experts": model.num_experts,
        "num_local_experts": model.num_experts,
        "num_experts_per_tok": model.num_experts_per_tok,
        "moe_intermediate_size": model.moe_intermediate_size,
        // qwen2_moe and qwen3_moe default to false.
        "norm_topk_prob": router.norm_topk_prob,
        "output_router_logits": false,
        "router_aux_loss_coef": aux_loss_coef(model, router),
    }))
}

/// transformers' balance loss is K where ours is 1, at perfect balance: its shares of tokens sum to K.
fn aux_loss_coef(model: &ModelConfig, router: &RouterConfig) -> f64 {
    match router.balance {
        Balance::AuxLoss => router.router_aux_loss_coef / model.num_experts_per_tok.max(1) as f64,
        Balance::Bias | Balance::None => 0.0,
    }
}

/// The keys that one architecture alone has, or means otherwise than the rest.
fn own_keys(model_type: &str, model: &ModelConfig, router: &RouterConfig) -> Map<String, Value> {
    let dense_layers: Vec<usize> = (0..model.first_k_dense_replace).collect();
    object(match model_type {
        "llama" => json!({ "mlp_bias": false }),
        // All layers have experts, and their width goes by the dense layers' name.
        "mixtral" => json!({ "intermediate_size": model.moe_intermediate_size, "router_jitter_noise": 0.0 }),
        "olmoe" => json!({ "intermediate_size": model.moe_intermediate_size, "clip_qkv": null }),
        "qwen3_moe" => json!({ "decoder_sparse_step": 1, "mlp_only_layers": dense_layers }),
        "qwen2_moe" => json!({
            "decoder_sparse_step": 1,
            "mlp_only_layers": dense_layers,
            "shared_expert_intermediate_size": model.n_shared_experts * model.moe_intermediate_size,
            // On by default.
            "qkv_bias": model.qkv_bias,
        }),
        "glm4_moe" => json!({
            "n_routed_experts": model.num_experts,
            // Without shared experts the module is built with width 0, which adds nothing. Its empty weights are
            // not in the file, and transformers says so when it loads.
            "n_shared_experts": model.n_shared_experts,
            "first_k_dense_replace": model.first_k_dense_replace,
            "routed_scaling_factor": router.routed_scaling_factor,
            // One group: the choice is among all experts.
            "n_group": 1,
            "topk_group": 1,
            "use_qk_norm": model.qk_norm,
            "attention_bias": model.qkv_bias,
            // Half of each head is rotated by default. Version 5 looks into rope_parameters first.
            "partial_rotary_factor": model.partial_rotary_factor,
            "rope_parameters": {
                "rope_type": "default",
                "rope_theta": model.rope_theta,
                "partial_rotary_factor": model.partial_rotary_factor,
            },
            // Multi-token prediction: version 5 assumes one such layer.
            "num_nextn_predict_layers": 0,
        }),
        _ => json!({}),
    })
}

fn object(value: Value) -> Map<String, Value> {
    match value {
        Value::Object(object) => object,
        _ => Map::new(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Config;

    /// The default configuration (8 experts, 2 a token, softmax, renormalised, QK-norm), edited.
    pub fn edited(edit: fn(&mut ModelConfig, &mut RouterConfig)) -> (ModelConfig, RouterConfig) {
        let Config { mut model, mut router, .. } = Config::default();
        edit(&mut model, &mut router);
        (model, router)
    }

    type Variant = (&'static str, fn(&mut ModelConfig, &mut RouterConfig));

    /// A configuration for each architecture, with and without its options.
    pub const VARIANTS: &[Variant] = &[
        ("qwen3_moe", |_, _| {}),
        ("qwen3_moe", |m, r| (m.first_k_dense_replace, r.norm_topk_prob, r.noisy_gate) = (2, false, true)),
        ("mixtral", |m, r| (m.qk_norm, r.capacity_factor, r.balance) = (false, 1.25, Balance::None)),
        ("qwen2_moe", |m, _| {
            (m.qk_norm, m.n_shared_experts, m.shared_expert_gate, m.qkv_bias) = (false, 2, true, true);
        }),
        ("glm4_moe", |m, r| {
            (r.scoring_func, r.balance, r.routed_scaling_factor) = (ScoringFunc::Sigmoid, Balance::Bias, 2.5);
            (m.n_shared_experts, m.first_k_dense_replace, m.qkv_bias) = (1, 1, true);
        }),
        ("glm4_moe", |m, r| {
            (r.scoring_func, r.balance, r.norm_topk_prob) = (ScoringFunc::Sigmoid, Balance::Bias, false);
            (m.qk_norm, m.partial_rotary_factor) = (false, 0.5);
        }),
        ("olmoe", |m, r| (m.qk_norm_across_heads, m.num_key_value_heads, r.norm_topk_prob) = (true, 2, false)),
        ("qwen3", |m, _| (m.num_experts, m.hidden_dropout) = (0, 0.1)),
        ("qwen3", |m, _| m.first_k_dense_replace = m.num_hidden_layers),
        ("llama", |m, _| (m.num_experts, m.qk_norm, m.num_key_value_heads) = (0, false, 2)),
    ];

    /// Configurations that no architecture computes, and the option that the reason must name.
    pub const OBSTACLES: &[Variant] = &[
        ("router.balance", |_, r| r.balance = Balance::Bias),
        ("model.memory_layers", |m, _| m.memory_layers = vec![1]),
        ("router.scoring_func", |_, r| r.scoring_func = ScoringFunc::Sigmoid),
        ("router.routed_scaling_factor", |_, r| r.routed_scaling_factor = 2.0),
        ("router.norm_topk_prob", |m, r| (m.qk_norm, r.norm_topk_prob) = (false, false)),
        ("model.first_k_dense_replace", |m, _| (m.qk_norm, m.first_k_dense_replace) = (false, 1)),
        ("model.shared_expert_gate", |m, _| m.n_shared_experts = 1),
        ("model.shared_expert_gate", |m, r| {
            (r.scoring_func, r.balance) = (ScoringFunc::Sigmoid, Balance::Bias);
            (m.n_shared_experts, m.shared_expert_gate) = (1, true);
        }),
        ("model.qk_norm", |m, _| (m.n_shared_experts, m.shared_expert_gate) = (1, true)),
        ("model.head_dim", |m, _| (m.num_experts, m.qk_norm, m.head_dim) = (0, false, 16)),
        ("model.partial_rotary_factor", |m, _| m.partial_rotary_factor = 0.5),
        ("model.qkv_bias", |m, _| m.qkv_bias = true),
        ("model.qkv_bias", |m, _| (m.qkv_bias, m.num_experts) = (true, 0)),
        ("model.head_dim", |m, _| (m.qk_norm_across_heads, m.head_dim) = (true, 16)),
        ("model.qk_norm_across_heads", |m, _| (m.qk_norm_across_heads, m.num_experts) = (true, 0)),
        ("model.first_k_dense_replace", |m, _| (m.qk_norm_across_heads, m.first_k_dense_replace) = (true, 1)),
        ("model.qk_norm", |m, _| {
            (m.qk_norm_across_heads, m.n_shared_experts, m.shared_expert_gate) = (true, 1, true);
        }),
    ];

    fn written(edit: fn(&mut ModelConfig, &mut RouterConfig)) -> Value {
        let (model, router) = edited(edit);
        serde_json::from_slice(&config_json(&model, &router, 1024, Some(0)).unwrap()).unwrap()
    }

    #[test]
    fn each_configuration_finds_the_architecture_that_computes_it() {
        for (expected, edit) in VARIANTS {
            let config = written(*edit);
            assert_eq!(config["model_type"], *expected);
            assert_eq!(config.get("tinymoe_reason"), None);
        }
    }

    #[test]
    fn what_no_architecture_computes_names_the_option_in_the_way() {
        for (option, edit) in OBSTACLES {
            let config = written(*edit);
            assert_eq!(config["model_type"], OURS);
            let reason = config["tinymoe_reason"].as_str().unwrap();
            assert!(reason.starts_with(option), "{option}: {reason}");
        }
    }

    #[test]
    fn values_stand_where_each_architecture_looks_for_them() {
        let [_, qwen3_moe, mixtral, qwen2_moe, glm4_moe, ..] = VARIANTS else { unreachable!() };
        let config = written(qwen3_moe.1);
        assert_eq!(config["mlp_only_layers"], json!([0, 1]));
        assert_eq!((&config["num_experts"], &config["num_local_experts"]), (&json!(8), &json!(8)));
        assert_eq!(config["rope_theta"], config["rope_parameters"]["rope_theta"]);
        assert_eq!(config["router_aux_loss_coef"], 0.005);
        let config = written(mixtral.1);
        assert_eq!((&config["intermediate_size"], &config["router_aux_loss_coef"]), (&json!(176), &json!(0.0)));
        let config = written(qwen2_moe.1);
        assert_eq!((&config["shared_expert_intermediate_size"], &config["qkv_bias"]), (&json!(352), &json!(true)));
        let config = written(glm4_moe.1);
        assert_eq!(config["rope_parameters"]["partial_rotary_factor"], 1.0);
        assert_eq!(config["num_nextn_predict_layers"], 0);
    }

    #[test]
    fn tensors_are_named_as_each_architecture_names_them() {
        let layer = |name: &str| format!("model.layers.3.{name}");
        for (model_type, ours, theirs) in [
            ("mixtral", "mlp.experts.7.gate_proj.weight", "block_sparse_moe.experts.7.w1.weight"),
            ("mixtral", "mlp.experts.7.up_proj.weight", "block_sparse_moe.experts.7.w3.weight"),
            ("mixtral", "mlp.experts.7.down_proj.weight", "block_sparse_moe.experts.7.w2.weight"),
            ("mixtral", "mlp.gate.weight", "block_sparse_moe.gate.weight"),
            ("mixtral", "self_attn.q_proj.weight", "self_attn.q_proj.weight"),
            ("qwen2_moe", "mlp.shared_experts.up_proj.weight", "mlp.shared_expert.up_proj.weight"),
            ("qwen2_moe", "mlp.shared_expert_gate.weight", "mlp.shared_expert_gate.weight"),
            ("glm4_moe", "mlp.shared_experts.up_proj.weight", "mlp.shared_experts.up_proj.weight"),
            ("glm4_moe", "mlp.gate.e_score_correction_bias", "mlp.gate.e_score_correction_bias"),
            ("qwen3_moe", "mlp.experts.7.gate_proj.weight", "mlp.experts.7.gate_proj.weight"),
            (OURS, "mlp.gate.noise_weight", "mlp.gate.noise_weight"),
        ] {
            assert_eq!(tensor_name(model_type, &layer(ours)), layer(theirs));
        }
    }

    #[test]
    fn without_an_end_token_all_ids_are_null() {
        let (model, router) = edited(|_, _| {});
        let config: Value = serde_json::from_slice(&config_json(&model, &router, 256, None).unwrap()).unwrap();
        assert_eq!((&config["bos_token_id"], &config["eos_token_id"]), (&Value::Null, &Value::Null));
        let config: Value = serde_json::from_slice(&generation_config_json(None).unwrap()).unwrap();
        assert_eq!(config["eos_token_id"], Value::Null);
    }
}
