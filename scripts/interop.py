"""Holds tinymoe against transformers or llama.cpp, whichever this Python has: the part of check_interop.sh that measures.

  interop.py transformers TEXT DIRECTORY...   each DIRECTORY a model of tinymoe's or of transformers'
  interop.py llama TEXT RUN=STEM...           STEM.f32.gguf, STEM.q8_0.gguf, ... exported from RUN
  interop.py make TOKENIZER OUT               tiny random models, written to OUT by transformers, one by its Trainer
  interop.py table RESULTS                    what the first two printed, as a table

The first two print one JSON object for each model. TEXT is a file of transcript lines.
"""

import json
import math
import pathlib
import re
import shutil
import subprocess
import sys
import tempfile

import numpy

LINES = {"transformers": 1000, "llama": 200}
GREEDY = {"transformers": 200, "llama": 100}
PROMPT_TOKENS = 40


class Tinymoe:
    """A model in tinymoe, through scripts/probe.rs and the command line."""

    def __init__(self, directory):
        self.directory = str(directory)
        probe = ["target/release/examples/probe", self.directory]
        self.process = subprocess.Popen(probe, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self.folder = tempfile.TemporaryDirectory()

    def ask(self, **request):
        print(json.dumps(request), file=self.process.stdin, flush=True)
        return json.loads(self.process.stdout.readline())

    def run(self, ids):
        """Logits (N, V), and for each MoE layer the chosen experts of each token."""
        path = pathlib.Path(self.folder.name, "logits")
        experts = self.ask(ids=ids, logits=str(path))["experts"]
        return numpy.fromfile(path, "<f4").reshape(len(ids), -1), experts

    def greedy(self, prompt, tokens):
        """The ids that `tinymoe sample` takes as the likeliest ones, one by one."""
        log = pathlib.Path(self.folder.name, "log.jsonl")
        command("sample", self.directory, "--prompt", prompt, "--temperature", "0", "--tokens", str(tokens),
                "--routing-log", str(log))
        entries = [json.loads(line) for line in log.read_text().splitlines()[1:]]
        return [entry["id"] for entry in entries if entry["source"] == "generated"]

    def close(self):
        self.process.stdin.close()
        self.process.wait()


def command(*arguments):
    finished = subprocess.run(["target/release/tinymoe", "--quiet", *arguments], capture_output=True, text=True)
    if finished.returncode != 0:
        sys.exit(f"tinymoe {' '.join(arguments)}: {finished.stderr}")
    return finished.stdout


def label(directory):
    """The run's name for a checkpoint of it, else the directory's."""
    path = pathlib.Path(directory)
    return path.parent.parent.name if path.parent.name == "checkpoints" else path.name


def windows(ids, length, count):
    return [ids[start:start + length] for start in range(0, count * length, length) if len(ids) >= start + length]


def mean_loss(logits, targets):
    largest = logits.max(axis=1, keepdims=True)
    log_sum = numpy.log(numpy.exp(logits - largest).sum(axis=1)) + largest[:, 0]
    return float((log_sum - logits[numpy.arange(len(targets)), targets]).mean())


def common_prefix(a, b):
    return next((i for i, (x, y) in enumerate(zip(a, b)) if x != y), min(len(a), len(b)))


def against_transformers(directory, lines):
    import torch
    import transformers

    # A weight without numbers cannot be missed: glm4_moe has such ones where there is no shared expert.
    has_numbers = lambda name: model.state_dict()[name].numel() > 0 if name in model.state_dict() else True
    transformers.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    torch.set_num_threads(2)
    model, info = transformers.AutoModelForCausalLM.from_pretrained(
        directory, dtype=torch.float32, attn_implementation="eager", output_loading_info=True)
    wrong_keys = [*filter(has_numbers, info["missing_keys"]), *info["unexpected_keys"], *info["mismatched_keys"]]
    tokenizer = transformers.AutoTokenizer.from_pretrained(directory)
    tinymoe = Tinymoe(directory)

    text = "\n".join(lines)
    encoded = [tinymoe.ask(encode=line) for line in lines]
    text_of = lambda ids: tokenizer.decode(ids, skip_special_tokens=True)
    differing = sum(
        tokenizer(line)["input_ids"] != ours["ids"] or text_of(ours["ids"]) != line or ours["decoded"] != line
        for line, ours in zip(lines, encoded))

    # What the routers choose is in their output: indices, or scores of which the largest are taken.
    chosen = []

    def note(_module, _inputs, output):
        parts = output if isinstance(output, tuple) else (output,)
        indices = [part for part in parts if part.dtype == torch.int64]
        k = model.config.num_experts_per_tok
        chosen.append(indices[0] if indices else parts[0].topk(k, dim=-1).indices)

    routers = [module for name, module in model.named_modules() if re.search(r"(mlp|block_sparse_moe)\.gate$", name)]
    for router in routers:
        router.register_forward_hook(note)

    difference, routed, rerouted, losses, tokens = 0.0, 0, 0, [], 0
    context = model.config.max_position_embeddings
    for ids in windows(tinymoe.ask(encode=text)["ids"], context, 8):
        chosen.clear()
        with torch.no_grad():
            theirs = model(torch.tensor([ids])).logits[0].numpy()
        ours, experts = tinymoe.run(ids)
        difference = max(difference, float(numpy.abs(ours - theirs).max()))
        for our_layer, their_layer in zip(experts, chosen, strict=True):
            for our_choice, their_choice in zip(our_layer, their_layer.reshape(len(ids), -1).tolist(), strict=True):
                routed += 1
                rerouted += sorted(our_choice) != sorted(their_choice)
        losses.append(mean_loss(theirs[:-1], ids[1:]))
        tokens += len(ids)

    # The same prompt for both: the text of its tokens.
    prompt = text_of(tinymoe.ask(encode=text)["ids"][:PROMPT_TOKENS])
    prompt_ids = tinymoe.ask(encode=prompt)["ids"]
    ours = tinymoe.greedy(prompt, GREEDY["transformers"])
    theirs = model.generate(torch.tensor([prompt_ids]), attention_mask=torch.ones(1, len(prompt_ids), dtype=torch.int64),
                            do_sample=False, max_new_tokens=GREEDY["transformers"])[0, len(prompt_ids):].tolist()
    tinymoe.close()

    # And once through the command line, on a line of text that fits into one window; an end of text closes it.
    window = " ".join(re.findall("[A-Za-z]+", text))[:context - 2] + "\n"
    with tempfile.NamedTemporaryFile("w", suffix=".txt") as file:
        file.write(window)
        file.flush()
        report = json.loads(command("eval", directory, "--data", file.name, "--json"))
        command("inspect", directory, "--data", file.name, "--json")
    ids = tokenizer(window)["input_ids"] + [model.config.eos_token_id]
    with torch.no_grad():
        expected = mean_loss(model(torch.tensor([ids])).logits[0].numpy()[:-1], ids[1:])
    trip = round_trip(directory, model, tokenizer, ids[:context])
    return {
        "model": label(directory),
        "type": model.config.model_type,
        "with": f"transformers {transformers.__version__}",
        "wrong_keys": len(wrong_keys),
        "logits": difference,
        "tokens": tokens,
        "greedy": [common_prefix(ours, theirs), max(len(ours), len(theirs))],
        "lines": [len(lines) - differing, len(lines)],
        "experts": [routed - rerouted, routed],
        "eval": abs(report["loss"] - expected),
        "trip": trip,
        "ok": not trip and difference <= 1e-4 and ours == theirs and differing == 0 and rerouted == 0
              and abs(report["loss"] - expected) <= 1e-4
              and not wrong_keys,
    }


def round_trip(directory, model, tokenizer, ids):
    """What is lost when transformers saves what it read from us, and when we export what we read: nothing."""
    import torch
    import transformers

    lost = []
    with tempfile.TemporaryDirectory() as folder:
        saved, exported = f"{folder}/saved", f"{folder}/exported"
        model.save_pretrained(saved)
        tokenizer.save_pretrained(saved)
        logits = []
        for path in [directory, saved]:
            tinymoe = Tinymoe(path)
            logits.append(tinymoe.run(ids)[0])
            tinymoe.close()
        if not numpy.array_equal(*logits):
            lost.append("logits")
        command("export", directory, exported, "--to", "hf")
        again = transformers.AutoModelForCausalLM.from_pretrained(exported, dtype=torch.float32)
        theirs, ours = model.state_dict(), again.state_dict()
        if theirs.keys() != ours.keys() or not all(torch.equal(theirs[name], ours[name]) for name in theirs):
            lost.append("tensors")
        other = transformers.AutoTokenizer.from_pretrained(exported)
        for what, of in {
            "tokenizer": lambda tokenizer: tokenizer.backend_tokenizer.to_str(),
            "special tokens": lambda tokenizer: tokenizer.special_tokens_map,
            "chat template": lambda tokenizer: tokenizer.chat_template,
        }.items():
            if of(tokenizer) != of(other):
                lost.append(what)
        if model.generation_config.to_dict() != again.generation_config.to_dict():
            lost.append("generation configuration")
        ends = ["bos_token_id", "eos_token_id", "pad_token_id"]
        if [getattr(model.config, key) for key in ends] != [getattr(again.config, key) for key in ends]:
            lost.append("ids of special tokens")
    return lost


def against_llama(run, stem, lines):
    import llama_cpp

    def load(dtype):
        # An f32 cache, and no flash attention, which rounds keys and values to f16.
        return llama_cpp.Llama(f"{stem}.{dtype}.gguf", n_ctx=256, n_batch=256, logits_all=True, verbose=False, n_threads=2,
                               type_k=llama_cpp.GGML_TYPE_F32, type_v=llama_cpp.GGML_TYPE_F32, flash_attn=False)

    tinymoe = Tinymoe(run)
    llama = load("f32")
    encoded = [tinymoe.ask(encode=line)["ids"] for line in lines]
    differing = sum(llama.tokenize(line.encode(), add_bos=False) != ids for line, ids in zip(lines, encoded))
    text = "\n".join(lines)
    ids = tinymoe.ask(encode=text)["ids"]

    def logits(model, ids):
        model.reset()
        model.eval(ids)
        return numpy.array(model.scores[:len(ids)])

    parts = windows(ids, 256, 8)
    difference = max(float(numpy.abs(logits(llama, part) - tinymoe.run(part)[0]).max()) for part in parts)

    prompt = llama.detokenize(ids[:PROMPT_TOKENS]).decode()
    prompt_ids = tinymoe.ask(encode=prompt)["ids"]
    ours = tinymoe.greedy(prompt, GREEDY["llama"])
    end = llama.token_eos()
    theirs, last = [], logits(llama, prompt_ids)[-1]
    while len(theirs) < GREEDY["llama"] and end not in theirs:
        theirs.append(int(last.argmax()))
        llama.eval(theirs[-1:])
        last = llama.scores[llama.n_tokens - 1]
    tinymoe.close()

    def perplexity(model):
        return math.exp(numpy.mean([mean_loss(logits(model, part)[:-1], part[1:]) for part in parts]))

    exact = perplexity(llama)
    change = {}
    for dtype in ["f16", "bf16", "q8_0", "q4_0"]:
        if pathlib.Path(f"{stem}.{dtype}.gguf").exists():
            change[dtype] = perplexity(load(dtype)) / exact - 1
    return {
        "model": label(run),
        "type": llama.metadata["general.architecture"],
        "with": f"llama.cpp ({llama_cpp.__version__})",
        "logits": difference,
        "tokens": 256 * len(parts),
        "greedy": [common_prefix(ours, theirs), max(len(ours), len(theirs))],
        "lines": [len(lines) - differing, len(lines)],
        "perplexity": exact,
        "change": change,
        "ok": difference <= 1e-4 and ours == theirs and differing == 0 and abs(change.get("q8_0", 1)) <= 0.01,
    }


def make(tokenizer, out):
    """One tiny random model of each architecture: 16 and 32 bits, in one file and in several, tied and not."""
    import torch
    import transformers

    shape = dict(hidden_size=64, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2, vocab_size=512,
                 max_position_embeddings=256, initializer_range=0.15, num_experts_per_tok=2, moe_intermediate_size=48,
                 bos_token_id=0, eos_token_id=0, pad_token_id=None)
    # All with the default rope_theta: what version 5 writes of another one, version 4 does not read.
    models = {
        "qwen3_moe": dict(num_experts=8, head_dim=32, norm_topk_prob=True, mlp_only_layers=[0], intermediate_size=96,
                          tie_word_embeddings=True),
        "mixtral": dict(num_local_experts=8, intermediate_size=48),
        "olmoe": dict(num_experts=8, intermediate_size=48),
        "qwen2_moe": dict(num_experts=8, intermediate_size=96, shared_expert_intermediate_size=96),
        "glm4_moe": dict(n_routed_experts=8, intermediate_size=96, head_dim=16, use_qk_norm=True, attention_bias=True,
                         routed_scaling_factor=1.5),
        "glm4_moe-routed-only": dict(n_routed_experts=8, n_shared_experts=0, intermediate_size=96, head_dim=16),
        "qwen3": dict(intermediate_size=96, head_dim=16),
        "llama": dict(intermediate_size=96, num_key_value_heads=4),
    }
    for number, (name, keys) in enumerate(models.items()):
        torch.manual_seed(number)
        config = transformers.AutoConfig.for_model(name.split("-")[0], **(shape | keys))
        model = transformers.AutoModelForCausalLM.from_config(config)
        with torch.no_grad():
            for weight, parameter in model.named_parameters():
                if "norm" in weight or "bias" in weight:  # 1 and 0 hide mistakes
                    parameter += 0.2 * torch.randn_like(parameter)
            for weight, buffer in model.named_buffers():
                if "e_score_correction_bias" in weight:
                    buffer += 0.1 * torch.randn_like(buffer)
        dtype = [torch.bfloat16, torch.float32, torch.float16][number % 3]
        directory = pathlib.Path(out, f"theirs-{name}")
        if name == "mixtral":
            # Several tokens end a text, another one fills up.
            model.generation_config.update(bos_token_id=1, eos_token_id=[2, 7], pad_token_id=0, do_sample=True)
            model.config.update(dict(bos_token_id=1, eos_token_id=2))
        model.to(dtype).save_pretrained(directory, max_shard_size="100KB" if number % 2 == 0 else "5GB")
        if name == "mixtral":
            sentencepiece_like(directory)
            continue
        for file in ["tokenizer.json", "tokenizer_config.json"]:
            (directory / file).write_bytes(pathlib.Path(tokenizer, file).read_bytes())
    trainers_directory(pathlib.Path(out, "theirs-llama"), pathlib.Path(out, "theirs-trainer"))


def sentencepiece_like(directory):
    """A tokenizer as Mixtral's: a mark in front of the text and for each space, bytes for unknown characters, a
    beginning-of-text token from the post-processor, and a chat template."""
    import tokenizers
    import transformers
    from tokenizers import AddedToken, decoders, models, normalizers, processors

    mark = "\u2581"
    names = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), mark]
    merges = []
    names += "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ.,'?:-"
    for pair in ["t h", "th e", f"{mark} the", "i n", f"{mark} a", "o n", "e r", f"{mark} t", "a n", f"{mark} {mark}"]:
        merges.append(tuple(pair.split(" ")))
        names.append(pair.replace(" ", ""))
    vocab = {name: id for id, name in enumerate(dict.fromkeys(names))}
    made = tokenizers.Tokenizer(models.BPE(vocab, merges, unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    made.normalizer = normalizers.Sequence([normalizers.Prepend(mark), normalizers.Replace(" ", mark)])
    made.decoder = decoders.Sequence([decoders.Replace(mark, " "), decoders.ByteFallback(), decoders.Fuse(),
                                      decoders.Strip(" ", 1, 0)])
    made.add_special_tokens([AddedToken(name, special=True, normalized=False) for name in ["<unk>", "<s>", "</s>"]])
    made.post_processor = processors.TemplateProcessing(
        single="<s> $A", pair="<s> $A <s> $B", special_tokens=[("<s>", vocab["<s>"])])
    transformers.PreTrainedTokenizerFast(
        tokenizer_object=made, unk_token="<unk>", bos_token="<s>", eos_token="</s>", clean_up_tokenization_spaces=False,
        chat_template="{% for message in messages %}[INST] {{ message['content'] }} [/INST]{% endfor %}",
    ).save_pretrained(directory)


def trainers_directory(model, out):
    """A checkpoint as transformers' Trainer leaves it, after a step on a few words. Its default collator needs a padding
    token, which the tokenizer has from us."""
    import torch
    import transformers

    tokenizer = transformers.AutoTokenizer.from_pretrained(model)
    texts = [tokenizer(text) for text in ["one two", "three four five six", "seven"]]
    assert tokenizer.pad_token is not None
    with tempfile.TemporaryDirectory() as folder:
        arguments = transformers.TrainingArguments(
            folder, max_steps=1, save_steps=1, per_device_train_batch_size=3, report_to=[], use_cpu=True, disable_tqdm=True)
        trainer = transformers.Trainer(
            transformers.AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32), arguments,
            transformers.DataCollatorForLanguageModeling(tokenizer, mlm=False), texts, processing_class=tokenizer)
        trainer.train()
        shutil.copytree(f"{folder}/checkpoint-1", out)
    assert (out / "trainer_state.json").exists()


def table(path):
    """The table in docs/interoperability.md, a row for each model and in it a part for each engine; says whether all is well."""
    rows = [json.loads(line) for line in pathlib.Path(path).read_text().splitlines()]
    engines = list(dict.fromkeys(row["with"] for row in rows))
    print("Largest difference of logits, and how many greedy tokens, lines and choices of experts agree:", end="\n\n")
    print(f"| model | {' | '.join(engines)} | greedy tokens | lines | expert choices | lost in round trips | q8_0 perplexity | |")
    print("|---" * (len(engines) + 7) + "|")
    for model in dict.fromkeys(row["model"] for row in rows):
        mine = {row["with"]: row for row in rows if row["model"] == model}
        counts = lambda key: " ".join("/".join(map(str, row[key])) for row in mine.values() if row.get(key, [0, 0])[1]) or "-"
        lost = {what for row in mine.values() for what in row.get("trip", [])}
        changes = [row["change"]["q8_0"] for row in mine.values() if row.get("change")]
        cells = [model, *(f"{mine[engine]['logits']:.1e}" if engine in mine else "-" for engine in engines),
                 counts("greedy"), counts("lines"), counts("experts"), ", ".join(sorted(lost)) or "nothing", *(f"{100 * change:+.3f}%" for change in changes or []),
                 *([] if changes else ["-"]), "ok" if all(row["ok"] for row in mine.values()) else "FAILED"]
        print(f"| {' | '.join(cells)} |")
    return all(row["ok"] for row in rows)


def main():
    kind, *arguments = sys.argv[1:]
    if kind == "make":
        make(*arguments)
        return
    if kind == "table":
        sys.exit(0 if table(*arguments) else 1)
    text, *models = arguments
    lines = [line for line in pathlib.Path(text).read_text().splitlines() if line.strip()][:LINES[kind]]
    for model in models:
        if kind == "llama":
            print(json.dumps(against_llama(*model.split("=", 1), lines)), flush=True)
        else:
            print(json.dumps(against_transformers(model, lines)), flush=True)


main()
