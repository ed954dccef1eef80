//! Ends that nobody asked for: processes killed at any moment, disks that refuse. No run is lost by them.
#![cfg(unix)]

mod common;

use common::run::{assert_same, outcome, spawn, train, wait_for_metrics};
use common::{SmallDisk, Workspace, output};
use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

/// Steps whose training line is whole in a run's metrics.
fn steps_logged(workspace: &Workspace, run: &str) -> u64 {
    let metrics = fs::read_to_string(workspace.path(run).join("metrics.jsonl")).unwrap_or_default();
    let steps =
        metrics.lines().filter_map(|line| serde_json::from_str::<serde_json::Value>(line).ok()?["step"].as_u64());
    steps.max().unwrap_or(0)
}

/// The step of the newest checkpoint that verifies; 0 if there is none.
fn newest_step(workspace: &Workspace, run: &str) -> u64 {
    let newest = tinymoe::checkpoint::newest(&workspace.path(run).join("checkpoints")).unwrap();
    assert!(newest.rejected.is_empty(), "{:?}", newest.rejected);
    newest.found.map_or(0, |(path, _)| path.to_str().unwrap().rsplit_once('-').unwrap().1.parse().unwrap())
}

fn assert_no_temporary_files(workspace: &Workspace, run: &str, what: &str) {
    for folder in [workspace.path(run), workspace.path(run).join("checkpoints")] {
        for entry in fs::read_dir(folder).unwrap() {
            let name = entry.unwrap().file_name().into_string().unwrap();
            assert!(!name.starts_with('.') || name == ".lock", "{what} leaves {name}");
        }
    }
}

#[test]
fn a_kill_before_any_system_call_of_a_run_costs_one_checkpoint_interval_at_most() {
    let settings = "train.checkpoint_interval=1 train.keep_checkpoints=1 train.max_steps=3 train.eval_interval=2";
    let workspace = Workspace::new();
    workspace.succeeds(&train("whole", settings));
    let whole = outcome(&workspace, "whole");
    let check = |call: usize, run: &str| -> bool {
        _ = fs::remove_dir_all(workspace.path(run));
        let arguments = format!("{} --threads 1", train(run, settings));
        let mut command = workspace.command();
        command.args(arguments.split_whitespace()).env("TINYMOE_FAULT", format!("kill={call}"));
        let killed = command.output().unwrap();
        if killed.status.success() {
            return false;
        }
        assert_eq!(killed.status.signal(), Some(9), "call {call}: {}", String::from_utf8_lossy(&killed.stderr));
        if workspace.path(run).join("config.toml").exists() {
            let (logged, saved) = (steps_logged(&workspace, run), newest_step(&workspace, run));
            assert!(saved + 1 >= logged, "call {call}: {logged} steps logged, {saved} saved");
            workspace.succeeds(&format!("{arguments} --resume"));
        } else {
            workspace.succeeds(&arguments);
        }
        let what = format!("killed before call {call}");
        assert_same(&outcome(&workspace, run), &whole, &what);
        assert_no_temporary_files(&workspace, run, &what);
        true
    };
    let calls: Vec<usize> = std::thread::scope(|scope| {
        let check = &check;
        let part = |first: usize| {
            move || (first..).step_by(2).take_while(|&call| check(call, &format!("killed{first}"))).count()
        };
        let threads: Vec<_> = [1, 2].map(|first| scope.spawn(part(first))).into();
        threads.into_iter().map(|thread| thread.join().unwrap()).collect()
    });
    let calls: usize = calls.iter().sum();
    println!("killed before each of {calls} system calls");
    assert!(calls > 100, "only {calls} system calls have a fault before them");
}

/// Files below a folder, hidden ones, too, with their content.
fn files_below(folder: &Path) -> BTreeMap<PathBuf, Vec<u8>> {
    let mut files = BTreeMap::new();
    for entry in fs::read_dir(folder).into_iter().flatten() {
        let path = entry.unwrap().path();
        match path.is_dir() {
            true => files.extend(files_below(&path)),
            false => drop(files.insert(path.clone(), fs::read(&path).unwrap())),
        }
    }
    files
}

#[test]
fn a_kill_while_an_output_is_written_leaves_what_was_there_and_blocks_nothing() {
    let workspace = Workspace::trained();
    // What is written twice differs by what it says of its sampling or its text.
    for (earlier, later) in [
        ("", "export r --to hf out/model"),
        ("", "export r --to gguf out/model.gguf"),
        ("inspect r --data talk.txt --out out", "inspect r --out out"),
        ("sample r --tokens 9 --seed 1 --routing-log out/log", "sample r --tokens 9 --seed 2 --routing-log out/log"),
    ] {
        let out = workspace.path("out");
        let begin = || {
            _ = fs::remove_dir_all(&out);
            fs::create_dir(&out).unwrap();
            if !earlier.is_empty() {
                workspace.succeeds(earlier);
            }
            files_below(&out)
        };
        begin();
        workspace.succeeds(later);
        let whole = files_below(&out);
        let before = begin();
        assert!(before != whole);
        let mut calls = 0;
        loop {
            begin();
            let mut command = workspace.command();
            command.args(later.split_whitespace()).env("TINYMOE_FAULT", format!("kill={}", calls + 1));
            let killed = command.output().unwrap();
            if killed.status.success() {
                break;
            }
            calls += 1;
            assert_eq!(killed.status.signal(), Some(9), "{later}: {}", String::from_utf8_lossy(&killed.stderr));
            let mut left = files_below(&out);
            left.retain(|path, _| {
                let below = path.strip_prefix(&out).unwrap().to_str().unwrap();
                !below.starts_with('.') && !below.ends_with(".partial")
            });
            assert!(left == before || left == whole, "{later}: call {calls} leaves {:?}", left.keys());
            if left == before {
                workspace.succeeds(later);
            }
            assert!(files_below(&out) == whole, "{later}: call {calls}, {:?}", files_below(&out).keys());
        }
        println!("{later}: killed before each of {calls} system calls");
        assert!(calls >= 3, "{later}: only {calls} system calls have a fault before them");
    }
}

#[test]
fn a_full_disk_leaves_the_earlier_report_and_no_half_of_an_export() {
    let workspace = Workspace::trained();
    let Some(disk) = SmallDisk::mount(workspace.path("disk"), "2m") else { return };
    workspace.succeeds("inspect r --out disk/report");
    let page = fs::read(disk.path.join("report/index.html")).unwrap();
    // All but a few pages.
    let room = (2 << 20) - page.len() - (24 << 10);
    fs::write(disk.path.join("filler"), vec![1; room]).unwrap();
    let before = files_below(&disk.path);
    for command in
        ["inspect r --data talk.txt --out disk/report", "export r --to hf disk/hf", "export r --to gguf disk/g"]
    {
        workspace.refuses(command, 1, &["disk/", "No space left on device"]);
        assert!(files_below(&disk.path) == before, "{command} leaves {:?}", files_below(&disk.path).keys());
    }
}

fn signal(child: &Child, name: &str) {
    let status = Command::new("kill").args([&format!("-{name}"), &child.id().to_string()]).status();
    assert!(status.unwrap().success());
}

#[test]
fn a_second_interrupt_leaves_at_once_and_harms_nothing() {
    let workspace = Workspace::new();
    // Steps of a good second, so that both signals fall into one.
    let settings = "train.gradient_accumulation_steps=4000 train.checkpoint_interval=1 train.max_steps=100000";
    for attempt in 0..5 {
        let run = format!("r{attempt}");
        let arguments = train(&run, settings);
        let mut child = spawn(&workspace, &arguments);
        wait_for_metrics(&workspace, &run, &mut child, 1);
        signal(&child, "INT");
        signal(&child, "TERM");
        let end = child.wait_with_output().unwrap();
        assert_eq!(end.status.code(), Some(130));
        if String::from_utf8_lossy(&end.stderr).contains("interrupted after step") {
            continue; // The first signal came at the very end of a step.
        }
        let step = newest_step(&workspace, &run);
        assert!(step <= 1, "step {step} was saved");
        workspace.succeeds(&format!("{arguments} --resume --steps 2"));
        workspace.succeeds(&format!("{} --steps 2", train("whole", settings)));
        assert_same(&outcome(&workspace, &run), &outcome(&workspace, "whole"), "interrupted twice");
        return assert_no_temporary_files(&workspace, &run, "the second interrupt");
    }
    panic!("every step ended between the two signals");
}

#[test]
fn one_process_trains_in_a_run_and_a_dead_one_blocks_nobody() {
    let workspace = Workspace::new();
    let arguments = train(
        "r",
        "train.max_steps=1000000 train.checkpoint_interval=2 train.keep_checkpoints=1000 train.eval_interval=100000",
    );
    let mut first = spawn(&workspace, &arguments);
    wait_for_metrics(&workspace, "r", &mut first, 4);
    workspace.refuses(&format!("{arguments} --resume"), 2, &["another process is training in r"]);
    assert!(first.try_wait().unwrap().is_none(), "the first one is not disturbed");
    // Reading is no training.
    workspace.succeeds("eval r/checkpoints/step-000002 --data talk.txt");
    first.kill().unwrap();
    first.wait().unwrap();
    let step = newest_step(&workspace, "r");
    workspace.succeeds(&format!("{arguments} --resume --steps {}", step + 1));
}

#[test]
fn a_read_only_file_system_is_named_and_costs_nothing() {
    let workspace = Workspace::new();
    let settings = "train.keep_checkpoints=9";
    let Some(disk) = SmallDisk::mount(workspace.path("disk"), "50m") else { return };
    workspace.succeeds(&format!("{} --steps 5", train("disk/r", settings)));
    disk.remount("ro");
    workspace.refuses(&format!("{} --resume", train("disk/r", settings)), 1, &["disk/r", "Read-only file system"]);
    workspace.refuses(&train("disk/new", settings), 1, &["disk/new", "Read-only file system"]);
    workspace.succeeds("eval disk/r");
    disk.remount("rw");
    workspace.succeeds(&format!("{} --resume", train("disk/r", settings)));
    workspace.succeeds(&train("whole", settings));
    let mut resumed = outcome(&workspace, "disk/r");
    resumed.checkpoints.retain(|name, _| !name.starts_with("step-000005/"));
    assert_same(&resumed, &outcome(&workspace, "whole"), "on a disk that was read-only for a while");
}

#[test]
fn lost_permission_is_named_and_costs_no_checkpoint() {
    let workspace = Workspace::new();
    // The superuser may write anywhere: then somebody else has to try.
    let root = output(Command::new("id").arg("-u")).stdout.trim() == "0";
    // Copied by another process: a file that this one has open for writing, or a child of a test beside, cannot be run.
    let copied = Command::new("cp").arg(env!("CARGO_BIN_EXE_tinymoe")).arg(workspace.path("program")).status().unwrap();
    assert!(copied.success());
    fs::create_dir(workspace.path("r")).unwrap();
    for name in ["", "r"] {
        fs::set_permissions(workspace.path(name), fs::Permissions::from_mode(0o777)).unwrap();
    }
    let settings = "train.max_steps=2000 train.checkpoint_interval=1 train.eval_interval=1000";
    let train = |rest: &str| {
        let mut command = Command::new(workspace.path("program"));
        command.args(format!("{} {rest}", train("r", settings)).split_whitespace()).current_dir(workspace.path(""));
        if root {
            command.uid(65534).gid(65534);
        }
        command
    };
    let mut child = train("").stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    wait_for_metrics(&workspace, "r", &mut child, 3);
    let permit = |mode| fs::set_permissions(workspace.path("r/checkpoints"), fs::Permissions::from_mode(mode)).unwrap();
    permit(0o555);
    let end = child.wait_with_output().unwrap();
    let stderr = String::from_utf8(end.stderr).unwrap();
    assert_eq!(end.status.code(), Some(1), "{stderr}");
    for part in ["cannot save step", "Permission denied", "check the owner of the directory", "untouched"] {
        assert!(stderr.contains(part), "no {part:?} in {stderr}");
    }
    workspace.succeeds("eval r");
    permit(0o755);
    let step = newest_step(&workspace, "r");
    let more = output(&mut train(&format!("--resume --steps {}", step + 3)));
    assert_eq!(more.code, 0, "{}", more.stderr);
    assert_eq!(newest_step(&workspace, "r"), step + 3);
    assert_no_temporary_files(&workspace, "r", "lost permission");
}
