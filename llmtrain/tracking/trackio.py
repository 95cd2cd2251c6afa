"""Trackio: W&B's interface on local SQLite files, in the project "llmtrain"."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from llmtrain.tracking.run_sink import PROJECT, RunSink


class TrackioSink(RunSink):
    """Logs to Trackio's own directory, `$TRACKIO_DIR` or in the user's cache, under the run's name.

    Trackio has no way to replace points: steps that are trained again have two.
    """

    def __init__(self, run: Path) -> None:
        self._name = run.name

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
