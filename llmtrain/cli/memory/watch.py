"""`llmtrain memory --watch`: a live view of memory in use, or one line of JSON per sample."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from datetime import datetime, timezone
from typing import TYPE_CHECKING, Any

from llmtrain.cli.memory.now import Watched, asked_for, memory_lines, memory_now, no_such_process
from llmtrain.cli.output import Output
from llmtrain.errors import InterruptedRunError, UsageError

if TYPE_CHECKING:
    from llmtrain.train.distributed.signals import StopRequest

_MIN_INTERVAL_S, _MAX_INTERVAL_S = 0.05, 86400.0
Document = dict[str, Any]
Show = Callable[[Document], None]


def watch_memory(
    output: Output, run: str | None, pid: int | None, every: str, *, as_lines: bool
) -> int:
    """Show memory in use until a signal arrives, the reader closes, or the process ends.

    SIGINT and SIGTERM end it even if they were ignored when it started: nothing else would.
    """
    from llmtrain.train.distributed.signals import stop_on_signals

    every_s = _interval_s(every)
    last: Document | None = None
    # The handlers come first: finding the run takes seconds.
    with stop_on_signals(always=("SIGINT", "SIGTERM")) as stop:
        target = _target(output, run, pid)
        with _display(output, as_lines=as_lines) as show:
            for last in _samples(target, every_s, stop):
                show(last)
        if last is None and not stop.is_made:
            raise no_such_process(target)
    if last is not None and _is_live(as_lines):
        for line in memory_lines(last):
            output.result(line)
    return 0


def _interval_s(text: str) -> float:
    from llmtrain.units import parse_duration_s

    try:
        every_s = parse_duration_s(text)
    except ValueError as error:
        raise UsageError(f"--every {text}: {error}", hint="--every 2s") from None
    if not _MIN_INTERVAL_S <= every_s <= _MAX_INTERVAL_S:
        raise UsageError(
            f"--every {text}: must be from {_MIN_INTERVAL_S:g}s to 1d", hint="--every 2s"
        )
    return every_s


def _target(output: Output, run: str | None, pid: int | None) -> Watched:
    target = asked_for(run, pid)
    if target is not None:
        return target
    from llmtrain.train.run_directory.running import newest_in_training

    newest = newest_in_training()
    if newest is None:
        output.note("no run under runs/ is being trained: showing the machine; or use --pid PID")
        return Watched()
    directory, training_pid = newest
    output.note(f"watching {directory.path}, process {training_pid}")
    return Watched(training_pid, directory)


def _samples(target: Watched, every_s: float, stop: StopRequest) -> Iterator[Document]:
    """Yield a document every `every_s` seconds until a signal arrives or the process ends.

    `peak_resident_bytes` is the peak of all samples so far, so it never decreases.
    """
    started_s, peak_bytes = time.monotonic(), 0
    with suppress(ProcessLookupError, InterruptedRunError):
        while not stop.is_made:
            document = memory_now(target)
            process = document["process"]
            peak_bytes = max(peak_bytes, process["peak_resident_bytes"])
            process["peak_resident_bytes"] = peak_bytes
            now = datetime.now(timezone.utc).isoformat(timespec="milliseconds")
            yield {"time": now, "elapsed_s": round(time.monotonic() - started_s, 3), **document}
            with stop.immediate():  # a signal ends the wait, never a half-written line
                time.sleep(every_s)


def _is_live(as_lines: bool) -> bool:
    from rich.console import Console

    console = Console()
    return console.is_terminal and not console.is_dumb_terminal and not as_lines


@contextmanager
def _display(output: Output, *, as_lines: bool) -> Iterator[Show]:
    """Yield the function that shows a sample: redraw the live view, or print a line of JSON."""
    if not _is_live(as_lines):
        yield output.document_line
        return
    from rich.console import Console
    from rich.live import Live

    with Live(console=Console(file=sys.stdout), transient=True, auto_refresh=False) as live:
        yield lambda document: live.update(_view(document), refresh=True)


def _view(document: Document) -> Any:
    from rich.text import Text

    shown = [*memory_lines(document), f"{document['elapsed_s']:.0f} s watched; Ctrl-C ends"]
    return Text("\n".join(shown), overflow="ellipsis", no_wrap=True)
