"""How long a resume takes to its first step, at the beginning and at the end of a long text.

    python -m tests.benchmarks.resume_time --tokens 100M --rounds 3

A text of so many tokens is made and tokenized, a run of two steps begun on it, and its data cursor
moved to the last windows. Each round resumes both, eagerly, and takes the time from the process's
start to the start of the first step; beside it that of a process which imports the same and ends.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from llmtrain.train.checkpoint.format import load_checkpoint
from llmtrain.train.checkpoint.names import list_checkpoints
from llmtrain.train.checkpoint.writing import save_checkpoint
from llmtrain.units import parse_count
from tests.checkout import import_path
from tests.programs import program_parser

_IMPORTS = "import torch, llmtrain.engine.api"
_BYTES_PER_TOKEN = 4
_STEPS = 2


def main(arguments: Sequence[str]) -> int:
    """The medians as a line of JSON."""
    values = _parser().parse_args(arguments)
    with tempfile.TemporaryDirectory(prefix="llmtrain-resume-") as scratch:
        place = Path(scratch)
        _write_text(place / "text.txt", values.tokens * _BYTES_PER_TOKEN)
        tokens = _begin(place, values.profile)
        times: dict[str, list[float]] = {"imports_s": [], "first_s": [], "last_s": []}
        for _ in range(values.rounds):
            times["imports_s"].append(_imports_s())
            times["first_s"].append(_resume_s(place, "begun"))
            times["last_s"].append(_resume_s(place, "ending"))
    medians = {name: round(statistics.median(found), 3) for name, found in times.items()}
    sys.stdout.write(
        json.dumps({"train_tokens": tokens, "rounds": values.rounds, **medians}) + "\n"
    )
    return 0


def _write_text(path: Path, length_bytes: int) -> None:
    draw = random.Random(0)
    letters = "etaoinshrdlu"
    words = ["".join(draw.choices(letters, k=draw.randint(2, 9))) for _ in range(5000)]
    lines = [" ".join(draw.choices(words, k=40)) + "\n" for _ in range(5000)]
    with path.open("w", encoding="ascii", newline="\n") as file:
        while file.tell() < length_bytes:
            file.writelines(draw.choices(lines, k=1000))


def _begin(place: Path, profile: str) -> int:
    """Runs `begun` and `ending` have two steps; returns how many tokens there are to train on."""
    command = ["--profile", profile, "--data", "text.txt", "--steps", str(_STEPS)]
    settings = ["--set", "device.compile=false", "--set", "eval.tokens=4096"]
    process = _train(place, [*command, *settings, "--out", "begun"])
    _, said = process.communicate()
    if process.returncode != 0:
        raise SystemExit(f"the run was not begun: exit code {process.returncode}\n{said}")
    shutil.copytree(place / "begun", place / "ending")
    (last,) = list_checkpoints(place / "ending" / "checkpoints")
    found = load_checkpoint(last)
    index = max((place / "cache").rglob("index.json"), key=lambda path: path.stat().st_mtime)
    tokens = int(json.loads(index.read_text())["train"]["tokens"])
    windows = tokens // found.shape.context - 1
    state = found.state.model_copy(update={"windows": windows})
    save_checkpoint(last.parent, replace(found, state=state))
    return tokens


def _imports_s() -> float:
    begun_s = time.monotonic()
    subprocess.run([sys.executable, "-c", _IMPORTS], check=True, env=_environment(Path()))
    return time.monotonic() - begun_s


def _resume_s(place: Path, run: str) -> float:
    """Seconds to the first step of a run that goes on; the run is as it was afterwards."""
    shutil.copytree(place / run, place / "going")
    begun_s = time.monotonic()
    process = _train(place, ["--resume", "auto", "--out", "going", "--steps", str(_STEPS + 1)])
    assert process.stderr is not None
    took_s = next(time.monotonic() - begun_s for line in process.stderr if "to train on" in line)
    process.communicate()
    shutil.rmtree(place / "going")
    return took_s


def _train(place: Path, options: Sequence[str]) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "llmtrain", "train", "--force-cpu", *options]
    return subprocess.Popen(
        command, cwd=place, env=_environment(place), stderr=subprocess.PIPE, text=True
    )


def _environment(place: Path) -> Mapping[str, str]:
    cache = {"LLMTRAIN_CACHE_DIR": str(place.absolute() / "cache")}
    return {**os.environ, **cache, "PYTHONPATH": import_path()}


def _parser() -> argparse.ArgumentParser:
    parser = program_parser(__file__, __doc__)
    parser.add_argument("--tokens", type=parse_count, default="100M", help="about so many")
    parser.add_argument("--profile", default="cpu-tiny", help="what is trained")
    parser.add_argument("--rounds", type=int, default=3, help="of which the medians are told")
    return parser


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
