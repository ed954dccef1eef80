//! From the sources that a configuration names to the files to read.

use super::Format;
use crate::error::Failure;
use anyhow::{Context, Result};
use glob::{MatchOptions, Pattern};
use std::collections::HashMap;
use std::fs;
use std::path::{Path, PathBuf};

/// The domain of a file that has neither a label nor a named folder.
const DEFAULT_DOMAIN: &str = "text";

/// One file to read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Source {
    pub path: PathBuf,
    /// The path with `/`.
    pub name: String,
    pub domain: String,
}

/// All files of all sources, sorted by name. Relative sources are looked for in `directory` (empty: the current one),
/// which takes no part in names, domains and order. A file that several sources reach is listed once, with the label if
/// one of them carries it.
pub(super) fn expand(directory: &Path, sources: &[String]) -> Result<Vec<Source>> {
    let mut found: HashMap<PathBuf, (Source, Option<&str>)> = HashMap::new();
    for source in sources {
        let (path, label) = split_label(directory, source)?;
        for file in files_of(directory, path)? {
            let identity = fs::canonicalize(&file).with_context(|| format!("cannot read {}", file.display()))?;
            let name = name_of(&file, if Path::new(path).is_absolute() { Path::new("") } else { directory });
            let source = Source { path: file, name, domain: String::new() };
            let (_, known_label) = found.entry(identity).or_insert((source, label));
            *known_label = known_label.or(label);
        }
    }
    let mut files: Vec<Source> = found.into_values().map(|(file, label)| with_domain(file, label)).collect();
    // Different names that are not UTF-8 may look the same.
    files.sort_by(|a, b| (&a.name, &a.path).cmp(&(&b.name, &b.path)));
    Ok(files)
}

/// The path with `/`, as it would be in `directory` itself.
fn name_of(file: &Path, directory: &Path) -> String {
    let name = file.to_string_lossy();
    let name = name.strip_prefix(&*directory.join("").to_string_lossy()).unwrap_or(&name);
    name.replace(std::path::MAIN_SEPARATOR, "/")
}

fn with_domain(file: Source, label: Option<&str>) -> Source {
    let folder = Path::new(&file.name).parent().and_then(Path::file_name).map(|folder| folder.to_string_lossy());
    let domain = label.map(str::to_string).or(folder.map(|folder| folder.into_owned()));
    Source { domain: domain.unwrap_or_else(|| DEFAULT_DOMAIN.to_string()), ..file }
}

/// The extension in lower case; empty if there is none.
pub(super) fn extension(path: &Path) -> String {
    path.extension().map(|extension| extension.to_string_lossy().to_lowercase()).unwrap_or_default()
}

/// `path=domain` in two, unless there is a file of that whole name. What follows the last `=` is part of the path
/// where it contains a `/`.
fn split_label<'a>(directory: &Path, source: &'a str) -> Result<(&'a str, Option<&'a str>)> {
    match source.rsplit_once('=') {
        Some((path, label)) if !directory.join(source).exists() && !label.contains(std::path::is_separator) => {
            if label.trim().is_empty() {
                return Err(usage(format!(
                    "source \"{source}\": the domain after \"=\" is empty; write {path}=NAME or {path}"
                )));
            }
            Ok((path, Some(label.trim())))
        }
        _ => Ok((source, None)),
    }
}

fn files_of(directory: &Path, path: &str) -> Result<Vec<PathBuf>> {
    let mut files = Vec::new();
    let whole = directory.join(path);
    if whole.is_dir() && !path.is_empty() {
        walk(&whole, &mut files)?;
    } else if whole.exists() && !path.is_empty() {
        return Ok(vec![whole]);
    } else if path.contains(['*', '?', '[']) {
        let components: Vec<&str> = path.split(std::path::is_separator).collect();
        match components.split_first() {
            Some((&"", below_root)) => matches(Path::new(std::path::MAIN_SEPARATOR_STR), below_root, &mut files)?,
            _ => matches(directory, &components, &mut files)?,
        }
    } else {
        let looked_for = std::path::absolute(&whole).unwrap_or(whole);
        let message = format!("source \"{path}\": no such file or directory (looked for {})", looked_for.display());
        return Err(usage(message));
    }
    if files.is_empty() {
        let known = Format::extensions().map(|extension| format!(".{extension}")).collect::<Vec<_>>().join(" ");
        return Err(usage(format!("source \"{path}\": no transcript found there (looked for {known})")));
    }
    Ok(files)
}

/// Files with a known extension anywhere below `folder`, hidden ones left out. Links to directories are not followed,
/// so that no link can lead around in a circle.
fn walk(folder: &Path, files: &mut Vec<PathBuf>) -> Result<()> {
    for path in entries(folder)? {
        if is_hidden(&path) {
            continue;
        }
        if is_real_dir(&path) {
            walk(&path, files)?;
        } else {
            push_known(path, files);
        }
    }
    Ok(())
}

/// Files below `base` that match a glob's `components`; a directory that matches contributes its files. This is not
/// `glob::glob` because that follows links to directories in `**`, circles included.
fn matches(base: &Path, components: &[&str], files: &mut Vec<PathBuf>) -> Result<()> {
    let Some((&component, rest)) = components.split_first() else {
        if base.is_dir() {
            return walk(base, files);
        }
        push_known(base.to_path_buf(), files);
        return Ok(());
    };
    if !component.contains(['*', '?', '[']) {
        let path = base.join(component);
        return if path.exists() { matches(&path, rest, files) } else { Ok(()) };
    }
    if component == "**" {
        matches(base, rest, files)?;
        for path in entries(base)? {
            if is_real_dir(&path) && !is_hidden(&path) {
                matches(&path, components, files)?;
            }
        }
        return Ok(());
    }
    let pattern = Pattern::new(component).map_err(|error| usage(format!("glob \"{component}\": {error}")))?;
    let options = MatchOptions { require_literal_leading_dot: true, ..MatchOptions::default() };
    for path in entries(base)? {
        if path.file_name().is_some_and(|name| pattern.matches_with(&name.to_string_lossy(), options)) {
            matches(&path, rest, files)?;
        }
    }
    Ok(())
}

/// What a directory holds; nothing, if `folder` is not a directory. An empty path is the current directory.
fn entries(folder: &Path) -> Result<Vec<PathBuf>> {
    let listed = if folder.as_os_str().is_empty() { Path::new(".") } else { folder };
    if !listed.is_dir() {
        return Ok(Vec::new());
    }
    let mut paths = fs::read_dir(listed)
        .and_then(|entries| entries.map(|entry| Ok(folder.join(entry?.file_name()))).collect::<Result<Vec<_>, _>>())
        .with_context(|| format!("cannot list the directory {}", listed.display()))?;
    paths.sort();
    Ok(paths)
}

fn push_known(path: PathBuf, files: &mut Vec<PathBuf>) {
    if Format::extensions().any(|known| known == extension(&path)) && !path.is_dir() {
        files.push(path);
    }
}

fn is_hidden(path: &Path) -> bool {
    path.file_name().is_some_and(|name| name.to_string_lossy().starts_with('.'))
}

fn is_real_dir(path: &Path) -> bool {
    fs::symlink_metadata(path).is_ok_and(|metadata| metadata.is_dir())
}

fn usage(message: String) -> anyhow::Error {
    Failure::Usage(message).into()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::exit_code;

    /// A directory with these empty files.
    fn tree(files: &[&str]) -> tempfile::TempDir {
        let folder = tempfile::tempdir().unwrap();
        for file in files {
            let path = folder.path().join(file);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, "").unwrap();
        }
        folder
    }

    /// `name (domain)` of what the sources, relative to `folder`, expand to.
    fn listing(folder: &Path, sources: &[&str]) -> Result<Vec<String>> {
        let root = folder.to_str().unwrap();
        let sources: Vec<String> = sources.iter().map(|source| format!("{root}/{source}")).collect();
        let files = expand(Path::new(""), &sources)?;
        Ok(files.iter().map(|file| format!("{} ({})", &file.name[root.len() + 1..], file.domain)).collect())
    }

    #[test]
    fn a_directory_contributes_its_known_files_sorted_and_without_hidden_ones() {
        let folder = tree(&["b/2.srt", "b/1.MD", "a/x/3.txt", "a/y.png", "b/.git/c.txt", "b/.d.txt"]);
        assert_eq!(listing(folder.path(), &[""]).unwrap(), ["a/x/3.txt (x)", "b/1.MD (b)", "b/2.srt (b)"]);
    }

    #[test]
    fn a_file_reached_twice_is_listed_once_and_a_label_wins() {
        let folder = tree(&["a/1.txt", "a/2.txt"]);
        let files = listing(folder.path(), &["a", "a/*.txt", "a/2.txt=verse"]).unwrap();
        assert_eq!(files, ["a/1.txt (a)", "a/2.txt (verse)"]);
    }

    #[test]
    fn globs_match_files_and_directories() {
        let folder = tree(&["a/1.txt", "a/1.png", "b/c/2.txt", "b/.hidden.txt", "z/3.vtt"]);
        let expand = |glob| listing(folder.path(), &[glob]).unwrap();
        assert_eq!(expand("**/*.txt"), ["a/1.txt (a)", "b/c/2.txt (c)"]);
        assert_eq!(expand("[ab]/*"), ["a/1.txt (a)", "b/c/2.txt (c)"]);
        assert_eq!(expand("?/3.*=last"), ["z/3.vtt (last)"]);
    }

    #[test]
    fn an_equals_sign_in_a_file_name_is_not_a_label() {
        let folder = tree(&["k=v/x=y.txt", "k=v/z.txt"]);
        assert_eq!(listing(folder.path(), &["k=v/x=y.txt"]).unwrap(), ["k=v/x=y.txt (k=v)"]);
        assert_eq!(listing(folder.path(), &["k=v/z.*"]).unwrap(), ["k=v/z.txt (k=v)"]);
        assert_eq!(listing(folder.path(), &["k=v/x=y.txt=label"]).unwrap(), ["k=v/x=y.txt (label)"]);
    }

    #[test]
    fn a_file_named_by_itself_needs_no_known_extension() {
        let folder = tree(&["a/notes.log"]);
        assert_eq!(listing(folder.path(), &["a/notes.log"]).unwrap(), ["a/notes.log (a)"]);
    }

    #[test]
    fn a_source_that_names_nothing_is_a_usage_error() {
        let folder = tree(&["a/1.png"]);
        for (source, message) in [
            ("missing.txt", "no such file or directory (looked for /"),
            ("a", "no transcript found there (looked for .txt .text .md .markdown"),
            ("a/*.png", "no transcript found there"),
            ("b/*.txt", "no transcript found there"),
            ("a=", "the domain after \"=\" is empty"),
            ("a/x**.txt", "glob \"x**.txt\""),
        ] {
            let error = listing(folder.path(), &[source]).unwrap_err();
            assert!(error.to_string().contains(message), "{error}");
            assert_eq!(exit_code(&error), 2, "{error}");
        }
    }

    #[test]
    fn a_directory_for_relative_sources_changes_neither_names_nor_domains() {
        let folder = tree(&["[a]=b/talk.txt", "[a]=b/talks/1.srt", "[a]=b/talks/x.txt", "[a]=b/notes.md"]);
        let directory = folder.path().join("[a]=b");
        let listing = |sources: &[&str]| {
            let files = expand(&directory, &sources.iter().map(|source| source.to_string()).collect::<Vec<_>>());
            let files = files.unwrap_or_else(|error| panic!("{error}"));
            assert!(files.iter().all(|file| file.path.is_absolute()), "{files:?}");
            files.into_iter().map(|Source { name, domain, .. }| format!("{name} ({domain})")).collect::<Vec<_>>()
        };
        assert_eq!(listing(&["talk.txt", "notes.md=n"]), ["notes.md (n)", "talk.txt (text)"]);
        assert_eq!(listing(&["*.txt", "talks"]), ["talk.txt (text)", "talks/1.srt (talks)", "talks/x.txt (talks)"]);
        assert_eq!(listing(&["."]).len(), 4);
        let absolute = directory.join("talks").to_str().unwrap().to_string();
        let shown = absolute.replace(std::path::MAIN_SEPARATOR, "/");
        assert_eq!(listing(&[&absolute]), [format!("{shown}/1.srt (talks)"), format!("{shown}/x.txt (talks)")]);
        let error = expand(&directory, &["gone.txt".into()]).unwrap_err().to_string();
        assert!(error.contains(directory.join("gone.txt").to_str().unwrap()), "{error}");
        assert!(expand(&directory, &[String::new()]).is_err(), "an empty source is not the directory");
    }

    #[cfg(unix)]
    #[test]
    fn links_that_lead_in_a_circle_are_not_followed() {
        let folder = tree(&["a/1.txt"]);
        for link in ["a/up", "a/again"] {
            std::os::unix::fs::symlink(folder.path(), folder.path().join(link)).unwrap();
        }
        std::os::unix::fs::symlink(folder.path().join("a/1.txt"), folder.path().join("a/same.txt")).unwrap();
        for source in ["", "**/*.txt", "*"] {
            assert_eq!(listing(folder.path(), &[source]).unwrap(), ["a/1.txt (a)"], "{source}");
        }
    }
}
