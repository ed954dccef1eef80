//! `tinymoe train`: a configuration, texts, or both become a run directory.

use super::ending::Session;
use super::operands::{Operand, usage};
use super::{resume, signals, whole};
use crate::config::shipped::{ENOUGH_BYTES, for_texts};
use crate::config::{Config, DataConfig, Draft};
use crate::terminal;
use crate::train::memory;
use crate::train::prepare::{Prepared, grouped, text_bytes};
use crate::train::progress::Progress;
use crate::train::run_directory::RunDirectory;
use crate::train::{Ending, Trainer};
use anyhow::Result;
use clap::Args;
use std::ffi::OsString;
use std::io::{self, Write};
use std::path::{Path, PathBuf};

#[derive(Debug, Args)]
pub struct TrainArgs {
    /// A configuration: a TOML file or the name of one that comes with the program (`tinymoe config --list`). And, or
    /// instead, texts to train on: files, directories or globs, each with =DOMAIN if wanted; without a configuration
    /// their size chooses one
    #[arg(value_name = "CONFIG|NAME|TEXT")]
    what: Vec<OsString>,
    /// Change one value, as in `--set model.num_experts=16`; may be repeated
    #[arg(long = "set", value_name = "SECTION.KEY=VALUE")]
    overrides: Vec<String>,
    /// The run's directory [default: runs/ and the name of the configuration or of the first text]
    #[arg(long, value_name = "DIR")]
    run: Option<PathBuf>,
    /// Continue the run from its latest intact checkpoint; `train --resume RUN` is `resume RUN`
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
    if let Some(run) = run_to_resume(&args).filter(|_| args.resume && !args.dry_run) {
        return resume::run(resume::ResumeArgs { run, overrides: args.overrides, steps: args.steps });
    }
    if args.resume && args.what.is_empty() {
        return Err(usage("which run? `tinymoe resume RUN`, or `tinymoe train --resume RUN`".into()));
    }
    let subject = Subject::of(&args.what, &args.overrides)?;
    let mut config = subject.draft.resolve(&args.overrides)?;
    let path = args.run.unwrap_or_else(|| subject.run.clone());
    if args.resume && !args.dry_run {
        return resume::go_on(config, &path, args.steps);
    }
    subject.check_texts(&config)?;
    config.anchor(&current_directory());
    if args.dry_run {
        if !args.resume {
            RunDirectory::check_free(&path)?;
        }
        return dry_run(&config, subject.choice.as_deref());
    }
    if let Some(choice) = &subject.choice {
        log::info!("{choice}");
    }
    let trainer = start(config, &path)?;
    session(trainer, &path, args.steps)
}

/// The run in `train --resume RUN` and `train --resume --run RUN`.
fn run_to_resume(args: &TrainArgs) -> Option<PathBuf> {
    match (args.what.as_slice(), &args.run) {
        ([], run) => run.clone(),
        ([what], None) if Path::new(what).join("config.toml").is_file() => Some(what.into()),
        _ => None,
    }
}

/// The directory from which relative paths start; empty if it has no name in UTF-8, so that they stay relative.
fn current_directory() -> String {
    let directory = std::env::current_dir().ok();
    directory.and_then(|directory| directory.to_str().map(str::to_owned)).unwrap_or_default()
}

/// What is to be trained.
struct Subject {
    draft: Draft,
    /// The run's directory unless another is named.
    run: PathBuf,
    /// The configuration that was chosen by the size of the texts, in words.
    choice: Option<String>,
    /// The name of a configuration of the program whose texts may be elsewhere.
    borrowed: Option<&'static str>,
}

impl Subject {
    fn of(arguments: &[OsString], overrides: &[String]) -> Result<Self> {
        let mut texts = Vec::new();
        let mut configuration = None;
        for argument in arguments {
            match Operand::parse(argument)? {
                Operand::Text(text) => texts.push(text),
                named => {
                    if configuration.replace((argument, named)).is_some() {
                        return Err(usage("a run has one configuration, and two are named here".into()));
                    }
                }
            }
        }
        let other_texts = overrides.iter().any(|setting| setting.trim_start().starts_with("data.sources"));
        if !texts.is_empty() && other_texts {
            return Err(usage(
                "the texts are named twice, as arguments and with --set data.sources; do one of it".into(),
            ));
        }
        let mut subject = match configuration {
            Some((argument, operand)) => Self {
                draft: operand.draft()?,
                run: Path::new("runs").join(Path::new(argument).file_stem().unwrap_or("run".as_ref())),
                choice: None,
                borrowed: match operand {
                    Operand::Shipped(shipped) if texts.is_empty() && !other_texts => Some(shipped.name),
                    _ => None,
                },
            },
            None if texts.is_empty() => {
                let message = "nothing to train: name a configuration (CONFIG), or texts; `tinymoe train quickstart` is \
                               where to begin, and `tinymoe config --list` lists what comes with the program";
                return Err(usage(message.into()));
            }
            None => Self::chosen_for(&texts)?,
        };
        if let Some(first) = texts.first() {
            subject.run = Path::new("runs").join(name_of_text(first));
            subject.draft.set("data.directory", "");
            subject.draft.set("data.sources", texts);
        }
        Ok(subject)
    }

    fn chosen_for(texts: &[String]) -> Result<Self> {
        let data = DataConfig { sources: texts.to_vec(), ..Config::default().data };
        let bytes = text_bytes(&data, ENOUGH_BYTES)?;
        let (draft, description) = for_texts(bytes);
        let size =
            if bytes < ENOUGH_BYTES { grouped(bytes) } else { format!("more than {}", grouped(ENOUGH_BYTES - 1)) };
        let choice =
            format!("configuration for {size} bytes of text: {description} (`tinymoe config show NAME` prints one)");
        Ok(Self { draft, run: PathBuf::new(), choice: Some(choice), borrowed: None })
    }

    /// Explains why the texts of a configuration that comes with the program are not here.
    fn check_texts(&self, config: &Config) -> Result<()> {
        let Some(name) = self.borrowed else { return Ok(()) };
        match config.data.sources.iter().find(|source| !Path::new(&config.data.directory).join(source).exists()) {
            None => Ok(()),
            Some(missing) => Err(usage(format!(
                "the configuration {name} trains on {missing:?}, which is not in this directory (texts do not come with \
                 the program); name texts of your own, as in `tinymoe train {name} talks/`"
            ))),
        }
    }
}

/// A run's name from a text's: that of the file or directory, or for a glob of the directory around it.
fn name_of_text(text: &str) -> String {
    let path = match text.rsplit_once('=') {
        Some((path, label)) if !Path::new(text).exists() && !label.contains('/') => path,
        _ => text,
    };
    let path = std::path::absolute(path).unwrap_or_else(|_| path.into());
    let is_plain =
        |path: &&Path| !path.to_string_lossy().rsplit('/').next().unwrap_or_default().contains(['*', '?', '[']);
    let named = path.ancestors().find(|path| path.exists() || is_plain(path)).unwrap_or(&path);
    let name = if named.is_dir() { named.file_name() } else { named.file_stem() };
    name.map_or_else(|| "run".into(), |name| name.to_string_lossy().into_owned())
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

/// Trains until the end, or until step `pause_at`.
pub(super) fn session(mut trainer: Trainer, path: &Path, pause_at: Option<usize>) -> Result<()> {
    let pause_at = pause_at.unwrap_or(usize::MAX);
    let last = trainer.config().train.max_steps.min(pause_at);
    let mut progress = Progress::new(trainer.state().step, last);
    log::info!("{}\nin {}", trainer.describe(), terminal::path(path));
    let interrupted = signals::ask_for_a_clean_end()?;
    let ending = trainer.run(pause_at, &interrupted, &mut progress)?;
    let last_seen = (progress.loss(), progress.tokens_per_s());
    drop(progress);
    let session = Session::new(&mut trainer, ending, path, last_seen)?;
    let printed = session.print();
    // A terminal that was closed takes no more words.
    if ending == Ending::Interrupted { Err(session.error().into()) } else { Ok(printed?) }
}

fn dry_run(config: &Config, choice: Option<&str>) -> Result<()> {
    let mut prepared = Prepared::new(config)?;
    let baseline = prepared.baseline()?.clone();
    let mut out = io::stdout().lock();
    if let Some(choice) = choice {
        writeln!(out, "{choice}")?;
    }
    writeln!(out, "{}", prepared.describe(config))?;
    writeln!(out, "memory: about {:.0} MB", memory::Needed::of(config).total() / 1e6)?;
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_run_is_named_after_its_first_text() {
        let here = std::env::current_dir().unwrap().file_name().unwrap().to_str().unwrap().to_owned();
        for (text, name) in [
            ("src/", "src"),
            ("README.md", "README"),
            ("README.md=notes", "README"),
            ("src/cli/*.rs", "cli"),
            ("src/**/*.rs=code", "src"),
            (".", here.as_str()),
            ("*.md", here.as_str()),
        ] {
            assert_eq!(name_of_text(text), name, "{text}");
        }
    }
}
