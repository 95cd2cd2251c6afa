"""Weights & Biases, offline unless WANDB_MODE says otherwise, in the run's directory `wandb`."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from llmtrain.tracking.run_sink import PROJECT, RunSink


class WandbSink(RunSink):
    """Logs offline files that `wandb sync` uploads; a resumed run has the same id.

    Each session writes files of its own. Steps that are trained again are in both.
    """

    def __init__(self, run: Path) -> None:
        self._path = run

    def start(self, step: int, profile: Mapping[str, Any]) -> None:
        """Begin the run, or continue the one of the same id."""
        import wandb

        if self._run is None:
            os.environ.setdefault("WANDB_MODE", "offline")
            self._run = wandb.init(
                project=PROJECT,
                name=self._path.name,
                id=hashlib.sha256(str(self._path).encode(errors="replace")).hexdigest()[:16],
                resume="allow",
                dir=str(self._path),
                config=dict(profile),
                settings=wandb.Settings(
                    silent=True, console="off", x_disable_stats=True, disable_git=True
                ),
            )
