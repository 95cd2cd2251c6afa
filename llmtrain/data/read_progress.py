"""Progress of reading files one after the other."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TypeAlias

# Called at intervals with the bytes of the files that are read, as compressed, and their total.
OnRead: TypeAlias = Callable[[int, int], None]

_REPORT_EVERY_BYTES = 1 << 20


class ReadProgress:
    """A reporter of progress at every mebibyte. Without a callback it does not access the files."""

    def __init__(self, paths: Sequence[Path], on_read: OnRead | None) -> None:
        self._on_read = on_read
        sizes_bytes = [] if on_read is None else [_size_bytes(path) for path in paths]
        self._total_bytes = sum(sizes_bytes)
        self._sizes_bytes = iter(sizes_bytes)
        self._before_bytes = self._reported_bytes = 0

    def report(self, position: int) -> None:
        """Report the position in the current file."""
        done_bytes = self._before_bytes + position
        if self._on_read is not None and done_bytes - self._reported_bytes >= _REPORT_EVERY_BYTES:
            self._reported_bytes = done_bytes
            self._on_read(min(done_bytes, self._total_bytes), self._total_bytes)

    def next_file(self) -> None:
        """Count the current file as read."""
        self._before_bytes += next(self._sizes_bytes, 0)
        self.report(0)


def _size_bytes(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError:
        return 0  # opening it will raise the error
