"""Everything that can go wrong, and the exit code each failure has.

    LlmtrainError            1   failed at run time
    ├── PeerLostError        1   another rank ended or no longer answers
    ├── UsageError           2   the command or a configuration value is wrong
    ├── DoesNotFitError      3   the run needs more memory than there is
    ├── DivergedError        4   the loss stopped being a number
    ├── DataError            5   the text or the tokenizer cannot be used
    ├── ThresholdError       6   all is done, and a limit that the user set is not met
    ├── InterruptedRunError 75   stopped by a signal; everything worth keeping is saved
    └── AbortedError       130   stopped by a second signal, before saving

Each carries one line that says what is wrong (the value, the limit, where it came from) and,
where there is one, a hint with a command to type next.
"""

from __future__ import annotations

import signal
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar


class LlmtrainError(Exception):
    """A failure that the user is told of in one line, with a hint."""

    exit_code: ClassVar[int] = 1

    def __init__(self, message: str, *, hint: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint


class PeerLostError(LlmtrainError):
    """Another rank ended or no longer answers; whose fault that is, others can say better."""


class UsageError(LlmtrainError):
    """The command line, a profile or a run directory is not what it has to be."""

    exit_code = 2


@dataclass(frozen=True, slots=True)
class Alternative:
    """Options that, added to the command that failed, would make it work.

    `in_place_of`: options of that command that they stand for, and that have to go.
    """

    options: tuple[str, ...]
    outcome: str
    predicted_bytes: int
    in_place_of: frozenset[str] = frozenset()


class DoesNotFitError(LlmtrainError):
    """The run needs more memory than there is: predicted, or found while it trained."""

    exit_code = 3

    def __init__(
        self, message: str, *, hint: str | None = None, ways_out: Sequence[Alternative] = ()
    ) -> None:
        """`ways_out`: what would make it fit, the cheapest change first."""
        super().__init__(message, hint=hint)
        self.ways_out = tuple(ways_out)


class DivergedError(LlmtrainError):
    """Loss or gradients are not finite."""

    exit_code = 4


class DataError(LlmtrainError):
    """The corpus or the tokenizer cannot be used."""

    exit_code = 5


class ThresholdError(LlmtrainError):
    """What was asked is done and shown, and a threshold that the user set is not met."""

    exit_code = 6


class InterruptedRunError(LlmtrainError):
    """A signal asked to stop, and everything worth keeping is saved."""

    exit_code = 75


class AbortedError(LlmtrainError):
    """A second signal asked to stop at once."""

    exit_code = 130


def describe_exit_code(code: int) -> str:
    """How a process ended, to be said of it: `ended with code 3`, `was killed by SIGKILL`."""
    if code >= 0:
        return f"ended with code {code}"
    name = signal.Signals(-code).name
    memory = ", as the system does where memory runs out" if name == "SIGKILL" else ""
    return f"was killed by {name}{memory}"
