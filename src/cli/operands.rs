//! What `train` and `config check` are given to work on: the file of a configuration, the name of one that comes with
//! the program, or texts.

use crate::config::Draft;
use crate::config::shipped::{Shipped, shipped, unknown};
use crate::error::Failure;
use crate::train::resume::command;
use anyhow::Result;
use std::ffi::OsStr;
use std::path::{Path, PathBuf};

/// One of them.
#[derive(Debug)]
pub(super) enum Operand {
    /// A path that ends in `.toml`.
    File(PathBuf),
    /// A name, where nothing has that path.
    Shipped(&'static Shipped),
    /// All else: a file, a directory or a glob, perhaps with `=DOMAIN`.
    Text(String),
}

impl Operand {
    /// # Errors
    /// [`Failure::Usage`] for what can be none of them.
    pub fn parse(argument: &OsStr) -> Result<Self> {
        let path = Path::new(argument);
        let shown = path.display();
        if path.extension().is_some_and(|extension| extension == "toml") && !path.is_dir() {
            return Ok(Operand::File(path.to_owned()));
        }
        let Some(text) = argument.to_str() else {
            return Err(usage(format!(
                "{shown} is not UTF-8, as the path of a text must be; name the directory that it is in"
            )));
        };
        if path.join("config.toml").is_file() && path.join("checkpoints").exists() {
            return Err(usage(format!("{shown} is a run; continue it with `{}`", command(path, &[]))));
        }
        match shipped(text) {
            Some(shipped) if !path.exists() => Ok(Operand::Shipped(shipped)),
            _ if path.exists() || text.contains(['/', '\\', '.', '*', '?', '[', '=']) => Ok(Operand::Text(text.into())),
            _ => Err(unknown(text).into()),
        }
    }

    /// A configuration without texts of its own.
    pub fn draft(&self) -> Result<Draft> {
        match self {
            Operand::File(path) => {
                let name = path.file_stem().and_then(OsStr::to_str).and_then(shipped).map(|shipped| shipped.name);
                if let (Some(name), false) = (name, path.exists()) {
                    let path = path.display();
                    return Err(usage(format!(
                        "there is no file {path}, but {name} comes with the program: give that name instead"
                    )));
                }
                Draft::read(path)
            }
            Operand::Shipped(shipped) => Ok(shipped.draft()),
            Operand::Text(text) => {
                Err(usage(format!("{text} is not a configuration: those are TOML files, or {}", names())))
            }
        }
    }
}

/// The names of the configurations that come with the program, for messages.
pub(super) fn names() -> String {
    let names: Vec<&str> = crate::config::shipped::SHIPPED.iter().map(|shipped| shipped.name).collect();
    names.join(", ")
}

pub(super) fn usage(message: String) -> anyhow::Error {
    Failure::Usage(message).into()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::exit_code;

    #[test]
    fn an_argument_is_a_file_a_name_or_a_text() {
        let kind = |argument: &str| match Operand::parse(argument.as_ref()).unwrap() {
            Operand::File(path) => format!("file {}", path.display()),
            Operand::Shipped(shipped) => format!("name {}", shipped.name),
            Operand::Text(text) => format!("text {text}"),
        };
        assert_eq!(kind("configs/dense.toml"), "file configs/dense.toml");
        assert_eq!(kind("missing.toml"), "file missing.toml");
        assert_eq!(kind("quickstart"), "name quickstart");
        for text in ["./quickstart", "talks/", "notes.md=notes", "*.srt", "missing.txt", "src", "."] {
            assert_eq!(kind(text), format!("text {text}"));
        }
    }

    #[test]
    fn what_is_none_of_them_is_refused() {
        for (argument, part) in [("quikstart", "did you mean quickstart?"), ("", "no file, directory or configuration")]
        {
            let error = Operand::parse(argument.as_ref()).unwrap_err();
            assert_eq!(exit_code(&error), 2);
            assert!(error.to_string().contains(part), "{error}");
        }
        let error = Operand::File("elsewhere/quickstart.toml".into()).draft().unwrap_err().to_string();
        assert!(error.contains("quickstart comes with the program"), "{error}");
    }
}
