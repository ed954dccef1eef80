//! `tinymoe train`: a configuration becomes a run directory.

use super::ending::Session;
use super::{signals, whole};
use crate::checkpoint::Files;
use crate::config::{self, Config};
use crate::terminal;
use crate::tokenizer::Tokenizer;
use crate::train::prepare::Prepared;
use crate::train::progress::Progress;
use crate::train::run_directory::RunDirectory;
use crate::train::{Ending, Trainer};
use anyhow::Result;
use clap::Args;
use std::io::{self, Write};
use std::path::{Path, PathBuf};

#[derive(Debug, Args)]
pub struct TrainArgs {
    /// The configuration (TOML); `tinymoe config --defaults` prints all keys
    config: PathBuf,
    /// Change one value, as in `--set model.num_experts=16`; may be repeated
    #[arg(long = "set", value_name = "SECTION.KEY=VALUE")]
    overrides: Vec<String>,
    /// The run's directory [default: runs/ and the configuration's name]
    #[arg(long, value_name = "DIR")]
    run: Option<PathBuf>,
    /// Continue the run from its latest intact checkpoint
    #[arg(long)]
    resume: bool,
    /// Pause after step N: save and end, to be resumed later
    #[arg(long, value_name = "N", value_parser = whole::<usize>)]
    steps: Option<usize>,
    /// Check everything, print sizes, train nothing
    #[arg(long)]
    dry_run: bool,
}

/// # Errors
/// Usage errors, interruption, divergence, and whatever keeps files from being read or written.
pub fn run(args: TrainArgs) -> Result<()> {
    let config = config::load(&args.config, &args.overrides)?;
    let path = args.run.clone().unwrap_or_else(|| default_run(&args.config));
    if args.dry_run {
        if !args.resume {
            RunDirectory::check_free(&path)?;
        }
        return dry_run(&config);
    }
    let mut trainer = if args.resume { resume(config.clone(), &path)? } else { start(config.clone(), &path)? };
    let pause_at = args.steps.unwrap_or(usize::MAX);
    let last = config.train.max_steps.min(pause_at);
    let mut progress = Progress::new(trainer.state().step, last);
    log::info!("{}\nin {}", trainer.describe(), terminal::path(&path));
    let interrupted = signals::ask_for_a_clean_end()?;
    let ending = trainer.run(pause_at, &interrupted, &mut progress)?;
    let last_seen = (progress.loss(), progress.tokens_per_s());
    drop(progress);
    let session = Session::new(&mut trainer, ending, &path, last_seen)?;
    let printed = session.print();
    // A terminal that was closed takes no more words.
    if ending == Ending::Interrupted { Err(session.error().into()) } else { Ok(printed?) }
}

fn default_run(config: &Path) -> PathBuf {
    Path::new("runs").join(config.file_stem().unwrap_or("run".as_ref()))
}

fn start(config: Config, path: &Path) -> Result<Trainer> {
    RunDirectory::check_free(path)?;
    let prepared = Prepared::new(&config, None)?;
    let directory = RunDirectory::create(path)?;
    // The configuration comes first: what stands beside it is a run that can be resumed.
    directory.configure(&config)?;
    directory.describe(&prepared)?;
    Trainer::new(config, prepared, directory)
}

fn resume(config: Config, path: &Path) -> Result<Trainer> {
    let directory = RunDirectory::open(path, &config)?;
    let files = directory.newest()?;
    let tokenizer = |files: &Files| Tokenizer::from_json(files.get("tokenizer.json")?, "tokenizer.json");
    let prepared = Prepared::new(&config, files.as_ref().map(tokenizer).transpose()?)?;
    // A crash may have come before that.
    directory.describe(&prepared)?;
    Trainer::resume(config, prepared, directory, files.as_ref())
}

fn dry_run(config: &Config) -> Result<()> {
    let mut prepared = Prepared::new(config, None)?;
    let baseline = prepared.baseline()?.clone();
    let mut out = io::stdout().lock();
    writeln!(out, "{}", prepared.describe(config))?;
    if let Some(unknown) = prepared.unknown_tokens() {
        writeln!(out, "{unknown}")?;
    }
    writeln!(
        out,
        "n-gram baseline: {:.4} bits/byte on the validation split (order {})",
        baseline.bits_per_byte, baseline.order
    )?;
    Ok(())
}
