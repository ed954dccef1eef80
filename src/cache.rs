//! What takes long to compute and can be computed again, kept from one run to the next: a folder of files, each named
//! after a hash of all that its contents follow from. A file is written beside its place and renamed, and verified when
//! it is read, so that several processes may want the same one; where anything goes wrong, there is just no file. What
//! was not used for the longest time goes first when the folder grows over its limit.

use anyhow::{Context, Result};
use sha2::{Digest, Sha256};
use std::ffi::OsString;
use std::fs::{self, File};
use std::io::{self, BufReader, BufWriter, Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

/// Names the folder; `0` or `off` turns the cache off.
const VARIABLE: &str = "TINYMOE_CACHE";
/// The most that the folder holds, in MiB.
const LIMIT_VARIABLE: &str = "TINYMOE_CACHE_LIMIT";
const DEFAULT_LIMIT_MIB: u64 = 4096;
/// Half-written files of processes that died are removed after this time.
const ABANDONED: Duration = Duration::from_secs(24 * 3600);
/// A file starts with the hash, in hexadecimal, of what follows, and a line feed.
const HASH_LINE: usize = 65;

/// A folder of computed files.
#[derive(Clone, Debug)]
pub struct Cache {
    folder: PathBuf,
    limit_bytes: u64,
}

impl Cache {
    /// The cache that the environment asks for: by default, in the user's cache folder. None if it is off, or the system
    /// knows no such folder.
    pub fn from_environment() -> Option<Self> {
        let limit = std::env::var(LIMIT_VARIABLE).ok().and_then(|limit| limit.parse().ok());
        let limit_bytes = limit.unwrap_or(DEFAULT_LIMIT_MIB).saturating_mul(1 << 20);
        let folder = match std::env::var_os(VARIABLE) {
            Some(value) if value == "0" || value.eq_ignore_ascii_case("off") => return None,
            Some(value) if !value.is_empty() => PathBuf::from(value),
            _ => user_folder()?.join("tinymoe"),
        };
        Some(Self::new(folder, limit_bytes))
    }

    pub fn new(folder: PathBuf, limit_bytes: u64) -> Self {
        Self { folder, limit_bytes }
    }

    /// Whether so much would not be removed at once.
    pub fn has_room_for(&self, bytes: u64) -> bool {
        bytes <= self.limit_bytes
    }

    /// The path and open file of what is kept under `key`, verified, and where in the file the contents start.
    pub fn get(&self, key: &str) -> Option<(PathBuf, File, u64)> {
        let path = self.folder.join(key);
        let mut file = File::open(&path).ok()?;
        match verify(&mut file) {
            Ok(true) => {
                // Used just now. Where that cannot be noted, it goes a little early.
                _ = file.set_modified(SystemTime::now());
                Some((path, file, HASH_LINE as u64))
            }
            _ => {
                _ = fs::remove_file(&path);
                None
            }
        }
    }

    /// Keeps what `write` writes under `key`.
    ///
    /// # Errors
    /// Where the folder cannot be written to; nothing is kept then.
    pub fn put(&self, key: &str, write: impl FnOnce(&mut dyn Write) -> Result<()>) -> Result<()> {
        let unwritable =
            || format!("cannot write to the cache {} ({VARIABLE} names another, or is \"off\")", self.folder.display());
        create_private(&self.folder).with_context(unwritable)?;
        let temporary = tempfile::Builder::new().prefix(".").tempfile_in(&self.folder).with_context(unwritable)?;
        write_hashed(temporary.as_file(), write).with_context(unwritable)?;
        temporary.persist(self.folder.join(key)).map_err(|error| error.error).with_context(unwritable)?;
        self.shrink();
        Ok(())
    }

    /// Removes what was used least lately until the rest is within the limit. Of two processes that do so, the slower
    /// one finds less to do.
    fn shrink(&self) {
        let Ok(entries) = fs::read_dir(&self.folder) else { return };
        let mut files: Vec<(SystemTime, u64, PathBuf)> = Vec::new();
        for entry in entries.flatten() {
            let Ok(metadata) = entry.metadata() else { continue };
            let used = metadata.modified().unwrap_or(SystemTime::UNIX_EPOCH);
            let is_temporary = entry.file_name().as_encoded_bytes().starts_with(b".");
            if !is_temporary && metadata.is_file() {
                files.push((used, metadata.len(), entry.path()));
            } else if is_temporary && used.elapsed().is_ok_and(|age| age > ABANDONED) {
                _ = fs::remove_file(entry.path());
            }
        }
        files.sort();
        let mut total: u64 = files.iter().map(|(_, bytes, _)| bytes).sum();
        for (_, bytes, path) in files {
            if total <= self.limit_bytes {
                break;
            }
            _ = fs::remove_file(path);
            total -= bytes;
        }
    }
}

/// Whether a file holds what its first line says. Leaves it behind that line.
fn verify(file: &mut File) -> io::Result<bool> {
    let mut line = [0; HASH_LINE];
    file.read_exact(&mut line)?;
    let mut hash = Sha256::new();
    io::copy(&mut BufReader::with_capacity(1 << 20, &mut *file), &mut hash)?;
    file.seek(SeekFrom::Start(HASH_LINE as u64))?;
    Ok(line == format!("{:x}\n", hash.finalize()).as_bytes())
}

/// Writes what `write` writes, and the hash of it in front.
fn write_hashed(file: &File, write: impl FnOnce(&mut dyn Write) -> Result<()>) -> Result<()> {
    let mut out = Hashing { hash: Sha256::new(), out: BufWriter::new(file) };
    out.out.write_all(&[b'\n'; HASH_LINE])?;
    write(&mut out)?;
    let Hashing { hash, mut out } = out;
    out.seek(SeekFrom::Start(0))?;
    write!(out, "{:x}", hash.finalize())?;
    Ok(out.flush()?)
}

struct Hashing<W> {
    hash: Sha256,
    out: W,
}

impl<W: Write> Write for Hashing<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let written = self.out.write(bytes)?;
        self.hash.update(&bytes[..written]);
        Ok(written)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.out.flush()
    }
}

/// Where this user's programs keep what can be computed again.
fn user_folder() -> Option<PathBuf> {
    let folder = |variable: &str| std::env::var_os(variable).filter(|value: &OsString| Path::new(value).is_absolute());
    if cfg!(windows) {
        return folder("LOCALAPPDATA").map(PathBuf::from);
    }
    let home = || folder("HOME").map(PathBuf::from);
    if cfg!(target_os = "macos") {
        return home().map(|home| home.join("Library/Caches"));
    }
    folder("XDG_CACHE_HOME").map(PathBuf::from).or_else(|| home().map(|home| home.join(".cache")))
}

/// Makes a folder that only this user can look into: what it holds gives texts away.
fn create_private(folder: &Path) -> io::Result<()> {
    let mut builder = fs::DirBuilder::new();
    #[cfg(unix)]
    std::os::unix::fs::DirBuilderExt::mode(&mut builder, 0o700);
    builder.recursive(true).create(folder)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cache(limit_bytes: u64) -> (tempfile::TempDir, Cache) {
        let folder = tempfile::tempdir().unwrap();
        let cache = Cache::new(folder.path().join("below/cache"), limit_bytes);
        (folder, cache)
    }

    fn put(cache: &Cache, key: &str, contents: &[u8]) {
        cache.put(key, |out| Ok(out.write_all(contents)?)).unwrap();
    }

    fn get(cache: &Cache, key: &str) -> Option<Vec<u8>> {
        let (_, mut file, _) = cache.get(key)?;
        let mut contents = Vec::new();
        file.read_to_end(&mut contents).unwrap();
        Some(contents)
    }

    #[test]
    fn what_was_put_comes_back_and_damage_is_noticed() {
        let (_folder, cache) = cache(1 << 20);
        assert_eq!(get(&cache, "a"), None);
        put(&cache, "a", b"contents");
        assert_eq!(get(&cache, "a").unwrap(), b"contents");
        put(&cache, "a", b"other contents");
        assert_eq!(get(&cache, "a").unwrap(), b"other contents");
        let path = cache.folder.join("a");
        let whole = fs::read(&path).unwrap();
        let mut flipped = whole.clone();
        *flipped.last_mut().unwrap() ^= 1;
        for damaged in [&whole[..whole.len() - 1], &flipped, &whole[..10], b""] {
            fs::write(&path, damaged).unwrap();
            assert_eq!(get(&cache, "a"), None);
            assert!(!path.exists(), "it would be looked at again");
        }
    }

    #[test]
    fn a_failed_write_leaves_nothing() {
        let (folder, cache) = cache(1 << 20);
        let failed = cache.put("a", |out| {
            out.write_all(b"half")?;
            anyhow::bail!("no more")
        });
        assert!(format!("{:#}", failed.unwrap_err()).contains("TINYMOE_CACHE"));
        assert_eq!(fs::read_dir(&cache.folder).unwrap().count(), 0);
        fs::write(folder.path().join("file"), "").unwrap();
        let nowhere = Cache::new(folder.path().join("file"), 1);
        assert!(nowhere.put("a", |_| Ok(())).is_err());
        assert!(nowhere.get("a").is_none());
    }

    #[test]
    fn what_was_used_least_lately_goes_first() {
        let (_folder, cache) = cache(2500);
        let hour = Duration::from_secs(3600);
        for (key, age) in [("a", 3), ("b", 2), (".left", 30)] {
            put(&cache, key, &[0; 1000]);
            File::open(cache.folder.join(key)).unwrap().set_modified(SystemTime::now() - age * hour).unwrap();
        }
        assert!(get(&cache, "a").is_some(), "which makes it the last used");
        put(&cache, "c", &[0; 1000]);
        let mut left: Vec<_> = fs::read_dir(&cache.folder).unwrap().map(|entry| entry.unwrap().file_name()).collect();
        left.sort();
        assert_eq!(left, ["a", "c"]);
    }

    #[test]
    fn several_threads_may_keep_and_read_the_same() {
        let (_folder, cache) = cache(1 << 30);
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| {
                    for _ in 0..20 {
                        put(&cache, "a", &[7; 100_000]);
                        // It may be gone for a moment nowhere: a rename replaces it.
                        assert_eq!(get(&cache, "a").unwrap(), [7; 100_000]);
                    }
                });
            }
        });
    }
}
