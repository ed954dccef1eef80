//! What stands beside the weights of a model from elsewhere: whose directory it is, which tokens end a text, files that
//! contradict each other, and what an export must say again.

use super::common::{Workspace, output};
use super::{Foreign, Golden, TOLERANCE, Tensors, foreign, rewrite, stored, values};
use safetensors::tensor::{Dtype, SafeTensors};
use serde_json::{Value, json};
use std::fs;
use std::path::Path;
use tempfile::TempDir;
use tinymoe::checkpoint::{self, gguf, model_files};
use tinymoe::model::decode::{Decoder, Logits};
use tinymoe::model::transformer::Transformer;
use tinymoe::random::Stream;
use tinymoe::tokenizer::{Roles, Tokenizer};

fn write(folder: &Path, name: &str, content: &Value) {
    fs::write(folder.join(name), content.to_string()).unwrap();
}

fn read(folder: &Path, name: &str) -> Value {
    serde_json::from_slice(&fs::read(folder.join(name)).unwrap()).unwrap()
}

/// A llama in one file, whose `config.json` has these keys, too; null removes one.
fn llama(keys: Value) -> TempDir {
    model("llama", keys)
}

fn model(kind: &str, keys: Value) -> TempDir {
    let folder = Golden::read(kind).save(Dtype::F32, 1);
    let mut config = read(folder.path(), "config.json");
    for (key, value) in keys.as_object().unwrap() {
        match value {
            Value::Null => drop(config.as_object_mut().unwrap().remove(key)),
            value => config[key] = value.clone(),
        }
    }
    write(folder.path(), "config.json", &config);
    folder
}

fn logits(model: &Transformer) -> Vec<f32> {
    Decoder::new(model).advance(&[5, 17, 0, 9, 2], Logits::All).unwrap().logits_NV.clone()
}

#[test]
fn a_model_is_told_from_our_checkpoints_by_what_its_files_say() {
    let folder = llama(json!({}));
    // What transformers' Trainer leaves, and what other programs might.
    for (name, content) in [
        ("trainer_state.json", r#"{"global_step": 2, "log_history": [], "best_metric": null}"#),
        ("trainer_state.json", "{"),
        ("optimizer.pt", "any"),
        ("optimizer.safetensors", "any"),
        ("MANIFEST.json", r#"{"files": ["model.safetensors"], "version": 3}"#),
        ("MANIFEST.json", "[]"),
    ] {
        fs::write(folder.path().join(name), content).unwrap();
        assert!(foreign::is_foreign(folder.path()), "{name}: {content}");
        Golden::read("llama").check(&foreign::load(folder.path()).unwrap().model, name);
        fs::remove_file(folder.path().join(name)).unwrap();
    }
    // Ours stays ours where the manifest is lost or damaged: then it is damage.
    let workspace = Workspace::trained();
    let checkpoint = fs::canonicalize(workspace.path("r/checkpoints/latest")).unwrap();
    let manifest = checkpoint.join("MANIFEST.json");
    assert!(!foreign::is_foreign(&checkpoint));
    fs::write(&manifest, "{").unwrap();
    assert!(!foreign::is_foreign(&checkpoint));
    fs::remove_file(&manifest).unwrap();
    assert!(!foreign::is_foreign(&checkpoint));
    workspace.refuses(&format!("eval {}", checkpoint.display()), 4, &["MANIFEST.json"]);
    // A model that someone has a folder "checkpoints" in is that model.
    fs::create_dir(folder.path().join("checkpoints")).unwrap();
    assert_eq!(checkpoint::resolve(folder.path()).unwrap(), folder.path());
}

#[test]
fn what_ends_a_text_is_what_the_files_say_in_transformers_order() {
    let none = json!(null);
    // config.json, generation_config.json, tokenizer_config.json, special_tokens_map.json; then what ends a text, the
    // token between texts first, and how much is odd.
    for (config, generation, tokenizer, map, ends, warnings) in [
        (json!({}), none.clone(), none.clone(), none.clone(), vec![0], 0),
        (json!({"eos_token_id": 7}), none.clone(), none.clone(), none.clone(), vec![7], 0),
        (
            json!({"eos_token_id": [4, 0]}),
            none.clone(),
            json!({"eos_token": "<|endoftext|>"}),
            none.clone(),
            vec![0, 4],
            0,
        ),
        (json!({"eos_token_id": 0}), json!({"eos_token_id": [3, 0]}), none.clone(), none.clone(), vec![0, 3], 0),
        (json!({"eos_token_id": 0}), json!({"eos_token_id": [3, 5]}), none.clone(), none.clone(), vec![3, 5], 1),
        (json!({"eos_token_id": 6}), json!({"eos_token_id": null}), none.clone(), none.clone(), vec![6], 0),
        (
            json!({"eos_token_id": null}),
            none.clone(),
            json!({"eos_token": {"content": "<|unk|>"}}),
            none.clone(),
            vec![1],
            0,
        ),
        (json!({"eos_token_id": null}), none.clone(), none.clone(), json!({"eos_token": "<|unk|>"}), vec![1], 0),
        (json!({"eos_token_id": null}), none.clone(), json!({"eos_token": "<none>"}), none.clone(), vec![0], 0),
        (json!({}), json!({"eos_token_id": [999, -1, "x", 7, 7, 0]}), none.clone(), none.clone(), vec![0, 7], 3),
    ] {
        let folder = llama(config);
        for (name, content) in [
            ("generation_config.json", &generation),
            ("tokenizer_config.json", &tokenizer),
            ("special_tokens_map.json", &map),
        ] {
            if !content.is_null() {
                write(folder.path(), name, content);
            }
        }
        let Foreign { tokenizer: found, warnings: said, .. } = foreign::load(folder.path()).unwrap();
        let what = format!("{generation} {tokenizer} {map}: {said:?}");
        assert_eq!((&found.roles().ends, said.len()), (&ends, warnings), "{what}");
    }
    let folder = llama(json!({}));
    fs::write(folder.path().join("generation_config.json"), "{").unwrap();
    let error = format!("{:#}", foreign::load(folder.path()).err().unwrap());
    assert!(error.contains("generation_config.json"), "{error}");
}

#[test]
fn a_sample_stops_at_any_token_that_ends_texts() {
    let workspace = Workspace::new();
    let folder = llama(json!({}));
    let model = folder.path().display().to_string();
    let tokens = || {
        let arguments = ["sample", &model, "--prompt", "a bed", "--temperature", "0", "--tokens", "6", "--json"];
        let log = ["--routing-log", "log.jsonl"];
        let ran = output(workspace.command().args(arguments).args(log));
        assert_eq!(ran.code, 0, "{}", ran.stderr);
        let sample: Value = serde_json::from_str(&ran.stdout).unwrap();
        let last: Value = serde_json::from_str(workspace.read("log.jsonl").lines().last().unwrap()).unwrap();
        fs::remove_file(workspace.path("log.jsonl")).unwrap();
        (sample["tokens"].as_u64().unwrap(), last["id"].as_u64().unwrap())
    };
    let ends = |ids: Vec<u64>| {
        write(folder.path(), "generation_config.json", &json!({"eos_token_id": ids}));
        tokens()
    };
    let (count, first) = ends((0..24).collect());
    assert_eq!(count, 1);
    assert_eq!(ends(vec![(first + 1) % 24, first]), (1, first));
    assert!(ends((0..24).filter(|&id| id != first).collect()).0 > 1);
}

#[test]
fn special_tokens_and_the_post_processor_shape_the_prompt() {
    let workspace = Workspace::new();
    let folder = llama(json!({}));
    let mut tokenizer = read(folder.path(), "tokenizer.json");
    tokenizer["post_processor"] = json!({
        "type": "TemplateProcessing",
        "single": [{"SpecialToken": {"id": "<|unk|>", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}],
        "pair": [],
        "special_tokens": {"<|unk|>": {"id": "<|unk|>", "ids": [1], "tokens": ["<|unk|>"]}}
    });
    write(folder.path(), "tokenizer.json", &tokenizer);
    let ids = |arguments: &[&str]| -> Vec<u64> {
        let log = ["--tokens", "0", "--routing-log", "log.jsonl"];
        let ran = output(workspace.command().arg("sample").arg(folder.path()).args(arguments).args(log));
        assert_eq!(ran.code, 0, "{}", ran.stderr);
        let log = workspace.read("log.jsonl");
        fs::remove_file(workspace.path("log.jsonl")).unwrap();
        let id = |line: &str| serde_json::from_str::<Value>(line).unwrap()["id"].as_u64().unwrap();
        log.lines().skip(1).map(id).collect()
    };
    // "a" is 5 and "b" is 6.
    assert_eq!(ids(&["--prompt", "ab"]), [1, 5, 6]);
    assert_eq!(ids(&["--prompt", "a<|endoftext|>b"]), [1, 5, 0, 6]);
    assert_eq!(ids(&[]), [1]);
    assert_eq!(ids(&["--prompt", "ab", "--no-special-tokens"]), [5, 6]);
    assert_eq!(ids(&["--prompt", "<|endoftext|>", "--no-special-tokens"]).len(), 13);
}

#[test]
fn an_export_of_a_model_from_elsewhere_says_again_what_was_read() {
    let workspace = Workspace::new();
    let folder = llama(json!({
        "eos_token_id": [3, 5], "bos_token_id": 4, "pad_token_id": 2, "layer_types": ["full_attention", "full_attention"],
        "auto_map": {"AutoConfig": "own.Config"}, "torch_dtype": "bfloat16", "id2label": {"0": "LABEL"}
    }));
    let mut tokenizer = read(folder.path(), "tokenizer.json");
    tokenizer["post_processor"] = json!({"type": "RobertaProcessing", "sep": ["<|unk|>", 1], "cls": ["<|endoftext|>", 0],
                                         "trim_offsets": true, "add_prefix_space": false});
    tokenizer["truncation"] = json!({"direction": "Right", "max_length": 8, "strategy": "LongestFirst", "stride": 0});
    write(folder.path(), "tokenizer.json", &tokenizer);
    let carried = [
        ("generation_config.json", r#"{"eos_token_id": [3, 5], "temperature": 0.6, "transformers_version": "4.57.0"}"#),
        ("tokenizer_config.json", r#"{"eos_token": "<|unk|>", "chat_template": "{{ messages }}"}"#),
        ("special_tokens_map.json", r#"{"eos_token": "<|unk|>"}"#),
        ("added_tokens.json", r#"{"<|unk|>": 1}"#),
        ("chat_template.jinja", "{% for message in messages %}{{ message }}{% endfor %}"),
    ];
    for (name, content) in carried {
        fs::write(folder.path().join(name), content).unwrap();
    }
    fs::write(folder.path().join("README.md"), "mine").unwrap();
    let exported = output(workspace.command().arg("export").arg(folder.path()).args(["out", "--to", "hf"]));
    assert_eq!(exported.code, 0, "{}", exported.stderr);
    assert!(
        exported.stderr.contains("warning: left out") && exported.stderr.contains("README.md"),
        "{}",
        exported.stderr
    );
    let out = workspace.path("out");
    for (name, content) in carried {
        assert_eq!(fs::read_to_string(out.join(name)).unwrap(), content, "{name}");
    }
    assert_eq!(fs::read(out.join("tokenizer.json")).unwrap(), fs::read(folder.path().join("tokenizer.json")).unwrap());
    let (theirs, ours) = (read(folder.path(), "config.json"), read(&out, "config.json"));
    for key in ["eos_token_id", "bos_token_id", "pad_token_id", "layer_types", "id2label"] {
        assert_eq!(ours[key], theirs[key], "{key}");
    }
    // The weights are in f32 now, and the code that this key names did not go along.
    assert_eq!((&ours["dtype"], ours.get("auto_map")), (&json!("float32"), None));
    let [theirs, ours] = [folder.path(), &out].map(|folder| fs::read(folder.join("model.safetensors")).unwrap());
    let [theirs, ours] = [&theirs, &ours].map(|bytes| SafeTensors::deserialize(bytes).unwrap());
    assert_eq!(theirs.names().len(), ours.names().len());
    theirs.tensors().iter().for_each(|(name, tensor)| assert_eq!(tensor.data(), ours.tensor(name).unwrap().data()));
    // Exported again, it is the same.
    workspace.succeeds("export out again --to hf");
    for entry in fs::read_dir(&out).unwrap() {
        let name = entry.unwrap().file_name();
        assert!(
            fs::read(out.join(&name)).unwrap() == fs::read(workspace.path("again").join(&name)).unwrap(),
            "{name:?}"
        );
    }
}

#[test]
fn a_text_that_is_not_in_the_tokenizers_normal_form_is_counted_as_it_is_encoded_and_that_is_said() {
    let workspace = Workspace::trained();
    workspace.succeeds("export r hf --to hf");
    let mut tokenizer = read(&workspace.path("hf"), "tokenizer.json");
    tokenizer["normalizer"] = json!({"type": "NFC"});
    write(&workspace.path("hf"), "tokenizer.json", &tokenizer);
    workspace.write("nfd.txt", "the cafe\u{301} is nai\u{308}ve\n");
    workspace.write("nfc.txt", "the caf\u{e9} is na\u{ef}ve\n");
    let eval = |text: &str| {
        let ran = workspace.succeeds(&format!("eval hf --data {text} --json"));
        (serde_json::from_str::<Value>(&ran.stdout).unwrap(), ran.stderr)
    };
    let ((composed, silent), (decomposed, said)) = (eval("nfc.txt"), eval("nfd.txt"));
    assert_eq!((&composed, composed["bytes"].as_u64()), (&decomposed, Some(20)));
    assert!(said.contains("warning: ") && said.contains("NFC") && silent.is_empty(), "{said} {silent}");
    for command in ["inspect hf --data nfd.txt", "sample hf --prompt e\u{301} --tokens 1"] {
        assert!(workspace.succeeds(command).stderr.contains("NFC"), "{command}");
    }
    let train = "train tiny.toml --run n --dry-run --set tokenizer.kind=file --set tokenizer.path=hf/tokenizer.json";
    let ran = workspace.succeeds(&format!("{train} --set data.sources=[\"nfd.txt\",\"talk.txt\"]"));
    assert!((ran.stdout + &ran.stderr).contains("Unicode normal form NFC changes 1 texts"));
}

#[test]
fn a_document_is_framed_in_eval_as_the_post_processor_says() {
    let workspace = Workspace::trained();
    workspace.succeeds("export r hf --to hf");
    workspace.write("a.txt", "the cat\n");
    let eval = || -> Value { serde_json::from_str(&workspace.succeeds("eval hf --data a.txt --json").stdout).unwrap() };
    let plain = eval();
    let mut tokenizer = read(&workspace.path("hf"), "tokenizer.json");
    let template = |single: Value| {
        json!({
            "type": "TemplateProcessing", "single": single, "pair": [],
            "special_tokens": {"x": {"id": "x", "ids": [0], "tokens": ["<|endoftext|>"]}}
        })
    };
    let (text, special) =
        (json!({"Sequence": {"id": "A", "type_id": 0}}), json!({"SpecialToken": {"id": "x", "type_id": 0}}));
    tokenizer["post_processor"] = template(json!([special, text]));
    write(&workspace.path("hf"), "tokenizer.json", &tokenizer);
    let framed = eval();
    // Without it the first letter is what the model starts from; the end of text counts as a byte.
    assert_eq!((&plain["tokens"], &plain["bytes"]), (&json!(8), &json!(8)));
    assert_eq!((&framed["tokens"], &framed["bytes"]), (&json!(9), &json!(9)));
    // An end of text from the template is the end of text: no second one follows.
    tokenizer["post_processor"] = template(json!([special, text, special]));
    write(&workspace.path("hf"), "tokenizer.json", &tokenizer);
    assert_eq!(eval(), framed);
}

/// Reads a model and gives its only warning.
fn warning(folder: &TempDir) -> (Transformer, String) {
    let Foreign { model, warnings, .. } = foreign::load(folder.path()).unwrap();
    assert_eq!(warnings.len(), 1, "{warnings:?}");
    (model, warnings.into_iter().next().unwrap())
}

#[test]
fn where_files_contradict_each_other_the_formats_owner_is_followed_and_the_user_told() {
    let (golden, weights) = (Golden::read("llama"), "model.safetensors");
    let head = |tensors: &mut Tensors, factor: f32| {
        let (dtype, shape, _) = tensors["model.embed_tokens.weight"].clone();
        let numbers: Vec<f32> = values("model.embed_tokens.weight", &shape).iter().map(|x| x * factor).collect();
        tensors.insert("lm_head.weight".into(), (dtype, shape, stored(&numbers, dtype)));
    };

    // A stale index beside the single file.
    let folder = llama(json!({}));
    write(
        folder.path(),
        "model.safetensors.index.json",
        &json!({"weight_map": {"x": "model-00001-of-00002.safetensors"}}),
    );
    let (read, said) = warning(&folder);
    assert!(said.contains(weights) && said.contains("index.json"), "{said}");
    golden.check(&read, "the single file");

    // A tensor in two files: the later file holds.
    let folder = golden.save(Dtype::F32, 2);
    let second = folder.path().join("model-00002-of-00002.safetensors");
    rewrite(&folder.path().join("model-00001-of-00002.safetensors"), |tensors| {
        tensors.insert("model.norm.weight".into(), (Dtype::F32, vec![16], vec![0; 64]));
    });
    assert!(SafeTensors::deserialize(&fs::read(second).unwrap()).unwrap().tensor("model.norm.weight").is_ok());
    let (read, said) = warning(&folder);
    assert!(said.contains("\"model.norm.weight\" stands in two files"), "{said}");
    golden.check(&read, "the later file");

    // Tied to an embedding that the head is not, that it is, and that is missing.
    let folder = llama(json!({"tie_word_embeddings": true}));
    let (read, said) = warning(&folder);
    assert!(said.contains("tie_word_embeddings") && !read.model.tie_word_embeddings, "{said}");
    golden.check(&read, "a head of its own");
    rewrite(&folder.path().join(weights), |tensors| head(tensors, 1.0));
    let equal = foreign::load(folder.path()).unwrap();
    assert!(equal.warnings.is_empty() && equal.model.model.tie_word_embeddings);
    rewrite(&folder.path().join(weights), |tensors| drop(tensors.remove("model.embed_tokens.weight")));
    let (read, said) = warning(&folder);
    assert!(said.contains("model.embed_tokens.weight is missing"), "{said}");
    assert_eq!(logits(&read), logits(&equal.model));

    // Two numbers for one thing.
    let folder = llama(json!({"rope_theta": 123.0}));
    let (read, said) = warning(&folder);
    assert!(said.contains("rope_theta = 123"), "{said}");
    golden.check(&read, "rope_parameters");
    let folder = model("olmoe", json!({"num_local_experts": 7}));
    let (read, said) = warning(&folder);
    assert!(said.contains("num_experts = 4") && said.contains("num_local_experts = 7"), "{said}");
    Golden::read("olmoe").check(&read, "its own key");

    // The tokenizer's configuration against the tokenizer.
    let folder = llama(json!({}));
    write(folder.path(), "tokenizer_config.json", &json!({"add_bos_token": true}));
    assert!(warning(&folder).1.contains("add_bos_token = true"));
    let added = json!({"0": {"content": "<|endoftext|>"}, "3": {"content": "<|unk|>"}, "30": {"content": "<x>"}});
    write(folder.path(), "tokenizer_config.json", &json!({"added_tokens_decoder": added}));
    let said = warning(&folder).1;
    assert!(said.contains("\"<|unk|>\" with id 3") && said.contains("(2 such tokens)"), "{said}");
    // More tokens than the model has ids: "q" and above are beyond.
    let folder = llama(json!({"vocab_size": 20}));
    rewrite(&folder.path().join(weights), |tensors| {
        for name in ["model.embed_tokens.weight", "lm_head.weight"] {
            let (_, shape, bytes) = tensors.get_mut(name).unwrap();
            shape[0] = 20;
            bytes.truncate(20 * 16 * 4);
        }
    });
    let Foreign { tokenizer, warnings, .. } = foreign::load(folder.path()).unwrap();
    assert!(warnings[0].contains("4 tokens (\"p\", ...) beyond config.json's vocab_size of 20"), "{warnings:?}");
    assert_eq!(tokenizer.encode("a").unwrap(), [5]);
    assert!(tokenizer.encode("s").unwrap_err().to_string().contains("\"s\""));
}

#[test]
fn tensors_without_numbers_are_legal() {
    let folder = llama(json!({}));
    rewrite(&folder.path().join("model.safetensors"), |tensors| {
        for name in ["gate_proj", "up_proj"] {
            let name = format!("model.layers.1.mlp.shared_experts.{name}.weight");
            tensors.insert(name, (Dtype::F32, vec![0, 16], Vec::new()));
        }
    });
    let Foreign { model, warnings, .. } = foreign::load(folder.path()).unwrap();
    assert_eq!(warnings, Vec::<String>::new());
    Golden::read("llama").check(&model, "empty tensors");
}

/// Settings of a random model: one of each group, which go together but for a few pairs.
fn random_settings(case: u64) -> Vec<String> {
    let groups: [&[&str]; 4] = [
        &[
            "model.num_experts=0",
            "router.noisy_gate=true",
            "model.num_experts=3 router.noisy_gate=true router.capacity_factor=1.0",
            "model.num_experts_per_tok=1 router.norm_topk_prob=false router.noisy_gate=true",
            "router.scoring_func=sigmoid router.balance=bias",
            "router.scoring_func=sigmoid router.balance=none router.routed_scaling_factor=2.0",
            "model.first_k_dense_replace=1 router.noisy_gate=true",
            "model.n_shared_experts=1 model.shared_expert_gate=true model.qk_norm=false router.noisy_gate=true",
            "model.n_shared_experts=1 router.scoring_func=sigmoid router.balance=bias",
        ],
        &[
            "",
            "model.qk_norm=false",
            "model.qk_norm_across_heads=true",
            "model.qkv_bias=true",
            "model.num_key_value_heads=1",
            "model.head_dim=4",
        ],
        &["", "model.tie_word_embeddings=false", "model.tie_word_embeddings=true"],
        &["", "", "model.memory_layers=[1] model.memory_slots=16"],
    ];
    let stream = Stream::new(case, "settings", &[]);
    let drawn = (0..).zip(groups).map(|(number, choices)| choices[stream.bits(number) as usize % choices.len()]);
    drawn.flat_map(str::split_whitespace).map(String::from).collect()
}

#[test]
fn what_is_exported_is_read_back_and_computes_the_same() {
    const CASES: u64 = 40;
    let workspace = Workspace::new();
    let (mut exported, mut of_no_architecture, mut with_noise, mut as_gguf) = (0, 0, 0, 0);
    for case in 0..CASES {
        let (run, settings) = (format!("r{case}"), random_settings(case));
        let mut train = workspace.command();
        train.args(["--quiet", "train", "tiny.toml", "--run", &run]);
        for setting in settings.iter().map(String::as_str).chain(["train.max_steps=2"]) {
            train.args(["--set", setting]);
        }
        let trained = output(&mut train);
        if trained.code == 2 {
            // These options do not go together.
            continue;
        }
        assert_eq!(trained.code, 0, "{settings:?}: {}", trained.stderr);
        workspace.succeeds(&format!("export {run} {run}.hf --to hf"));
        let checkpoint = checkpoint::resolve(&workspace.path(&run)).unwrap();
        let (ours, _) = model_files::load(&checkpoint::load(&checkpoint).unwrap()).unwrap();
        let folder = workspace.path(&format!("{run}.hf"));
        assert!(foreign::is_foreign(&folder));
        let found = foreign::load(&folder).unwrap();
        assert_eq!(found.warnings, Vec::<String>::new(), "{settings:?}");
        assert_eq!(logits(&found.model), logits(&ours), "{settings:?}");
        let weights = fs::read(folder.join("model.safetensors")).unwrap();
        let weights = SafeTensors::deserialize(&weights).unwrap();
        assert!(!weights.names().iter().any(|name| name.contains("noise")), "{settings:?}");
        exported += 1;
        of_no_architecture += usize::from(read(&folder, "config.json")["model_type"] == "tinymoe");
        with_noise += usize::from(ours.router.noisy_gate && ours.model.num_experts > 0);
        if gguf::architecture(&ours.model, &ours.router).is_ok() {
            workspace.succeeds(&format!("export {run} {run}.gguf --to gguf"));
            let (_, tensors) = super::read_gguf(&workspace.path(&format!("{run}.gguf")));
            assert!(tensors.values().all(|(_, numbers)| numbers.iter().all(|x| x.abs() < 1.0 / TOLERANCE)));
            as_gguf += 1;
        }
    }
    let counts = [exported, of_no_architecture, with_noise, as_gguf];
    assert!(counts.iter().zip([CASES as usize / 2, 3, 3, 3]).all(|(count, least)| *count >= least), "{counts:?}");
}

#[test]
fn a_gguf_says_which_tokens_are_special_and_what_it_cannot_say_is_named() {
    let mut json: Value = serde_json::from_slice(&super::bytes().to_json().unwrap()).unwrap();
    let special = |id: u32| json!({"SpecialToken": {"id": id.to_string(), "type_id": 0}});
    json["post_processor"] = json!({
        "type": "TemplateProcessing", "pair": [],
        "single": [special(3), {"Sequence": {"id": "A", "type_id": 0}}, special(5), special(6)],
        "special_tokens": {"3": {"id": "3", "ids": [3], "tokens": ["x"]}, "5": {"id": "5", "ids": [5], "tokens": ["x"]},
                           "6": {"id": "6", "ids": [6], "tokens": ["x"]}}
    });
    let tokenizer = Tokenizer::from_json(json.to_string().as_bytes(), "framed.json").unwrap();
    let tokenizer = tokenizer.with_roles(Roles { begins: Some(3), ends: vec![5, 8, 9], pads: Some(7) });
    let path = tempfile::tempdir().unwrap().keep().join("model.gguf");
    let model = super::with_bytes("mixtral", |_| ());
    gguf::write(&mut fs::File::create(&path).unwrap(), &model, &tokenizer, Some("{{ x }}"), gguf::Dtype::F32, "x")
        .unwrap();
    let (metadata, _) = super::read_gguf(&path);
    fs::remove_dir_all(path.parent().unwrap()).unwrap();
    let id = |key: &str| metadata[&format!("tokenizer.ggml.{key}_token_id")].to_u32().unwrap();
    assert_eq!([id("bos"), id("eos"), id("eot"), id("padding")], [3, 5, 8, 7]);
    for key in ["add_bos_token", "add_eos_token"] {
        assert!(metadata[&format!("tokenizer.ggml.{key}")].to_bool().unwrap(), "{key}");
    }
    assert_eq!(metadata["tokenizer.chat_template"].to_string().unwrap(), "{{ x }}");
    let left_out = gguf::left_out(&tokenizer);
    assert!(
        left_out.len() == 2 && left_out[0].contains("end a text") && left_out[1].contains("around"),
        "{left_out:?}"
    );
}
