//! `tinymoe config`: print the commented defaults, or check a configuration and print it with every default written
//! out. The configuration goes to stdout, ready to be saved as a file.

use crate::config::{DEFAULTS, load};
use crate::error::Failure;
use clap::{Args, Subcommand};
use std::io::{self, Write};
use std::path::PathBuf;

#[derive(Debug, Args)]
#[command(args_conflicts_with_subcommands = true)]
pub struct ConfigArgs {
    /// Print every key with its default and what it does
    #[arg(long)]
    defaults: bool,

    #[command(subcommand)]
    action: Option<Action>,
}

#[derive(Debug, Subcommand)]
enum Action {
    /// Check a configuration file and print it resolved, with every default written out
    Check {
        /// The TOML file
        file: PathBuf,
        /// Change one value, as in `--set model.num_experts=16`; may be repeated
        #[arg(long = "set", value_name = "SECTION.KEY=VALUE")]
        overrides: Vec<String>,
    },
}

/// # Errors
/// [`Failure::Usage`] when nothing is asked for or the configuration is refused; the `io::Error` of stdout, which
/// `main` takes for success when the reader has gone away.
pub fn run(args: ConfigArgs) -> anyhow::Result<()> {
    write_to(&mut io::stdout().lock(), args)
}

fn write_to(out: &mut impl Write, args: ConfigArgs) -> anyhow::Result<()> {
    let text = match args.action {
        Some(Action::Check { file, overrides }) => toml::to_string(&load(&file, &overrides)?)?,
        None if args.defaults => DEFAULTS.to_string(),
        None => {
            let message = "nothing to do: ask for `tinymoe config --defaults` or `tinymoe config check FILE`";
            return Err(Failure::Usage(message.to_string()).into());
        }
    };
    out.write_all(text.as_bytes())?;
    out.flush()?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::exit_code;
    use clap::Parser;

    #[derive(Parser)]
    struct Cli {
        #[command(flatten)]
        config: ConfigArgs,
    }

    fn output_of(arguments: &[&str]) -> anyhow::Result<String> {
        let mut out = Vec::new();
        let cli = Cli::try_parse_from([&["config"], arguments].concat())?;
        write_to(&mut out, cli.config)?;
        Ok(String::from_utf8(out)?)
    }

    #[test]
    fn defaults_are_printed_with_their_comments() {
        assert_eq!(output_of(&["--defaults"]).unwrap(), DEFAULTS);
    }

    #[test]
    fn a_checked_configuration_prints_as_a_file_that_means_the_same() {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), "[data]\nsources = [\"talks\"]\n[optimizer]\nlearning_rate = 3e-4\n").unwrap();
        let path = file.path().to_str().unwrap();

        let printed = output_of(&["check", path, "--set", "model.num_experts=16", "--set", "train.seed=7"]).unwrap();

        assert!(printed.contains("num_experts = 16\n"), "{printed}");
        assert!(printed.contains("num_key_value_heads = 4\n"), "defaults are written out resolved: {printed}");
        std::fs::write(file.path(), &printed).unwrap();
        assert_eq!(output_of(&["check", path]).unwrap(), printed);
    }

    #[test]
    fn a_refused_configuration_prints_nothing_but_its_error() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let arguments = ["check", file.path().to_str().unwrap()];
        let mut out = Vec::new();
        let cli = Cli::try_parse_from([&["config"], &arguments[..]].concat()).unwrap();

        let error = write_to(&mut out, cli.config).unwrap_err();

        assert_eq!(exit_code(&error), 2);
        assert!(error.to_string().contains("data.sources is empty"), "{error}");
        assert!(out.is_empty());
    }

    #[test]
    fn asking_for_nothing_names_both_possibilities() {
        let error = output_of(&[]).unwrap_err();
        assert_eq!(exit_code(&error), 2);
        assert_eq!(
            error.to_string(),
            "nothing to do: ask for `tinymoe config --defaults` or `tinymoe config check FILE`"
        );
    }

    #[test]
    fn a_closed_pipe_comes_back_as_its_io_error() {
        struct Closed;
        impl Write for Closed {
            fn write(&mut self, _: &[u8]) -> io::Result<usize> {
                Err(io::ErrorKind::BrokenPipe.into())
            }
            fn flush(&mut self) -> io::Result<()> {
                Ok(())
            }
        }
        let error = write_to(&mut Closed, ConfigArgs { defaults: true, action: None }).unwrap_err();
        assert_eq!(error.downcast_ref::<io::Error>().unwrap().kind(), io::ErrorKind::BrokenPipe);
    }
}
