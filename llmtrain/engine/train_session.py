"""A session of a run: the ranks that train, who is notified, and what may stop them."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TypeVar

from pydantic import TypeAdapter

from llmtrain.progress import Note
from llmtrain.train.distributed.world import World
from llmtrain.train.events import Observer
from llmtrain.train.signals import StopRequest

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class TrainSession:
    """The ranks that train, who is notified, what may stop them, and since when time counts."""

    world: World
    observe: Observer
    stop: StopRequest
    started_s: float = field(default_factory=time.monotonic)  # by the monotonic clock

    @property
    def elapsed_s(self) -> float:
        """Seconds since the start, with measuring the machine and preparing data."""
        return time.monotonic() - self.started_s

    def note(self, text: str, *, is_warning: bool = False) -> None:
        """Notify the observer."""
        self.observe(Note(text, is_warning=is_warning))

    def broadcast_from_main(
        self, key: str, kind: type[T], produce: Callable[[], T], check: Callable[[], None]
    ) -> T:
        """Return on every rank what `produce` returns on rank 0, sent as JSON of `kind`.

        `check` may raise to end the waiting of the other ranks.
        """
        if self.world.store is None:
            return produce()
        adapter, made = TypeAdapter(kind), list[T]()

        def send() -> str:
            made.append(produce())
            return adapter.dump_json(made[0]).decode()

        message = self.world.broadcast_from_main(key, send, check)
        return made[0] if made else adapter.validate_json(message, strict=True)
