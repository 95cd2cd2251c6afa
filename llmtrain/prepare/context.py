"""How data is prepared, and who is told of it."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace

from llmtrain.data.corpus import Corpus
from llmtrain.data.document import Document
from llmtrain.progress import Note, Progress
from llmtrain.train.events import Observer


@dataclass(frozen=True, slots=True)
class PrepareContext:
    """How data is prepared, and who is told."""

    workers: int  # processes that tokenize
    observe: Observer
    check_stop: Callable[[], None]

    def announce_waiting(self) -> None:
        """Somebody else does the same."""
        self.observe(Note("another process prepares this text; waiting for it"))

    def telling(self, phase: str, corpus: Corpus) -> Corpus:
        """The corpus; whoever reads it to the end tells how far that is."""
        return replace(corpus, on_read=TimedProgress(phase, self.observe))

    def texts_to_learn(self, documents: Iterable[Document]) -> Iterator[str]:
        """Of a sample, and what comes after its last one takes long and tells nothing."""
        for document in documents:
            self.check_stop()
            yield document.text
        self.observe(Progress("learning pieces", 0, 0))


class TimedProgress:
    """Tells an observer how far a work is, and when it will be done by how fast it went."""

    def __init__(self, phase: str, observe: Observer) -> None:
        self._phase = phase
        self._observe = observe
        self._begun: tuple[float, int] | None = None

    def __call__(self, done: int, total: int) -> None:
        """So much is done of so much."""
        now_s = time.monotonic()
        if self._begun is None:
            self._begun = (now_s, done)
        begun_s, begun_at = self._begun
        remaining_s = None
        if done > begun_at:
            remaining_s = (now_s - begun_s) / (done - begun_at) * (total - done)
        self._observe(Progress(self._phase, done, total, remaining_s))
