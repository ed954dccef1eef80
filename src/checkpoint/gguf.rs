//! GGUF, the file format of llama.cpp: one file with the architecture's sizes, the tokenizer and the weights.
//!
//! Keys and tensor names are those of llama.cpp's loaders (`src/models` there, read at the version that
//! llama-cpp-python 0.3.36 ships); candle writes and quantises. What llama.cpp has no architecture for is refused with
//! the option that stands in the way.

use super::hf;
use crate::config::{ModelConfig, RouterConfig};
use crate::model::parameters::Parameter;
use crate::model::transformer::Transformer;
use crate::tokenizer::Tokenizer;
use anyhow::{Context, Result, bail, ensure};
use candle_core::quantized::gguf_file::{self, Value};
use candle_core::quantized::{GgmlDType, QTensor};
use candle_core::{Device, Tensor};
use half::{bf16, f16};
use serde_json::Value as Json;
use std::io::{Seek, Write};

/// `tokenizer.ggml.token_type` of ordinary, special, added and missing tokens.
const NORMAL: i32 = 1;
const CONTROL: i32 = 3;
const USER_DEFINED: i32 = 4;
const UNUSED: i32 = 5;
/// llama.cpp refuses an empty list of merges. This one never applies: byte-level words do not have the character.
const NO_MERGES: &str = "\u{2603} \u{2603}";

/// How weight matrices are stored. Norms, biases and routers stay in f32.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Dtype {
    F32,
    F16,
    Bf16,
    /// 8 bits a weight and a scale for every 32
    #[value(name = "q8_0")]
    Q8_0,
    /// 4 bits a weight and a scale for every 32; embedding and head in q8_0
    #[value(name = "q4_0")]
    Q4_0,
}

impl Dtype {
    /// candle's name, and the number that stands for it in `general.file_type`.
    fn codes(self) -> (GgmlDType, u32) {
        match self {
            Dtype::F32 => (GgmlDType::F32, 0),
            Dtype::F16 => (GgmlDType::F16, 1),
            Dtype::Bf16 => (GgmlDType::BF16, 32),
            Dtype::Q8_0 => (GgmlDType::Q8_0, 7),
            Dtype::Q4_0 => (GgmlDType::Q4_0, 2),
        }
    }
}

/// llama.cpp's architecture that computes what this model computes.
///
/// # Errors
/// The option that none of them has.
pub fn architecture(model: &ModelConfig, router: &RouterConfig) -> Result<&'static str, String> {
    let obstacle = |what: &str| Err(what.to_string());
    let dense_first = model.first_k_dense_replace > 0;
    match hf::architecture(model, router)? {
        "qwen3_moe" if !router.norm_topk_prob => {
            obstacle("router.norm_topk_prob = false: llama.cpp's qwen3moe always renormalises")
        }
        "olmoe" if router.norm_topk_prob => {
            obstacle("router.norm_topk_prob = true: llama.cpp's olmoe never renormalises")
        }
        "qwen2_moe" if router.norm_topk_prob => {
            obstacle("router.norm_topk_prob = true: llama.cpp's qwen2moe never renormalises")
        }
        "qwen3_moe" | "qwen2_moe" if dense_first => {
            obstacle("model.first_k_dense_replace: llama.cpp's qwen3moe and qwen2moe have experts in every layer")
        }
        "olmoe" if model.num_key_value_heads != model.num_attention_heads => {
            obstacle("model.num_key_value_heads: llama.cpp's olmoe has as many as query heads")
        }
        "glm4_moe" if model.n_shared_experts == 0 => {
            obstacle("model.n_shared_experts = 0: llama.cpp's glm4moe always has a shared expert")
        }
        "qwen3_moe" => Ok("qwen3moe"),
        "qwen2_moe" => Ok("qwen2moe"),
        "glm4_moe" => Ok("glm4moe"),
        // With experts llama.cpp's llama is a Mixtral.
        "mixtral" => Ok("llama"),
        same => Ok(same),
    }
}

/// Writes `model`, its tokenizer and its chat template, if it has one; returns the names of matrices that are stored in f16 because their rows cannot be
/// cut into the blocks of `dtype`.
///
/// # Errors
/// If llama.cpp has nothing that computes this model or tokenizes like it, if a weight is too large for `dtype`, or if
/// writing fails.
pub fn write(
    out: &mut (impl Write + Seek),
    model: &Transformer,
    tokenizer: &Tokenizer,
    chat_template: Option<&str>,
    dtype: Dtype,
    name: &str,
) -> Result<Vec<String>> {
    let architecture = architecture(&model.model, &model.router)
        .map_err(|reason| anyhow::anyhow!("llama.cpp cannot run this model: {reason}"))?;
    let mut metadata = vec![
        ("general.architecture".to_string(), text(architecture)),
        ("general.name".to_string(), text(name)),
        ("general.file_type".to_string(), Value::U32(dtype.codes().1)),
        ("general.quantization_version".to_string(), Value::U32(2)),
    ];
    let keys = sizes(architecture, model)?;
    metadata.extend(keys.into_iter().map(|(key, value)| (format!("{architecture}.{key}"), value)));
    let vocabulary = vocabulary(tokenizer, model.vocab_size)?;
    metadata.extend(vocabulary.into_iter().map(|(key, value)| (format!("tokenizer.ggml.{key}"), value)));
    metadata.extend(chat_template.map(|template| ("tokenizer.chat_template".to_string(), text(template))));

    let mut narrower = Vec::new();
    let mut quantised = Vec::new();
    for Weight { name, shape, data } in weights(architecture, model)? {
        let stored = stored_as(&name, &shape, dtype);
        let limit = largest(stored);
        if let Some(number) = data.iter().find(|number| number.abs() > limit) {
            bail!("{name} holds {number}, and {stored:?} has nothing beyond {limit}; choose --dtype f32");
        }
        if stored == GgmlDType::F16 && dtype != Dtype::F16 {
            narrower.push(name.clone());
        }
        let tensor = Tensor::from_vec(data, shape, &Device::Cpu)?;
        quantised.push((name, QTensor::quantize(&tensor, stored)?));
    }
    let metadata: Vec<(&str, &Value)> = metadata.iter().map(|(key, value)| (key.as_str(), value)).collect();
    let tensors: Vec<(&str, &QTensor)> = quantised.iter().map(|(name, tensor)| (name.as_str(), tensor)).collect();
    gguf_file::write(out, &metadata, &tensors)?;
    Ok(narrower)
}

fn text(text: &str) -> Value {
    Value::String(text.to_string())
}

/// The architecture's sizes and options.
fn sizes(architecture: &str, transformer: &Transformer) -> Result<Vec<(&'static str, Value)>> {
    let (model, router) = (&transformer.model, &transformer.router);
    let size = |size: usize| -> Result<Value> { Ok(Value::U32(u32::try_from(size)?)) };
    let has_experts = !transformer.moe_layers().is_empty();
    let width = match architecture {
        // The experts' width goes by the dense layers' name.
        "llama" | "olmoe" if has_experts => model.moe_intermediate_size,
        _ => model.intermediate_size,
    };
    let mut keys = vec![
        ("vocab_size", size(transformer.vocab_size)?),
        ("context_length", size(model.max_position_embeddings)?),
        ("embedding_length", size(model.hidden_size)?),
        ("block_count", size(model.num_hidden_layers)?),
        ("feed_forward_length", size(width)?),
        ("attention.head_count", size(model.num_attention_heads)?),
        ("attention.head_count_kv", size(model.num_key_value_heads)?),
        ("attention.key_length", size(model.head_dim)?),
        ("attention.value_length", size(model.head_dim)?),
        ("attention.layer_norm_rms_epsilon", Value::F32(model.rms_norm_eps as f32)),
        ("rope.dimension_count", size(model.rotary_dim())?),
        ("rope.freq_base", Value::F32(model.rope_theta as f32)),
    ];
    if has_experts {
        keys.push(("expert_count", size(model.num_experts)?));
        keys.push(("expert_used_count", size(model.num_experts_per_tok)?));
        keys.push(("expert_feed_forward_length", size(model.moe_intermediate_size)?));
    }
    match architecture {
        "qwen2moe" => {
            let width = model.n_shared_experts * model.moe_intermediate_size;
            keys.push(("expert_shared_feed_forward_length", size(width)?));
        }
        "glm4moe" => keys.extend([
            ("expert_shared_count", size(model.n_shared_experts)?),
            ("leading_dense_block_count", size(model.first_k_dense_replace)?),
            // 2 is the sigmoid.
            ("expert_gating_func", Value::U32(2)),
            ("expert_weights_norm", Value::Bool(router.norm_topk_prob)),
            ("expert_weights_scale", Value::F32(router.routed_scaling_factor as f32)),
        ]),
        _ => {}
    }
    Ok(keys)
}

/// The tokenizer as llama.cpp's byte-level BPE with GPT-2's words.
fn vocabulary(tokenizer: &Tokenizer, vocab_size: usize) -> Result<Vec<(&'static str, Value)>> {
    let json: Json = serde_json::from_slice(&tokenizer.to_json()?)?;
    let words = &json["pre_tokenizer"];
    let is_gpt2 = words["type"] == "ByteLevel" && words["use_regex"] != false && words["add_prefix_space"] != true;
    ensure!(
        is_gpt2 && json["normalizer"].is_null() && json["decoder"]["type"] == "ByteLevel",
        "llama.cpp cannot tokenize as this model does: only byte-level tokenizers with GPT-2's words are exported, which \
         tokenizer.kind = \"bpe\" and \"bytes\" make"
    );
    let mut tokens: Vec<_> = (0..vocab_size).map(|id| (format!("[UNUSED{id}]"), UNUSED)).collect();
    let mut set = |id: &Json, name: &str, kind: i32| {
        let id = id.as_u64().context("a token's id is no number")?;
        // Tokens beyond the model's vocabulary cannot be used anyway.
        if let Some(place) = tokens.get_mut(id as usize) {
            *place = (name.to_string(), kind);
        }
        anyhow::Ok(())
    };
    for (name, id) in json["model"]["vocab"].as_object().context("the tokenizer has no vocab")? {
        set(id, name, NORMAL)?;
    }
    for added in json["added_tokens"].as_array().into_iter().flatten() {
        let kind = if added["special"] == true { CONTROL } else { USER_DEFINED };
        set(&added["id"], added["content"].as_str().unwrap_or_default(), kind)?;
    }
    let mut merges = Vec::new();
    for merge in json["model"]["merges"].as_array().into_iter().flatten() {
        merges.push(match merge {
            Json::Array(pair) => {
                let pair: Vec<_> = pair.iter().filter_map(Json::as_str).collect();
                let is_whole = pair.len() == 2 && !pair.iter().any(|part| part.is_empty() || part.contains(' '));
                ensure!(is_whole, "llama.cpp divides merges at a space, so it would not understand {merge}");
                text(&pair.join(" "))
            }
            merge => text(merge.as_str().unwrap_or_default()),
        });
    }
    if merges.is_empty() {
        merges.push(text(NO_MERGES));
    }
    let mut keys = vec![
        ("model", text("gpt2")),
        ("pre", text("gpt-2")),
        ("tokens", Value::Array(tokens.iter().map(|(name, _)| text(name)).collect())),
        ("token_type", Value::Array(tokens.iter().map(|&(_, kind)| Value::I32(kind)).collect())),
        ("merges", Value::Array(merges)),
    ];
    keys.extend(special_tokens(tokenizer));
    Ok(keys)
}

/// Which tokens start, end and fill up texts. llama.cpp has room for two that end them, and puts at most one token before
/// and one behind a text; see [`left_out`].
fn special_tokens(tokenizer: &Tokenizer) -> Vec<(&'static str, Value)> {
    let (roles, frame) = (tokenizer.roles(), tokenizer.frame());
    let begins = frame.before.first().copied().or(roles.begins);
    let ends = frame.after.first().or(roles.ends.first()).copied();
    let turn_ends = roles.ends.iter().copied().find(|&end| Some(end) != ends);
    let ids = [
        ("bos_token_id", begins),
        ("eos_token_id", ends),
        ("eot_token_id", turn_ends),
        ("padding_token_id", roles.pads),
    ];
    let mut keys: Vec<_> = ids.into_iter().filter_map(|(key, id)| Some((key, Value::U32(id?)))).collect();
    keys.push(("add_bos_token", Value::Bool(!frame.before.is_empty())));
    keys.push(("add_eos_token", Value::Bool(!frame.after.is_empty())));
    keys
}

/// What of the special tokens [`write`] cannot say.
pub fn left_out(tokenizer: &Tokenizer) -> Vec<String> {
    let (roles, frame) = (tokenizer.roles(), tokenizer.frame());
    let names = |ids: &[u32]| ids.iter().map(|&id| tokenizer.token_text(id)).collect::<Vec<_>>().join(" ");
    let mut left_out = Vec::new();
    if roles.ends.len() > 2 {
        left_out.push(format!("further tokens that end a text: {}", names(&roles.ends[2..])));
    }
    for ids in [&frame.before, &frame.after].into_iter().filter(|ids| ids.len() > 1) {
        left_out.push(format!("all but the first of the tokens around a text: {}", names(ids)));
    }
    left_out
}

/// A tensor under llama.cpp's name. The format lists the last dimension first; candle sees to that.
struct Weight {
    name: String,
    shape: Vec<usize>,
    data: Vec<f32>,
}

/// All weights: those of a layer's experts in one tensor each for gate, up and down.
fn weights(architecture: &str, transformer: &Transformer) -> Result<Vec<Weight>> {
    let model = &transformer.model;
    let values = transformer.parameters.values();
    let mut weights: Vec<Weight> = Vec::new();
    let is_used = |parameter: &&Parameter| !hf::is_for_training_only(&parameter.name);
    for parameter in transformer.parameters.list().iter().filter(is_used) {
        let mut data = values[parameter.range.clone()].to_vec();
        let mut shape = parameter.shape.clone();
        let (name, expert) = rename(&parameter.name, architecture)?;
        if architecture == "llama" && (name.ends_with("attn_q.weight") || name.ends_with("attn_k.weight")) {
            data = interleave(&data, model.head_dim, model.hidden_size);
        }
        if name.ends_with("ffn_gate_inp_shexp.weight") {
            shape = vec![model.hidden_size];
        }
        match expert {
            None => weights.push(Weight { name, shape, data }),
            Some(expert) => match weights.iter_mut().rev().find(|weight| weight.name == name) {
                Some(stack) => {
                    stack.shape[0] += 1;
                    stack.data.append(&mut data);
                }
                None if expert == 0 => {
                    shape.insert(0, 1);
                    weights.push(Weight { name, shape, data });
                }
                None => bail!("{} does not follow on expert 0", parameter.name),
            },
        }
    }
    // These two have no way to say that the head is the embedding.
    if matches!(architecture, "olmoe" | "qwen2moe") && model.tie_word_embeddings {
        let data = values[transformer.embedding_VD.clone()].to_vec();
        let shape = vec![transformer.vocab_size, model.hidden_size];
        weights.push(Weight { name: "output.weight".to_string(), shape, data });
    }
    Ok(weights)
}

/// llama.cpp's name for one of our tensors, and the expert's number if it is one of many.
fn rename(ours: &str, architecture: &str) -> Result<(String, Option<usize>)> {
    let whole = match ours {
        "model.embed_tokens.weight" => "token_embd.weight",
        "model.norm.weight" => "output_norm.weight",
        "lm_head.weight" => "output.weight",
        _ => "",
    };
    if !whole.is_empty() {
        return Ok((whole.to_string(), None));
    }
    let unknown = || format!("{ours} has no name in llama.cpp");
    let (layer, part) =
        ours.strip_prefix("model.layers.").and_then(|rest| rest.split_once('.')).with_context(unknown)?;
    let (part, kind) = part.rsplit_once('.').with_context(unknown)?;
    let (part, expert) = match part.strip_prefix("mlp.experts.").and_then(|rest| rest.split_once('.')) {
        Some((expert, projection)) => (format!("mlp.experts.{projection}"), Some(expert.parse()?)),
        None => (part.to_string(), None),
    };
    let name = match (part.as_str(), kind) {
        ("input_layernorm", _) => "attn_norm",
        ("self_attn.q_proj", _) => "attn_q",
        ("self_attn.k_proj", _) => "attn_k",
        ("self_attn.v_proj", _) => "attn_v",
        ("self_attn.o_proj", _) => "attn_output",
        ("self_attn.q_norm", _) => "attn_q_norm",
        ("self_attn.k_norm", _) => "attn_k_norm",
        ("post_attention_layernorm", _) if architecture == "glm4moe" => "post_attention_norm",
        ("post_attention_layernorm", _) => "ffn_norm",
        ("mlp.gate", "weight") => "ffn_gate_inp",
        ("mlp.gate", "e_score_correction_bias") => return Ok((format!("blk.{layer}.exp_probs_b.bias"), None)),
        ("mlp.gate_proj", _) => "ffn_gate",
        ("mlp.up_proj", _) => "ffn_up",
        ("mlp.down_proj", _) => "ffn_down",
        ("mlp.experts.gate_proj", _) => "ffn_gate_exps",
        ("mlp.experts.up_proj", _) => "ffn_up_exps",
        ("mlp.experts.down_proj", _) => "ffn_down_exps",
        ("mlp.shared_experts.gate_proj", _) => "ffn_gate_shexp",
        ("mlp.shared_experts.up_proj", _) => "ffn_up_shexp",
        ("mlp.shared_experts.down_proj", _) => "ffn_down_shexp",
        ("mlp.shared_expert_gate", _) => "ffn_gate_inp_shexp",
        _ => bail!(unknown()),
    };
    Ok((format!("blk.{layer}.{name}.{kind}"), expert))
}

/// The rows of each head from halves (channel i turns with i + C/2) to pairs (2i with 2i + 1), as llama.cpp's llama
/// turns them.
fn interleave(rows: &[f32], channels: usize, width: usize) -> Vec<f32> {
    let mut result = Vec::with_capacity(rows.len());
    for head in rows.chunks_exact(channels * width) {
        let (first, second) = head.split_at(channels / 2 * width);
        for (a, b) in first.chunks_exact(width).zip(second.chunks_exact(width)) {
            result.extend_from_slice(a);
            result.extend_from_slice(b);
        }
    }
    result
}

/// The largest number that a type stores; in blocks, that of a block whose scale, an f16, is the largest one.
fn largest(stored: GgmlDType) -> f32 {
    let f16 = f16::MAX.to_f32();
    match stored {
        GgmlDType::F16 => f16,
        GgmlDType::BF16 => bf16::MAX.to_f32(),
        GgmlDType::Q8_0 => 127.0 * f16,
        GgmlDType::Q4_0 => 8.0 * f16,
        _ => f32::MAX,
    }
}

fn stored_as(name: &str, shape: &[usize], dtype: Dtype) -> GgmlDType {
    let is_matrix = shape.len() > 1 && !name.contains("ffn_gate_inp");
    let is_vocabulary = matches!(name, "token_embd.weight" | "output.weight");
    let wanted = match dtype {
        _ if !is_matrix => GgmlDType::F32,
        Dtype::Q4_0 if is_vocabulary => GgmlDType::Q8_0,
        dtype => dtype.codes().0,
    };
    let fits = shape.last().is_some_and(|width| width.is_multiple_of(wanted.block_size()));
    if fits { wanted } else { GgmlDType::F16 }
}
