//! Random configurations, each trained whole, and again stopped or killed on the way and resumed on another number of
//! threads, then sampled, evaluated, inspected, exported and read back: everything must come out the same, byte by byte.
//! `scripts/attack.sh` runs hundreds of them; by default there are a few.

mod common;

use common::run::{EVERY_STEP, assert_same, outcome, train};
use common::{Workspace, output};
use serde_json::Value;
use tinymoe::random::Stream;

/// Settings of which one of each line is drawn. Not all of them go together: the program says so, and that is tested, too.
const CHOICES: [&[&str]; 13] = [
    &[
        "model.num_experts=0",
        "model.num_experts=2",
        "model.num_experts=7 model.num_experts_per_tok=3",
        "model.num_experts=16",
        "model.num_experts_per_tok=1 router.norm_topk_prob=false",
        "model.num_experts_per_tok=4",
    ],
    &["", "router.scoring_func=sigmoid router.balance=bias", "router.balance=none", "router.noisy_gate=true"],
    &["", "", "router.capacity_factor=1.0", "router.capacity_factor=0.3"],
    &["", "model.n_shared_experts=1", "model.n_shared_experts=2 model.shared_expert_gate=true"],
    &["", "model.first_k_dense_replace=1", "model.num_hidden_layers=1", "model.num_hidden_layers=3"],
    &[
        "",
        "model.qk_norm=false",
        "model.qk_norm_across_heads=true",
        "model.qkv_bias=true",
        "model.num_key_value_heads=1",
    ],
    &["", "model.tie_word_embeddings=false"],
    &["", "", "model.memory_layers=[0] model.memory_slots=16"],
    &["", "optimizer.kind=muon", "optimizer.kind=muon optimizer.schedule=linear", "optimizer.max_grad_norm=0"],
    &[
        "",
        "model.hidden_dropout=0.2 model.attention_dropout=0.1 model.expert_dropout=0.1",
        "train.token_corruption=0.1",
    ],
    &["", "train.gradient_accumulation_steps=3", "train.batch_size=1", "train.batch_size=7"],
    &["", "train.precision=bf16", "train.recompute_fraction=0.5", "train.on_loss_spike=skip"],
    &["", "tokenizer.kind=chars", "tokenizer.kind=bpe tokenizer.vocab_size=280"],
];

fn number(name: &str, default: u64) -> u64 {
    std::env::var(name).ok().map_or(default, |text| text.parse().unwrap_or_else(|_| panic!("{name}={text}")))
}

/// Runs the program on some number of threads.
fn succeeds_on(workspace: &Workspace, threads: u64, arguments: &str) -> String {
    let threads = threads.to_string();
    let ran = output(workspace.command().args(["--threads", &threads]).args(arguments.split_whitespace()));
    assert_eq!(ran.code, 0, "{arguments}: {}", ran.stderr);
    ran.stdout
}

fn loss(json: &str) -> Value {
    let report: Value = serde_json::from_str(json).unwrap();
    assert!(report["loss"].is_number(), "{report}");
    report["loss"].clone()
}

/// Whether the settings go together and the run was put to all tests.
fn survives(seed: u64, case: u64) -> bool {
    let stream = Stream::new(seed, "attack", &[case]);
    let draw = |index: u64, count: usize| stream.bits(index) as usize % count;
    let settings: Vec<&str> = (0..).zip(CHOICES).map(|(index, choices)| choices[draw(index, choices.len())]).collect();
    let settings = format!("{EVERY_STEP} {}", settings.join(" "));
    let [first, second, third] = [100, 101, 102].map(|index| 1 + draw(index, 5) as u64);
    let workspace = Workspace::new();

    let command = train("whole", &settings);
    let whole = output(workspace.command().args(["--threads", &first.to_string()]).args(command.split_whitespace()));
    if whole.code == 2 {
        assert_eq!(whole.stderr.matches("error: ").count(), 1, "{settings}: {}", whole.stderr);
        assert!(!workspace.path("whole").exists(), "{settings}: refused, and left a run behind");
        return false;
    }
    assert_eq!(whole.code, 0, "seed {seed}, case {case}, {settings}: {}", whole.stderr);

    let what = format!("seed {seed}, case {case}, threads {first}, {second}, {third}: {settings}");
    if draw(103, 2) == 0 {
        succeeds_on(&workspace, second, &format!("{} --steps {}", train("r", &settings), 1 + draw(104, 5)));
    } else {
        // Killed before one of its system calls.
        let fault = format!("kill={}", 20 + draw(105, 150));
        let command = format!("--threads {second} {}", train("r", &settings));
        let mut killed = workspace.command();
        killed.args(command.split_whitespace()).env("TINYMOE_FAULT", fault).output().unwrap();
    }
    succeeds_on(&workspace, third, &format!("{} --resume", train("r", &settings)));
    assert_same(&outcome(&workspace, "r"), &outcome(&workspace, "whole"), &what);

    let sample = |threads| succeeds_on(&workspace, threads, "sample r --tokens 20 --seed 5");
    assert!(sample(first) == sample(second), "{what}: other samples");
    let eval =
        |threads, model| loss(&succeeds_on(&workspace, threads, &format!("eval {model} --data talk.txt --json")));
    let measured = eval(second, "whole");
    assert_eq!(eval(third, "r"), measured, "{what}");
    let inspect = |threads| succeeds_on(&workspace, threads, "inspect r --json --no-knockout");
    assert!(inspect(first) == inspect(third), "{what}: other reports");
    workspace.succeeds("export r --to hf exported");
    assert_eq!(eval(first, "exported"), measured, "{what}: an export computes something else");
    true
}

#[test]
fn random_configurations_come_out_the_same_however_they_are_run() {
    let (count, seed) = (number("ATTACK_CONFIGURATIONS", 12), number("ATTACK_SEED", 1));
    let survived = (0..count).filter(|&case| survives(seed, case)).count() as u64;
    println!(
        "seed {seed}: {survived} of {count} configurations trained and came out the same, the others were refused"
    );
    assert!(survived * 3 >= count, "only {survived} of {count} configurations go together");
}
