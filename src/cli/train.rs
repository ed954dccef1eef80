//! `tinymoe train`: a configuration becomes a run directory.

use crate::config::{self, Config};
use crate::tokenizer::Tokenizer;
use crate::train::prepare::Prepared;
use crate::train::progress::Progress;
use crate::train::run_directory::RunDirectory;
use crate::train::state::TrainerState;
use crate::train::{Ending, Trainer};
use anyhow::{Context, Result};
use clap::Args;
use signal_hook::consts::{SIGINT, SIGTERM};
use signal_hook::flag;
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

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
    /// Continue the run from its newest sound checkpoint
    #[arg(long)]
    resume: bool,
    /// Pause after step N: save and end, to be resumed later
    #[arg(long, value_name = "N")]
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
    log::info!("{} in {}", trainer.describe(), path.display());
    let interrupted = listen_for_interrupts()?;
    let ending = trainer.run(pause_at, &interrupted, &mut progress)?;
    drop(progress);
    report(&mut trainer, ending, &path)
}

fn default_run(config: &Path) -> PathBuf {
    Path::new("runs").join(config.file_stem().unwrap_or("run".as_ref()))
}

fn start(config: Config, path: &Path) -> Result<Trainer> {
    RunDirectory::check_free(path)?;
    let prepared = Prepared::new(&config)?;
    let directory = RunDirectory::create(path)?;
    // The configuration comes first: what stands beside it is a run that can be resumed.
    directory.configure(&config)?;
    directory.describe(&prepared)?;
    Trainer::new(config, prepared, directory)
}

fn resume(config: Config, path: &Path) -> Result<Trainer> {
    let directory = RunDirectory::open(path, &config)?;
    let files = directory.newest()?;
    let prepared = match &files {
        Some(files) => {
            let tokenizer = Tokenizer::from_json(files.get("tokenizer.json")?, "tokenizer.json")?;
            Prepared::resumed(&config, tokenizer, TrainerState::read(files)?.split)?
        }
        None => Prepared::new(&config)?,
    };
    // A crash may have come before that.
    directory.describe(&prepared)?;
    Trainer::resume(config, prepared, directory, files.as_ref())
}

/// Set by the first Ctrl-C (or SIGTERM), which asks for a clean end after the current step; the second leaves at once,
/// which is safe because checkpoints appear whole or not at all. A hang-up is left to `nohup`.
fn listen_for_interrupts() -> Result<Arc<AtomicBool>> {
    let interrupted = Arc::new(AtomicBool::new(false));
    for signal in [SIGINT, SIGTERM] {
        // In this order: the shutdown happens where the flag is set already.
        flag::register_conditional_shutdown(signal, 130, interrupted.clone())
            .and_then(|_| flag::register(signal, interrupted.clone()))
            .context("cannot listen for Ctrl-C")?;
    }
    Ok(interrupted)
}

fn dry_run(config: &Config) -> Result<()> {
    let mut prepared = Prepared::new(config)?;
    let baseline = prepared.baseline()?.clone();
    let mut out = io::stdout().lock();
    writeln!(out, "{}", prepared.describe(config))?;
    writeln!(
        out,
        "n-gram baseline: {:.4} bits/byte on the validation split (order {})",
        baseline.bits_per_byte, baseline.order
    )?;
    Ok(())
}

fn report(trainer: &mut Trainer, ending: Ending, path: &Path) -> Result<()> {
    let best = trainer.best()?;
    let state = trainer.state();
    let step = state.step;
    let headline = match ending {
        Ending::Finished => format!("finished after step {step}"),
        Ending::Paused => format!("paused after step {step}; continue with `{}`", trainer.resume_command()),
        Ending::StoppedEarly => format!("stopped early after step {step}: the validation loss no longer improves"),
    };
    let mut out = io::stdout().lock();
    writeln!(out, "{headline}")?;
    if let (Some(best), Some(best_step)) = (best, state.best_step) {
        writeln!(
            out,
            "best validation: step {best_step}, loss {:.4} nats/token, {:.4} bits/byte; n-gram baseline: {:.4} bits/byte",
            best.loss, best.bits_per_byte, best.ngram_bits_per_byte
        )?;
    }
    writeln!(out, "run: {}", path.display())?;
    Ok(())
}
