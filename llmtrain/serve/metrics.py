"""Counts and times of a server, as Prometheus reads them.

https://prometheus.io/docs/instrumenting/exposition_formats/
"""

from __future__ import annotations

import threading
from bisect import bisect_left
from collections import defaultdict
from collections.abc import Iterator

_SECONDS = (0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0, 100.0)


class Value:
    """A number that is set, or counted up."""

    def __init__(self, name: str, kind: str, help_text: str) -> None:
        self._name, self._kind, self._help = name, kind, help_text
        self._lock = threading.Lock()
        self._values: dict[str, float] = defaultdict(float)  # by labels, as they are written

    def set(self, value: float, labels: str = "") -> None:
        """Set the number."""
        with self._lock:
            self._values[labels] = value

    def add(self, amount: float, labels: str = "") -> None:
        """Count up."""
        with self._lock:
            self._values[labels] += amount

    def lines(self) -> Iterator[str]:
        """Yield the lines that Prometheus reads."""
        yield from _heading(self._name, self._kind, self._help)
        with self._lock:
            values = dict(self._values) or {"": 0.0}
        for labels, value in values.items():
            yield f"{self._name}{labels} {value:g}"


class Histogram:
    """Seconds, counted by how long they were."""

    def __init__(self, name: str, help_text: str) -> None:
        self._name, self._help = name, help_text
        self._lock = threading.Lock()
        self._counts = [0] * (len(_SECONDS) + 1)
        self._sum = 0.0

    def observe(self, seconds: float) -> None:
        """Count one."""
        with self._lock:
            self._counts[bisect_left(_SECONDS, seconds)] += 1
            self._sum += seconds

    def lines(self) -> Iterator[str]:
        """Yield the lines that Prometheus reads."""
        yield from _heading(self._name, "histogram", self._help)
        with self._lock:
            counts, total = list(self._counts), self._sum
        count = 0
        for limit, each in zip([*map(str, _SECONDS), "+Inf"], counts, strict=True):
            count += each
            yield f'{self._name}_bucket{{le="{limit}"}} {count}'
        yield f"{self._name}_sum {total:g}"
        yield f"{self._name}_count {count}"


class Metrics:
    """The counters of a server, as Prometheus reads them."""

    def __init__(self, slots: int) -> None:
        self.slots = Value("llmtrain_slots", "gauge", "Texts that can be continued together.")
        self.running = Value("llmtrain_running", "gauge", "Texts that are being continued.")
        self.waiting = Value("llmtrain_waiting", "gauge", "Texts that wait for a slot.")
        self.requests = Value(
            "llmtrain_requests_total", "counter", "HTTP requests by status; 499: the client left."
        )
        self.prompt_tokens = Value(
            "llmtrain_prompt_tokens_total", "counter", "Tokens of prompts that were taken."
        )
        self.generated_tokens = Value(
            "llmtrain_generated_tokens_total", "counter", "Tokens that were generated."
        )
        self.first_text_s = Histogram(
            "llmtrain_first_text_seconds", "From a request's arrival to its first text."
        )
        self.answer_s = Histogram(
            "llmtrain_answer_seconds", "From a request's arrival to its last text."
        )
        self.slots.set(slots)

    def count_request(self, status: int) -> None:
        """Count a request that was answered with `status`."""
        self.requests.add(1, f'{{status="{status}"}}')

    def text(self) -> str:
        """Return all of it as Prometheus reads it."""
        values = (
            *(self.slots, self.running, self.waiting, self.requests),
            *(self.prompt_tokens, self.generated_tokens, self.first_text_s, self.answer_s),
        )
        return "".join(f"{line}\n" for value in values for line in value.lines())


def _heading(name: str, kind: str, help_text: str) -> Iterator[str]:
    yield f"# HELP {name} {help_text}"
    yield f"# TYPE {name} {kind}"
