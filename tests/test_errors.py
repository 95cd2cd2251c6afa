"""A process that failed is described by how it ended."""

from __future__ import annotations

import signal

import pytest

from llmtrain.errors import describe_exit_code


@pytest.mark.parametrize(
    ("code", "text"),
    [
        (0, "ended with code 0"),
        (3, "ended with code 3"),
        (-signal.SIGTERM, "was killed by SIGTERM"),
        (-36, "was killed by signal 36"),  # SIGRTMIN + 2
        (-100, "was killed by signal 100"),  # on no system
    ],
)
def test_every_exit_code_is_described(code: int, text: str) -> None:
    assert describe_exit_code(code) == text
