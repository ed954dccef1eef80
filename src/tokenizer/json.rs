//! Reads a `tokenizer.json`, which may come from anywhere: what it holds is checked before the `tokenizers` crate,
//! which panics on some malformed files, sees it.

use super::frame::Frame;
use super::normal::NormalForms;
use super::{END_OF_TEXT, MAX_FILE_BYTES, MAX_VOCABULARY, Roles, Token, Tokenizer};
use anyhow::{Context, bail, ensure};
use serde_json::Value;
use std::collections::HashMap;
use std::sync::Arc;

/// Names that tokenizers give to the token that ends a document.
const END_NAMES: [&str; 5] = [END_OF_TEXT, "</s>", "<|im_end|>", "<|end_of_text|>", "<eos>"];
/// Parts that can work without loss; whether they do is checked at every text.
const NORMALIZERS: [&str; 7] = ["NFC", "NFD", "NFKC", "NFKD", "Prepend", "Replace", "ByteLevel"];
const PRE_TOKENIZERS: [&str; 5] = ["ByteLevel", "Split", "Digits", "Punctuation", "Metaspace"];

pub fn read(bytes: &[u8], origin: &str) -> anyhow::Result<Tokenizer> {
    ensure!(bytes.len() as u64 <= MAX_FILE_BYTES, "it is larger than {} MiB", MAX_FILE_BYTES >> 20);
    let mut json: Value = serde_json::from_slice(bytes).context("it is not valid JSON")?;
    check_model(&json["model"])?;
    check_steps(&json["normalizer"], "normalizers", &NORMALIZERS).context("in its normalizer")?;
    check_steps(&json["pre_tokenizer"], "pretokenizers", &PRE_TOKENIZERS).context("in its pre_tokenizer")?;
    let decoding = Decoding::parse(&json["decoder"]).context("in its decoder")?;
    let independent_pieces = has_independent_pieces(&json);
    let normal_forms = NormalForms::of(&steps(&json["normalizer"], "normalizers"));
    let prefix = Prefix::of(&json);
    let post_processor = json["post_processor"].take();
    let unknown_name = json["model"]["unk_token"].as_str().map(String::from);
    let added = added_ids(&json);

    // Without a type, the crate would try other kinds of models.
    json["model"]["type"] = "BPE".into();
    // These would cut or fill what is encoded.
    for part in ["truncation", "padding"] {
        json[part].take();
    }
    let mut encoder: tokenizers::Tokenizer =
        serde_json::from_value(json).context("it does not have the format of a tokenizer.json")?;
    // Means: treat special tokens that stand in the text as the text they are.
    encoder.set_encode_special_tokens(true);

    let mut tokens = token_table(&encoder, &decoding)?;
    let id_of = |name: &str| encoder.token_to_id(name);
    for (name, id) in added {
        // The crate gives a token that fits nowhere another id and says nothing.
        ensure!(id_of(&name).map(u64::from) == id, "its added token {name:?} cannot have the id that stands there");
    }
    let is_special = |id: &u32| tokens[*id as usize].special.is_some();
    let end_of_text = END_NAMES.iter().filter_map(|name| id_of(name)).find(is_special);
    let unknown = unknown_name.and_then(|name| id_of(&name)).filter(|id| Some(*id) != end_of_text);
    if let Some(id) = unknown {
        tokens[id as usize].bytes = char::REPLACEMENT_CHARACTER.to_string().into_bytes();
    }
    let frame = Frame::parse(&post_processor, tokens.len()).context("in its post_processor")?;
    let tokenizer = Tokenizer {
        encoder: Arc::new(encoder),
        json: bytes.into(),
        ids: tokens.len(),
        tokens: tokens.into(),
        roles: Roles { begins: end_of_text, ends: Vec::from_iter(end_of_text), pads: end_of_text },
        frame,
        unknown,
        independent_pieces,
        normal_forms,
        prefix,
        at_start: decoding.at_start,
        origin: origin.to_string(),
    };
    // Most tokenizers that change texts change this one too: better refused now than in the middle of a run.
    tokenizer.encode("Two words,\n  2 lines")?;
    Ok(tokenizer)
}

/// The bytes of a `tokenizer.json` without what cuts, fills or frames a text: trained on, and saved, is the text alone.
/// Files that have nothing of the kind stay what they are, byte for byte.
pub fn unframed(bytes: Vec<u8>) -> anyhow::Result<Vec<u8>> {
    let Ok(mut json) = serde_json::from_slice::<Value>(&bytes) else { return Ok(bytes) };
    let mut changed = false;
    for part in ["truncation", "padding", "post_processor"] {
        changed |= json.get_mut(part).is_some_and(|part| !part.take().is_null());
    }
    Ok(if changed { serde_json::to_vec_pretty(&json)? } else { bytes })
}

/// Where a tokenizer puts a space that is not in the text in front of it, so that a word at the start of a text is the
/// same token as inside. Most decoders take it away again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Prefix {
    /// Also where the text starts with a space.
    always: bool,
    /// Also behind an added token, which cuts the text in two.
    after_added_tokens: bool,
}

impl Prefix {
    fn of(json: &Value) -> Option<Self> {
        if steps(&json["normalizer"], "normalizers").iter().any(|step| step["type"] == "Prepend") {
            return Some(Self { always: true, after_added_tokens: true });
        }
        let words = steps(&json["pre_tokenizer"], "pretokenizers");
        let metaspace = words.iter().find(|step| step["type"] == "Metaspace").map(|step| prepend_scheme(step));
        let byte_level = words.iter().any(|step| step["type"] == "ByteLevel" && step["add_prefix_space"] == true);
        match metaspace {
            Some("first") => Some(Self { always: false, after_added_tokens: false }),
            Some("always") => Some(Self { always: false, after_added_tokens: true }),
            _ => byte_level.then_some(Self { always: false, after_added_tokens: true }),
        }
    }

    /// Whether a space is put in front of `text`, which is the start of a text or else stands behind an added token.
    pub fn is_put_before(self, text: &[u8], is_start: bool) -> bool {
        (is_start || self.after_added_tokens) && !text.is_empty() && (self.always || text[0] != b' ')
    }
}

/// What a decoder makes of the first token of a text.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum AtStart {
    #[default]
    AsElsewhere,
    /// Strip takes a space from its start.
    LessOneSpace,
    /// Metaspace takes every space out of it.
    LessAllSpaces,
}

/// When a Metaspace puts its mark in front of a text: "always", "first" or "never". Older files have another key.
fn prepend_scheme(metaspace: &Value) -> &str {
    match (metaspace["prepend_scheme"].as_str(), metaspace["add_prefix_space"].as_bool()) {
        (Some(scheme), _) => scheme,
        (None, Some(false)) => "never",
        (None, _) => "always",
    }
}

/// A BPE whose ids and merges fit together.
fn check_model(model: &Value) -> anyhow::Result<()> {
    // The oldest files have no type; they have merges.
    let kind = &model["type"];
    ensure!(kind == "BPE" || kind.is_null(), "its model has the type {kind}; only BPE can be used");
    let set = |key: &str| !matches!(&model[key], Value::Null) && model[key] != "";
    for key in ["dropout", "continuing_subword_prefix", "end_of_word_suffix"] {
        ensure!(!set(key), "its model has a {key}, with which texts cannot be encoded exactly; it must be null");
    }
    let vocab = model["vocab"].as_object().context("its model has no vocab")?;
    let mut names = HashMap::new();
    for (name, id) in vocab {
        let id = id.as_u64().with_context(|| format!("the id of token {name:?} is {id}"))?;
        ensure!(
            id < MAX_VOCABULARY as u64,
            "token {name:?} has id {id}; the highest allowed is {}",
            MAX_VOCABULARY - 1
        );
        if let Some(other) = names.insert(id, name) {
            bail!("tokens {other:?} and {name:?} have the same id {id}");
        }
    }
    for merge in model["merges"].as_array().context("its model has no merges")? {
        let merged = match merge {
            Value::String(pair) => pair.replacen(' ', "", 1),
            Value::Array(pair) => pair.iter().filter_map(Value::as_str).collect(),
            _ => bail!("the merge {merge} is no pair of tokens"),
        };
        ensure!(vocab.contains_key(&merged), "its merge {merge} makes {merged:?}, which is not in the vocab");
    }
    Ok(())
}

/// The names and ids of added tokens.
fn added_ids(json: &Value) -> Vec<(String, Option<u64>)> {
    let added = json["added_tokens"].as_array().into_iter().flatten();
    added.map(|token| (token["content"].as_str().unwrap_or_default().to_string(), token["id"].as_u64())).collect()
}

/// Refuses steps that are not in `known`.
fn check_steps(part: &Value, sequence_key: &str, known: &[&str]) -> anyhow::Result<()> {
    for step in steps(part, sequence_key) {
        let kind = step["type"].as_str().unwrap_or("step without a type");
        ensure!(known.contains(&kind), "{kind} is not supported; supported are {}", known.join(", "));
    }
    Ok(())
}

/// The steps of a normalizer, pre-tokenizer or decoder in order, nested sequences flattened.
fn steps<'a>(part: &'a Value, sequence_key: &str) -> Vec<&'a Value> {
    match part[sequence_key].as_array() {
        Some(children) if part["type"] == "Sequence" => {
            children.iter().flat_map(|child| steps(child, sequence_key)).collect()
        }
        _ if part.is_null() => Vec::new(),
        _ => vec![part],
    }
}

/// Whether [`super::pieces`] of a text can be encoded on their own: when GPT-2's pattern takes it apart into words, or
/// when every character is a token.
fn has_independent_pieces(json: &Value) -> bool {
    let (words, model) = (&json["pre_tokenizer"], &json["model"]);
    let gpt2_words = words["type"] == "ByteLevel" && words["use_regex"] != false && words["add_prefix_space"] != true;
    let characters = words.is_null()
        && model["merges"].as_array().is_some_and(Vec::is_empty)
        && model["fuse_unk"] != true
        && model["ignore_merges"] != true;
    // Added tokens that are not special are recognised in the text, wherever they stand.
    let added =
        json["added_tokens"].as_array().is_some_and(|tokens| tokens.iter().any(|token| token["special"] != true));
    json["normalizer"].is_null() && !added && (gpt2_words || characters)
}

/// How the name of a token becomes the bytes it stands for.
#[derive(Default)]
struct Decoding {
    byte_of: HashMap<char, u8>,
    byte_fallback: bool,
    replacements: Vec<(String, String)>,
    at_start: AtStart,
}

impl Decoding {
    fn parse(decoder: &Value) -> anyhow::Result<Self> {
        let mut decoding = Self::default();
        let steps = steps(decoder, "decoders");
        ensure!(!steps.is_empty(), "there is none, so that tokens would be joined with spaces");
        let mut fused = false;
        for step in steps {
            match step["type"].as_str().unwrap_or("step without a type") {
                "ByteLevel" => decoding.byte_of = byte_characters().into_iter().zip(0..=255).collect(),
                "ByteFallback" => decoding.byte_fallback = true,
                "Fuse" => fused = true,
                // Once the tokens are one text, only its start is meant.
                "Strip" if fused && step["content"] == " " && step["start"] == 1 && step["stop"] == 0 => {
                    decoding.at_start = AtStart::LessOneSpace;
                }
                "Metaspace" => {
                    if prepend_scheme(step) != "never" {
                        decoding.at_start = AtStart::LessAllSpaces;
                    }
                    let mark = step["replacement"].as_str().context("Metaspace has no replacement")?;
                    decoding.replacements.push((mark.to_string(), " ".to_string()));
                }
                "Replace" => match (step["pattern"]["String"].as_str(), step["content"].as_str()) {
                    (Some(pattern), Some(content)) => {
                        decoding.replacements.push((pattern.to_string(), content.to_string()));
                    }
                    _ => bail!("Replace is supported only with a pattern String and a content"),
                },
                kind => bail!(
                    "{kind} is not supported, because with it the bytes of a token depend on where it stands; supported \
                     are ByteLevel, ByteFallback, Fuse, Metaspace and Replace, and Strip of one space behind Fuse"
                ),
            }
        }
        Ok(decoding)
    }

    fn bytes(&self, name: &str) -> Vec<u8> {
        if self.byte_fallback
            && let Some(hex) = name.strip_prefix("<0x").and_then(|rest| rest.strip_suffix('>'))
            && let (2, Ok(byte)) = (hex.len(), u8::from_str_radix(hex, 16))
        {
            return vec![byte];
        }
        let mut text = name.to_string();
        for (pattern, content) in &self.replacements {
            text = text.replace(pattern, content);
        }
        let bytes: Option<Vec<u8>> = text.chars().map(|character| self.byte_of.get(&character).copied()).collect();
        // Without ByteLevel, and for a token that is not made of its characters: the text itself.
        bytes.unwrap_or_else(|| text.into_bytes())
    }
}

/// What each id stands for: what the decoder makes of it. An added token that is not in the vocabulary was never put
/// into a byte-level one's characters, so it stands in the text as it is.
fn token_table(encoder: &tokenizers::Tokenizer, decoding: &Decoding) -> anyhow::Result<Vec<Token>> {
    let vocab = encoder.get_vocab(true);
    let size = vocab.values().max().map_or(0, |&highest| highest as usize + 1);
    ensure!(size <= MAX_VOCABULARY, "it has {size} ids; {MAX_VOCABULARY} are allowed");
    let mut tokens = vec![Token::default(); size];
    for (name, id) in vocab {
        tokens[id as usize].bytes = decoding.bytes(&name);
    }
    let listed = encoder.get_vocab(false);
    for (id, added) in encoder.get_added_tokens_decoder() {
        let token = &mut tokens[id as usize];
        token.is_added = true;
        if added.special {
            (token.bytes, token.special) = (Vec::new(), Some(added.content));
        } else if !decoding.byte_of.is_empty() && !listed.contains_key(&added.content) {
            token.bytes = added.content.into_bytes();
        }
    }
    Ok(tokens)
}

/// GPT-2's printable character for each byte: its own where that is printable, else the next one from U+0100 on.
pub fn byte_characters() -> [char; 256] {
    let mut others = '\u{100}'..;
    std::array::from_fn(|byte| match byte as u8 {
        printable @ (b'!'..=b'~' | 0xa1..=0xac | 0xae..=0xff) => char::from(printable),
        _ => others.next().unwrap_or_default(),
    })
}
