"""Whether memory lasts for another step. Pure: readings in, an answer with its reason out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

from llmtrain.units import format_bytes

# What is left free. Below the first a smaller plan is worth compiling anew for; below the second
# the kernel may kill before the next look. Neither grows with the machine without end: what
# programs take between two looks does not.
_COMFORT_SHARE, _MOST_COMFORT_BYTES = 12, 1 << 30
_LAST_SHARE, _MOST_LAST_BYTES = 24, 256 << 20


@dataclass(frozen=True, slots=True)
class Bound:
    """Memory that has an end, and how much of it is taken now.

    `used_bytes` leaves out what the kernel would rather give up than kill: the page cache.
    `swap_bytes` could still be moved out before anything is killed. `growth_bytes` is what others
    are likely to take until the next look.
    """

    name: str  # as in "of <name>'s 2 GiB"
    limit_bytes: int
    used_bytes: int
    swap_bytes: int = 0
    growth_bytes: int = 0

    def is_comfortable_with(self, more_bytes: int) -> bool:
        """Whether so much more can be taken with nothing to worry about."""
        margin = min(self.limit_bytes // _COMFORT_SHARE, _MOST_COMFORT_BYTES)
        return self._then_bytes(more_bytes) <= self.limit_bytes - margin

    def survives(self, more_bytes: int) -> bool:
        """Whether so much more can be taken without anything being killed."""
        margin = min(self.limit_bytes // _LAST_SHARE, _MOST_LAST_BYTES)
        return self._then_bytes(more_bytes) <= self.limit_bytes + self.swap_bytes - margin

    def shortage(self, more_bytes: int) -> str:
        """`1.9 GiB of the control group's 2 GiB are taken, and a step takes 120 MiB more`."""
        of = f"{format_bytes(self.used_bytes)} of {self.name}'s {format_bytes(self.limit_bytes)}"
        more = f"a step takes {format_bytes(max(0, more_bytes))} more"
        grows = f", others {format_bytes(self.growth_bytes)}" if self.growth_bytes else ""
        return f"{of} are taken, and {more}{grows}"

    def _then_bytes(self, more_bytes: int) -> int:
        return self.used_bytes + self.growth_bytes + more_bytes


@dataclass(frozen=True, slots=True)
class MemoryAction:
    """What to do before the next step: go on, take so many smaller plans, or save and stop."""

    smaller: int = 0
    stop: bool = False
    reason: str = ""


def answer(bounds: Sequence[Bound], held_bytes: int, peaks_bytes: Sequence[int]) -> MemoryAction:
    """The largest plan that is comfortable, else the largest that survives, else the end.

    `held_bytes` is what the run's processes hold now, and `peaks_bytes` what they are expected to
    hold at most in a step: by the plan as it is, then by each smaller one. Whoever takes a
    smaller plan has to give back what it does not need.
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
class Neighbours:
    """What others held within each bound at the last look, and how fast that had grown."""

    at_s: float = 0.0
    held_bytes: Mapping[str, int] = field(default_factory=dict)
    bytes_per_s: Mapping[str, float] = field(default_factory=dict)

    def now(self, bounds: Sequence[Bound], held_bytes: int, at_s: float) -> Neighbours:
        """The same at another, later look, when the run itself held `held_bytes`."""
        others = {bound.name: bound.used_bytes - held_bytes for bound in bounds}
        rates = {
            name: max(0, taken - self.held_bytes[name]) / (at_s - self.at_s)
            for name, taken in others.items()
            if name in self.held_bytes
        }
        return Neighbours(at_s, others, rates)


def growing(
    bounds: Sequence[Bound], last: Neighbours, now: Neighbours, next_look_in_s: float
) -> list[Bound]:
    """The bounds with what others will take until the next look, if they go on as they did.

    Of the last two rates the lower counts: a program that was started once takes its memory once;
    one that grows took some both times.
    """
    rates = {
        bound.name: min(last.bytes_per_s.get(bound.name, 0), now.bytes_per_s.get(bound.name, 0))
        for bound in bounds
    }
    return [replace(b, growth_bytes=int(rates[b.name] * next_look_in_s)) for b in bounds]
