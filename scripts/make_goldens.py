"""Makes tests/goldens/*.json: what transformers computes for one tiny model of each architecture.

The weights are a formula of tensor name and index, which tests/interop.rs computes too, so that no binary is stored: each
file has the configuration, the tensors' names and shapes as transformers writes them, token ids, logits, and the routers'
choices. Weights are small multiples of 1/256, which f32, f16 and bf16 hold exactly.

    python3 -m venv target/goldens
    target/goldens/bin/pip install torch==2.15.0 transformers==5.24.0 numpy==2.4.6
    target/goldens/bin/python scripts/make_goldens.py
"""

import json
import pathlib
import re
import struct
import tempfile

import numpy
import safetensors.numpy
import torch
import transformers

VERSIONS = {"torch": "2.15.0", "transformers": "5.24.0"}
IDS = [5, 17, 0, 23, 9, 9, 2, 14, 21, 1, 11, 6]
SHAPE = dict(vocab_size=24, hidden_size=16, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2,
             max_position_embeddings=32, num_experts_per_tok=2, moe_intermediate_size=8, bos_token_id=0, eos_token_id=0,
             pad_token_id=None)
MODELS = {
    "qwen3_moe": dict(num_experts=4, head_dim=6, norm_topk_prob=True, mlp_only_layers=[0], intermediate_size=12,
                      tie_word_embeddings=True),
    "mixtral": dict(num_local_experts=4, intermediate_size=8, rope_theta=5000.0),
    "olmoe": dict(num_experts=4, intermediate_size=8),
    "qwen2_moe": dict(num_experts=4, intermediate_size=12, shared_expert_intermediate_size=16),
    "glm4_moe": dict(n_routed_experts=4, intermediate_size=12, head_dim=8, use_qk_norm=True, attention_bias=True,
                     routed_scaling_factor=1.5),
    "qwen3": dict(intermediate_size=12, head_dim=4),
    "llama": dict(intermediate_size=12, num_key_value_heads=4),
}


def values(name, count):
    """For norms 1 + k/128, for the rest k/256, with k from -64 to 64: a hash (FNV-1a, then splitmix64's) of name and index."""
    state = 0xCBF29CE484222325
    for byte in name.encode():
        state = (state ^ byte) * 0x100000001B3 % 2**64
    with numpy.errstate(over="ignore"):
        x = numpy.uint64(state) ^ numpy.arange(count, dtype=numpy.uint64) * numpy.uint64(0x9E3779B97F4A7C15)
        x = (x ^ (x >> numpy.uint64(30))) * numpy.uint64(0xBF58476D1CE4E5B9)
        x = (x ^ (x >> numpy.uint64(27))) * numpy.uint64(0x94D049BB133111EB)
        x ^= x >> numpy.uint64(31)
    k = (x % numpy.uint64(129)).astype(numpy.float64) - 64
    return (1 + k / 128 if "norm" in name else k / 256).astype(numpy.float32)


def golden(kind, keys):
    config = transformers.AutoConfig.for_model(kind, **(SHAPE | keys))
    with tempfile.TemporaryDirectory() as folder:
        transformers.AutoModelForCausalLM.from_config(config).save_pretrained(folder)
        path = pathlib.Path(folder, "model.safetensors")
        data = path.read_bytes()
        header = json.loads(data[8:8 + struct.unpack("<Q", data[:8])[0]])
        shapes = {name: tensor["shape"] for name, tensor in sorted(header.items()) if name != "__metadata__"}
        tensors = {name: values(name, int(numpy.prod(shape))).reshape(shape) for name, shape in shapes.items()}
        safetensors.numpy.save_file(tensors, path, metadata={"format": "pt"})
        model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager")
        config = json.loads(pathlib.Path(folder, "config.json").read_text())

    experts = []
    for name, module in model.named_modules():
        if re.search(r"\.mlp\.gate$", name):
            module.register_forward_hook(
                lambda _module, _inputs, output: experts.append(
                    next(part for part in output if part.dtype == torch.int64).sort(dim=-1).values.tolist()))
    with torch.no_grad():
        logits = model(torch.tensor([IDS])).logits[0]
    return {
        "versions": VERSIONS,
        "config": config,
        "tensors": shapes,
        "ids": IDS,
        "logits": [[float(f"{logit:.8g}") for logit in row] for row in logits.tolist()],
        "experts": experts,
    }


def main():
    found = {"torch": torch.__version__.split("+")[0], "transformers": transformers.__version__}
    if found != VERSIONS:
        raise SystemExit(f"the goldens are made with {VERSIONS}, here are {found}")
    folder = pathlib.Path(__file__).parent.parent / "tests" / "goldens"
    folder.mkdir(exist_ok=True)
    for kind, keys in MODELS.items():
        rows = [f'  {json.dumps(key)}: {json.dumps(value)}' for key, value in golden(kind, keys).items()]
        (folder / f"{kind}.json").write_text("{\n" + ",\n".join(rows) + "\n}\n")


main()
