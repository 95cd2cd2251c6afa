"""Decide whether memory suffices for another step: pure functions from readings to an action."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

from llmtrain.units import format_bytes

# Memory to leave free. Below the first a smaller plan is worth compiling; below the second the
# kernel may kill before the next check, or a library may crash at an allocation that it does not
# check. Both are bounded on large machines, as is what programs take between two checks.
_COMFORT_SHARE, _MOST_COMFORT_BYTES = 12, 1 << 30
_LAST_SHARE, _MOST_LAST_BYTES = 24, 256 << 20
# Of a limit on one process's mappings: threads that start, with their stacks, and libraries that
# are loaded late.
_UNCHECKED_BYTES = 96 << 20


@dataclass(frozen=True, slots=True)
class Bound:
    """A limit on memory, and how much of it is used now."""

    name: str  # as in "of <name>'s 2 GiB"
    limit_bytes: int
    used_bytes: int  # without the page cache, which is dropped before any process is killed
    swap_bytes: int = 0  # that could still be moved out before any process is killed
    growth_bytes: int = 0  # that other processes are likely to take until the next check
    is_per_process: bool = False  # each process of the run has as much; allocations fail at it

    def is_comfortable_with(self, more_bytes: int) -> bool:
        """Return True if that many more bytes can be allocated with a margin."""
        margin = min(self.limit_bytes // _COMFORT_SHARE, _MOST_COMFORT_BYTES)
        return self._then_bytes(more_bytes) <= self.limit_bytes - self._at_least(margin)

    def survives(self, more_bytes: int) -> bool:
        """Return True if that many more bytes can be allocated without any process being killed."""
        margin = self._at_least(min(self.limit_bytes // _LAST_SHARE, _MOST_LAST_BYTES))
        return self._then_bytes(more_bytes) <= self.limit_bytes + self.swap_bytes - margin

    def of_processes(self, processes: int) -> Bound:
        """Return the bound on that many processes together, each using as much as this one."""
        if not self.is_per_process:
            return self
        limit_bytes, used_bytes = processes * self.limit_bytes, processes * self.used_bytes
        return replace(self, limit_bytes=limit_bytes, used_bytes=used_bytes)

    def shortage(self, more_bytes: int) -> str:
        """Return `1.9 GiB of the group's 2 GiB are in use, and a step takes 120 MiB more`."""
        of = f"{format_bytes(self.used_bytes)} of {self.name}'s {format_bytes(self.limit_bytes)}"
        more = f"a step takes {format_bytes(max(0, more_bytes))} more"
        grows = f", others {format_bytes(self.growth_bytes)}" if self.growth_bytes else ""
        return f"{of} are in use, and {more}{grows}"

    def _at_least(self, margin_bytes: int) -> int:
        return max(margin_bytes, _UNCHECKED_BYTES) if self.is_per_process else margin_bytes

    def _then_bytes(self, more_bytes: int) -> int:
        return self.used_bytes + self.growth_bytes + more_bytes


@dataclass(frozen=True, slots=True)
class MemoryAction:
    """The action before the next step: continue, move down `smaller` plans, or save and stop."""

    smaller: int = 0
    stop: bool = False
    reason: str = ""


def choose_action(
    bounds: Sequence[Bound], held_bytes: int, peaks_bytes: Sequence[int]
) -> MemoryAction:
    """Choose the largest plan that is comfortable, else the largest that survives, else stop.

    `held_bytes` is the memory of the run's processes now, `peaks_bytes` are the peaks expected in a
    step: by the current plan, then by each smaller one. A caller that takes a smaller plan must
    free the memory that it does not need.
    """
    more = [peak - held_bytes for peak in peaks_bytes]
    tight = [bound for bound in bounds if not bound.is_comfortable_with(more[0])]
    if not tight:
        return MemoryAction()
    reason = min(tight, key=lambda b: b.limit_bytes - b.used_bytes).shortage(more[0])
    for does_fit in (Bound.is_comfortable_with, Bound.survives):
        for number, bytes_more in enumerate(more):
            if all(does_fit(bound, bytes_more) for bound in bounds):
                return MemoryAction(smaller=number, reason=reason)
    return MemoryAction(stop=True, reason=reason)


@dataclass(frozen=True, slots=True)
class OtherUse:
    """The memory of other processes within each bound at a check, and its rate of growth."""

    at_s: float = -math.inf  # before any check
    held_bytes: Mapping[str, int] = field(default_factory=dict)
    bytes_per_s: Mapping[str, float] = field(default_factory=dict)

    def updated(self, bounds: Sequence[Bound], held_bytes: int, at_s: float) -> OtherUse:
        """Return the values at a later check, when the run itself held `held_bytes`.

        Of two checks within one tick of the clock, which show no rate, the first counts.
        """
        if at_s == self.at_s:
            return self
        others = {bound.name: bound.used_bytes - held_bytes for bound in bounds}
        rates = {
            name: max(0, taken - self.held_bytes[name]) / (at_s - self.at_s)
            for name, taken in others.items()
            if name in self.held_bytes
        }
        return OtherUse(at_s, others, rates)


def with_growth(
    bounds: Sequence[Bound], last: OtherUse, now: OtherUse, next_check_in_s: float
) -> list[Bound]:
    """Return the bounds with what others will take until the next check at their present rate.

    The lower of the last two rates counts: a program that was started takes its memory once; one
    that grows took some both times.
    """
    rates = {
        bound.name: min(last.bytes_per_s.get(bound.name, 0), now.bytes_per_s.get(bound.name, 0))
        for bound in bounds
    }
    return [replace(b, growth_bytes=int(rates[b.name] * next_check_in_s)) for b in bounds]
