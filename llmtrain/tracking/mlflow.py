"""MLflow: SQLite in the run's directory `mlflow`, or where MLFLOW_TRACKING_URI says."""

from __future__ import annotations

import hashlib
import logging
import os
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

EXPERIMENT = "llmtrain"
DIRECTORY = "mlflow"
DATABASE = "mlflow.db"
_RUN_TAG = "llmtrain.run"  # by which a later session finds the run again
_LONGEST_VALUE = 6000  # characters of a parameter, of which MLflow stores so many
_MOST_PARAMETERS = 100  # of one call
_MOST_METRICS = 1000  # of one call
_TOGETHER_S = 2.0  # numbers of so long are one transaction, which takes 20 ms and the disk
_RETRIES = "3"  # of a server that does not answer; MLflow's own are minutes


class MLflowSink:
    """Logs through MLflow's client; a resumed run continues the one of the same directory.

    MLflow has no way to replace points: steps that are trained again have two.
    """

    def __init__(self, run: Path) -> None:
        self._path = run
        self._client: Any = None
        self._run_id = ""
        self._waiting: list[Any] = []
        self._logged_s = 0.0

    def start(self, step: int, profile: Mapping[str, Any]) -> None:
        """Begin the run, or continue the one of this directory."""
        if self._client is not None:
            return
        os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
        os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", _RETRIES)
        logging.getLogger("mlflow").setLevel(logging.ERROR)
        logging.getLogger("alembic").setLevel(logging.ERROR)
        from mlflow import MlflowClient

        directory = self._path / DIRECTORY
        local = f"sqlite:///{(directory / DATABASE).as_posix()}"
        uri = os.environ.get("MLFLOW_TRACKING_URI") or local
        if uri == local:
            directory.mkdir(exist_ok=True)
        self._client = MlflowClient(uri)
        self._run_id = self._found() or self._created(profile, directory if uri == local else None)
        self._client.update_run(self._run_id, status="RUNNING")

    def metrics(self, step: int, values: Mapping[str, float]) -> None:
        """Log the numbers at a step."""
        from mlflow.entities import Metric

        now_ms = int(time.time() * 1000)
        self._waiting += [Metric(name, value, now_ms, step) for name, value in values.items()]
        is_due = time.monotonic() - self._logged_s >= _TOGETHER_S
        if is_due or len(self._waiting) >= _MOST_METRICS // 2:
            self._flush()

    def sample(self, step: int, prompt: str, text: str) -> None:
        """Log a text as an artifact, a file for each step and prompt."""
        self._flush()
        name = hashlib.sha256(prompt.encode(errors="replace")).hexdigest()[:8]
        self._client.log_text(self._run_id, prompt + text, f"samples/{step:08d}-{name}.txt")

    def close(self) -> None:
        """Mark the run as finished."""
        if self._client is not None:
            self._flush()
            self._client.set_terminated(self._run_id)

    def _flush(self) -> None:
        while self._waiting:
            part, self._waiting = self._waiting[:_MOST_METRICS], self._waiting[_MOST_METRICS:]
            self._client.log_batch(self._run_id, metrics=part)
        self._logged_s = time.monotonic()

    def _found(self) -> str | None:
        experiment = self._client.get_experiment_by_name(EXPERIMENT)
        if experiment is None:
            return None
        query = f"tags.`{_RUN_TAG}` = '{self._tag()}'"
        runs = self._client.search_runs([experiment.experiment_id], query, max_results=1)
        return str(runs[0].info.run_id) if runs else None

    def _created(self, profile: Mapping[str, Any], local: Path | None) -> str:
        from mlflow.entities import Param

        experiment = self._client.get_experiment_by_name(EXPERIMENT)
        if experiment is None:
            files = None if local is None else (local / "artifacts").absolute().as_uri()
            identifier = self._client.create_experiment(EXPERIMENT, artifact_location=files)
        else:
            identifier = experiment.experiment_id
        tags = {_RUN_TAG: self._tag()}
        created = self._client.create_run(identifier, run_name=self._path.name, tags=tags)
        run_id = str(created.info.run_id)
        parameters = [Param(key, str(v)[:_LONGEST_VALUE]) for key, v in profile.items()]
        for start in range(0, len(parameters), _MOST_PARAMETERS):
            part = parameters[start : start + _MOST_PARAMETERS]
            self._client.log_batch(run_id, params=part)
        return run_id

    def _tag(self) -> str:
        """Return the tag by which directories of one name on one server differ."""
        return hashlib.sha256(str(self._path).encode(errors="replace")).hexdigest()[:16]
