//! Steps that go wrong: losses and gradients that are not finite, losses that jump, machines that compute wrongly.
//! Nothing of it reaches a weight unseen.

mod common;

use common::run::{EVERY_STEP, Outcome, assert_same, outcome, train};
use common::{Output, Workspace};
use serde_json::Value;
use std::fs;
use std::process::Command;

/// The state in a run's last checkpoint.
fn state(workspace: &Workspace, run: &str) -> Value {
    serde_json::from_str(&workspace.read(&format!("{run}/checkpoints/latest/trainer_state.json"))).unwrap()
}

fn assert_succeeded(output: &Output) {
    assert_eq!(output.code, 0, "{}", output.stderr);
}

/// Trains `settings` under `fault` in one go and in sessions of one step each, which must come to the same.
fn trained_whole_and_in_parts(workspace: &Workspace, name: &str, fault: &str, settings: &str, steps: usize) -> Outcome {
    let (whole, parts) = (format!("{name}-whole"), format!("{name}-parts"));
    assert_succeeded(&workspace.with_fault(fault, &train(&whole, settings)));
    let expected = outcome(workspace, &whole);
    for step in 1..=steps {
        let resume = if step > 1 { "--resume" } else { "" };
        assert_succeeded(&workspace.with_fault(fault, &format!("{} --steps {step} {resume}", train(&parts, settings))));
    }
    let mut found = outcome(workspace, &parts);
    found.checkpoints.retain(|name, _| expected.checkpoints.contains_key(name));
    assert_same(&found, &expected, name);
    expected
}

#[test]
fn a_gradient_that_is_not_finite_ends_the_run_with_a_diagnosis() {
    let workspace = Workspace::new();
    let stopped = workspace.with_fault("nan=5", &train("r", EVERY_STEP));
    stopped.assert_refusal(
        "a gradient of NaN",
        3,
        &[
            "training diverged in step 6: loss ",
            "gradient norm NaN; no weight was changed by it",
            "micro-batch 5: sequences from training tokens ",
            "first bad numbers: micro-batch 5: the gradient of model.embed_tokens.weight",
            "learning rate ",
            "largest weight: ",
            "routers: layer 0 entropy ",
            "the last checkpoint in r is sound",
            "tinymoe resume r --set train.on_bad_numbers=skip",
        ],
    );
    assert_eq!(state(&workspace, "r")["step"], 5);
    // What the message advises works.
    let on = workspace.with_fault("nan=5", "resume r --set train.on_bad_numbers=skip");
    assert_succeeded(&on);
    assert!(
        on.stderr.contains("warning: step 6: loss ") && on.stderr.contains("this batch is skipped"),
        "{}",
        on.stderr
    );
}

#[test]
fn activations_that_overflow_are_traced_to_their_layer() {
    let workspace = Workspace::new();
    let settings = "optimizer.max_grad_norm=0 optimizer.warmup_steps=0 optimizer.learning_rate=1e18";
    workspace.refuses(
        &train("r", settings),
        3,
        &["first bad numbers: micro-batch 1: the residual stream after layer 0's "],
    );
    // Weights of that size stay bad with every batch, so that skipping comes to an end.
    let skipping = format!("{} --set train.on_bad_numbers=skip", train("s", settings));
    let given_up = workspace.tinymoe(&skipping);
    assert_eq!(given_up.code, 3, "{}", given_up.stderr);
    assert_eq!(given_up.stderr.matches("this batch is skipped").count(), 10, "{}", given_up.stderr);
    assert!(given_up.stderr.contains("once more after 10 setbacks without a checkpoint"), "{}", given_up.stderr);
}

#[test]
fn a_skipped_batch_changes_no_weight_and_the_next_one_takes_its_place() {
    let workspace = Workspace::new();
    let settings = format!("{EVERY_STEP} train.on_bad_numbers=skip train.gradient_accumulation_steps=2");
    let skipped = trained_whole_and_in_parts(&workspace, "skip", "nan=5", &settings, 6);
    let entry = &state(&workspace, "skip-whole")["skipped"][0];
    // Micro-batches 4 and 5 belong to step 3.
    assert_eq!((&entry["step"], &entry["batches"]), (&Value::from(3), &Value::from(2)));
    workspace.succeeds(&train("clean", &settings));
    let clean = outcome(&workspace, "clean");
    let model = |step: usize| format!("step-{step:06}/model.safetensors");
    assert!(skipped.checkpoints[&model(2)] == clean.checkpoints[&model(2)], "before the bad batch");
    assert!(skipped.checkpoints[&model(3)] != clean.checkpoints[&model(3)], "another batch in its place");
    assert_eq!(skipped.metrics.len(), clean.metrics.len());
}

#[test]
fn a_rewind_goes_back_to_the_last_checkpoint_that_was_due_and_past_the_batches_since() {
    let workspace = Workspace::new();
    // keep_checkpoints=1: pauses must not cost the checkpoint that a rewind needs.
    let settings = "train.checkpoint_interval=3 train.keep_checkpoints=1 train.max_steps=10 train.eval_interval=4 \
                    train.on_bad_numbers=rewind";
    for (name, fault, step, batches) in [("late", "nan=7", 8, 2), ("early", "nan=1", 2, 2)] {
        trained_whole_and_in_parts(&workspace, name, fault, settings, 10);
        let state = state(&workspace, &format!("{name}-whole"));
        let entry = &state["skipped"][0];
        assert_eq!((&entry["step"], &entry["batches"]), (&Value::from(step), &Value::from(batches)), "{name}");
        assert_eq!(state["step"], 10);
    }
}

#[test]
fn weights_that_an_update_makes_bad_end_the_run_unsaved_and_every_policy_goes_on() {
    let workspace = Workspace::new();
    // Step 6 in steps of one batch; the last checkpoint before it is that of step 4.
    let settings = "train.keep_checkpoints=100 train.max_steps=10 train.eval_interval=4";
    let stopped = workspace.with_fault("update=5", &train("stop", settings));
    stopped.assert_refusal(
        "an update that gives NaN",
        3,
        &[
            "training diverged in step 6: loss ",
            "after the update not all numbers are finite: model.embed_tokens.weight, 1 of ",
            "what it did to the weights is not saved",
            "micro-batch 5: sequences from training tokens ",
            "the last checkpoint in stop is sound",
            "tinymoe resume stop --set train.on_bad_numbers=skip` (or =rewind)",
        ],
    );
    assert!(!stopped.stderr.contains("first bad numbers"), "{}", stopped.stderr);
    assert_eq!(state(&workspace, "stop")["step"], 4);
    workspace.succeeds("eval stop");
    for (policy, batches) in [("skip", 1), ("rewind", 2)] {
        // As if the gradient had shown it, before anything moved.
        let settings = format!("{settings} train.on_bad_numbers={policy}");
        assert_succeeded(&workspace.with_fault("nan=5", &train(&format!("before-{policy}"), &settings)));
        let expected = outcome(&workspace, &format!("before-{policy}"));
        let mut found = trained_whole_and_in_parts(&workspace, policy, "update=5", &settings, 10);
        assert_eq!(found.metrics, expected.metrics);
        for (name, bytes) in &expected.checkpoints {
            if !name.ends_with("trainer_state.json") && !name.ends_with("MANIFEST.json") {
                assert!(found.checkpoints.get_mut(name) == Some(&mut bytes.clone()), "{policy}: {name}");
            }
        }
        let entry = &state(&workspace, &format!("{policy}-whole"))["skipped"][0];
        assert_eq!((&entry["step"], &entry["batches"]), (&Value::from(6), &Value::from(batches)), "{policy}");
        // A run that stopped goes on to the same weights.
        fs::remove_dir_all(workspace.path("again")).ok();
        let copied = Command::new("cp").args(["-r", "stop", "again"]).current_dir(workspace.path("")).status();
        assert!(copied.unwrap().success());
        assert_succeeded(&workspace.with_fault("update=5", &format!("{} --resume", train("again", &settings))));
        let last = "step-000010/model.safetensors";
        assert!(outcome(&workspace, "again").checkpoints[last] == found.checkpoints[last], "{policy}: resumed");
    }
}

#[test]
fn a_validation_loss_that_is_not_finite_is_treated_as_the_configuration_says() {
    let workspace = Workspace::new();
    // Weights of that size are finite, and what comes of them is not.
    let settings = "optimizer.max_grad_norm=0 optimizer.warmup_steps=0 optimizer.learning_rate=1e18 \
                    train.eval_interval=1";
    workspace.refuses(&train("stop", settings), 3, &["step 1: validation loss ", "is not saved", "no checkpoint yet"]);
    for policy in ["skip", "rewind"] {
        let command = format!("{} --set train.on_bad_numbers={policy}", train(policy, settings));
        let given_up = workspace.tinymoe(&command);
        assert_eq!(given_up.code, 3, "{policy}: {}", given_up.stderr);
        assert_eq!(given_up.stderr.matches("back to step 0").count(), 10, "{policy}: {}", given_up.stderr);
        assert!(given_up.stderr.contains("once more after 10 setbacks"), "{policy}: {}", given_up.stderr);
        assert!(!workspace.path(policy).join("checkpoints/latest").exists(), "{policy}");
    }
}

#[test]
fn settings_that_overflow_f32_are_refused_before_training() {
    let workspace = Workspace::new();
    let biases = "router.scoring_func=sigmoid router.balance=bias router.bias_update_rate=1e300";
    for (settings, key) in [
        (biases, "router.bias_update_rate"),
        ("optimizer.learning_rate=1e180", "optimizer.learning_rate"),
        ("optimizer.epsilon=1e-60", "optimizer.epsilon"),
        ("model.rms_norm_eps=1e200", "model.rms_norm_eps"),
    ] {
        workspace.refuses(&train("r", settings), 2, &[&format!("{key} = "), "f32"]);
        assert!(!workspace.path("r").exists());
    }
}

#[test]
fn idle_experts_and_tiny_gradients_leave_muon_finite() {
    let workspace = Workspace::new();
    // One expert of 16 serves each token and nothing balances them: most lie idle until their momentum is gone.
    let idle = "optimizer.kind=muon model.num_experts=16 model.num_experts_per_tok=1 router.norm_topk_prob=false \
                router.balance=none train.max_steps=2500 train.eval_interval=500 train.checkpoint_interval=500 \
                train.log_interval=100 train.sample_tokens=0 train.batch_size=1";
    workspace.succeeds(&train("idle", idle));
    // Initial weights so small that the first gradients' squares vanish in f32.
    let tiny = "optimizer.kind=muon model.initializer_range=1e-6 optimizer.max_grad_norm=0.001 \
                optimizer.muon_momentum=0 model.qk_norm=false";
    workspace.succeeds(&train("tiny", tiny));
    workspace.succeeds(&train("tinier", &format!("{tiny} model.initializer_range=1e-12")));
}

#[test]
fn a_jump_of_the_loss_is_treated_as_the_configuration_says() {
    let workspace = Workspace::new();
    // Losses differ by their batches alone, and any that is well above the two before it counts as a jump.
    let jumpy = format!(
        "{EVERY_STEP} train.max_steps=12 optimizer.learning_rate=1e-5 \
                         train.spike_window=2 train.spike_threshold=1.5"
    );
    let warned = workspace.succeeds(&train("warn", &jumpy));
    let first = "standard deviations above the mean of the last 2 steps";
    assert!(warned.stderr.contains(first), "{}", warned.stderr);
    workspace.succeeds(&train("off", &format!("{jumpy} train.spike_window=0")));
    let model = |run: &str| outcome(&workspace, run).checkpoints["step-000012/model.safetensors"].clone();
    assert!(model("warn") == model("off"), "a warning changes nothing");
    workspace.refuses(
        &train("stop", &format!("{jumpy} train.on_loss_spike=stop")),
        3,
        &[first, "no weight was changed"],
    );
    for policy in ["skip", "rewind"] {
        let settings = format!("{jumpy} train.on_loss_spike={policy}");
        trained_whole_and_in_parts(&workspace, policy, "", &settings, 12);
        let state = state(&workspace, &format!("{policy}-whole"));
        assert!(state["skipped"][0]["reason"].as_str().unwrap().contains(first), "{state}");
        assert_eq!(state["recent_losses"].as_array().unwrap().len(), 2);
        assert!(model(&format!("{policy}-whole")) != model("off"));
    }
}

#[test]
fn a_bit_that_flips_in_a_gradient_is_noticed_by_computing_it_again() {
    let workspace = Workspace::new();
    workspace.succeeds(&train("clean", EVERY_STEP));
    let clean = outcome(&workspace, "clean");
    let model = "step-000006/model.safetensors";

    let unseen = workspace.with_fault("flip=3:1", &train("unseen", EVERY_STEP));
    assert_succeeded(&unseen);
    assert!(outcome(&workspace, "unseen").checkpoints[model] != clean.checkpoints[model], "the fault does nothing");

    let checked = format!("{EVERY_STEP} train.recompute_fraction=1");
    let transient = workspace.with_fault("flip=3:1", &train("transient", &checked));
    assert_succeeded(&transient);
    assert_eq!(transient.stderr.matches("warning: ").count(), 1, "{}", transient.stderr);
    assert!(transient.stderr.contains("step 4 was computed twice with different results"), "{}", transient.stderr);
    assert!(
        outcome(&workspace, "transient").checkpoints[model] == clean.checkpoints[model],
        "the sound result is used"
    );

    let reproducible = workspace.with_fault("flip=3:9", &train("reproducible", &checked));
    reproducible.assert_refusal("a machine that errs", 1, &["three different results", "the last checkpoint"]);
    assert_eq!(state(&workspace, "reproducible")["step"], 3);

    // Half the steps are computed twice.
    let sampled = workspace.succeeds(&train("sampled", &format!("{EVERY_STEP} train.recompute_fraction=0.5")));
    assert!(!sampled.stderr.contains("warning"), "{}", sampled.stderr);
    assert!(outcome(&workspace, "sampled").checkpoints[model] == clean.checkpoints[model]);
}
