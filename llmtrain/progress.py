"""Notes and progress: what any work reports to whoever watches."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Note:
    """Something the user should know."""

    text: str
    is_warning: bool = False


@dataclass(frozen=True, slots=True)
class Progress:
    """Work before or after training: `done` of `total` bytes; a total of 0 is unknown."""

    phase: str
    done: int
    total: int
    remaining_s: float | None = None  # where it can be said


Notify = Callable[[Note | Progress], None]
