"""What was measured, and what follows from it. Values and arithmetic only."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass

from tests.benchmarks.documents import Peaks, Trained
from tests.benchmarks.process import Finished

OURS = "ours"


@dataclass(frozen=True, slots=True)
class Run:
    """One system in one round. The first `warmup` steps do not count for its rate."""

    round: int
    system: str
    command: list[str]
    finished: Finished
    trained: Trained
    warmup: int
    tokens_per_step: int

    @property
    def tokens_per_s(self) -> float:
        """Of the median step after the warm-up."""
        return self.tokens_per_step / statistics.median(self.trained.step_s[self.warmup :])


@dataclass(frozen=True, slots=True)
class Failure:
    """One system in one round that measured nothing, and what it said last."""

    round: int
    system: str
    command: list[str]
    exit_code: int
    tail: str


@dataclass(frozen=True, slots=True)
class Round:
    """Every system once, in turn, and the machine's peak beside them."""

    peaks: Peaks
    runs: list[Run]
    failures: list[Failure]

    def run_of(self, system: str) -> Run | None:
        """The system's run, if it was measured."""
        return next((run for run in self.runs if run.system == system), None)


@dataclass(frozen=True, slots=True)
class Spread:
    """The median over rounds, and how far they lie apart."""

    median: float
    least: float
    most: float


@dataclass(frozen=True, slots=True)
class Summary:
    """One system over all rounds. Ratios are taken within a round, and then their median.

    `speed_ratio` is ours over the system's, `memory_ratio` the system's over ours, of all its
    processes together. Utilisation is of the peak in the type that the system multiplies in, and
    of the bf16 peak.
    """

    system: str
    precision: str
    parameters: int
    tokens_per_s: Spread
    speed_ratio: Spread | None
    first_step_s: Spread
    peak_bytes: Spread
    peak_process_bytes: Spread
    memory_ratio: Spread | None
    utilisation: Spread
    bf16_utilisation: Spread


def summarise(rounds: Sequence[Round], systems: Sequence[str], flops: int) -> list[Summary]:
    """The systems that were measured, in order; `flops` are the model's for one token."""
    found = ((system, _runs_of(rounds, system)) for system in systems)
    return [_summary(system, pairs, flops) for system, pairs in found if pairs]


def _runs_of(rounds: Sequence[Round], system: str) -> list[tuple[Round, Run]]:
    found = ((each, each.run_of(system)) for each in rounds)
    return [(each, run) for each, run in found if run is not None]


def _summary(system: str, found: Sequence[tuple[Round, Run]], flops: int) -> Summary:
    runs = [run for _, run in found]
    trained = runs[0].trained
    beside_ours = [(ours, run) for each, run in found if (ours := each.run_of(OURS)) is not None]
    peak_ratios = [tree_peak(run) / tree_peak(ours) for ours, run in beside_ours]
    speed_ratios = [ours.tokens_per_s / run.tokens_per_s for ours, run in beside_ours]
    reached = [(each.peaks, flops * run.tokens_per_s) for each, run in found]
    return Summary(
        system=system,
        precision=trained.precision,
        parameters=trained.parameters,
        tokens_per_s=spread([run.tokens_per_s for run in runs]),
        speed_ratio=spread(speed_ratios) if speed_ratios else None,
        first_step_s=spread([run.trained.step_s[0] for run in runs]),
        peak_bytes=spread([tree_peak(run) for run in runs]),
        peak_process_bytes=spread([run.finished.peak_process_bytes for run in runs]),
        memory_ratio=spread(peak_ratios) if peak_ratios else None,
        utilisation=spread([rate / own_peak(peaks, trained.precision) for peaks, rate in reached]),
        bf16_utilisation=spread([rate / peaks.bf16_flops for peaks, rate in reached]),
    )


def tree_peak(run: Run) -> int:
    """Bytes that the run's processes held together at most."""
    return run.finished.peak_tree_bytes


def own_peak(peaks: Peaks, precision: str) -> float:
    """The peak of the type that a system multiplies in."""
    return peaks.bf16_flops if precision == "bf16" else peaks.fp32_flops


def spread(values: Sequence[float]) -> Spread:
    """Median, least and most of at least one value."""
    return Spread(statistics.median(values), min(values), max(values))
