//! `tinymoe config`: print the commented defaults or a configuration that comes with the program, or check one and print
//! it with every default written out. Configurations go to stdout, ready to be saved as a file.

use super::operands::Operand;
use crate::config::DEFAULTS;
use crate::config::shipped::{SHIPPED, shipped, unknown};
use crate::error::Failure;
use clap::{Args, Subcommand};
use std::ffi::OsString;
use std::io::{self, Write};

#[derive(Debug, Args)]
#[command(args_conflicts_with_subcommands = true, arg_required_else_help = true)]
pub struct ConfigArgs {
    /// Print every key with its default and what it does
    #[arg(long)]
    defaults: bool,
    /// List the configurations that come with the program
    #[arg(long, conflicts_with = "defaults")]
    list: bool,

    #[command(subcommand)]
    action: Option<Action>,
}

#[derive(Debug, Subcommand)]
enum Action {
    /// Print a configuration that comes with the program, with the reason for each value
    Show {
        /// Its name, one of those that `tinymoe config --list` lists
        name: String,
    },
    /// Check a configuration and print it resolved, with every default written out
    Check {
        /// A TOML file, or the name of a configuration that comes with the program
        file: OsString,
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
        Some(Action::Show { name }) => shipped(&name).ok_or_else(|| unknown(&name))?.text.to_string(),
        Some(Action::Check { file, overrides }) => {
            toml::to_string(&Operand::parse(&file)?.draft()?.resolve(&overrides)?)?
        }
        None if args.defaults => DEFAULTS.to_string(),
        None if args.list => {
            let width = SHIPPED.iter().map(|shipped| shipped.name.len()).max().unwrap_or_default();
            SHIPPED.iter().map(|shipped| format!("{:width$}  {}\n", shipped.name, shipped.summary)).collect()
        }
        // Only with flags that every command has; otherwise clap prints the help.
        None => {
            let message = "nothing to do: ask for --defaults, --list, `show NAME` or `check FILE`";
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
        let file = tempfile::Builder::new().suffix(".toml").tempfile().unwrap();
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
        let file = tempfile::Builder::new().suffix(".toml").tempfile().unwrap();
        let arguments = ["check", file.path().to_str().unwrap()];
        let mut out = Vec::new();
        let cli = Cli::try_parse_from([&["config"], &arguments[..]].concat()).unwrap();

        let error = write_to(&mut out, cli.config).unwrap_err();

        assert_eq!(exit_code(&error), 2);
        assert!(error.to_string().contains("data.sources is empty"), "{error}");
        assert!(out.is_empty());
    }

    #[test]
    fn the_configurations_of_the_program_are_listed_shown_and_checked() {
        let list = output_of(&["--list"]).unwrap();
        assert_eq!(list.lines().count(), SHIPPED.len());
        assert!(list.starts_with("quickstart            8 experts, 2 per token;"), "{list}");
        assert_eq!(output_of(&["show", "dense"]).unwrap(), include_str!("../../configs/dense.toml"));
        assert!(output_of(&["check", "dense"]).unwrap().contains("num_experts = 0\n"));
        let error = output_of(&["show", "desne"]).unwrap_err();
        assert_eq!(exit_code(&error), 2);
        assert!(error.to_string().contains("did you mean dense?"), "{error}");
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
        let error = write_to(&mut Closed, ConfigArgs { defaults: true, list: false, action: None }).unwrap_err();
        assert_eq!(error.downcast_ref::<io::Error>().unwrap().kind(), io::ErrorKind::BrokenPipe);
    }
}
