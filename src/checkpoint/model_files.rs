//! A model with its tokenizer, and an optimizer's state, as the files of a checkpoint and back.

use super::companions::Companions;
use super::tensors::{TensorSlot, TensorView, decode, encode as encode_tensors};
use super::{Files, corrupt, hf};
use crate::config::{ModelConfig, RouterConfig, estimated_parameters};
use crate::model::parameters::slices_mut;
use crate::model::transformer::Transformer;
use crate::optim::Optimizer;
use crate::tokenizer::Tokenizer;
use anyhow::Result;
use std::ops::Range;

/// The Hugging Face files: configuration, weights, tokenizer.
pub fn encode(model: &Transformer, tokenizer: &Tokenizer) -> Result<Vec<(&'static str, Vec<u8>)>> {
    let config = hf::config_json(&model.model, &model.router, model.vocab_size, tokenizer.end_of_text())?;
    let weights = encode_tensors(&views(model, "", &model.parameters.values()))?;
    let [config, generation, tokenizer, tokenizer_config] = encode_texts(model, tokenizer, config)?;
    Ok(vec![config, generation, ("model.safetensors", weights), tokenizer, tokenizer_config])
}

/// The same files for other programs: without what only training has, and with what was read beside the model where it
/// comes from elsewhere.
pub fn encode_export(
    model: &Transformer,
    tokenizer: &Tokenizer,
    companions: Option<&Companions>,
) -> Result<Vec<(String, Vec<u8>)>> {
    let router = RouterConfig { noisy_gate: false, ..model.router.clone() };
    let config = hf::config_json(&model.model, &router, model.vocab_size, tokenizer.end_of_text())?;
    let values = model.parameters.values();
    let mut tensors = views(model, "", &values);
    tensors.retain(|tensor| !hf::is_for_training_only(&tensor.name));
    let mut files: Vec<(String, Vec<u8>)> = encode_texts(model, tokenizer, config)?
        .into_iter()
        .chain([("model.safetensors", encode_tensors(&tensors)?)])
        .map(|(name, bytes)| (name.to_string(), bytes))
        .collect();
    if let Some(companions) = companions {
        companions.put_into(&mut files)?;
    }
    Ok(files)
}

/// All files but the weights.
fn encode_texts(model: &Transformer, tokenizer: &Tokenizer, config: Vec<u8>) -> Result<[(&'static str, Vec<u8>); 4]> {
    Ok([
        ("config.json", config),
        ("generation_config.json", hf::generation_config_json(tokenizer.end_of_text())?),
        ("tokenizer.json", tokenizer.to_json()?),
        ("tokenizer_config.json", tokenizer.config_json(model.model.max_position_embeddings)?),
    ])
}

/// A model and its tokenizer, ready to run.
pub fn load(files: &Files) -> Result<(Transformer, Tokenizer)> {
    let (model, router, vocab_size) = hf::parse_config_json(files.get("config.json")?, "config.json")?;
    let tokenizer = Tokenizer::from_json(files.get("tokenizer.json")?, "tokenizer.json")?;
    check_tokenizer(&tokenizer, vocab_size)?;
    check_size(&model, vocab_size, files.get("model.safetensors")?.len() / 4)?;
    let model = Transformer::blank(&model, &router, vocab_size)?;
    decode_weights(files, &model)?;
    Ok((model, tokenizer))
}

fn check_tokenizer(tokenizer: &Tokenizer, vocab_size: usize) -> Result<()> {
    let tokens = tokenizer.vocab_size();
    if tokens > vocab_size {
        return Err(corrupt(format!("tokenizer.json has {tokens} tokens, config.json a vocab_size of {vocab_size}")));
    }
    Ok(())
}

/// Numbers in the keys of one layer that a whole context takes: 262,144 positions of 8 heads with 128 channels.
const MAX_KEYS: f64 = (1 << 28) as f64;

/// Refuses sizes for which the files hold too few numbers, before anything is allocated for them. `numbers` is how many
/// there are at most.
pub(super) fn check_size(model: &ModelConfig, vocab_size: usize, numbers: usize) -> Result<()> {
    let weights = estimated_parameters(model, vocab_size);
    let keys = model.max_position_embeddings as f64 * model.head_dim as f64 * model.num_key_value_heads as f64;
    if weights > numbers as f64 {
        return Err(corrupt(format!(
            "config.json describes a model of {weights:.0} parameters; the weights are {numbers} at most"
        )));
    }
    if keys > MAX_KEYS {
        return Err(corrupt(format!(
            "config.json: max_position_embeddings = {} would take {:.1} GiB of keys in each layer, more than 1; make it \
             smaller to use the model with a shorter context",
            model.max_position_embeddings,
            keys * 4.0 / (1u64 << 30) as f64
        )));
    }
    Ok(())
}

/// Fills a model of the right shape with the weights of a checkpoint.
pub fn decode_weights(files: &Files, model: &Transformer) -> Result<()> {
    let mut values = model.parameters.values_mut();
    decode(files.get("model.safetensors")?, "model.safetensors", &mut slots(model, "", &mut values))
}

/// The moments that the optimizer's rules keep.
pub fn encode_optimizer(model: &Transformer, optimizer: &Optimizer) -> Result<Vec<u8>> {
    let mut tensors = views(model, "exp_avg.", &optimizer.exp_avg);
    let squares = views(model, "exp_avg_sq.", &optimizer.exp_avg_sq).into_iter().zip(model.parameters.list());
    tensors.extend(squares.filter(|(_, parameter)| optimizer.has_second_moment(parameter)).map(|(view, _)| view));
    encode_tensors(&tensors)
}

pub fn decode_optimizer(files: &Files, model: &Transformer, optimizer: &mut Optimizer) -> Result<()> {
    let has_square: Vec<bool> =
        model.parameters.list().iter().map(|parameter| optimizer.has_second_moment(parameter)).collect();
    let mut expected = slots(model, "exp_avg.", &mut optimizer.exp_avg);
    let squares = slots(model, "exp_avg_sq.", &mut optimizer.exp_avg_sq).into_iter().zip(has_square);
    expected.extend(squares.filter(|(_, has)| *has).map(|(slot, _)| slot));
    decode(files.get("optimizer.safetensors")?, "optimizer.safetensors", &mut expected)
}

/// Named tensors over a flat buffer that is laid out like the model's parameters.
fn views<'a>(model: &Transformer, prefix: &str, buffer: &'a [f32]) -> Vec<TensorView<'a>> {
    let parameters = model.parameters.list().iter();
    let names = names(model, prefix);
    parameters
        .zip(names)
        .map(|(parameter, name)| TensorView {
            name,
            shape: parameter.shape.clone(),
            data: &buffer[parameter.range.clone()],
        })
        .collect()
}

pub(super) fn slots<'a>(model: &Transformer, prefix: &str, buffer: &'a mut [f32]) -> Vec<TensorSlot<'a>> {
    let parameters = model.parameters.list();
    let ranges: Vec<Range<usize>> = parameters.iter().map(|parameter| parameter.range.clone()).collect();
    let slices = slices_mut(buffer, &ranges).into_iter().zip(names(model, prefix));
    let slot = |(parameter, (data, name)): (&crate::model::parameters::Parameter, (&'a mut [f32], String))| {
        TensorSlot { name, shape: parameter.shape.clone(), data }
    };
    parameters.iter().zip(slices).map(slot).collect()
}

fn names(model: &Transformer, prefix: &str) -> Vec<String> {
    let model_type = hf::model_type(&model.model, &model.router);
    let name = |canonical: &str| format!("{prefix}{}", hf::tensor_name(model_type, canonical));
    model.parameters.list().iter().map(|parameter| name(&parameter.name)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Config;

    #[test]
    fn a_context_with_too_many_keys_is_refused_by_name() {
        let mut model = Config::default().model;
        (model.num_key_value_heads, model.head_dim, model.max_position_embeddings) = (8, 128, 1 << 18);
        check_size(&model, 300, usize::MAX).unwrap();
        model.max_position_embeddings += 1;
        let error = check_size(&model, 300, usize::MAX).unwrap_err().to_string();
        assert!(error.contains("max_position_embeddings = 262145 would take"), "{error}");
    }
}
