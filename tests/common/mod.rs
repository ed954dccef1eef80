//! What the tests of the program share: a folder with a little text and a tiny configuration, and the program itself.

// Each test file is a crate of its own and uses a part of this.
#![allow(dead_code)]

pub mod run;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use tempfile::TempDir;
use tinymoe::random::Stream;

/// A model of some thousand parameters that trains its eight steps in milliseconds.
const TINY: &str = r#"
[data]
sources = ["talk.txt"]
[tokenizer]
kind = "bytes"
[model]
hidden_size = 16
num_hidden_layers = 2
num_attention_heads = 2
max_position_embeddings = 16
num_experts = 4
moe_intermediate_size = 8
intermediate_size = 16
[optimizer]
warmup_steps = 2
[train]
batch_size = 4
max_steps = 8
log_interval = 1
eval_interval = 4
checkpoint_interval = 4
sample_tokens = 12
"#;

const WORDS: [&str; 12] = ["the", "cat", "sat", "on", "a", "red", "mat", "and", "said", "no", "to", "it"];

/// A temporary folder with `tiny.toml` and `talk.txt`, in which the program runs.
pub struct Workspace {
    folder: TempDir,
}

/// What the program did.
pub struct Output {
    pub code: i32,
    pub stdout: String,
    pub stderr: String,
}

impl Workspace {
    pub fn new() -> Self {
        let workspace = Self { folder: tempfile::tempdir().unwrap() };
        let word = |line: u64| move |n: u64| WORDS[Stream::new(1, "words", &[line]).bits(n) as usize % WORDS.len()];
        let line = |line: u64| (0..8).map(word(line)).collect::<Vec<_>>().join(" ") + "\n";
        workspace.write("talk.txt", (0..60).map(line).collect::<String>());
        workspace.write("tiny.toml", TINY);
        workspace
    }

    /// With a finished run in `r`.
    pub fn trained() -> Self {
        let workspace = Self::new();
        workspace.succeeds("train tiny.toml --run r");
        workspace
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    pub fn write(&self, name: &str, content: impl AsRef<[u8]>) {
        fs::write(self.path(name), content).unwrap();
    }

    pub fn read(&self, name: &str) -> String {
        fs::read_to_string(self.path(name)).unwrap()
    }

    /// The program in this folder, without arguments so far.
    pub fn command(&self) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_tinymoe"));
        command.current_dir(self.folder.path()).env_remove("NO_COLOR").env("RUST_BACKTRACE", "0");
        // Nobody's own cache.
        command.stdin(Stdio::null()).env("TINYMOE_CACHE", self.path("cache"));
        heed_signals(&mut command);
        command
    }

    /// Runs the program with these arguments, separated by spaces.
    pub fn tinymoe(&self, arguments: &str) -> Output {
        output(self.command().args(arguments.split_whitespace()))
    }

    /// As [`Self::tinymoe`], with a fault (see [`tinymoe::fault`]).
    pub fn with_fault(&self, fault: &str, arguments: &str) -> Output {
        output(self.command().args(arguments.split_whitespace()).env("TINYMOE_FAULT", fault))
    }

    /// As [`Self::tinymoe`], for what must go well.
    pub fn succeeds(&self, arguments: &str) -> Output {
        let output = self.tinymoe(arguments);
        assert_eq!(output.code, 0, "{arguments}: {}", output.stderr);
        output
    }

    /// Runs what must be refused with this exit code and a single message that holds all of `parts`.
    pub fn refuses(&self, arguments: &str, code: i32, parts: &[&str]) {
        self.tinymoe(arguments).assert_refusal(arguments, code, parts);
    }
}

/// What `nohup`, or a shell without job control, runs in the background ignores some signals, and so does the program
/// that is started from there. Tests may run there, and send them.
#[cfg(unix)]
fn heed_signals(command: &mut Command) {
    use std::os::unix::process::CommandExt;
    // SAFETY: between fork and exec, signal() may be called.
    unsafe {
        command.pre_exec(|| {
            for signal in [libc::SIGHUP, libc::SIGINT, libc::SIGQUIT] {
                libc::signal(signal, libc::SIG_DFL);
            }
            Ok(())
        });
    }
}

#[cfg(not(unix))]
fn heed_signals(_command: &mut Command) {}

impl Output {
    pub fn assert_refusal(&self, what: &str, code: i32, parts: &[&str]) {
        let Output { stdout, stderr, .. } = self;
        assert_eq!(self.code, code, "{what}: {stderr}");
        assert_eq!(stderr.matches("error: ").count(), 1, "{what}: {stderr}");
        for part in parts {
            assert!(stderr.contains(part), "{what}: no {part:?} in {stderr}");
        }
        assert_eq!(stdout, "", "{what}");
    }
}

/// Runs a command to its end. The program never panics, whatever happens.
pub fn output(command: &mut Command) -> Output {
    let output = command.output().unwrap();
    let stderr = String::from_utf8(output.stderr).unwrap();
    assert!(!stderr.contains("panicked"), "{command:?}: {stderr}");
    let code = output.status.code().unwrap_or_else(|| panic!("{command:?} ended by a signal: {stderr}"));
    Output { code, stdout: String::from_utf8(output.stdout).unwrap(), stderr }
}

/// Flips one bit in the middle of a file.
pub fn flip_a_bit(path: &Path) {
    let mut bytes = fs::read(path).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    fs::write(path, bytes).unwrap();
}

/// A small file system of its own; `None` (with a note) where the test may not mount one.
pub struct SmallDisk {
    pub path: PathBuf,
}

impl SmallDisk {
    pub fn mount(path: PathBuf, size: &str) -> Option<Self> {
        fs::create_dir(&path).unwrap();
        let mut mount = Command::new("mount");
        mount.args(["-t", "tmpfs", "-o", &format!("size={size}"), "tmpfs"]).arg(&path);
        if mount.output().is_ok_and(|output| output.status.success()) {
            return Some(Self { path });
        }
        eprintln!("skipped: this test mounts a small file system, which is not permitted here");
        None
    }

    pub fn grow(&self, size: &str) {
        self.remount(&format!("size={size}"));
    }

    pub fn remount(&self, option: &str) {
        let status = Command::new("mount").args(["-o", &format!("remount,{option}")]).arg(&self.path).status();
        assert!(status.unwrap().success());
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        _ = Command::new("umount").arg("-l").arg(&self.path).status();
    }
}
