"""Pipes whose reader is gone."""

from __future__ import annotations

import errno
from collections.abc import Iterator
from contextlib import contextmanager

READER_GONE = frozenset({errno.EPIPE, errno.EINVAL})  # Windows says the latter


@contextmanager
def unread_pipe_named() -> Iterator[None]:
    """Raise BrokenPipeError, on every system, if nobody reads the pipe that the block writes to.

    The block should do nothing else, as EINVAL of a file has other causes.
    """
    try:
        yield
    except OSError as error:
        if error.errno not in READER_GONE:
            raise
        raise BrokenPipeError(error.errno, error.strerror) from error
