//! Where the program meets a person: messages, progress, names and commands as they are shown.
//!
//! **Messages.** Any room of the program, the model's as well as the command line's, says what it has to say through
//! the `log` crate and need not know who listens:
//!
//! | call | what for | shown |
//! |---|---|---|
//! | `log::warn!("...")` | something is wrong or surprising | always, also with `--quiet`, as `warning: ...` |
//! | `log::info!("...")` | what is being done | unless `--quiet` |
//! | `log::debug!("...")` | details | with `--verbose` |
//!
//! [`init`] installs the one listener, which writes to stderr, above the progress display if there is one.
//!
//! **Progress.** What takes long makes a [`Phase`] and keeps it as long as it lasts.
//!
//! **Names.** What a file, a text or a model holds may contain control characters, which could move a terminal's cursor
//! or recolour it. [`escape`] has the functions that make it visible instead; messages are escaped by the listener.
//!
//! **Commands.** One that is advised to a person is made by [`command`], which quotes for the shell.

mod colour;
mod escape;
mod phase;
mod screen;

pub use colour::{Colours, nearest_indexed};
pub use escape::{command, json, line, operand, path, text};
pub use phase::Phase;
pub use screen::{clear, draw, is_live, stdout_width, width, wrapped};

use log::{Level, LevelFilter, Log, Metadata, Record};

/// How much to tell.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Verbosity {
    /// Warnings and errors only.
    Quiet,
    Normal,
    Verbose,
}

/// From here on, messages go to stderr. Without this call, as in tests and other programs, they go nowhere.
pub fn init(verbosity: Verbosity) {
    let level = match verbosity {
        Verbosity::Quiet => LevelFilter::Warn,
        Verbosity::Normal => LevelFilter::Info,
        Verbosity::Verbose => LevelFilter::Debug,
    };
    // Someone else's logger, if there is one already, decides for itself what it shows.
    if log::set_logger(&Messages).is_ok() {
        log::set_max_level(level);
        screen::open(verbosity > Verbosity::Quiet);
    }
}

/// Writes what the program ends with to stderr.
pub fn error(message: &str) {
    screen::print(&text(message));
}

/// The listener that [`init`] installs.
struct Messages;

impl Log for Messages {
    /// Libraries' messages are about their own insides.
    fn enabled(&self, metadata: &Metadata) -> bool {
        let crate_name = metadata.target().split("::").next();
        metadata.level() <= log::max_level() && crate_name == Some(env!("CARGO_CRATE_NAME"))
    }

    fn log(&self, record: &Record) {
        if self.enabled(record.metadata()) {
            screen::print(&shown(record.level(), &record.args().to_string()));
        }
    }

    fn flush(&self) {}
}

fn shown(level: Level, message: &str) -> String {
    let label = if level <= Level::Warn { "warning: " } else { "" };
    format!("{label}{}", text(message))
}

/// As in 12s, 1m15s, 2h05m.
pub fn duration(seconds: f64) -> String {
    let seconds = seconds.round() as u64;
    match seconds {
        0..60 => format!("{seconds}s"),
        60..3600 => format!("{}m{:02}s", seconds / 60, seconds % 60),
        _ => format!("{}h{:02}m", seconds / 3600, seconds / 60 % 60),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn warnings_are_labelled_and_control_characters_shown() {
        assert_eq!(shown(Level::Warn, "a\x1b[2Jb\nc"), "warning: a\\x1b[2Jb\nc");
        assert_eq!(shown(Level::Info, "bell \x07"), "bell \\x07");
    }

    #[test]
    fn durations_read_naturally() {
        assert_eq!([12.4, 75.0, 3_700.0].map(duration), ["12s", "1m15s", "1h01m"]);
    }

    #[test]
    fn only_this_crate_is_listened_to() {
        let listens_to = |target| Messages.enabled(&Metadata::builder().level(Level::Warn).target(target).build());
        log::set_max_level(LevelFilter::Warn);
        assert!(listens_to("tinymoe") && listens_to("tinymoe::train::step"));
        assert!(!listens_to("tokenizers::models") && !listens_to("tinymoely"));
    }
}
