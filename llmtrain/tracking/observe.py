"""Feed trackers with the events of a run."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from llmtrain.profile.load import flat_values
from llmtrain.profile.schema import TrackerName
from llmtrain.tracking.tracker import Tracker
from llmtrain.train.events import Evaluated, Event, Observer, Sampled, Step, metrics_line


@contextmanager
def tracked(
    observe: Observer,
    names: Sequence[TrackerName],
    run: Path,
    profile: Mapping[str, Any],
    from_step: int,
) -> Iterator[Observer]:
    """Yield an observer that also sends metrics to trackers, by their names in metrics.jsonl.

    A resumed run continues its curves from `from_step`; later points are replaced.
    """
    with ExitStack() as stack:
        trackers = [stack.enter_context(Tracker(name, run, observe)) for name in names]

        def send(line: Mapping[str, Any]) -> None:
            for tracker in trackers:
                tracker.send(line)

        send({"start": from_step, "profile": dict(flat_values(profile))})
        yield _Feed(observe, send, from_step) if trackers else observe


class _Feed:
    """Notifies the observer first, then the trackers."""

    def __init__(
        self, observe: Observer, send: Callable[[Mapping[str, Any]], None], from_step: int
    ) -> None:
        self._observe, self._send, self._step = observe, send, from_step

    def __call__(self, event: Event) -> None:
        self._observe(event)
        if isinstance(event, Step) and event.is_logged:
            if event.step <= self._step:  # after a rewind
                self._send({"start": event.step - 1})
            self._step = event.step
        elif not isinstance(event, (Evaluated, Sampled)):
            return
        line = metrics_line(event)
        kind = "sample" if isinstance(event, Sampled) else "metrics"
        self._send({kind: line})
