"""Compare the speed of several ways to compute the same result, undisturbed by other programs."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from statistics import median

from llmtrain.machine.facts import FASTER_RATIO

Run = Callable[[], object]

# Ratios to the default that are measured longer: noise could move them past FASTER_RATIO.
_CLOSE = (0.75 * FASTER_RATIO, 1.25 * FASTER_RATIO)
_MORE_BUDGETS = 3  # for close ones


@dataclass(frozen=True, slots=True)
class Timing:
    """The median wall time of several rounds, and the least CPU time of all threads together.

    A run takes what a round usually takes; the fastest of dozens is faster by a tenth and more.
    """

    wall_s: float
    cpu_s: float

    def ratio_to(self, other: Timing) -> float:
        """Return this CPU time over the other's.

        A busy machine hardly changes it: a thread that waits for a core uses no CPU time.
        """
        return self.cpu_s / other.cpu_s


def compare(
    ways: Mapping[str, Sequence[Run]], *, budget_s: float, least_rounds: int, most_rounds: int
) -> dict[str, Timing]:
    """Time each way; the first is the default that the others must beat.

    A way is a sequence of parts, whose timings are summed. The ways take turns, so that a slow
    moment affects all. A way that comes close to `FASTER_RATIO` is measured several times as long.
    """
    rounds = {name: [list[Timing]() for _ in parts] for name, parts in ways.items()}
    found: dict[str, Timing] = {}
    for _ in range(1 + _MORE_BUDGETS):
        deadline_s = time.perf_counter() + budget_s
        for done in range(most_rounds):
            if done >= least_rounds and time.perf_counter() > deadline_s:
                break
            for name, parts in ways.items():
                for timings, run in zip(rounds[name], parts, strict=True):
                    timings.append(_timed(run))
        found = {name: _total(parts) for name, parts in rounds.items()}
        if not _is_close(list(found.values())):
            break
    return found


def _is_close(found: Sequence[Timing]) -> bool:
    standing, *others = found
    return any(_CLOSE[0] < other.ratio_to(standing) < _CLOSE[1] for other in others)


def _timed(run: Run) -> Timing:
    start_s, start_cpu_s = time.perf_counter(), cpu_seconds()
    run()
    cpu_s, wall_s = cpu_seconds() - start_cpu_s, time.perf_counter() - start_s
    return Timing(wall_s, cpu_s or wall_s)  # 0: shorter than a tick, as under `ulimit -t`


def cpu_seconds() -> float:
    """Return the process's CPU seconds; on Windows, which counts them in 1/64 s, wall seconds."""
    return time.perf_counter() if sys.platform == "win32" else time.process_time()


def _total(parts: Sequence[Sequence[Timing]]) -> Timing:
    """Return the sum over the parts, of each of which several rounds were timed."""
    return Timing(
        sum(median(each.wall_s for each in rounds) for rounds in parts),
        sum(min(each.cpu_s for each in rounds) for rounds in parts),
    )
