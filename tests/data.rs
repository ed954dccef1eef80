//! `tinymoe data`, and how a run takes what it reads: bad files, copies, its own outputs, short documents, the cache.

mod common;

use common::run::{assert_same, outcome, train};
use common::{Workspace, output};
use serde_json::Value;
use std::fs;
use std::time::{Duration, SystemTime};
use tinymoe::config::Config;
use tinymoe::dataset::IdArray;
use tinymoe::dataset::split::SplitRule;
use tinymoe::tokenizer::Tokenizer;
use tinymoe::train::prepare::Prepared;

fn json(workspace: &Workspace, arguments: &str) -> Value {
    serde_json::from_str(&workspace.succeeds(arguments).stdout).unwrap()
}

/// A folder `talks` of ten talks, each in the format of `write`.
fn talks(workspace: &Workspace, extension: &str, write: impl Fn(usize) -> String) {
    fs::create_dir_all(workspace.path("talks")).unwrap();
    for talk in 0..10 {
        workspace.write(&format!("talks/{talk}.{extension}"), write(talk));
    }
}

fn lines(talk: usize) -> String {
    (0..80).map(|line| format!("The talk {talk} has words in line {line}.\n")).collect()
}

/// What Whisper writes for these lines, in all its formats.
fn whisper(workspace: &Workspace, name: &str, lines: &[&str]) {
    fs::create_dir_all(workspace.path("out")).unwrap();
    let clock = |second: usize, point: char| format!("00:00:{second:02}{point}000");
    let cue = |index: usize, point| format!("{} --> {}", clock(2 * index, point), clock(2 * index + 2, point));
    let numbered = || lines.iter().enumerate();
    let srt: String = numbered().map(|(i, line)| format!("{}\n{}\n{line}\n\n", i + 1, cue(i, ','))).collect();
    let vtt: String = numbered().map(|(i, line)| format!("{}\n{line}\n\n", cue(i, '.'))).collect();
    let tsv: String = numbered().map(|(i, line)| format!("{}\t{}\t{line}\n", 2000 * i, 2000 * i + 2000)).collect();
    let segments: Vec<Value> = numbered()
        .map(|(i, line)| serde_json::json!({"id": i, "start": 2.0 * i as f64, "end": 2.0 * i as f64 + 2.0, "text": format!(" {line}")}))
        .collect();
    let text: String = lines.iter().map(|line| format!(" {line}")).collect();
    workspace.write(&format!("out/{name}.txt"), lines.join("\n") + "\n");
    workspace.write(&format!("out/{name}.srt"), srt);
    workspace.write(&format!("out/{name}.vtt"), format!("WEBVTT\n\n{vtt}"));
    workspace.write(&format!("out/{name}.tsv"), format!("start\tend\ttext\n{tsv}"));
    workspace.write(&format!("out/{name}.json"), serde_json::json!({"text": text, "segments": segments}).to_string());
}

const TALK: [&str; 4] =
    ["The kettle takes four minutes.", "So we talk about bees.", "A hive holds ten thousand.", "Most are sisters."];

#[test]
fn the_receipt_has_a_line_for_each_file_and_totals_for_each_domain() {
    let workspace = Workspace::new();
    fs::create_dir(workspace.path("pond")).unwrap();
    workspace.write("pond/a.md", "**Ines:** Shall we start?\n\n**Tomas:** I put the bubbler in.\n");
    workspace.write("pond/rows.jsonl", "{\"text\": \"One row.\"}\n{\"text\": \"\"}\n{\"text\": \"Another row.\"}\n");
    let receipt = json(&workspace, "data pond talk.txt=verse --json --show 1");
    let files = receipt["files"].as_array().unwrap();
    assert_eq!(files.len(), 3);
    assert_eq!(
        (&files[0]["name"], &files[0]["format"], &files[0]["domain"], &files[0]["turns"]),
        (&"pond/a.md".into(), &"Markdown".into(), &"pond".into(), &2.into())
    );
    assert_eq!(files[0]["speakers"], serde_json::json!(["Ines", "Tomas"]));
    assert_eq!(files[0]["first_lines"], serde_json::json!(["Ines: Shall we start?"]));
    let read = "Ines: Shall we start?\nTomas: I put the bubbler in.\n";
    let whole = workspace.read("pond/a.md").len();
    assert_eq!((&files[0]["bytes"], &files[0]["dropped_bytes"]), (&read.len().into(), &(whole - read.len()).into()));
    assert_eq!((&files[1]["documents"], &files[1]["skipped_rows"]), (&2.into(), &1.into()));
    assert_eq!(receipt["skipped_rows"][0]["place"], "pond/rows.jsonl:2");
    assert_eq!(files[2]["domain"], "verse");
    assert_eq!(receipt["domains"]["pond"]["documents"], 3);
    assert_eq!(receipt["domains"]["verse"]["bytes"], workspace.read("talk.txt").len());
    assert_eq!(receipt["total"]["documents"], 4);

    let shown = workspace.succeeds("data pond talk.txt=verse --show 1").stdout;
    assert!(shown.contains("    Ines: Shall we start?\n") && !shown.contains("bubbler"), "{shown}");
    for part in ["pond/rows.jsonl", "domain verse: 1 document", "read 4 documents from 3 files in 2 domains"] {
        assert!(shown.contains(part), "{part}: {shown}");
    }
    assert_eq!(workspace.succeeds("data pond/a.md --text").stdout, read);
    let words = workspace.succeeds("data pond/a.md --text --set data.keep_speakers=false").stdout;
    assert_eq!(words, "Shall we start?\nI put the bubbler in.\n");
    workspace.refuses("data pond --set model.num_experts=3", 2, &["only keys of [data]"]);
}

#[test]
fn the_table_fits_a_narrow_terminal() {
    let workspace = Workspace::new();
    let folder = format!("{}/{}", "a-long-name-of-a-folder".repeat(3), "and-another-one".repeat(4));
    fs::create_dir_all(workspace.path(&folder)).unwrap();
    for file in 0..30 {
        workspace.write(&format!("{folder}/episode-{file}-{}.txt", "of-a-series".repeat(5)), lines(file));
    }
    let shown = common::output(workspace.command().args(["data", "."]).env("COLUMNS", "90")).stdout;
    let table: Vec<&str> = shown.lines().filter(|line| line.contains("plain text")).collect();
    assert_eq!(table.len(), 31, "{shown}");
    assert!(table.iter().all(|line| line.chars().count() <= 90), "{shown}");
}

#[test]
fn a_talk_in_all_of_whispers_formats_is_read_once() {
    let workspace = Workspace::new();
    whisper(&workspace, "garden", &TALK);
    // Another talk under the name of this one is not the same.
    workspace.write("out/garden.md", "Notes on the garden, which nobody said.\n");
    let receipt = json(&workspace, "data out --json");
    let names: Vec<&str> =
        receipt["files"].as_array().unwrap().iter().map(|file| file["name"].as_str().unwrap()).collect();
    assert_eq!(names, ["out/garden.json", "out/garden.md"]);
    let others = receipt["other_formats"].as_array().unwrap();
    assert!(others.len() >= 3 && others.iter().all(|other| other["read_instead"] == "out/garden.json"), "{others:?}");
    assert!(workspace.succeeds("data out").stdout.contains("out/garden.srt has the words of out/garden.json"));
    // One word more, and it is another text.
    let longer = workspace.read("out/garden.txt") + "Indeed.\n";
    workspace.write("out/garden.txt", longer);
    assert_eq!(json(&workspace, "data out --json")["files"].as_array().unwrap().len(), 3);
}

#[test]
fn copies_are_told_and_learned_as_often_as_they_occur() {
    let workspace = Workspace::new();
    talks(&workspace, "txt", |talk| lines(talk / 2));
    let receipt = json(&workspace, "data talks --json");
    let copies: Vec<&Value> =
        receipt["files"].as_array().unwrap().iter().filter(|file| !file["copy_of"].is_null()).collect();
    assert_eq!(copies.len(), 5);
    assert_eq!((&copies[0]["name"], &copies[0]["copy_of"]), (&"talks/1.txt".into(), &"talks/0.txt".into()));
    assert_eq!(receipt["total"]["documents"], 10);
}

#[test]
fn bad_files_that_were_found_are_skipped_and_named_ones_are_errors() {
    let workspace = Workspace::new();
    talks(&workspace, "txt", lines);
    workspace.write("talks/blank.txt", " \n\n");
    workspace.write("talks/broken.json", "{\"segments\": [");
    workspace.write("talks/binary.txt", b"a\0b");
    let found = "data.sources=[\"talks\"]";
    let trained = workspace.succeeds(&train("r", found));
    assert!(trained.stderr.contains("skipped 3 files that cannot be read"), "{}", trained.stderr);
    let run: Value = serde_json::from_str(&workspace.read("r/run.json")).unwrap();
    let skipped: Vec<&str> =
        run["receipt"]["skipped_files"].as_array().unwrap().iter().map(|file| file["name"].as_str().unwrap()).collect();
    assert_eq!(skipped, ["talks/binary.txt", "talks/blank.txt", "talks/broken.json"]);
    assert_eq!((&run["receipt"]["documents"], &run["split"]), (&10.into(), &"documents".into()));

    let all =
        ["3 files cannot be read", "talks/binary.txt:1: ", "talks/blank.txt: there is no text", "talks/broken.json"];
    workspace.refuses(&train("s", &format!("{found} data.on_bad_file=stop")), 1, &all);
    workspace.refuses(
        &train("s", "data.sources=[\"talk.txt\",\"talks/blank.txt\"]"),
        1,
        &["talks/blank.txt: there is no text"],
    );
    workspace.refuses("data talks/blank.txt", 1, &["talks/blank.txt"]);
    // What was named is an error, also where a search finds it, too.
    workspace.refuses("data talks talks/blank.txt", 1, &["talks/blank.txt"]);
    workspace.refuses("data talks/b*", 2, &["nothing could be read", "talks/broken.json"]);
    let excluded = "data talks --set data.exclude=[\"b*\"] --set data.on_bad_file=stop";
    assert!(workspace.succeeds(excluded).stdout.contains("skipped 3 paths passed over"));
}

#[test]
fn up_to_ten_errors_are_shown_at_once() {
    let workspace = Workspace::new();
    talks(&workspace, "txt", |_| String::new());
    workspace.write("talks/more.txt", "");
    let refused = workspace.tinymoe("data talks --set data.on_bad_file=stop");
    assert_eq!(refused.code, 1);
    assert!(refused.stderr.starts_with("error: 10 or more files cannot be read:\n  talks/0.txt"), "{}", refused.stderr);
    assert_eq!(refused.stderr.lines().count(), 11);
    workspace.refuses("data nowhere nothing", 2, &["source \"nowhere\": no such", "source \"nothing\": no such"]);
}

/// A run below its own sources could be trained and never resumed: its samples had become part of its text.
#[test]
fn a_run_below_its_own_sources_goes_on() {
    for (sources, count) in [("[\".\"]", 1), ("[\"**/*.txt\"]", 1)] {
        let workspace = Workspace::new();
        let settings = format!("data.sources={sources}");
        workspace.succeeds(&train("whole", &settings));
        fs::rename(workspace.path("whole"), workspace.path("whole.kept")).unwrap();
        workspace.succeeds(&format!("{} --steps 4", train("r", &settings)));
        workspace.succeeds(&format!("{} --resume", train("r", &settings)));
        assert_same(&outcome(&workspace, "r"), &outcome(&workspace, "whole.kept"), sources);
        workspace.succeeds("eval r");
        workspace.succeeds("inspect r --out r/report");
        workspace.succeeds("export r --to hf exported");
        let receipt = json(&workspace, "data . --json");
        assert_eq!(receipt["files"].as_array().unwrap().len(), count, "{receipt}");
        let passed: Vec<&str> = receipt["passed_over"]
            .as_array()
            .unwrap()
            .iter()
            .map(|passed| passed["reason"].as_str().unwrap())
            .collect();
        assert_eq!(passed, ["a model's directory", "a run's directory", "a run's directory"]);
    }
}

#[cfg(unix)]
#[test]
fn a_pipe_is_an_error_where_it_is_named_and_passed_over_where_it_is_found() {
    let workspace = Workspace::new();
    assert!(std::process::Command::new("mkfifo").arg(workspace.path("pipe.txt")).status().unwrap().success());
    workspace.refuses("data pipe.txt", 2, &["pipe.txt", "not a regular file"]);
    let receipt = json(&workspace, "data . --json");
    assert_eq!(receipt["files"].as_array().unwrap().len(), 1);
    assert_eq!(receipt["passed_over"][0]["reason"], "not a regular file");
}

#[test]
fn rows_of_one_line_are_divided_and_can_be_trained_on() {
    let workspace = Workspace::new();
    let row = |row: usize| format!("{{\"text\": \"Review {row}: the soup was warm and the bread fresh.\"}}\n");
    workspace.write("rows.jsonl", (0..400).map(row).collect::<String>());
    let trained = workspace.succeeds(&train("r", "data.sources=[\"rows.jsonl\"]"));
    assert!(!trained.stderr.contains("warning"), "{}", trained.stderr);
    let run: Value = serde_json::from_str(&workspace.read("r/run.json")).unwrap();
    let tokens = |split: &str| run["tokens"][split].as_f64().unwrap();
    let share = tokens("validation") / (tokens("training") + tokens("validation"));
    assert!((0.07..0.14).contains(&share), "{share}");
    workspace.succeeds("eval r");
    // A single line, too; and what cannot be divided is refused before there is a run.
    workspace.write("line.txt", "all the words of a single long line ".repeat(300));
    workspace.succeeds(&train("s", "data.sources=[\"line.txt\"]"));
    workspace.write("word.txt", "w");
    workspace.refuses(&train("t", "data.sources=[\"word.txt\"]"), 2, &["no text is left for validation"]);
    assert!(!workspace.path("t").exists());
}

#[test]
fn runs_keep_the_split_that_their_checkpoints_name() {
    let workspace = Workspace::new();
    // The first rule leaves documents of one line to training altogether.
    talks(&workspace, "txt", |talk| if talk < 5 { lines(talk) } else { format!("One line of talk {talk}.\n") });
    let folder = workspace.path("talks").to_str().unwrap().to_string();
    let mut config = Config::default();
    config.data.sources = vec![folder];
    config.tokenizer.kind = tinymoe::config::TokenizerKind::Bytes;
    config.model.max_position_embeddings = 16;
    let new = Prepared::new(&config).unwrap();
    let again = |rule| Prepared::resumed(&config, Tokenizer::clone(&new.tokenizer), rule).unwrap();
    let (first, second) = (again(SplitRule::Lines), again(SplitRule::NEWEST));
    let sizes = |prepared: &Prepared| (prepared.training.ids.len(), prepared.validation.ids.len());
    assert_eq!(sizes(&second), sizes(&new));
    assert_ne!(sizes(&first), sizes(&new));
    // 80 lines of equal length: the last eight of each of five talks, each with an end of text.
    let last_lines = |talk| lines(talk).split_inclusive('\n').skip(72).map(str::len).sum::<usize>();
    assert!(sizes(&first).1.abs_diff((0..5).map(last_lines).sum::<usize>() + 5) < 5 * 36);
    assert_eq!(first.validation.texts.len(), 5);
    assert_eq!(first.data_sha256, new.data_sha256);

    workspace.succeeds("train tiny.toml --run r --steps 4");
    let state = workspace.read("r/checkpoints/latest/trainer_state.json");
    assert!(state.contains("\"split\": \"documents\""), "{state}");
    let older: tinymoe::train::state::TrainerState =
        serde_json::from_str(&state.replace("\"split\": \"documents\",", "")).unwrap();
    assert_eq!(older.split, SplitRule::Lines);
}

#[test]
fn tokens_of_a_large_text_are_kept_verified_and_not_needed() {
    let workspace = Workspace::new();
    let text: String = (0..70_000)
        .map(|line| format!("Line {} of a text that is long enough to keep. And on it goes.\n", line % 50))
        .collect();
    assert!(text.len() >= 4 << 20);
    workspace.write("long.txt", &text);
    let settings = "data.sources=[\"long.txt\"] data.validation_fraction=0.001 train.max_steps=2";
    let without = |run: &str| {
        output(workspace.command().args(train(run, settings).split_whitespace()).env("TINYMOE_CACHE", "off"))
    };
    assert_eq!(without("without").code, 0);
    assert!(!workspace.path("cache").exists());
    workspace.succeeds(&train("first", settings));
    let kept = |extension: &str| {
        let entries = fs::read_dir(workspace.path("cache")).unwrap().map(|entry| entry.unwrap().path());
        let mut found: Vec<_> =
            entries.filter(|path| path.extension().is_some_and(|found| found == extension)).collect();
        assert_eq!(found.len(), 1, "{extension}");
        found.remove(0)
    };
    let expected = outcome(&workspace, "without");
    assert_same(&outcome(&workspace, "first"), &expected, "the run that fills the cache");

    // Used: its time is now.
    let old = SystemTime::now() - Duration::from_secs(7200);
    for extension in ["tokens", "baseline"] {
        fs::File::open(kept(extension)).unwrap().set_modified(old).unwrap();
    }
    workspace.succeeds(&train("second", settings));
    for extension in ["tokens", "baseline"] {
        assert!(
            kept(extension).metadata().unwrap().modified().unwrap() > old + Duration::from_secs(3600),
            "{extension}"
        );
    }
    assert_same(&outcome(&workspace, "second"), &expected, "a run from the cache");

    // Damaged: noticed, and made anew.
    let sound = fs::read(kept("tokens")).unwrap();
    common::flip_a_bit(&kept("tokens"));
    common::flip_a_bit(&kept("baseline"));
    workspace.succeeds(&train("third", settings));
    assert_same(&outcome(&workspace, "third"), &expected, "a run beside a damaged cache");
    assert!(fs::read(kept("tokens")).unwrap() == sound);
    // Another split is another key.
    workspace.succeeds(&train("fourth", &settings.replace("0.001", "0.002")));
    assert_eq!(fs::read_dir(workspace.path("cache")).unwrap().count(), 4);
    // A cache that cannot be is no reason to stop.
    workspace.write("file", "");
    let beside = output(
        workspace
            .command()
            .args(train("fifth", settings).split_whitespace())
            .env("TINYMOE_CACHE", workspace.path("file")),
    );
    assert!(beside.code == 0 && beside.stderr.contains("warning: cannot write to the cache"), "{}", beside.stderr);
    assert_same(&outcome(&workspace, "fifth"), &expected, "a run without a cache");
}
