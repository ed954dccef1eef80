//! The command line: one file a subcommand, each from its arguments to a job and its output.

pub mod config;
