"""How long it takes from the start of `llmtrain train` to its first step, with cached data.

    python -m tests.benchmarks.start_time                      # this checkout
    python -m tests.benchmarks.start_time --beside CHECKOUT    # and another, in turn

Each checkout runs from its sources by this Python, in a cache of its own, on the built-in text. Two
runs come before those that are timed: they fill the cache.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path
from tempfile import TemporaryDirectory

from tests.checkout import ROOT

_FIRST_STEP = "step 1/"
_UNTIMED = 2


def main() -> None:
    """Print the median for each checkout."""
    options = _options()
    checkouts = [ROOT, *([options.beside.resolve()] if options.beside is not None else [])]
    with TemporaryDirectory() as place:
        found: dict[Path, list[float]] = {checkout: [] for checkout in checkouts}
        for number in range(_UNTIMED + options.rounds):
            for index, checkout in enumerate(checkouts):
                seconds = first_step_s(checkout, Path(place) / str(index), options.profile)
                if number >= _UNTIMED:
                    found[checkout].append(seconds)
    for checkout, seconds_of in found.items():
        rounds = " ".join(f"{seconds:.2f}" for seconds in seconds_of)
        sys.stdout.write(f"{statistics.median(seconds_of):.2f} s  {checkout.name}  ({rounds})\n")


def first_step_s(checkout: Path, place: Path, profile: str) -> float:
    """Return the seconds until the line of a run's first step; the run is killed then."""
    (place / "empty").mkdir(parents=True, exist_ok=True)
    environment = os.environ | {
        "PYTHONPATH": str(checkout),
        "LLMTRAIN_CACHE_DIR": str(place / "cache"),
    }
    command = [sys.executable, "-m", "llmtrain", "train", "--profile", profile, "--steps", "2"]
    with TemporaryDirectory() as run:
        started_s = time.monotonic()
        process = subprocess.Popen(
            [*command, "--out", str(Path(run) / "run")],
            cwd=place / "empty",
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        assert process.stdout is not None
        with process.stdout:
            lines = []
            for line in process.stdout:
                lines.append(line)
                if line.startswith(_FIRST_STEP):
                    seconds = time.monotonic() - started_s
                    break
            else:
                raise SystemExit("no first step:\n" + "".join(lines))
            process.kill()
        process.wait()
    return seconds


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--beside", type=Path, metavar="CHECKOUT", help="another to time in turn")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--profile", default="cpu-tiny")
    return parser.parse_args()


if __name__ == "__main__":
    main()
