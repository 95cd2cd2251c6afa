"""Values of records that anybody may have written, as text for a report."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from datetime import datetime
from typing import Any

from llmtrain.units import format_bytes, format_count

Row = tuple[str, ...]


def known(value: object) -> float | None:
    """Return a finite number; None for anything else."""
    is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
    return float(value) if is_number and math.isfinite(value) else None  # type: ignore[arg-type]


def size(size_bytes: float | None) -> str:
    """Return bytes with their unit."""
    return "-" if size_bytes is None else format_bytes(max(0, round(size_bytes)))


def count(number: float | None) -> str:
    """Return a number of things, short."""
    return format_count(round(number)) if number is not None and math.isfinite(number) else "-"


def bits(value: float | None) -> str:
    """Return bits per byte."""
    return "-" if value is None else f"{value:.4f}"


def shown(value: object) -> str:
    """Return a setting or a decision as people write it."""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, (list, tuple)):
        return ", ".join(map(shown, value)) or "none"
    return str(value)


def figure(value: Mapping[str, Any] | None, show: Callable[[float], str]) -> str:
    """Return a forecast's value with its range."""
    middle = known((value or {}).get("value"))
    if value is None or middle is None:
        return "-"
    low, high = known(value.get("low")), known(value.get("high"))
    text = show(middle)
    return text if low is None or high is None else f"{text} ({show(low)} to {show(high)})"


def date(text: object) -> str:
    """Return a point in time of this machine's clock."""
    try:
        return datetime.fromisoformat(str(text)).astimezone().strftime("%Y-%m-%d %H:%M")
    except (ValueError, OverflowError, OSError):
        return "-"
