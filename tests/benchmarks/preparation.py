"""How fast text becomes token shards, and in how much memory: by one process, and by more.

    python -m tests.benchmarks.preparation --bytes 100MB --workers 1 --workers 2

Writes so many bytes of JSON lines (documents of the standard library, their paragraphs shuffled
anew in every round), learns a tokenizer from the first of them, and prepares them in an empty cache
by each number of workers. Prints a line of JSON for each: seconds and megabytes a second of all
(reading, hashing, splitting, encoding, writing), of measuring and of encoding alone, and the peak
of memory that all processes held together. The last line has the ratios, and whether the shards
are equal.
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
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import psutil

from llmtrain.data.sources.resolve import resolve_sources
from llmtrain.tokenizer import train_tokenizer
from llmtrain.units import parse_bytes
from tests.checkout import import_path

_LOOK_EVERY_S = 0.05
_MEGABYTE = 10**6


@dataclass(frozen=True)
class Outcome:
    """One preparation. The peak is of the process that prepares and those that it starts."""

    workers: int
    text_bytes: int
    tokens: int
    seconds: float
    cpu_s: float  # of all processes; on a machine that does nothing else, seconds times cores
    mb_per_s: float
    encoding_mb_per_s: float  # without the pass that measures
    peak_bytes: int
    sha256: str


_CHILD = """
import json, os, sys, time
from llmtrain.prepare.context import PrepareContext
from llmtrain.prepare.dataset import prepare_dataset
from llmtrain.profile.schema import DataSection

corpus, tokenizer, workers = sys.argv[1:]
section = DataSection(sources=(corpus,), tokenizer=tokenizer)
notes = []
context = PrepareContext(int(workers), lambda event: notes.append(time.monotonic()), lambda: None)
started_s, cpu_before = time.monotonic(), sum(os.times()[:4])
data = prepare_dataset(section, 2**31, context).shards
seconds = time.monotonic() - started_s
manifest = json.loads((data.directory / "manifest.json").read_text())
print(json.dumps({
    "directory": str(data.directory), "seconds": seconds,
    "cpu_s": sum(os.times()[:4]) - cpu_before, "making_s": manifest["made"]["seconds"],
    "text_bytes": manifest["text"]["bytes_encoded"],
    "tokens": data.index.train.tokens + data.index.validation.tokens,
}))
"""


def main(arguments: Sequence[str]) -> int:
    """1 where the shards differ."""
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks.preparation")
    parser.add_argument("--bytes", type=parse_bytes, default=100 * _MEGABYTE)
    parser.add_argument("--workers", type=int, action="append", help="repeatable; default: 1, 2")
    parser.add_argument("--vocab-size", type=int, default=8192)
    parser.add_argument("--tokenizer", type=Path, help="one that is there, in place of a new one")
    values = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory(prefix="llmtrain-preparation-") as scratch:
        place = Path(scratch)
        corpus = place / "corpus.jsonl"
        _write_corpus(corpus, values.bytes)
        tokenizer = values.tokenizer or _learn(place / "tokenizer", values.vocab_size)
        found = []
        for workers in values.workers or [1, 2]:
            found.append(_prepare(corpus, tokenizer, workers, place / f"cache-{workers}"))
            _say(asdict(found[-1]))
    first = found[0]
    equal = all(each.sha256 == first.sha256 for each in found)
    ratios = {f"{each.workers}": each.encoding_mb_per_s / first.encoding_mb_per_s for each in found}
    _say({"times_as_fast": ratios, "equal": equal})
    return 0 if equal else 1


def _say(record: dict[str, object]) -> None:
    sys.stdout.write(json.dumps(record) + "\n")
    sys.stdout.flush()


def _write_corpus(path: Path, size: int) -> None:
    written = 0
    with path.open("w", encoding="utf-8") as file:
        for text in _texts():
            written += file.write(json.dumps({"text": text}) + "\n")
            if written >= size:
                return


def _texts() -> Iterator[str]:
    """Without end, and none twice."""
    draw = random.Random(0)
    texts = [document.text for document in resolve_sources(["builtin:python"]).documents()]
    while True:
        draw.shuffle(texts)
        yield from texts
        for number, text in enumerate(texts):
            paragraphs = text.split("\n\n")
            draw.shuffle(paragraphs)
            texts[number] = "\n\n".join(paragraphs)


def _learn(directory: Path, vocab_size: int) -> Path:
    texts = (document.text for document in resolve_sources(["builtin:python"]).documents())
    train_tokenizer(texts, vocab_size=vocab_size, max_bytes=8 << 20).tokenizer.save(directory)
    return directory


def _prepare(corpus: Path, tokenizer: Path, workers: int, cache: Path) -> Outcome:
    """In a process of its own, which begins with nothing in its cache."""
    environment = os.environ | {"LLMTRAIN_CACHE_DIR": str(cache), "PYTHONPATH": import_path()}
    command = [sys.executable, "-c", _CHILD, str(corpus), str(tokenizer), str(workers)]
    with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True) as process:
        peak_bytes = _watch(process)
        assert process.stdout is not None
        said = json.loads(process.stdout.read())
    size = said["text_bytes"] / _MEGABYTE
    return Outcome(
        workers=workers,
        text_bytes=said["text_bytes"],
        tokens=said["tokens"],
        seconds=round(said["seconds"], 2),
        cpu_s=round(said["cpu_s"], 2),
        mb_per_s=round(size / said["seconds"], 2),
        encoding_mb_per_s=round(size / said["making_s"], 2),
        peak_bytes=peak_bytes,
        sha256=_digest(Path(said["directory"])),
    )


def _watch(process: subprocess.Popen[str]) -> int:
    """The most that the process and its descendants held together, until it ends."""
    peak_bytes, root = 0, psutil.Process(process.pid)
    while process.poll() is None:
        try:
            family = [root, *root.children(recursive=True)]
            peak_bytes = max(peak_bytes, sum(each.memory_info().rss for each in family))
        except psutil.NoSuchProcess:
            pass  # one of them has just ended
        time.sleep(_LOOK_EVERY_S)
    return peak_bytes


def _digest(directory: Path) -> str:
    """Of all shards, and of the index."""
    digest = hashlib.sha256()
    for path in sorted(directory.iterdir()):
        if path.name != "manifest.json":
            digest.update(f"{path.name} {hashlib.sha256(path.read_bytes()).hexdigest()}\n".encode())
    return digest.hexdigest()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
