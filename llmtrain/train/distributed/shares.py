"""How many windows of a step each rank takes, where ranks are not equally fast."""

from __future__ import annotations

from collections.abc import Sequence

_FASTER = 0.9  # of the slowest rank's time, for which shares are worth changing


def shares_by_speed(window_s: Sequence[float], shares: list[int], micro_batch: int) -> list[int]:
    """Return how many windows of a step each rank takes, in whole micro-batches, at least one.

    `window_s`: how long a window took each rank. The shares stay where others would not be
    clearly faster for the slowest rank.
    """
    units = sum(shares) // micro_batch
    speeds = [1.0 / max(seconds, 1e-9) for seconds in window_s]
    wanted = [(units - len(shares)) * speed / sum(speeds) for speed in speeds]
    found = [1 + int(units_) for units_ in wanted]
    by_remainder = sorted(
        range(len(shares)), key=lambda rank: (int(wanted[rank]) - wanted[rank], rank)
    )
    for rank in by_remainder[: units - sum(found)]:
        found[rank] += 1
    new = [micro_batch * units_ for units_ in found]
    slowest = [max(s * n for s, n in zip(window_s, each, strict=True)) for each in (shares, new)]
    return new if slowest[1] < _FASTER * slowest[0] else shares
