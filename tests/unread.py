"""Pipes that nobody reads, as other systems have them."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from typing import IO, Any, NoReturn


class UnreadOnWindows:
    """The standard input of a process that ended, on Windows."""

    def __init__(self, pipe: IO[bytes]) -> None:
        self.close = pipe.close

    def write(self, data: bytes) -> NoReturn:
        """Fail as a write to the C library's pipe."""
        raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))


def unread_by(start: Callable[..., Any]) -> Callable[..., Any]:
    """Return `start_process` so changed that nothing reads what its processes are sent."""

    def started(*args: Any, **options: Any) -> Any:
        process = start(*args, **options)
        process.stdin = UnreadOnWindows(process.stdin)
        return process

    return started
