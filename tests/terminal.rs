//! What a person sees: on terminals of any width and none, in any words, when a run is told to stop.
#![cfg(unix)]

mod common;

use common::run::{outcome, spawn, train, wait_for_metrics};
use common::{Output, Workspace, flip_a_bit, output};
use std::ffi::OsStr;
use std::fs::{self, File};
use std::io::Read;
use std::os::fd::{FromRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::process::{Command, Stdio};

/// A pseudo-terminal: its two ends.
fn terminal(columns: u16) -> (File, OwnedFd) {
    let (mut ours, mut theirs) = (0, 0);
    let size = libc::winsize { ws_row: 24, ws_col: columns, ws_xpixel: 0, ws_ypixel: 0 };
    let none = std::ptr::null_mut();
    // SAFETY: openpty only writes the two descriptors, which are ours from then on, and reads the size.
    unsafe {
        assert_eq!(libc::openpty(&mut ours, &mut theirs, none, none as *mut _, &raw const size as *mut _), 0);
        (File::from_raw_fd(ours), OwnedFd::from_raw_fd(theirs))
    }
}

/// Runs the program on a terminal; returns the exit code and all that it wrote there.
fn on_terminal(workspace: &Workspace, columns: u16, term: Option<&str>, arguments: &str) -> (Option<i32>, String) {
    let (mut ours, theirs) = terminal(columns);
    let mut command = workspace.command();
    command.args(arguments.split_whitespace()).env_remove("COLORTERM").env_remove("TERM");
    command.envs(term.map(|term| ("TERM", term)));
    command.stdout(theirs.try_clone().unwrap()).stderr(theirs);
    let mut child = command.spawn().unwrap();
    // The program's ends are closed here, so that reading ends with it.
    drop(command);
    let mut bytes = Vec::new();
    let mut chunk = [0; 4096];
    // The end of a terminal is an error on Linux.
    while let Ok(count @ 1..) = ours.read(&mut chunk) {
        bytes.extend(&chunk[..count]);
    }
    (child.wait().unwrap().code(), String::from_utf8_lossy(&bytes).into_owned())
}

/// What a screen of this width shows after that.
fn screen(columns: u16, output: &str) -> String {
    let mut parser = vt100::Parser::new(100, columns, 0);
    parser.process(output.as_bytes());
    parser.screen().contents()
}

fn assert_nothing_hidden(text: &str, what: &str) {
    let hidden = |c: char| {
        c.is_control() && c != '\n' && c != '\t' || matches!(c, '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
    };
    assert!(!text.contains(hidden), "{what}: {text:?}");
}

#[test]
fn the_display_fits_a_terminal_of_any_width_and_leaves_nothing_behind() {
    let workspace = Workspace::new();
    for columns in [100, 80, 50, 20] {
        let arguments = format!("train tiny.toml --run r{columns}");
        let (code, output) = on_terminal(&workspace, columns, Some("xterm-256color"), &arguments);
        assert_eq!(code, Some(0), "{output}");
        // Everything from the display's start to the next erasure is a display, or follows one.
        let displays: Vec<&str> =
            output.split('\r').filter(|part| part.contains(" loss ") || part.contains("% ")).collect();
        assert!(output.contains("\x1b[J"), "nothing was drawn: {output:?}");
        for line in displays.iter().filter(|line| line.contains(['━', '─'])) {
            assert!(console::measure_text_width(line.trim()) <= usize::from(columns), "{columns}: {line:?}");
        }
        let last = screen(columns, &output);
        assert!(!last.contains(['━', '─', '▄']), "{last}");
        assert!(last.contains("finished after step") && last.contains("step 8: validation"), "{last}");
    }
}

#[test]
fn without_a_terminal_that_can_draw_lines_appear_instead() {
    let workspace = Workspace::new();
    for (number, term) in [Some("dumb"), None].into_iter().enumerate() {
        let (code, output) = on_terminal(&workspace, 80, term, &format!("train tiny.toml --run r{number}"));
        assert_eq!(code, Some(0));
        assert!(output.contains("step 3: loss ") && output.contains("step 8: validation loss"), "{output}");
        assert!(!output.contains('\x1b'), "{output:?}");
    }
    let piped = workspace.succeeds("train tiny.toml --run piped");
    assert!(piped.stderr.contains("step 3: loss ") && piped.stderr.contains("step 8: validation loss"));
    assert_eq!(workspace.succeeds("train tiny.toml --run quiet -q").stderr, "");
}

#[test]
fn warnings_are_shown_with_quiet_too_wherever_stderr_goes() {
    let damage = |run: &str| {
        let workspace = Workspace::new();
        workspace.succeeds(&format!("train tiny.toml --run {run} -q"));
        flip_a_bit(&workspace.path(run).join("checkpoints/latest/model.safetensors"));
        workspace
    };
    let resumed = damage("r").succeeds("train tiny.toml --run r --resume -q");
    assert!(resumed.stderr.starts_with("warning: passing over r/checkpoints/step-000008"), "{}", resumed.stderr);
    assert_eq!(resumed.stderr.lines().count(), 1, "{}", resumed.stderr);
    for (term, quiet) in [("xterm", ""), ("xterm", "-q"), ("dumb", ""), ("dumb", "-q")] {
        let workspace = damage("r");
        let (_, output) = on_terminal(&workspace, 80, Some(term), &format!("train tiny.toml --run r --resume {quiet}"));
        assert!(
            screen(80, &output).contains("warning: passing over r/checkpoints/step-000008"),
            "{term} {quiet}: {output}"
        );
    }
}

#[test]
fn hang_up_and_quit_save_as_an_interrupt_does_unless_they_are_ignored() {
    let settings = "train.max_steps=1000000 train.checkpoint_interval=1000000 train.eval_interval=1000000";
    let workspace = Workspace::new();
    let signal = |child: &std::process::Child, name: &str| {
        let status = Command::new("kill").args([&format!("-{name}"), &child.id().to_string()]).status();
        assert!(status.unwrap().success());
    };
    for name in ["HUP", "QUIT", "INT", "TERM"] {
        let run = format!("r{name}");
        let mut child = spawn(&workspace, &train(&run, settings));
        wait_for_metrics(&workspace, &run, &mut child, 2);
        signal(&child, name);
        let end = child.wait_with_output().unwrap();
        let stderr = String::from_utf8(end.stderr).unwrap();
        assert_eq!(end.status.code(), Some(130), "{name}: {stderr}");
        assert!(stderr.contains("interrupted after step ") && stderr.contains("which is saved"), "{name}: {stderr}");
        assert!(!outcome(&workspace, &run).checkpoints.is_empty());
    }
    // As nohup starts a program, and shells what they run in the background.
    let mut command = Command::new("sh");
    command.args(["-c", "trap '' HUP QUIT; exec \"$0\" \"$@\"", env!("CARGO_BIN_EXE_tinymoe")]);
    command.args(train("ignored", settings).split_whitespace()).current_dir(workspace.path(""));
    let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    wait_for_metrics(&workspace, "ignored", &mut child, 2);
    for name in ["HUP", "QUIT"] {
        signal(&child, name);
    }
    let before = common::run::lines(&workspace.path("ignored/metrics.jsonl"));
    wait_for_metrics(&workspace, "ignored", &mut child, before + 5);
    assert_eq!(child.try_wait().unwrap(), None, "it goes on");
    signal(&child, "TERM");
    assert_eq!(child.wait_with_output().unwrap().status.code(), Some(130));
}

#[test]
fn an_interrupt_leaves_no_half_bar() {
    let workspace = Workspace::new();
    let (mut ours, theirs) = terminal(60);
    let mut command = workspace.command();
    let arguments = train("r", "train.max_steps=1000000 train.checkpoint_interval=1000000 train.eval_interval=1000000");
    command.args(arguments.split_whitespace()).env("TERM", "xterm");
    command.stdout(theirs.try_clone().unwrap()).stderr(theirs);
    let mut child = command.spawn().unwrap();
    drop(command);
    let reader = std::thread::spawn(move || {
        let (mut bytes, mut chunk) = (Vec::new(), [0; 4096]);
        while let Ok(count @ 1..) = ours.read(&mut chunk) {
            bytes.extend(&chunk[..count]);
        }
        String::from_utf8_lossy(&bytes).into_owned()
    });
    wait_for_metrics(&workspace, "r", &mut child, 3);
    assert!(Command::new("kill").args(["-INT", &child.id().to_string()]).status().unwrap().success());
    assert_eq!(child.wait().unwrap().code(), Some(130));
    let output = reader.join().unwrap();
    assert!(output.contains('─') && output.contains("once more stops at once"), "{output:?}");
    let last = screen(60, &output);
    assert!(!last.contains(['━', '─', '▄']), "{last}");
    for part in
        ["interrupted after step", "training loss: ", "tokens/s", "time: ", "tinymoe sample r", "tinymoe inspect r"]
    {
        assert!(last.contains(part), "{part}: {last}");
    }
}

#[test]
fn names_and_arguments_cannot_control_the_terminal() {
    let workspace = Workspace::trained();
    let evil = "a\x1b[2J\x07\u{9b}31m\u{202e}b";
    let folder = workspace.path(evil);
    fs::create_dir(&folder).unwrap();
    fs::write(folder.join("talk.txt"), workspace.read("talk.txt")).unwrap();
    fs::write(folder.join("binary.txt"), b"one\x00").unwrap();
    workspace.write(
        "evil.toml",
        format!("[data]\nsources = [\"talk.txt\"]\n[model]\n{evil:?} = 1\n").replace("\\u{", "\\u{"),
    );
    let data = format!("data.sources={evil}/talk.txt");
    let cases: Vec<Vec<&str>> = vec![
        vec!["train", "tiny.toml", "--run", evil],
        vec!["train", "tiny.toml", "--run", "x", "--set", evil],
        vec!["train", "tiny.toml", "--run", "y", "--set", &data],
        vec!["inspect", "r", "--data", evil],
        vec!["inspect", "r", "--data", "talk.txt=\x1b[31mred\u{85}"],
        vec!["inspect", "y"],
        vec!["eval", "r", "--data", evil],
        vec!["sample", evil],
        vec!["sample", "r", "--prompt-file", evil],
        vec!["sample", "r", "--routing-log", evil],
        vec!["sample", "r", "--color-by", evil],
        vec!["sample", "r", "--seed", evil],
        vec![evil],
        vec!["man", evil],
        vec!["export", "r", evil, "--to", "hf"],
        vec!["config", "check", evil],
        vec!["config", "check", "evil.toml"],
        vec!["bench", "--config", evil],
    ];
    for arguments in cases {
        let Output { stdout, stderr, .. } = output(workspace.command().args(&arguments));
        assert_nothing_hidden(&stderr, &format!("{arguments:?}"));
        assert_nothing_hidden(&stdout, &format!("{arguments:?}"));
    }
    let missing = output(workspace.command().args(["sample", "x\x1b[31my"]));
    missing.assert_refusal("a run that is not there", 2, &["x\\x1b[31my"]);
}

#[test]
fn a_sample_is_escaped_where_a_person_looks_and_raw_where_a_program_does() {
    let workspace = Workspace::trained();
    // A text that holds ESC and does not end before.
    let has_escape = |arguments: &String| {
        let raw = workspace.command().args(arguments.split(' ')).output().unwrap().stdout;
        raw.contains(&0x1b)
    };
    let sample = |seed: u64| format!("sample r --tokens 300 --temperature 50 --prompt the --seed {seed}");
    let arguments = &(1..100).map(sample).find(has_escape).expect("one of the samples draws ESC");
    let (code, shown) = on_terminal(&workspace, 80, Some("xterm"), arguments);
    assert_eq!(code, Some(0));
    assert_nothing_hidden(&shown.replace("\r\n", "\n"), arguments);
    assert!(shown.contains("\\x1b"), "{shown}");
    let (_, json) = on_terminal(&workspace, 80, Some("xterm"), &format!("{arguments} --json"));
    assert_nothing_hidden(&json.replace("\r\n", "\n"), "--json");
    let (on_terminal, in_pipe) = (json, workspace.succeeds(&format!("{arguments} --json")).stdout);
    let text = |json: &str| serde_json::from_str::<serde_json::Value>(json.trim()).unwrap()["text"].clone();
    assert_eq!(text(&on_terminal), text(&in_pipe), "the same text, in other words");
}

#[test]
fn advised_commands_can_be_copied_into_a_shell() {
    let workspace = Workspace::new();
    let folder = workspace.path("bin");
    fs::create_dir(&folder).unwrap();
    std::os::unix::fs::symlink(env!("CARGO_BIN_EXE_tinymoe"), folder.join("tinymoe")).unwrap();
    for run in ["my run", "it's $HOME; `x`", "-dash", "tab\t\x1b[1m"] {
        let mut command = workspace.command();
        let paused = output(command.args(["train", "tiny.toml", "--steps", "2"]).arg(format!("--run={run}")));
        assert_eq!(paused.code, 0, "{run}: {}", paused.stderr);
        let resume = paused.stdout.split('`').filter(|part| part.starts_with("tinymoe ")).max_by_key(|part| part.len());
        let resume = paused
            .stdout
            .strip_prefix("paused after step 2; continue with `")
            .and_then(|rest| rest.split_once("`\n"))
            .map_or(resume.unwrap(), |(command, _)| command);
        let sample = paused.stderr.lines().find(|line| line.starts_with("  tinymoe sample")).unwrap();
        for (advised, part) in [(resume, "finished after step 8"), (sample, "")] {
            let mut shell = Command::new("bash");
            shell.args(["-c", advised]).current_dir(workspace.path("")).stdin(Stdio::null());
            let path = std::env::join_paths(
                std::iter::once(folder.clone())
                    .chain(std::env::split_paths(&std::env::var_os("PATH").unwrap_or_default())),
            );
            let Ok(result) = shell.env("PATH", path.unwrap()).output() else {
                return eprintln!("skipped: there is no bash here");
            };
            assert!(result.status.success(), "{advised}: {}", String::from_utf8_lossy(&result.stderr));
            assert!(String::from_utf8_lossy(&result.stdout).contains(part), "{advised}");
        }
    }
}

#[test]
fn negative_numbers_reach_the_option_that_refuses_them() {
    let workspace = Workspace::trained();
    for (arguments, part) in [
        ("sample r --temperature -1", "--temperature -1 is out of range"),
        ("sample r --temperature -inf", "--temperature -inf is out of range"),
        ("sample r --top-p -.5", "--top-p -0.5 is out of range"),
        ("sample r --min-p -0.1", "--min-p -0.1 is out of range"),
        ("sample r --repetition-penalty -2", "--repetition-penalty -2 is out of range"),
        ("sample r --seed -1", "--seed <N>': give a whole number, 0 or more"),
        ("sample r --tokens -5", "--tokens <N>': give a whole number, 0 or more"),
        ("sample r --top-k -1", "--top-k <N>': give a whole number, 0 or more"),
        ("sample r --count -1", "--count <N>': give a whole number, 0 or more"),
        ("train tiny.toml --steps -1", "--steps <N>': give a whole number, 0 or more"),
        ("train tiny.toml --threads -1", "--threads <N>': give a whole number, 0 or more"),
        ("sample r --seed 99999999999999999999", "--seed <N>': this number is too large"),
        ("sample r --color-by -1", "--color-by <LAYER|none>': expected a layer's number or none"),
        ("sample r --seed 1.5", "--seed <N>': give a whole number"),
    ] {
        workspace.refuses(arguments, 2, &[part]);
    }
}

#[test]
fn a_prompt_may_begin_with_a_hyphen() {
    let workspace = Workspace::trained();
    let sample = output(workspace.command().args(["sample", "r", "--tokens", "0", "--prompt", "- one\n-two"]));
    assert_eq!((sample.code, sample.stdout.as_str()), (0, "- one\n-two\n"), "{}", sample.stderr);
}

#[test]
fn every_option_that_takes_a_number_says_so_about_a_negative_one() {
    let workspace = Workspace::new();
    for subcommand in ["train", "sample", "inspect", "eval", "export", "bench", "config"] {
        let help = workspace.succeeds(&format!("{subcommand} --help")).stdout;
        let (own, global) = help.split_once("Global options:\n").unwrap_or_else(|| panic!("{help}"));
        for flag in ["--threads", "--quiet", "--verbose", "--color"] {
            assert!(global.contains(flag) && !own.contains(&format!("{flag} ")), "{subcommand} {flag}: {help}");
        }
        for line in help.lines().filter(|line| line.contains(" <N>") || line.contains(" <X>")) {
            let flag = line.split_whitespace().find(|word| word.starts_with("--")).unwrap();
            let result = workspace.tinymoe(&format!("{subcommand} {flag} -1"));
            assert!(!result.stderr.contains("unexpected argument"), "{subcommand} {flag}: {}", result.stderr);
        }
    }
}

#[test]
fn colours_are_those_that_the_terminal_has() {
    let workspace = Workspace::trained();
    for (colorterm, term, sequence) in [
        ("truecolor", "xterm-256color", "\x1b[48;2;230;159;0m"),
        ("", "xterm-256color", "\x1b[48;5;"),
        ("", "linux", "\x1b[43m"),
    ] {
        for arguments in ["sample r --tokens 5 --color-by 0 --color always", "inspect r --color always"] {
            let mut command = workspace.command();
            command.args(arguments.split(' ')).env("COLORTERM", colorterm).env("TERM", term);
            let stdout = output(&mut command).stdout;
            let kinds = ["\x1b[48;2;", "\x1b[48;5;", "\x1b[4"].map(|start| stdout.contains(start));
            match sequence {
                _ if arguments.starts_with("sample") => assert!(stdout.contains(sequence), "{term}: {stdout:?}"),
                _ => assert!(!kinds[0] || colorterm == "truecolor", "{term}: {stdout:?}"),
            }
            assert!(!kinds[1] || term.contains("256"), "{term}: {stdout:?}");
        }
    }
}

#[test]
fn completions_and_manual_pages_name_what_there_is() {
    let workspace = Workspace::new();
    for shell in ["bash", "zsh", "fish", "elvish", "powershell"] {
        let script = workspace.succeeds(&format!("completions {shell}")).stdout;
        assert!(script.contains("routing-log") && script.contains("inspect"), "{shell}: {script}");
    }
    workspace.refuses("completions cmd", 2, &["cmd"]);
    let page = workspace.succeeds("man").stdout;
    assert!(page.starts_with(".ie") && page.contains(".TH tinymoe 1") && page.contains("tinymoe\\-train"), "{page}");
    let page = workspace.succeeds("man sample").stdout;
    assert!(page.contains(".TH tinymoe-sample 1") && page.contains("\\-\\-temperature"), "{page}");
    workspace.refuses("man dance", 2, &["\"dance\"", "sample"]);
}

#[test]
fn every_path_may_have_a_name_that_is_not_utf8() {
    let workspace = Workspace::new();
    let odd = |name: &[u8]| OsStr::from_bytes(name).to_owned();
    let (folder, first, second) = (odd(b"talks\xff"), odd(b"a\xe8.txt"), odd(b"a\xe9.txt"));
    if fs::create_dir(workspace.path("").join(&folder)).is_err() {
        return eprintln!("skipped: this file system takes UTF-8 names only");
    }
    let text = workspace.read("talk.txt");
    fs::write(workspace.path("").join(&folder).join(&first), &text).unwrap();
    fs::write(workspace.path("").join(&folder).join(&second), text.replace("cat", "dog")).unwrap();
    fs::create_dir(workspace.path("all")).unwrap();
    fs::rename(workspace.path("").join(&folder), workspace.path("all").join(&folder)).unwrap();
    fs::copy(workspace.path("tiny.toml"), workspace.path("").join(odd(b"tiny\xff.toml"))).unwrap();
    let run = |words: &[&[u8]]| {
        let result = output(workspace.command().args(words.iter().map(|word| OsStr::from_bytes(word))));
        assert_eq!(result.code, 0, "{:?}: {}", words, result.stderr);
        result
    };
    let train: [&[u8]; 6] = [b"train", b"tiny\xff.toml", b"--run", b"r\xff", b"--set", b"data.sources=all"];
    run(&[&train[..], &[b"--steps", b"4"]].concat());
    // In the same order each time, though both names look alike in UTF-8.
    for _ in 0..3 {
        run(&[&train[..], &[b"--resume"]].concat());
    }
    run(&[b"eval", b"r\xff"]);
    let source = output(workspace.command().args([OsStr::new("eval"), &odd(b"r\xff"), OsStr::new("--data"), &folder]));
    source.assert_refusal("a source that is not UTF-8", 2, &["UTF-8", "name the folder"]);
    run(&[b"inspect", b"r\xff", b"--out", b"page\xff", b"--routing-log", b"log\xff"]);
    run(&[
        b"sample",
        b"r\xff",
        b"--tokens",
        b"3",
        b"--prompt-file",
        b"all/talks\xff/a\xe8.txt",
        b"--routing-log",
        b"log2\xff",
    ]);
    run(&[b"export", b"r\xff", b"hf\xff", b"--to", b"hf"]);
    run(&[b"export", b"r\xff", b"model\xff.gguf", b"--to", b"gguf"]);
    for name in [&b"page\xff/index.html"[..], b"log\xff", b"log2\xff", b"hf\xff/config.json", b"model\xff.gguf"] {
        assert!(workspace.path("").join(OsStr::from_bytes(name)).exists(), "{name:?}");
    }
}
