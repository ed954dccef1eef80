//! Files from anywhere, broken in every way that a seed can think of: refused or read, but never a panic, and never
//! memory without bounds. The same functions serve the fuzzer (tests/fuzz).

mod common;
#[path = "fuzz/targets.rs"]
mod targets;

use common::Workspace;
use half::bf16;
use safetensors::tensor::{Dtype, TensorView, serialize};
use std::collections::BTreeMap;
use std::fs;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;
use targets::TARGETS;
use tinymoe::config::TokenizerConfig;
use tinymoe::random::Stream;
use tinymoe::tokenizer::Tokenizer;

/// Mutations of each target's seeds.
const CASES: u64 = 2000;

/// What breaks parsers: numbers at the edges, depth, names that lead elsewhere, bytes that are no text.
const WORDS: [&[u8]; 16] = [
    b"-1",
    b"0",
    b"1e999",
    b"NaN",
    b"18446744073709551615",
    b"9223372036854775808",
    b"4294967296",
    b"null",
    b"\"\"",
    b"../../../../etc/passwd",
    b"\0",
    b"\xff\xfe\xc3",
    b"\xe2\x80\xa8",
    b"[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[",
    b"{\"a\":",
    b"\r",
];

/// Sound files of a target.
fn seeds(target: &str, workspace: &Workspace) -> Vec<Vec<u8>> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let read_all = |folder: &str| -> Vec<(String, Vec<u8>)> {
        let mut files = Vec::new();
        let mut folders = vec![root.join(folder)];
        while let Some(folder) = folders.pop() {
            for path in fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()) {
                if path.is_dir() {
                    folders.push(path);
                } else {
                    let extension = path.extension().unwrap_or_default().to_str().unwrap().to_owned();
                    files.push((extension, fs::read(path).unwrap()));
                }
            }
        }
        files.sort();
        files
    };
    match target {
        "config" => read_all("configs").into_iter().map(|(_, bytes)| bytes).collect(),
        "tokenizer" => {
            let texts = ["the cat sat on the mat, the cat's mat\n"];
            let tokenizer = |kind: &str| {
                let config: TokenizerConfig = toml_of(&format!("kind = \"{kind}\"\nvocab_size = 0\npath = \"\""));
                Tokenizer::from_config(&config, &texts).unwrap().to_json().unwrap()
            };
            ["bpe", "bytes", "chars"].map(tokenizer).into()
        }
        "checkpoint" => {
            let mut bytes = Vec::new();
            for name in ["config.json", "tokenizer.json", "model.safetensors"] {
                let part = fs::read(workspace.path("r/checkpoints/latest").join(name)).unwrap();
                if name != "model.safetensors" {
                    bytes.extend(u16::try_from(part.len()).unwrap().to_le_bytes());
                }
                bytes.extend(part);
            }
            vec![bytes]
        }
        "foreign" => {
            let goldens = read_all("tests/goldens").into_iter().map(|(_, bytes)| foreign_seed(&bytes, ""));
            let goldens: Vec<Vec<u8>> = goldens.collect();
            let index = r#"{"weight_map": {"model.norm.weight": "model-00001-of-00001.safetensors"}}"#;
            let (_, first) = read_all("tests/goldens").swap_remove(0);
            goldens.into_iter().chain([foreign_seed(&first, index)]).collect()
        }
        "gguf" => {
            // Shapes that become each of llama.cpp's architectures; see the target's `shape` for the places.
            let choices: [[u8; 11]; 7] = [
                [0, 0b0010_0010, 0, 0, 0, 0, 0, 0, 0, 0, 0],
                [1, 0b0010_0000, 0, 1, 1, 0, 0, 0, 3, 0, 1],
                [2, 0b0001_1001, 0, 2, 0, 2, 0, 0, 0, 0, 1],
                [3, 0b0000_0101, 0, 0, 1, 0, 0, 0, 0, 1, 1],
                [4, 0b1010_1010, 3, 0, 2, 0, 1, 3, 0, 0, 1],
                [3, 0b0000_0010, 0, 0, 0, 0, 0, 0, 1, 0, 0],
                [4, 0b0000_0000, 0, 0, 0, 0, 0, 0, 1, 0, 0],
            ];
            let shared_and_dense = [[0, 0], [0, 0], [1, 0], [0, 0], [1, 1], [0, 0], [0, 0]];
            let numbers: Vec<u8> = (0..24).flat_map(|i| (i as f32 * 0.37 - 4.0).to_le_bytes()).collect();
            let seed = |(number, choices): (usize, &[u8; 11])| {
                // The tokenizers that llama.cpp has, too: BPE and bytes.
                let tokenizer = &self::seeds("tokenizer", workspace)[number % 2];
                let length = u16::try_from(tokenizer.len()).unwrap().to_le_bytes();
                let choices = [&choices[..], &[0], &shared_and_dense[number], &[0, number as u8 % 3]].concat();
                assert_eq!(choices.len(), targets::gguf::CHOICES);
                [&choices, &length[..], tokenizer, &numbers].concat()
            };
            choices.iter().enumerate().map(seed).collect()
        }
        "transcript" => {
            let number =
                |extension: &str| ["txt", "md", "srt", "vtt", "json", "jsonl"].iter().position(|e| *e == extension);
            let seed = |(extension, bytes): (String, Vec<u8>)| {
                let mut seed = vec![(number(&extension)? as u8) << 2 | 3];
                // The beginning of each is enough.
                seed.extend(&bytes[..bytes.len().min(1500)]);
                Some(seed)
            };
            let recording = br#"{"segments": [{"start": 0.5, "end": 2, "speaker": "Mo", "text": " Hello."}]}"#;
            let lines = b"{\"text\": \"Hello.\", \"domain\": \"talk\"}\n{\"text\": \"Bye.\"}\n";
            let more = [("json".to_owned(), recording.to_vec()), ("jsonl".to_owned(), lines.to_vec())];
            read_all("data").into_iter().chain(more).filter_map(seed).collect()
        }
        "routing_log" => {
            workspace.succeeds("sample r --tokens 8 --prompt the --routing-log log.jsonl");
            vec![fs::read(workspace.path("log.jsonl")).unwrap()]
        }
        _ => panic!("no seeds for {target}"),
    }
}

/// The model of a golden with small weights in bf16.
fn foreign_seed(golden: &[u8], index: &str) -> Vec<u8> {
    let golden: serde_json::Value = serde_json::from_slice(golden).unwrap();
    let shapes: BTreeMap<String, Vec<usize>> = serde_json::from_value(golden["tensors"].clone()).unwrap();
    let weights = |count: usize| (0..count).flat_map(|i| bf16::from_f32((i % 9) as f32 * 0.1 - 0.4).to_le_bytes());
    let weights = |shape: &Vec<usize>| -> Vec<u8> { weights(shape.iter().product()).collect() };
    let data: Vec<(&String, &Vec<usize>, Vec<u8>)> =
        shapes.iter().map(|(name, shape)| (name, shape, weights(shape))).collect();
    let mut seed = Vec::new();
    for part in [&golden["config"].to_string(), index] {
        seed.extend(u16::try_from(part.len()).unwrap().to_le_bytes());
        seed.extend(part.bytes());
    }
    let views = data
        .iter()
        .map(|(name, shape, data)| (name.as_str(), TensorView::new(Dtype::BF16, shape.to_vec(), data).unwrap()));
    seed.extend(serialize(views, None).unwrap());
    seed
}

fn toml_of<T: serde::de::DeserializeOwned>(text: &str) -> T {
    toml::from_str(text).unwrap()
}

/// A seed after one to six mutations, drawn from `stream`.
fn mutated(seeds: &[Vec<u8>], stream: Stream) -> Vec<u8> {
    let mut draws = 0..;
    let mut draw = |below: usize| stream.bits(draws.next().unwrap()) as usize % below.max(1);
    let mut bytes = seeds[draw(seeds.len())].clone();
    for _ in 0..=draw(6) {
        let (start, len) = (draw(bytes.len()), 1 + draw(40));
        let end = (start + len).min(bytes.len());
        match draw(8) {
            0 if start < end => bytes[start] ^= 1 << draw(8),
            1 if start < end => bytes[start] = draw(256) as u8,
            2 => bytes.truncate(start),
            3 => drop(bytes.drain(start..end)),
            4 => {
                let piece = bytes[start..end].to_vec();
                let times = 1 + draw(50);
                bytes.splice(start..start, piece.repeat(times));
            }
            5 => {
                let donor = &seeds[draw(seeds.len())];
                let from = draw(donor.len());
                bytes.splice(start..end, donor[from..(from + len).min(donor.len())].iter().copied());
            }
            6 => drop(bytes.splice(start..end, WORDS[draw(WORDS.len())].iter().copied())),
            _ => {
                // A number becomes another one.
                let digits = (start..bytes.len()).find(|&at| bytes[at].is_ascii_digit()).unwrap_or(start);
                let end = (digits..bytes.len()).find(|&at| !bytes[at].is_ascii_digit()).unwrap_or(digits);
                bytes.splice(digits..end, WORDS[draw(7)].iter().copied());
            }
        }
    }
    bytes
}

#[test]
fn no_file_from_elsewhere_makes_its_reader_panic() {
    let workspace = Workspace::trained();
    let corpus = std::env::var_os("TINYMOE_FUZZ_CORPUS");
    for (name, target) in TARGETS {
        let seeds = seeds(name, &workspace);
        assert!(!seeds.is_empty(), "{name}");
        for (number, seed) in seeds.iter().enumerate() {
            // scripts/fuzz.sh starts from these.
            if let Some(corpus) = &corpus {
                let folder = Path::new(corpus).join(name);
                fs::create_dir_all(&folder).unwrap();
                fs::write(folder.join(format!("seed{number}")), seed).unwrap();
            }
            target(seed);
        }
        for case in 0..CASES {
            let bytes = mutated(&seeds, Stream::new(case, name, &[]));
            if catch_unwind(AssertUnwindSafe(|| target(&bytes))).is_err() {
                let shown = String::from_utf8_lossy(&bytes[..bytes.len().min(2000)]).into_owned();
                panic!("{name}, case {case}: {shown}");
            }
        }
    }
}

#[test]
fn the_seeds_of_models_are_read_and_written() {
    let workspace = Workspace::trained();
    assert!(seeds("foreign", &workspace).iter().all(|seed| targets::foreign(seed).is_some()));
    assert!(seeds("gguf", &workspace).iter().all(|seed| targets::gguf::compare(seed).is_some()));
}

#[test]
fn depth_and_size_without_end_are_refused() {
    let deep = |open: &str, close: &str| format!("{}{}", open.repeat(200_000), close.repeat(200_000)).into_bytes();
    let array = deep("[", "]");
    let object = deep("{\"a\":", "}");
    for (name, target) in TARGETS {
        target(&array);
        target(&object);
        target(&[b"x = ", &array[..]].concat());
        target(&[b"\x10", &array[..]].concat());
        target(&[b"\x14{\"text\":", &array[..]].concat());
        target(&vec![b' '; 1 << 20]);
        target(&vec![0xff; 1 << 16]);
        target(&[]);
        println!("{name} comes back from depth and size");
    }
    // A model that would take terabytes, and a header of 2 GiB.
    let config = br#"{"model_type": "tinymoe", "hidden_size": 4294967296, "num_hidden_layers": 1000000, "vocab_size": 4294967295}"#;
    let header = (2u64 << 30).to_le_bytes();
    let file = [&(config.len() as u16).to_le_bytes()[..], config, &2u16.to_le_bytes(), b"{}", &header].concat();
    targets::checkpoint(&file);
}

#[cfg(target_os = "linux")]
#[test]
fn an_absurd_context_is_refused_or_costs_what_is_used_of_it() {
    let workspace = Workspace::new();
    let golden = fs::read(Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/goldens/olmoe.json")).unwrap();
    let mut golden: serde_json::Value = serde_json::from_slice(&golden).unwrap();
    fs::create_dir(workspace.path("m")).unwrap();
    workspace.write("m/tokenizer.json", targets::LETTERS);
    let mut write = |context: u64| {
        golden["config"]["max_position_embeddings"] = context.into();
        let seed = foreign_seed(golden.to_string().as_bytes(), "");
        let mut weights = &seed[..];
        let config = targets::part(&mut weights).unwrap();
        assert_eq!(targets::part(&mut weights), Some(&[][..]));
        workspace.write("m/config.json", config);
        workspace.write("m/model.safetensors", weights);
    };
    for context in [0, (1 << 20) + 1, 1 << 28, u64::MAX] {
        write(context);
        workspace.refuses("sample m --tokens 3", 4, &[&format!("max_position_embeddings = {context}")]);
    }
    // The longest that is read, with two layers of two heads of four channels, would take 128 MiB a sample, if it were
    // used.
    write(1 << 20);
    let in_little_memory = r#"ulimit -v 1048576 && exec "$0" sample m --tokens 3 --count 8 --prompt a --threads 1"#;
    let mut shell = std::process::Command::new("sh");
    shell.args(["-c", in_little_memory, env!("CARGO_BIN_EXE_tinymoe")]).current_dir(workspace.path(""));
    let outcome = shell.output().unwrap();
    assert!(outcome.status.success(), "{}", String::from_utf8_lossy(&outcome.stderr));
}
