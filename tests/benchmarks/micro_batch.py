"""Whether the micro-batch that the plan chooses is the fastest there is.

    python -m tests.benchmarks.micro_batch --profile cpu-small --rounds 3 [--set KEY=VALUE]…

Every power of two that divides the step is trained with for a few steps, in turn, so that a change
of the machine's pace meets all of them; so is the plan's own choice. The rate of one is that of its
median step, and over the rounds the median of those.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tests.checkout import ROOT
from tests.programs import program_parser

_WARMUP = 3  # steps that compile and fill caches


def main(arguments: Sequence[str]) -> int:
    """The rates as a line of JSON."""
    values = _parser().parse_args(arguments)
    chosen, windows, tokens_per_step = _plan(values)
    values.set += [f"train.tokens_per_step={tokens_per_step}"]  # not what so few steps would have
    candidates = sorted(n for n in {chosen, *(2**n for n in range(20))} if windows % n == 0)
    rates: dict[int, list[float]] = {number: [] for number in candidates}
    for _ in range(values.rounds):
        for number in candidates:
            rates[number].append(_tokens_per_s(values, number))
    medians = {number: statistics.median(found) for number, found in rates.items()}
    document = {
        "profile": values.profile,
        "settings": values.set,
        "chosen": chosen,
        "share_of_the_fastest": round(medians[chosen] / max(medians.values()), 4),
        "tokens_per_s": {number: round(rate) for number, rate in medians.items()},
    }
    sys.stdout.write(json.dumps(document) + "\n")
    return 0


def _plan(values: argparse.Namespace) -> tuple[int, int, int]:
    """The plan's micro-batch, and how many windows and tokens one process reads in a step."""
    document = _llmtrain(values, "--dry-run")
    micro_batch = int(document["plan"]["micro_batch"]["value"])
    windows = micro_batch * int(document["plan"]["accumulation"]["value"])
    return micro_batch, windows, int(document["settings"]["train.tokens_per_step"]["value"])


def _tokens_per_s(values: argparse.Namespace, micro_batch: int) -> float:
    with tempfile.TemporaryDirectory(prefix="llmtrain-micro-") as scratch:
        run = Path(scratch) / "run"
        _llmtrain(
            *(values, "--out", str(run), "--steps", str(_WARMUP + values.steps), "--quiet"),
            *("--set", f"train.micro_batch={micro_batch}", "--set", "train.log_every_steps=1"),
            *("--set", "eval.tokens=1024", "--set", "eval.sample_every_steps=null"),
        )
        lines = (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    rates = [float(line["tokens_per_s"]) for line in map(json.loads, lines) if "loss" in line]
    return statistics.median(rates[_WARMUP:])


def _llmtrain(values: argparse.Namespace, *options: str) -> dict[str, Any]:
    command = [sys.executable, "-m", "llmtrain", "train", "--json", "--profile", values.profile]
    command += ["--device", values.device, *options]
    for assignment in values.set:
        command += ["--set", assignment]
    done = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, text=True, check=True)
    document: dict[str, Any] = json.loads(done.stdout)
    return document


def _parser() -> argparse.ArgumentParser:
    parser = program_parser(__file__, __doc__)
    parser.add_argument("--profile", default="cpu-tiny", help="what is trained")
    parser.add_argument("--device", default="cpu", help="where")
    parser.add_argument("--steps", type=int, default=6, help="that count, of each")
    parser.add_argument("--rounds", type=int, default=3, help="over which the medians are taken")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="settings")
    return parser


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
