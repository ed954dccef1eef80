//! A model directory that transformers wrote: `config.json`, `tokenizer.json`, and weights in one safetensors file or in
//! several with an index. No manifest proves it whole, so every tensor's name, shape and place is checked.
//!
//! Weights of 16 bits are widened to f32 as they are read, a few megabytes at a time: a model takes four bytes a
//! parameter, whatever its files take.

use super::model_files::{check_size, check_tokenizer, slots};
use super::tensors::TensorSlot;
use super::{corrupt, directory, hf};
use crate::model::transformer::Transformer;
use crate::tokenizer::Tokenizer;
use anyhow::{Context, Result, bail, ensure};
use half::{bf16, f16};
use safetensors::tensor::{Dtype, Metadata};
use serde_json::Value;
use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};

const ONE_FILE: &str = "model.safetensors";
const INDEX: &str = "model.safetensors.index.json";
/// The largest models' headers and indices have a few megabytes.
const MAX_JSON_BYTES: u64 = 256 << 20;
/// Bytes that are read at once.
const CHUNK: usize = 4 << 20;

/// Whether `directory` holds a model that is not one of our checkpoints. Those have a manifest; one that lost it still
/// has its trainer's state.
pub fn is_foreign(directory: &Path) -> bool {
    let has = |name: &str| directory.join(name).is_file();
    has("config.json") && !directory::is_checkpoint(directory) && !has("trainer_state.json")
}

/// The model in `directory` and its tokenizer, ready to run.
///
/// # Errors
/// `CorruptCheckpoint` for damaged or missing files and tensors; a plain error, naming it, for what we do not compute.
pub fn load(directory: &Path) -> Result<(Transformer, Tokenizer)> {
    let (model, router, vocab_size) =
        hf::parse_foreign_config_json(&read_json(directory, "config.json")?, "config.json")?;
    let hint = "; only models with a fast tokenizer can be read (transformers writes one with save_pretrained)";
    ensure!(directory.join("tokenizer.json").is_file(), "{} has no tokenizer.json{hint}", directory.display());
    let tokenizer = Tokenizer::from_json(&read_json(directory, "tokenizer.json")?, "tokenizer.json")?;
    check_tokenizer(&tokenizer, vocab_size)?;
    let mut weights = Weights::open(directory)?;
    check_size(&model, vocab_size, weights.total_bytes() / 2)?;
    let model = Transformer::blank(&model, &router, vocab_size)?;
    let mut values = model.parameters.values_mut();
    let mut slots = slots(&model, "", &mut values);
    let model_type = hf::model_type(&model.model, &model.router);
    let expected: BTreeSet<String> = slots.iter().map(|slot| slot.name.clone()).collect();
    weights.refuse_others(&expected, |name| is_passed_over(name, model_type, model.model.num_hidden_layers))?;
    for slot in &mut slots {
        weights.fill(slot)?;
    }
    drop(slots);
    drop(values);
    Ok((model, tokenizer))
}

/// Tensors that the forward pass does not use: tables that older versions stored, a head that is the embedding, the noise
/// of our own noisy gates, and the layers behind the last one, with which GLM-4.5 guesses further tokens.
fn is_passed_over(name: &str, model_type: &str, layers: usize) -> bool {
    let layer = name.strip_prefix("model.layers.").and_then(|rest| rest.split('.').next()).and_then(|n| n.parse().ok());
    let behind_the_last = model_type == "glm4_moe" && layer.is_some_and(|layer: usize| layer >= layers);
    let unused = ["rotary_emb.inv_freq", ".mlp.gate.noise_weight"].iter().any(|end| name.ends_with(end));
    unused || name == "lm_head.weight" || behind_the_last
}

fn read_json(directory: &Path, name: &str) -> Result<Vec<u8>> {
    let path = directory.join(name);
    let read = || -> std::io::Result<Vec<u8>> {
        let mut bytes = Vec::new();
        File::open(&path)?.take(MAX_JSON_BYTES).read_to_end(&mut bytes)?;
        Ok(bytes)
    };
    read().with_context(|| format!("cannot read {}", path.display()))
}

/// The safetensors files of a model.
struct Weights {
    files: Vec<WeightFile>,
    /// Which file holds a tensor.
    file_of: BTreeMap<String, usize>,
}

struct WeightFile {
    path: PathBuf,
    file: File,
    metadata: Metadata,
    /// Where the numbers start.
    start: u64,
}

impl Weights {
    fn open(directory: &Path) -> Result<Self> {
        let names = match directory.join(INDEX) {
            path if path.is_file() => {
                let index: Value = serde_json::from_slice(&read_json(directory, INDEX)?)
                    .map_err(|error| corrupt(format!("{}: {error}", path.display())))?;
                let map = index["weight_map"].as_object();
                let map = map.ok_or_else(|| corrupt(format!("{} has no weight_map", path.display())))?;
                map.values().filter_map(Value::as_str).map(String::from).collect()
            }
            _ if directory.join(ONE_FILE).is_file() => BTreeSet::from([ONE_FILE.to_string()]),
            _ => bail!(
                "{} has neither {ONE_FILE} nor {INDEX}; weights in other formats (pytorch_model.bin, ...) are not read: \
                 load the model in transformers and save it again",
                directory.display()
            ),
        };
        let mut weights = Self { files: Vec::new(), file_of: BTreeMap::new() };
        for name in names {
            ensure!(directory::is_plain_name(&name), "{INDEX} names {name:?}, which is not a file beside it");
            let file = WeightFile::open(directory.join(name))?;
            for tensor in file.metadata.offset_keys() {
                if weights.file_of.insert(tensor.clone(), weights.files.len()).is_some() {
                    return Err(corrupt(format!("tensor {tensor:?} stands in two files")));
                }
            }
            weights.files.push(file);
        }
        Ok(weights)
    }

    fn total_bytes(&self) -> usize {
        self.files.iter().map(|file| file.metadata.data_len()).sum()
    }

    fn refuse_others(&self, expected: &BTreeSet<String>, is_passed_over: impl Fn(&str) -> bool) -> Result<()> {
        let others = self.file_of.iter().filter(|(name, _)| !expected.contains(*name) && !is_passed_over(name));
        let others: Vec<_> = others.collect();
        let Some(&(name, &file)) = others.first() else { return Ok(()) };
        let hint = if name.ends_with(".mlp.experts.gate_up_proj") || name.ends_with(".mlp.experts.down_proj") {
            " (all experts in one tensor: save the model with save_original_format=True)"
        } else {
            ""
        };
        bail!(
            "{} holds {name:?}, which this architecture does not have here ({} such tensors){hint}",
            self.files[file].path.display(),
            others.len()
        );
    }

    /// Reads the tensor that `slot` names into it.
    fn fill(&mut self, slot: &mut TensorSlot) -> Result<()> {
        let name = &slot.name;
        let file = self.file_of.get(name).ok_or_else(|| corrupt(format!("tensor {name:?} is missing")))?;
        let WeightFile { path, file, metadata, start } = &mut self.files[*file];
        let refuse = |what: String| corrupt(format!("{}: tensor {name:?} {what}", path.display()));
        let info = metadata.info(name).ok_or_else(|| refuse("is missing".into()))?;
        if info.shape != slot.shape {
            return Err(refuse(format!("has shape {:?}, expected {:?}", info.shape, slot.shape)));
        }
        let widen: fn(&[u8]) -> f32 = match info.dtype {
            Dtype::F32 => |bytes| f32::from_le_bytes(bytes.try_into().unwrap_or_default()),
            Dtype::BF16 => |bytes| bf16::from_le_bytes(bytes.try_into().unwrap_or_default()).to_f32(),
            Dtype::F16 => |bytes| f16::from_le_bytes(bytes.try_into().unwrap_or_default()).to_f32(),
            other => bail!("{}: tensor {name:?} has dtype {other}; F32, BF16 and F16 are read", path.display()),
        };
        let width = info.dtype.bitsize() / 8;
        if info.data_offsets.1 - info.data_offsets.0 != slot.data.len() * width {
            return Err(refuse("has another size than its shape".into()));
        }
        file.seek(SeekFrom::Start(*start + info.data_offsets.0 as u64))?;
        let mut buffer = vec![0; CHUNK.min(slot.data.len() * width)];
        for places in slot.data.chunks_mut((CHUNK / width).max(1)) {
            let bytes = &mut buffer[..places.len() * width];
            file.read_exact(bytes).with_context(|| format!("cannot read {}", path.display()))?;
            for (place, bytes) in places.iter_mut().zip(bytes.chunks_exact(width)) {
                *place = widen(bytes);
            }
        }
        match slot.data.iter().position(|number| !number.is_finite()) {
            Some(index) => Err(refuse(format!("holds {} at index {index}", slot.data[index]))),
            None => Ok(()),
        }
    }
}

impl WeightFile {
    fn open(path: PathBuf) -> Result<Self> {
        let unreadable = || format!("cannot read {}", path.display());
        let mut file = File::open(&path).with_context(unreadable)?;
        let size = file.metadata().with_context(unreadable)?.len();
        let refuse = |what: &str| corrupt(format!("{}: {what}", path.display()));
        let mut length = [0; 8];
        file.read_exact(&mut length).map_err(|_| refuse("too short for a safetensors file"))?;
        let length = u64::from_le_bytes(length);
        if length > MAX_JSON_BYTES || length + 8 > size {
            return Err(refuse("its header is longer than the file, or absurdly long"));
        }
        let mut header = vec![0; length as usize];
        file.read_exact(&mut header).with_context(unreadable)?;
        let metadata: Metadata = serde_json::from_slice(&header).map_err(|error| refuse(&error.to_string()))?;
        let start = length + 8;
        if start + metadata.data_len() as u64 != size {
            let expected = start + metadata.data_len() as u64;
            return Err(refuse(&format!(
                "it has {size} bytes, its header says {expected}: it was cut off or extended"
            )));
        }
        Ok(Self { path, file, metadata, start })
    }
}
