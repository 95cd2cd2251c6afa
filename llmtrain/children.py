"""Python processes of our own: how one is started, and how worker processes answer requests.

A request and an answer are lists of byte strings, each sent as its size (8 bytes, little-endian)
and its content, with a size of -1 after the last. The first string of an answer is a JSON object:
empty, or the error with which the worker refused the request. Nothing is pickled.
"""

from __future__ import annotations

import json
import os
import struct
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from concurrent.futures import TimeoutError as NotYetError
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from queue import SimpleQueue
from typing import IO

from llmtrain.errors import DataError, LlmtrainError, UsageError, describe_exit_code
from llmtrain.files import Closing
from llmtrain.pipes import unread_pipe_named

MAIN = "llmtrain.__main__:main"  # the command itself, as its console script starts it

_REQUESTS_AHEAD = 2  # for each worker: the one in progress, and the next
_POLL_S = 0.2
_SIZE = struct.Struct("<q")
_END = _SIZE.pack(-1)
_REFUSALS: tuple[type[LlmtrainError], ...] = (UsageError, DataError)


def python_command(entry: str, *arguments: str) -> list[str]:
    """Return the command that calls `module:function` in another Python, with these `sys.argv[1:]`.

    It imports from where this process does. `python -m` would look in the working directory first,
    where the user's data lies, and run a file there that has the name of a library.
    """
    module, _, function = entry.partition(":")
    code = f"import sys; sys.path[:] = {sys.path!r}; from {module} import {function}; {function}()"
    return [sys.executable, "-c", code, *arguments]


@dataclass(frozen=True, slots=True)
class WorkerProgram:
    """The program of a worker process: `entry`, a `module:function` that calls `serve`.

    `task` completes "process 123, which …" where a worker dies, and `hint` says what to do then.
    """

    entry: str
    arguments: tuple[str, ...]
    task: str
    hint: str


def ask_workers(
    program: WorkerProgram,
    requests: Iterable[Iterable[bytes]],
    check_stop: Callable[[], None],
    *,
    processes: int = 1,
) -> Generator[list[bytes], None, None]:
    """Yield the answer to each request, in order, from so many worker processes.

    The byte strings of a request are drawn in another thread. The workers end with the generator,
    when `check_stop` raises, and when this process dies. Raises the UsageError or DataError with
    which a worker refuses, and LlmtrainError if a worker dies.
    """
    with ExitStack() as stack:
        threads = stack.enter_context(ThreadPoolExecutor(processes))
        idle: SimpleQueue[_Worker] = SimpleQueue()
        for _ in range(processes):
            idle.put(stack.enter_context(_Worker(program)))
        stack.callback(threads.shutdown, wait=False, cancel_futures=True)
        pending: deque[Future[list[bytes]]] = deque()
        for request in requests:
            pending.append(threads.submit(_ask_idle, idle, request))
            if len(pending) >= _REQUESTS_AHEAD * processes:
                yield _result(pending.popleft(), check_stop)
        while pending:
            yield _result(pending.popleft(), check_stop)


def _ask_idle(idle: SimpleQueue[_Worker], request: Iterable[bytes]) -> list[bytes]:
    worker = idle.get()
    try:
        return worker.ask(request)
    finally:
        idle.put(worker)


def _result(future: Future[list[bytes]], check_stop: Callable[[], None]) -> list[bytes]:
    while True:
        check_stop()
        try:
            return future.result(timeout=_POLL_S)
        except NotYetError:
            continue
        except LlmtrainError:
            check_stop()  # what stops this process may have ended the worker first
            raise


class _Worker(Closing):
    """A worker process, seen from its parent. One thread uses it at a time."""

    def __init__(self, program: WorkerProgram) -> None:
        self._program = program
        self._process = start_process(python_command(program.entry, *program.arguments))

    def ask(self, request: Iterable[bytes]) -> list[bytes]:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        try:
            _write_parts(self._process.stdin, request)
            head, *parts = _read_parts(self._process.stdout)
        except (BrokenPipeError, EOFError):
            ended = describe_exit_code(self._process.wait())
            raise LlmtrainError(
                f"process {self._process.pid}, which {self._program.task}, {ended}",
                hint=self._program.hint,
            ) from None
        refusal = json.loads(head)
        for kind in _REFUSALS:
            if refusal.get("kind") == kind.__name__:
                raise kind(refusal["message"], hint=refusal["hint"])
        return parts

    def close(self) -> None:
        """Kill the process, and close its pipes."""
        self._process.kill()
        self._process.wait()
        for pipe in (self._process.stdin, self._process.stdout):
            assert pipe is not None
            with suppress(OSError):  # of a buffer that cannot be flushed any more
                pipe.close()


def start_process(
    command: list[str], *, stdout: int = subprocess.PIPE, stderr: int | None = None
) -> subprocess.Popen[bytes]:
    """Start a process that a Ctrl-C in the terminal does not reach: the parent handles that.

    Its stdin is a pipe; `stdout` and `stderr` are as for `subprocess.Popen`.
    """
    pipe = subprocess.PIPE
    if sys.platform == "win32":
        group = subprocess.CREATE_NEW_PROCESS_GROUP
        return subprocess.Popen(
            command, stdin=pipe, stdout=stdout, stderr=stderr, creationflags=group
        )
    return subprocess.Popen(
        command, stdin=pipe, stdout=stdout, stderr=stderr, start_new_session=True
    )


def serve(handle: Callable[[Iterator[bytes]], Iterable[bytes]]) -> None:
    """Answer requests from standard input on standard output, as long as the parent lives.

    `handle` turns the strings of a request into those of its answer, and may raise UsageError or
    DataError.
    """
    end_with_parent()
    with os.fdopen(0, "rb") as requests, os.fdopen(1, "wb") as answers:
        while True:
            try:
                _write_parts(answers, _answer(handle, _read_parts(requests)))
            except (BrokenPipeError, EOFError):
                os._exit(1)  # the parent is gone, and flushing `answers` would fail again


def _answer(
    handle: Callable[[Iterator[bytes]], Iterable[bytes]], request: Iterator[bytes]
) -> list[bytes]:
    try:
        return [b"{}", *handle(request)]
    except _REFUSALS as error:
        deque(request, maxlen=0)  # the parent reads no answer before all of its request is sent
        refusal = {"kind": type(error).__name__, "message": error.message, "hint": error.hint}
        return [json.dumps(refusal).encode("ascii")]


def end_with_parent() -> None:
    """End this process, which may compute for minutes, when its parent dies.

    On Windows, where the parent's id stays the same, it ends when it next reads or writes.
    """
    threading.Thread(target=_exit_without, args=(os.getppid(),), daemon=True).start()


def _exit_without(parent_pid: int) -> None:
    while os.getppid() == parent_pid:
        time.sleep(_POLL_S)
    os._exit(1)


def _write_parts(stream: IO[bytes], parts: Iterable[bytes]) -> None:
    """Write parts and their end. Raises BrokenPipeError if nobody reads them."""
    for part in parts:
        with unread_pipe_named():
            stream.write(_SIZE.pack(len(part)))
            stream.write(part)
    with unread_pipe_named():
        stream.write(_END)
        stream.flush()


def _read_parts(stream: IO[bytes]) -> Iterator[bytes]:
    while (head := _read_exactly(stream, _SIZE.size)) != _END:
        yield _read_exactly(stream, _SIZE.unpack(head)[0])


def _read_exactly(stream: IO[bytes], size: int) -> bytes:
    data = stream.read(size)
    if len(data) < size:
        raise EOFError
    return data
