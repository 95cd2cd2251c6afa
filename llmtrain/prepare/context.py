"""The options of preparing data: worker processes, the observer, the stop check."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace

from llmtrain.data.corpus import Corpus
from llmtrain.data.document import Document
from llmtrain.progress import Note, Notify, Progress


@dataclass(frozen=True, slots=True)
class PrepareContext:
    """The options of preparing data."""

    workers: int  # processes that tokenize
    observe: Notify
    check_stop: Callable[[], None]

    def announce_waiting(self) -> None:
        """Announce that another process prepares the same text."""
        self.observe(Note("another process prepares this text; waiting for it"))

    def with_progress(self, phase: str, corpus: Corpus) -> Corpus:
        """Return the corpus, changed so that reading it reports progress."""
        return replace(corpus, on_read=TimedProgress(phase, self.observe))

    def training_texts(self, documents: Iterable[Document]) -> Iterator[str]:
        """Yield the texts to learn from, then announce the training, which reports no progress."""
        for document in documents:
            self.check_stop()
            yield document.text
        self.observe(Progress("learning pieces", 0, 0))


class TimedProgress:
    """A callback that reports progress to an observer, with the time left at the rate so far."""

    def __init__(self, phase: str, observe: Notify) -> None:
        self._phase = phase
        self._observe = observe
        self._begun: tuple[float, int] | None = None

    def __call__(self, done: int, total: int) -> None:
        """Report `done` of `total` bytes."""
        now_s = time.monotonic()
        if self._begun is None:
            self._begun = (now_s, done)
        begun_s, begun_at = self._begun
        remaining_s = None
        if done > begun_at:
            remaining_s = (now_s - begun_s) / (done - begun_at) * (total - done)
        self._observe(Progress(self._phase, done, total, remaining_s))
