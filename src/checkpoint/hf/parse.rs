//! Hugging Face's `config.json` back to our configuration. Ours are exact, through the object `"tinymoe"`; of others,
//! everything that we do not compute is refused by name.

use super::{OURS, model_type};
use crate::checkpoint::corrupt;
use crate::config::{Balance, Config, DEFAULTS, MAX_MEMORY_SLOTS, ModelConfig, RouterConfig, ScoringFunc};
use anyhow::{Context, Result, bail, ensure};
use serde::Deserialize;
use serde_json::{Map, Value, json};

/// No size in a configuration is larger: it keeps products of three of them in 64 bits.
const MAX_SIZE: u64 = 1 << 20;

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Ours {
    model: ModelConfig,
    router: RouterConfig,
}

/// Model, router and vocabulary size from the bytes of `origin`, a `config.json` of ours.
///
/// # Errors
/// `CorruptCheckpoint` for what is not such a configuration; a plain error for one that contradicts itself.
pub fn parse_config_json(bytes: &[u8], origin: &str) -> Result<(ModelConfig, RouterConfig, usize)> {
    parse(bytes, origin, from_object)
}

/// The same from the keys of one of the architectures that we write, as transformers writes them. What only training
/// needs has its default. An object `"tinymoe"` is passed over: transformers keeps it where it has changed the rest. Only
/// where no architecture of transformers says what the model is, ours does.
///
/// # Errors
/// `CorruptCheckpoint` for what is not a configuration or lacks a key; a plain error for an architecture or an option
/// that we do not compute.
pub fn parse_foreign_config_json(bytes: &[u8], origin: &str) -> Result<(ModelConfig, RouterConfig, usize)> {
    let read = |keys: &Keys, model_type: &str| match model_type {
        OURS => from_object(keys, model_type),
        _ => from_architecture(keys, model_type),
    };
    parse(bytes, origin, read)
}

/// From the object `"tinymoe"`.
fn from_object(keys: &Keys, _model_type: &str) -> Result<(ModelConfig, RouterConfig)> {
    let origin = keys.origin;
    let ours = keys.get(OURS).ok_or_else(|| corrupt(format!("{origin}: the object {OURS:?} is missing")))?;
    let ours = Ours::deserialize(ours).map_err(|error| corrupt(format!("{origin}: {OURS}: {error}")))?;
    Ok((ours.model, ours.router))
}

/// Keys of a `config.json` that say the same and differ, with the one that holds.
pub fn contradictions(config: &Map<String, Value>) -> Vec<String> {
    let get = |key: &str| config.get(key).filter(|value| !value.is_null());
    let mut found = Vec::new();
    for key in ["rope_theta", "partial_rotary_factor"] {
        let nested = get("rope_parameters").and_then(|rope| rope.get(key)).filter(|value| !value.is_null());
        if let (Some(outer), Some(inner)) = (get(key), nested)
            && outer.as_f64() != inner.as_f64()
        {
            found.push(format!(
                "config.json has {key} = {outer} and {inner} in rope_parameters; the latter holds, as in transformers 5"
            ));
        }
    }
    let counts = expert_count_keys(config.get("model_type").and_then(Value::as_str).unwrap_or_default());
    let mut counts = counts.into_iter().filter_map(|key| Some((key, get(key)?)));
    if let Some((first, count)) = counts.next()
        && let Some((other, value)) = counts.find(|(_, value)| *value != count)
    {
        found.push(format!("config.json has {first} = {count} and {other} = {value}; the former holds"));
    }
    found
}

/// The names that the number of experts goes by, the architecture's own first.
fn expert_count_keys(model_type: &str) -> [&'static str; 3] {
    match model_type {
        "glm4_moe" => ["n_routed_experts", "num_local_experts", "num_experts"],
        "mixtral" | "qwen3_moe" => ["num_local_experts", "num_experts", "n_routed_experts"],
        _ => ["num_experts", "num_local_experts", "n_routed_experts"],
    }
}

fn parse(
    bytes: &[u8],
    origin: &str,
    read: impl Fn(&Keys, &str) -> Result<(ModelConfig, RouterConfig)>,
) -> Result<(ModelConfig, RouterConfig, usize)> {
    let values = serde_json::from_slice(bytes).map_err(|error| corrupt(format!("{origin}: {error}")))?;
    let keys = Keys { values, origin };
    let claimed = keys.values.get("model_type").and_then(Value::as_str).unwrap_or_default();
    let vocab_size = keys.size("vocab_size")?;
    let (model, router) = read(&keys, claimed)?;
    check_shape(&model).map_err(|what| corrupt(format!("{origin}: {what}")))?;
    let actual = model_type(&model, &router);
    ensure!(claimed == actual, "{origin}: model_type is {claimed:?}, but the options are those of {actual:?}");
    Ok((model, router, vocab_size))
}

/// The keys of a `config.json`; null counts as absent, as in transformers.
struct Keys<'a> {
    values: Map<String, Value>,
    origin: &'a str,
}

impl Keys<'_> {
    fn get(&self, key: &str) -> Option<&Value> {
        self.values.get(key).filter(|value| !value.is_null())
    }

    fn size(&self, key: &str) -> Result<usize> {
        let value = self.get(key).ok_or_else(|| corrupt(format!("{}: {key} is missing", self.origin)))?;
        let size = value.as_u64().filter(|&size| size <= MAX_SIZE);
        size.map(|size| size as usize)
            .ok_or_else(|| corrupt(format!("{}: {key} = {value} is not a whole number up to {MAX_SIZE}", self.origin)))
    }

    fn size_or(&self, key: &str, default: usize) -> Result<usize> {
        if self.get(key).is_some() { self.size(key) } else { Ok(default) }
    }

    fn number_or(&self, key: &str, default: f64) -> Result<f64> {
        let Some(value) = self.get(key) else { return Ok(default) };
        value.as_f64().ok_or_else(|| corrupt(format!("{}: {key} = {value} is not a number", self.origin)))
    }

    fn flag_or(&self, key: &str, default: bool) -> Result<bool> {
        let Some(value) = self.get(key) else { return Ok(default) };
        value.as_bool().ok_or_else(|| corrupt(format!("{}: {key} = {value} is not true or false", self.origin)))
    }

    /// Rotary parameters moved into an object of their own in transformers 5.
    fn rope_number_or(&self, key: &str, default: f64) -> Result<f64> {
        let nested = self.get("rope_parameters").and_then(|rope| rope.get(key)).and_then(Value::as_f64);
        nested.map_or_else(|| self.number_or(key, default), Ok)
    }

    /// Refuses a key with another value than the only one that we compute.
    fn require(&self, key: &str, default: Value, supported: Value) -> Result<()> {
        let value = self.get(key).unwrap_or(&default);
        ensure!(*value == supported, "{}: {key} = {value} is not supported, only {supported} is", self.origin);
        Ok(())
    }
}

/// Reads a configuration that transformers wrote; absent keys have the architecture's own defaults.
fn from_architecture(keys: &Keys, model_type: &str) -> Result<(ModelConfig, RouterConfig)> {
    let origin = keys.origin;
    let known = ["qwen3", "llama", "qwen3_moe", "mixtral", "olmoe", "qwen2_moe", "glm4_moe"];
    if !known.contains(&model_type) {
        bail!("{origin}: model_type {model_type:?} is not supported, only {} are", known.join(", "));
    }
    refuse_unsupported(keys, model_type)?;
    let Config { mut model, mut router, .. } = toml::from_str(DEFAULTS).context("the built-in defaults")?;
    let heads = keys.size("num_attention_heads")?;
    model.hidden_size = keys.size("hidden_size")?;
    model.num_hidden_layers = keys.size("num_hidden_layers")?;
    model.num_attention_heads = heads;
    model.num_key_value_heads = match model_type {
        "llama" | "olmoe" => keys.size_or("num_key_value_heads", heads)?,
        _ => keys.size("num_key_value_heads")?,
    };
    let head_dim = if model_type == "qwen3" { Some(128) } else { model.hidden_size.checked_div(heads) };
    model.head_dim = keys.size_or("head_dim", head_dim.unwrap_or(0))?;
    if model_type == "glm4_moe" {
        model.partial_rotary_factor = keys.rope_number_or("partial_rotary_factor", 0.5)?;
    }
    model.max_position_embeddings = keys.size("max_position_embeddings")?;
    model.rope_theta = keys.rope_number_or("rope_theta", if model_type == "mixtral" { 1e6 } else { 1e4 })?;
    let eps = if matches!(model_type, "mixtral" | "olmoe" | "glm4_moe") { 1e-5 } else { 1e-6 };
    model.rms_norm_eps = keys.number_or("rms_norm_eps", eps)?;
    model.qk_norm = match model_type {
        "glm4_moe" => keys.flag_or("use_qk_norm", false)?,
        _ => matches!(model_type, "qwen3" | "qwen3_moe" | "olmoe"),
    };
    model.qk_norm_across_heads = model_type == "olmoe";
    model.qkv_bias = match model_type {
        "qwen2_moe" => keys.flag_or("qkv_bias", true)?,
        "glm4_moe" => keys.flag_or("attention_bias", false)?,
        _ => false,
    };
    model.tie_word_embeddings = keys.flag_or("tie_word_embeddings", false)?;
    model.initializer_range = keys.number_or("initializer_range", 0.02)?;
    model.intermediate_size = keys.size("intermediate_size")?;
    model.num_experts = 0;
    if !matches!(model_type, "qwen3" | "llama") {
        read_experts(keys, model_type, &mut model, &mut router)?;
    }
    Ok((model, router))
}

fn read_experts(keys: &Keys, model_type: &str, model: &mut ModelConfig, router: &mut RouterConfig) -> Result<()> {
    let glm = model_type == "glm4_moe";
    let experts = expert_count_keys(model_type);
    model.num_experts = keys.size(experts.into_iter().find(|key| keys.get(key).is_some()).unwrap_or(experts[0]))?;
    model.num_experts_per_tok = keys.size("num_experts_per_tok")?;
    let width = match model_type {
        "mixtral" | "olmoe" => "intermediate_size",
        _ => "moe_intermediate_size",
    };
    model.moe_intermediate_size = keys.size(width)?;
    (model.n_shared_experts, model.shared_expert_gate) = match model_type {
        "glm4_moe" => (keys.size_or("n_shared_experts", 1)?, false),
        "qwen2_moe" => (shared_experts(keys, model.moe_intermediate_size)?, true),
        _ => (0, false),
    };
    model.first_k_dense_replace =
        if glm { keys.size_or("first_k_dense_replace", 1)? } else { leading_dense_layers(keys)? };
    (router.scoring_func, router.balance) =
        if glm { (ScoringFunc::Sigmoid, Balance::Bias) } else { (ScoringFunc::Softmax, Balance::AuxLoss) };
    router.norm_topk_prob = model_type == "mixtral" || keys.flag_or("norm_topk_prob", glm)?;
    router.routed_scaling_factor = if glm { keys.number_or("routed_scaling_factor", 1.0)? } else { 1.0 };
    // See `hf::aux_loss_coef`.
    router.router_aux_loss_coef = keys.number_or("router_aux_loss_coef", 0.001)? * model.num_experts_per_tok as f64;
    Ok(())
}

/// qwen2_moe gives the width of its one shared expert; ours are counted in widths of an expert.
fn shared_experts(keys: &Keys, expert_width: usize) -> Result<usize> {
    let key = "shared_expert_intermediate_size";
    let (width, origin) = (keys.size(key)?, keys.origin);
    ensure!(
        expert_width > 0 && width.is_multiple_of(expert_width),
        "{origin}: {key} = {width} is not supported, only multiples of moe_intermediate_size = {expert_width} are"
    );
    Ok(width / expert_width)
}

/// How many layers `mlp_only_layers` makes dense, which must be the first ones.
fn leading_dense_layers(keys: &Keys) -> Result<usize> {
    let Some(layers) = keys.get("mlp_only_layers") else { return Ok(0) };
    let count = layers.as_array().map_or(0, Vec::len);
    let leading: Vec<usize> = (0..count).collect();
    ensure!(
        *layers == json!(leading),
        "{}: mlp_only_layers = {layers} is not supported, only the first layers can be dense",
        keys.origin
    );
    Ok(count)
}

/// Refuses by name what changes the forward pass and what we do not compute.
fn refuse_unsupported(keys: &Keys, model_type: &str) -> Result<()> {
    keys.require("hidden_act", json!("silu"), json!("silu"))?;
    for key in ["attention_bias", "mlp_bias", "use_sliding_window"] {
        // The other architectures' attention_bias is also one of the output.
        if (model_type, key) != ("glm4_moe", "attention_bias") {
            keys.require(key, json!(false), json!(false))?;
        }
    }
    for (key, supported) in [("n_group", 1), ("topk_group", 1), ("decoder_sparse_step", 1)] {
        keys.require(key, json!(supported), json!(supported))?;
    }
    for key in ["rope_scaling", "quantization_config", "clip_qkv"] {
        keys.require(key, Value::Null, Value::Null)?;
    }
    if model_type == "mixtral" {
        // The others read it only if use_sliding_window is set.
        keys.require("sliding_window", Value::Null, Value::Null)?;
    }
    let origin = keys.origin;
    if let Some(layers) = keys.get("layer_types").and_then(Value::as_array) {
        let other = layers.iter().find(|layer| *layer != "full_attention");
        ensure!(other.is_none(), "{origin}: layer_types other than \"full_attention\" are not supported");
    }
    let rope = keys.get("rope_parameters").and_then(|rope| rope.get("rope_type"));
    ensure!(rope.is_none_or(|rope| rope == "default"), "{origin}: only rope_type \"default\" is supported");
    let turned = keys.rope_number_or("partial_rotary_factor", 1.0)?;
    ensure!(
        turned == 1.0 || model_type == "glm4_moe",
        "{origin}: partial_rotary_factor = {turned} is not supported, only glm4_moe has one"
    );
    Ok(())
}

/// What must hold for the tensors' shapes to make sense.
fn check_shape(model: &ModelConfig) -> Result<(), String> {
    let mut sizes = vec![
        ("hidden_size", model.hidden_size),
        ("num_hidden_layers", model.num_hidden_layers),
        ("num_attention_heads", model.num_attention_heads),
        ("num_key_value_heads", model.num_key_value_heads),
        ("head_dim", model.head_dim),
        ("max_position_embeddings", model.max_position_embeddings),
    ];
    let moe = model.num_experts > 0;
    if moe {
        sizes.push(("num_experts", model.num_experts));
        sizes.push(("num_experts_per_tok", model.num_experts_per_tok));
        sizes.push(("moe_intermediate_size", model.moe_intermediate_size));
    }
    if !moe || model.first_k_dense_replace > 0 {
        sizes.push(("intermediate_size", model.intermediate_size));
    }
    let has_memory = !model.memory_layers.is_empty();
    if has_memory {
        sizes.push(("memory_dim", model.memory_dim));
    }
    for (key, size) in sizes {
        if size == 0 || size as u64 > MAX_SIZE {
            return Err(format!("{key} = {size} is not between 1 and {MAX_SIZE}"));
        }
    }
    if !model.num_attention_heads.is_multiple_of(model.num_key_value_heads) {
        return Err("num_attention_heads is not a multiple of num_key_value_heads".to_string());
    }
    if !model.head_dim.is_multiple_of(2) {
        return Err(format!("head_dim = {} is odd; rotary embeddings turn pairs of channels", model.head_dim));
    }
    let (fraction, turned) = (model.partial_rotary_factor, model.rotary_dim());
    if !(fraction > 0.0 && fraction <= 1.0 && turned > 0 && turned.is_multiple_of(2)) {
        return Err(format!("partial_rotary_factor = {fraction} is not an even number of a head's channels"));
    }
    if moe && model.num_experts_per_tok > model.num_experts {
        return Err("num_experts_per_tok is larger than num_experts".to_string());
    }
    if moe && model.first_k_dense_replace > model.num_hidden_layers {
        return Err("first_k_dense_replace is larger than num_hidden_layers".to_string());
    }
    let layers = &model.memory_layers;
    if !model.has_fitting_memory_layers() {
        return Err(format!("memory_layers = {layers:?} are not some of the layers in ascending order"));
    }
    if let Some(wanted) = model.bad_memory_ngrams().filter(|_| has_memory) {
        return Err(format!("memory_ngrams = {:?} are not {wanted}", model.memory_ngrams));
    }
    if has_memory && !(1..=MAX_MEMORY_SLOTS).contains(&model.memory_slots) {
        return Err(format!("memory_slots = {} is not between 1 and {MAX_MEMORY_SLOTS}", model.memory_slots));
    }
    if model.n_shared_experts as u64 > MAX_SIZE {
        return Err(format!("n_shared_experts = {} is too large", model.n_shared_experts));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::super::config_json;
    use super::super::tests::{OBSTACLES, VARIANTS, edited};
    use super::*;
    use crate::error::exit_code;
    use proptest::prelude::*;

    fn written(model: &ModelConfig, router: &RouterConfig) -> Map<String, Value> {
        serde_json::from_slice(&config_json(model, router, 1024, Some(0)).unwrap()).unwrap()
    }

    fn parse_ours(config: &Map<String, Value>) -> Result<(ModelConfig, RouterConfig, usize)> {
        parse_config_json(&serde_json::to_vec(config).unwrap(), "config.json")
    }

    fn parse(config: &Map<String, Value>) -> Result<(ModelConfig, RouterConfig, usize)> {
        parse_foreign_config_json(&serde_json::to_vec(config).unwrap(), "config.json")
    }

    /// A `config.json` as transformers would write it for variant `index`.
    fn foreign(index: usize) -> Map<String, Value> {
        let (model, router) = edited(VARIANTS[index].1);
        written(&model, &router)
    }

    #[test]
    fn our_own_configurations_come_back_exactly() {
        for (_, edit) in VARIANTS.iter().chain(OBSTACLES) {
            let (model, router) = edited(*edit);
            let parsed = parse_ours(&written(&model, &router)).unwrap();
            assert_eq!(parsed, (model, router, 1024));
        }
    }

    #[test]
    fn checkpoints_from_before_a_key_have_what_it_means_to_leave_it_out() {
        let (model, router) = edited(VARIANTS[0].1);
        let mut config = written(&model, &router);
        let keys = config["tinymoe"]["model"].as_object_mut().unwrap();
        for key in ["zero_init_residual", "expert_dropout", "attention_dropout"] {
            assert!(keys.remove(key).is_some(), "{key}");
        }
        assert_eq!(parse_ours(&config).unwrap(), (model, router, 1024));
    }

    #[test]
    fn the_keys_of_transformers_alone_rebuild_the_same_model() {
        for (index, (model_type, edit)) in VARIANTS.iter().enumerate() {
            let (mut model, router) = edited(*edit);
            let (found, found_router, vocab_size) = parse(&foreign(index)).unwrap();
            // What these architectures leave unsaid, and what has no effect.
            model.hidden_dropout = found.hidden_dropout;
            if matches!(*model_type, "mixtral" | "olmoe") {
                model.intermediate_size = found.intermediate_size;
            }
            if found.num_experts == 0 {
                (model.num_experts, model.first_k_dense_replace) = (0, 0);
            }
            assert_eq!((&found, vocab_size), (&model, 1024), "{model_type}");
            assert_eq!(found_router.scoring_func, router.scoring_func, "{model_type}");
            assert_eq!(found_router.norm_topk_prob, router.norm_topk_prob, "{model_type}");
            assert_eq!(found_router.routed_scaling_factor, router.routed_scaling_factor, "{model_type}");
        }
    }

    #[test]
    fn absent_keys_have_the_defaults_of_their_architecture() {
        let mut config = foreign(2);
        for key in ["rope_theta", "rope_parameters", "rms_norm_eps", "head_dim", "tie_word_embeddings"] {
            config.remove(key);
        }
        let (model, ..) = parse(&config).unwrap();
        assert_eq!((model.rope_theta, model.rms_norm_eps, model.head_dim), (1e6, 1e-5, 32));
        assert!(!model.tie_word_embeddings);
    }

    #[test]
    fn what_we_do_not_compute_is_refused_by_name() {
        for (index, key, value) in [
            (0, "hidden_act", json!("gelu")),
            (0, "attention_bias", json!(true)),
            (0, "use_sliding_window", json!(true)),
            (0, "mlp_only_layers", json!([1])),
            (0, "decoder_sparse_step", json!(2)),
            (0, "rope_scaling", json!({ "rope_type": "yarn", "factor": 4.0 })),
            (0, "rope_type", json!("x")),
            (0, "quantization_config", json!({ "bits": 4 })),
            (2, "sliding_window", json!(4096)),
            (3, "shared_expert_intermediate_size", json!(100)),
            (4, "n_group", json!(2)),
            (0, "partial_rotary_factor", json!(0.5)),
            (6, "clip_qkv", json!(8.0)),
            (7, "layer_types", json!(["sliding_attention"])),
            (9, "mlp_bias", json!(true)),
            (9, "model_type", json!("gpt2")),
        ] {
            let mut config = foreign(index);
            match key {
                "rope_type" => config["rope_parameters"][key] = value,
                "partial_rotary_factor" => config["rope_parameters"][key] = value,
                _ => drop(config.insert(key.to_string(), value)),
            }
            let error = parse(&config).expect_err(key);
            assert_eq!(exit_code(&error), 1, "{error:#}");
            assert!(error.to_string().contains(key), "{key}: {error:#}");
        }
    }

    #[test]
    fn missing_or_senseless_sizes_are_corrupt_and_named() {
        for (key, value) in [
            ("hidden_size", Value::Null),
            ("num_attention_heads", json!(0)),
            ("num_key_value_heads", json!(3)),
            ("head_dim", json!(7)),
            ("num_experts_per_tok", json!(9)),
            ("vocab_size", json!(-1)),
            ("moe_intermediate_size", json!(1u64 << 40)),
            ("rms_norm_eps", json!("small")),
        ] {
            let mut config = foreign(0);
            config.insert(key.to_string(), value);
            let error = parse(&config).expect_err(key);
            assert_eq!(exit_code(&error), 4, "{key}: {error:#}");
            assert!(error.to_string().contains(key), "{key}: {error:#}");
        }
    }

    #[test]
    fn options_that_contradict_the_model_type_are_refused() {
        let (model, router) = edited(|_, _| {});
        let mut config = written(&model, &router);
        config["tinymoe"]["model"]["qk_norm"] = json!(false);
        assert!(parse_ours(&config).unwrap_err().to_string().contains("\"mixtral\""));
        config["tinymoe"]["model"]["qk_nrom"] = json!(false);
        assert_eq!(exit_code(&parse_ours(&config).unwrap_err()), 4);
        config.remove("tinymoe");
        assert_eq!(exit_code(&parse_ours(&config).unwrap_err()), 4);
    }

    #[test]
    fn more_dense_layers_than_layers_are_corrupt() {
        let (model, router) = edited(|_, _| {});
        let mut config = written(&model, &router);
        config["tinymoe"]["model"]["first_k_dense_replace"] = json!(1u64 << 40);
        let error = parse_ours(&config).unwrap_err();
        assert_eq!(exit_code(&error), 4);
        assert!(error.to_string().contains("first_k_dense_replace"), "{error:#}");
        // Not only read from a file they must not make the model seem small.
        let count = |first_k_dense_replace| {
            crate::config::estimated_parameters(&ModelConfig { first_k_dense_replace, ..model.clone() }, 1024)
        };
        assert_eq!(count(1 << 40), count(model.num_hidden_layers));
    }

    #[test]
    fn a_configuration_cut_at_any_length_is_refused() {
        let (model, router) = edited(|_, _| {});
        let whole = config_json(&model, &router, 1024, Some(0)).unwrap();
        for length in 0..whole.len() {
            assert_eq!(exit_code(&parse_config_json(&whole[..length], "config.json").unwrap_err()), 4);
        }
    }

    proptest! {
        #[test]
        fn random_bytes_are_refused_without_panic(bytes in prop::collection::vec(any::<u8>(), 0..300)) {
            prop_assert!(parse_config_json(&bytes, "config.json").is_err());
        }

        #[test]
        fn a_configuration_with_any_number_changed_never_panics(
            index in 0..VARIANTS.len(),
            key in any::<prop::sample::Index>(),
            value in any::<u64>(),
            own in any::<bool>(),
        ) {
            let (model, router) = edited(VARIANTS[index].1);
            let mut config = if own { written(&model, &router) } else { foreign(index) };
            let target = if own { config["tinymoe"]["model"].as_object_mut().unwrap() } else { &mut config };
            let key = key.get(&target.keys().cloned().collect::<Vec<_>>()).clone();
            target.insert(key, json!(value >> (value % 64)));
            let _ = if own { parse_ours(&config) } else { parse(&config) };
        }
    }
}
