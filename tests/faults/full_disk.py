"""A disk that is full, or fails, somewhere in a whole training; then there is room again.

    python -m tests.faults.full_disk --points 60

A tiny training is repeated with a fault at operations spread over all that it does to files: the
run directory, the token shards and the tokenizer in the cache. Each must end with exit code 0 or
1, a message and no traceback; after `--resume auto` without a fault the weights and the optimizer
must be those of the run that nothing disturbed, and nothing hidden be left. Prints a line of JSON
a kind; exit code 1 where a promise was broken. Linux with a C compiler only.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import random
import shutil
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from tests.checkout import import_path
from tests.faults import shim
from tests.faults.shim import Kind
from tests.pinned import pinned_options

_PROFILE = """\
name: tiny
model: {vocab_size: 400, hidden_size: 32, intermediate_size: 64, num_layers: 2, num_heads: 2,
        context: 32}
data: {sources: [corpus.txt]}
train: {tokens_per_step: 256, steps: 6, log_every_steps: 1}
optim: {warmup_steps: 2}
eval: {every_steps: 3, tokens: 256, sample_every_steps: 3, sample_tokens: 4}
checkpoint: {every_steps: 2}
device: {kind: cpu, threads: 1}
"""


@dataclass(frozen=True)
class Training:
    """A directory to train in, and what became of it."""

    place: Path

    def run(self, variables: Mapping[str, str], *options: str) -> subprocess.CompletedProcess[str]:
        """`llmtrain train` there, with its cache there too."""
        command = [sys.executable, "-m", "llmtrain", "train", "--profile", "tiny.yaml"]
        command += pinned_options()
        local = {"LLMTRAIN_CACHE_DIR": str(self.place / "cache"), "PYTHONPATH": import_path()}
        return subprocess.run(
            [*command, "--out", "run", *options],
            cwd=self.place,
            env={**variables, **local, "OMP_NUM_THREADS": "1"},
            capture_output=True,
            text=True,
        )

    def digests(self) -> list[str]:
        """Of the last weights and optimizer state."""
        last = max((self.place / "run" / "checkpoints").glob("step-????????"))
        files = [last / "model.safetensors", last / "optimizer.safetensors"]
        return [hashlib.sha256(file.read_bytes()).hexdigest() for file in files]

    def hidden(self) -> list[str]:
        """What is left of files that were being written."""
        found = (p for p in self.place.rglob(".*") if p.name.count(".") > 1 or p.is_dir())
        return [str(path.relative_to(self.place)) for path in found]


def main(arguments: Sequence[str]) -> int:
    """Both kinds at so many points each."""
    parser = argparse.ArgumentParser(prog="python -m tests.faults.full_disk")
    parser.add_argument("--points", type=int, default=60, help="of each kind")
    values = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory(prefix="llmtrain-disk-") as scratch:
        return _strike(Path(scratch), values.points)


def _strike(scratch: Path, points: int) -> int:
    library, broken = shim.build(scratch), 0
    whole, operations = _undisturbed(scratch, library)
    for kind in (Kind.FULL, Kind.FAILING):
        ends: Counter[str] = Counter()
        for number in range(points):
            at = 1 + number * operations // points
            ends[_struck(scratch, library, at, kind, whole)] += 1
        broken += sum(count for end, count in ends.items() if "BROKEN" in end)
        line = {"operations": operations, "kind": kind.name.lower(), "ends": ends}
        sys.stdout.write(json.dumps(line) + "\n")
        sys.stdout.flush()
    return 1 if broken else 0


def _undisturbed(scratch: Path, library: Path) -> tuple[list[str], int]:
    """What the run ends as, and how many operations it takes."""
    training, report = _begin(scratch), scratch / "seen"
    variables = shim.environment(library, 0, Kind.COUNT, training.place)
    ended = training.run({**variables, "FAULT_REPORT": str(report)})
    if ended.returncode != 0:
        raise SystemExit(f"the run without a fault ended with {ended.returncode}: {ended.stderr}")
    return training.digests(), int(report.read_text())


def _struck(scratch: Path, library: Path, at: int, kind: Kind, whole: list[str]) -> str:
    training = _begin(scratch)
    ended = training.run(shim.environment(library, at, kind, training.place))
    if ended.returncode not in (0, 1) or "Traceback" in ended.stderr:
        return f"BROKEN at {at}: {ended.returncode} {ended.stderr[-300:]}"
    if ended.returncode == 1 and "error" not in ended.stderr:
        return f"BROKEN at {at}: failed without a word"
    again = training.run(dict(os.environ), "--resume", "auto")
    if again.returncode != 0:
        return f"BROKEN at {at}: resume ended with {again.returncode} {again.stderr[-300:]}"
    if training.digests() != whole:
        return f"BROKEN at {at}: other weights"
    if left := training.hidden():
        return f"BROKEN at {at}: {left} left"
    return "refused, then the same" if ended.returncode else "went on, the same"


def _begin(scratch: Path) -> Training:
    place = scratch / "place"
    shutil.rmtree(place, ignore_errors=True)
    place.mkdir()
    (place / "tiny.yaml").write_text(_PROFILE)
    draw = random.Random(0)
    words = ["".join(draw.choices("abcdefghij", k=draw.randint(2, 7))) for _ in range(300)]
    text = "\n".join(" ".join(draw.choices(words, k=9)) for _ in range(400))
    (place / "corpus.txt").write_text(text)
    return Training(place)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
