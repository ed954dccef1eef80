//! `tinymoe completions` and `tinymoe man`: what shells and `man` want to know, made from the command line's own
//! definition.

use crate::error::Failure;
use anyhow::Result;
use clap::{Args, Command};
use clap_complete::Shell;
use std::io::{self, Write};

#[derive(Debug, Args)]
pub struct CompletionsArgs {
    /// The shell to complete commands in
    shell: Shell,
}

#[derive(Debug, Args)]
pub struct ManArgs {
    /// The subcommand to describe [default: the program as a whole]
    command: Option<String>,
}

/// # Errors
/// The `io::Error` of stdout.
pub fn completions(args: CompletionsArgs, mut program: Command) -> Result<()> {
    let name = program.get_name().to_owned();
    let mut script = Vec::new();
    clap_complete::generate(args.shell, &mut program, name, &mut script);
    write(&script)
}

/// # Errors
/// [`Failure::Usage`] for a subcommand that there is not; the `io::Error` of stdout.
pub fn man(args: ManArgs, mut program: Command) -> Result<()> {
    program.build();
    let command = match &args.command {
        None => program,
        Some(name) => program.find_subcommand(name).cloned().ok_or_else(|| {
            let known: Vec<&str> = program.get_subcommands().map(Command::get_name).collect();
            Failure::Usage(format!("there is no subcommand {name:?}; there are {}", known.join(", ")))
        })?,
    };
    let mut page = Vec::new();
    clap_mangen::Man::new(command).render(&mut page)?;
    write(&page)
}

fn write(bytes: &[u8]) -> Result<()> {
    let mut out = io::stdout().lock();
    out.write_all(bytes)?;
    Ok(out.flush()?)
}
