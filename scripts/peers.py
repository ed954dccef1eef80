#!/usr/bin/env python3
"""PyTorch on the workloads of `tinymoe bench`, for scripts/compare_speed.sh.

One JSON line a call: {"workload", "implementation", "mode", "tokens_per_s", "peak_memory_mb", "torch"}.
Implementations: "loop" (tokens sorted by expert, one matrix product per expert), "grouped" (torch's grouped_mm),
"dense" (no experts, equal active parameters; compiled), "transformers" (Qwen3-MoE). A training step is forward,
backward, clipping to norm 1 and fused AdamW on random tokens; sampling is greedy for one sequence (transformers only).
Precisions of training: "f32", "autocast" (f32 weights, products in bf16), "bf16" (weights, activations and gradients in
bf16, beside f32 weights that AdamW updates).
"""
import argparse
import contextlib
import json
import resource
import statistics
import sys
import time

import torch
import torch.nn.functional as F
from torch import nn

#        D    L  H  E   K  F    T    B   V
SHAPES = {
    "w1": (128, 8, 8, 8, 2, 352, 32, 16, 65),
    "w2": (128, 4, 4, 8, 2, 352, 64, 12, 65),
    "w3": (256, 6, 8, 8, 2, 512, 256, 16, 4096),
    "w4": (256, 6, 8, 32, 4, 256, 256, 16, 4096),
}

parser = argparse.ArgumentParser()
parser.add_argument("workload", choices=SHAPES)
parser.add_argument("implementation", choices=["loop", "grouped", "dense", "transformers"])
parser.add_argument("--precision", choices=["f32", "autocast", "bf16"], default="f32")
parser.add_argument("--mode", choices=["train", "sample"], default="train")
parser.add_argument("--threads", type=int, default=2)
parser.add_argument("--seconds", type=float, default=5)
args = parser.parse_args()
torch.set_num_threads(args.threads)
torch.manual_seed(1)
D, L, H, E, K, W, T, B, V = SHAPES[args.workload]


class Attention(nn.Module):
    def __init__(self):
        super().__init__()
        self.qkv, self.out = nn.Linear(D, 3 * D, bias=False), nn.Linear(D, D, bias=False)
        angles = torch.outer(torch.arange(T), 10_000.0 ** (-torch.arange(0, D // H, 2) / (D // H)))
        self.register_buffer("cos", angles.cos())
        self.register_buffer("sin", angles.sin())

    def forward(self, x):
        q, k, v = self.qkv(x).view(-1, T, 3, H, D // H).permute(2, 0, 3, 1, 4)
        q, k = (self.rotate(t) for t in (q, k))
        y = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        return self.out(y.transpose(1, 2).reshape(x.shape))

    def rotate(self, t):
        half = D // H // 2
        a, b = t[..., :half], t[..., half:]
        return torch.cat([a * self.cos - b * self.sin, b * self.cos + a * self.sin], -1)


class Experts(nn.Module):
    def __init__(self, grouped):
        super().__init__()
        self.grouped = grouped
        self.router = nn.Linear(D, E, bias=False)
        self.up = nn.Parameter(torch.randn(E, D, 2 * W) * 0.02)
        self.down = nn.Parameter(torch.randn(E, W, D) * 0.02)

    def forward(self, x):
        h = x.reshape(-1, D)
        probs = self.router(h).softmax(-1)
        gates, chosen = probs.topk(K, -1)
        gates = gates / gates.sum(-1, keepdim=True)
        order = chosen.flatten().argsort(stable=True)
        counts = chosen.flatten().bincount(minlength=E)
        rows = h[order // K]
        if self.grouped:
            ends = counts.cumsum(0).to(torch.int32)
            # Autocast does not know grouped_mm.
            low = (lambda t: t.bfloat16()) if args.precision == "autocast" else (lambda t: t)
            gate, up = F.grouped_mm(low(rows), low(self.up), offs=ends).chunk(2, -1)
            y = F.grouped_mm(F.silu(gate) * up, low(self.down), offs=ends)
        else:
            y = []
            for part, w_up, w_down in zip(rows.split(counts.tolist()), self.up, self.down):
                gate, up = (part @ w_up).chunk(2, -1)
                y.append((F.silu(gate) * up) @ w_down)
            y = torch.cat(y)
        y = torch.zeros_like(h).index_add(0, order // K, (y * gates.flatten()[order, None]).to(h.dtype))
        balance = E / K * (counts / len(h) * probs.mean(0)).sum()
        return y.view(x.shape), balance


class Dense(nn.Module):
    def __init__(self):
        super().__init__()
        self.up, self.down = nn.Linear(D, 2 * K * W, bias=False), nn.Linear(K * W, D, bias=False)

    def forward(self, x):
        gate, up = self.up(x).chunk(2, -1)
        return self.down(F.silu(gate) * up), 0.0


class Model(nn.Module):
    def __init__(self, kind):
        super().__init__()
        self.embed = nn.Embedding(V, D)
        self.attention = nn.ModuleList(Attention() for _ in range(L))
        make = Dense if kind == "dense" else lambda: Experts(kind == "grouped")
        self.feed_forward = nn.ModuleList(make() for _ in range(L))
        self.norms = nn.ModuleList(nn.RMSNorm(D, eps=1e-6) for _ in range(2 * L + 1))

    def forward(self, ids, targets):
        x, total = self.embed(ids), 0.0
        for layer in range(L):
            x = x + self.attention[layer](self.norms[2 * layer](x))
            y, balance = self.feed_forward[layer](self.norms[2 * layer + 1](x))
            x, total = x + y, total + balance
        logits = self.norms[-1](x) @ self.embed.weight.t()
        return F.cross_entropy(logits.view(-1, V), targets.view(-1)) + 0.01 * total / L


def transformers_model():
    from transformers import Qwen3MoeConfig, Qwen3MoeForCausalLM

    config = Qwen3MoeConfig(
        vocab_size=V, hidden_size=D, num_hidden_layers=L, num_attention_heads=H, num_key_value_heads=H, head_dim=D // H,
        num_experts=E, num_experts_per_tok=K, moe_intermediate_size=W, intermediate_size=W, norm_topk_prob=True,
        max_position_embeddings=4096, tie_word_embeddings=True, output_router_logits=args.mode == "train",
        router_aux_loss_coef=0.01, bos_token_id=None, eos_token_id=None,
    )
    config._experts_implementation = "grouped_mm"
    return Qwen3MoeForCausalLM(config)


def train():
    if args.implementation == "transformers":
        model = transformers_model().train()
        loss_of = lambda ids, targets: model(input_ids=ids, labels=ids, shift_labels=targets).loss
    else:
        model = Model(args.implementation)
        loss_of = torch.compile(model) if args.implementation == "dense" else model
    # What AdamW updates: the parameters, or f32 copies of them.
    weights = list(model.parameters())
    if args.precision == "bf16":
        weights = [nn.Parameter(weight.detach().clone()) for weight in weights]
        model.bfloat16()
    optimizer = torch.optim.AdamW(weights, lr=1e-3, weight_decay=0.1, fused=True)
    times = []
    for step in range(10_000):
        ids = torch.randint(V, (B, T + 1))
        started = time.perf_counter()
        low = torch.autocast("cpu", torch.bfloat16) if args.precision == "autocast" else contextlib.nullcontext()
        with low:
            loss = loss_of(ids[:, :-1].contiguous(), ids[:, 1:].contiguous())
        model.zero_grad(set_to_none=True)
        loss.backward()
        if args.precision == "bf16":
            for weight, parameter in zip(weights, model.parameters()):
                weight.grad = parameter.grad.float()
        nn.utils.clip_grad_norm_(weights, 1.0)
        optimizer.step()
        if args.precision == "bf16":
            with torch.no_grad():
                torch._foreach_copy_(list(model.parameters()), weights)
        if step >= 3:
            times.append(time.perf_counter() - started)
        if len(times) >= 10 and sum(times) > args.seconds:
            break
    return B * T / statistics.median(times)


@torch.no_grad()
def sample():
    model, prompt, count = transformers_model().eval(), torch.randint(V, (1, 8)), T - 8
    rates = []
    for _ in range(4):
        started = time.perf_counter()
        model.generate(prompt, attention_mask=torch.ones_like(prompt), do_sample=False, max_new_tokens=count,
                       min_new_tokens=count, pad_token_id=0)
        rates.append(count / (time.perf_counter() - started))
    return statistics.median(rates[1:])


if args.mode == "sample" and args.implementation != "transformers":
    sys.exit("sampling is timed with transformers only")
speed = train() if args.mode == "train" else sample()
memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
name = args.implementation if args.precision == "f32" else f"{args.implementation} {args.precision}"
print(json.dumps({"workload": args.workload, "implementation": name, "mode": args.mode,
                  "tokens_per_s": round(speed, 1), "peak_memory_mb": memory, "torch": torch.__version__}))
