//! The GGUF writer: any small model with any tokenizer, written and read again, is the same model.

use super::part;
use candle_core::Device;
use candle_core::quantized::gguf_file::{Content, Value};
use serde_json::Value as Json;
use std::collections::{BTreeMap, HashMap};
use std::io::Cursor;
use tinymoe::checkpoint::gguf::{self, Dtype};
use tinymoe::config::{Balance, Config, ModelConfig, RouterConfig, ScoringFunc};
use tinymoe::model::transformer::Transformer;
use tinymoe::tokenizer::Tokenizer;

/// Bytes that choose type and shape.
pub const CHOICES: usize = 16;
/// With each type, how many steps there are from zero to the largest number of a block.
const DTYPES: [(Dtype, f32); 5] =
    [(Dtype::F32, f32::INFINITY), (Dtype::F16, 2048.0), (Dtype::Bf16, 256.0), (Dtype::Q8_0, 127.0), (Dtype::Q4_0, 8.0)];
/// Half of the smallest f16 above zero: what a number or a block's scale is off by at least.
const SMALLEST: f32 = 1.0 / (1 << 25) as f32;

/// [`CHOICES`] bytes, the length of `tokenizer.json` in two bytes, `tokenizer.json`, and weights, over and over. None for
/// what is refused.
pub fn compare(bytes: &[u8]) -> Option<()> {
    let mut rest = bytes;
    let choices = rest.split_off(..CHOICES)?;
    let tokenizer = Tokenizer::from_json(part(&mut rest)?, "tokenizer.json").ok()?;
    let ((dtype, steps), model, router) = shape(choices);
    let vocab_size = tokenizer.vocab_size() + usize::from(choices[15] % 4);
    if vocab_size > 1000 || gguf::architecture(&model, &router).is_err() {
        return None;
    }
    let model = Transformer::blank(&model, &router, vocab_size).unwrap();
    let numbers: Vec<f32> = rest.as_chunks().0.iter().map(|&bytes| f32::from_le_bytes(bytes)).collect();
    let mut finite = numbers.iter().map(|&number| if number.is_finite() { number } else { 0.5 }).cycle();
    model.parameters.values_mut().iter_mut().for_each(|value| *value = finite.next().unwrap_or(0.25));

    let (metadata, exact) = written(&model, &tokenizer, Dtype::F32)?;
    check_sizes(&metadata, &model);
    check_tokens(&metadata, &tokenizer, vocab_size);
    assert_eq!(bits(numbers_of(&exact, &model)), bits(used_weights(&model)), "the weights, wherever they stand");

    // Weights may be too large for the others.
    let (_, stored) = written(&model, &tokenizer, dtype)?;
    assert!(stored.keys().eq(exact.keys()));
    for (name, (shape, found)) in stored {
        let (exact_shape, exact) = &exact[&name];
        assert_eq!(&shape, exact_shape, "{name}");
        for (found, exact) in found.chunks(32).zip(exact.chunks(32)) {
            let largest = exact.iter().fold(0f32, |largest, number| largest.max(number.abs()));
            let scale = if matches!(dtype, Dtype::Q8_0 | Dtype::Q4_0) { steps } else { 1.0 };
            let allowed = 1.01 * (largest / steps) + scale * SMALLEST;
            for (found, exact) in found.iter().zip(exact) {
                assert!((found - exact).abs() <= allowed, "{dtype:?} {name}: {found} for {exact} beside {largest}");
            }
        }
    }
    Some(())
}

/// A small model of any kind. Many have no architecture in llama.cpp.
fn shape(choices: &[u8]) -> ((Dtype, f32), ModelConfig, RouterConfig) {
    let one_of = |choice: usize, options: &[usize]| options[usize::from(choices[choice]) % options.len()];
    let flag = |bit: u8| choices[1 + usize::from(bit / 8)] >> (bit % 8) & 1 == 1;
    let Config { mut model, mut router, .. } = Config::default();
    model.hidden_size = one_of(3, &[32, 8, 64, 6, 96, 2, 34]);
    model.num_hidden_layers = one_of(4, &[1, 2, 3]);
    model.num_attention_heads = one_of(5, &[2, 1, 4, 3]);
    model.num_key_value_heads = model.num_attention_heads / one_of(6, &[1, 2, 4, 3]).min(model.num_attention_heads);
    model.num_key_value_heads = if model.num_attention_heads == 3 { 3 } else { model.num_key_value_heads };
    model.head_dim = one_of(7, &[0, 2, 4, 32, 6]);
    if model.head_dim == 0 {
        model.head_dim = (model.hidden_size / model.num_attention_heads).max(1).next_multiple_of(2);
    }
    model.num_experts = one_of(8, &[4, 0, 1, 2, 7]);
    model.num_experts_per_tok = one_of(9, &[2, 1, 3]).min(model.num_experts);
    model.moe_intermediate_size = one_of(10, &[8, 32, 1, 33]);
    model.intermediate_size = one_of(11, &[16, 64, 1, 3]);
    model.n_shared_experts = one_of(12, &[0, 1, 2]).min(model.num_experts);
    model.first_k_dense_replace = one_of(13, &[0, 1, 2, 3]).min(model.num_hidden_layers);
    model.max_position_embeddings = one_of(14, &[16, 1, 1000]);
    model.tie_word_embeddings = flag(0);
    model.qk_norm = flag(1) || flag(2);
    model.qk_norm_across_heads = flag(2);
    model.qkv_bias = flag(3);
    model.shared_expert_gate = flag(4);
    router.norm_topk_prob = flag(5);
    router.noisy_gate = flag(6);
    if flag(7) {
        (router.scoring_func, router.balance) = (ScoringFunc::Sigmoid, Balance::Bias);
        router.routed_scaling_factor = if flag(8) { 2.5 } else { 1.0 };
        model.partial_rotary_factor = if flag(9) { 0.5 } else { 1.0 };
    }
    (DTYPES[usize::from(choices[0]) % DTYPES.len()], model, router)
}

type Tensors = BTreeMap<String, (Vec<usize>, Vec<f32>)>;

/// What is read again after writing; none if the writer refuses.
fn written(model: &Transformer, tokenizer: &Tokenizer, dtype: Dtype) -> Option<(HashMap<String, Value>, Tensors)> {
    let mut file = Cursor::new(Vec::new());
    gguf::write(&mut file, model, tokenizer, None, dtype, "a name").ok()?;
    file.set_position(0);
    let content = Content::read(&mut file).unwrap();
    let mut tensors = Tensors::new();
    for name in content.tensor_infos.keys() {
        let tensor = content.tensor(&mut file, name, &Device::Cpu).unwrap().dequantize(&Device::Cpu).unwrap();
        let numbers = tensor.flatten_all().unwrap().to_vec1().unwrap();
        tensors.insert(name.clone(), (tensor.dims().to_vec(), numbers));
    }
    Some((content.metadata, tensors))
}

fn check_sizes(metadata: &HashMap<String, Value>, transformer: &Transformer) {
    let model = &transformer.model;
    let architecture = metadata["general.architecture"].to_string().unwrap();
    let key = |key: &str| &metadata[&format!("{architecture}.{key}")];
    for (name, size) in [
        ("vocab_size", transformer.vocab_size),
        ("context_length", model.max_position_embeddings),
        ("embedding_length", model.hidden_size),
        ("block_count", model.num_hidden_layers),
        ("attention.head_count", model.num_attention_heads),
        ("attention.head_count_kv", model.num_key_value_heads),
        ("attention.key_length", model.head_dim),
        ("attention.value_length", model.head_dim),
        ("rope.dimension_count", model.rotary_dim()),
    ] {
        assert_eq!(key(name).to_u32().unwrap() as usize, size, "{name}");
    }
    assert_eq!(key("rope.freq_base").to_f32().unwrap(), model.rope_theta as f32);
    assert_eq!(key("attention.layer_norm_rms_epsilon").to_f32().unwrap(), model.rms_norm_eps as f32);
    if !transformer.moe_layers().is_empty() {
        assert_eq!(key("expert_count").to_u32().unwrap() as usize, model.num_experts);
        assert_eq!(key("expert_used_count").to_u32().unwrap() as usize, model.num_experts_per_tok);
        assert_eq!(key("expert_feed_forward_length").to_u32().unwrap() as usize, model.moe_intermediate_size);
    }
}

/// llama.cpp reads out of a token's name and type what our tokenizer says that it stands for.
fn check_tokens(metadata: &HashMap<String, Value>, tokenizer: &Tokenizer, vocab_size: usize) {
    let list = |key: &str| metadata[&format!("tokenizer.ggml.{key}")].to_vec().unwrap();
    let (names, kinds) = (list("tokens"), list("token_type"));
    assert_eq!((names.len(), kinds.len()), (vocab_size, vocab_size));
    let json: Json = serde_json::from_slice(&tokenizer.to_json().unwrap()).unwrap();
    for (id, (name, kind)) in (0u32..).zip(names.iter().zip(kinds)) {
        let (name, kind) = (name.to_string().unwrap(), kind.to_i32().unwrap());
        if json["model"]["unk_token"] == **name {
            continue;
        }
        let bytes: Vec<u8> = match kind {
            1 => {
                let bytes: Option<Vec<u8>> = name.chars().map(byte_of).collect();
                bytes.unwrap_or_else(|| name.as_bytes().to_vec())
            }
            4 => name.as_bytes().to_vec(),
            _ => Vec::new(),
        };
        assert_eq!(bytes, tokenizer.token_bytes(id), "token {id}, {name:?} of type {kind}");
        assert!(kind != 3 || *name == tokenizer.token_text(id), "token {id} is {name:?}");
    }
    let ours = json["model"]["merges"].as_array().map_or(0, Vec::len);
    assert_eq!(list("merges").len(), ours.max(1));
    for merge in list("merges") {
        assert_eq!(merge.to_string().unwrap().matches(' ').count(), 1, "{merge:?}");
    }
    let end = metadata.get("tokenizer.ggml.eos_token_id").map(|id| id.to_u32().unwrap());
    assert_eq!(end, tokenizer.end_of_text());
}

/// The byte that a character of a byte-level token stands for: GPT-2's table.
fn byte_of(character: char) -> Option<u8> {
    let is_printable = |byte: &u8| matches!(byte, b'!'..=b'~' | 0xa1..=0xac | 0xae..=0xff);
    match u8::try_from(character) {
        Ok(byte) => Some(byte).filter(is_printable),
        Err(_) => (0..=255).filter(|byte| !is_printable(byte)).nth((character as usize).checked_sub(0x100)?),
    }
}

/// All numbers of a file, save for a head that repeats the embedding.
fn numbers_of(tensors: &Tensors, model: &Transformer) -> Vec<f32> {
    let repeats = |name: &str| model.model.tie_word_embeddings && name == "output.weight";
    tensors.iter().filter(|(name, _)| !repeats(name)).flat_map(|(_, (_, numbers))| numbers.clone()).collect()
}

/// The weights that have a part in running the model.
fn used_weights(model: &Transformer) -> Vec<f32> {
    let values = model.parameters.values();
    let used = model.parameters.list().iter().filter(|parameter| !parameter.name.ends_with("noise_weight"));
    used.flat_map(|parameter| values[parameter.range.clone()].to_vec()).collect()
}

fn bits(numbers: Vec<f32>) -> Vec<u32> {
    let mut bits: Vec<u32> = numbers.into_iter().map(f32::to_bits).collect();
    bits.sort_unstable();
    bits
}
