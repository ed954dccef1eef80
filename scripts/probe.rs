//! Lets a test program in another language ask a model questions: requests and answers are JSON, one object per line.
//!
//! Usage: probe MODEL
//! {"encode": TEXT}               -> {"ids": [...], "decoded": TEXT}
//! {"ids": [...], "logits": FILE} -> {"experts": [[[K ids] per token] per MoE layer]}, and the logits (N, V) in FILE as
//!                                   little-endian f32

use anyhow::{Context, Result};
use serde::Deserialize;
use serde_json::json;
use std::io::{BufRead, Write};
use std::path::{Path, PathBuf};
use tinymoe::checkpoint::{self, foreign, model_files};
use tinymoe::model::decode::{Decoder, Logits};
use tinymoe::tokenizer::TextStream;

#[derive(Deserialize)]
#[serde(untagged)]
enum Request {
    Encode { encode: String },
    Run { ids: Vec<u32>, logits: PathBuf },
}

fn main() -> Result<()> {
    let directory = std::env::args().nth(1).context("usage: probe MODEL")?;
    let directory = checkpoint::resolve(Path::new(&directory))?;
    let (model, tokenizer) = match foreign::is_foreign(&directory) {
        true => foreign::load(&directory).map(|read| (read.model, read.tokenizer))?,
        false => model_files::load(&checkpoint::load(&directory)?)?,
    };
    let mut out = std::io::stdout().lock();
    for line in std::io::stdin().lock().lines() {
        let answer = match serde_json::from_str(&line?)? {
            Request::Encode { encode } => {
                let ids = tokenizer.encode_prompt(&encode)?;
                let mut text = TextStream::new(&tokenizer);
                let decoded: Vec<u8> = ids.iter().flat_map(|&id| text.push(id).into_owned()).collect();
                json!({ "ids": ids, "decoded": String::from_utf8(decoded)? })
            }
            Request::Run { ids, logits } => {
                let mut decoder = Decoder::new(&model);
                let step = decoder.advance(&ids, Logits::All)?;
                let bytes: Vec<u8> = step.logits_NV.iter().flat_map(|logit| logit.to_le_bytes()).collect();
                std::fs::write(&logits, bytes).with_context(|| format!("cannot write {}", logits.display()))?;
                let rows = step.routing.iter().map(|routing| routing.experts_NK.chunks(routing.experts_per_token()));
                json!({ "experts": rows.map(|rows| rows.collect()).collect::<Vec<Vec<_>>>() })
            }
        };
        writeln!(out, "{answer}")?;
        out.flush()?;
    }
    Ok(())
}
