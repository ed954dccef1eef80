//! What files from anywhere go through: each function takes a file's bytes, which may be anything, and must come back.

use std::cell::OnceCell;
use std::path::{Path, PathBuf};
use tempfile::TempDir;
use tinymoe::checkpoint::{self, model_files};
use tinymoe::config;
use tinymoe::routing::log::read_log;
use tinymoe::tokenizer::Tokenizer;
use tinymoe::transcript::{ReadOptions, parse};

/// A target's name and its function.
pub type Target = (&'static str, fn(&[u8]));

pub const TARGETS: [Target; 5] = [
    ("config", config),
    ("tokenizer", tokenizer),
    ("checkpoint", checkpoint),
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
    fn part<'a>(bytes: &mut &'a [u8]) -> Option<&'a [u8]> {
        let length = usize::from(u16::from_le_bytes(*bytes.split_off(..2)?.first_chunk()?));
        bytes.split_off(..length.min(bytes.len()))
    }
    let mut rest = bytes;
    let (Some(config), Some(tokenizer)) = (part(&mut rest), part(&mut rest)) else { return };
    let files = [("config.json", config), ("tokenizer.json", tokenizer), ("model.safetensors", rest)];
    in_scratch(|folder| {
        let saved = checkpoint::save(folder, 1, &files.map(|(name, bytes)| (name, bytes.to_vec()))).unwrap();
        _ = model_files::load(&checkpoint::load(&saved).unwrap());
    });
}

/// A transcript: the first byte chooses format and options.
pub fn transcript(bytes: &[u8]) {
    let Some((&choice, contents)) = bytes.split_first() else { return };
    let extension = ["txt", "md", "srt", "vtt", "json", "jsonl"][usize::from(choice >> 2) % 6];
    let options = ReadOptions { keep_timestamps: choice & 1 != 0, keep_speakers: choice & 2 != 0 };
    for document in parse(&format!("fuzz.{extension}"), "domain", contents.to_vec(), options).into_iter().flatten() {
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
fn in_scratch(body: impl FnOnce(&Path)) {
    thread_local!(static SCRATCH: OnceCell<TempDir> = const { OnceCell::new() });
    let memory = PathBuf::from("/dev/shm");
    let folder = if memory.is_dir() { memory } else { std::env::temp_dir() };
    SCRATCH.with(|scratch| body(scratch.get_or_init(|| tempfile::tempdir_in(folder).unwrap()).path()));
}
