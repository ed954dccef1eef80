//! Steps that go wrong: losses and gradients that are not finite, losses that jump, machines that compute wrongly.
//! Nothing of it reaches a weight unseen.

mod common;

use common::run::{EVERY_STEP, Outcome, assert_same, outcome, train};
use common::{Output, Workspace};
use serde_json::Value;

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
    let settings = "optimizer.max_grad_norm=0 optimizer.warmup_steps=0 optimizer.learning_rate=1e300";
    workspace.refuses(
        &train("r", settings),
        3,
        &["first bad numbers: micro-batch 1: the residual stream after the embedding, "],
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
