"""`llmtrain memory --watch`: a live view of memory in use, or one line of JSON per sample."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from datetime import datetime, timezone
from typing import TYPE_CHECKING

from llmtrain.cli.memory.now import Target, find_target, memory_lines, memory_now, no_such_process
from llmtrain.cli.output import Output
from llmtrain.documents.memory import Memory
from llmtrain.errors import InterruptedRunError, UsageError

if TYPE_CHECKING:
    from rich.text import Text

    from llmtrain.train.signals import StopRequest

_MIN_INTERVAL_S, _MAX_INTERVAL_S = 0.05, 86400.0
Show = Callable[[Memory], None]


def watch_memory(output: Output, run: str | None, pid: int | None, every: str) -> None:
    """Show memory until a signal, a closed output, or the end of the process.

    SIGINT and SIGTERM end it even if they were ignored when it started: nothing else would.
    """
    from llmtrain.train.signals import stop_on_signals

    every_s = _interval_s(every)
    last: Memory | None = None
    # The handlers come first: finding the run takes seconds.
    with stop_on_signals(always=("SIGINT", "SIGTERM")) as stop:
        target = _target(output, run, pid)
        with _display(output) as show:
            for last in _samples(target, every_s, stop):
                show(last)
        if last is None and not stop.is_made:
            raise no_such_process(target)
    if last is not None and _is_live(output):
        output.show_all(memory_lines(last))


def _interval_s(text: str) -> float:
    from llmtrain.units import parse_duration_s

    try:
        every_s = parse_duration_s(text)
    except ValueError as error:
        raise UsageError(f"--every {text}: {error}", hint="--every 2s") from None
    if not _MIN_INTERVAL_S <= every_s <= _MAX_INTERVAL_S:
        raise UsageError(
            f"--every {text}: has to be from {_MIN_INTERVAL_S:g}s to 1d", hint="--every 2s"
        )
    return every_s


def _target(output: Output, run: str | None, pid: int | None) -> Target:
    target = find_target(run, pid)
    if target is not None:
        return target
    from llmtrain.train.run_directory.running import newest_in_training

    newest = newest_in_training()
    if newest is None:
        output.note("no run under runs/ is being trained: showing the machine; or use --pid PID")
        return Target()
    directory, training_pid = newest
    output.note(f"watching {directory.path}, process {training_pid}")
    return Target(training_pid, directory)


def _samples(target: Target, every_s: float, stop: StopRequest) -> Iterator[Memory]:
    """Yield the memory in use every `every_s`, until a signal or the end of the process.

    The process's peak never decreases from one sample to the next.
    """
    started_s, peak_bytes = time.monotonic(), 0
    with suppress(ProcessLookupError, InterruptedRunError):
        while not stop.is_made:
            now = datetime.now(timezone.utc).isoformat(timespec="milliseconds")
            elapsed_s = round(time.monotonic() - started_s, 3)
            memory = memory_now(target, time=now, elapsed_s=elapsed_s)
            peak_bytes = max(peak_bytes, memory.process.peak_resident_bytes)
            memory.process.peak_resident_bytes = peak_bytes
            yield memory
            with stop.immediate():  # a signal ends the wait, never a half-written line
                time.sleep(every_s)


def _is_live(output: Output) -> bool:
    from rich.console import Console

    console = Console()
    return console.is_terminal and not console.is_dumb_terminal and not output.json


@contextmanager
def _display(output: Output) -> Iterator[Show]:
    """Yield a function that shows a sample: in a temporary view on a terminal, or as a line."""
    if not _is_live(output):
        yield output.document_line
        return
    from rich.console import Console
    from rich.live import Live

    with Live(console=Console(file=sys.stdout), transient=True, auto_refresh=False) as live:
        yield lambda memory: live.update(_view(memory), refresh=True)


def _view(memory: Memory) -> Text:
    from rich.text import Text

    shown = [*memory_lines(memory), f"{memory.elapsed_s:.0f} s; Ctrl-C ends"]
    return Text("\n".join(shown), overflow="ellipsis", no_wrap=True)
