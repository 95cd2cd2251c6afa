"""Models drawn at random under limits drawn at random: `python -m tests.faults.random_limits`.

Each is trained for a few steps in a process that may use only so much memory, in a control group of
its own or under RLIMIT_DATA. The plan has to know beforehand: a run trains (exit 0) or is refused
(exit 3) before its first step, and none dies of a signal. Prints a line a run; exit code 1 where
one did anything else.
"""

from __future__ import annotations

import argparse
import random
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from llmtrain.train.run_directory.directory import RunDirectory
from llmtrain.units import format_bytes
from tests.checkout import ROOT
from tests.faults.confinement import Means, confined
from tests.faults.memory import environment

_LIMITS = (400 << 20, 3 << 30)
_RUN_LIMIT_S = 600
_STEPS = 3
_VOCABULARY = 1000


def drawn(draw: random.Random) -> dict[str, Any]:
    """Settings of some model, and how it is trained."""
    heads, head_dim = draw.choice((2, 3, 4, 6, 8)), draw.choice((32, 64, 128))
    width = heads * head_dim
    context = draw.choice((64, 128, 256, 512, 1024))
    windows = draw.choice((1, 2, 3, 4, 8, 16, 32))
    return {
        "model.vocab_size": draw.choice((_VOCABULARY, 4096, 16384, 50304)),
        "model.num_heads": heads,
        "model.head_dim": head_dim,
        "model.hidden_size": width,
        "model.intermediate_size": round(draw.uniform(2, 4) * width / 64) * 64,
        "model.num_layers": draw.randint(1, 12),
        "model.context": context,
        "model.tie_embeddings": draw.choice(("true", "false")),
        "optim.name": draw.choice(("muon", "adamw")),
        "train.tokens_per_step": windows * context,
        "device.precision": draw.choice(("auto", "fp32")),
        "eval.tokens": 2 * context,
        "eval.sample_tokens": 8,
    }


def run_one(number: int, means: Means, tokenizer: Path, scratch: Path) -> str:
    """How the model of that number ended, in a word."""
    draw = random.Random(number)
    settings, limit_bytes = drawn(draw), round(draw.uniform(*_LIMITS))
    out, log = scratch / f"run-{number}", scratch / "log"
    command = [sys.executable, "-m", "llmtrain", "train", "--profile", "cpu-tiny", "--force-cpu"]
    command += ["--out", str(out), "--steps", str(_STEPS), "--data", str(ROOT / "llmtrain")]
    command += ["--tokenizer", str(tokenizer)]
    command += [f"--set={name}={value}" for name, value in settings.items()]
    with confined(means, limit_bytes) as confinement:
        code = confinement.run(command, environment(), log, _RUN_LIMIT_S)
    steps = [line for line in RunDirectory(out).read_metrics() if "loss" in line]
    ended = {0: "trained", 3: "stopped" if steps else "refused"}.get(code, f"BROKEN: {code}")
    sys.stdout.write(f"{number:3} {format_bytes(limit_bytes):>9}  {ended}  {settings}\n")
    if ended.startswith("BROKEN"):
        sys.stdout.write(log.read_text(encoding="utf-8", errors="replace")[-800:] + "\n")
    sys.stdout.flush()
    return ended.partition(":")[0]


def main(arguments: Sequence[str]) -> int:
    """So many models."""
    parser = argparse.ArgumentParser(prog="python -m tests.faults.random_limits")
    parser.add_argument("--runs", type=int, default=50)
    parser.add_argument("--first", type=int, default=0, help="the number of the first model")
    parser.add_argument("--means", choices=["cgroup", "rlimit"], default="cgroup")
    values = parser.parse_args(arguments)
    ends: Counter[str] = Counter()
    with tempfile.TemporaryDirectory(prefix="llmtrain-limits-") as directory:
        scratch = Path(directory)
        _learn_tokenizer(scratch / "tokenizer")
        for number in range(values.first, values.first + values.runs):
            ends[run_one(number, values.means, scratch / "tokenizer", scratch)] += 1
    sys.stdout.write(f"{dict(ends)}\n")
    return 1 if ends["BROKEN"] else 0


def _learn_tokenizer(out: Path) -> None:
    size = ("--vocab-size", str(_VOCABULARY))
    command = ["tokenizer", "train", "--data", str(ROOT / "llmtrain"), *size, "--out", str(out)]
    subprocess.run(
        [sys.executable, "-m", "llmtrain", *command, "-q"], check=True, env=environment()
    )


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
