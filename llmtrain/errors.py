"""Everything that can go wrong, and the exit code each failure has.

    LlmtrainError            1   failed at run time
    ├── PeerLostError        1   another rank ended or no longer responds
    ├── UsageError           2   the command or a configuration value is wrong
    ├── DoesNotFitError      3   the run needs more memory than there is
    ├── DivergedError        4   the loss or the gradients are not finite
    ├── DataError            5   the text or the tokenizer cannot be used
    ├── ThresholdError       6   the command succeeded, and a limit that the user set is not met
    ├── InterruptedRunError 75   stopped by a signal, after saving what there was
    └── AbortedError       130   ended at once: by a second signal, or where nothing was begun

Each has a message of one line (the value, the limit, where it came from) and, where there is one,
a hint with a command to type next.
"""

from __future__ import annotations

import signal
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar


class LlmtrainError(Exception):
    """A failure that is shown to the user in one line, with a hint."""

    exit_code: ClassVar[int] = 1

    def __init__(self, message: str, *, hint: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint


class PeerLostError(LlmtrainError):
    """Another rank ended or no longer responds; that rank knows the cause."""


class UsageError(LlmtrainError):
    """The command line, a profile or a run directory is not valid."""

    exit_code = 2


@dataclass(frozen=True, slots=True)
class Alternative:
    """Options that make a command fit that failed for want of memory.

    `in_place_of`: options of the failed command that they replace.
    """

    options: tuple[str, ...]
    outcome: str
    predicted_bytes: int
    in_place_of: frozenset[str] = frozenset()


class DoesNotFitError(LlmtrainError):
    """The run needs more memory than there is, as predicted or as seen in training."""

    exit_code = 3

    def __init__(
        self, message: str, *, hint: str | None = None, alternatives: Sequence[Alternative] = ()
    ) -> None:
        """Keep the alternatives, the cheapest change first."""
        super().__init__(message, hint=hint)
        self.alternatives = tuple(alternatives)


class DivergedError(LlmtrainError):
    """The loss or the gradients are not finite."""

    exit_code = 4


class DataError(LlmtrainError):
    """The corpus or the tokenizer cannot be used."""

    exit_code = 5


class ThresholdError(LlmtrainError):
    """The results are shown, and a threshold that the user set is not met."""

    exit_code = 6


class InterruptedRunError(LlmtrainError):
    """A signal asked to stop, and the run is saved."""

    exit_code = 75


class AbortedError(LlmtrainError):
    """A second signal asked to stop at once."""

    exit_code = 130


def describe_exit_code(code: int) -> str:
    """Return how a process ended: `ended with code 3`, `was killed by SIGKILL`."""
    if code >= 0:
        return f"ended with code {code}"
    try:
        name = signal.Signals(-code).name
    except ValueError:  # most real-time signals have none
        name = f"signal {-code}"
    memory = ", as the system does when memory runs out" if name == "SIGKILL" else ""
    return f"was killed by {name}{memory}"
