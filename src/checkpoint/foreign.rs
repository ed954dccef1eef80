//! A model directory that transformers wrote: `config.json`, `tokenizer.json`, and weights in one safetensors file or in
//! several with an index. No manifest proves it whole, so every tensor's name, shape and place is checked.
//!
//! Weights of 16 bits are widened to f32 as they are read, a few megabytes at a time: a model takes four bytes a
//! parameter, whatever its files take.

use super::companions::{Companions, MAX_FILE_BYTES, read_file};
use super::model_files::{check_size, slots};
use super::tensors::TensorSlot;
use super::{corrupt, directory, hf};
use crate::model::transformer::Transformer;
use crate::tokenizer::Tokenizer;
use anyhow::{Context, Result, bail, ensure};
use half::{bf16, f16};
use safetensors::tensor::{Dtype, Metadata, TensorInfo};
use serde_json::{Map, Value};
use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};

const ONE_FILE: &str = "model.safetensors";
const INDEX: &str = "model.safetensors.index.json";
const EMBEDDING: &str = "model.embed_tokens.weight";
const HEAD: &str = "lm_head.weight";
/// Numbers that are read at once.
const CHUNK: usize = 1 << 20;

/// A model that transformers wrote, ready to run.
pub struct Foreign {
    pub model: Transformer,
    pub tokenizer: Tokenizer,
    /// What an export has to say again.
    pub companions: Companions,
    /// Where files contradict each other or name what is not there, and what was made of it.
    pub warnings: Vec<String>,
}

/// Whether `directory` holds a model that is not one of our checkpoints. Those are known by what their manifest says, or
/// where it was lost, by their trainer's state: files of the same names come from others, too.
pub fn is_foreign(directory: &Path) -> bool {
    let json = |name: &str| -> Option<Value> { serde_json::from_slice(&read_file(directory, name).ok()?).ok() };
    let has_our_state = || json("trainer_state.json").is_some_and(|state| state.get("data_sha256").is_some());
    directory.join("config.json").is_file() && !directory::has_our_manifest(directory) && !has_our_state()
}

/// The model in `directory`.
///
/// # Errors
/// `CorruptCheckpoint` for damaged or missing files and tensors; a plain error, naming it, for what we do not compute.
pub fn load(directory: &Path) -> Result<Foreign> {
    let json = read_file(directory, "config.json")?;
    let (mut config, router, vocab_size) = hf::parse_foreign_config_json(&json, "config.json")?;
    let keys: Map<String, Value> = serde_json::from_slice(&json)?;
    let mut warnings = hf::contradictions(&keys);
    let hint = "; only models with a fast tokenizer can be read (transformers writes one with save_pretrained)";
    ensure!(directory.join("tokenizer.json").is_file(), "{} has no tokenizer.json{hint}", directory.display());
    let tokenizer = Tokenizer::from_json(&read_file(directory, "tokenizer.json")?, "tokenizer.json")?;
    let (tokenizer, beyond) = tokenizer.limited_to(vocab_size);
    if let Some(first) = beyond.first() {
        let count = beyond.len();
        warnings.push(format!(
            "tokenizer.json has {count} tokens ({first:?}, ...) beyond config.json's vocab_size of {vocab_size}; a text that \
             has one of them cannot be read"
        ));
    }
    let companions = Companions::read(directory, keys)?;
    let roles = companions.roles(&tokenizer, vocab_size, &mut warnings)?;
    companions.check_tokenizer(&tokenizer, &mut warnings)?;
    let mut weights = Weights::open(directory, &mut warnings)?;
    check_size(&config, vocab_size, weights.total_bytes() / 2)?;
    if config.tie_word_embeddings {
        config.tie_word_embeddings = weights.can_be_tied(&mut warnings)?;
    }
    let model = Transformer::blank(&config, &router, vocab_size)?;
    weights.fill_all(&model)?;
    Ok(Foreign { model, tokenizer: tokenizer.with_roles(roles), companions, warnings })
}

/// Tensors that the forward pass does not use: tables that older versions stored, a head that is the embedding, the noise
/// of our own noisy gates, and the layers behind the last one, with which GLM-4.5 guesses further tokens.
fn is_passed_over(name: &str, model_type: &str, layers: usize) -> bool {
    let layer = name.strip_prefix("model.layers.").and_then(|rest| rest.split('.').next()).and_then(|n| n.parse().ok());
    let behind_the_last = model_type == "glm4_moe" && layer.is_some_and(|layer: usize| layer >= layers);
    let unused = name.ends_with("rotary_emb.inv_freq") || hf::is_for_training_only(name);
    unused || name == HEAD || behind_the_last
}

/// The safetensors files of a model.
struct Weights {
    files: Vec<WeightFile>,
    /// Where each tensor is: its file, and its name there.
    places: BTreeMap<String, (usize, String)>,
}

struct WeightFile {
    path: PathBuf,
    file: File,
    metadata: Metadata,
    /// Where the numbers start.
    start: u64,
}

impl Weights {
    /// As transformers looks for them: one file, else the files that an index names.
    fn open(directory: &Path, warnings: &mut Vec<String>) -> Result<Self> {
        let (has_one, has_index) = (directory.join(ONE_FILE).is_file(), directory.join(INDEX).is_file());
        if has_one && has_index {
            warnings.push(format!("there are {ONE_FILE} and {INDEX}; the former is read, as transformers does"));
        }
        let names = match (has_one, has_index) {
            (true, _) => BTreeSet::from([ONE_FILE.to_string()]),
            (false, true) => {
                let refuse = |what: String| corrupt(format!("{}{what}", directory.join(INDEX).display()));
                let index: Value = serde_json::from_slice(&read_file(directory, INDEX)?)
                    .map_err(|error| refuse(format!(": {error}")))?;
                let map = index["weight_map"].as_object().ok_or_else(|| refuse(" has no weight_map".into()))?;
                map.values().filter_map(Value::as_str).map(String::from).collect()
            }
            (false, false) => bail!(
                "{} has neither {ONE_FILE} nor {INDEX}; weights in other formats (pytorch_model.bin, ...) are not read: \
                 load the model in transformers and save it again",
                directory.display()
            ),
        };
        let mut weights = Self { files: Vec::new(), places: BTreeMap::new() };
        for name in names {
            ensure!(directory::is_plain_name(&name), "{INDEX} names {name:?}, which is not a file beside it");
            let file = WeightFile::open(directory.join(&name))?;
            for tensor in file.metadata.offset_keys() {
                let place = (weights.files.len(), tensor.clone());
                if weights.places.insert(tensor.clone(), place).is_some() {
                    warnings
                        .push(format!("{tensor:?} stands in two files; that in {name} is read, as transformers does"));
                }
            }
            weights.files.push(file);
        }
        Ok(weights)
    }

    fn total_bytes(&self) -> usize {
        self.files.iter().map(|file| file.metadata.data_len()).sum()
    }

    /// Whether a head that is said to be the embedding is: files may hold both. As in transformers 5, one that differs
    /// is a head of its own, and a head alone is the embedding, too.
    fn can_be_tied(&mut self, warnings: &mut Vec<String>) -> Result<bool> {
        let (embedding, head) = (self.places.contains_key(EMBEDDING), self.places.get(HEAD).cloned());
        let Some(head) = head else { return Ok(true) };
        if !embedding {
            warnings.push(format!("{EMBEDDING} is missing; the head, {HEAD}, takes its place, as in transformers 5"));
            self.places.insert(EMBEDDING.to_string(), head);
            return Ok(true);
        }
        let are_equal = self.are_equal(EMBEDDING, HEAD)?;
        if !are_equal {
            warnings.push(format!(
                "config.json says that the head is the embedding (tie_word_embeddings), but {HEAD} holds other numbers than \
                 {EMBEDDING}; they are kept apart, as in transformers 5 (4 takes the embedding)"
            ));
        }
        Ok(are_equal)
    }

    fn are_equal(&mut self, first: &str, second: &str) -> Result<bool> {
        let (shape, other) = (self.info(first)?.shape.clone(), self.info(second)?.shape.clone());
        if shape != other {
            return Ok(false);
        }
        let count = shape.iter().product::<usize>();
        let (mut a, mut b) = (vec![0.0; CHUNK.min(count)], vec![0.0; CHUNK.min(count)]);
        for start in (0..count).step_by(CHUNK) {
            let length = CHUNK.min(count - start);
            self.read(first, start, &mut a[..length])?;
            self.read(second, start, &mut b[..length])?;
            if a[..length] != b[..length] {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// Fills the model with its weights.
    fn fill_all(&mut self, model: &Transformer) -> Result<()> {
        let mut values = model.parameters.values_mut();
        let mut slots = slots(model, "", &mut values);
        let model_type = hf::model_type(&model.model, &model.router);
        let expected: BTreeSet<String> = slots.iter().map(|slot| slot.name.clone()).collect();
        self.refuse_others(&expected, |name| is_passed_over(name, model_type, model.model.num_hidden_layers))?;
        slots.iter_mut().try_for_each(|slot| self.fill(slot))
    }

    /// Refuses tensors that are neither expected nor passed over. Those without numbers change nothing: transformers 5
    /// writes them for shared experts of which there are none.
    fn refuse_others(&self, expected: &BTreeSet<String>, is_passed_over: impl Fn(&str) -> bool) -> Result<()> {
        let is_empty = |name: &str| self.info(name).is_ok_and(|info| info.shape.contains(&0));
        let is_other = |name: &str| !expected.contains(name) && !is_passed_over(name) && !is_empty(name);
        let others: Vec<_> = self.places.iter().filter(|(name, _)| is_other(name)).collect();
        let Some(&(name, &(file, _))) = others.first() else { return Ok(()) };
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

    fn info(&self, name: &str) -> Result<&TensorInfo> {
        let found = self.places.get(name).and_then(|(file, stored)| self.files[*file].metadata.info(stored));
        found.ok_or_else(|| corrupt(format!("tensor {name:?} is missing")))
    }

    /// Reads the tensor that `slot` names into it.
    fn fill(&mut self, slot: &mut TensorSlot) -> Result<()> {
        let name = &slot.name;
        let shape = &self.info(name)?.shape;
        let path = self.files[self.places[name].0].path.clone();
        let refuse = |what: String| corrupt(format!("{}: tensor {name:?} {what}", path.display()));
        if *shape != slot.shape {
            return Err(refuse(format!("has shape {shape:?}, expected {:?}", slot.shape)));
        }
        for (number, places) in slot.data.chunks_mut(CHUNK).enumerate() {
            self.read(name, number * CHUNK, places)?;
        }
        match slot.data.iter().position(|number| !number.is_finite()) {
            Some(index) => Err(refuse(format!("holds {} at index {index}", slot.data[index]))),
            None => Ok(()),
        }
    }

    /// Numbers of a tensor from the one at `start` on, widened to f32.
    fn read(&mut self, name: &str, start: usize, places: &mut [f32]) -> Result<()> {
        let info = self.info(name)?;
        let (dtype, (begin, end)) = (info.dtype, info.data_offsets);
        let WeightFile { path, file, start: first_byte, .. } = &mut self.files[self.places[name].0];
        let widen: fn(&[u8]) -> f32 = match dtype {
            Dtype::F32 => |bytes| f32::from_le_bytes(bytes.try_into().unwrap_or_default()),
            Dtype::BF16 => |bytes| bf16::from_le_bytes(bytes.try_into().unwrap_or_default()).to_f32(),
            Dtype::F16 => |bytes| f16::from_le_bytes(bytes.try_into().unwrap_or_default()).to_f32(),
            other => bail!("{}: tensor {name:?} has dtype {other}; F32, BF16 and F16 are read", path.display()),
        };
        let width = dtype.bitsize() / 8;
        if end - begin < (start + places.len()) * width {
            return Err(corrupt(format!("{}: tensor {name:?} has another size than its shape", path.display())));
        }
        let mut bytes = vec![0; places.len() * width];
        file.seek(SeekFrom::Start(*first_byte + (begin + start * width) as u64))?;
        file.read_exact(&mut bytes).with_context(|| format!("cannot read {}", path.display()))?;
        for (place, bytes) in places.iter_mut().zip(bytes.chunks_exact(width)) {
            *place = widen(bytes);
        }
        Ok(())
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
        if length > MAX_FILE_BYTES || length + 8 > size {
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
