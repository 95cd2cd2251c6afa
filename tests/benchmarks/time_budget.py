"""Whether `llmtrain train --time` keeps to its time, undisturbed, beside a load, and interrupted.

    python -m tests.benchmarks.time_budget --time 2m --kinds plain,loaded,interrupted --known

`loaded`: from half of the time on another program multiplies matrices on every core.
`interrupted`: stopped by SIGTERM at four tenths, and resumed; its time is that of both sittings.
`--known` trains as many tokens once more with the number of steps known from the start, and
compares the validation loss.
"""

from __future__ import annotations

import argparse
import json
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from llmtrain.units import parse_duration_s
from tests.checkout import ROOT
from tests.programs import program_parser

_LOAD = "import torch\na = torch.randn(1024, 1024)\nwhile True:\n    a = (a @ a).clamp(-1, 1)\n"


@dataclass(frozen=True, slots=True)
class Kept:
    """One run. `idle_s`: from its last step to its end. `known_loss`: of its twin."""

    kind: str
    asked_s: float
    wall_s: float
    steps: int
    tokens: int
    last_rate_share: float
    idle_s: float
    val_loss: float
    val_bpb: float
    known_loss: float | None = None

    @property
    def share(self) -> float:
        """How much of the time was used."""
        return self.wall_s / self.asked_s


def main(arguments: Sequence[str]) -> int:
    """Every run is told as a line of JSON."""
    values = _parser().parse_args(arguments)
    for kind in values.kinds.split(","):
        with tempfile.TemporaryDirectory(prefix="llmtrain-time-") as scratch:
            found = _run(kind, values, Path(scratch))
        document = {**asdict(found), "share": round(found.share, 4)}
        sys.stdout.write(json.dumps(document) + "\n")
        sys.stdout.flush()
    return 0


def _run(kind: str, values: argparse.Namespace, scratch: Path) -> Kept:
    run, asked_s = scratch / "run", values.time
    options = ["--time", f"{asked_s:g}s", *_options(values)]
    begun_s = time.monotonic()
    process = _start(run, options)
    load = None
    before_s = 0.0
    if kind == "loaded":
        time.sleep(asked_s / 2)
        load = subprocess.Popen([sys.executable, "-c", _LOAD])
    elif kind == "interrupted":
        time.sleep(0.4 * asked_s)
        process.send_signal(signal.SIGTERM)
        process.communicate()
        before_s = time.monotonic() - begun_s
        begun_s = time.monotonic()
        process = _start(run, ["--resume", "auto", *options])
    try:
        output, _ = process.communicate()
    finally:
        if load is not None:
            load.kill()
            load.wait()
    wall_s = before_s + time.monotonic() - begun_s
    result = json.loads(output)
    return _kept(kind, asked_s, wall_s, result, run, _known_loss(values, result, run, scratch))


def _kept(
    kind: str,
    asked_s: float,
    wall_s: float,
    result: dict[str, Any],
    run: Path,
    known_loss: float | None,
) -> Kept:
    steps = [line for line in _metrics(run) if "loss" in line]
    return Kept(
        kind=kind,
        asked_s=asked_s,
        wall_s=wall_s,
        steps=result["steps"],
        tokens=result["tokens"],
        last_rate_share=steps[-1]["lr"] / max(step["lr"] for step in steps),
        idle_s=wall_s - steps[-1]["elapsed_s"],
        val_loss=result["val_loss"],
        val_bpb=result["val_bpb"],
        known_loss=known_loss,
    )


def _known_loss(
    values: argparse.Namespace, result: dict[str, Any], run: Path, scratch: Path
) -> float | None:
    """The validation loss after as many steps of the same length, known from the start."""
    if not values.known:
        return None
    per_step = result["tokens"] // result["steps"]
    options = [*_options(values), "--steps", str(result["steps"])]
    options += ["--set", f"train.tokens_per_step={per_step}"]
    output, _ = _start(scratch / "known", options).communicate()
    loss: float = json.loads(output)["val_loss"]
    return loss


def _options(values: argparse.Namespace) -> list[str]:
    options = ["--force-cpu"]
    if values.profile is not None:
        options += ["--profile", values.profile]
    for assignment in values.set:
        options += ["--set", assignment]
    return options


def _start(run: Path, options: Sequence[str]) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "llmtrain", "train", "--json", "--quiet", "--out", str(run)]
    return subprocess.Popen([*command, *options], cwd=ROOT, stdout=subprocess.PIPE, text=True)


def _metrics(run: Path) -> list[dict[str, Any]]:
    lines = (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    return [json.loads(line) for line in lines]


def _parser() -> argparse.ArgumentParser:
    parser = program_parser(__file__, __doc__)
    add = parser.add_argument
    add("--time", type=parse_duration_s, default="2m", help="what each run is given")
    add("--kinds", default="plain", help="runs: plain, loaded, interrupted, with commas between")
    add("--profile", default=None, help="default: what llmtrain picks for the time")
    add("--set", action="append", default=[], metavar="KEY=VALUE", help="settings of the profile")
    add("--known", action="store_true", help="train each again with its length known")
    return parser


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
