//! How a failure becomes an exit code. Most errors are plain [`anyhow::Error`]s and exit with 1; those that a
//! script may want to tell apart are (or wrap) a [`Failure`].

use std::fmt;

/// A failure with an exit code of its own.
#[derive(Debug)]
pub enum Failure {
    /// The command line or the configuration file is wrong: exit code 2.
    Usage(String),
    /// Training met a non-finite loss or gradient: exit code 3.
    Diverged(String),
    /// A checkpoint is damaged or incomplete: exit code 4.
    CorruptCheckpoint(String),
    /// A checkpoint is of a format that only newer versions know, and may be sound: exit code 4, too.
    NewerFormat(String),
    /// Stopped by Ctrl-C after a clean save: exit code 130.
    Interrupted(String),
}

impl Failure {
    pub fn exit_code(&self) -> u8 {
        match self {
            Failure::Usage(_) => 2,
            Failure::Diverged(_) => 3,
            Failure::CorruptCheckpoint(_) | Failure::NewerFormat(_) => 4,
            Failure::Interrupted(_) => 130,
        }
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Failure::Usage(message)
            | Failure::Diverged(message)
            | Failure::CorruptCheckpoint(message)
            | Failure::NewerFormat(message)
            | Failure::Interrupted(message) => f.write_str(message),
        }
    }
}

impl std::error::Error for Failure {}

/// The exit code of any error: that of the [`Failure`] in its chain, else 1.
pub fn exit_code(error: &anyhow::Error) -> u8 {
    error.chain().find_map(|cause| cause.downcast_ref::<Failure>()).map_or(1, Failure::exit_code)
}
