"""Encoding in processes of their own: one for each core, and each loads the tokenizer itself.

    request   how many texts, the size of each, the texts as UTF-8
    answer    `+`, how many texts, how many ids each has, the ids
              `-`, the size of a JSON object that says what was refused, the object

Numbers are of 8 bytes, ids of 4, as the machine has them. A process whose parent has ended reads
the end of its requests, and ends too.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections import deque
from collections.abc import Callable, Generator, Iterable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from concurrent.futures import TimeoutError as NotYetError
from contextlib import ExitStack, suppress
from pathlib import Path
from queue import SimpleQueue
from types import TracebackType
from typing import IO, Any, TypeAlias

import numpy as np
import numpy.typing as npt

from llmtrain.children import python_command
from llmtrain.errors import DataError, LlmtrainError, describe_exit_code
from llmtrain.tokenizer.importing import open_tokenizer
from llmtrain.tokenizer.tokenizer import Tokenizer
from llmtrain.tokenizer.words import ID_BYTES, EncodeToBytes, quickest_encoder
from llmtrain.untrusted import parse_json

# The ids of several texts, one after the other, and how many each text has.
Encoded: TypeAlias = tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]

_MOST_PROCESSES = 32  # whoever reads the text for them is the bottleneck long before
_BATCHES_AHEAD = 2  # for each process: the one that it works on, and the next
_LOOK_EVERY_S = 0.2
_NUMBER = np.dtype(np.int64)
_ID = np.dtype(np.int32)


def encode_in_processes(
    directory: Path,
    fingerprint: str,
    processes: int,
    check_stop: Callable[[], None],
    batches: Iterable[Sequence[bytes]],
) -> Generator[Encoded, None, None]:
    """The ids of each batch of UTF-8 texts, in order, by the tokenizer in `directory`.

    Whatever `check_stop` raises ends the processes, and so does closing the generator. Raises
    DataError where the tokenizer refuses or is not the one with this fingerprint, and LlmtrainError
    that names a process which ended by itself.
    """
    count = min(processes, _MOST_PROCESSES)
    with ExitStack() as held:
        threads = held.enter_context(ThreadPoolExecutor(count))
        free: SimpleQueue[_Process] = SimpleQueue()
        for _ in range(count):
            free.put(held.enter_context(_Process(directory, fingerprint)))
        held.callback(threads.shutdown, wait=False, cancel_futures=True)
        waiting: deque[Future[Encoded]] = deque()
        for batch in batches:
            waiting.append(threads.submit(_encode_by_any, free, batch))
            if len(waiting) >= _BATCHES_AHEAD * count:
                yield _result(waiting.popleft(), check_stop)
        while waiting:
            yield _result(waiting.popleft(), check_stop)


def encode_in_this_process(
    tokenizer: Tokenizer, batches: Iterable[Sequence[bytes]]
) -> Generator[Encoded, None, None]:
    """What `encode_in_processes` gives, by this process."""
    encode = quickest_encoder(tokenizer)
    for batch in batches:
        encoded = encode([data.decode() for data in batch])
        counts = np.array([len(ids) // ID_BYTES for ids in encoded], dtype=_NUMBER)
        yield np.frombuffer(b"".join(encoded), _ID).astype(np.int64), counts


def _encode_by_any(free: SimpleQueue[_Process], batch: Sequence[bytes]) -> Encoded:
    process = free.get()
    try:
        return process.encode(batch)
    finally:
        free.put(process)


def _result(future: Future[Encoded], check_stop: Callable[[], None]) -> Encoded:
    while True:
        check_stop()
        try:
            return future.result(timeout=_LOOK_EVERY_S)
        except NotYetError:
            continue


class _Process:
    """A process that encodes, seen from its parent. One thread asks it at a time."""

    def __init__(self, directory: Path, fingerprint: str) -> None:
        entry = "llmtrain.tokenizer.encode_processes:serve"
        self._process = _started(python_command(entry, str(directory), fingerprint))

    def encode(self, batch: Sequence[bytes]) -> Encoded:
        """What it answers. Raises what it refuses, and LlmtrainError where it has ended."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        try:
            _write_request(self._process.stdin, batch)
            return _read_answer(self._process.stdout)
        except (BrokenPipeError, EOFError):
            ended = describe_exit_code(self._process.wait())
            raise LlmtrainError(
                f"process {self._process.pid}, which encoded text, {ended}",
                hint="the same command again goes on where this one stopped",
            ) from None

    def __enter__(self) -> _Process:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._process.kill()
        self._process.wait()
        for pipe in (self._process.stdin, self._process.stdout):
            assert pipe is not None
            with suppress(OSError):  # what was not sent is lost
                pipe.close()


def _started(command: Sequence[str]) -> subprocess.Popen[bytes]:
    """Out of reach of the terminal's Ctrl-C: the parent notes that, and ends its processes."""
    pipe = subprocess.PIPE
    if sys.platform == "win32":
        group = subprocess.CREATE_NEW_PROCESS_GROUP
        return subprocess.Popen(command, stdin=pipe, stdout=pipe, creationflags=group)
    return subprocess.Popen(command, stdin=pipe, stdout=pipe, start_new_session=True)


def _write_request(stream: IO[bytes], batch: Sequence[bytes]) -> None:
    stream.write(_numbers([len(batch), *map(len, batch)]))
    stream.writelines(batch)
    stream.flush()


def _read_request(stream: IO[bytes]) -> list[str] | None:
    """The next batch of texts; None where there are no more."""
    head = stream.read(_NUMBER.itemsize)
    if len(head) < _NUMBER.itemsize:
        return None
    sizes = _read_array(stream, int(np.frombuffer(head, _NUMBER)[0]), _NUMBER)
    return [_read_exactly(stream, int(size)).decode() for size in sizes]


def _write_answer(stream: IO[bytes], encoded: Sequence[bytes]) -> None:
    counts = [len(ids) // ID_BYTES for ids in encoded]
    stream.writelines([b"+", _numbers([len(counts), *counts]), *encoded])
    stream.flush()


def _write_refusal(stream: IO[bytes], error: DataError) -> None:
    refusal = json.dumps({"message": error.message, "hint": error.hint}).encode("ascii")
    stream.writelines([b"-", _numbers([len(refusal)]), refusal])
    stream.flush()


def _read_answer(stream: IO[bytes]) -> Encoded:
    """Raises DataError where it is a refusal, and EOFError where it is none."""
    is_refusal = _read_exactly(stream, 1) == b"-"
    size = int(_read_array(stream, 1, _NUMBER)[0])
    if is_refusal:
        refusal = parse_json(_read_exactly(stream, size))
        raise DataError(refusal["message"], hint=refusal["hint"])
    counts = _read_array(stream, size, _NUMBER)
    return _read_array(stream, int(counts.sum()), _ID), counts


def _numbers(values: Sequence[int]) -> bytes:
    return np.array(values, dtype=_NUMBER).tobytes()


def _read_array(stream: IO[bytes], count: int, dtype: np.dtype[Any]) -> npt.NDArray[np.int64]:
    data = _read_exactly(stream, count * dtype.itemsize)
    return np.frombuffer(data, dtype).astype(np.int64)


def _read_exactly(stream: IO[bytes], size: int) -> bytes:
    data = stream.read(size)
    if len(data) < size:
        raise EOFError
    return data


def main(directory: Path, fingerprint: str, read: IO[bytes], write: IO[bytes]) -> None:
    """Every request in `read` is answered in `write`."""
    encode: EncodeToBytes | None = None
    while (texts := _read_request(read)) is not None:
        try:
            encode = encode or _loaded(directory, fingerprint)
            encoded = encode(texts)
        except DataError as error:
            _write_refusal(write, error)
        else:
            _write_answer(write, encoded)


def _loaded(directory: Path, fingerprint: str) -> EncodeToBytes:
    tokenizer = open_tokenizer(directory)
    if tokenizer.fingerprint != fingerprint:
        raise DataError(
            f"the tokenizer in {directory} changed while it was used",
            hint="run the command again",
        )
    return quickest_encoder(tokenizer)


def serve() -> None:
    """What this process was started for."""
    try:
        with os.fdopen(0, "rb") as requests, os.fdopen(1, "wb") as answers:
            main(Path(sys.argv[1]), sys.argv[2], requests, answers)
    except (BrokenPipeError, EOFError):
        os._exit(1)  # the parent is gone; what is left to be said would only fail again
