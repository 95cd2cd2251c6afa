from __future__ import annotations

import errno
import os

import pytest

from llmtrain.pipes import unread_pipe_named


@pytest.mark.parametrize("number", [errno.EPIPE, errno.EINVAL])
def test_a_pipe_that_nobody_reads_is_broken_on_every_system(number: int) -> None:
    with pytest.raises(BrokenPipeError), unread_pipe_named():
        raise OSError(number, os.strerror(number))


def test_other_errors_are_themselves() -> None:
    with pytest.raises(OSError, match="No space") as caught, unread_pipe_named():
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    assert caught.type is OSError
