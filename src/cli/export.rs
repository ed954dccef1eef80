//! `tinymoe export`: a model in the format of another program.

use super::Trained;
use crate::checkpoint::gguf::{self, Dtype};
use crate::checkpoint::{hf, model_files};
use crate::error::Failure;
use crate::fault;
use crate::output::Draft;
use crate::terminal;
use crate::train::prepare::grouped;
use anyhow::{Context, Result};
use clap::{Args, ValueEnum};
use std::io::{self, BufWriter, Write};
use std::path::PathBuf;

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
    if args.out.symlink_metadata().is_ok() {
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
            let companions = trained.companions.as_ref();
            let files = model_files::encode_export(&trained.model, &trained.tokenizer, companions)?;
            Draft::write_directory(&args.out, &files)?;
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
    warn_of_what_is_left_out(args.to, &trained);
    Ok(())
}

fn warn_of_what_is_left_out(format: Format, trained: &Trained) {
    let Some(companions) = &trained.companions else { return };
    if !companions.left_out.is_empty() {
        log::warn!("left out, because it is no part of the model: {}", companions.left_out.join(", "));
    }
    if format == Format::Gguf {
        for what in gguf::left_out(&trained.tokenizer) {
            log::warn!("left out, because a GGUF has no place for it: {what}");
        }
    }
}

fn write_gguf(args: &ExportArgs, trained: &Trained) -> Result<&'static str> {
    let (model, out) = (&trained.model, &args.out);
    let architecture = gguf::architecture(&model.model, &model.router)
        .map_err(|reason| anyhow::anyhow!("llama.cpp cannot run this model: {reason}"))?;
    let (draft, file) = Draft::file(out)?;
    let write = || {
        let mut file = BufWriter::new(file);
        let name = out.file_stem().unwrap_or_default().to_string_lossy();
        let template = trained.companions.as_ref().and_then(|companions| companions.chat_template());
        let narrower = gguf::write(&mut file, model, &trained.tokenizer, template.as_deref(), args.dtype, &name)?;
        fault::system_call();
        file.into_inner()?.sync_all()?;
        anyhow::Ok(narrower)
    };
    let narrower = write().with_context(|| format!("cannot write {}", out.display()))?;
    draft.publish()?;
    if let Some(first) = narrower.first() {
        let count = narrower.len();
        log::info!("{count} matrices ({first}, ...) stay in f16: their rows are no multiple of 32 numbers");
    }
    Ok(architecture)
}
