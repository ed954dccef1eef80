//! What files from anywhere go through: each function takes a file's bytes, which may be anything, and must come back.

pub mod gguf;

use std::cell::OnceCell;
use std::io::Cursor;
use std::path::{Path, PathBuf};
use tempfile::TempDir;
use tinymoe::checkpoint::gguf::{Dtype, write as write_gguf};
use tinymoe::checkpoint::{self, foreign as foreign_model, model_files};
use tinymoe::config;
use tinymoe::model::transformer::Transformer;
use tinymoe::routing::log::read_log;
use tinymoe::sample::SamplingOptions;
use tinymoe::sample::generate::{Prompt, generate_text};
use tinymoe::tokenizer::Tokenizer;
use tinymoe::transcript::{ReadOptions, parse};

/// A target's name and its function.
pub type Target = (&'static str, fn(&[u8]));

pub const TARGETS: [Target; 7] = [
    ("config", config),
    ("tokenizer", tokenizer),
    ("checkpoint", checkpoint),
    ("foreign", |bytes| _ = foreign(bytes)),
    ("gguf", |bytes| _ = gguf::compare(bytes)),
    ("transcript", transcript),
    ("routing_log", routing_log),
];

/// A configuration: TOML.
pub fn config(bytes: &[u8]) {
    if let Ok(text) = str::from_utf8(bytes) {
        _ = config::parse(text, "fuzz.toml", &[]);
    }
}

/// A `tokenizer.json`; one that is accepted must keep texts and ids in order.
pub fn tokenizer(bytes: &[u8]) {
    let Ok(tokenizer) = Tokenizer::from_json(bytes, "tokenizer.json") else { return };
    let text = "It's 12 o'clock,\n\n  naïve 😀 <|endoftext|>\t.";
    if let Ok(ids) = tokenizer.encode(text) {
        assert!(ids.iter().all(|&id| (id as usize) < tokenizer.vocab_size()));
        ids.iter().for_each(|&id| _ = tokenizer.token_text(id));
    }
    _ = tokenizer.config_json(64);
}

/// A model from elsewhere, whose manifest is right: the length of `config.json` in two bytes, `config.json`, the
/// length of `tokenizer.json` in two bytes, `tokenizer.json`, and the rest is `model.safetensors`.
pub fn checkpoint(bytes: &[u8]) {
    let mut rest = bytes;
    let (Some(config), Some(tokenizer)) = (part(&mut rest), part(&mut rest)) else { return };
    let files = [("config.json", config), ("tokenizer.json", tokenizer), ("model.safetensors", rest)];
    in_scratch(|folder| {
        let saved = checkpoint::save(folder, 1, &files.map(|(name, bytes)| (name, bytes.to_vec()))).unwrap();
        if let Ok((model, tokenizer)) = model_files::load(&checkpoint::load(&saved).unwrap()) {
            put_to_use(&model, &tokenizer);
        }
    });
}

/// A model that transformers wrote, with a tokenizer of ours: `config.json` and the index of the weights with their
/// lengths in two bytes each, then the weights, in one file if the index is empty, else in a part.
/// None for what is refused.
pub fn foreign(bytes: &[u8]) -> Option<()> {
    let mut rest = bytes;
    let (config, index) = (part(&mut rest)?, part(&mut rest)?);
    let (one, part) = ("model.safetensors", "model-00001-of-00001.safetensors");
    let (weights, stale) = if index.is_empty() { (one, part) } else { (part, one) };
    in_scratch(|folder| {
        let write = |name: &str, bytes: &[u8]| std::fs::write(folder.join(name), bytes).unwrap();
        let index_name = "model.safetensors.index.json";
        for name in [stale, index_name] {
            _ = std::fs::remove_file(folder.join(name));
        }
        write("config.json", config);
        write("tokenizer.json", LETTERS.as_bytes());
        write(weights, rest);
        if !index.is_empty() {
            write(index_name, index);
        }
        let read = foreign_model::load(folder).ok()?;
        put_to_use(&read.model, &read.tokenizer);
        model_files::encode_export(&read.model, &read.tokenizer, Some(&read.companions)).unwrap();
        Some(())
    })
}

/// A tokenizer of 24 tokens, as many as the models in tests/goldens have.
pub const LETTERS: &str = concat!(
    r#"{"model": {"type": "BPE", "merges": [], "vocab": {"<|endoftext|>": 0, "\n": 1, " ": 2, ".": 3, "a": 4, "b": 5, "#,
    r#""c": 6, "d": 7, "e": 8, "f": 9, "g": 10, "h": 11, "i": 12, "j": 13, "k": 14, "l": 15, "m": 16, "n": 17, "o": 18, "#,
    r#""p": 19, "q": 20, "r": 21, "s": 22, "<|unk|>": 23}, "unk_token": "<|unk|>"}, "decoder": {"type": "Fuse"}, "#,
    r#""added_tokens": [{"id": 0, "content": "<|endoftext|>", "special": true, "single_word": false, "lstrip": false, "#,
    r#""rstrip": false, "normalized": false}, {"id": 23, "content": "<|unk|>", "special": true, "single_word": false, "#,
    r#""lstrip": false, "rstrip": false, "normalized": false}]}"#,
);

/// What a user does with a model: samples, saves, exports. Its weights are finite, and anything else.
fn put_to_use(model: &Transformer, tokenizer: &Tokenizer) {
    _ = generate_text(model, tokenizer, &Prompt::new("a b", 3), &SamplingOptions::default());
    model_files::encode(model, tokenizer).unwrap();
    _ = write_gguf(&mut Cursor::new(Vec::new()), model, tokenizer, None, Dtype::Q8_0, "fuzz");
}

/// The next part of an input: its length in two bytes, then as many bytes.
pub fn part<'a>(bytes: &mut &'a [u8]) -> Option<&'a [u8]> {
    let length = usize::from(u16::from_le_bytes(*bytes.split_off(..2)?.first_chunk()?));
    bytes.split_off(..length.min(bytes.len()))
}

/// A transcript: the first byte chooses format and options.
pub fn transcript(bytes: &[u8]) {
    let Some((&choice, contents)) = bytes.split_first() else { return };
    let extensions =
        ["txt", "md", "srt", "vtt", "json", "jsonl", "sbv", "ass", "ttml", "tsv", "csv", "parquet", "unknown"];
    let extension = extensions[usize::from(choice >> 2) % extensions.len()];
    let options =
        ReadOptions { keep_timestamps: choice & 1 != 0, keep_speakers: choice & 2 != 0, ..ReadOptions::DEFAULT };
    for document in parse(&format!("fuzz.{extension}"), "domain", contents.to_vec(), &options).into_iter().flatten() {
        assert!(document.text.ends_with('\n') && !document.text.trim().is_empty());
    }
}

pub fn routing_log(bytes: &[u8]) {
    in_scratch(|folder| {
        let path = folder.join("log.jsonl");
        std::fs::write(&path, bytes).unwrap();
        _ = read_log(&path);
    });
}

/// Calls `body` with a folder that this thread uses again and again, in memory where there is such a place.
fn in_scratch<T>(body: impl FnOnce(&Path) -> T) -> T {
    thread_local!(static SCRATCH: OnceCell<TempDir> = const { OnceCell::new() });
    let memory = PathBuf::from("/dev/shm");
    let folder = if memory.is_dir() { memory } else { std::env::temp_dir() };
    SCRATCH.with(|scratch| body(scratch.get_or_init(|| tempfile::tempdir_in(folder).unwrap()).path()))
}
