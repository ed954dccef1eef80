//! Models of transformers read, ours written, without Python: against the files in tests/goldens, which
//! scripts/make_goldens.py made with transformers. Live comparisons are in scripts/check_interop.sh.

mod common;
#[path = "interop/files.rs"]
mod files;

use candle_core::Device;
use candle_core::quantized::gguf_file::{Content, Value as GgufValue};
use common::{Workspace, output};
use half::{bf16, f16};
use safetensors::tensor::{Dtype, SafeTensors, TensorView, serialize};
use serde_json::{Value, json};
use std::collections::{BTreeMap, HashMap};
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use tempfile::{TempDir, tempdir};
use tinymoe::checkpoint::foreign::{self, Foreign};
use tinymoe::checkpoint::gguf::{self, Dtype as Stored};
use tinymoe::checkpoint::{self, model_files};
use tinymoe::config::{TokenizerConfig, TokenizerKind};
use tinymoe::error::exit_code;
use tinymoe::model::decode::{Decoder, Logits};
use tinymoe::model::transformer::Transformer;
use tinymoe::tokenizer::Tokenizer;

const KINDS: [&str; 7] = ["qwen3_moe", "mixtral", "olmoe", "qwen2_moe", "glm4_moe", "qwen3", "llama"];
/// Far below the smallest difference between two logits of a golden, far above f32's rounding.
const TOLERANCE: f32 = 1e-5;

/// A file's tensors: dtype, shape and bytes.
type Tensors = BTreeMap<String, (Dtype, Vec<usize>, Vec<u8>)>;
/// Shape and numbers of a tensor.
type Numbers = (Vec<usize>, Vec<f32>);

/// What transformers computed for one model.
struct Golden {
    config: Value,
    shapes: BTreeMap<String, Vec<usize>>,
    ids: Vec<u32>,
    logits: Vec<Vec<f32>>,
    /// The chosen experts of each token in each MoE layer, in ascending order.
    experts: Vec<Vec<Vec<u32>>>,
}

impl Golden {
    fn read(kind: &str) -> Self {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(format!("tests/goldens/{kind}.json"));
        let json: Value = serde_json::from_str(&fs::read_to_string(path).unwrap()).unwrap();
        let part = |key: &str| json[key].clone();
        Self {
            config: part("config"),
            shapes: serde_json::from_value(part("tensors")).unwrap(),
            ids: serde_json::from_value(part("ids")).unwrap(),
            logits: serde_json::from_value(part("logits")).unwrap(),
            experts: serde_json::from_value(part("experts")).unwrap(),
        }
    }

    /// The model as transformers would have saved it, its weights in `files` files.
    fn save(&self, dtype: Dtype, files: usize) -> TempDir {
        let folder = tempdir().unwrap();
        fs::write(folder.path().join("config.json"), self.config.to_string()).unwrap();
        fs::write(folder.path().join("tokenizer.json"), letters().to_json().unwrap()).unwrap();
        let names: Vec<&String> = self.shapes.keys().collect();
        let mut weight_map = BTreeMap::new();
        for (number, names) in names.chunks(names.len().div_ceil(files)).enumerate() {
            let data: Vec<Vec<u8>> =
                names.iter().map(|name| stored(&values(name, &self.shapes[*name]), dtype)).collect();
            let views = names
                .iter()
                .zip(&data)
                .map(|(name, data)| (name.as_str(), TensorView::new(dtype, self.shapes[*name].clone(), data).unwrap()));
            let file = match files {
                1 => "model.safetensors".to_string(),
                _ => format!("model-{:05}-of-{files:05}.safetensors", number + 1),
            };
            let metadata = HashMap::from([("format".to_string(), "pt".to_string())]);
            fs::write(folder.path().join(&file), serialize(views, Some(metadata)).unwrap()).unwrap();
            weight_map.extend(names.iter().map(|name| (name.to_string(), file.clone())));
        }
        if files > 1 {
            let index = json!({ "metadata": { "total_size": 1 }, "weight_map": weight_map });
            fs::write(folder.path().join("model.safetensors.index.json"), index.to_string()).unwrap();
        }
        folder
    }

    fn check(&self, model: &Transformer, what: &str) {
        let mut decoder = Decoder::new(model);
        let step = decoder.advance(&self.ids, Logits::All).unwrap();
        for (position, (ours, theirs)) in step.logits_NV.chunks(model.vocab_size).zip(&self.logits).enumerate() {
            for (a, b) in ours.iter().zip(theirs) {
                assert!((a - b).abs() < TOLERANCE, "{what}, position {position}: {a} != {b}");
            }
        }
        let experts: Vec<Vec<Vec<u32>>> = step
            .routing
            .iter()
            .map(|routing| {
                let rows = routing.experts_NK.chunks(routing.experts_per_token());
                rows.map(|row| {
                    let mut row = row.to_vec();
                    row.sort_unstable();
                    row
                })
                .collect()
            })
            .collect();
        assert_eq!(experts, self.experts, "{what}");
    }
}

/// The weights' formula, as in scripts/make_goldens.py.
fn values(name: &str, shape: &[usize]) -> Vec<f32> {
    let fnv = |state: u64, byte: u8| (state ^ u64::from(byte)).wrapping_mul(0x100000001B3);
    let state = name.bytes().fold(0xCBF29CE484222325, fnv);
    let value = |index: u64| {
        let mut x = state ^ index.wrapping_mul(0x9E3779B97F4A7C15);
        x = (x ^ (x >> 30)).wrapping_mul(0xBF58476D1CE4E5B9);
        x = (x ^ (x >> 27)).wrapping_mul(0x94D049BB133111EB);
        x ^= x >> 31;
        let k = (x % 129) as f32 - 64.0;
        if name.contains("norm") { 1.0 + k / 128.0 } else { k / 256.0 }
    };
    (0..shape.iter().product::<usize>() as u64).map(value).collect()
}

fn stored(values: &[f32], dtype: Dtype) -> Vec<u8> {
    let bytes = |&value: &f32| match dtype {
        Dtype::BF16 => bf16::from_f32(value).to_le_bytes().to_vec(),
        Dtype::F16 => f16::from_f32(value).to_le_bytes().to_vec(),
        _ => value.to_le_bytes().to_vec(),
    };
    values.iter().flat_map(bytes).collect()
}

/// A tokenizer of 24 tokens: two special ones and 22 characters.
fn letters() -> Tokenizer {
    let config = TokenizerConfig { kind: TokenizerKind::Chars, vocab_size: 0, path: String::new() };
    Tokenizer::from_config(&config, &["a bcdefghijklmnopqrs.\n"]).unwrap()
}

/// A byte-level one, which llama.cpp has too.
fn bytes() -> Tokenizer {
    let config = TokenizerConfig { kind: TokenizerKind::Bytes, vocab_size: 0, path: String::new() };
    Tokenizer::from_config(&config, &[]).unwrap()
}

#[test]
fn models_of_transformers_give_its_logits_and_its_choice_of_experts() {
    for kind in KINDS {
        let golden = Golden::read(kind);
        for (dtype, files) in [(Dtype::F32, 1), (Dtype::BF16, 3), (Dtype::F16, 2)] {
            let folder = golden.save(dtype, files);
            assert!(foreign::is_foreign(folder.path()));
            let model = foreign::load(folder.path()).unwrap().model;
            golden.check(&model, &format!("{kind} in {dtype}"));
        }
    }
}

#[test]
fn what_we_write_is_what_transformers_wrote() {
    for kind in KINDS {
        let golden = Golden::read(kind);
        let Foreign { model, tokenizer, .. } = foreign::load(golden.save(Dtype::F32, 1).path()).unwrap();
        let files = model_files::encode(&model, &tokenizer).unwrap();
        let file = |name: &str| &files.iter().find(|(file, _)| *file == name).unwrap().1[..];

        let weights = SafeTensors::deserialize(file("model.safetensors")).unwrap();
        let mut names = weights.names();
        names.sort_unstable();
        assert!(names.iter().eq(golden.shapes.keys()), "{kind}: {names:?}");
        for (name, shape) in &golden.shapes {
            let tensor = weights.tensor(name).unwrap();
            assert_eq!(tensor.shape(), shape, "{kind}: {name}");
            assert_eq!(tensor.data(), stored(&values(name, shape), Dtype::F32), "{kind}: {name}");
        }

        let config: Value = serde_json::from_slice(file("config.json")).unwrap();
        // The first two say nothing about a model without what they are for; the last is of a layer that is not there.
        let free = ["sliding_window", "router_aux_loss_coef", "num_nextn_predict_layers"];
        for (key, theirs) in golden.config.as_object().unwrap() {
            // What is null there, transformers works out from the rest; here it may be written out.
            let is_free = free.contains(&key.as_str()) || theirs.is_null();
            if let Some(ours) = config.get(key).filter(|_| !is_free) {
                assert_eq!(ours, theirs, "{kind}: {key}");
            }
        }
        let required = ["hidden_size", "rope_parameters", "rms_norm_eps", "tie_word_embeddings", "num_key_value_heads"];
        assert!(required.iter().all(|key| golden.config.get(key).is_some() && config.get(key).is_some()), "{kind}");

        let folder = tempdir().unwrap();
        let saved = checkpoint::save(folder.path(), 1, &files).unwrap();
        let (model, _) = model_files::load(&checkpoint::load(&saved).unwrap()).unwrap();
        golden.check(&model, &format!("{kind}, saved"));
    }
}

/// Changes the tensors of a file.
fn rewrite(path: &Path, edit: impl FnOnce(&mut Tensors)) {
    let bytes = fs::read(path).unwrap();
    let file = SafeTensors::deserialize(&bytes).unwrap();
    let entry =
        |(name, view): (String, TensorView)| (name, (view.dtype(), view.shape().to_vec(), view.data().to_vec()));
    let mut tensors: BTreeMap<_, _> = file.tensors().into_iter().map(entry).collect();
    edit(&mut tensors);
    let views = tensors
        .iter()
        .map(|(name, (dtype, shape, data))| (name, TensorView::new(*dtype, shape.clone(), data).unwrap()));
    fs::write(path, serialize(views, None).unwrap()).unwrap();
}

/// Saves the Mixtral golden, lets `damage` change the folder, and returns the error with its exit code.
fn refusal(damage: impl Fn(&Path)) -> (u8, String) {
    let folder = Golden::read("mixtral").save(Dtype::BF16, 2);
    damage(folder.path());
    let error = foreign::load(folder.path()).err().expect("this cannot be read");
    (exit_code(&error), format!("{error:#}"))
}

#[test]
fn damaged_or_incomplete_models_are_refused_and_what_is_wrong_is_named() {
    let shard = |folder: &Path| folder.join("model-00002-of-00002.safetensors");
    let rewrite = |folder: &Path, edit: fn(&mut Tensors)| rewrite(&shard(folder), edit);
    type Damage<'a> = (&'a str, u8, &'a dyn Fn(&Path));
    let damages: &[Damage] = &[
        ("too short for a safetensors file", 4, &|folder| fs::write(shard(folder), "no").unwrap()),
        ("cut off", 4, &|folder| {
            let whole = fs::read(shard(folder)).unwrap();
            fs::write(shard(folder), &whole[..whole.len() - 1]).unwrap();
        }),
        ("header", 4, &|folder| fs::write(shard(folder), [0xff; 64]).unwrap()),
        ("cannot read", 1, &|folder| fs::remove_file(shard(folder)).unwrap()),
        ("\"model.norm.weight\" is missing", 4, &|folder| {
            rewrite(folder, |tensors| drop(tensors.remove("model.norm.weight")));
        }),
        ("has shape [17], expected [16]", 4, &|folder| {
            rewrite(folder, |tensors| {
                drop(tensors.insert("model.norm.weight".into(), (Dtype::BF16, vec![17], vec![0; 34])));
            });
        }),
        ("dtype I8", 1, &|folder| {
            rewrite(folder, |tensors| {
                drop(tensors.insert("model.norm.weight".into(), (Dtype::I8, vec![16], vec![0; 16])))
            });
        }),
        ("holds NaN at index 0", 4, &|folder| {
            let nan = |tensors: &mut Tensors| {
                tensors.get_mut("model.norm.weight").unwrap().2[..2].copy_from_slice(&bf16::NAN.to_le_bytes());
            };
            rewrite(folder, nan);
        }),
        ("\"model.layers.0.self_attn.q_proj.bias\"", 1, &|folder| {
            rewrite(folder, |tensors| {
                drop(
                    tensors.insert("model.layers.0.self_attn.q_proj.bias".into(), (Dtype::BF16, vec![16], vec![0; 32])),
                );
            });
        }),
        ("no tokenizer.json", 1, &|folder| fs::remove_file(folder.join("tokenizer.json")).unwrap()),
        ("not a file beside it", 1, &|folder| {
            let index = json!({ "weight_map": { "model.norm.weight": "../model.safetensors" } });
            fs::write(folder.join("model.safetensors.index.json"), index.to_string()).unwrap();
        }),
        ("no weight_map", 4, &|folder| fs::write(folder.join("model.safetensors.index.json"), "{}").unwrap()),
        ("pytorch_model.bin", 1, &|folder| fs::remove_file(folder.join("model.safetensors.index.json")).unwrap()),
        ("model_type \"gpt2\"", 1, &|folder| {
            fs::write(folder.join("config.json"), r#"{ "model_type": "gpt2", "vocab_size": 24 }"#).unwrap();
        }),
    ];
    for (what, code, damage) in damages {
        let (found, message) = refusal(damage);
        assert!(message.contains(what), "{what}: {message}");
        assert_eq!(found, *code, "{what}: {message}");
    }
}

/// Reads a GGUF back: its metadata, and its tensors by name as f32 with their shapes.
fn read_gguf(path: &Path) -> (HashMap<String, GgufValue>, BTreeMap<String, Numbers>) {
    let mut file = File::open(path).unwrap();
    let content = Content::read(&mut file).unwrap();
    let tensors = content.tensor_infos.keys().map(|name| {
        let tensor = content.tensor(&mut file, name, &Device::Cpu).unwrap().dequantize(&Device::Cpu).unwrap();
        let numbers = tensor.flatten_all().unwrap().to_vec1().unwrap();
        (name.clone(), (tensor.dims().to_vec(), numbers))
    });
    (content.metadata.clone(), tensors.collect())
}

fn export(model: &Transformer, tokenizer: &Tokenizer, dtype: Stored) -> (TempDir, PathBuf, Vec<String>) {
    let folder = tempdir().unwrap();
    let path = folder.path().join("model.gguf");
    let narrower = gguf::write(&mut File::create(&path).unwrap(), model, tokenizer, None, dtype, "golden").unwrap();
    (folder, path, narrower)
}

/// A model of the golden's architecture with room for the byte tokenizer.
fn with_bytes(kind: &str, edit: impl Fn(&mut Value)) -> Transformer {
    let mut golden = Golden::read(kind);
    golden.config["vocab_size"] = 260.into();
    for name in ["model.embed_tokens.weight", "lm_head.weight"] {
        golden.shapes.entry(name.into()).and_modify(|shape| shape[0] = 260);
    }
    edit(&mut golden.config);
    if golden.config["num_key_value_heads"] == 4 {
        for (name, shape) in &mut golden.shapes {
            if name.contains("k_proj") || name.contains("v_proj") || name.contains("k_norm") {
                shape[0] = 16;
            }
        }
    }
    foreign::load(golden.save(Dtype::F32, 1).path()).unwrap().model
}

#[test]
fn a_gguf_holds_the_weights_and_sizes_under_llama_cpps_names() {
    for (kind, architecture) in
        [("mixtral", "llama"), ("olmoe", "olmoe"), ("qwen2_moe", "qwen2moe"), ("glm4_moe", "glm4moe")]
    {
        let model = with_bytes(kind, |config| {
            if kind == "olmoe" {
                config["num_key_value_heads"] = 4.into();
            }
        });
        let (_folder, path, narrower) = export(&model, &bytes(), Stored::F32);
        assert_eq!(narrower, Vec::<String>::new());
        let (metadata, tensors) = read_gguf(&path);
        let number = |key: &str| metadata[&format!("{architecture}.{key}")].to_u32().unwrap();
        assert_eq!(metadata["general.architecture"].to_string().unwrap(), architecture);
        assert_eq!((number("embedding_length"), number("block_count"), number("expert_count")), (16, 2, 4));
        assert_eq!(number("vocab_size"), 260);
        let prefix = if kind == "mixtral" { "block_sparse_moe.experts" } else { "mlp.experts" };
        let up = if kind == "mixtral" { "w3" } else { "up_proj" };
        let expected: Vec<f32> = (0..4)
            .flat_map(|expert| values(&format!("model.layers.1.{prefix}.{expert}.{up}.weight"), &[8, 16]))
            .collect();
        assert_eq!(tensors["blk.1.ffn_up_exps.weight"], (vec![4, 8, 16], expected));
        let q = values("model.layers.0.self_attn.q_proj.weight", &model_shape(&model));
        let (shape, found) = &tensors["blk.0.attn_q.weight"];
        assert_eq!(shape, &model_shape(&model));
        // llama.cpp's llama turns neighbouring channels: row 1 of a head is the first of its second half.
        let half = model.model.head_dim / 2;
        let row_of_q = if architecture == "llama" { half } else { 1 };
        assert_eq!(found[16..32], q[row_of_q * 16..][..16], "{kind}");
    }
}

fn model_shape(model: &Transformer) -> Vec<usize> {
    vec![model.model.num_attention_heads * model.model.head_dim, model.model.hidden_size]
}

#[test]
fn a_gguf_holds_the_tokenizer() {
    let (_folder, path, _) = export(&with_bytes("mixtral", |_| ()), &bytes(), Stored::F32);
    let metadata = read_gguf(&path).0;
    let list = |key: &str| metadata[&format!("tokenizer.ggml.{key}")].to_vec().unwrap().clone();
    let names: Vec<String> = list("tokens").iter().map(|name| name.to_string().unwrap().clone()).collect();
    assert_eq!(names.len(), 260);
    assert_eq!((names[0].as_str(), names[1 + usize::from(b'a')].as_str()), ("<|endoftext|>", "a"));
    let kinds: Vec<i32> = list("token_type").iter().map(|kind| kind.to_i32().unwrap()).collect();
    assert_eq!((kinds[0], kinds[1], kinds[259]), (3, 1, 5));
    assert_eq!(metadata["tokenizer.ggml.pre"].to_string().unwrap(), "gpt-2");
    assert!(!metadata["tokenizer.ggml.add_bos_token"].to_bool().unwrap());
    // llama.cpp does not load an empty list.
    assert!(!list("merges").is_empty());
    assert_eq!(metadata["tokenizer.ggml.eos_token_id"].to_u32().unwrap(), 0);
}

#[test]
fn quantised_weights_stay_within_half_a_step_of_the_exact_ones() {
    let mut config = tinymoe::config::Config::default();
    (config.model.hidden_size, config.model.num_hidden_layers, config.model.moe_intermediate_size) = (32, 1, 48);
    config.model.resolve();
    config.model.head_dim = 8;
    let model = Transformer::new(&config.model, &config.router, 300, 1).unwrap();
    let exact = read_gguf(&export(&model, &bytes(), Stored::F32).1).1;
    for (dtype, steps) in [(Stored::F16, 2048.0), (Stored::Bf16, 256.0), (Stored::Q8_0, 127.0), (Stored::Q4_0, 8.0)] {
        let (_folder, path, narrower) = export(&model, &bytes(), dtype);
        let is_blocks = matches!(dtype, Stored::Q8_0 | Stored::Q4_0);
        // Rows of 48 numbers are no whole number of blocks.
        assert_eq!(narrower, if is_blocks { vec!["blk.0.ffn_down_exps.weight"] } else { vec![] }, "{dtype:?}");
        for (name, (shape, found)) in read_gguf(&path).1 {
            let (expected_shape, expected) = &exact[&name];
            assert_eq!(&shape, expected_shape, "{name}");
            let mut changed = false;
            for (found, expected) in found.chunks(32).zip(expected.chunks(32)) {
                let largest = expected.iter().fold(0f32, |largest, x| largest.max(x.abs()));
                for (a, b) in found.iter().zip(expected) {
                    assert!((a - b).abs() <= 1.01 * largest / steps, "{dtype:?} {name}: {a} for {b} beside {largest}");
                    changed |= a != b;
                }
            }
            let is_matrix = shape.len() > 1 && !name.contains("ffn_gate_inp");
            assert_eq!(changed, is_matrix, "{dtype:?}: {name}");
        }
    }
}

#[test]
fn a_weight_that_a_type_cannot_hold_is_refused_by_name() {
    let model = with_bytes("mixtral", |_| ());
    let place = model.parameters.list().iter().find(|parameter| parameter.name.ends_with("q_proj.weight")).unwrap();
    model.parameters.values_mut()[place.range.start] = 1e38;
    let mut file = std::io::Cursor::new(Vec::new());
    for dtype in [Stored::F16, Stored::Q8_0, Stored::Q4_0] {
        let error = gguf::write(&mut file, &model, &bytes(), None, dtype, "x").unwrap_err().to_string();
        assert!(error.contains("blk.0.attn_q.weight holds") && error.contains("--dtype f32"), "{dtype:?}: {error}");
    }
    for dtype in [Stored::F32, Stored::Bf16] {
        gguf::write(&mut file, &model, &bytes(), None, dtype, "x").unwrap();
    }
}

#[test]
fn what_llama_cpp_does_not_compute_is_refused_by_option() {
    type Edit = fn(&mut tinymoe::config::Config);
    let cases: &[(&str, Edit)] = &[
        ("router.norm_topk_prob = false", |c| c.router.norm_topk_prob = false),
        ("model.first_k_dense_replace", |c| c.model.first_k_dense_replace = 1),
        ("router.norm_topk_prob = true", |c| c.model.qk_norm_across_heads = true),
        ("model.num_key_value_heads", |c| {
            (c.model.qk_norm_across_heads, c.router.norm_topk_prob, c.model.num_key_value_heads) = (true, false, 2);
        }),
        ("model.shared_expert_gate", |c| c.model.n_shared_experts = 1),
        ("model.n_shared_experts = 0", |c| {
            c.router.scoring_func = tinymoe::config::ScoringFunc::Sigmoid;
            c.router.balance = tinymoe::config::Balance::Bias;
        }),
    ];
    for (option, edit) in cases {
        let mut config = tinymoe::config::Config::default();
        edit(&mut config);
        let reason = gguf::architecture(&config.model, &config.router).unwrap_err();
        assert!(reason.starts_with(option), "{option}: {reason}");
    }
    let model = with_bytes("mixtral", |_| ());
    let refused = |tokenizer: &Tokenizer, part: &str| {
        let file = &mut std::io::Cursor::new(Vec::new());
        let error = gguf::write(file, &model, tokenizer, None, Stored::F32, "x").unwrap_err();
        assert!(error.to_string().contains(part), "{part}: {error:#}");
    };
    refused(&letters(), "cannot tokenize");
    let edited = |edit: &dyn Fn(&mut Value)| {
        let mut json: Value = serde_json::from_slice(&bytes().to_json().unwrap()).unwrap();
        edit(&mut json);
        Tokenizer::from_json(json.to_string().as_bytes(), "edited.json").unwrap()
    };
    let other = json!({ "type": "Replace", "pattern": { "String": "q" }, "content": "Q" });
    let more = |json: &mut Value| {
        json["decoder"] = json!({ "type": "Sequence", "decoders": [json["decoder"], other] });
    };
    refused(&edited(&more), "cannot tokenize");
    let spaced = |json: &mut Value| {
        (json["model"]["vocab"]["a b"], json["model"]["vocab"]["a bc"]) = (257.into(), 258.into());
        json["model"]["merges"] = json!([["a b", "c"]]);
    };
    refused(&edited(&spaced), "divides merges at a space");
}

#[test]
fn the_program_reads_a_model_of_transformers_and_exports_what_it_trained() {
    let workspace = Workspace::trained();
    let foreign = Golden::read("olmoe").save(Dtype::BF16, 2);
    workspace.write("text.txt", "a bed. a flag. no more\n");
    for (arguments, expected) in [
        (vec!["sample", "--prompt", "a bed", "--tokens", "5"], "a bed"),
        (vec!["eval", "--data", "text.txt"], "bits per byte"),
        (vec!["inspect", "--data", "text.txt"], "2 MoE layers, 2 of 4 experts per token"),
    ] {
        let ran = output(workspace.command().arg(arguments[0]).arg(foreign.path()).args(&arguments[1..]));
        assert_eq!(ran.code, 0, "{arguments:?}: {}", ran.stderr);
        assert!(ran.stdout.contains(expected), "{arguments:?}: {}", ran.stdout);
    }
    workspace.refuses(&format!("eval {}", foreign.path().display()), 2, &["--data"]);

    let exported = workspace.succeeds("export r --to gguf model.gguf --dtype q8_0").stdout;
    assert!(exported.starts_with("model.gguf: qwen3moe, "), "{exported}");
    assert_eq!(read_gguf(&workspace.path("model.gguf")).0["general.file_type"].to_u32().unwrap(), 7);
    workspace.refuses("export r --to gguf model.gguf", 2, &["model.gguf exists already"]);
    workspace.refuses("export r --to hf other --dtype q8_0", 2, &["--dtype"]);
    workspace.succeeds("export r --to hf directory");
    // The exported directory is a model like any other, and the same one.
    let sample = |model: &str| workspace.succeeds(&format!("sample {model} --prompt the --tokens 20")).stdout;
    assert_eq!(sample("directory"), sample("r"));
}
