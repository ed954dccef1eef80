"""The tables and curves of scripts/learning.sh: runs tinymoe once for each row and seed, reads metrics.jsonl, prints mean
and spread, draws validation loss against seconds and against tokens, and writes the figures that the documentation
quotes to docs/figures/learning.json. Needs matplotlib."""

import argparse
import json
import platform
import re
import shlex
import statistics
import subprocess
import sys
from pathlib import Path

import matplotlib

matplotlib.use("svg")
import matplotlib.pyplot as plt  # noqa: E402


PARTS = ["shakespeare", "long", "dense", "transcript", "quickstart", "first-run", "configs"]
# Same text, sizes and schedule, so that their losses compare.
COMPARABLE = ["quickstart", "dense", "switch-top1", "top2", "fine-grained", "shared-expert", "noisy-top2", "bias-balanced"]
# The seed of a configuration that names none: what scripts/quickstart.sh trains with.
FIRST_SEED = 1337


class Runs:
    """Trains what is asked for under `out`; what a finished earlier call trained is not trained again."""

    def __init__(self, out, binary, precision):
        self.out, self.binary, self.precision = Path(out), binary, precision

    def train(self, name, config, settings, seed):
        run = self.out / f"{name}-{self.precision}-{seed}"
        command = [self.binary, "--quiet", "train", f"configs/{config}.toml", "--run", str(run)]
        for key, value in {**settings, "train.seed": seed, "train.precision": self.precision}.items():
            command += ["--set", f"{key}={json.dumps(value)}"]
        if not (run / "done").exists():
            command += ["--resume"] if (run / "config.toml").exists() else []
            subprocess.run(command, check=True)
            (run / "done").touch()
        lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
        return [line for line in lines if line["split"] == "val"]


def mean_and_spread(values):
    """Mean, and half the distance between the largest and the smallest."""
    return {"mean": statistics.mean(values), "half_range": (max(values) - min(values)) / 2, "values": values}


def spread(values):
    """The same for people."""
    return "{mean:.4f} ± {half_range:.4f}".format(**mean_and_spread(values))


class Figures:
    """The file that the documentation quotes; parts that were not measured now keep their figures."""

    PATH = Path("docs/figures/learning.json")

    def __init__(self, precision, seeds):
        self.known = json.loads(self.PATH.read_text()) if self.PATH.exists() else {}
        self.how = {"machine": machine(), "precision": precision, "seeds": seeds}

    def write(self, part, figures):
        # Texts stand wherever they stand: their paths say nothing.
        arguments = [Path(a).name if "/" in a else a for a in sys.argv[1:]]
        command = shlex.join(["scripts/learning.sh", part, *(a for a in arguments if a.startswith("--prec") or a in ["f32", "bf16"])])
        self.known[part] = {"command": command, **self.how, **figures}
        self.PATH.parent.mkdir(exist_ok=True)
        self.PATH.write_text(json.dumps(self.known, indent=1, sort_keys=True) + "\n")


def machine():
    """Cores and processor, as the system names them."""
    names = re.findall(r"model name\s*: (.*)", Path("/proc/cpuinfo").read_text()) if Path("/proc/cpuinfo").exists() else []
    return f"{len(names) or 'some'} cores, {names[0] if names else platform.processor()}"


def best(curve, within_s=float("inf"), unit="loss"):
    """The lowest value that was measured in time; infinity if none was."""
    return min((point[unit] for point in curve if point["elapsed_s"] <= within_s), default=float("inf"))


def seconds_to(curve, loss):
    """Seconds until validation loss has come down to `loss`; infinity if it has not."""
    return next((point["elapsed_s"] for point in curve if point["loss"] <= loss), float("inf"))


def draw(path, title, curves, across, unit):
    """One line a name: the mean over its seeds, with the range between the best and the worst."""
    figure, axes = plt.subplots(figsize=(7, 4.2))
    for name, seeds in curves.items():
        x = [statistics.mean(points) for points in zip(*[[point[across] for point in curve] for curve in seeds])]
        y = list(zip(*[[point[unit] for point in curve] for curve in seeds]))
        (line,) = axes.plot(x, [statistics.mean(points) for points in y], label=name)
        axes.fill_between(x, [min(p) for p in y], [max(p) for p in y], alpha=0.2, color=line.get_color(), lw=0)
    units = {"elapsed_s": "seconds since the start", "tokens": "training tokens"}
    axes.set(title=title, xlabel=units[across], ylabel=f"validation {unit.replace('_', ' ')}")
    axes.legend(frameon=False)
    axes.spines[["top", "right"]].set_visible(False)
    figure.tight_layout()
    figure.savefig(path, metadata={"Date": None})
    plt.close(figure)


def against_ngram(lines):
    """The best bits per byte of each run, and how far below the n-gram baseline that is."""
    bits = [best(line, unit="bits_per_byte") for line in lines]
    ngram = lines[0][-1]["ngram_bits_per_byte"]
    below = mean_and_spread([ngram - value for value in bits])
    return {"bits_per_byte": mean_and_spread(bits), "ngram_bits_per_byte": ngram, "below_ngram": below}


def table(header, rows):
    print("\n| " + " | ".join(header) + " |")
    print("|" + "---|" * len(header))
    for row in rows:
        print("| " + " | ".join(str(cell) for cell in row) + " |", flush=True)


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("parts", nargs="+", choices=PARTS)
    parser.add_argument("--out", required=True)
    parser.add_argument("--binary", required=True)
    parser.add_argument("--shakespeare", help="tinyshakespeare's input.txt")
    parser.add_argument("--transcript", help="a transcript of 100 KB or so")
    parser.add_argument("--corpus", nargs="*", default=[], help="further corpora for `dense`: folders")
    parser.add_argument("--seconds", type=float, default=98.8, help="what nanoGPT's CPU configuration takes here")
    parser.add_argument("--precision", choices=["f32", "bf16"], default="f32")
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    a = parser.parse_args()
    runs, out = Runs(a.out, a.binary, a.precision), Path(a.out)
    figures = Figures(a.precision, a.seeds)
    out.mkdir(parents=True, exist_ok=True)

    bench = [a.binary, "bench", "--json", "--config", "configs/bench/w2.toml"]
    for precision in ["f32", "bf16"]:
        report = json.loads(subprocess.check_output([*bench, "--set", f"train.precision={precision}"]))
        print(f"matmul peak, {precision}: {report['workloads'][0]['matmul_peak_gflop_per_s']:.0f} GFLOP/s", flush=True)

    def curves(name, config, settings, seeds=a.seeds):
        return [runs.train(name, config, settings, seed) for seed in seeds]

    def draw_both(name, title, lines, unit="loss"):
        for across in ["elapsed_s", "tokens"]:
            draw(out / f"{name}-{'seconds' if across == 'elapsed_s' else across}.svg", title, lines, across, unit)

    if "shakespeare" in a.parts:
        lines = curves("shakespeare", "tinyshakespeare-char", {"data.sources": [a.shakespeare]})
        # The same configuration with so short a schedule that it gets to 1.88 as soon as it can.
        sprint = {"data.sources": [a.shakespeare], "train.max_steps": 135, "train.eval_interval": 135}
        sprints = curves("shakespeare-sprint", "tinyshakespeare-char", sprint)
        table(
            ["tinyshakespeare, characters", "mean ± half range"],
            [
                ["seconds to 1.88 nats, 135 steps", spread([seconds_to(line, 1.88) for line in sprints])],
                ["nats after them", spread([best(line) for line in sprints])],
                ["seconds to 1.88 nats on the way", spread([seconds_to(line, 1.88) for line in lines])],
                [f"nats within {a.seconds} s", spread([best(line, a.seconds) for line in lines])],
                ["seconds of the whole run", spread([line[-1]["elapsed_s"] for line in lines])],
            ],
        )
        draw_both("shakespeare", "tinyshakespeare, characters", {"tinyshakespeare-char.toml": lines})
        figures.write("shakespeare", {"loss": mean_and_spread([best(line) for line in lines]), **against_ngram(lines)})
    if "long" in a.parts:
        lines = curves("long", "tinyshakespeare-long", {"data.sources": [a.shakespeare]}, a.seeds[:1])
        figures.write("long", {"loss": best(lines[0]), **against_ngram(lines)})
        table(["tinyshakespeare, long", ""], [["nats within 30 minutes", spread([best(line, 1800) for line in lines])]])
        draw_both("long", "tinyshakespeare, half an hour", {"tinyshakespeare-long.toml": lines})
    if "dense" in a.parts:
        rows = []
        for corpus in [a.shakespeare, *a.corpus]:
            name = Path(corpus).stem
            base = {"data.sources": [corpus]}
            config = "tinyshakespeare-char" if corpus == a.shakespeare else "transcript"
            mixture = curves(f"{name}-mixture", config, base)
            dense = curves(f"{name}-dense", config, {**base, "model.num_experts": 0})
            # Equal time: as many more steps as the dense model is faster.
            ratio = statistics.mean(m[-1]["elapsed_s"] / d[-1]["elapsed_s"] for m, d in zip(mixture, dense))
            steps = round(mixture[0][-1]["step"] * ratio)
            longer = curves(f"{name}-longer", config, {**base, "model.num_experts": 0, "train.max_steps": steps})
            losses = [[best(line) for line in lines] for lines in [mixture, dense, longer]]
            gaps = [[d - m for m, d in zip(losses[0], other)] for other in losses[1:]]
            rows.append([name, *map(spread, losses), *map(spread, gaps)])
            draw_both(f"{name}-dense", name, {"mixture": mixture, "dense": dense, "dense, equal time": longer})
        header = ["corpus", "mixture", "dense, equal tokens", "dense, equal time", "gap, equal tokens", "gap, equal time"]
        table(header, rows)
    for part, config, budget in [("transcript", "transcript", 600), ("quickstart", "quickstart", 90)]:
        if part in a.parts:
            lines = curves(part, config, {"data.sources": [a.transcript]} if part == "transcript" else {})
            ngram = lines[0][0]["ngram_bits_per_byte"]
            losses = [best(line, budget, "bits_per_byte") for line in lines]
            table(
                [f"{config}.toml", f"bits per byte within {budget} s", "n-gram", "below it"],
                [["", spread(losses), f"{ngram:.4f}", spread([ngram - loss for loss in losses])]],
            )
            draw_both(part, f"{config}.toml", {f"{config}.toml": lines}, "bits_per_byte")
            figures.write(part, {"loss": mean_and_spread([best(line) for line in lines]), **against_ngram(lines)})
    if "first-run" in a.parts:
        (line,) = curves("first-run", "quickstart", {}, [FIRST_SEED])
        figures.write("first-run", {"loss": best(line), **against_ngram([line]), "bits_per_byte": best(line, unit="bits_per_byte")})
    if "configs" in a.parts:
        rows, measured = [], {}
        for name in COMPARABLE:
            lines = curves(f"config-{name}", name, {})
            losses = [best(line) for line in lines]
            bits = [best(line, unit="bits_per_byte") for line in lines]
            facts = json.loads((out / f"config-{name}-{a.precision}-{a.seeds[0]}" / "run.json").read_text())
            measured[name] = {"loss": mean_and_spread(losses), **against_ngram(lines), "parameters": facts["parameters"]}
            rows.append([name, *facts["parameters"].values(), spread(losses), spread(bits)])
        if len(a.seeds) > 1:
            rows.sort(key=lambda row: row[-1])
        table(["configuration", "active", "parameters", "nats per token", "bits per byte"], rows)
        figures.write("configs", measured)


main()
