"""What trackers with W&B's interface have in common: a run that metrics and texts are logged to."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

PROJECT = "llmtrain"


class RunSink:
    """Logs to a run of the library, once `start` has begun it."""

    _run: Any = None

    def metrics(self, step: int, values: Mapping[str, float]) -> None:
        """Log the numbers at a step."""
        self._run.log(dict(values), step=step)

    def sample(self, step: int, prompt: str, text: str) -> None:
        """Log a text as a value of its own."""
        self._run.log({"sample": prompt + text}, step=step)

    def close(self) -> None:
        """Wait until everything is in the file."""
        if self._run is not None:
            self._run.finish()
