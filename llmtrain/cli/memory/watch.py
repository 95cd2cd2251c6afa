"""`llmtrain memory --watch`: a view that is redrawn in place, or a line of JSON a look."""

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

_OFTEN_S, _SELDOM_S = 0.05, 86400.0
Document = dict[str, Any]
Show = Callable[[Document], None]


def watch_memory(
    output: Output, run: str | None, pid: int | None, every: str, *, as_lines: bool
) -> int:
    """Memory is shown until a signal comes, nobody reads any more, or the process has ended."""
    from llmtrain.train.distributed.signals import stop_on_signals

    every_s = _interval_s(every)
    last: Document | None = None
    with stop_on_signals() as stop:  # before a run is looked for, which takes seconds
        target = _target(output, run, pid)
        with _display(output, as_lines=as_lines) as show:
            for last in _looks(target, every_s, stop):
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
    if not _OFTEN_S <= every_s <= _SELDOM_S:
        raise UsageError(f"--every {text}: from {_OFTEN_S:g}s to 1d", hint="--every 2s")
    return every_s


def _target(output: Output, run: str | None, pid: int | None) -> Watched:
    target = asked_for(run, pid)
    if target is not None:
        return target
    from llmtrain.train.run_directory.running import newest_in_training

    newest = newest_in_training()
    if newest is None:
        output.note("no run under runs/ is being trained: this is the machine; --pid PID names one")
        return Watched()
    directory, training_pid = newest
    output.note(f"watching {directory.path}, process {training_pid}")
    return Watched(training_pid, directory)


def _looks(target: Watched, every_s: float, stop: StopRequest) -> Iterator[Document]:
    """A document a look, until a signal asks to stop or the process has ended.

    What is told as its peak is never below what was seen before.
    """
    began_s, peak_bytes = time.monotonic(), 0
    with suppress(ProcessLookupError, InterruptedRunError):
        while not stop.is_made:
            document = memory_now(target)
            process = document["process"]
            peak_bytes = max(peak_bytes, process["peak_resident_bytes"])
            process["peak_resident_bytes"] = peak_bytes
            now = datetime.now(timezone.utc).isoformat(timespec="milliseconds")
            yield {"time": now, "elapsed_s": round(time.monotonic() - began_s, 3), **document}
            with stop.immediate():  # a look or a line is not left half done
                time.sleep(every_s)


def _is_live(as_lines: bool) -> bool:
    from rich.console import Console

    console = Console()
    return console.is_terminal and not console.is_dumb_terminal and not as_lines


@contextmanager
def _display(output: Output, *, as_lines: bool) -> Iterator[Show]:
    """Where a look goes: to a view on the terminal that is gone afterwards, or into a line."""
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
