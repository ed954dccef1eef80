//! One checkpoint on disk: a directory of files and `MANIFEST.json`, which proves that they are whole.
//!
//! A save writes everything under a hidden temporary name and renames it into place, so that at every instant the
//! final name holds either nothing, the old checkpoint, or the new one. A crash leaves at most
//! - `.step-N.tmp-PID`: an unfinished save, or a half-removed checkpoint. [`super::prune`] removes it.
//! - `.step-N.old-PID`: a checkpoint moved aside for its replacement. If `step-N` is missing, the crash fell between
//!   the two renames and [`super::newest`] and [`super::prune`] move it back; else they remove it.

use super::corrupt;
use crate::error::Failure;
use crate::fault;
use anyhow::{Context, Result, bail, ensure};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File, OpenOptions};
use std::io::{self, ErrorKind, Read, Write};
use std::path::{Path, PathBuf};

pub(super) const MANIFEST: &str = "MANIFEST.json";
const FORMAT: u32 = 1;
const MAX_MANIFEST_BYTES: u64 = 1 << 20;
const MAX_CHECKPOINT_BYTES: u64 = 64 << 30;
/// What it takes to run the model. The trainer's state is needed only to resume, and asked for there.
const REQUIRED: [&str; 3] = ["config.json", "model.safetensors", "tokenizer.json"];

#[derive(Serialize, Deserialize)]
struct Manifest {
    format: u32,
    files: Vec<Entry>,
}

/// The part of a manifest that every version has.
#[derive(Deserialize)]
struct Version {
    format: u64,
}

#[derive(Serialize, Deserialize)]
struct Entry {
    name: String,
    size: u64,
    /// Lower-case hexadecimal.
    sha256: String,
}

/// The verified contents of a checkpoint.
#[derive(Debug)]
pub struct Files {
    directory: PathBuf,
    contents: BTreeMap<String, Vec<u8>>,
}

impl Files {
    /// The bytes of one file. A checkpoint without it is corrupt.
    pub fn get(&self, name: &str) -> Result<&[u8]> {
        let bytes = self.contents.get(name).map(Vec::as_slice);
        bytes.ok_or_else(|| corrupt(format!("{} has no {name}", self.directory.display())))
    }
}

/// Writes `files` (name, bytes) as `checkpoints/step-000500` with `MANIFEST.json` last, durably, or leaves nothing
/// behind. A checkpoint of the same step is replaced.
///
/// # Errors
/// Any failure to write, with the file and its cause; earlier checkpoints are as they were.
pub fn save(checkpoints: &Path, step: u64, files: &[(&str, Vec<u8>)]) -> Result<PathBuf> {
    let directory = checkpoints.join(step_name(step));
    let temporary = sibling(&directory, "tmp");
    let saved = write_directory(&temporary, files).and_then(|()| publish(&temporary, &directory));
    saved.map_err(|error| {
        // What cannot be removed now, the next prune removes.
        let _ = fs::remove_dir_all(&temporary);
        let hint = hint(&error);
        error.context(format!("saving {} failed{hint}; earlier checkpoints are untouched", directory.display()))
    })?;
    Ok(directory)
}

/// Reads a checkpoint: the manifest, the sizes of all files that it names, then their bytes, and hands them out only
/// when every hash agrees.
///
/// # Errors
/// `CorruptCheckpoint` naming the file and what is wrong with it, `NewerFormat` where a newer version wrote it.
pub fn load(directory: &Path) -> Result<Files> {
    let manifest = read_manifest(directory)?;
    let mut total = 0u64;
    for entry in &manifest.files {
        let path = directory.join(&entry.name);
        let size = regular_file_size(&path)?;
        if size != entry.size {
            let expected = entry.size;
            return Err(corrupt(format!("{} has {size} bytes, the manifest says {expected}", path.display())));
        }
        total = total.saturating_add(size);
    }
    if total > MAX_CHECKPOINT_BYTES {
        let limit = MAX_CHECKPOINT_BYTES >> 30;
        return Err(corrupt(format!("{} has {total} bytes, the limit is {limit} GiB", directory.display())));
    }
    let mut contents = BTreeMap::new();
    for entry in manifest.files {
        let path = directory.join(&entry.name);
        let bytes = read_sized(&path, entry.size)?;
        if sha256(&bytes) != entry.sha256 {
            return Err(corrupt(format!("{} is damaged: its SHA-256 is not the manifest's", path.display())));
        }
        contents.insert(entry.name, bytes);
    }
    Ok(Files { directory: directory.to_path_buf(), contents })
}

pub(super) fn step_name(step: u64) -> String {
    format!("step-{step:06}")
}

/// The hidden neighbour of `path` that this process uses for `purpose`.
pub(crate) fn sibling(path: &Path, purpose: &str) -> PathBuf {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    path.with_file_name(format!(".{name}.{purpose}-{}", std::process::id()))
}

/// Whether `name` names a file in the directory itself, visible and nowhere else.
pub(super) fn is_plain_name(name: &str) -> bool {
    !name.is_empty() && !name.starts_with('.') && !name.contains(|c: char| c == '/' || c == '\\' || c.is_control())
}

pub(super) fn is_checkpoint(directory: &Path) -> bool {
    directory.join(MANIFEST).is_file()
}

/// Whether a manifest of ours stands in `directory`, sound or damaged; others have files of that name, too.
pub(super) fn has_our_manifest(directory: &Path) -> bool {
    let Ok(file) = File::open(directory.join(MANIFEST)) else { return false };
    let mut bytes = Vec::new();
    let read = file.take(MAX_MANIFEST_BYTES).read_to_end(&mut bytes);
    match serde_json::from_slice::<serde_json::Value>(&bytes) {
        Ok(manifest) if read.is_ok() => {
            // Newer formats may have something else in the place of files.
            let is_newer = manifest["format"].as_u64().is_some_and(|format| format > u64::from(FORMAT));
            is_newer || manifest.get("format").is_some() && manifest.get("files").is_some()
        }
        // What is no JSON was some program's once. If it was ours, the damage must be told.
        _ => true,
    }
}

pub(crate) fn remove_if_present(directory: &Path) -> Result<()> {
    match remove_directory(directory) {
        Err(error) if error.kind() != ErrorKind::NotFound => {
            Err(error).with_context(|| format!("cannot remove {}", directory.display()))
        }
        _ => Ok(()),
    }
}

/// As [`fs::remove_dir_all`], with every file a step of its own.
fn remove_directory(directory: &Path) -> io::Result<()> {
    for entry in fs::read_dir(directory)? {
        let entry = entry?;
        if !entry.file_type()?.is_dir() {
            fault::system_call();
            fs::remove_file(entry.path())?;
        }
    }
    fault::system_call();
    fs::remove_dir_all(directory)
}

pub(super) fn rename(from: &Path, to: &Path) -> Result<()> {
    fault::system_call();
    fs::rename(from, to).with_context(|| format!("cannot rename {} to {}", from.display(), to.display()))
}

/// Makes renames and new names in `directory` survive a power cut. Only Unix can open a directory for that.
pub(crate) fn sync_directory(directory: &Path) -> Result<()> {
    if cfg!(unix) {
        fault::system_call();
        File::open(directory)
            .and_then(|handle| handle.sync_all())
            .with_context(|| format!("cannot flush {} to disk", directory.display()))?;
    }
    Ok(())
}

fn write_directory(temporary: &Path, files: &[(&str, Vec<u8>)]) -> Result<()> {
    check_names(files.iter().map(|(name, _)| *name)).map_err(anyhow::Error::msg)?;
    let checkpoints = temporary.parent().unwrap_or(Path::new("."));
    if !checkpoints.is_dir() {
        fault::system_call();
        fs::create_dir_all(checkpoints).with_context(|| format!("cannot create {}", checkpoints.display()))?;
        if let Some(run) = checkpoints.parent().filter(|run| !run.as_os_str().is_empty()) {
            sync_directory(run)?;
        }
    }
    // Process ids repeat, above all in containers: a crashed save may have used this very name.
    remove_if_present(temporary)?;
    fault::system_call();
    fs::create_dir(temporary).with_context(|| format!("cannot create {}", temporary.display()))?;
    let mut manifest = Manifest { format: FORMAT, files: Vec::new() };
    for (name, bytes) in files {
        write_new(&temporary.join(name), bytes)?;
        manifest.files.push(Entry { name: name.to_string(), size: bytes.len() as u64, sha256: sha256(bytes) });
    }
    write_new(&temporary.join(MANIFEST), &serde_json::to_vec_pretty(&manifest)?)?;
    sync_directory(temporary)
}

/// Renames the finished `temporary` to `directory`. A directory cannot be renamed over a full one, so an older
/// checkpoint of that name is moved aside first, and removed once the new name is durable.
fn publish(temporary: &Path, directory: &Path) -> Result<()> {
    let aside = sibling(directory, "old");
    let replaces = match fs::symlink_metadata(directory) {
        Ok(found) if found.is_dir() => true,
        Ok(_) => bail!("{} is in the way: it is not a directory; move it elsewhere", directory.display()),
        Err(error) if error.kind() == ErrorKind::NotFound => false,
        Err(error) => return Err(error).with_context(|| format!("cannot look at {}", directory.display())),
    };
    if replaces {
        remove_if_present(&aside)?;
        rename(directory, &aside)?;
    }
    if let Err(error) = rename(temporary, directory) {
        if replaces {
            rename(&aside, directory)?;
        }
        return Err(error);
    }
    sync_directory(directory.parent().unwrap_or(Path::new(".")))?;
    if replaces {
        // The new checkpoint stands; what remains of the old one, the next prune removes.
        let _ = remove_directory(&aside);
    }
    Ok(())
}

/// Replaces the file at `path` whole or not at all, durably. A crash leaves `.NAME.tmp` at most, which the next call
/// for the same file overwrites.
pub fn replace(path: &Path, bytes: &[u8]) -> Result<()> {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    let temporary = path.with_file_name(format!(".{name}.tmp"));
    remove_file_if_present(&temporary)?;
    write_new(&temporary, bytes)?;
    rename(&temporary, path)?;
    sync_directory(path.parent().unwrap_or(Path::new(".")))
}

pub(crate) fn remove_file_if_present(path: &Path) -> Result<()> {
    fault::system_call();
    match fs::remove_file(path) {
        Err(error) if error.kind() != ErrorKind::NotFound => {
            Err(error).with_context(|| format!("cannot remove {}", path.display()))
        }
        _ => Ok(()),
    }
}

pub(crate) fn write_new(path: &Path, bytes: &[u8]) -> Result<()> {
    let write = || -> io::Result<()> {
        fault::system_call();
        let mut file = OpenOptions::new().write(true).create_new(true).open(path)?;
        // In two parts, so that a fault may come between them.
        let (head, tail) = bytes.split_at(bytes.len() / 2);
        for part in [head, tail] {
            fault::system_call();
            file.write_all(part)?;
        }
        fault::system_call();
        file.sync_all()
    };
    write().with_context(|| format!("cannot write {}", path.display()))
}

/// What the user can do about the operating system's refusal.
fn hint(error: &anyhow::Error) -> &'static str {
    match error.chain().find_map(|cause| cause.downcast_ref::<io::Error>()).map(io::Error::kind) {
        Some(ErrorKind::StorageFull | ErrorKind::QuotaExceeded) => {
            " (the disk or quota is full: free some space, or choose another disk with --run)"
        }
        Some(ErrorKind::FileTooLarge) => {
            " (larger than the limit on file sizes: see `ulimit -f`, or choose another disk with --run)"
        }
        Some(ErrorKind::PermissionDenied) => {
            " (writing is not permitted there: check the owner of the directory, or choose another with --run)"
        }
        Some(ErrorKind::ReadOnlyFilesystem) => " (the file system is read-only: choose another directory with --run)",
        _ => "",
    }
}

fn read_manifest(directory: &Path) -> Result<Manifest> {
    ensure!(directory.is_dir(), "there is no checkpoint at {}", directory.display());
    let path = directory.join(MANIFEST);
    if !path.exists() {
        let shown = directory.display();
        return Err(corrupt(format!("{shown} is not a tinymoe checkpoint: it has no {MANIFEST}")));
    }
    let size = regular_file_size(&path)?;
    if size > MAX_MANIFEST_BYTES {
        return Err(corrupt(format!("{} has {size} bytes, the limit is {MAX_MANIFEST_BYTES}", path.display())));
    }
    let damaged = |what: String| corrupt(format!("{} is damaged: {what}", path.display()));
    let bytes = read_sized(&path, size)?;
    // By itself first: nobody knows what else a newer manifest holds.
    let Version { format } = serde_json::from_slice(&bytes).map_err(|error| damaged(error.to_string()))?;
    if format > u64::from(FORMAT) {
        return Err(Failure::NewerFormat(format!(
            "{} was written by a newer version: its format is {format}, and this one reads up to {FORMAT}; use the newer \
             version, or another checkpoint",
            directory.display()
        ))
        .into());
    }
    let manifest: Manifest = serde_json::from_slice(&bytes).map_err(|error| damaged(error.to_string()))?;
    if manifest.format != FORMAT {
        return Err(damaged(format!("its format is {format}, which no version has written")));
    }
    check_names(manifest.files.iter().map(|entry| entry.name.as_str())).map_err(damaged)?;
    // Not even a blank may differ: no damage is harmless by chance.
    if serde_json::to_vec_pretty(&manifest)? != bytes {
        return Err(damaged("it is not written as this program writes it".into()));
    }
    Ok(manifest)
}

fn check_names<'a>(names: impl Iterator<Item = &'a str>) -> Result<(), String> {
    let mut seen = BTreeSet::new();
    for name in names {
        if !is_plain_name(name) || name == MANIFEST {
            return Err(format!("{name:?} is not a file name that a checkpoint may hold"));
        }
        if !seen.insert(name) {
            return Err(format!("{name:?} is listed twice"));
        }
    }
    match REQUIRED.iter().find(|name| !seen.contains(*name)) {
        Some(missing) => Err(format!("{missing} is not listed")),
        None => Ok(()),
    }
}

fn regular_file_size(path: &Path) -> Result<u64> {
    match fs::symlink_metadata(path) {
        Ok(found) if found.is_file() => Ok(found.len()),
        Ok(_) => Err(corrupt(format!("{} is not a regular file (links are refused)", path.display()))),
        Err(error) if error.kind() == ErrorKind::NotFound => Err(corrupt(format!("{} is missing", path.display()))),
        Err(error) => Err(error).with_context(|| format!("cannot look at {}", path.display())),
    }
}

/// Reads a file that is known to have `size` bytes, and no more than that if it grows meanwhile.
fn read_sized(path: &Path, size: u64) -> Result<Vec<u8>> {
    let read = || -> io::Result<Vec<u8>> {
        let mut bytes = Vec::new();
        bytes.try_reserve_exact(usize::try_from(size).map_err(io::Error::other)?)?;
        File::open(path)?.take(size).read_to_end(&mut bytes)?;
        Ok(bytes)
    };
    read().with_context(|| format!("cannot read {}", path.display()))
}

fn sha256(bytes: &[u8]) -> String {
    format!("{:x}", Sha256::digest(bytes))
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use crate::error::exit_code;
    use proptest::prelude::*;
    use tempfile::tempdir;

    /// The smallest checkpoint, with `mark` in its weights.
    pub fn example(mark: &str) -> Vec<(&'static str, Vec<u8>)> {
        vec![("config.json", b"{}".to_vec()), ("model.safetensors", mark.into()), ("tokenizer.json", b"[]".to_vec())]
    }

    fn names_in(directory: &Path) -> Vec<String> {
        let entries = fs::read_dir(directory).unwrap();
        let mut names: Vec<_> = entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
        names.sort();
        names
    }

    fn assert_corrupt(directory: &Path, what: &str) {
        let error = load(directory).expect_err(what);
        assert_eq!(exit_code(&error), 4, "{what}: {error:#}");
    }

    #[test]
    fn a_saved_checkpoint_loads_with_the_same_bytes() {
        let root = tempdir().unwrap();
        let checkpoints = root.path().join("run/checkpoints");
        let directory = save(&checkpoints, 500, &example("weights")).unwrap();
        assert_eq!(directory, checkpoints.join("step-000500"));
        let files = load(&directory).unwrap();
        assert_eq!(files.get("model.safetensors").unwrap(), b"weights");
        assert_eq!(exit_code(&files.get("optimizer.safetensors").unwrap_err()), 4);
        assert_eq!(names_in(&directory), ["MANIFEST.json", "config.json", "model.safetensors", "tokenizer.json"]);
    }

    #[test]
    fn every_flipped_bit_pattern_and_every_truncation_is_detected() {
        let root = tempdir().unwrap();
        let directory = save(root.path(), 1, &example("some weights")).unwrap();
        for name in names_in(&directory) {
            let path = directory.join(&name);
            let whole = fs::read(&path).unwrap();
            for position in 0..whole.len() {
                for flip in [0x01, 0x10, 0x20, 0x80, 0xff] {
                    let mut damaged = whole.clone();
                    damaged[position] ^= flip;
                    fs::write(&path, &damaged).unwrap();
                    assert_corrupt(&directory, &format!("{name} byte {position} ^ {flip:#x}"));
                }
                fs::write(&path, &whole[..position]).unwrap();
                assert_corrupt(&directory, &format!("{name} cut to {position} bytes"));
            }
            fs::write(&path, &whole).unwrap();
        }
        load(&directory).unwrap();
    }

    #[test]
    fn a_missing_linked_or_extended_file_is_named() {
        let root = tempdir().unwrap();
        let directory = save(root.path(), 1, &example("w")).unwrap();
        let path = directory.join("model.safetensors");
        fs::write(&path, "ww").unwrap();
        assert!(load(&directory).unwrap_err().to_string().contains("model.safetensors has 2 bytes"));
        fs::remove_file(&path).unwrap();
        assert!(load(&directory).unwrap_err().to_string().contains("model.safetensors is missing"));
        #[cfg(unix)]
        {
            fs::write(root.path().join("elsewhere"), "w").unwrap();
            std::os::unix::fs::symlink("../elsewhere", &path).unwrap();
            assert!(load(&directory).unwrap_err().to_string().contains("not a regular file"));
        }
    }

    #[test]
    fn a_manifest_with_bad_duplicate_or_missing_names_is_refused() {
        let root = tempdir().unwrap();
        let directory = save(root.path(), 1, &example("w")).unwrap();
        let manifest = fs::read_to_string(directory.join(MANIFEST)).unwrap();
        for name in ["../secret", "/etc/passwd", "a/b", "a\\\\b", "", ".", "..", ".hidden", "MANIFEST.json", "a\\u0000"]
        {
            let edited = manifest.replace("tokenizer.json", name);
            fs::write(directory.join(MANIFEST), edited).unwrap();
            assert!(load(&directory).unwrap_err().to_string().contains("is not a file name"), "{name}");
        }
        fs::write(directory.join(MANIFEST), manifest.replace("tokenizer.json", "config.json")).unwrap();
        assert!(load(&directory).unwrap_err().to_string().contains("listed twice"));
        fs::write(directory.join(MANIFEST), manifest.replace("tokenizer.json", "other.json")).unwrap();
        assert!(load(&directory).unwrap_err().to_string().contains("tokenizer.json is not listed"));
    }

    #[test]
    fn a_manifest_of_a_newer_version_is_no_damage_whatever_else_it_holds() {
        let root = tempdir().unwrap();
        let directory = save(root.path(), 1, &example("w")).unwrap();
        let manifest = fs::read_to_string(directory.join(MANIFEST)).unwrap();
        let newer = manifest.replace("\"format\": 1", "\"format\": 2");
        for text in [newer.as_str(), r#"{"format": 7, "blobs": {"a": [1, 2]}, "signature": null}"#] {
            fs::write(directory.join(MANIFEST), text).unwrap();
            let error = load(&directory).unwrap_err();
            assert!(matches!(error.downcast_ref(), Some(Failure::NewerFormat(_))), "{text}: {error:#}");
            assert_eq!(exit_code(&error), 4);
            assert!(error.to_string().contains("step-000001 was written by a newer version"), "{error:#}");
        }
        fs::write(directory.join(MANIFEST), manifest.replace("\"format\": 1", "\"format\": 0")).unwrap();
        assert!(load(&directory).unwrap_err().to_string().contains("is damaged: its format is 0"));
    }

    #[test]
    fn saving_again_replaces_the_checkpoint_and_leaves_nothing_else() {
        let root = tempdir().unwrap();
        save(root.path(), 1, &example("old")).unwrap();
        // Leftovers of a crashed process that had the same id.
        for purpose in ["tmp", "old"] {
            let stale = sibling(&root.path().join(step_name(1)), purpose);
            fs::create_dir(&stale).unwrap();
            fs::write(stale.join("config.json"), "half").unwrap();
        }
        let directory = save(root.path(), 1, &example("new")).unwrap();
        assert_eq!(load(&directory).unwrap().get("model.safetensors").unwrap(), b"new");
        assert_eq!(names_in(root.path()), ["step-000001"]);
    }

    #[test]
    fn a_failed_save_leaves_nothing_and_names_the_file() {
        let root = tempdir().unwrap();
        save(root.path(), 1, &example("old")).unwrap();
        // The name is plain, but longer than file systems take: the write fails after other files were written.
        let long = "x".repeat(300);
        let mut files = example("new");
        files.push((&long, Vec::new()));
        let message = format!("{:#}", save(root.path(), 1, &files).unwrap_err());
        assert!(message.contains(&long) && message.contains("earlier checkpoints are untouched"), "{message}");
        assert_eq!(names_in(root.path()), ["step-000001"]);
        assert_eq!(load(&root.path().join("step-000001")).unwrap().get("model.safetensors").unwrap(), b"old");
    }

    #[test]
    fn a_file_where_the_checkpoint_should_stand_is_named_and_kept() {
        let root = tempdir().unwrap();
        fs::write(root.path().join("step-000007"), "mine").unwrap();
        let message = format!("{:#}", save(root.path(), 7, &example("w")).unwrap_err());
        assert!(message.contains("step-000007 is in the way"), "{message}");
        assert_eq!(names_in(root.path()), ["step-000007"]);
    }

    #[test]
    fn a_full_disk_and_a_read_only_one_come_with_advice() {
        let refusal = |kind| hint(&anyhow::Error::from(io::Error::from(kind)).context("cannot write x"));
        assert!(refusal(ErrorKind::StorageFull).contains("free some space"));
        assert!(refusal(ErrorKind::ReadOnlyFilesystem).contains("read-only"));
        assert!(refusal(ErrorKind::PermissionDenied).contains("owner"));
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]
        #[test]
        fn a_random_manifest_never_loads_and_never_panics(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            let root = tempdir().unwrap();
            let directory = save(root.path(), 1, &example("w")).unwrap();
            fs::write(directory.join(MANIFEST), bytes).unwrap();
            prop_assert!(load(&directory).is_err());
        }
    }
}
