//! The command line: one file a subcommand, each from its arguments to a job and its output. stdout carries results,
//! stderr progress and warnings.

pub mod bench;
pub mod config;
pub mod data;
mod ending;
pub mod eval;
pub mod export;
pub mod inspect;
mod manual;
mod operands;
pub mod resume;
pub mod runs;
pub mod sample;
mod signals;
pub mod train;

use crate::checkpoint::companions::Companions;
use crate::checkpoint::foreign::{self, Foreign};
use crate::checkpoint::{self, model_files};
use crate::config::Config;
use crate::error::{Failure, exit_code};
use crate::model::transformer::Transformer;
use crate::ops::{buffer, pool, simd};
use crate::output;
use crate::routing::log::{Header, MemoryHeader};
use crate::terminal::{self, Colours, Phase, Verbosity};
use crate::tokenizer::Tokenizer;
use crate::train::state::TrainerState;
use anyhow::Result;
use clap::error::ErrorKind;
use clap::{Args, CommandFactory, FromArgMatches, Parser, Subcommand, ValueEnum};
use serde_json::{Map, json};
use std::ffi::OsString;
use std::fs;
use std::io::{self, IsTerminal, Write};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

/// Train tiny mixture-of-experts language models on a CPU, sample from them, and see which expert handles each token
#[derive(Debug, Parser)]
#[command(version, arg_required_else_help = true)]
struct Cli {
    #[command(flatten)]
    global: Global,
    #[command(subcommand)]
    command: Command,
}

/// More than any machine has; so many can still be started.
const MAX_THREADS: usize = 1024;

/// Where `--help` lists them.
const GLOBAL: &str = "Global options";

/// Arguments of every subcommand.
#[derive(Clone, Copy, Debug, Args)]
pub struct Global {
    /// Threads to compute with; results do not depend on it [default: all of the machine's]
    #[arg(long, global = true, value_name = "N", help_heading = GLOBAL, value_parser = whole::<usize>)]
    threads: Option<usize>,
    /// No progress on stderr, only warnings and errors
    #[arg(short, long, global = true, help_heading = GLOBAL)]
    quiet: bool,
    /// More on stderr
    #[arg(short, long, global = true, conflicts_with = "quiet", help_heading = GLOBAL)]
    verbose: bool,
    /// When to colour the output
    #[arg(long, global = true, value_name = "WHEN", default_value = "auto", help_heading = GLOBAL)]
    color: When,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum When {
    Auto,
    Always,
    Never,
}

impl Global {
    fn verbosity(&self) -> Verbosity {
        match (self.quiet, self.verbose) {
            (true, _) => Verbosity::Quiet,
            (_, true) => Verbosity::Verbose,
            _ => Verbosity::Normal,
        }
    }

    /// The colours for stdout; none where it is not to be coloured.
    fn palette(&self) -> Option<Colours> {
        self.colours().then(Colours::of_terminal)
    }

    /// Whether stdout is to be coloured.
    fn colours(&self) -> bool {
        match self.color {
            When::Always => true,
            When::Never => false,
            When::Auto => {
                let allowed = std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty());
                allowed && io::stdout().is_terminal() && !console::is_dumb()
            }
        }
    }
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Show what would be read from files, and how
    Data(data::DataArgs),
    /// Train a model from a configuration, on texts, or both
    Train(train::TrainArgs),
    /// Continue a run
    Resume(resume::ResumeArgs),
    /// List runs and compare them
    Runs(runs::RunsArgs),
    /// Sample text from a checkpoint, with a per-token expert log
    Sample(sample::SampleArgs),
    /// See what the router does and which tokens each expert gets
    Inspect(inspect::InspectArgs),
    /// Measure the loss on the validation split or on other text
    Eval(eval::EvalArgs),
    /// Write the model in the format of another program
    Export(export::ExportArgs),
    /// Time training and sampling on this machine
    Bench(bench::BenchArgs),
    /// Print the defaults or a configuration that comes with the program, or check one
    Config(config::ConfigArgs),
    /// Print a script that completes commands in a shell
    Completions(manual::CompletionsArgs),
    /// Print the manual page, in the format of man
    Man(manual::ManArgs),
}

/// Runs the program with its arguments; prints errors and returns the exit code.
pub fn main(arguments: impl IntoIterator<Item = OsString>) -> ExitCode {
    pool::keep_candle_on_one_thread();
    buffer::keep_freed_memory();
    let parsed = program().try_get_matches_from(arguments).and_then(|matches| Cli::from_arg_matches(&matches));
    let cli = match parsed {
        Ok(cli) => cli,
        Err(error) => return refuse(&error),
    };
    terminal::init(cli.global.verbosity());
    signals::survive_file_size_limits();
    signals::remove_display_at_end();
    match run(cli) {
        Ok(()) => ExitCode::SUCCESS,
        // The reader has seen enough.
        Err(error) if is_broken_pipe(&error) => ExitCode::SUCCESS,
        Err(error) => {
            // Being interrupted is no error: it is what was asked for.
            terminal::clear();
            let label = if matches!(error.downcast_ref(), Some(Failure::Interrupted(_))) { "" } else { "error: " };
            terminal::error(&format!("{label}{error:#}"));
            ExitCode::from(exit_code(&error))
        }
    }
}

/// Names of values that may begin with `-`: a negative number gets to the option that refuses it, and does not pass for
/// an unknown option; a text may be a list.
const MAY_BEGIN_WITH_A_HYPHEN: [&str; 5] = ["N", "X", "M", "LAYER|none", "TEXT"];

/// The command line's definition.
fn program() -> clap::Command {
    let permit = |arg: clap::Arg| {
        let names = arg.get_value_names().unwrap_or_default();
        let permitted = names.iter().any(|name| MAY_BEGIN_WITH_A_HYPHEN.contains(&name.as_str()));
        // Setting it makes an option of a flag.
        if permitted { arg.allow_hyphen_values(true) } else { arg }
    };
    Cli::command().mut_args(permit).mut_subcommands(|subcommand| subcommand.mut_args(permit))
}

/// Reports a command line that clap refuses, or prints the help that was asked for.
fn refuse(error: &clap::Error) -> ExitCode {
    // Arguments stand in the message as they were given.
    let message = match error.kind() {
        ErrorKind::InvalidUtf8 => {
            "error: an argument is not UTF-8 text, which prompts, settings and sources have to be; \
                                   for a source, name the folder it is in, where files may have any name\n"
                .to_owned()
        }
        _ => error.render().to_string(),
    };
    _ = if error.kind() == ErrorKind::InvalidUtf8 || message != terminal::text(&message) {
        write!(io::stderr(), "{}", terminal::text(&message))
    } else {
        error.print()
    };
    ExitCode::from(error.exit_code() as u8)
}

/// Parses the value of an option that takes a whole number.
fn whole<T: std::str::FromStr>(text: &str) -> Result<T, String> {
    text.parse().map_err(|_| match text.parse::<f64>() {
        Ok(number) if number < 0.0 => "give a whole number, 0 or more".into(),
        Ok(number) if number.fract() == 0.0 && number.abs() > 1e9 => "this number is too large".into(),
        _ => "give a whole number".into(),
    })
}

fn run(cli: Cli) -> Result<()> {
    if let Some(threads) = cli.global.threads {
        if !(1..=MAX_THREADS).contains(&threads) {
            let message = format!("--threads {threads} is out of range: give a number from 1 to {MAX_THREADS}");
            return Err(Failure::Usage(message).into());
        }
        pool::set_threads(threads);
    }
    pool::start_rayon();
    simd::check_environment()?;
    match cli.command {
        Command::Data(args) => data::run(args),
        Command::Train(args) => train::run(args),
        Command::Resume(args) => resume::run(args),
        Command::Runs(args) => runs::run(args),
        Command::Sample(args) => sample::run(args, &cli.global),
        Command::Inspect(args) => inspect::run(args, &cli.global),
        Command::Eval(args) => eval::run(args, &cli.global),
        Command::Export(args) => export::run(args),
        Command::Bench(args) => bench::run(args, &cli.global),
        Command::Config(args) => config::run(args),
        Command::Completions(args) => manual::completions(args, program()),
        Command::Man(args) => manual::man(args, program()),
    }
}

fn is_broken_pipe(error: &anyhow::Error) -> bool {
    let is = |cause: &io::Error| cause.kind() == io::ErrorKind::BrokenPipe;
    error.chain().any(|cause| {
        cause.downcast_ref::<io::Error>().is_some_and(is)
            || cause
                .downcast_ref::<serde_json::Error>()
                .is_some_and(|error| error.io_error_kind() == Some(io::ErrorKind::BrokenPipe))
    })
}

/// A trained model as the subcommands use it.
struct Trained {
    /// The checkpoint's directory.
    checkpoint: PathBuf,
    model: Transformer,
    tokenizer: Tokenizer,
    tokenizer_sha256: String,
    /// The trainer's state, where the checkpoint has it.
    state: Option<TrainerState>,
    /// What stands beside a model that transformers wrote.
    companions: Option<Companions>,
}

impl Trained {
    /// Loads RUN: a run directory (its best checkpoint), a checkpoint directory, or a model that transformers wrote.
    fn load(run: &Path) -> Result<Self> {
        use sha2::{Digest, Sha256};
        let _phase = Phase::new("loading the model");
        let checkpoint = checkpoint::resolve(run)?;
        let (model, tokenizer, state, companions) = if foreign::is_foreign(&checkpoint) {
            let Foreign { model, tokenizer, companions, warnings } = foreign::load(&checkpoint)?;
            warnings.iter().for_each(|warning| log::warn!("{}: {warning}", checkpoint.display()));
            (model, tokenizer, None, Some(companions))
        } else {
            let files = checkpoint::load(&checkpoint)?;
            let (model, tokenizer) = model_files::load(&files)?;
            let state = files.get("trainer_state.json").ok().and_then(|json| serde_json::from_slice(json).ok());
            (model, tokenizer, state, None)
        };
        let tokenizer_sha256 = format!("{:x}", Sha256::digest(tokenizer.to_json()?));
        Ok(Self { checkpoint, model, tokenizer, tokenizer_sha256, state, companions })
    }

    /// What it was read from, which no output may replace.
    fn files(&self) -> Vec<PathBuf> {
        output::files_in(&self.checkpoint)
    }

    /// The configuration of the run that the checkpoint belongs to; none if it stands alone.
    ///
    /// # Errors
    /// [`Failure::Usage`] for a file that cannot be read.
    fn run_config(&self) -> Result<Option<Config>> {
        let run = fs::canonicalize(&self.checkpoint)
            .ok()
            .and_then(|checkpoint| Some(checkpoint.parent()?.parent()?.join("config.toml")));
        let Some(path) = run.filter(|path| path.exists()) else { return Ok(None) };
        // Over the defaults, so that a run of an older version is read, too.
        crate::config::load(&path, &[]).map(Some)
    }

    /// Says where the numbers are those of another text than the one in the files.
    fn warn_of_normalized(&self, texts: usize) {
        if let (Some(forms), 1..) = (self.tokenizer.normal_forms(), texts) {
            log::warn!(
                "the tokenizer puts text into the Unicode normal form {forms}: {texts} texts change, and are counted as \
                 changed"
            );
        }
    }

    /// The length of windows to evaluate in: `wanted` tokens, or all of the model's positions.
    ///
    /// # Errors
    /// [`Failure::Usage`] for a length that the model does not have.
    fn context(&self, wanted: Option<usize>) -> Result<usize> {
        let positions = self.model.model.max_position_embeddings;
        match wanted {
            Some(context) if !(1..=positions).contains(&context) => Err(Failure::Usage(format!(
                "--context {context} is out of range: this model has {positions} positions, so give a number from 1 to \
                 {positions}"
            ))
            .into()),
            wanted => Ok(wanted.unwrap_or(positions)),
        }
    }

    /// The first line of a routing log.
    fn log_header<S>(&self, sampling: S) -> Header<S> {
        let mut model = Map::new();
        model.insert("checkpoint".into(), json!(self.checkpoint.display().to_string()));
        model.insert("parameters".into(), json!(self.model.parameters.count()));
        model.insert("active_parameters".into(), json!(self.model.active_parameters()));
        Header {
            model,
            layers: self.model.moe_layers(),
            num_experts: self.model.model.num_experts,
            experts_per_token: self.model.model.num_experts_per_tok,
            memory: self.memory_header(),
            tokenizer_sha256: self.tokenizer_sha256.clone(),
            sampling,
        }
    }

    fn memory_header(&self) -> Option<MemoryHeader> {
        let model = &self.model.model;
        (!model.memory_layers.is_empty()).then(|| MemoryHeader {
            layers: model.memory_layers.clone(),
            ngrams: model.memory_ngrams.clone(),
            slots: model.memory_slots,
            dim: model.memory_dim,
        })
    }

    fn no_validation_split(&self) -> Failure {
        Failure::Usage(format!(
            "{} does not stand in a run directory with a config.toml, so its validation split is unknown; name the text \
             with --data",
            self.checkpoint.display()
        ))
    }

    /// Refuses to take the end of other texts for the run's validation split.
    fn check_data(&self, data_sha256: &str) -> Result<()> {
        if self.state.as_ref().is_some_and(|state| state.data_sha256 != data_sha256) {
            return Err(Failure::Usage(
                "the texts in the run's data.sources have changed since it was trained, so its validation split is gone; \
                 name the text to use with --data"
                    .into(),
            )
            .into());
        }
        Ok(())
    }
}
