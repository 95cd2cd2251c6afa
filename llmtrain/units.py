"""Parse and format quantities as people write them: 30m, 50M, 8GiB."""

from __future__ import annotations

import re
from fractions import Fraction

_DURATION_S = {"s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}
_COUNT = {"": 1, "k": 10**3, "m": 10**6, "b": 10**9, "g": 10**9, "t": 10**12}
_BYTES = {"": 1, "b": 1, "kb": 10**3, "mb": 10**6, "gb": 10**9, "tb": 10**12} | {
    "kib": 2**10,
    "mib": 2**20,
    "gib": 2**30,
    "tib": 2**40,
}
HIGHEST_PORT = 65535  # of TCP
_LONGEST_NUMBER = 100  # characters; conversion takes quadratic time in them


def parse_duration_s(text: str) -> float:
    """Return the seconds in `90s`, `30m`, `1h30m` or `2d`. Raises ValueError."""
    parts = re.findall(r"(\d+(?:\.\d+)?)([smhd])", text.strip().lower())
    if not parts or "".join(n + u for n, u in parts) != text.strip().lower():
        raise ValueError(f"{text!r} is not a duration; write 150s, 30m, 2h or 1h30m")
    return sum(float(number) * _DURATION_S[unit] for number, unit in parts)


def parse_count(text: str) -> int:
    """Return the integer in `50M`, `1.5B` or `20_000`. Raises ValueError."""
    return _scaled(text, _COUNT, "a count; write 20000, 50M or 1.5B")


def parse_bytes(text: str) -> int:
    """Return the bytes in `8GiB`, `500MB` or `1024`. Raises ValueError."""
    return _scaled(text, _BYTES, "a size; write 500MB or 8GiB")


def _scaled(text: str, factors: dict[str, int], kind: str) -> int:
    match = re.fullmatch(r"(\d[\d_]*(?:\.\d+)?(?:e\+?\d\d?)?)\s*([a-z]*)", text.strip().lower())
    if match is None or match[2] not in factors:
        raise ValueError(f"{text!r} is not {kind}")
    number, factor = match[1].replace("_", ""), factors[match[2]]
    if len(number) > _LONGEST_NUMBER:
        raise ValueError(f"{text[:20]}… is too large")
    exact = Fraction(number) * factor
    if exact.denominator != 1 and factor == 1:
        raise ValueError(f"{text!r} is not a whole number")
    return round(exact)


def format_bytes(count: int) -> str:
    """Return text like `1.5 GiB`: three significant digits, binary units."""
    size = float(count)
    for unit in ("B", "KiB", "MiB", "GiB"):
        if abs(size) < 999.5:
            return f"{_three_digits(size)} {unit}"
        size /= 1024
    return f"{_three_digits(size)} TiB"


def format_count(count: int) -> str:
    """Return text like `26.4M`: three significant digits, decimal units."""
    size = float(count)
    for unit in ("", "k", "M", "B"):
        if abs(size) < 999.5:
            return f"{_three_digits(size)}{unit}"
        size /= 1000
    return f"{_three_digits(size)}T"


def _three_digits(size: float) -> str:
    return f"{size:.0f}" if abs(size) >= 99.95 else f"{size:.3g}"


def format_duration(seconds: float) -> str:
    """Return text like `42s`, `4m 05s`, `2h 03m`, `3d 04h`."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole}s" if seconds >= 10 or seconds == whole else f"{seconds:.1f}s"
    if whole < 3600:
        return f"{whole // 60}m {whole % 60:02d}s"
    if whole < 86400:
        return f"{whole // 3600}h {whole % 3600 // 60:02d}m"
    return f"{whole // 86400}d {whole % 86400 // 3600:02d}h"


def counted(number: int, noun: str) -> str:
    """Return `1 step` or `1,200 steps`."""
    return f"{number:,} {noun}" + ("" if number == 1 else "s")
