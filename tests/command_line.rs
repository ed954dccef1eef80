//! Whatever is wrong, the program says so in one message, ends with the right exit code, and never panics.

mod common;

use common::{SmallDisk, Workspace, flip_a_bit, output};
use std::fs;
use std::io::Read;
use std::process::Stdio;

/// The subcommands that read a trained model.
const READERS: [&str; 3] = ["sample", "eval", "inspect"];

#[test]
fn wrong_usage_exits_with_2_and_names_the_argument() {
    let workspace = Workspace::new();
    for (arguments, part) in [
        ("frobnicate", "'frobnicate'"),
        ("train", "tinymoe train quickstart"),
        ("train --resume", "tinymoe resume RUN"),
        ("train nonsense", "\"nonsense\""),
        ("train quikstart", "did you mean quickstart?"),
        ("train tiny.toml quickstart", "one configuration"),
        ("train tiny.toml talk.txt --set data.sources=talk.txt", "named twice"),
        ("train quickstart", "name texts of your own, as in `tinymoe train quickstart talks/`"),
        ("train configs/quickstart.toml", "quickstart comes with the program"),
        ("resume", "<RUN>"),
        ("config show quikstart", "did you mean quickstart?"),
        ("train tiny.toml --bogus", "'--bogus'"),
        ("train tiny.toml --steps -1", "-1"),
        ("train tiny.toml --steps many", "'many'"),
        ("sample", "<RUN>"),
        ("sample r --prompt x --prompt-file y", "--prompt-file"),
        ("config --defaults --threads 0", "--threads 0 is out of range"),
        ("config --defaults --threads 99999999999", "--threads 99999999999 is out of range"),
        ("config --defaults --threads two", "'two'"),
        ("config --defaults --color sometimes", "'sometimes'"),
        ("config --defaults -q -v", "--quiet"),
    ] {
        workspace.refuses(arguments, 2, &[part]);
    }
    for (arguments, usage) in [("", "Usage: tinymoe"), ("config", "Usage: tinymoe config")] {
        let nothing = workspace.tinymoe(arguments);
        assert_eq!(nothing.code, 2);
        assert!(nothing.stderr.contains(usage), "{}", nothing.stderr);
    }
}

#[test]
fn a_configuration_that_cannot_be_read_exits_with_2_and_names_the_file() {
    let workspace = Workspace::new();
    workspace.write("binary.toml", b"[model]\n\xff\xfe\x00");
    workspace.write("typo.toml", "[data]\nsources = [\"talk.txt\"]\n[model]\nhidden_sise = 16\n");
    workspace.write("broken.toml", "[data]\nsources = [\n");
    workspace.write("empty.toml", "");
    for command in ["train", "config check"] {
        for (file, parts) in [
            ("missing.toml", &["missing.toml", "No such file"][..]),
            ("binary.toml", &["binary.toml:2", "UTF-8"]),
            ("typo.toml", &["typo.toml:4", "model.hidden_sise", "model.hidden_size?"]),
            ("broken.toml", &["broken.toml:"]),
            ("empty.toml", &["data.sources is empty"]),
        ] {
            workspace.refuses(&format!("{command} {file}"), 2, parts);
        }
    }
}

#[test]
fn settings_that_cannot_work_exit_with_2_and_name_the_keys() {
    let workspace = Workspace::new();
    for (setting, parts) in [
        ("model.num_experts_per_tok=5", &["--set model.num_experts_per_tok=5: ", "num_experts = 4"][..]),
        ("model.num_attention_heads=3", &["--set model.num_attention_heads=3: ", "hidden_size = 16"]),
        ("model.hidden_size=wide", &["--set model.hidden_size=wide", "a whole number"]),
        ("model.hiden_size=16", &["--set model.hiden_size=16", "model.hidden_size?"]),
        ("router.balance=aux", &["--set router.balance=aux", "aux_loss"]),
        ("nonsense", &["--set nonsense", "section.key=value"]),
        ("optimizer.learning_rate=nan", &["learning_rate"]),
        ("model.max_position_embeddings=5000", &["max_position_embeddings = 5000", "data.sources"]),
        ("data.validation_fraction=0", &["validation_fraction"]),
    ] {
        workspace.refuses(&format!("train tiny.toml --run r --set {setting}"), 2, parts);
        assert!(!workspace.path("r").exists(), "{setting} left a run behind");
    }
}

#[test]
fn text_that_cannot_be_used_is_named_with_its_line() {
    let workspace = Workspace::new();
    workspace.write("empty.txt", "");
    workspace.write("binary.txt", b"one\ntwo\x00\n");
    workspace.write("latin1.txt", b"one\ntwo\ncaf\xe9\n");
    workspace.write("cue.srt", "1\nhello there\n");
    workspace.write("broken.json", "{\"segments\": [");
    fs::create_dir(workspace.path("folder")).unwrap();
    for (source, code, part) in [
        ("missing.txt", 2, "\"missing.txt\": no such file"),
        ("folder", 2, "no transcript found"),
        ("*.md", 2, "no transcript found"),
        ("empty.txt", 1, "empty.txt: there is no text"),
        ("binary.txt", 1, "binary.txt:2"),
        ("latin1.txt", 1, "latin1.txt:3"),
        ("cue.srt", 1, "cue.srt:1: expected the times"),
        ("broken.json", 1, "broken.json:1"),
    ] {
        workspace.refuses(&format!("train tiny.toml --run r --set data.sources={source}"), code, &[part]);
        assert!(!workspace.path("r").exists(), "{source} left a run behind");
    }
    workspace.succeeds("train tiny.toml --run r");
    for command in ["eval", "inspect"] {
        workspace.refuses(&format!("{command} r --data missing.txt"), 2, &["missing.txt"]);
        workspace.refuses(&format!("{command} r --data binary.txt"), 1, &["binary.txt:2"]);
        let empty = output(workspace.command().args([command, "r", "--data", ""]));
        empty.assert_refusal("an empty --data", 2, &["source \"\""]);
    }
}

#[test]
fn a_run_that_is_not_there_exits_with_2() {
    let workspace = Workspace::new();
    fs::create_dir_all(workspace.path("young/checkpoints")).unwrap();
    for command in READERS {
        workspace.refuses(&format!("{command} nowhere"), 2, &["nowhere is not a directory"]);
        workspace.refuses(&format!("{command} tiny.toml"), 2, &["tiny.toml is not a directory"]);
        workspace.refuses(&format!("{command} ."), 2, &["neither a run nor a checkpoint"]);
        workspace.refuses(&format!("{command} young"), 2, &["young has no checkpoint yet"]);
    }
}

#[test]
fn a_damaged_checkpoint_exits_with_4_and_names_the_file() {
    for file in ["model.safetensors", "config.json", "tokenizer.json", "optimizer.safetensors"] {
        let workspace = Workspace::trained();
        flip_a_bit(&workspace.path("r/checkpoints/best").join(file));
        for command in READERS {
            workspace.refuses(&format!("{command} r"), 4, &[file, "is damaged"]);
        }
    }
    let workspace = Workspace::trained();
    let manifest = workspace.path("r/checkpoints/step-000008/MANIFEST.json");
    let whole = fs::read(&manifest).unwrap();
    fs::write(&manifest, &whole[..whole.len() / 2]).unwrap();
    for command in READERS {
        workspace.refuses(&format!("{command} r"), 4, &["MANIFEST.json is damaged"]);
    }
    fs::remove_file(&manifest).unwrap();
    for run in ["r", "r/checkpoints/step-000008"] {
        workspace.refuses(&format!("eval {run}"), 4, &["no MANIFEST.json"]);
    }
    fs::remove_dir_all(workspace.path("r/checkpoints/step-000008")).unwrap();
    workspace.refuses("eval r", 4, &["checkpoints/best", "missing"]);
}

#[test]
fn a_full_disk_is_named_and_costs_no_checkpoint() {
    let workspace = Workspace::new();
    let Some(disk) = SmallDisk::mount(workspace.path("disk"), "500k") else { return };
    let train = "train tiny.toml --run disk/r --set train.checkpoint_interval=1 --set train.keep_checkpoints=100";
    let full = workspace.tinymoe(train);
    full.assert_refusal("training on a full disk", 1, &["cannot save step", "disk or quota is full", "untouched"]);

    workspace.succeeds("eval disk/r");
    let config = workspace.read("disk/r/config.toml");
    workspace.tinymoe(&format!("{train} --resume")).assert_refusal("resuming there", 1, &["No space left"]);
    assert_eq!(workspace.read("disk/r/config.toml"), config);

    disk.grow("50m");
    workspace.succeeds(&format!("{train} --resume"));
    workspace.succeeds(&train.replace("disk/r", "r"));
    let model = "checkpoints/step-000008/model.safetensors";
    let bytes = |run: &str| fs::read(workspace.path(run).join(model)).unwrap();
    assert!(bytes("disk/r") == bytes("r"), "the resumed run ends with other weights");
}

#[test]
fn output_that_cannot_be_written_exits_with_1() {
    let workspace = Workspace::trained();
    workspace.refuses("train tiny.toml --run talk.txt/r", 1, &["cannot create talk.txt/r"]);
    workspace.refuses("sample r --tokens 5 --routing-log nowhere/log.jsonl", 1, &["nowhere/log.jsonl"]);
    if !fs::exists("/dev/full").unwrap() {
        return eprintln!("skipped: there is no /dev/full here");
    }
    let log = workspace.tinymoe("sample r --tokens 5 --routing-log /dev/full");
    assert_eq!(log.code, 1);
    assert!(log.stderr.contains("cannot write the routing log /dev/full"), "{}", log.stderr);
    for arguments in ["sample r", "sample r --json", "eval r", "inspect r", "inspect r --json", "config --defaults"] {
        let full = fs::OpenOptions::new().write(true).open("/dev/full").unwrap();
        let mut child = workspace.command();
        let child = child.args(arguments.split(' ')).stdout(full).stderr(Stdio::piped()).spawn().unwrap();
        let result = child.wait_with_output().unwrap();
        let stderr = String::from_utf8(result.stderr).unwrap();
        assert_eq!(result.status.code(), Some(1), "{arguments}: {stderr}");
        assert!(stderr.contains("error: ") && !stderr.contains("panicked"), "{arguments}: {stderr}");
    }
}

#[test]
fn a_reader_that_has_seen_enough_is_no_failure() {
    let workspace = Workspace::trained();
    for arguments in [
        "sample r --tokens 2000",
        "sample r --tokens 50 --json",
        "sample r --tokens 50 --count 3",
        "inspect r",
        "inspect r --json",
        "eval r",
        "eval r --json",
        "config --defaults",
        "config check tiny.toml",
        "train tiny.toml --dry-run",
        "--help",
    ] {
        let mut command = workspace.command();
        let mut child =
            command.args(arguments.split(' ')).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        drop(child.stdout.take());
        let mut stderr = String::new();
        child.stderr.take().unwrap().read_to_string(&mut stderr).unwrap();
        assert_eq!((child.wait().unwrap().code(), stderr.as_str()), (Some(0), ""), "{arguments}");
    }
}

#[test]
fn sampling_settings_out_of_range_exit_with_2_and_name_the_flag() {
    let workspace = Workspace::trained();
    for setting in [
        "--temperature -1",
        "--temperature nan",
        "--temperature inf",
        "--top-p 0",
        "--top-p 1.5",
        "--min-p -0.1",
        "--min-p 2",
        "--repetition-penalty 0",
        "--top-k -1",
        "--tokens -5",
        "--tokens 1.5",
        "--count 0",
        "--count 18446744073709551615",
        "--seed x",
        "--color-by x",
        "--color-by 7",
    ] {
        let (flag, value) = setting.split_once(' ').unwrap();
        let arguments = format!("sample r {flag}={value}");
        workspace.refuses(&arguments, 2, &[flag]);
    }
    workspace.refuses("sample r --color-by 7", 2, &["they are 0, 1"]);
    workspace.succeeds("train tiny.toml --run dense --set model.num_experts=0");
    workspace.refuses("sample dense --color-by 0", 2, &["this model has none"]);
}

#[test]
fn a_prompt_file_that_cannot_be_used_exits_with_2() {
    let workspace = Workspace::trained();
    workspace.write("latin1.txt", b"caf\xe9");
    workspace.refuses("sample r --prompt-file missing.txt", 2, &["missing.txt", "No such file"]);
    workspace.refuses("sample r --prompt-file .", 2, &["the prompt ."]);
    workspace.refuses("sample r --prompt-file latin1.txt", 2, &["latin1.txt is not UTF-8", "index 3"]);
}

#[test]
fn a_run_is_never_overwritten_and_only_resumed_as_it_was() {
    let workspace = Workspace::trained();
    workspace.refuses("train tiny.toml --run r", 2, &["r exists already", "tinymoe resume r"]);
    workspace.refuses("train r", 2, &["r is a run", "tinymoe resume r"]);
    workspace.refuses("train tiny.toml --run talk.txt", 2, &["talk.txt exists already"]);
    workspace.refuses("train tiny.toml --run nowhere --resume", 2, &["no run in nowhere"]);
    let changes = "--set model.hidden_size=32 --set train.seed=7";
    let changed = format!("train tiny.toml --run r --resume {changes}");
    workspace.refuses(&changed, 2, &["model.hidden_size", "train.seed", "another configuration"]);
    let text = workspace.read("talk.txt");
    workspace.write("talk.txt", text + "one more line\n");
    workspace.refuses("train tiny.toml --run r --resume", 2, &["data.sources", "not what this run was trained on"]);
}

#[test]
fn a_run_that_diverges_exits_with_3_and_keeps_a_sound_checkpoint() {
    let workspace = Workspace::new();
    let settings = "--set optimizer.max_grad_norm=0 --set optimizer.warmup_steps=0 --set train.eval_interval=1";
    for (number, learning_rate) in ["1e6", "1e15", "1e30", "1e38"].iter().enumerate() {
        let run = format!("r{number}");
        let train = format!("train tiny.toml --run {run} {settings} --set optimizer.learning_rate={learning_rate}");
        workspace.refuses(&train, 3, &["training diverged in step", "optimizer.learning_rate"]);
        // Nothing is logged of a first step that makes the weights bad.
        let metrics = fs::read_to_string(workspace.path(&run).join("metrics.jsonl")).unwrap_or_default();
        assert!(!metrics.contains("null"), "{learning_rate}: {metrics}");
        if workspace.path(&run).join("checkpoints/latest").exists() {
            workspace.succeeds(&format!("eval {run}"));
        }
    }
}

#[cfg(unix)]
#[test]
fn outputs_replace_nothing_that_is_read_or_of_another_kind() {
    use std::os::unix::fs::symlink;
    let workspace = Workspace::trained();
    workspace.succeeds("sample r --tokens 3 --routing-log log.jsonl");
    let best = fs::read_link(workspace.path("r/checkpoints/best")).unwrap();
    let weights = format!("r/checkpoints/{}/model.safetensors", best.display());
    symlink(&weights, workspace.path("soft")).unwrap();
    fs::hard_link(workspace.path(&weights), workspace.path("hard")).unwrap();
    symlink("log.jsonl", workspace.path("soft.jsonl")).unwrap();
    fs::create_dir(workspace.path("site")).unwrap();
    workspace.write("site/index.html", "<!doctype html><title>Routing report</title>mine");
    let kept = ["talk.txt", "tiny.toml", "log.jsonl", "r/metrics.jsonl", "r/samples.txt", "site/index.html", &weights];
    let contents = || kept.map(|name| fs::read(workspace.path(name)).unwrap());
    let before = contents();
    for (command, why) in [
        (format!("sample r --tokens 3 --routing-log {weights}"), "is being read"),
        ("sample r --tokens 3 --routing-log r/checkpoints/best/config.json".into(), "is the same file as"),
        ("sample r --tokens 3 --routing-log soft".into(), "is the same file as"),
        ("sample r --tokens 3 --routing-log hard".into(), "is the same file as"),
        ("sample r --tokens 3 --routing-log talk.txt".into(), "is not a routing log"),
        ("sample r --tokens 3 --routing-log r/metrics.jsonl".into(), "is not a routing log"),
        ("sample r --tokens 3 --routing-log r".into(), "is a directory"),
        // A log may be a prompt, too.
        (
            "sample r --tokens 3 --prompt-file log.jsonl --routing-log soft.jsonl".into(),
            "is the same file as log.jsonl",
        ),
        ("inspect r --data talk.txt --routing-log talk.txt".into(), "is being read"),
        ("inspect r --routing-log r/samples.txt".into(), "is not a routing log"),
        ("inspect r --out site".into(), "is not a routing report"),
        ("export r --to hf site".into(), "exists already"),
        ("export r --to gguf log.jsonl".into(), "exists already"),
    ] {
        workspace.refuses(&command, 2, &[why]);
        assert!(contents() == before, "{command} changed a file");
    }
    // What is of the kind is replaced, whole.
    workspace.succeeds("sample r --tokens 5 --routing-log soft.jsonl");
    assert!(workspace.path("soft.jsonl").is_symlink());
    assert!(workspace.read("log.jsonl").lines().count() > 5 && !workspace.path("log.jsonl.partial").exists());
    workspace.write("empty", "");
    workspace.succeeds("sample r --tokens 5 --routing-log empty");
    assert_eq!(workspace.read("empty"), workspace.read("log.jsonl"));
    for _ in 0..2 {
        workspace.succeeds("inspect r --out report");
    }
    // A stream takes the log as it comes.
    let streamed = workspace.succeeds("sample r --tokens 5 --json --routing-log /dev/stderr");
    assert!(streamed.stderr.contains("{\"header\":{\"model\":{"), "{}", streamed.stderr);
}

#[cfg(unix)]
#[test]
fn paths_need_not_be_utf8() {
    use std::ffi::OsStr;
    use std::os::unix::ffi::OsStrExt;

    let workspace = Workspace::new();
    let odd = OsStr::from_bytes(b"caf\xe9");
    let run = |arguments: &[&str]| {
        let mut command = workspace.command();
        command.args(arguments.iter().map(|&argument| if argument == "ODD" { odd } else { argument.as_ref() }));
        output(&mut command)
    };
    if fs::create_dir(workspace.path("").join(odd)).is_err() {
        return eprintln!("skipped: this file system takes UTF-8 names only");
    }
    for arguments in [
        &["train", "tiny.toml", "--run", "ODD"][..],
        &["sample", "ODD", "--tokens", "5"],
        &["eval", "ODD"],
        &["inspect", "ODD", "--json"],
    ] {
        let result = run(arguments);
        assert_eq!(result.code, 0, "{arguments:?}: {}", result.stderr);
    }
    run(&["train", "ODD", "--run", "r"]).assert_refusal("a text that TOML cannot name", 2, &["caf", "UTF-8"]);
    let resumed = run(&["resume", "ODD"]);
    assert_eq!(resumed.code, 0, "{}", resumed.stderr);
    run(&["sample", "ODD", "--prompt", "ODD"]).assert_refusal("a prompt that is not UTF-8", 2, &["UTF-8"]);

    // A transcript may have such a name, too.
    fs::create_dir(workspace.path("talks")).unwrap();
    fs::rename(workspace.path("talk.txt"), workspace.path("talks").join(OsStr::from_bytes(b"caf\xe9.txt"))).unwrap();
    workspace.succeeds("train tiny.toml --run r --set data.sources=talks");
}
