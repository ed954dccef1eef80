//! Checkpoints: what a run leaves on disk and comes back from.
//!
//! - [`directory`]: one checkpoint, a directory of files under a manifest of sizes and hashes
//! - [`run`]: the checkpoints of a run: newest, best, latest, pruning
//! - [`tensors`]: named f32 tensors to and from safetensors
//! - [`foreign`]: models that transformers wrote
//! - [`companions`]: what stands beside such a model, and goes along when it is exported
//! - [`gguf`]: the file format of llama.cpp
//! - [`hf`]: Hugging Face's `config.json`, both ways, and tensor names

pub mod companions;
pub mod directory;
pub mod foreign;
pub mod gguf;
pub mod hf;
pub mod model_files;
pub mod run;
pub mod tensors;

pub use directory::{Files, load, replace, save};
pub use run::{Newest, discard_after, link, newest, of_step, prune, resolve, set_aside, steps, unlink};

use crate::error::Failure;

fn corrupt(message: String) -> anyhow::Error {
    Failure::CorruptCheckpoint(message).into()
}
