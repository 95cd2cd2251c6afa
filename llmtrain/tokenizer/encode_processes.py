"""Encode batches of text in worker processes or in the current process."""

from __future__ import annotations

import sys
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from contextlib import closing
from pathlib import Path
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

from llmtrain.children import WorkerProgram, ask_workers, serve
from llmtrain.errors import DataError
from llmtrain.tokenizer.importing import open_tokenizer
from llmtrain.tokenizer.tokenizer import Tokenizer
from llmtrain.tokenizer.word_cache import ID_BYTES, EncodeToBytes, fastest_encoder

# The concatenated ids of several texts, and the number of ids of each text; both int64.
Encoded: TypeAlias = tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]

_MAX_PROCESSES = 32  # reading the text limits the rate well below this number
_ID = np.dtype(np.int32)


def encode_in_processes(
    directory: Path,
    fingerprint: str,
    processes: int,
    check_stop: Callable[[], None],
    batches: Iterable[Sequence[bytes]],
) -> Generator[Encoded, None, None]:
    """Yield the ids of each batch of UTF-8 texts, in order, by the tokenizer in `directory`.

    Each process loads the tokenizer; all processes end when `check_stop` raises or the generator
    is closed. Raises DataError if the tokenizer cannot encode a text or its fingerprint is not
    `fingerprint`, and LlmtrainError if a process dies.
    """
    program = WorkerProgram(
        "llmtrain.tokenizer.encode_processes:main",
        (str(directory), fingerprint),
        task="encoded text",
        hint="run the same command again: it continues where this one stopped",
    )
    count = min(processes, _MAX_PROCESSES)
    with closing(ask_workers(program, batches, check_stop, processes=count)) as answers:
        yield from map(_arrays, answers)


def encode_in_this_process(
    tokenizer: Tokenizer, batches: Iterable[Sequence[bytes]]
) -> Generator[Encoded, None, None]:
    """Yield the ids of each batch of UTF-8 texts, in order, without worker processes."""
    encode = fastest_encoder(tokenizer)
    for batch in batches:
        yield _arrays(encode([data.decode() for data in batch]))


def _arrays(encoded: Sequence[bytes]) -> Encoded:
    counts = np.array([len(ids) // ID_BYTES for ids in encoded], dtype=np.int64)
    return np.frombuffer(b"".join(encoded), _ID).astype(np.int64), counts


def main() -> None:
    """Run a worker process; its arguments are the tokenizer's directory and fingerprint."""
    directory, fingerprint = sys.argv[1:]
    encode: EncodeToBytes | None = None

    def handle(texts: Iterator[bytes]) -> list[bytes]:
        nonlocal encode
        encode = encode or _load_encoder(Path(directory), fingerprint)
        return encode([data.decode() for data in texts])

    serve(handle)


def _load_encoder(directory: Path, fingerprint: str) -> EncodeToBytes:
    tokenizer = open_tokenizer(directory)
    if tokenizer.fingerprint != fingerprint:
        raise DataError(
            f"the tokenizer in {directory} changed while it was in use",
            hint="run the command again",
        )
    return fastest_encoder(tokenizer)
