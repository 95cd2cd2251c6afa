"""Limits that a script sets: kept in the document beside the results, and an exit code after."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from llmtrain.errors import ThresholdError, UsageError

FAIL_OVER = "--fail-over"


@dataclass(frozen=True)
class Threshold:
    """A limit, and what was measured of it."""

    name: str
    limit: float | bool
    measured: float | bool | None  # None: not known, which meets no limit
    met: bool
    complaint: str  # what is told where it is not met: the value, the limit, where that is from

    def document(self) -> dict[str, Any]:
        """An entry of `thresholds`."""
        return {
            "name": self.name,
            "limit": self.limit,
            "measured": self.measured,
            "met": self.met,
        }


def at_most(
    flag: str, limit: float, measured: float | None, *, is_named: str, unknown: str, digits: int = 4
) -> Threshold:
    """The threshold that `flag` sets; a value that is no number is not known."""
    name = _name(flag)
    if measured is None or not math.isfinite(measured):
        complaint = f"{unknown}, so {flag} {limit:g} is not met"
        return Threshold(name, limit, None, met=False, complaint=complaint)
    complaint = f"{is_named} is {measured:.{digits}f}, above {limit:g}, the limit of {flag}"
    return Threshold(name, limit, measured, met=measured <= limit, complaint=complaint)


def bytes_at_most(flag: str, limit_bytes: int, measured_bytes: int, *, is_named: str) -> Threshold:
    """The same for a size."""
    from llmtrain.units import format_bytes

    complaint = (
        f"{is_named} is {format_bytes(measured_bytes)} ({measured_bytes} bytes), above "
        f"{format_bytes(limit_bytes)}, the limit of {flag}"
    )
    met = measured_bytes <= limit_bytes
    return Threshold(_name(flag), limit_bytes, measured_bytes, met=met, complaint=complaint)


def require_met(thresholds: Sequence[Threshold], *, hint: str) -> None:
    """All are met. Raises ThresholdError, after the results were shown."""
    complaints = [threshold.complaint for threshold in thresholds if not threshold.met]
    if complaints:
        raise ThresholdError("; ".join(complaints), hint=hint)


def thresholds_document(thresholds: Sequence[Threshold]) -> dict[str, Any]:
    """`{thresholds: […]}` where any were set."""
    return {"thresholds": [t.document() for t in thresholds]} if thresholds else {}


def positive(flag: str, value: float | None) -> float | None:
    """The limit as it was given. Raises UsageError where nothing could meet it, or all would."""
    if value is not None and not (math.isfinite(value) and value > 0):
        raise UsageError(
            f"{flag} {value:g}: a limit is a number above 0", hint=f"{flag} 2.5, for example"
        )
    return value


def positive_bytes(flag: str, text: str | None) -> int | None:
    """The size that was given. Raises UsageError."""
    from llmtrain.units import parse_bytes

    if text is None:
        return None
    try:
        size_bytes = parse_bytes(text)
    except ValueError as error:
        raise UsageError(f"{flag} {text}: {error}", hint=f"{flag} 8GiB, for example") from None
    if size_bytes == 0:
        raise UsageError(f"{flag} {text}: a limit is above 0", hint=f"{flag} 8GiB, for example")
    return size_bytes


def _name(flag: str) -> str:
    return flag.removeprefix("--").replace("-", "_")
