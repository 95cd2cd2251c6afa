"""Trackio: W&B's interface on local SQLite files, in the project "llmtrain"."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

PROJECT = "llmtrain"


class TrackioSink:
    """Logs to Trackio's own directory, `$TRACKIO_DIR` or in the user's cache, under the run's name.

    Trackio has no way to replace points: steps that are trained again have two.
    """

    def __init__(self, run: Path) -> None:
        self._name = run.name
        self._run: Any = None

    def start(self, step: int, profile: Mapping[str, Any]) -> None:
        """Begin the run, or continue the one of that name."""
        import trackio

        if self._run is None:
            self._run = trackio.init(
                project=PROJECT,
                name=self._name,
                config=dict(profile),
                resume="allow",
                auto_log_gpu=False,
                auto_log_cpu=False,
            )

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
