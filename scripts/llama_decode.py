#!/usr/bin/env python3
"""llama.cpp's decoding speed on a GGUF file, for scripts/compare_speed.sh: f32 cache, no flash attention, one sequence.

Prints one JSON line with the median over sequences of tokens per second, counting llama_decode alone (no sampling, no
Python around it): the best that any program on top of llama.cpp can do.
"""
import argparse
import json
import resource
import statistics
import time

import llama_cpp

parser = argparse.ArgumentParser()
parser.add_argument("workload")
parser.add_argument("gguf")
parser.add_argument("--context", type=int, required=True)
parser.add_argument("--threads", type=int, default=2)
parser.add_argument("--prompt", type=int, default=8)
parser.add_argument("--seconds", type=float, default=3)
args = parser.parse_args()

F32 = 0
model = llama_cpp.Llama(args.gguf, n_ctx=args.context, n_threads=args.threads, n_threads_batch=args.threads,
                        type_k=F32, type_v=F32, flash_attn=False, verbose=False)
context, vocab = model.ctx, model.n_vocab()


def decode(ids):
    tokens = (llama_cpp.llama_token * len(ids))(*ids)
    started = time.perf_counter()
    if llama_cpp.llama_decode(context, llama_cpp.llama_batch_get_one(tokens, len(ids))) != 0:
        raise SystemExit("llama_decode failed")
    return time.perf_counter() - started


rates, started = [], time.perf_counter()
while len(rates) < 4 or time.perf_counter() - started < args.seconds:
    llama_cpp.llama_memory_clear(llama_cpp.llama_get_memory(context), True)
    decode([(7 * i + 3) % vocab for i in range(args.prompt)])
    count = args.context - args.prompt
    rates.append(count / sum(decode([(31 * i + len(rates)) % vocab]) for i in range(count)))
memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
print(json.dumps({"workload": args.workload, "implementation": "llama.cpp", "mode": "sample",
                  "tokens_per_s": round(statistics.median(rates[1:]), 1), "peak_memory_mb": memory,
                  "llama_cpp": llama_cpp.__version__}))
