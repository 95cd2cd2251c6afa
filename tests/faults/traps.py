"""Readers that fail, by which it is shown that failing is noticed. Quick to import."""

from __future__ import annotations

import os
from collections.abc import Callable
from itertools import count
from pathlib import Path

from llmtrain.errors import DataError
from tests.faults.mutations import Reader, any_bytes

_calls = count()


def _none(data: bytes, place: Path) -> None:
    """Every second input is refused, as it should be."""
    if next(_calls) % 2:
        raise DataError("refused")


def _stray(data: bytes, place: Path) -> None:
    raise KeyError("not one of ours")


def _abort(data: bytes, place: Path) -> None:
    os.abort()


def _hang(data: bytes, place: Path) -> None:
    while True:
        sum(range(10**6))


def _swallow(data: bytes, place: Path) -> None:
    bytearray(64 << 30)


_READS: dict[str, Callable[[bytes, Path], object]] = {
    "trap-none": _none,
    "trap-stray": _stray,
    "trap-abort": _abort,
    "trap-hang": _hang,
    "trap-memory": _swallow,
}
TRAPS = {name: Reader(b"valid", any_bytes, read) for name, read in _READS.items()}
