"""Reading ahead: the next windows are read in a thread during the current step.

Windows are scattered over the text, and reading each from a disk takes time: a thread waits instead
of the training. The windows are the same with and without it.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor

from llmtrain.data.batches.windows import Windows
from llmtrain.files import Closing


class Prefetch(Closing):
    """A reader that reads the expected next windows ahead in a thread; any other request waits."""

    def __init__(self, read: Callable[[int, int], Windows]) -> None:
        """Use `read(first_position, count)`, which two threads call: it must keep no state."""
        self._read = read
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="batches")
        self._coming: tuple[tuple[int, int], Future[Windows]] | None = None

    def read(self, first_position: int, count: int, then: int) -> Windows:
        """Return `count` windows, and start to read as many from position `then` in the thread.

        Raises what `read` raised in the thread.
        """
        coming, self._coming = self._coming, None
        if coming is not None and coming[0] == (first_position, count):
            windows = coming[1].result()
        else:
            windows = self._read(first_position, count)
        self._coming = (then, count), self._thread.submit(self._read, then, count)
        return windows

    def close(self) -> None:
        """Wait for the thread, so that the files can be closed."""
        self._thread.shutdown(wait=True, cancel_futures=True)
