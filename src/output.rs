//! Files that the program is asked to write: whole or not at all, never over what it reads, never over what is of
//! another kind.
//!
//! [`check`] comes before the work whose result is to be written. A [`Draft`] is written under a hidden name beside its
//! place, flushed, and renamed. A process that is killed leaves `.NAME.tmp-PID`, which the next draft for that place
//! removes; what stood there before is as it was.

use crate::checkpoint::directory::{remove_file_if_present, remove_if_present, sibling, sync_directory, write_new};
use crate::error::Failure;
use crate::fault;
use anyhow::{Context, Result};
use std::fs::{self, File, OpenOptions, TryLockError};
use std::io::{self, ErrorKind, Read};
use std::path::{Path, PathBuf};

/// Bytes of a file that tell its kind.
const TELLING_BYTES: u64 = 4096;

/// Refuses to write a file at `path` where that would cost something: where one of `inputs` is the same file (by another
/// path or a link, too), or where something stands already that is neither empty nor, by its first bytes, `kind`.
///
/// # Errors
/// [`Failure::Usage`]
pub fn check(path: &Path, kind: &str, is_kind: fn(&[u8]) -> bool, inputs: &[PathBuf]) -> Result<()> {
    let shown = path.display();
    let refuse = |why: String| Err(Failure::Usage(format!("{shown} {why}; choose another name")).into());
    if path.file_name().is_none() {
        return refuse("is not the name of a file".into());
    }
    let found = match fs::metadata(path) {
        Ok(found) => found,
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(()),
        Err(error) => return refuse(format!("cannot be looked at: {error}")),
    };
    if found.is_dir() {
        return refuse("is a directory".into());
    }
    if let Some(input) = inputs.iter().find(|input| is_same_file(path, input)) {
        return refuse(match input == path {
            true => "is being read, and would be lost".into(),
            false => format!("is the same file as {}, which is being read and would be lost", input.display()),
        });
    }
    // A pipe would be emptied by a look into it.
    if !found.is_file() {
        return Ok(());
    }
    match first_bytes(path) {
        Ok(start) if start.is_empty() || is_kind(&start) => Ok(()),
        Ok(_) => refuse(format!("exists already and is not {kind}, so it is not replaced")),
        Err(error) => refuse(format!("exists already, and cannot be read to see whether it is {kind}: {error}")),
    }
}

fn first_bytes(path: &Path) -> io::Result<Vec<u8>> {
    let mut start = Vec::new();
    File::open(path)?.take(TELLING_BYTES).read_to_end(&mut start)?;
    Ok(start)
}

/// The files in a directory, as inputs for [`check`].
pub fn files_in(directory: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(directory).into_iter().flatten().flatten();
    entries.map(|entry| entry.path()).filter(|path| path.is_file()).collect()
}

/// Whether two paths lead to one file: through links of either kind, too.
fn is_same_file(a: &Path, b: &Path) -> bool {
    #[cfg(unix)]
    if let (Ok(a), Ok(b)) = (fs::metadata(a), fs::metadata(b)) {
        use std::os::unix::fs::MetadataExt;
        return (a.dev(), a.ino()) == (b.dev(), b.ino());
    }
    matches!((a.canonicalize(), b.canonicalize()), (Ok(a), Ok(b)) if a == b)
}

/// Whether what is written to `path` goes on to somebody as it comes: a pipe, a terminal, another device.
pub fn is_stream(path: &Path) -> bool {
    // Behind these there may be a regular file, but one that a shell has open already.
    let is_descriptor = ["/dev/", "/proc/"].iter().any(|root| path.starts_with(root));
    fs::metadata(path).is_ok_and(|found| !found.is_file() && !found.is_dir() || is_descriptor)
}

/// The path behind a symbolic link, so that a link to a file stays one when the file is replaced.
pub fn behind_links(path: &Path) -> PathBuf {
    let target = if path.is_symlink() { path.canonicalize().ok() } else { None };
    target.unwrap_or_else(|| path.to_path_buf())
}

/// The directory that holds `path`.
fn parent(path: &Path) -> &Path {
    path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."))
}

/// A file or directory that is being written and is not in its place yet.
pub struct Draft {
    place: PathBuf,
    temporary: PathBuf,
    /// Locked as long as this process lives, which tells its draft from what a dead one left. Not everywhere can a
    /// directory be opened.
    _lock: Option<File>,
}

impl Draft {
    /// A file, empty so far, and the handle to write it with.
    pub fn file(place: &Path) -> Result<(Self, File)> {
        let draft = Self::new(behind_links(place))?;
        let create = || {
            fault::system_call();
            OpenOptions::new().write(true).create_new(true).open(&draft.temporary)
        };
        let file = create().with_context(|| format!("cannot create {}", draft.temporary.display()))?;
        Ok((draft.locked(), file))
    }

    /// A whole file.
    pub fn write(place: &Path, bytes: &[u8]) -> Result<()> {
        let draft = Self::new(behind_links(place))?;
        write_new(&draft.temporary, bytes)
            .and_then(|()| draft.locked().publish())
            .with_context(|| format!("cannot write {}", place.display()))
    }

    /// A directory of these files.
    pub fn write_directory(place: &Path, files: &[(impl AsRef<str>, Vec<u8>)]) -> Result<()> {
        let draft = Self::new(place.to_path_buf())?;
        fault::system_call();
        fs::create_dir(&draft.temporary).with_context(|| format!("cannot create {}", draft.temporary.display()))?;
        let draft = draft.locked();
        for (name, bytes) in files {
            write_new(&draft.temporary.join(name.as_ref()), bytes)?;
        }
        sync_directory(&draft.temporary)?;
        draft.publish()
    }

    fn new(place: PathBuf) -> Result<Self> {
        let folder = parent(&place);
        fs::create_dir_all(folder).with_context(|| format!("cannot create {}", folder.display()))?;
        remove_leftovers(&place)?;
        let temporary = sibling(&place, "tmp");
        Ok(Self { place, temporary, _lock: None })
    }

    fn locked(mut self) -> Self {
        self._lock = File::open(&self.temporary).ok().filter(|file| file.try_lock().is_ok());
        self
    }

    /// Puts what was written and flushed into its place.
    pub fn publish(self) -> Result<()> {
        fault::system_call();
        fs::rename(&self.temporary, &self.place)
            .with_context(|| format!("cannot put {} into its place", self.place.display()))?;
        sync_directory(parent(&self.place))
    }
}

impl Drop for Draft {
    fn drop(&mut self) {
        // Nothing is left of a draft that was published; what cannot be removed now, the next one removes.
        _ = remove(&self.temporary);
    }
}

fn remove(temporary: &Path) -> Result<()> {
    if temporary.is_dir() && !temporary.is_symlink() {
        remove_if_present(temporary)
    } else if temporary.is_symlink() || temporary.exists() {
        remove_file_if_present(temporary)
    } else {
        Ok(())
    }
}

/// Removes drafts for `place` that dead processes left.
fn remove_leftovers(place: &Path) -> Result<()> {
    let prefix = format!(".{}.tmp-", place.file_name().unwrap_or_default().to_string_lossy());
    for entry in fs::read_dir(parent(place)).into_iter().flatten().flatten() {
        let name = entry.file_name().to_string_lossy().into_owned();
        let is_draft = name.strip_prefix(&prefix).is_some_and(|process| process.parse::<u32>().is_ok());
        if is_draft && !is_locked(&entry.path()) {
            remove(&entry.path())?;
        }
    }
    Ok(())
}

fn is_locked(path: &Path) -> bool {
    File::open(path).is_ok_and(|file| matches!(file.try_lock(), Err(TryLockError::WouldBlock)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use tempfile::tempdir;

    fn is_list(start: &[u8]) -> bool {
        start.starts_with(b"list:")
    }

    fn refusal(path: &Path, inputs: &[PathBuf]) -> String {
        check(path, "a list", is_list, inputs).unwrap_err().to_string()
    }

    #[test]
    fn what_is_of_another_kind_is_not_replaced() {
        let folder = tempdir().unwrap();
        let path = folder.path().join("file");
        check(&path, "a list", is_list, &[]).unwrap();
        for (content, fits) in [("", true), ("list: a", true), ("weights", false)] {
            fs::write(&path, content).unwrap();
            assert_eq!(check(&path, "a list", is_list, &[]).is_ok(), fits, "{content:?}");
        }
        assert!(refusal(&path, &[]).contains("exists already and is not a list"));
        assert!(refusal(folder.path(), &[]).contains("is a directory"));
        assert!(refusal(Path::new(".."), &[]).contains("is not the name of a file"));
    }

    #[cfg(unix)]
    #[test]
    fn what_is_read_is_not_replaced_under_any_of_its_names() {
        let folder = tempdir().unwrap();
        let at = |name: &str| folder.path().join(name);
        fs::write(at("input"), "list: a").unwrap();
        fs::hard_link(at("input"), at("hard")).unwrap();
        std::os::unix::fs::symlink("input", at("soft")).unwrap();
        fs::write(at("other"), "list: b").unwrap();
        assert!(refusal(&at("input"), &[at("input")]).contains("is being read"));
        for name in ["hard", "soft"] {
            assert!(refusal(&at(name), &[at("other"), at("input")]).contains("is the same file as"), "{name}");
        }
        check(&at("other"), "a list", is_list, &[at("input")]).unwrap();
        assert!(!is_stream(&at("input")) && is_stream(Path::new("/dev/null")));
    }

    #[test]
    fn a_draft_replaces_the_file_behind_a_link_and_leaves_nothing_else() {
        let folder = tempdir().unwrap();
        let at = |name: &str| folder.path().join(name);
        fs::write(at("page"), "old").unwrap();
        // A dead process's file and directory, and files that are none of ours.
        fs::write(at(".page.tmp-77"), "half").unwrap();
        fs::create_dir(at(".page.tmp-78")).unwrap();
        fs::write(at(".page.tmp-me"), "mine").unwrap();
        #[cfg(unix)]
        {
            std::os::unix::fs::symlink("page", at("link")).unwrap();
            Draft::write(&at("link"), b"newer").unwrap();
            assert!(at("link").is_symlink() && fs::read(at("page")).unwrap() == b"newer");
            fs::remove_file(at("link")).unwrap();
        }
        Draft::write(&at("page"), b"new").unwrap();
        assert_eq!(fs::read(at("page")).unwrap(), b"new");
        Draft::write_directory(&at("sub/model"), &[("a", b"1".to_vec())]).unwrap();
        assert_eq!(fs::read(at("sub/model/a")).unwrap(), b"1");
        let mut names: Vec<_> = fs::read_dir(folder.path()).unwrap().map(|entry| entry.unwrap().file_name()).collect();
        names.sort();
        assert_eq!(names, [".page.tmp-me", "page", "sub"]);
        assert_eq!(fs::read_dir(at("sub")).unwrap().count(), 1);
    }

    #[test]
    fn a_draft_that_fails_or_is_given_up_leaves_what_was_there() {
        let folder = tempdir().unwrap();
        let place = folder.path().join("page");
        fs::write(&place, "old").unwrap();
        let (draft, _file) = Draft::file(&place).unwrap();
        // Another process, which knows only what it sees, lets a living one's draft be.
        assert!(is_locked(&draft.temporary));
        drop(draft);
        let long = "x".repeat(300);
        let failed = Draft::write_directory(&folder.path().join("model"), &[("a", vec![]), (&long, vec![])]);
        assert!(format!("{:#}", failed.unwrap_err()).contains(&long));
        assert!(files_in(folder.path()) == [place.as_path()]);
        assert_eq!((fs::read(&place).unwrap(), fs::read_dir(folder.path()).unwrap().count()), (b"old".to_vec(), 1));
    }
}
