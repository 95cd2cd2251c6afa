"""What it costs how threads wait for each other: one run, and two at once, by each way.

    python -m tests.benchmarks.waiting

Trains a small profile by native kernels, alone and twice at once, and prints the median tokens a
second of each run's second half. Ways take turns; the timings of kernels are made before.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from tests.checkout import ROOT
from tests.programs import program_parser

_WAYS = {
    "sleeping at once": {"OMP_WAIT_POLICY": "PASSIVE"},
    **{f"{spins} spins": {"GOMP_SPINCOUNT": str(spins)} for spins in (1000, 5000, 20_000, 100_000)},
    "spinning": {"OMP_WAIT_POLICY": "ACTIVE"},
}


def main(arguments: Sequence[str]) -> int:
    """Print a table of tokens a second."""
    options = _parser().parse_args(arguments)
    with tempfile.TemporaryDirectory(prefix="llmtrain-waiting-") as scratch:
        _rates(options, Path(scratch), {}, 1)  # which compiles and times kernels
        _say("| way to wait | one run | each of two at once |")
        _say("| --- | --- | --- |")
        for _ in range(options.rounds):
            for name, variables in _WAYS.items():
                alone, *_ = _rates(options, Path(scratch), variables, 1)
                pair = _rates(options, Path(scratch), variables, 2)
                _say(f"| {name} | {alone:,.0f} | {pair[0]:,.0f}, {pair[1]:,.0f} |")
    return 0


def _rates(
    options: argparse.Namespace, scratch: Path, variables: dict[str, str], count: int
) -> list[float]:
    """Return the tokens a second of so many runs at once."""
    environment = {**os.environ, "LLMTRAIN_CACHE_DIR": str(scratch / "cache"), **variables}
    directories = [Path(tempfile.mkdtemp(dir=scratch)) / "run" for _ in range(count)]
    command = [sys.executable, "-m", "llmtrain", "train", "--force-cpu", "--profile", "cpu-tiny"]
    command += ["--steps", str(options.steps), "--set", "train.log_every_steps=1"]
    command += ["--set", "eval.sample_every_steps=null", "--set", "eval.tokens=4096"]
    command += [word for assignment in options.set for word in ("--set", assignment)]
    running = [
        subprocess.Popen(
            [*command, "--out", str(out)], env=environment, cwd=ROOT, stderr=subprocess.DEVNULL
        )
        for out in directories
    ]
    if any(process.wait() for process in running):
        raise SystemExit(f"a run failed: {' '.join(command)}")
    return [_rate(out) for out in directories]


def _rate(run: Path) -> float:
    lines = map(json.loads, (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines())
    rates = [float(line["tokens_per_s"]) for line in lines if "tokens_per_s" in line]
    return statistics.median(rates[len(rates) // 2 :])


def _parser() -> argparse.ArgumentParser:
    parser = program_parser(__file__, __doc__)
    parser.add_argument("--steps", type=int, default=60, help="of each run")
    parser.add_argument("--rounds", type=int, default=1)
    native = ["device.block_kernels=native", "device.loss=native"]
    parser.add_argument("--set", action="append", default=native, help="KEY=VALUE")
    return parser


def _say(line: str) -> None:
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
