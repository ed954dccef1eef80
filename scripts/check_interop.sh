#!/usr/bin/env bash
# Holds tinymoe against transformers 5, transformers 4.57 and llama.cpp: trains a small model of each architecture, has
# transformers write small models of its own, and compares logits, greedy text, tokenizers, the routers' choices, and what
# is left after a round trip through the other program.
# Sets up its Python environments in target/interop from package names; llama.cpp is compiled there (some minutes, once).
# Without it (WITHOUT_LLAMA=1) that column is left out. Prints a table; exits with 1 if a comparison fails.
# Usage: scripts/check_interop.sh [TRANSCRIPTS]     a text file whose lines are used (default: those in data/, as they are)
set -euo pipefail
text=$(realpath "${1:-/dev/null}")
cd "$(dirname "$0")/.."

out=target/interop
python=$out/python/bin/python
mkdir -p "$out"
if [[ ! -e $out/python/complete ]]; then
    python3 -m venv "$out/python"
    "$out/python/bin/pip" install --quiet torch 'transformers>=5,<6' accelerate numpy
    # The older version goes beside the newer one; torch serves both.
    "$out/python/bin/pip" install --quiet --target "$out/transformers4" 'transformers==4.57.*' numpy
    touch "$out/python/complete"
fi
if [[ -z ${WITHOUT_LLAMA:-} && ! -e $out/python/llama ]]; then
    "$out/python/bin/pip" install --quiet llama-cpp-python
    touch "$out/python/llama"
fi
cargo build --release --quiet --bin tinymoe --example probe

if [[ ! -s $text ]]; then
    text=$out/lines.txt
    find data -type f -print0 | sort -z | xargs -0 cat > "$text"
fi

# Everything small, and the context long enough for a prompt and 200 tokens.
common=(model.hidden_size=64 model.num_hidden_layers=2 model.num_attention_heads=4 model.num_key_value_heads=2
    model.max_position_embeddings=256 model.moe_intermediate_size=48 model.intermediate_size=96 tokenizer.vocab_size=512
    train.max_steps=200 train.eval_interval=200 train.checkpoint_interval=200 train.batch_size=4 train.sample_tokens=0
    optimizer.warmup_steps=20)
declare -A kinds=(
    [qwen3_moe]=""
    [qwen3_moe-dense-first]="model.first_k_dense_replace=1 router.norm_topk_prob=false model.head_dim=32 model.tie_word_embeddings=false"
    [mixtral]="model.qk_norm=false"
    [olmoe]="model.qk_norm_across_heads=true router.norm_topk_prob=false model.tie_word_embeddings=false"
    [olmoe-all-heads]="model.qk_norm_across_heads=true router.norm_topk_prob=false model.tie_word_embeddings=false model.num_key_value_heads=4"
    [qwen2_moe]="model.qk_norm=false model.n_shared_experts=2 model.shared_expert_gate=true model.qkv_bias=true router.norm_topk_prob=false model.tie_word_embeddings=false"
    [glm4_moe]="router.scoring_func=sigmoid router.balance=bias router.bias_update_rate=0.01 router.routed_scaling_factor=1.5 model.n_shared_experts=1 model.first_k_dense_replace=1 model.partial_rotary_factor=0.5 model.qkv_bias=true"
    [glm4_moe-routed-only]="router.scoring_func=sigmoid router.balance=bias model.qk_norm=false router.norm_topk_prob=false"
    [qwen3]="model.num_experts=0"
    [llama]="model.num_experts=0 model.qk_norm=false"
)
mapfile -t names < <(printf '%s\n' "${!kinds[@]}" | sort)
ours=()
for name in "${names[@]}"; do
    run=$out/runs/$name
    ours+=("$run/checkpoints/best")
    [[ ! -d ${ours[-1]} ]] || continue
    settings=()
    for setting in "${common[@]}" ${kinds[$name]}; do settings+=(--set "$setting"); done
    echo "training $name" >&2
    target/release/tinymoe --quiet train configs/quickstart.toml --run "$run" "${settings[@]}"
done

results=$out/results.jsonl
: > "$results"
for path in "" "$out/transformers4"; do
    # Each version reads its own: version 4 does not find the number of experts in version 5's qwen3_moe.
    theirs=$out/theirs${path:+4}
    [[ -d $theirs ]] || PYTHONPATH=$path "$python" scripts/interop.py make "${ours[0]}" "$theirs"
    PYTHONPATH=$path "$python" scripts/interop.py transformers "$text" "${ours[@]}" "$theirs"/* >> "$results"
done

if [[ -n ${WITHOUT_LLAMA:-} ]]; then
    "$python" scripts/interop.py table "$results"
    exit
fi
pairs=()
for name in qwen3_moe mixtral olmoe-all-heads qwen2_moe glm4_moe qwen3 llama; do
    run=$out/runs/$name
    for dtype in f32 f16 bf16 q8_0 q4_0; do
        rm -f "$run/$name.$dtype.gguf"
        target/release/tinymoe --quiet export "$run" --to gguf --dtype "$dtype" "$run/$name.$dtype.gguf" > /dev/null
    done
    pairs+=("$run=$run/$name")
done
"$python" scripts/interop.py llama "$text" "${pairs[@]}" >> "$results"
"$python" scripts/interop.py table "$results"
