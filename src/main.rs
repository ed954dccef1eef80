//! The `tinymoe` program: see [`tinymoe::cli`].

#![forbid(unsafe_code)]

use std::process::ExitCode;

fn main() -> ExitCode {
    tinymoe::cli::main(std::env::args_os())
}
