"""A sweep of trainings that is killed at random times, beside one that is not.

    python -m tests.faults.sweep_kills --trials 12 --kills 5

The sweep's process and its training are killed together, as by the end of a job, or the sweep's
alone, as by the kernel. The results must be those of the undisturbed one in all but their times.
Prints a line of JSON; exit code 1 where they differ. Linux and macOS.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from tests.checkout import import_path
from tests.faults import tiny
from tests.programs import program_parser

_TIMELESS = ("trial", "settings", "outcome", "val_bpb", "step", "tokens", "reason")


def main(arguments: Sequence[str]) -> int:
    """Sweep twice; 1 where the results differ."""
    values = _parser().parse_args(arguments)
    with tempfile.TemporaryDirectory() as name:
        place, draw = Path(name), random.Random(values.seed)
        tiny.furnish(place)
        rates = [float(f"{0.002 * 1.6**n:.4g}") for n in range(values.trials)]
        plan = {
            "profile": "tiny.yaml",
            "settings": {"train.steps": values.steps, "eval.every_steps": values.steps // 4},
            "grid": {"optim.learning_rate": rates},
        }
        (place / "plan.yaml").write_text(json.dumps(plan))
        begun_s = time.monotonic()
        _start(place, "undisturbed").wait()
        whole_s = time.monotonic() - begun_s
        kills = 0
        # After a number of results and a part of a trial, so that a slow minute changes nothing.
        for done in sorted(draw.sample(range(values.trials - 1), values.kills)):
            process = _start(place, "killed")
            while process.poll() is None and _count(place / "killed") < done:
                time.sleep(0.1)
            with suppress(subprocess.TimeoutExpired):
                process.wait(draw.uniform(0.1, 0.9) * whole_s / values.trials)
                break  # all is done before the last kill
            takes_all = draw.random() < 0.5
            with suppress(ProcessLookupError):
                (os.killpg if takes_all else os.kill)(process.pid, signal.SIGKILL)
            process.wait()
            kills += 1
        code = _start(place, "killed").wait()
        one, other = (_results(place / each) for each in ("undisturbed", "killed"))
    line = {
        "trials": len(one),
        "kills": kills,
        "code": code,
        "equal": one == other,
        "stopped_early": sum(each["outcome"] == "stopped early" for each in one),
        "undisturbed_s": round(whole_s, 1),
    }
    sys.stdout.write(json.dumps(line) + "\n")
    return 0 if one == other and len(one) == values.trials else 1


def _start(place: Path, out: str) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        [sys.executable, "-m", "llmtrain", "sweep", "plan.yaml", "--out", out, "--quiet"],
        cwd=place,
        env={
            **os.environ,
            "PYTHONPATH": import_path(),
            "LLMTRAIN_CACHE_DIR": str(place / "cache"),
        },
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )


def _count(directory: Path) -> int:
    """Return the number of trials that ended."""
    try:
        return (directory / "results.jsonl").read_bytes().count(b"\n")
    except FileNotFoundError:
        return 0


def _results(directory: Path) -> list[dict[str, Any]]:
    lines = (directory / "results.jsonl").read_text().splitlines()
    found = [json.loads(line) for line in lines]
    return [
        {name: each[name] for name in _TIMELESS} for each in sorted(found, key=lambda r: r["trial"])
    ]


def _parser() -> argparse.ArgumentParser:
    parser = program_parser(__file__, __doc__)
    add = parser.add_argument
    add("--trials", type=int, default=12, help="of the sweep")
    add("--kills", type=int, default=5, help="of its process")
    add("--steps", type=int, default=40, help="of each trial")
    add("--seed", type=int, default=0, help="of the times of the kills")
    return parser


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
