"""How far the time left that a run tells after its first minute is from the truth.

    python -m tests.benchmarks.eta --profile cpu-tiny --tokens 12M --after 1m

The command is a whole `llmtrain train` as a user types it, with a line of progress each second or
more; its times are those of a clock outside of it.
"""

from __future__ import annotations

import argparse
import json
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from llmtrain.units import parse_duration_s
from tests.checkout import ROOT
from tests.programs import program_parser

_LEFT = re.compile(r"  left (.+)$")
_PART = re.compile(r"([\d.]+)([dhms])")


def main(arguments: Sequence[str]) -> int:
    """What was told and what came, as a line of JSON."""
    values = _parser().parse_args(arguments)
    after_s = parse_duration_s(values.after)
    with tempfile.TemporaryDirectory(prefix="llmtrain-eta-") as scratch:
        told, wall_s = _watch(values, Path(scratch) / "run")
    at_s, left_s = next((told_s, left_s) for told_s, left_s in told if told_s >= after_s)
    document = {
        "profile": values.profile,
        "settings": values.set,
        "wall_s": round(wall_s, 1),
        "told_at_s": round(at_s, 1),
        "told_total_s": round(at_s + left_s, 1),
        "error": round((at_s + left_s) / wall_s - 1, 4),
    }
    sys.stdout.write(json.dumps(document) + "\n")
    return 0


def _watch(values: argparse.Namespace, run: Path) -> tuple[list[tuple[float, float]], float]:
    """When how much was said to be left, and how long it all took, in seconds."""
    command = [sys.executable, "-m", "llmtrain", "train", "--profile", values.profile]
    command += ["--device", values.device, "--tokens", values.tokens, "--out", str(run)]
    for assignment in values.set:
        command += ["--set", assignment]
    begun_s, told = time.monotonic(), []
    with subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        for line in process.stderr:
            if (left := _LEFT.search(line)) is not None:
                left_s = _seconds(left[1].strip())
                told.append((time.monotonic() - begun_s, left_s))
    if process.returncode != 0:
        raise SystemExit(f"{' '.join(command)} ended with {process.returncode}")
    return told, time.monotonic() - begun_s


def _seconds(text: str) -> float:
    """`42s`, `28m 12s`, `1h 05m`."""
    units = {"d": 86400, "h": 3600, "m": 60, "s": 1}
    return sum(float(number) * units[unit] for number, unit in _PART.findall(text))


def _parser() -> argparse.ArgumentParser:
    parser = program_parser(__file__, __doc__)
    parser.add_argument("--profile", default="cpu-tiny", help="what is trained")
    parser.add_argument("--device", default="cpu", help="where")
    parser.add_argument("--tokens", default="12M", help="so many")
    parser.add_argument("--after", default="1m", help="from when on what is told counts")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="settings")
    return parser


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
