//! The `tinymoe` program: see [`tinymoe::cli`].

use std::process::ExitCode;

fn main() -> ExitCode {
    tinymoe::cli::main(std::env::args_os())
}
