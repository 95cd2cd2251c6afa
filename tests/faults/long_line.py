"""A corpus that is a single line: how much memory does it take to read?

    python -m tests.faults.long_line --bytes 1000000000

Writes the line, plain and compressed, as text and as JSON, and lets a process of its own measure,
split and tokenize it, byte by byte. Prints a line of JSON for each; exit code 1 where the process
grew by more than sixteen times the longest part of a text, or where a line of JSON that is too
long was not refused.
"""

from __future__ import annotations

import argparse
import gzip
import json
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

from llmtrain.data.document import LONGEST_BYTES

_MOST_PARTS = 16
_PIECE_BYTES = 1 << 20

_CHILD = """
import resource, sys, tempfile, time
from pathlib import Path
from llmtrain.data.shards.encode import cut_into_parts, encode_parts
from llmtrain.data.shards.build import BATCH_BYTES
from llmtrain.data.sources.resolve import resolve_sources
from llmtrain.data.split import plan_split
from llmtrain.errors import DataError
from tests.shards import encode_here

class Bytes:
    vocab_size, separator_id, end_id, fingerprint = 257, 256, None, "bytes"
    def encode_batch(self, texts, threads):
        return [list(text.encode()) for text in texts]

def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024

before, begun_s, tokens = peak(), time.process_time(), 0
try:
    corpus = resolve_sources([sys.argv[1]])
    split = plan_split(corpus, corpus.measure(), 0.05)
    parts = cut_into_parts(split.assign(corpus.documents()), BATCH_BYTES)
    encoder = Bytes()
    for batch in encode_parts(parts, encode_here(encoder), encoder, BATCH_BYTES):
        tokens += len(batch.ids)
    print(f"{tokens} tokens")
except DataError as error:
    print(error.message.rpartition("/")[2])
print(peak() - before)
print(round(time.process_time() - begun_s, 1))
"""


def main(arguments: Sequence[str]) -> int:
    """The line in four forms."""
    parser = argparse.ArgumentParser(prog="python -m tests.faults.long_line")
    parser.add_argument("--bytes", type=int, default=10**9)
    size = parser.parse_args(arguments).bytes
    failed = False
    with tempfile.TemporaryDirectory(prefix="llmtrain-line-") as scratch:
        for name in ("a.txt", "a.txt.gz", "a.jsonl", "a.jsonl.gz"):
            path = Path(scratch) / name
            _write(path, size)
            done = subprocess.run(
                [sys.executable, "-c", _CHILD, str(path)],
                capture_output=True,
                text=True,
                check=True,
            )
            path.unlink()
            said, grown, computed_s = done.stdout.splitlines()
            failed |= int(grown) > _MOST_PARTS * LONGEST_BYTES
            failed |= ("jsonl" in name) != ("is longer than" in said)
            row = {"file": name, "line_bytes": size, "said": said, "grown_bytes": int(grown)}
            sys.stdout.write(json.dumps({**row, "computed_s": float(computed_s)}) + "\n")
            sys.stdout.flush()
    return 1 if failed else 0


def _write(path: Path, size: int) -> None:
    with gzip.open(path, "wb", 1) if path.suffix == ".gz" else path.open("wb") as file:
        for piece in _line(size, is_json="jsonl" in path.name):
            file.write(piece)


def _line(size: int, *, is_json: bool) -> Iterator[bytes]:
    if is_json:
        yield b'{"text": "'
    for start in range(0, size, _PIECE_BYTES):
        yield b"x" * min(_PIECE_BYTES, size - start)
    if is_json:
        yield b'"}'


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
