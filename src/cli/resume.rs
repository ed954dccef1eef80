//! `tinymoe resume`: a run goes on where it was saved last, with its own configuration.

use super::{train, whole};
use crate::config::Config;
use crate::tokenizer::Tokenizer;
use crate::train::overview::Overview;
use crate::train::prepare::{Prepared, grouped, texts_sha256};
use crate::train::resume::{command, describe_new_length};
use crate::train::run_directory::RunDirectory;
use crate::train::state::{TrainerState, check_same_data};
use crate::train::{Ending, Trainer};
use anyhow::Result;
use clap::Args;
use std::io::{self, Write};
use std::path::{Path, PathBuf};

#[derive(Debug, Args)]
pub struct ResumeArgs {
    /// The run's directory
    pub(super) run: PathBuf,
    /// Change a value that may change (docs/trust.md), as in `--set train.max_steps=1000`; may be repeated
    #[arg(long = "set", value_name = "SECTION.KEY=VALUE")]
    pub(super) overrides: Vec<String>,
    /// Pause after step N: save and end, to be resumed later
    #[arg(long, value_name = "N", value_parser = whole::<usize>)]
    pub(super) steps: Option<usize>,
}

/// # Errors
/// As `train`, and a run that cannot be resumed.
pub fn run(args: ResumeArgs) -> Result<()> {
    let config = RunDirectory::draft(&args.run)?.resolve(&args.overrides)?;
    go_on(config, &args.run, args.steps)
}

/// Continues the run in `path`, whose configuration `config` must be, apart from what may change.
pub(super) fn go_on(mut config: Config, path: &Path, pause_at: Option<usize>) -> Result<()> {
    let (directory, saved) = RunDirectory::open(path, &mut config)?;
    let newest = directory.newest()?;
    if let Some((_, state)) = &newest {
        if let Some(ending) = state.ending(&config.train) {
            // Texts that are gone are no matter any more; others would be another run's.
            if let Ok(now) = texts_sha256(&config.data) {
                check_same_data(&now, &state.data_sha256)?;
            }
            directory.relink(state)?;
            directory.prune(state, saved.train.keep_checkpoints)?;
            return report_end(state, ending, path);
        }
        if let Some(change) = describe_new_length(&saved, &config, state) {
            log::info!("{change}");
        }
    }
    let prepared = match &newest {
        Some((files, state)) => {
            let tokenizer = Tokenizer::from_json(files.get("tokenizer.json")?, "tokenizer.json")?;
            Prepared::resumed(&config, tokenizer, state.split)?
        }
        None => Prepared::new(&config)?,
    };
    let files = newest.map(|(files, _)| files);
    // A crash may have come before that.
    directory.describe(&prepared)?;
    let trainer = Trainer::resume(config, prepared, directory, files.as_ref())?;
    train::session(trainer, path, pause_at)
}

/// Says that there is nothing left to do, and how there would be.
fn report_end(state: &TrainerState, ending: Ending, path: &Path) -> Result<()> {
    let step = state.step;
    let (headline, setting) = match ending {
        Ending::StoppedEarly => ("stopped early", "train.early_stopping_patience=0".to_string()),
        _ => ("finished", format!("train.max_steps={}", 2 * step)),
    };
    let mut out = io::stdout().lock();
    writeln!(out, "{headline} after step {} already; nothing was changed", grouped(step))?;
    let Overview { loss, bits_per_byte, ngram_bits_per_byte, best_step, .. } = Overview::of(path);
    if let (Some(loss), Some(bits), Some(ngram), Some(best_step)) =
        (loss, bits_per_byte, ngram_bits_per_byte, best_step)
    {
        writeln!(
            out,
            "best validation: step {}, loss {loss:.4} nats/token, {bits:.4} bits/byte; n-gram baseline: \
             {ngram:.4} bits/byte",
            grouped(best_step)
        )?;
    }
    writeln!(out, "train on with `{}`", command(path, &[&setting]))?;
    Ok(())
}
