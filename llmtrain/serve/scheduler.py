"""Requests that share a model: a bounded queue, and a thread that continues them together.

    waiting  →  running (as many as there are slots)  →  finished, cancelled or failed

A request enters a slot as soon as one is free, in the order of arrival, while the others go on. The
thread owns the generator; everything else talks to it through `submit` and `cancel`.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from llmtrain.errors import LlmtrainError
from llmtrain.generate.generator import TextGenerator
from llmtrain.generate.text import Finish, Piece, TextStream
from llmtrain.serve.metrics import Metrics


class QueueFullError(LlmtrainError):
    """As many requests wait as may."""


class ClosedError(LlmtrainError):
    """The server takes no more requests."""


@dataclass(frozen=True, slots=True)
class Update:
    """The addition of a step to a text; the last one has `finish` or `failure`."""

    piece: Piece
    finish: Finish | None = None
    failure: str | None = None

    @property
    def is_last(self) -> bool:
        """True if no other follows."""
        return self.finish is not None or self.failure is not None


@dataclass(slots=True, eq=False)
class Job:
    """A text to be continued; `deliver` is called in the scheduler's thread and must not block."""

    stream: TextStream
    deliver: Callable[[Update], None]
    arrived_s: float = field(default_factory=time.monotonic)
    has_text: bool = False


class Scheduler:
    """Runs jobs on a generator in a thread of its own."""

    def __init__(self, generator: TextGenerator, queue_limit: int, metrics: Metrics) -> None:
        self._generator = generator
        self._queue_limit = queue_limit
        self._metrics = metrics
        self._changed = threading.Condition()
        self._waiting: deque[Job] = deque()
        self._cancelled: list[Job] = []
        self._running: dict[int, Job] = {}  # by the identity of the stream; the thread's own
        self._is_closing = False
        self._failure: str | None = None  # of the model, after which no job is continued
        self._thread = threading.Thread(target=self._run, name="generation", daemon=True)

    def start(self) -> None:
        """Start the thread."""
        self._thread.start()

    @property
    def why_closed(self) -> str | None:
        """Why no jobs are taken any more; None while they are."""
        if self._failure is not None:
            return f"{self._failure}; the server has to be started again"
        return "the server is shutting down" if self._is_closing else None

    def submit(self, jobs: Sequence[Job]) -> None:
        """Queue all jobs or none. Raises QueueFullError and ClosedError."""
        with self._changed:
            if self.why_closed is not None:
                raise ClosedError(self.why_closed)
            waiting = len(self._waiting) + len(jobs) - self._free
            if waiting > self._queue_limit:
                raise QueueFullError(
                    f"{len(self._waiting)} texts wait, of at most {self._queue_limit}"
                )
            self._waiting.extend(jobs)
            self._changed.notify()
        self._count_texts()

    def cancel(self, jobs: Sequence[Job]) -> None:
        """End jobs before the next step; finished ones may be among them."""
        with self._changed:
            waiting = [job for job in self._waiting if job not in jobs]
            self._cancelled += [job for job in jobs if job not in self._waiting]
            self._waiting = deque(waiting)
            self._changed.notify()
        self._count_texts()

    def close(self, timeout_s: float) -> None:
        """Take no more jobs; return when all are finished, or the time is up."""
        with self._changed:
            self._is_closing = True
            self._changed.notify()
        self._thread.join(timeout_s)

    @property
    def _free(self) -> int:
        return max(0, self._generator.slots - len(self._running))

    def _run(self) -> None:
        try:
            while self._next_jobs():
                self._step()
        except BaseException as error:
            failure = f"the model failed: {type(error).__name__}"
            self._fail(self._taken_at_end(failure), failure)
            raise

    def _taken_at_end(self, failure: str) -> list[Job]:
        """Take no more jobs; return those that run and wait, which no step continues any more."""
        with self._changed:
            self._failure = failure
            jobs = [*self._running.values(), *self._waiting]
            self._running.clear()
            self._waiting.clear()
        return jobs

    def _next_jobs(self) -> bool:
        """Wait for work; start and end jobs. Return False once there is no more to come."""
        with self._changed:
            self._changed.wait_for(
                lambda: self._waiting or self._cancelled or self._running or self._is_closing
            )
            for job in self._cancelled:
                if self._running.pop(id(job.stream), None) is not None:
                    self._generator.cancel(job.stream)
            self._cancelled = []
            while self._waiting and self._generator.free:
                job = self._waiting.popleft()
                self._running[id(job.stream)] = job
                self._generator.start(job.stream)
        self._count_texts()
        return bool(self._running or self._waiting or not self._is_closing)

    def _step(self) -> None:
        if not self._running:
            return
        try:
            pieces = self._generator.step()
        except LlmtrainError as error:  # NaN: of these texts, not of the server
            jobs = list(self._running.values())
            self._running.clear()
            for job in jobs:
                self._generator.cancel(job.stream)
            self._fail(jobs, error.message)
            return
        for stream, piece in pieces:
            job = self._running[id(stream)]
            if stream.finish is not None:
                del self._running[id(stream)]
            self._observe(job, piece)
            job.deliver(Update(piece, stream.finish))

    def _observe(self, job: Job, piece: Piece) -> None:
        self._metrics.generated_tokens.add(len(piece.tokens))
        if piece.text and not job.has_text:
            job.has_text = True
            self._metrics.first_text_s.observe(time.monotonic() - job.arrived_s)
        if job.stream.finish is not None:
            self._metrics.answer_s.observe(time.monotonic() - job.arrived_s)

    def _fail(self, jobs: Sequence[Job], message: str) -> None:
        self._count_texts()
        for job in jobs:
            job.deliver(Update(Piece("", ()), failure=message))

    def _count_texts(self) -> None:
        self._metrics.running.set(len(self._running))
        self._metrics.waiting.set(len(self._waiting))
