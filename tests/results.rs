//! What the program prints when all goes well: results on stdout, progress on stderr, JSON that programs can read.

mod common;

use common::{Workspace, output};
use serde_json::Value;
use tinymoe::routing::log::{Source, read_log};

fn json(text: &str) -> Value {
    serde_json::from_str(text).unwrap_or_else(|error| panic!("{error}: {text}"))
}

#[test]
fn help_lists_the_subcommands() {
    let workspace = Workspace::new();
    let help = workspace.succeeds("--help").stdout;
    for command in ["train", "sample", "inspect", "eval", "config"] {
        assert!(help.lines().any(|line| line.trim_start().starts_with(command)), "no {command} in {help}");
        assert!(workspace.succeeds(&format!("{command} --help")).stdout.contains("Usage: tinymoe"));
    }
    assert_eq!(workspace.succeeds("--version").stdout, format!("tinymoe {}\n", env!("CARGO_PKG_VERSION")));
}

#[test]
fn training_tells_progress_on_stderr_and_its_result_on_stdout() {
    let workspace = Workspace::new();
    let loud = workspace.succeeds("train tiny.toml --run loud");
    assert_eq!(loud.stderr.matches("step 8: ").count(), 2, "a training line and an evaluation: {}", loud.stderr);
    assert!(loud.stdout.starts_with("finished after step 8\nbest validation: step "), "{}", loud.stdout);
    assert!(loud.stdout.contains("n-gram baseline: ") && loud.stdout.contains("\nrun: loud\n"), "{}", loud.stdout);

    let quiet = workspace.succeeds("-q train tiny.toml --run quiet");
    assert_eq!(quiet.stderr, "");
    // But for how long and how fast.
    let untimed = |stdout: &str| -> Vec<String> {
        let lines = stdout.lines().filter(|line| !line.starts_with("time: "));
        lines.map(|line| line.split(" (mean of").next().unwrap_or_default().to_owned()).collect()
    };
    assert_eq!(untimed(&quiet.stdout), untimed(&loud.stdout.replace("loud", "quiet")));

    let verbose = workspace.succeeds("train tiny.toml --run verbose -v");
    assert_eq!(verbose.stderr.matches("sample: ").count(), 2, "{}", verbose.stderr);
}

#[test]
fn a_dry_run_reports_sizes_and_writes_nothing() {
    let workspace = Workspace::new();
    let dry = workspace.succeeds("train tiny.toml --dry-run --run r");
    assert!(dry.stdout.contains("parameters") && dry.stdout.contains("n-gram baseline: "), "{}", dry.stdout);
    assert!(!workspace.path("r").exists() && !workspace.path("runs").exists());
}

#[test]
fn without_a_name_a_run_is_called_after_its_configuration() {
    let workspace = Workspace::new();
    workspace.succeeds("train tiny.toml --steps 1");
    assert!(workspace.path("runs/tiny/checkpoints/step-000001/model.safetensors").is_file());
}

#[test]
fn colours_come_on_request_and_never_into_a_pipe_by_themselves() {
    let workspace = Workspace::trained();
    for arguments in ["inspect r", "sample r --tokens 5 --color-by 0"] {
        let coloured =
            |color: &str| workspace.succeeds(&format!("{arguments} --color {color}")).stdout.contains('\x1b');
        assert!(!coloured("auto") && !coloured("never") && coloured("always"), "{arguments}");
        let mut command = workspace.command();
        let plain = output(command.args(arguments.split(' ')).env("NO_COLOR", "1"));
        assert!(!plain.stdout.contains('\x1b'), "{arguments}");
    }
}

#[test]
fn the_same_seed_draws_the_same_text_and_greedy_sampling_needs_none() {
    let workspace = Workspace::trained();
    let text = |arguments: &str| workspace.succeeds(&format!("sample r --tokens 30 --prompt the {arguments}")).stdout;
    assert_eq!(text("--seed 5"), text("--seed 5"));
    assert_ne!(text("--seed 5"), text("--seed 6"));
    assert_eq!(text("--temperature 0 --seed 5"), text("--temperature 0 --seed 6"));
    assert_eq!(text("--top-k 1 --seed 5"), text("--temperature 0"));
    assert!(text("").starts_with("the"));
    // A checkpoint serves as well as its run, and the number of threads makes no difference.
    let checkpoint = workspace.succeeds("sample r/checkpoints/best --tokens 30 --prompt the --threads 1").stdout;
    assert_eq!(checkpoint, text("--threads 3"));
}

#[test]
fn samples_as_json_are_one_object_a_line() {
    let workspace = Workspace::trained();
    let arguments = "sample r --json --tokens 20 --prompt cat --seed 3";
    let samples: Vec<Value> = workspace.succeeds(&format!("{arguments} --count 3")).stdout.lines().map(json).collect();
    assert_eq!(samples.len(), 3);
    for (number, sample) in samples.iter().enumerate() {
        assert_eq!((&sample["sample"], &sample["prompt"]), (&Value::from(number), &Value::from("cat")));
        assert!(sample["tokens"].as_u64().unwrap() <= 20 && sample["mean_logprob"].as_f64().unwrap() < 0.0);
    }
    assert_ne!(samples[0]["text"], samples[1]["text"]);
    let alone = json(&workspace.succeeds(arguments).stdout);
    assert_eq!(alone["text"], samples[0]["text"], "a sample does not depend on how many are drawn beside it");

    let text = workspace.succeeds(&arguments.replace("--json", "--count 2")).stdout;
    assert!(text.contains("--- sample 1 ---\ncat") && text.contains("--- sample 2 ---\ncat"), "{text}");
}

#[test]
fn a_prompt_may_be_longer_than_the_context() {
    let workspace = Workspace::trained();
    let prompt = "a red cat said no to it\n".repeat(4);
    workspace.write("prompt.txt", &prompt);
    let text = workspace.succeeds("sample r --prompt-file prompt.txt --tokens 40").stdout;
    assert!(text.starts_with(&prompt), "{text}");
    assert!(text.len() > prompt.len() + 1);
    let empty = output(workspace.command().args(["sample", "r", "--prompt", "", "--tokens", "5"]));
    assert_eq!(empty.code, 0, "{}", empty.stderr);
    assert_eq!(workspace.succeeds("sample r --prompt cat --tokens 0").stdout, "cat\n");
}

#[test]
fn the_routing_log_has_a_line_for_every_token() {
    let workspace = Workspace::trained();
    let log = |arguments: &str| {
        workspace.succeeds(&format!("sample r --prompt mat --tokens 30 --routing-log log.jsonl {arguments}"));
        read_log(&workspace.path("log.jsonl")).unwrap()
    };
    let (header, entries) = log("--top-k 40");
    assert_eq!((&header.layers[..], header.num_experts, header.experts_per_token), (&[0, 1][..], 4, 2));
    assert_eq!(header.tokenizer_sha256.len(), 64);
    assert_eq!((&header.sampling["top_k"], &header.sampling["seed"]), (&Value::from(40), &Value::from(1337)));
    assert!(header.model["parameters"].as_u64() > header.model["active_parameters"].as_u64());

    assert_eq!(entries[..3].iter().map(|entry| entry.text.as_str()).collect::<String>(), "mat");
    for (index, entry) in entries.iter().enumerate() {
        assert_eq!(entry.index, index);
        assert_eq!(entry.source, if index < 3 { Source::Prompt } else { Source::Generated });
        assert_eq!(entry.logprob.is_none(), index == 0, "only the first token was not predicted");
        assert!(entry.logprob.is_none_or(|logprob| logprob < 0.0));
        assert_eq!(entry.sample, None);
        for (experts, gates) in entry.experts.iter().zip(&entry.gates) {
            assert_ne!(experts[0], experts[1]);
            assert!(gates[0] >= gates[1] && (gates.iter().sum::<f32>() - 1.0).abs() < 1e-5, "{gates:?}");
        }
    }
    let (_, of_two) = log("--count 2");
    for sample in [0, 1] {
        let indices: Vec<usize> =
            of_two.iter().filter(|entry| entry.sample == Some(sample)).map(|entry| entry.index).collect();
        assert_eq!(indices, (0..indices.len()).collect::<Vec<_>>());
        assert!(indices.len() > 3);
    }

    workspace.succeeds("train tiny.toml --run dense --set model.num_experts=0");
    workspace.succeeds("sample dense --prompt mat --tokens 3 --routing-log log.jsonl");
    let (header, entries) = read_log(&workspace.path("log.jsonl")).unwrap();
    assert!(header.layers.is_empty() && entries.iter().all(|entry| entry.experts.is_empty()));
}

#[test]
fn evaluation_agrees_with_what_training_measured() {
    let workspace = Workspace::trained();
    let report = json(&workspace.succeeds("eval r --json").stdout);
    let metrics = workspace.read("r/metrics.jsonl");
    let measured = metrics.lines().map(json).rfind(|line| line["split"] == "val").unwrap();
    for key in ["loss", "bits_per_byte", "ngram_bits_per_byte"] {
        assert_eq!(report[key], measured[key], "{key}");
    }
    assert_eq!(report["context"], 16);
    assert!((report["perplexity"].as_f64().unwrap().ln() - report["loss"].as_f64().unwrap()).abs() < 1e-9);

    let other = json(&workspace.succeeds("eval r --json --data talk.txt").stdout);
    assert!(other["tokens"].as_u64() > report["tokens"].as_u64() && other.get("ngram_bits_per_byte").is_none());
    let text = workspace.succeeds("eval r").stdout;
    assert!(text.contains(&format!("{:.4} nats/token", report["loss"].as_f64().unwrap())), "{text}");
}

#[test]
fn every_line_of_metrics_has_the_fields_that_readers_expect() {
    let workspace = Workspace::trained();
    let metrics = workspace.read("r/metrics.jsonl");
    let lines: Vec<Value> = metrics.lines().map(json).collect();
    assert_eq!(lines.len(), 8 + 2);
    for line in &lines {
        let split = line["split"].as_str().unwrap();
        let own = if split == "train" { ["grad_norm", "tokens_per_s"] } else { ["ngram_bits_per_byte"; 2] };
        for key in ["step", "tokens", "elapsed_s", "loss", "bits_per_byte", "balance_loss", "z_loss", "lr"] {
            assert!(line[key].is_number(), "{key} of {line}");
        }
        assert!(own.iter().all(|key| line[key].is_number()), "{line}");
        assert_eq!(line["expert_load"].as_array().unwrap().len(), 2);
        assert_eq!(line["router_entropy"].as_array().unwrap().len(), 2);
        assert_eq!(line["tokens"].as_u64().unwrap(), line["step"].as_u64().unwrap() * 4 * 16);
    }
}

#[test]
fn the_printed_configurations_can_be_fed_back() {
    let workspace = Workspace::new();
    workspace.write("defaults.toml", workspace.succeeds("config --defaults").stdout);
    workspace
        .write("resolved.toml", workspace.succeeds("config check defaults.toml --set data.sources=talk.txt").stdout);
    let again = workspace.succeeds("config check resolved.toml").stdout;
    assert_eq!(again, workspace.read("resolved.toml"));
    workspace.succeeds("train tiny.toml --run r");
    assert_eq!(workspace.succeeds("config check r/config.toml").stdout, workspace.read("r/config.toml"));
    workspace.succeeds("train r/config.toml --run r --resume");
}
