//! What a directory of transformers says of a model beside its sizes and weights: which tokens start, end and fill up
//! texts, the chat template, how to generate. It is read where it matters here, and kept byte for byte, so that an
//! export says all of it again.

use super::corrupt;
use super::directory::is_plain_name;
use crate::tokenizer::{Roles, Tokenizer};
use anyhow::{Context, Result};
use serde_json::{Map, Value};
use std::fs::{self, File};
use std::io::Read;
use std::path::Path;

/// The largest models' headers and indices have a few megabytes, the largest vocabularies some more.
pub(super) const MAX_FILE_BYTES: u64 = 256 << 20;

const GENERATION: &str = "generation_config.json";
const TOKENIZER: &str = "tokenizer_config.json";
const SPECIAL_TOKENS: &str = "special_tokens_map.json";
/// Files that an export repeats.
const KEPT: [&str; 10] = [
    GENERATION,
    TOKENIZER,
    SPECIAL_TOKENS,
    "added_tokens.json",
    "chat_template.jinja",
    "chat_template.json",
    "merges.txt",
    "tokenizer.model",
    "vocab.json",
    "vocab.txt",
];
/// Keys of `config.json` that name tokens: an export has them exactly as they were read, or not at all.
const TOKEN_KEYS: [&str; 3] = ["bos_token_id", "eos_token_id", "pad_token_id"];
/// Keys that an export must not repeat: of code that does not go along, of the version that wrote the file, and ours.
const DROPPED_KEYS: [&str; 5] = ["_name_or_path", "auto_map", "tinymoe", "tinymoe_reason", "transformers_version"];

/// What stands beside a model of transformers.
#[derive(Debug, Default)]
pub struct Companions {
    config: Map<String, Value>,
    files: Vec<(String, Vec<u8>)>,
    /// Names of files that an export does not repeat.
    pub left_out: Vec<String>,
}

impl Companions {
    /// Those of the model in `directory`, whose `config.json` is `config`.
    pub(super) fn read(directory: &Path, config: Map<String, Value>) -> Result<Self> {
        let mut files = Vec::new();
        for name in KEPT {
            if directory.join(name).is_file() {
                files.push((name.to_string(), read_file(directory, name)?));
            }
        }
        let mut left_out = Vec::new();
        for entry in fs::read_dir(directory).with_context(|| format!("cannot list {}", directory.display()))? {
            let name = entry?.file_name().to_string_lossy().into_owned();
            let is_read = matches!(name.as_str(), "config.json" | "tokenizer.json") || KEPT.contains(&name.as_str());
            let is_weights =
                name.starts_with("model") && (name.ends_with(".safetensors") || name.ends_with(".index.json"));
            if is_plain_name(&name) && !is_read && !is_weights {
                left_out.push(name);
            }
        }
        left_out.sort();
        Ok(Self { config, files, left_out })
    }

    /// An export's files, with those that these replace or add, and `config.json` with the keys that it lacks.
    pub fn put_into(&self, files: &mut Vec<(String, Vec<u8>)>) -> Result<()> {
        for (name, bytes) in files.iter_mut().filter(|(name, _)| name == "config.json") {
            let mut config: Map<String, Value> = serde_json::from_slice(bytes).with_context(|| name.clone())?;
            TOKEN_KEYS.iter().for_each(|key| drop(config.remove(*key)));
            for (key, value) in self.config.iter().filter(|(key, _)| !DROPPED_KEYS.contains(&key.as_str())) {
                config.entry(key).or_insert_with(|| value.clone());
            }
            *bytes = serde_json::to_vec_pretty(&config)?;
        }
        files.retain(|(name, _)| !KEPT.contains(&name.as_str()));
        files.extend(self.files.iter().cloned());
        Ok(())
    }

    /// The chat template, from its own file or from the tokenizer's configuration.
    pub fn chat_template(&self) -> Option<String> {
        let own = self.file("chat_template.jinja").map(|bytes| String::from_utf8_lossy(bytes).into_owned());
        own.or_else(|| Some(self.json(TOKENIZER).ok()??["chat_template"].as_str()?.to_string()))
    }

    /// Which tokens start, end and fill up texts, as transformers resolves it: what `generation_config.json` says goes
    /// before `config.json`, and that before the tokenizer's own configuration. Where none says anything, names are
    /// guessed. What is odd about it goes to `warnings`.
    pub(super) fn roles(&self, tokenizer: &Tokenizer, ids: usize, warnings: &mut Vec<String>) -> Result<Roles> {
        let generation = self.json(GENERATION)?.unwrap_or_default();
        let tokens = self.json(TOKENIZER)?.unwrap_or_default();
        let map = self.json(SPECIAL_TOKENS)?.unwrap_or_default();
        let mut said = |role: &str| -> [Vec<u32>; 3] {
            let key = format!("{role}_token_id");
            let by_id = [(GENERATION, &generation), ("config.json", &self.config)].map(|(file, keys)| {
                token_ids(keys.get(&key).unwrap_or(&Value::Null), ids, &format!("{file}: {key}"), warnings)
            });
            let by_name = [&tokens, &map].into_iter().find_map(|keys| {
                let value = keys.get(&format!("{role}_token")).filter(|value| !value.is_null())?;
                value.as_str().or_else(|| value["content"].as_str())
            });
            let by_name = by_name.and_then(|name| tokenizer.id_of(name)).filter(|&id| (id as usize) < ids);
            let [generation, config] = by_id;
            [generation, config, Vec::from_iter(by_name)]
        };
        let first = |said: [Vec<u32>; 3]| said.into_iter().flatten().next();
        let guessed = tokenizer.roles().clone();
        let (begins, pads) = (first(said("bos")), first(said("pad")));
        let [generation, config, named] = said("eos");
        if !generation.is_empty() && !config.is_empty() && !generation.iter().any(|id| config.contains(id)) {
            warnings.push(format!(
                "{GENERATION} says that {generation:?} end a text, config.json {config:?}: the former holds, as in transformers"
            ));
        }
        // What stands between texts: the tokenizer's own end of text, if it is one of them.
        let between = named.iter().chain(&config).copied();
        let mut ends =
            [&generation, &config, &named].into_iter().find(|ids| !ids.is_empty()).cloned().unwrap_or(guessed.ends);
        if let Some(place) = between.into_iter().find_map(|id| ends.iter().position(|&end| end == id)) {
            ends[..=place].rotate_right(1);
        }
        Ok(Roles { begins: begins.or(guessed.begins.filter(|id| ends.contains(id))), ends, pads })
    }

    /// Warns where the tokenizer's configuration contradicts `tokenizer.json`, which transformers 5 follows.
    pub(super) fn check_tokenizer(&self, tokenizer: &Tokenizer, warnings: &mut Vec<String>) -> Result<()> {
        let Some(tokens) = self.json(TOKENIZER)? else { return Ok(()) };
        let frame = tokenizer.frame();
        for (key, added) in [("add_bos_token", &frame.before), ("add_eos_token", &frame.after)] {
            if tokens.get(key).and_then(Value::as_bool).is_some_and(|says| says == added.is_empty()) {
                warnings.push(format!(
                    "{TOKENIZER} has {key} = {}, but the post-processor of tokenizer.json adds {added:?}; the latter holds, as \
                     in transformers 5",
                    tokens[key]
                ));
            }
        }
        let added = tokens.get("added_tokens_decoder").and_then(Value::as_object).into_iter().flatten();
        let mut differing = added.filter_map(|(id, token)| {
            let name = token["content"].as_str()?;
            (tokenizer.id_of(name).map(|id| id.to_string()).as_deref() != Some(id)).then_some((id, name))
        });
        if let Some((id, name)) = differing.next() {
            warnings.push(format!(
                "{TOKENIZER} has an added token {name:?} with id {id}, which tokenizer.json has not ({} such tokens); it \
                 is not used here",
                1 + differing.count()
            ));
        }
        Ok(())
    }

    fn file(&self, name: &str) -> Option<&[u8]> {
        self.files.iter().find(|(file, _)| file == name).map(|(_, bytes)| &bytes[..])
    }

    fn json(&self, name: &str) -> Result<Option<Map<String, Value>>> {
        let parse = |bytes| serde_json::from_slice(bytes).map_err(|error| corrupt(format!("{name}: {error}")));
        self.file(name).map(parse).transpose()
    }
}

/// The ids in a number or a list of them. What is none of the model's ids is named in `warnings`.
fn token_ids(value: &Value, ids: usize, what: &str, warnings: &mut Vec<String>) -> Vec<u32> {
    let values = match value {
        Value::Null => &[][..],
        Value::Array(values) => values,
        value => std::slice::from_ref(value),
    };
    let mut found = Vec::new();
    for value in values {
        match value.as_u64().filter(|&id| id < ids as u64) {
            Some(id) if found.contains(&(id as u32)) => (),
            Some(id) => found.push(id as u32),
            None => warnings
                .push(format!("{what} names {value}, which is none of the model's {ids} ids; it is passed over")),
        }
    }
    found
}

pub(super) fn read_file(directory: &Path, name: &str) -> Result<Vec<u8>> {
    let path = directory.join(name);
    let read = || -> std::io::Result<Vec<u8>> {
        let mut bytes = Vec::new();
        File::open(&path)?.take(MAX_FILE_BYTES).read_to_end(&mut bytes)?;
        Ok(bytes)
    };
    read().with_context(|| format!("cannot read {}", path.display()))
}
