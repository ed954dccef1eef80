//! `tinymoe inspect` as a whole: the report as JSON, text and page, the routing log, knockouts and comparisons.

mod common;

use common::Workspace;
use serde_json::Value;
use std::fs;
use tinymoe::routing::log::read_log;

fn json(text: &str) -> Value {
    serde_json::from_str(text).unwrap_or_else(|error| panic!("{error}: {text}"))
}

fn array(value: &Value) -> &[Value] {
    value.as_array().unwrap_or_else(|| panic!("no array: {value}"))
}

fn numbers(value: &Value) -> Vec<f64> {
    array(value).iter().map(|number| number.as_f64().unwrap_or_else(|| panic!("no numbers: {value}"))).collect()
}

#[track_caller]
fn sums_to(value: &Value, sum: f64) {
    assert!((numbers(value).iter().sum::<f64>() - sum).abs() < 1e-9, "{value} does not sum to {sum}");
}

#[test]
fn the_report_as_json_agrees_with_eval_and_its_shares_add_up() {
    let workspace = Workspace::trained();
    workspace.write("other.txt", "a cat sat on the mat\n".repeat(20));
    let arguments = "--json --data talk.txt=talk --data other.txt=other";
    let report = json(&workspace.succeeds(&format!("inspect r {arguments}")).stdout);
    let names: Vec<_> = array(&report["domains"]).iter().map(|domain| &domain["name"]).collect();
    assert_eq!(names, ["other", "talk"]);
    let layers = array(&report["layers"]);
    assert_eq!(layers.len(), 2);
    for layer in layers {
        sums_to(&layer["load"]["share"], 1.0);
        let rows = [&layer["domains"]["share"], &layer["classes"]["input"], &layer["coactivation"]];
        rows.iter().flat_map(|rows| array(rows)).for_each(|row| sums_to(row, 2.0));
        assert!(numbers(&layer["gate"]["mean_by_rank"])[0] >= 0.5, "two gates that sum to 1: {}", layer["gate"]);
    }
    for row in array(&report["transitions"][0]["share"]).iter().filter(|row| numbers(row).iter().any(|&x| x > 0.0)) {
        sums_to(row, 2.0);
    }
    let by_class = array(&report["classes"]).iter().map(|class| class["loss_share"].clone()).collect();
    sums_to(&Value::Array(by_class), 1.0);

    // The same text evaluated: no other loss, and no other protocol.
    let evaluation = json(&workspace.succeeds("eval r --json --data talk.txt --data other.txt").stdout);
    for key in ["loss", "bits_per_byte", "tokens"] {
        let (ours, theirs) = (report["text"][key].as_f64().unwrap(), evaluation[key].as_f64().unwrap());
        assert!((ours - theirs).abs() < 1e-9, "{key}: {ours} and {theirs}");
    }
    assert_eq!(report["training"]["val"]["step"], json("[4, 8]"));
    assert_eq!(report["saturation"]["checkpoints"][0]["step"], 4);
}

#[test]
fn the_summary_is_a_screen_in_plain_words() {
    let workspace = Workspace::trained();
    for arguments in ["inspect r --no-knockout", "inspect r --knockout", "inspect r", "inspect r --color always"] {
        let text = workspace.succeeds(arguments).stdout;
        assert!(text.contains("2 MoE layers, 2 of 4 experts per token"), "{text}");
        assert!(text.contains("Most notable") && text.contains("1. "), "{text}");
        assert!(text.lines().count() < 50, "{text}");
        assert!(text.contains('\x1b') == arguments.contains("always"));
        if !arguments.contains("always") {
            assert!(text.lines().all(|line| line.chars().count() <= 100), "{text}");
        }
        // Of a text so short they are measured unasked.
        assert_eq!(text.contains("Without an expert"), !arguments.contains("no-knockout"), "{text}");
    }
    // Also of many experts.
    workspace.succeeds("train tiny.toml --run wide --set model.num_experts=64 --set model.num_experts_per_tok=4");
    let text = workspace.succeeds("inspect wide").stdout;
    assert!(text.lines().all(|line| line.chars().count() <= 100) && text.contains(" more\n"), "{text}");
    workspace.refuses("inspect r --knockout --no-knockout", 2, &["--no-knockout"]);
    let report = json(&workspace.succeeds("inspect r --json --no-knockout").stdout);
    assert!(report["layers"][0]["importance"].get("knockout").is_none());
}

#[test]
fn the_page_is_one_file_that_holds_the_report_and_cannot_be_broken_by_its_text() {
    let workspace = Workspace::trained();
    workspace.write("odd.txt", "the cat said </script><script>no</script> <!-- & \u{2028} \"it\"\n".repeat(30));
    let result = workspace.succeeds("inspect r --knockout --data odd.txt --out pages/report");
    assert!(result.stderr.contains("pages/report/index.html"), "{}", result.stderr);
    let page = workspace.read("pages/report/index.html");
    for placeholder in ["/*STYLE*/", "/*SCRIPT*/", "/*DATA*/"] {
        assert!(!page.contains(placeholder), "{placeholder} is left");
    }
    for outside in ["src=\"http", "href=\"http", "@import", "url(http"] {
        assert!(!page.contains(outside), "{outside}");
    }
    let start = page.find("id=\"data\">").unwrap() + "id=\"data\">".len();
    let data = json(&page[start..start + page[start..].find("</script>").unwrap()]);
    assert_eq!(data["format"], 1);
    let text: String = array(&data["texts"][0]["tokens"]).iter().map(|piece| piece.as_str().unwrap()).collect();
    assert!(text.starts_with("the cat said </script><script>no</script> <!-- & \u{2028} \"it\"\n"), "{text:?}");
    let choices = array(&data["texts"][0]["tokens"]).len() * 2 * 2;
    assert_eq!(
        (array(&data["texts"][0]["experts"]).len(), array(&data["texts"][0]["gates"]).len()),
        (choices, choices)
    );
    assert!(array(&data["layers"]).iter().all(|layer| layer["importance"]["knockout"]["zeroed"]["delta"].is_array()));
    assert!(page.len() < 5_000_000);
}

#[test]
fn the_routing_log_of_a_text_holds_its_tokens_in_order_with_their_probabilities() {
    let workspace = Workspace::trained();
    workspace.write("a.txt", "the cat sat on the mat\nand it said no\n");
    workspace.write("b.txt", "no red mat\n");
    let report = json(&workspace.succeeds("inspect r --data a.txt --data b.txt --routing-log log.jsonl --json").stdout);
    let (header, entries) = read_log(&workspace.path("log.jsonl")).unwrap();
    assert_eq!((header.layers.as_slice(), header.num_experts, header.experts_per_token), (&[0, 1][..], 4, 2));
    assert_eq!(entries.len() as u64, report["text"]["tokens"].as_u64().unwrap());
    for (sample, name) in ["a.txt", "b.txt"].into_iter().enumerate() {
        let of_text: Vec<_> = entries.iter().filter(|entry| entry.sample == Some(sample)).collect();
        let text: String = of_text.iter().map(|entry| entry.text.as_str()).collect();
        assert_eq!(text.trim_end_matches("<|endoftext|>"), workspace.read(name), "{name}");
        assert!(of_text.iter().enumerate().all(|(index, entry)| entry.index == index), "{name}");
    }
    // Every token but the first and the one after the last input has its loss in the log.
    assert_eq!(entries[0].logprob, None);
    assert!(entries[1..].iter().all(|entry| entry.logprob.is_some_and(|logprob| logprob < 0.0)));
    workspace.refuses("inspect r --data a.txt --routing-log no/such/log.jsonl", 1, &["no/such/log.jsonl"]);
}

#[test]
fn a_memory_is_reported_and_logged_by_inspection_and_sampling() {
    let workspace = Workspace::new();
    let settings = "--set model.memory_layers=[1] --set model.memory_slots=500 --set model.memory_dim=4";
    for (run, more) in [("m", ""), ("dense", "--set model.num_experts=0")] {
        workspace.succeeds(&format!("train tiny.toml --run {run} {settings} {more}"));
        let text = workspace.succeeds(&format!("inspect {run}")).stdout;
        assert!(text.contains("Memory of n-grams of 2, 3 tokens") && text.contains("    1  0."), "{text}");
        assert!(text.lines().all(|line| line.chars().count() <= 100), "{text}");
    }
    let report = json(&workspace.succeeds("inspect m --json --routing-log log.jsonl --knockout").stdout);
    let memory = &report["memories"][0];
    assert_eq!((&memory["layer"], &memory["ngrams"], &memory["slots"]), (&json("1"), &json("[2, 3]"), &json("500")));

    // The log has what the report was made from.
    let (header, entries) = read_log(&workspace.path("log.jsonl")).unwrap();
    let header = header.memory.unwrap();
    assert_eq!((header.layers, header.ngrams, header.slots, header.dim), (vec![1], vec![2, 3], 500, 4));
    let gates = entries.iter().map(|entry| f64::from(entry.memory[0].gate));
    assert!((gates.sum::<f64>() / entries.len() as f64 - memory["mean_gate"].as_f64().unwrap()).abs() < 1e-6);
    for table in 0..2 {
        let rows: std::collections::BTreeSet<u32> = entries.iter().map(|entry| entry.memory[0].rows[table]).collect();
        assert_eq!(rows.len() as f64 / 500.0, memory["rows_in_use"][table].as_f64().unwrap());
    }
    for ngram in array(&memory["widest"]) {
        assert_eq!(array(&ngram["ids"]).len(), 3, "{ngram}");
    }

    // Decoding reads the same rows as the pass over the whole text.
    workspace.succeeds("sample m --prompt-file talk.txt --tokens 3 --count 2 --routing-log sample.jsonl");
    let (_, sampled) = read_log(&workspace.path("sample.jsonl")).unwrap();
    workspace.succeeds("inspect m --data talk.txt --routing-log whole.jsonl");
    let (_, whole) = read_log(&workspace.path("whole.jsonl")).unwrap();
    let first: Vec<_> = sampled.iter().filter(|entry| entry.sample == Some(0)).take(8).collect();
    for (ours, theirs) in first.into_iter().zip(&whole) {
        assert_eq!((ours.id, &ours.memory[0].rows), (theirs.id, &theirs.memory[0].rows));
        assert!((ours.memory[0].gate - theirs.memory[0].gate).abs() < 1e-4);
    }
    // A model of our own architecture is exported as such, with the reason; llama.cpp has none.
    let exported = workspace.succeeds("export m --to hf out");
    assert!(exported.stderr.contains("model.memory_layers"), "{}", exported.stderr);
    workspace.refuses("export m --to gguf out.gguf", 1, &["model.memory_layers"]);
}

#[test]
fn a_run_compared_with_itself_matches_every_expert_with_itself() {
    let workspace = Workspace::trained();
    workspace.succeeds("train tiny.toml --run other --set train.seed=2");
    let same = json(&workspace.succeeds("inspect r --compare r --json").stdout);
    for layer in array(&same["comparisons"][0]["layers"]) {
        for pair in array(&layer["pairs"]) {
            assert_eq!((&pair["a"], pair["similarity"].as_f64()), (&pair["b"], Some(1.0)), "{layer}");
        }
    }
    let text = workspace.succeeds("inspect --compare r other").stdout;
    assert!(text.contains("A  r/checkpoints") && text.contains("B  other/checkpoints"), "{text}");
    assert!(text.contains("layer 1: ") && text.contains("0="), "{text}");
    // Another number of experts and another tokenizer.
    workspace.succeeds("train tiny.toml --run wide --set model.num_experts=6 --set tokenizer.kind=chars");
    let wide = json(&workspace.succeeds("inspect r --compare wide other --json").stdout);
    assert_eq!(array(&wide["comparisons"]).len(), 2);
    let pairs = array(&wide["comparisons"][0]["layers"][0]["pairs"]);
    assert_eq!((pairs.len(), pairs.iter().filter(|pair| pair["a"].is_null()).count()), (6, 2));
    workspace.refuses("inspect --compare r", 2, &["--compare"]);
    workspace.refuses("inspect", 2, &["<RUN>"]);
}

#[test]
fn dense_models_and_single_choices_and_lone_checkpoints_are_inspected_too() {
    let workspace = Workspace::new();
    workspace.succeeds("train tiny.toml --run dense --set model.num_experts=0");
    assert!(workspace.succeeds("inspect dense --knockout --out p").stdout.contains("no MoE layers"));
    assert_eq!(json(&workspace.succeeds("inspect dense --json --knockout").stdout)["layers"], json("[]"));
    let one = "--set model.num_experts_per_tok=1 --set router.norm_topk_prob=false";
    workspace.succeeds(&format!("train tiny.toml --run one {one}"));
    let report = json(&workspace.succeeds("inspect one --json --knockout").stdout);
    assert!(report["layers"][0].get("coactivation").is_none());
    assert!(numbers(&report["layers"][0]["importance"]["knockout"]["renormalised"]["delta"]).len() == 4);
    let checkpoint = fs::canonicalize(workspace.path("one/checkpoints/best")).unwrap();
    fs::rename(checkpoint, workspace.path("alone")).unwrap();
    workspace.refuses("inspect alone", 2, &["--data"]);
    let report = json(&workspace.succeeds("inspect alone --json --data talk.txt").stdout);
    assert!(report.get("training").is_none() && report.get("saturation").is_none());
}

fn last_line(workspace: &Workspace, run: &str, split: &str) -> Value {
    let metrics = workspace.read(&format!("{run}/metrics.jsonl"));
    metrics.lines().rev().map(json).find(|line| line["split"] == split).unwrap()
}

/// A tokenizer.json that knows a few letters and has one token for all others.
const FEW_LETTERS: &str = r#"{"model": {"type": "BPE", "unk_token": "<unk>", "merges": [], "vocab":
    {"<unk>": 0, "a": 1, "t": 2, " ": 3, "\n": 4, "e": 5}}, "decoder": {"type": "Fuse"}}"#;

#[test]
fn characters_that_a_tokenizer_does_not_know_are_counted_named_and_paid_for() {
    let workspace = Workspace::new();
    // The validation split, the last tenth, has letters that the training split does not.
    let (english, greek) = ("the cat sat on a red mat\n".repeat(60), "ο γάτος and the cat\n".repeat(6));
    workspace.write("mixed.txt", english + &greek);
    workspace.write("few.json", FEW_LETTERS);
    for (run, settings) in
        [("chars", "--set tokenizer.kind=chars"), ("few", "--set tokenizer.kind=file --set tokenizer.path=few.json")]
    {
        let arguments = format!("tiny.toml --set data.sources=[\"mixed.txt\"] --set train.max_steps=40 {settings}");
        let training = workspace.succeeds(&format!("train {arguments} --run {run}"));
        assert!(
            training.stderr.contains("unknown characters: ") && training.stderr.contains("γ 6"),
            "{}",
            training.stderr
        );
        assert!(workspace.succeeds(&format!("train {arguments} --dry-run")).stdout.contains("γ 6"));

        let evaluation = json(&workspace.succeeds(&format!("eval {run} --json")).stdout);
        let of = |key: &str| evaluation[key].as_f64().unwrap_or_else(|| panic!("no {key}: {evaluation}"));
        assert!(of("unknown_tokens") >= 35.0 && of("unknown_bytes") >= 70.0, "{evaluation}");
        assert!((of("unknown_share") - of("unknown_tokens") / of("tokens")).abs() < 1e-12);
        // The loss is the cross-entropy; the bytes of unknown characters are paid for besides.
        let bits = of("loss") * of("tokens") / std::f64::consts::LN_2 + 8.0 * of("unknown_bytes");
        assert!((of("bits_per_byte") - bits / of("bytes")).abs() < 1e-9, "{evaluation}");
        assert!(of("bits_per_byte") > of("ngram_bits_per_byte"), "{evaluation}");
        let line = last_line(&workspace, run, "val");
        assert_eq!(
            (&line["unknown_share"], &line["bits_per_byte"]),
            (&evaluation["unknown_share"], &evaluation["bits_per_byte"])
        );
        let shown = workspace.succeeds(&format!("eval {run}")).stdout;
        assert!(shown.contains("does not know: ") && shown.contains("γ 6"), "{shown}");

        let report = json(&workspace.succeeds(&format!("inspect {run} --json")).stdout);
        for key in ["bits_per_byte", "unknown_tokens", "unknown_share"] {
            assert_eq!(report["text"][key], evaluation[key], "{key}");
        }
        let shown = workspace.succeeds(&format!("inspect {run}")).stdout;
        assert!(shown.contains("γ 6") && shown.lines().all(|line| line.chars().count() <= 100), "{shown}");
    }
    // Of the training split, too: its letters are unknown to the second, and a step's bits pay for them.
    let line = last_line(&workspace, "few", "train");
    assert!(line["unknown_share"].as_f64().unwrap() > 0.2 && line["bits_per_byte"].as_f64().unwrap() > 3.0, "{line}");
    assert!(last_line(&workspace, "chars", "train").get("unknown_share").is_none());
    // A tokenizer that knows all bytes has nothing to say of it.
    workspace.succeeds("train tiny.toml --run bytes --set data.sources=[\"mixed.txt\"]");
    assert!(last_line(&workspace, "bytes", "val").get("unknown_share").is_none());
    assert!(!workspace.succeeds("eval bytes").stdout.contains("unknown"));
}

#[test]
fn dropped_choices_are_in_the_metrics_and_many_are_warned_of() {
    let workspace = Workspace::new();
    let training = workspace.succeeds("train tiny.toml --run tight --set router.capacity_factor=0.25");
    // An expert takes a quarter of an even share at most.
    let share = last_line(&workspace, "tight", "train")["dropped_share"].as_f64().unwrap();
    assert!((0.75..1.0).contains(&share), "{share}");
    assert!(
        training.stderr.contains("of the choices were dropped")
            && training.stderr.contains("router.capacity_factor = 0.25")
    );
    let report = json(&workspace.succeeds("inspect tight --json").stdout);
    assert_eq!(numbers(&report["training"]["train"]["dropped_share"]).last(), Some(&share));
    assert!(workspace.succeeds("inspect tight").stdout.contains("in training "));
    // Room for all: nothing is dropped, and nothing is said.
    let training = workspace.succeeds("train tiny.toml --run wide --set router.capacity_factor=4.0");
    assert_eq!(last_line(&workspace, "wide", "train")["dropped_share"], json("0.0"));
    assert!(!training.stderr.contains("dropped because"), "{}", training.stderr);
    workspace.succeeds("train tiny.toml --run dropless");
    assert!(last_line(&workspace, "dropless", "train").get("dropped_share").is_none());
}

#[test]
fn shorter_windows_than_the_models_are_evaluated_and_inspected_alike() {
    let workspace = Workspace::trained();
    let eval = |context: &str| json(&workspace.succeeds(&format!("eval r --json {context}")).stdout);
    let (default, whole, short) = (eval(""), eval("--context 16"), eval("--context 5"));
    assert_eq!(default, whole);
    assert_eq!((&short["context"], &short["tokens"]), (&json("5"), &default["tokens"]));
    assert_ne!(short["loss"], default["loss"]);
    let report = json(&workspace.succeeds("inspect r --json --context 5 --knockout").stdout);
    assert!((report["text"]["loss"].as_f64().unwrap() - short["loss"].as_f64().unwrap()).abs() < 1e-9);
    assert_eq!((&report["text"]["context"], &report["model"]["context"]), (&json("5"), &json("16")));
    for command in ["eval r --context 17", "inspect r --context 0"] {
        workspace.refuses(command, 2, &["--context", "16"]);
    }
}

#[test]
fn losses_stand_beside_the_experts_that_predicted_them_and_experts_are_named_by_what_they_serve() {
    let workspace = Workspace::trained();
    let report = json(&workspace.succeeds("inspect r --json --no-knockout").stdout);
    let text = workspace.succeeds("inspect r --no-knockout").stdout;
    let tokens = report["text"]["tokens"].as_f64().unwrap();
    for (index, class) in array(&report["classes"]).iter().enumerate().filter(|(_, class)| !class["loss"].is_null()) {
        let name = class["name"].as_str().unwrap();
        let starts = |line: &&str| line.strip_prefix(name).is_some_and(|rest| rest.starts_with("  "));
        let line = text.lines().find(starts).unwrap_or_else(|| panic!("no {name} in {text}"));
        // Tokens, loss and experts are all those of the positions that predict the kind.
        let share = format!("{:.1}%", 100.0 * class["targets"].as_f64().unwrap() / tokens);
        let first = numbers(&report["layers"][0]["classes"]["target"][index]);
        let (best, most) = first.iter().enumerate().max_by(|a, b| a.1.total_cmp(b.1)).unwrap();
        assert!(line.contains(&share) && line.contains(&format!("0:{best} {:.0}%", 100.0 * most)), "{line}");
    }
    let served = |layer: &Value, expert: usize| {
        let of = |(class, row): (&Value, &Value)| class["tokens"].as_f64().unwrap() * numbers(row)[expert];
        array(&report["classes"]).iter().zip(array(&layer["classes"]["input"])).map(of).collect::<Vec<f64>>()
    };
    for layer in array(&report["layers"]) {
        for (expert, name) in array(&layer["names"]).iter().enumerate() {
            let (served, share) = (served(layer, expert), name["mostly_share"].as_f64().unwrap());
            let most = served.iter().copied().fold(0.0, f64::max);
            assert!((share - most / served.iter().sum::<f64>()).abs() < 1e-9, "{name} of {served:?}");
            let class = served.iter().position(|&count| count == most).unwrap();
            assert_eq!(name["mostly"], report["classes"][class]["name"]);
            assert!(text.contains(&format!("{} {:.0}%", name["mostly"].as_str().unwrap(), 100.0 * share)), "{text}");
        }
    }
    let bits = report["significance"]["bits"].as_f64().unwrap();
    let tests = report["significance"]["tests"].as_f64().unwrap();
    assert!((bits - (tests / 0.01).log2()).abs() < 1e-9 && tests > 50.0);
    assert!(array(&report["facts"]).iter().all(|fact| fact["evidence"].as_f64().unwrap() >= bits), "{report}");
}

#[test]
fn where_every_token_has_all_experts_nothing_is_said_of_choices() {
    let workspace = Workspace::new();
    workspace.succeeds("train tiny.toml --run all --set model.num_experts_per_tok=4");
    workspace.succeeds(
        "train tiny.toml --run single --set model.num_experts=1 --set model.num_experts_per_tok=1 \
         --set router.norm_topk_prob=false",
    );
    let report = json(&workspace.succeeds("inspect all --json").stdout);
    for layer in array(&report["layers"]) {
        for key in ["close", "margin_mean", "margin_quantiles"] {
            assert!(layer["gate"].get(key).is_none(), "{key}");
        }
        assert!(layer["domains"]["explained"].is_null() && layer["classes"]["explained"].is_null());
        assert!(array(&layer["labels"]).iter().all(|label| label == ""), "{}", layer["labels"]);
    }
    let of_choices =
        |fact: &Value| ["class", "token", "domain", "load"].iter().any(|measure| fact["measure"] == *measure);
    assert!(!array(&report["facts"]).iter().any(of_choices), "{}", report["facts"]);
    let text = workspace.succeeds("inspect all").stdout;
    for absent in ["busiest", "close", "100%", "The experts: "] {
        assert!(!text.contains(absent), "{absent} in {text}");
    }
    assert!(text.contains("effective experts") && text.contains("Where the loss is"), "{text}");
    let text = workspace.succeeds("inspect single").stdout;
    assert!(text.contains("only expert") && !text.contains("effective experts"), "{text}");
    workspace.succeeds("inspect single --json --out p");
}

#[test]
fn every_document_of_a_text_can_be_looked_at() {
    let workspace = Workspace::trained();
    for name in ["a.txt", "b.txt", "c.txt"] {
        workspace.write(name, format!("{name}: the cat sat on a red mat\n").repeat(9));
    }
    let report = json(&workspace.succeeds("inspect r --json --data a.txt --data b.txt=x --data c.txt").stdout);
    assert_eq!(report["text"]["documents"], json("3"));
    let texts = array(&report["texts"]);
    let names: Vec<_> = texts.iter().map(|text| text["name"].as_str().unwrap()).collect();
    assert_eq!(names, ["a.txt", "b.txt", "c.txt"]);
    assert_eq!(texts[1]["document_tokens"].as_u64().unwrap() as usize, array(&texts[1]["tokens"]).len());
}
