//! What a new user does: trains on texts of their own, goes elsewhere and comes back, resumes, compares runs.

mod common;

use common::run::{assert_same, outcome, spawn, train, wait_for_metrics};
use common::{Workspace, output};
use serde_json::Value;
use std::fs;
use std::process::Command;

/// Makes a configuration of the program small enough for a test.
const SMALL: &str = "--set model.hidden_size=16 --set model.num_hidden_layers=1 --set model.num_attention_heads=2 --set \
                     model.max_position_embeddings=16 --set model.num_experts=2 --set model.moe_intermediate_size=8 --set \
                     train.batch_size=2 --set train.max_steps=4 --set train.eval_interval=4 --set \
                     train.checkpoint_interval=4 --set optimizer.warmup_steps=1";

fn with_texts() -> Workspace {
    let workspace = Workspace::new();
    let text = workspace.read("talk.txt");
    for folder in ["talks/cooking", "elsewhere"] {
        fs::create_dir_all(workspace.path(folder)).unwrap();
    }
    workspace.write("talks/cooking/soup.txt", &text);
    workspace.write("talks/bread.txt", text.replace("cat", "loaf"));
    workspace.write("notes.md", text.replace("mat", "page"));
    workspace
}

fn config(workspace: &Workspace, run: &str) -> toml::Table {
    workspace.read(&format!("{run}/config.toml")).parse().unwrap()
}

fn facts(workspace: &Workspace, run: &str) -> Value {
    serde_json::from_str(&workspace.read(&format!("{run}/run.json"))).unwrap()
}

/// The program in the folder `elsewhere`.
fn elsewhere(workspace: &Workspace) -> Command {
    let mut command = workspace.command();
    command.current_dir(workspace.path("elsewhere"));
    command
}

#[test]
fn texts_are_enough_to_train() {
    let workspace = with_texts();
    let trained = workspace.succeeds(&format!("train talks/ notes.md=notes {SMALL}"));
    let named = "bytes of text: transcript with 200 steps";
    assert!(trained.stderr.contains(named), "{}", trained.stderr);
    let config = config(&workspace, "runs/talks");
    assert_eq!(config["data"]["sources"].as_array().unwrap().len(), 2);
    assert_eq!(config["tokenizer"]["kind"].as_str(), Some("bytes"));
    assert_eq!(config["train"]["max_steps"].as_integer(), Some(4), "what is set wins over the rule");
    let data = &facts(&workspace, "runs/talks")["data"];
    let domains: Vec<_> = data.as_array().unwrap().iter().map(|file| file["domain"].as_str().unwrap()).collect();
    assert_eq!(domains, ["notes", "talks", "cooking"]);
    assert_eq!(data[0]["name"].as_str(), Some("notes.md"), "names stay readable");

    let dry = workspace.succeeds("train talks --dry-run --run r").stdout;
    assert!(dry.contains(named) && dry.contains("200 steps of"), "{dry}");
    workspace.refuses("train missing.txt", 2, &["missing.txt", "no such file"]);
}

#[test]
fn a_configuration_of_the_program_trains_on_texts_of_ones_own() {
    let workspace = with_texts();
    let set = "--set tokenizer.kind=bytes";
    workspace.succeeds(&format!("train quickstart talks/ --run named {SMALL} {set}"));
    workspace.write("mine.toml", workspace.succeeds("config show quickstart").stdout);
    workspace.succeeds(&format!("train talks mine.toml --run file {SMALL} {set}"));
    workspace.succeeds(&format!("train quickstart --run set --set data.sources=talks {SMALL} {set}"));
    let named = outcome(&workspace, "named");
    assert_eq!(config(&workspace, "named")["optimizer"]["weight_decay"].as_float(), Some(3.0));
    assert_eq!(facts(&workspace, "named")["data_sha256"], facts(&workspace, "set")["data_sha256"]);
    assert_eq!(named.metrics, outcome(&workspace, "file").metrics);
    assert_eq!(named.metrics, outcome(&workspace, "set").metrics);
}

#[test]
fn a_file_of_the_name_of_a_configuration_wins() {
    let workspace = with_texts();
    workspace.write("quickstart", workspace.read("talk.txt"));
    let dry = workspace.succeeds("train quickstart --dry-run --run r");
    assert!(dry.stdout.contains("transcript with"), "{}", dry.stdout);
}

#[test]
fn a_run_is_used_from_any_directory() {
    let workspace = with_texts();
    let settings = "train.max_steps=6 data.sources=[\"talks/**/*.txt=speech\",\"notes.md\",\"talk.txt\"]";
    workspace.succeeds(&train("whole", settings));
    workspace.succeeds(&format!("{} --steps 3", train("r", settings)));
    for arguments in [
        &["eval", "../r"][..],
        &["inspect", "../r", "--json"],
        &["resume", "../r", "--steps", "5"],
        &["train", "../tiny.toml", "--run", "../r", "--resume", "--set", "train.max_steps=6", "--steps", "5"],
        &["resume", "../r"],
    ] {
        let done = output(elsewhere(&workspace).args(arguments));
        // The configuration's own sources are others than those that were set.
        let code = if arguments[0] == "train" { 2 } else { 0 };
        assert_eq!(done.code, code, "{arguments:?}: {}", done.stderr);
    }
    let (mut resumed, whole) = (outcome(&workspace, "r"), outcome(&workspace, "whole"));
    for extra in ["step-000003/", "step-000005/"] {
        resumed.checkpoints.retain(|name, _| !name.starts_with(extra));
    }
    assert_eq!(resumed.metrics, whole.metrics);
    let domains = facts(&workspace, "r")["data"].as_array().unwrap().clone();
    let domains: Vec<_> = domains.iter().map(|file| file["domain"].as_str().unwrap()).collect();
    assert_eq!(domains, ["text", "text", "speech", "speech"]);

    fs::rename(workspace.path("talk.txt"), workspace.path("moved.txt")).unwrap();
    let missing = output(elsewhere(&workspace).args(["eval", "../r"]));
    let path = workspace.path("talk.txt");
    missing.assert_refusal("a text that is gone", 2, &[path.to_str().unwrap()]);
}

#[test]
fn texts_that_moved_are_found_again_and_other_texts_are_refused() {
    let workspace = Workspace::new();
    workspace.succeeds(&format!("{} --steps 4", train("r", "")));
    fs::create_dir(workspace.path("text")).unwrap();
    fs::rename(workspace.path("talk.txt"), workspace.path("text/speech.txt")).unwrap();
    workspace.refuses("resume r", 2, &["talk.txt", "no such file"]);
    let moved = workspace.succeeds("resume r --set data.sources=text/speech.txt");
    assert!(moved.stdout.starts_with("finished after step 8"), "{}", moved.stdout);
    workspace.succeeds("eval r");
}

/// A run of the first version: its configuration has no directory, and paths are relative to the current one.
#[test]
fn a_run_that_remembers_no_directory_resumes_where_it_was_made() {
    let workspace = Workspace::new();
    workspace.succeeds(&train("whole", ""));
    workspace.succeeds(&format!("{} --steps 4", train("r", "")));
    let config = workspace.read("r/config.toml");
    let old: String =
        config.lines().filter(|line| !line.starts_with("directory = ")).map(|line| line.to_owned() + "\n").collect();
    assert!(old.len() < config.len());
    workspace.write("r/config.toml", &old);
    workspace.succeeds("eval r");
    workspace.succeeds("resume r");
    let untimed = |run| outcome(&workspace, run).metrics;
    assert_eq!(untimed("r"), untimed("whole"));
    workspace.write("r/config.toml", &old);
    workspace.succeeds("train tiny.toml --run r --resume --set train.max_steps=9");
}

#[test]
fn resume_needs_only_the_run() {
    let workspace = Workspace::new();
    workspace.succeeds(&train("whole", "train.keep_checkpoints=9"));
    for (run, resume) in
        [("a", "resume a"), ("b", "train --resume b"), ("c", "train --resume --run c"), ("d", "train d --resume")]
    {
        let paused = workspace.succeeds(&format!("{} --steps 4", train(run, "train.keep_checkpoints=9"))).stdout;
        assert!(paused.contains(&format!("`tinymoe resume {run}`")), "{paused}");
        workspace.succeeds(resume);
        assert_same(&outcome(&workspace, run), &outcome(&workspace, "whole"), resume);
    }
    workspace.refuses("resume nowhere", 2, &["no run in nowhere"]);
    workspace.refuses("resume tiny.toml", 2, &["no run in tiny.toml"]);
    workspace.refuses("resume a --set train.seed=5", 2, &["train.seed"]);
    workspace.refuses("resume a --set train.batch_size=0", 2, &["--set train.batch_size=0"]);
}

#[test]
fn a_finished_run_is_left_as_it_is_and_says_how_to_go_on() {
    let workspace = Workspace::trained();
    let (before, config) = (outcome(&workspace, "r"), workspace.read("r/config.toml"));
    for arguments in [
        "resume r",
        "train tiny.toml --run r --resume",
        "resume r --set train.max_steps=4",
        "resume r --set train.keep_checkpoints=1 --set train.log_interval=7",
    ] {
        let done = workspace.succeeds(arguments).stdout;
        assert!(done.starts_with("finished after step 8 already"), "{arguments}: {done}");
        assert!(done.contains("tinymoe resume r --set train.max_steps="), "{arguments}: {done}");
        assert_eq!(workspace.read("r/config.toml"), config, "{arguments}");
        assert_same(&outcome(&workspace, "r"), &before, arguments);
    }
}

#[test]
fn another_length_says_what_the_learning_rate_does() {
    let workspace = Workspace::new();
    workspace.succeeds(&train("r", "optimizer.schedule=linear optimizer.learning_rate=0.01 optimizer.min_lr_ratio=0"));
    // Two steps of warm-up: 6 left of 8, the last at 1/6; then 10 of 12, of which 6 are done.
    let longer = workspace.succeeds("resume r --set train.max_steps=12").stderr;
    assert!(longer.contains("train.max_steps is 12 instead of 8"), "{longer}");
    assert!(longer.contains("from 1.67e-3 in step 8 to 4.00e-3 in step 9, 2.40 times that of step 8"), "{longer}");
    let records = workspace.read("r/metrics.jsonl");
    let rates: Vec<f64> = records
        .lines()
        .map(|line| serde_json::from_str::<Value>(line).unwrap())
        .filter(|line| line["split"] == "train")
        .map(|line| line["lr"].as_f64().unwrap())
        .collect();
    assert!((rates[7] - 0.01 / 6.0).abs() < 1e-9 && (rates[8] - 0.004).abs() < 1e-9, "{rates:?}");
    assert!(workspace.read("r/config.toml").contains("max_steps = 12"));
}

#[test]
fn what_only_looks_may_change_on_the_way() {
    let workspace = Workspace::new();
    workspace.succeeds(&train("whole", "train.keep_checkpoints=100"));
    workspace.succeeds(&format!("{} --steps 3", train("r", "train.keep_checkpoints=100")));
    let settings = [
        "train.keep_checkpoints=1",
        "train.log_interval=2",
        "train.eval_interval=1",
        "train.checkpoint_interval=2",
        "train.sample_tokens=0",
    ];
    let set: String = settings.iter().map(|setting| format!(" --set {setting}")).collect();
    workspace.succeeds(&format!("resume r{set}"));
    let weights = |run: &str| fs::read(workspace.path(run).join("checkpoints/latest/model.safetensors")).unwrap();
    assert!(weights("r") == weights("whole"));
    assert!(workspace.read("r/config.toml").contains("keep_checkpoints = 1"));
}

#[test]
fn changed_texts_are_refused_before_the_first_checkpoint_as_well() {
    let workspace = Workspace::new();
    let arguments = train("r", "train.checkpoint_interval=1000000 train.eval_interval=1000000 train.max_steps=1000000");
    let mut child = spawn(&workspace, &arguments);
    wait_for_metrics(&workspace, "r", &mut child, 1);
    child.kill().unwrap();
    child.wait().unwrap();
    assert_eq!(fs::read_dir(workspace.path("r/checkpoints")).unwrap().count(), 0);
    let text = workspace.read("talk.txt");
    workspace.write("talk.txt", format!("{text}one more line\n"));
    let before = workspace.read("r/config.toml");
    workspace.refuses("resume r --steps 1", 2, &["not what this run was trained on"]);
    workspace.refuses(&format!("{arguments} --resume --steps 1"), 2, &["not what this run was trained on"]);
    assert_eq!(workspace.read("r/config.toml"), before);
    workspace.write("talk.txt", text);
    workspace.succeeds("resume r --steps 1");
    // Without a checkpoint, what tells the texts must be readable.
    fs::remove_dir_all(workspace.path("r/checkpoints")).unwrap();
    workspace.write("r/run.json", "{");
    workspace.refuses("resume r --steps 1", 4, &["run.json is damaged"]);
}

/// Replaces the state of the run's newest checkpoint, under a manifest that is right.
fn forge(workspace: &Workspace, field: &str, value: Value) {
    use tinymoe::checkpoint;
    let checkpoints = workspace.path("r/checkpoints");
    let newest = checkpoints.join("step-000008");
    let files = checkpoint::load(&newest).unwrap();
    let mut state: Value = serde_json::from_slice(files.get("trainer_state.json").unwrap()).unwrap();
    state[field] = value;
    let names = fs::read_dir(&newest).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap());
    let names: Vec<String> = names.filter(|name| name != "MANIFEST.json").collect();
    let content = |name: &str| match name {
        "trainer_state.json" => serde_json::to_vec(&state).unwrap(),
        name => files.get(name).unwrap().to_vec(),
    };
    let forged: Vec<(&str, Vec<u8>)> = names.iter().map(|name| (name.as_str(), content(name))).collect();
    checkpoint::save(&checkpoints, 8, &forged).unwrap();
}

#[test]
fn a_state_that_contradicts_its_surroundings_is_refused() {
    for (field, value) in [
        ("step", Value::from(7)),
        ("step", Value::from(5_000_000)),
        ("best_step", Value::from(9)),
        ("due_step", Value::from(12)),
        ("seed", Value::from(99)),
        ("tokens", Value::from(3)),
    ] {
        let workspace = Workspace::trained();
        forge(&workspace, field, value);
        let config = workspace.read("r/config.toml");
        workspace.refuses("resume r --set train.max_steps=12", 4, &["trainer_state.json"]);
        assert_eq!(workspace.read("r/config.toml"), config, "{field}");
    }
}

#[test]
fn runs_are_listed_with_their_state_and_what_differs() {
    let workspace = Workspace::new();
    workspace.refuses("runs", 2, &["runs is not a directory"]);
    fs::create_dir_all(workspace.path("runs/no-run")).unwrap();
    assert_eq!(workspace.succeeds("runs").stdout, "no runs in runs\n");
    assert_eq!(workspace.succeeds("runs --json").stdout, "[]\n");

    workspace.succeeds(&train("runs/finished", ""));
    workspace.succeeds(&format!("{} --steps 4", train("runs/paused", "model.num_experts=2")));
    let still = "optimizer.learning_rate=1e-30 train.early_stopping_patience=1 train.eval_interval=1";
    workspace.succeeds(&train("runs/stopped", still));
    workspace.succeeds(&train("runs/broken", ""));
    common::flip_a_bit(&workspace.path("runs/broken/checkpoints/step-000008/model.safetensors"));
    workspace.succeeds(&train("runs/garbled", ""));
    workspace.write("runs/garbled/config.toml", "[model\n");
    fs::create_dir_all(workspace.path("runs/remains/checkpoints")).unwrap();
    workspace.succeeds(&format!("{} --steps 0", train("runs/new", "")));
    let mut child = spawn(&workspace, &train("runs/busy", "train.max_steps=1000000"));
    wait_for_metrics(&workspace, "runs/busy", &mut child, 3);
    let json: Vec<Value> = serde_json::from_str(&workspace.succeeds("runs --json").stdout).unwrap();
    let listed = workspace.succeeds("runs").stdout;
    child.kill().unwrap();
    child.wait().unwrap();

    let states: Vec<_> =
        json.iter().map(|run| (run["name"].as_str().unwrap(), run["state"].as_str().unwrap())).collect();
    assert_eq!(
        states,
        [
            ("broken", "damaged"),
            ("busy", "running"),
            ("finished", "finished"),
            ("garbled", "damaged"),
            ("new", "no_checkpoint"),
            ("paused", "paused"),
            ("remains", "damaged"),
            ("stopped", "stopped_early"),
        ]
    );
    let run = |name: &str| json.iter().find(|run| run["name"] == name).unwrap();
    let finished = run("finished");
    assert_eq!((finished["step"].as_u64(), finished["max_steps"].as_u64()), (Some(8), Some(8)));
    let evaluated: Value = serde_json::from_str(&workspace.succeeds("eval runs/finished --json").stdout).unwrap();
    for key in ["loss", "bits_per_byte", "ngram_bits_per_byte"] {
        let (listed, evaluated) = (finished[key].as_f64().unwrap(), evaluated[key].as_f64().unwrap());
        assert!((listed - evaluated).abs() < 1e-6, "{key}: {listed} and {evaluated}");
    }
    assert_eq!(finished["parameters"], facts(&workspace, "runs/finished")["parameters"]);
    assert!(finished["elapsed_s"].as_f64().unwrap() > 0.0);
    assert_eq!(finished["differences"]["model.num_experts"], Value::from(4));
    assert_eq!(run("paused")["differences"]["model.num_experts"], Value::from(2));
    assert!(run("paused")["differences"].get("model.hidden_size").is_none());
    assert!(run("broken")["problem"].as_str().unwrap().contains("model.safetensors"));
    assert!(run("remains")["problem"].as_str().unwrap().contains("config.toml"));

    let lines: Vec<&str> = listed.lines().collect();
    assert!(lines[0].starts_with("run ") && lines[0].ends_with("time"), "{listed}");
    assert!(
        listed.contains("finished  finished") && listed.contains("8/8") && listed.contains("num_experts=2"),
        "{listed}"
    );
    let one = workspace.succeeds("runs runs/paused").stdout;
    assert_eq!(one.lines().count(), 2, "{one}");
}
