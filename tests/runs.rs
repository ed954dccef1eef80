//! What a run leaves on disk: the same bytes, however it was interrupted, resumed or spread over threads.

mod common;

use common::run::{EVERY_STEP, assert_same, outcome, spawn, train, wait_for_metrics};
use common::{Workspace, flip_a_bit};
use std::fs;
use std::process::Command;

/// Whatever changes what a step does, or what it depends on.
const VARIANTS: [&str; 15] = [
    "",
    "router.noisy_gate=true",
    "router.scoring_func=sigmoid router.balance=bias",
    "model.num_experts_per_tok=1 router.norm_topk_prob=false",
    "router.capacity_factor=0.7",
    "model.n_shared_experts=1 model.shared_expert_gate=true",
    "model.num_experts=0 model.tie_word_embeddings=false",
    "model.first_k_dense_replace=1 model.num_key_value_heads=1",
    "model.hidden_dropout=0.2",
    "train.gradient_accumulation_steps=2 model.hidden_dropout=0.1",
    "optimizer.schedule=linear tokenizer.kind=chars",
    "optimizer.schedule=wsd tokenizer.kind=bpe tokenizer.vocab_size=280",
    "optimizer.schedule=constant",
    "model.memory_layers=[0,1] model.memory_slots=500 train.gradient_accumulation_steps=2 model.hidden_dropout=0.1",
    "router.balance=none train.log_interval=4 train.eval_interval=3",
];

fn weights(workspace: &Workspace, run: &str) -> Vec<u8> {
    fs::read(workspace.path(run).join("checkpoints/latest/model.safetensors")).unwrap()
}

#[test]
fn the_same_seed_gives_the_same_bytes_and_another_one_does_not() {
    let workspace = Workspace::new();
    for (run, settings) in [("a", ""), ("b", ""), ("c", "train.seed=8")] {
        workspace.succeeds(&train(run, &format!("{EVERY_STEP} {settings}")));
    }
    assert_same(&outcome(&workspace, "a"), &outcome(&workspace, "b"), "the second run");
    assert_eq!(workspace.read("a/config.toml"), workspace.read("b/config.toml"));
    assert!(weights(&workspace, "a") != weights(&workspace, "c"));
}

#[test]
fn resumed_run_is_byte_identical_to_an_uninterrupted_one() {
    let workspace = Workspace::new();
    let check = |number: usize, variant: &str| {
        let settings = format!("{EVERY_STEP} train.max_steps=50 train.eval_interval=10 {variant}");
        let (whole, parts) = (format!("whole{number}"), format!("parts{number}"));
        workspace.succeeds(&format!("{} --threads 1", train(&whole, &settings)));
        for step in 1..=50 {
            let resume = if step > 1 { "--resume" } else { "" };
            let arguments = format!("{} --threads 1 --steps {step} {resume}", train(&parts, &settings));
            let headline = workspace.succeeds(&arguments).stdout;
            let expected =
                if step < 50 { format!("paused after step {step};") } else { "finished after step 50".into() };
            assert!(headline.starts_with(&expected), "{headline}");
        }
        assert_same(&outcome(&workspace, &parts), &outcome(&workspace, &whole), variant);
    };
    std::thread::scope(|scope| {
        for (number, variant) in VARIANTS.iter().enumerate() {
            scope.spawn(move || check(number, variant));
        }
    });
}

#[test]
fn a_pause_between_checkpoints_changes_nothing_but_what_is_kept() {
    let workspace = Workspace::new();
    let settings = "train.keep_checkpoints=100 train.checkpoint_interval=4 train.eval_interval=5 train.log_interval=3";
    workspace.succeeds(&train("whole", settings));
    for step in [0, 3, 3, 7, 100] {
        let resume = if workspace.path("parts").exists() { "--resume" } else { "" };
        workspace.succeeds(&format!("{} --steps {step} {resume}", train("parts", settings)));
    }
    let (mut parts, whole) = (outcome(&workspace, "parts"), outcome(&workspace, "whole"));
    for step in ["step-000003/", "step-000007/"] {
        assert!(parts.checkpoints.keys().any(|name| name.starts_with(step)));
        parts.checkpoints.retain(|name, _| !name.starts_with(step));
    }
    assert_same(&parts, &whole, "paused after steps 0, 3 and 7");
}

#[test]
fn a_run_that_is_killed_again_and_again_ends_with_the_same_bytes() {
    let workspace = Workspace::new();
    let settings = format!("{EVERY_STEP} train.max_steps=30 optimizer.schedule=constant");
    workspace.succeeds(&train("whole", &settings));
    let arguments = train("killed", &settings);
    let mut child = spawn(&workspace, &arguments);
    for count in [2, 9, 17, 23, 31, 38] {
        wait_for_metrics(&workspace, "killed", &mut child, count);
        // SIGKILL: no handler runs, nothing is flushed.
        child.kill().unwrap();
        child.wait().unwrap();
        child = spawn(&workspace, &format!("{arguments} --resume"));
    }
    let end = child.wait_with_output().unwrap();
    assert!(end.status.success(), "{}", String::from_utf8_lossy(&end.stderr));
    assert_same(&outcome(&workspace, "killed"), &outcome(&workspace, "whole"), "killed six times");
}

#[test]
fn a_crash_between_a_save_and_its_links_is_made_good() {
    let workspace = Workspace::new();
    workspace.succeeds(&train("r", EVERY_STEP));
    let whole = outcome(&workspace, "r");
    let checkpoints = workspace.path("r/checkpoints");
    fs::remove_file(checkpoints.join("latest")).unwrap();
    fs::remove_file(checkpoints.join("best")).unwrap();
    workspace.succeeds(&format!("{} --resume", train("r", EVERY_STEP)));
    assert_same(&outcome(&workspace, "r"), &whole, "without links");
}

#[test]
fn any_number_of_threads_gives_the_same_bytes() {
    let workspace = Workspace::new();
    for variant in [
        "",
        "model.hidden_size=40 model.num_experts=6 train.batch_size=7 model.hidden_dropout=0.1",
        "model.memory_layers=[0,1] model.memory_slots=500 train.batch_size=7 model.hidden_dropout=0.1",
    ] {
        let run = |threads: usize| {
            let name = format!("t{threads}-{}", variant.len());
            workspace.succeeds(&format!("{} --threads {threads}", train(&name, &format!("{EVERY_STEP} {variant}"))));
            outcome(&workspace, &name)
        };
        let one = run(1);
        for threads in [2, 4] {
            assert_same(&run(threads), &one, &format!("{threads} threads {variant}"));
        }
    }
}

#[cfg(unix)]
#[test]
fn an_interrupted_run_saves_exits_with_130_and_resumes_to_the_same_bytes() {
    let workspace = Workspace::new();
    // Far too long to end by itself.
    let settings = "train.max_steps=1000000 train.checkpoint_interval=1000000 train.eval_interval=1000";
    for (number, signal) in ["INT", "TERM"].iter().enumerate() {
        let arguments = train(&format!("r{number}"), settings);
        let mut child = spawn(&workspace, &arguments);
        wait_for_metrics(&workspace, &format!("r{number}"), &mut child, 3);
        assert!(
            Command::new("kill").args([&format!("-{signal}"), &child.id().to_string()]).status().unwrap().success()
        );
        let end = child.wait_with_output().unwrap();
        let stderr = String::from_utf8(end.stderr).unwrap();
        assert_eq!(end.status.code(), Some(130), "{signal}: {stderr}");
        let after = stderr.split("interrupted after step ").nth(1).unwrap_or_else(|| panic!("{stderr}"));
        let step: usize = after.split(',').next().unwrap().parse().unwrap();
        assert!(after.contains(&format!("tinymoe resume r{number}")), "{stderr}");

        workspace.succeeds(&format!("{arguments} --resume --steps {}", step + 5));
        let whole = format!("whole{number}");
        workspace.succeeds(&format!("{} --steps {}", train(&whole, settings), step + 5));
        let (mut resumed, whole) = (outcome(&workspace, &format!("r{number}")), outcome(&workspace, &whole));
        resumed.checkpoints.retain(|name, _| !name.starts_with(&format!("step-{step:06}/")));
        assert_same(&resumed, &whole, &format!("SIG{signal} after step {step}"));
    }
}

#[test]
fn looking_at_a_run_does_not_change_it() {
    let workspace = Workspace::new();
    let settings = |rest: &str| format!("train.checkpoint_interval=8 model.hidden_dropout=0.1 {rest}");
    workspace.succeeds(&train("watched", &settings("train.eval_interval=1 train.sample_tokens=30")));
    workspace.succeeds(&train("alone", &settings("train.eval_interval=8 train.sample_tokens=0 train.log_interval=8")));
    assert!(weights(&workspace, "watched") == weights(&workspace, "alone"));
    assert_eq!(workspace.read("watched/samples.txt").matches("=== step ").count(), 8);
    assert!(!workspace.path("alone/samples.txt").exists());

    let before = outcome(&workspace, "watched");
    for reader in ["sample watched --tokens 5", "eval watched", "inspect watched"] {
        workspace.succeeds(reader);
    }
    assert_same(&outcome(&workspace, "watched"), &before, "after sample, eval and inspect");
}

#[test]
fn a_run_that_no_longer_improves_stops_and_stays_stopped() {
    let workspace = Workspace::new();
    // Steps so small that no weight moves: the first evaluation remains the best.
    let settings = "optimizer.learning_rate=1e-30 train.early_stopping_patience=2 train.eval_interval=1";
    let stopped = workspace.succeeds(&train("r", settings)).stdout;
    assert!(stopped.starts_with("stopped early after step 3"), "{stopped}");
    assert!(stopped.contains("best validation: step 1,"), "{stopped}");
    let before = outcome(&workspace, "r");
    assert_eq!(before.checkpoints["best"], b"step-000001");
    assert_eq!(before.checkpoints["latest"], b"step-000003");

    let again = workspace.succeeds(&format!("{} --resume", train("r", settings))).stdout;
    assert!(again.starts_with("stopped early after step 3 already"), "{again}");
    assert!(again.contains("--set train.early_stopping_patience=0"), "{again}");
    assert_same(&outcome(&workspace, "r"), &before, "after resuming");
}

#[test]
fn the_newest_checkpoints_and_the_best_are_kept() {
    let workspace = Workspace::new();
    let settings = "train.checkpoint_interval=1 train.keep_checkpoints=3 train.eval_interval=2";
    workspace.succeeds(&train("still", &format!("{settings} optimizer.learning_rate=1e-30")));
    workspace.succeeds(&train("moving", settings));
    let kept = |run: &str| {
        let names = fs::read_dir(workspace.path(run).join("checkpoints")).unwrap();
        let mut names: Vec<_> = names.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
        names.sort();
        names
    };
    let newest = ["best", "latest", "step-000006", "step-000007", "step-000008"];
    assert_eq!(kept("moving"), newest);
    assert_eq!(kept("still"), [&newest[..2], &["step-000002"], &newest[2..]].concat());
}

#[test]
fn a_damaged_newest_checkpoint_is_named_and_the_one_before_it_continues() {
    let workspace = Workspace::new();
    workspace.succeeds(&train("whole", EVERY_STEP));
    let whole = outcome(&workspace, "whole");
    // The last checkpoint that is sound; before step 2 none is the best yet.
    for (run, sound, damaged) in [("four", 3, &[4][..]), ("three", 2, &[3, 4]), ("two", 1, &[2])] {
        workspace.succeeds(&format!("{} --steps {}", train(run, EVERY_STEP), damaged[damaged.len() - 1]));
        for step in damaged {
            let checkpoint = workspace.path(run).join(format!("checkpoints/step-{step:06}"));
            flip_a_bit(&checkpoint.join(if step % 2 == 0 { "optimizer.safetensors" } else { "MANIFEST.json" }));
        }
        let paused = workspace.succeeds(&format!("{} --resume --steps {}", train(run, EVERY_STEP), sound));
        for step in damaged {
            let name = format!("warning: passing over {run}/checkpoints/step-{step:06}");
            assert!(paused.stderr.contains(&name), "{}", paused.stderr);
        }
        workspace.succeeds(&format!("eval {run}"));
        workspace.succeeds(&format!("{} --resume", train(run, EVERY_STEP)));
        let mut resumed = outcome(&workspace, run);
        resumed.checkpoints.retain(|name, _| !name.contains(".damaged/"));
        assert_same(&resumed, &whole, run);
    }
}

#[test]
fn a_finished_run_goes_on_when_it_is_given_more_steps() {
    let workspace = Workspace::new();
    let constant = "optimizer.schedule=constant train.keep_checkpoints=100";
    workspace.succeeds(&train("r", constant));
    let more =
        workspace.succeeds(&format!("{} --resume", train("r", &format!("{constant} train.max_steps=12")))).stdout;
    assert!(more.starts_with("finished after step 12"), "{more}");
    workspace.succeeds(&train("whole", &format!("{constant} train.max_steps=12")));
    assert!(weights(&workspace, "r") == weights(&workspace, "whole"));
}
