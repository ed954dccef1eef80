//! From the sources that a configuration names to the files to read.

use super::Format;
use crate::error::{Failure, exit_code};
use anyhow::{Context, Result};
use glob::{MatchOptions, Pattern};
use serde::Serialize;
use std::collections::HashMap;
use std::fs;
use std::path::{Path, PathBuf};

/// The domain of a file that has neither a label nor a named folder.
const DEFAULT_DOMAIN: &str = "text";

const WILDCARDS: [char; 3] = ['*', '?', '['];

/// Why a path is passed over that a pattern matches.
const EXCLUDED: &str = "data.exclude matches it";

/// The exit code of [`Failure::Usage`].
const USAGE: u8 = 2;

/// One file to read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Source {
    pub path: PathBuf,
    /// The path with `/`.
    pub name: String,
    pub domain: String,
    /// A source names it; else it was found in a folder or by a glob.
    pub is_named: bool,
}

/// What a search did not take, and why.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct PassedOver {
    pub path: String,
    pub reason: &'static str,
}

/// What the sources come to.
#[derive(Clone, Debug, Default)]
pub(super) struct Found {
    /// Sorted by name.
    pub files: Vec<Source>,
    /// In the order in which they were met.
    pub passed_over: Vec<PassedOver>,
}

/// How a file was reached.
struct Reached<'a> {
    path: PathBuf,
    name: String,
    label: Option<&'a str>,
    is_named: bool,
}

/// All files of all sources but those that `exclude` matches. Relative sources are looked for in `directory` (empty: the
/// current one), which takes no part in names, domains and order. A file that several sources reach is listed once, with
/// the label if one of them carries it.
///
/// # Errors
/// [`Failure::Usage`], with all that is wrong with the sources.
pub(super) fn expand(directory: &Path, sources: &[String], exclude: &[String]) -> Result<Found> {
    let mut search = Search::new(directory, exclude)?;
    let mut reached: HashMap<PathBuf, Reached> = HashMap::new();
    let mut problems = Vec::new();
    for source in sources {
        match search.reach(source) {
            Ok(files) => {
                for file in files {
                    let identity =
                        fs::canonicalize(&file.path).with_context(|| format!("cannot read {}", file.path.display()))?;
                    let Reached { label, is_named, .. } = file;
                    let known = reached.entry(identity).or_insert(file);
                    known.label = known.label.or(label);
                    known.is_named |= is_named;
                }
            }
            Err(problem) if exit_code(&problem) == USAGE => problems.push(problem.to_string()),
            Err(error) => return Err(error),
        }
    }
    if !problems.is_empty() {
        return Err(usage(problems.join("\n")));
    }
    let mut files: Vec<Source> = reached.into_values().map(Source::from).collect();
    // Different names that are not UTF-8 may look the same.
    files.sort_by(|a, b| (&a.name, &a.path).cmp(&(&b.name, &b.path)));
    Ok(Found { files, passed_over: search.passed_over })
}

impl From<Reached<'_>> for Source {
    fn from(Reached { path, name, label, is_named }: Reached) -> Self {
        let folder = Path::new(&name).parent().and_then(Path::file_name).map(|folder| folder.to_string_lossy());
        let domain = label.map(str::to_string).or(folder.map(|folder| folder.into_owned()));
        Self { domain: domain.unwrap_or_else(|| DEFAULT_DOMAIN.to_string()), path, name, is_named }
    }
}

/// The path with `/`, as it would be in `directory` itself.
fn name_of(file: &Path, directory: &Path) -> String {
    let name = file.to_string_lossy();
    let name = name.strip_prefix(&*directory.join("").to_string_lossy()).unwrap_or(&name);
    name.replace(std::path::MAIN_SEPARATOR, "/")
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

/// Looks for files in folders.
struct Search<'a> {
    /// Where relative sources are.
    directory: &'a Path,
    /// What names leave out: `directory`, or nothing for an absolute source.
    unnamed: &'a Path,
    exclude: Vec<Pattern>,
    passed_over: Vec<PassedOver>,
    excluded: usize,
    /// Bytes of the paths at hand that say where to look, and not what is found there: no pattern applies to them alone.
    base: usize,
}

impl<'d> Search<'d> {
    fn new(directory: &'d Path, exclude: &[String]) -> Result<Self> {
        let pattern = |glob: &String| {
            let relative = glob.strip_prefix("./").unwrap_or(glob).trim_end_matches('/');
            Pattern::new(relative).map_err(|error| usage(format!("data.exclude: glob \"{glob}\": {error}")))
        };
        Ok(Self {
            directory,
            unnamed: directory,
            exclude: exclude.iter().map(pattern).collect::<Result<_>>()?,
            passed_over: Vec::new(),
            excluded: 0,
            base: 0,
        })
    }

    /// The files of one source.
    fn reach<'a>(&mut self, source: &'a str) -> Result<Vec<Reached<'a>>> {
        let (path, label) = split_label(self.directory, source)?;
        let whole = self.directory.join(path);
        let exists = whole.exists() && !path.is_empty();
        let (is_dir, is_named) = (exists && whole.is_dir(), exists && !whole.is_dir());
        self.unnamed = if Path::new(path).is_absolute() { Path::new("") } else { self.directory };
        self.base = match path.find(WILDCARDS) {
            _ if is_named => folder_len(path),
            Some(wildcard) if !is_dir => folder_len(&path[..wildcard]),
            _ => path.len(),
        };
        let before = (self.passed_over.len(), self.excluded);
        let mut files = Vec::new();
        if is_named {
            check_regular(&whole, path)?;
            self.push(whole, &mut files);
        } else if is_dir {
            self.walk(&whole, &mut files)?;
        } else if path.contains(WILDCARDS) {
            let components: Vec<&str> = path.split(std::path::is_separator).collect();
            match components.split_first() {
                Some((&"", rest)) => self.matches(Path::new(std::path::MAIN_SEPARATOR_STR), rest, &mut files)?,
                _ => self.matches(self.directory, &components, &mut files)?,
            }
        } else {
            let looked_for = std::path::absolute(&whole).unwrap_or(whole);
            let message = format!("source \"{path}\": no such file or directory (looked for {})", looked_for.display());
            return Err(usage(message));
        }
        if files.is_empty() {
            return Err(usage(format!("source \"{path}\": {}", self.nothing_found(before))));
        }
        let reached = |path: PathBuf| Reached { name: name_of(&path, self.unnamed), path, label, is_named };
        Ok(files.into_iter().map(reached).collect())
    }

    /// Why nothing was found since so much had been passed over and excluded.
    fn nothing_found(&self, (passed_over, excluded): (usize, usize)) -> String {
        let known: Vec<String> = Format::extensions().map(|extension| format!(".{extension}")).collect();
        let mut message = format!("no transcript found there (looked for {})", known.join(" "));
        if self.excluded > excluded {
            message += &format!("; data.exclude keeps out {} that were", self.excluded - excluded);
        }
        for PassedOver { path, reason } in self.passed_over[passed_over..].iter().take(3) {
            message += &format!("; passed over {path}, {reason}");
        }
        message
    }

    /// Files with a known extension anywhere below `folder`, hidden ones left out. Links to directories are not
    /// followed, so that no link can lead around in a circle.
    fn walk(&mut self, folder: &Path, files: &mut Vec<PathBuf>) -> Result<()> {
        for path in self.entries(folder)? {
            if is_hidden(&path) {
                continue;
            }
            if is_real_dir(&path) {
                self.walk(&path, files)?;
            } else {
                self.push_known(path, files);
            }
        }
        Ok(())
    }

    /// Files below `base` that match a glob's `components`; a directory that matches contributes its files. This is
    /// not `glob::glob` because that follows links to directories in `**`, circles included.
    fn matches(&mut self, base: &Path, components: &[&str], files: &mut Vec<PathBuf>) -> Result<()> {
        let Some((&component, rest)) = components.split_first() else {
            if base.is_dir() {
                return self.walk(base, files);
            }
            self.push_known(base.to_path_buf(), files);
            return Ok(());
        };
        if !component.contains(WILDCARDS) {
            let path = base.join(component);
            return if path.exists() { self.matches(&path, rest, files) } else { Ok(()) };
        }
        if component == "**" {
            self.matches(base, rest, files)?;
            for path in self.entries(base)? {
                if is_real_dir(&path) && !is_hidden(&path) {
                    self.matches(&path, components, files)?;
                }
            }
            return Ok(());
        }
        let pattern = Pattern::new(component).map_err(|error| usage(format!("glob \"{component}\": {error}")))?;
        let options = MatchOptions { require_literal_leading_dot: true, ..MatchOptions::default() };
        for path in self.entries(base)? {
            if path.file_name().is_some_and(|name| pattern.matches_with(&name.to_string_lossy(), options)) {
                self.matches(&path, rest, files)?;
            }
        }
        Ok(())
    }

    /// What a directory holds; nothing, if `folder` is not a directory, or is one that this program wrote. An empty
    /// path is the current directory.
    fn entries(&mut self, folder: &Path) -> Result<Vec<PathBuf>> {
        let listed = if folder.as_os_str().is_empty() { Path::new(".") } else { folder };
        if !listed.is_dir() {
            return Ok(Vec::new());
        }
        if self.is_excluded(folder) {
            self.pass_over(listed, EXCLUDED);
            return Ok(Vec::new());
        }
        let mut paths = fs::read_dir(listed)
            .and_then(|entries| entries.map(|entry| Ok(folder.join(entry?.file_name()))).collect::<Result<Vec<_>, _>>())
            .with_context(|| format!("cannot list the directory {}", listed.display()))?;
        if let Some(reason) = written_here(&paths) {
            self.pass_over(listed, reason);
            return Ok(Vec::new());
        }
        paths.sort();
        Ok(paths)
    }

    /// Takes a regular file with a known extension. It is not opened: one that is not regular (a pipe) may never end.
    fn push_known(&mut self, path: PathBuf, files: &mut Vec<PathBuf>) {
        if !Format::extensions().any(|known| known == extension(&path)) {
            return;
        }
        match fs::metadata(&path) {
            Ok(metadata) if metadata.is_file() => self.push(path, files),
            Ok(metadata) if metadata.is_dir() => {}
            Ok(_) => self.pass_over(&path, "not a regular file"),
            // It is gone, or a link that leads nowhere.
            Err(_) => self.pass_over(&path, "a link to nothing"),
        }
    }

    fn push(&mut self, path: PathBuf, files: &mut Vec<PathBuf>) {
        if self.is_excluded(&path) {
            self.excluded += 1;
            self.pass_over(&path, EXCLUDED);
        } else {
            files.push(path);
        }
    }

    fn pass_over(&mut self, path: &Path, reason: &'static str) {
        let passed_over = PassedOver { path: name_of(path, self.unnamed), reason };
        if !self.passed_over.contains(&passed_over) {
            self.passed_over.push(passed_over);
        }
    }

    /// Whether a pattern matches a path or any run of its components that is found: a name, a folder, a path's end.
    fn is_excluded(&self, path: &Path) -> bool {
        if self.exclude.is_empty() {
            return false;
        }
        let name = name_of(path, self.unnamed);
        let slashes = || name.match_indices('/').map(|(slash, _)| slash);
        let ends: Vec<usize> = slashes().chain([name.len()]).filter(|&end| end > self.base).collect();
        let options = MatchOptions { require_literal_separator: true, ..MatchOptions::default() };
        std::iter::once(0).chain(slashes().map(|slash| slash + 1)).any(|start| {
            let mut runs = ends.iter().filter(|&&end| end > start).map(|&end| &name[start..end]);
            runs.any(|run| self.exclude.iter().any(|pattern| pattern.matches_with(run, options)))
        })
    }
}

/// Bytes of a path up to its last slash.
fn folder_len(path: &str) -> usize {
    path.rfind(std::path::is_separator).unwrap_or(0)
}

/// Why a folder with these entries is no source of text: what this program wrote into it is not to be learned from, and
/// would change while it is.
fn written_here(paths: &[PathBuf]) -> Option<&'static str> {
    let has = |name: &str| paths.iter().any(|path| path.file_name().is_some_and(|found| found == name));
    let weights = || paths.iter().any(|path| ["safetensors", "gguf"].contains(&extension(path).as_str()));
    match () {
        () if has("config.toml") && (has("run.json") || has("checkpoints") || has("metrics.jsonl")) => {
            Some("a run's directory")
        }
        () if has("MANIFEST.json") && has("trainer_state.json") => Some("a checkpoint"),
        () if has("config.json") && weights() => Some("a model's directory"),
        () => None,
    }
}

/// Refuses what is not a file before it is opened: a pipe would wait for a writer.
fn check_regular(whole: &Path, path: &str) -> Result<()> {
    let metadata = fs::metadata(whole).with_context(|| format!("cannot read {path}"))?;
    if metadata.is_file() { Ok(()) } else { Err(usage(format!("source \"{path}\": not a regular file"))) }
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
        let files = expand(Path::new(""), &sources, &[])?.files;
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
            ("a", "no transcript found there (looked for .txt .text .transcript .md"),
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
    fn excluded_files_and_folders_are_passed_over_and_listed() {
        let folder = tree(&["a/1.txt", "a/2.srt", "a/draft/3.txt", "b/4.txt", "b/notes.txt"]);
        let root = folder.path().to_str().unwrap();
        let kept = |exclude: &[&str]| {
            let exclude: Vec<String> = exclude.iter().map(|glob| glob.to_string()).collect();
            let found = expand(Path::new(""), &[root.to_string()], &exclude).unwrap();
            let names = found.files.iter().map(|file| file.name[root.len() + 1..].to_string());
            (names.collect::<Vec<_>>().join(" "), found.passed_over.len())
        };
        assert_eq!(kept(&[]), ("a/1.txt a/2.srt a/draft/3.txt b/4.txt b/notes.txt".into(), 0));
        assert_eq!(kept(&["*.srt", "notes.*"]), ("a/1.txt a/draft/3.txt b/4.txt".into(), 2));
        assert_eq!(kept(&["draft", "./b/"]), ("a/1.txt a/2.srt".into(), 2));
        assert_eq!(kept(&["a/*.txt"]), ("a/2.srt a/draft/3.txt b/4.txt b/notes.txt".into(), 1));
        assert_eq!(kept(&["a/**/*.txt"]), ("a/2.srt b/4.txt b/notes.txt".into(), 2));
        // Where the search begins is not found by it.
        let folder = folder.path().file_name().unwrap().to_str().unwrap();
        assert_eq!(kept(&["b*", folder, "tmp"]), ("a/1.txt a/2.srt a/draft/3.txt".into(), 1));
        assert_eq!(expand(Path::new(""), &[format!("{root}/b")], &["b".into()]).unwrap().files.len(), 2);
        assert_eq!(expand(Path::new(""), &[format!("{root}/b/*")], &["b".into()]).unwrap().files.len(), 2);
        assert_eq!(expand(Path::new(""), &[format!("{root}/b")], &["b/n*".into()]).unwrap().files.len(), 1);
        let error = expand(Path::new(""), &[format!("{root}/b")], &["*.txt".into()]).unwrap_err();
        assert!(error.to_string().contains("data.exclude keeps out 2"), "{error}");
        let error = expand(Path::new(""), &[root.into()], &["a**".into()]).unwrap_err();
        assert!(error.to_string().starts_with("data.exclude: glob \"a**\""), "{error}");
        assert_eq!(exit_code(&error), 2);
    }

    #[test]
    fn what_the_program_wrote_is_passed_over_by_every_kind_of_search() {
        let folder = tree(&[
            "talk.txt",
            "runs/x/config.toml",
            "runs/x/run.json",
            "runs/x/samples.txt",
            "runs/x/checkpoints/step-1/tokenizer.json",
            "runs/begun/config.toml",
            "runs/begun/checkpoints/x",
            "runs/begun/samples.txt",
            "kept/MANIFEST.json",
            "kept/trainer_state.json",
            "exported/config.json",
            "exported/model.safetensors",
            "mine/config.toml",
            "mine/notes.txt",
        ]);
        let root = folder.path().to_str().unwrap();
        for source in ["", "**", "**/*.txt", "**/*", "*", "**/*.*"] {
            let found = expand(Path::new(""), &[format!("{root}/{source}")], &[]).unwrap();
            let names: Vec<&str> = found.files.iter().map(|file| &file.name[root.len() + 1..]).collect();
            assert_eq!(names, ["mine/notes.txt", "talk.txt"], "{source}");
            let passed: Vec<(&str, &str)> =
                found.passed_over.iter().map(|passed| (&passed.path[root.len() + 1..], passed.reason)).collect();
            assert_eq!(
                passed,
                [
                    ("exported", "a model's directory"),
                    ("kept", "a checkpoint"),
                    ("runs/begun", "a run's directory"),
                    ("runs/x", "a run's directory")
                ],
                "{source}"
            );
        }
        let error = listing(folder.path(), &["runs/x/*.txt"]).unwrap_err().to_string();
        assert!(error.contains("passed over") && error.contains("a run's directory"), "{error}");
        // Named by itself, a file is read wherever it lies.
        assert_eq!(listing(folder.path(), &["runs/x/samples.txt"]).unwrap(), ["runs/x/samples.txt (x)"]);
    }

    #[cfg(unix)]
    #[test]
    fn pipes_and_sockets_are_never_opened() {
        let folder = tree(&["a/1.txt"]);
        let root = folder.path().to_str().unwrap();
        let _socket = std::os::unix::net::UnixListener::bind(folder.path().join("a/socket.txt")).unwrap();
        let made = std::process::Command::new("mkfifo").arg(folder.path().join("a/pipe.txt")).status();
        assert!(made.unwrap().success());
        std::os::unix::fs::symlink("/dev/zero", folder.path().join("a/zero.txt")).unwrap();
        std::os::unix::fs::symlink("nowhere", folder.path().join("a/dangling.txt")).unwrap();
        for source in ["", "/a/*.txt", "/**/*.txt"] {
            let found = expand(Path::new(""), &[format!("{root}{source}")], &[]).unwrap();
            assert_eq!(found.files.len(), 1);
            let passed: Vec<&str> = found.passed_over.iter().map(|passed| passed.reason).collect();
            assert_eq!(passed, ["a link to nothing", "not a regular file", "not a regular file", "not a regular file"]);
        }
        let error = listing(folder.path(), &["a/pipe.txt", "missing"]).unwrap_err().to_string();
        assert!(error.contains("pipe.txt\": not a regular file\n") && error.contains("missing\": no such"), "{error}");
    }

    #[test]
    fn a_directory_for_relative_sources_changes_neither_names_nor_domains() {
        let folder = tree(&["[a]=b/talk.txt", "[a]=b/talks/1.srt", "[a]=b/talks/x.txt", "[a]=b/notes.md"]);
        let directory = folder.path().join("[a]=b");
        let listing = |sources: &[&str]| {
            let sources: Vec<String> = sources.iter().map(|source| source.to_string()).collect();
            let files = expand(&directory, &sources, &[]).unwrap_or_else(|error| panic!("{error}")).files;
            assert!(files.iter().all(|file| file.path.is_absolute()), "{files:?}");
            files.into_iter().map(|Source { name, domain, .. }| format!("{name} ({domain})")).collect::<Vec<_>>()
        };
        assert_eq!(listing(&["talk.txt", "notes.md=n"]), ["notes.md (n)", "talk.txt (text)"]);
        assert_eq!(listing(&["*.txt", "talks"]), ["talk.txt (text)", "talks/1.srt (talks)", "talks/x.txt (talks)"]);
        assert_eq!(listing(&["."]).len(), 4);
        let absolute = directory.join("talks").to_str().unwrap().to_string();
        let shown = absolute.replace(std::path::MAIN_SEPARATOR, "/");
        assert_eq!(listing(&[&absolute]), [format!("{shown}/1.srt (talks)"), format!("{shown}/x.txt (talks)")]);
        let error = expand(&directory, &["gone.txt".into()], &[]).unwrap_err().to_string();
        assert!(error.contains(directory.join("gone.txt").to_str().unwrap()), "{error}");
        assert!(expand(&directory, &[String::new()], &[]).is_err(), "an empty source is not the directory");
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
