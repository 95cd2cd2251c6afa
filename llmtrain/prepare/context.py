"""The options of preparing data, and a text that is being prepared."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace

from llmtrain.data.corpus import Corpus
from llmtrain.data.corpus_stats import CorpusStats
from llmtrain.data.document import Document
from llmtrain.data.split import Split, plan_split
from llmtrain.profile.schema import DataSection
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


@dataclass(frozen=True, slots=True)
class MeasuredText:
    """A corpus and its statistics, with the section of the profile by which it is prepared."""

    corpus: Corpus
    stats: CorpusStats
    section: DataSection
    prepare: PrepareContext

    def split(self) -> Split:
        """Return the split into training and validation text. Raises DataError."""
        return plan_split(self.corpus, self.stats, self.section.validation_fraction)

    def with_fraction(self, fraction: float) -> MeasuredText:
        """Return the text, changed to hold out that fraction for validation."""
        section = self.section.model_copy(update={"validation_fraction": fraction})
        return replace(self, section=section)


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
