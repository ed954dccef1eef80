//! `tinymoe export`: a model in the format of another program.

use super::Trained;
use crate::checkpoint::gguf::{self, Dtype};
use crate::checkpoint::{hf, model_files};
use crate::error::Failure;
use crate::terminal;
use crate::train::prepare::grouped;
use anyhow::{Context, Result};
use clap::{Args, ValueEnum};
use std::fs::{self, File, OpenOptions};
use std::io::{self, BufWriter, Write};
use std::path::{Path, PathBuf};

#[derive(Debug, Args)]
pub struct ExportArgs {
    /// A run directory (its best checkpoint), a checkpoint directory, or a model that transformers wrote
    run: PathBuf,
    /// The file or directory to write; it must not exist yet
    out: PathBuf,
    /// What to write
    #[arg(long, value_name = "FORMAT")]
    to: Format,
    /// How to store the weight matrices
    #[arg(long, value_name = "TYPE", default_value = "f32")]
    dtype: Dtype,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Format {
    /// One file for llama.cpp and what builds on it
    Gguf,
    /// A directory for transformers, vLLM and others: a checkpoint without the trainer's state
    Hf,
}

/// # Errors
/// Usage errors, a damaged checkpoint, a model that the other program does not compute, and files that cannot be
/// written.
pub fn run(args: ExportArgs) -> Result<()> {
    let shown = args.out.display();
    let usage = |message: String| Err(Failure::Usage(message).into());
    if args.out.exists() {
        return usage(format!("{shown} exists already: choose another name, or remove it first"));
    }
    if args.to == Format::Hf && args.dtype != Dtype::F32 {
        return usage(
            "--dtype: hf is written in f32; transformers converts as it loads, with dtype=torch.bfloat16".into(),
        );
    }
    let trained = Trained::load(&args.run)?;
    let (model, router) = (&trained.model.model, &trained.model.router);
    let architecture = match args.to {
        Format::Gguf => write_gguf(&args, &trained)?,
        Format::Hf => {
            write_directory(&args.out, &model_files::encode(&trained.model, &trained.tokenizer)?)?;
            hf::model_type(model, router)
        }
    };
    writeln!(
        io::stdout(),
        "{}: {architecture}, {} parameters",
        terminal::path(&args.out),
        grouped(trained.model.parameters.count())
    )?;
    if let (Format::Hf, Err(reason)) = (args.to, hf::architecture(model, router)) {
        log::warn!("no architecture of transformers computes this model, because of {reason}");
    }
    Ok(())
}

/// Writes under another name first: what stands at `out` is whole.
fn write_gguf(args: &ExportArgs, trained: &Trained) -> Result<&'static str> {
    let (model, out) = (&trained.model, &args.out);
    let architecture = gguf::architecture(&model.model, &model.router)
        .map_err(|reason| anyhow::anyhow!("llama.cpp cannot run this model: {reason}"))?;
    let temporary = out.with_extension(format!("tmp-{}", std::process::id()));
    let write = || {
        let file = OpenOptions::new().write(true).create_new(true).open(&temporary)?;
        let mut file = BufWriter::new(file);
        let name = out.file_stem().unwrap_or_default().to_string_lossy();
        let narrower = gguf::write(&mut file, model, &trained.tokenizer, args.dtype, &name)?;
        file.into_inner()?.sync_all()?;
        fs::rename(&temporary, out)?;
        anyhow::Ok(narrower)
    };
    let written = write().with_context(|| format!("cannot write {}", out.display()));
    if written.is_err() {
        // Nothing to remove where it could not be created.
        let _ = fs::remove_file(&temporary);
    }
    let narrower = written?;
    if let Some(first) = narrower.first() {
        let count = narrower.len();
        log::info!("{count} matrices ({first}, ...) stay in f16: their rows are no multiple of 32 numbers");
    }
    Ok(architecture)
}

fn write_directory(out: &Path, files: &[(&str, Vec<u8>)]) -> Result<()> {
    fs::create_dir_all(out).with_context(|| format!("cannot create {}", out.display()))?;
    for (name, bytes) in files {
        let path = out.join(name);
        let write = || -> io::Result<()> {
            let mut file = File::create_new(&path)?;
            file.write_all(bytes)?;
            file.sync_all()
        };
        write().with_context(|| format!("cannot write {}", path.display()))?;
    }
    Ok(())
}
