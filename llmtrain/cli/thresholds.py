"""Limits that an option sets: shown in the document beside the results, then exit code 6."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from llmtrain.errors import ThresholdError, UsageError

FAIL_OVER = "--fail-over"


@dataclass(frozen=True)
class Threshold:
    """A limit and the measured value."""

    name: str
    limit: float | bool
    measured: float | bool | None  # None: unknown, which meets no limit
    met: bool
    complaint: str  # the message if it is not met: the value, the limit, its origin


def at_most(
    flag: str, limit: float | None, measured: float | None, *, is_named: str, unknown: str
) -> list[Threshold]:
    """Return the threshold that `flag` sets, if any; a value that is not finite is unknown."""
    if limit is None:
        return []
    if measured is None or not math.isfinite(measured):
        complaint = f"{unknown}, so {flag} {limit:g} is not met"
        return [Threshold(_name(flag), limit, None, met=False, complaint=complaint)]
    complaint = f"{is_named} is {measured:.4f}, above {limit:g}, the limit of {flag}"
    return [Threshold(_name(flag), limit, measured, met=measured <= limit, complaint=complaint)]


def bytes_at_most(
    flag: str, limit_bytes: int | None, measured_bytes: int, *, is_named: str
) -> list[Threshold]:
    """Return the threshold that `flag` sets for a size, if any."""
    from llmtrain.units import format_bytes

    if limit_bytes is None:
        return []
    complaint = (
        f"{is_named} is {format_bytes(measured_bytes)} ({measured_bytes} bytes), above "
        f"{format_bytes(limit_bytes)}, the limit of {flag}"
    )
    met = measured_bytes <= limit_bytes
    return [Threshold(_name(flag), limit_bytes, measured_bytes, met=met, complaint=complaint)]


def require_met(thresholds: Sequence[Threshold], *, hint: str) -> None:
    """Raise ThresholdError if any is not met. Called after the results were shown."""
    complaints = [threshold.complaint for threshold in thresholds if not threshold.met]
    if complaints:
        raise ThresholdError("; ".join(complaints), hint=hint)


def positive(flag: str, value: float | None) -> float | None:
    """Return the limit. Raises UsageError unless it is a finite number above 0."""
    if value is not None and not (math.isfinite(value) and value > 0):
        raise UsageError(
            f"{flag} {value:g}: a limit has to be a number above 0", hint=f"{flag} 2.5, for example"
        )
    return value


def positive_bytes(flag: str, text: str | None) -> int | None:
    """Return the size in bytes. Raises UsageError."""
    from llmtrain.units import parse_bytes

    if text is None:
        return None
    try:
        size_bytes = parse_bytes(text)
    except ValueError as error:
        raise UsageError(f"{flag} {text}: {error}", hint=f"{flag} 8GiB, for example") from None
    if size_bytes == 0:
        raise UsageError(
            f"{flag} {text}: a limit has to be above 0", hint=f"{flag} 8GiB, for example"
        )
    return size_bytes


def _name(flag: str) -> str:
    return flag.removeprefix("--").replace("-", "_")
