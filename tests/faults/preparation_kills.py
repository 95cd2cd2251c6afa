"""A preparation that is killed again and again: `python -m tests.faults.preparation_kills`.

    python -m tests.faults.preparation_kills --kills 200 --workers 2

A process that turns text into small shards is killed (SIGKILL) at random moments and begun again,
until it comes to its end; then another preparation begins, until so many kills are delivered. Each
must end with the shards, byte for byte, of the one that nothing disturbed, verified; nothing hidden
may be left in the cache, nor a process that encodes; and no kill may cost more than the text
between two journals, which is less than a shard. Prints a line of JSON; exit code 1 where a promise
was broken.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import random
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import psutil

from llmtrain.data.shards.manifest import MANIFEST_NAME
from llmtrain.data.sources.resolve import resolve_sources
from llmtrain.tokenizer import Tokenizer
from llmtrain.tokenizer.encode_processes import encode_in_processes, encode_in_this_process
from tests.checkout import import_path
from tests.data.fixed import TOKENIZER, fixed_texts
from tests.shards import prepared_shards

_ROUNDS = 6  # of the fixed texts: 600 kB
_SHARD_BYTES = 200_000
_BATCH_BYTES = 20_000
_JOURNAL_BYTES = 60_000
_LOST_BYTES = _JOURNAL_BYTES + _BATCH_BYTES  # what a kill may cost at most
_GONE_WITHIN_S = 20.0


@dataclass
class DropCount:
    """What came of the kills."""

    kills: int = 0
    preparations: int = 0
    resumed: int = 0
    most_lost_bytes: int = 0
    struck: Counter[str] = field(default_factory=Counter)
    broken: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Place:
    """A directory with a corpus and a cache."""

    directory: Path
    workers: int

    @property
    def shards(self) -> Path:
        """Where the entries are."""
        return self.directory / "cache" / "shards"

    def begin(self) -> subprocess.Popen[str]:
        """A process that prepares, and says how far it is."""
        module = ["-m", "tests.faults.preparation_kills"]
        return subprocess.Popen(
            [sys.executable, *module, "--prepare", str(self.directory), str(self.workers)],
            env=os.environ | {"PYTHONPATH": import_path()},
            stdout=subprocess.PIPE,
            text=True,
        )

    def empty(self) -> None:
        """The cache has no entry."""
        for path in sorted(self.shards.rglob("*"), reverse=True):
            path.rmdir() if path.is_dir() else path.unlink()

    def contents(self) -> dict[str, str]:
        """sha256 by file of what the one entry holds, but for its manifest, and is beside it."""
        return {
            path.relative_to(self.shards).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
            for path in sorted(self.shards.rglob("*"))
            if path.is_file() and path.name != MANIFEST_NAME
        }


def main(arguments: Sequence[str]) -> int:
    """1 where a promise was broken."""
    parser = argparse.ArgumentParser(prog="python -m tests.faults.preparation_kills")
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--prepare", nargs=2, metavar=("DIRECTORY", "WORKERS"))
    values = parser.parse_args(arguments)
    if values.prepare:
        _prepare(Path(values.prepare[0]), int(values.prepare[1]))
        return 0
    with tempfile.TemporaryDirectory(prefix="llmtrain-kills-") as directory:
        tally = kill_at(Path(directory), values.kills, values.workers, values.seed)
    _say(vars(tally) | {"workers": values.workers})
    return 1 if tally.broken else 0


def _say(record: object) -> None:
    sys.stdout.write(json.dumps(record) + "\n")
    sys.stdout.flush()


def _prepare(directory: Path, workers: int) -> None:
    """What is killed."""
    tokenizer, cache = Tokenizer.load(TOKENIZER), directory / "cache"
    fingerprint = tokenizer.fingerprint
    apart = partial(encode_in_processes, TOKENIZER, fingerprint, workers, lambda: None)
    _say(0)
    prepared_shards(
        resolve_sources([str(directory / "corpus.jsonl")]),
        tokenizer,
        cache,
        on_progress=lambda done, total: _say(done),
        encode=apart if workers > 1 else partial(encode_in_this_process, tokenizer),
        shard_bytes=_SHARD_BYTES,
        batch_bytes=_BATCH_BYTES,
        journal_bytes=_JOURNAL_BYTES,
    ).close()


def kill_at(directory: Path, kills: int, workers: int, seed: int) -> DropCount:
    """So many kills in as many preparations as it takes."""
    place, draw, tally = Place(directory, workers), random.Random(seed), DropCount()
    _write_corpus(directory / "corpus.jsonl")
    begun_s = time.monotonic()
    _run(place, None)
    longest_s, whole = time.monotonic() - begun_s, place.contents()
    while tally.kills < kills:
        place.empty()
        tally.preparations += 1
        lost_at, is_killed = 0, True
        while is_killed:
            after_s = draw.uniform(0, longest_s / 2) if tally.kills < kills else None
            told, is_killed = _run(place, after_s)
            _note(tally, lost_at, told, is_killed=is_killed)
            lost_at = told[-1] if told else lost_at
        others = sorted({*place.contents().items()} ^ {*whole.items()})
        if others:
            names = ", ".join(dict.fromkeys(name for name, _ in others))
            tally.broken.append(f"preparation {tally.preparations} has other contents: {names}")
    return tally


def _run(place: Place, after_s: float | None) -> tuple[list[int], bool]:
    """How far it said it was, and whether it was killed so long after it began to work."""
    with place.begin() as process:
        assert process.stdout is not None
        process.stdout.readline()
        if after_s is not None:
            time.sleep(after_s)
        encoders = _children(process.pid) if after_s is not None else []
        if after_s is not None:
            process.kill()
        told = [int(line) for line in process.stdout if line.endswith("\n")]
    _, alive = psutil.wait_procs(encoders, timeout=_GONE_WITHIN_S)
    if alive:
        raise SystemExit(f"processes that encoded outlive their parent: {alive}")
    if process.returncode > 0:
        raise SystemExit(f"a preparation failed with {process.returncode}")
    return told, process.returncode != 0


def _children(pid: int) -> list[psutil.Process]:
    try:
        return psutil.Process(pid).children()
    except psutil.NoSuchProcess:
        return []


def _note(tally: DropCount, lost_at: int, told: list[int], *, is_killed: bool) -> None:
    """One run is told of, which began after one that was killed at `lost_at` bytes of text."""
    if is_killed:
        tally.kills += 1
        tally.struck["while encoding" if told else "before or after"] += 1
    if not lost_at or not told:
        return
    lost_bytes = max(0, lost_at - told[0])
    tally.resumed += 1
    tally.most_lost_bytes = max(tally.most_lost_bytes, lost_bytes)
    if lost_bytes > _LOST_BYTES:
        tally.broken.append(f"a kill at {lost_at} bytes cost {lost_bytes}")


def _write_corpus(path: Path) -> None:
    texts = [f"{number} {text}" for number in range(_ROUNDS) for text in fixed_texts()]
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts), encoding="utf-8")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
