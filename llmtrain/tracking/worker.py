"""The process that logs to a tracker: lines of JSON on stdin, until its end."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Protocol

from llmtrain.untrusted import parse_json

Values = Mapping[str, Any]


class Sink(Protocol):
    """The call for each line of metrics. It may raise anything: the process then ends."""

    def start(self, step: int, profile: Values) -> None:
        """Begin or continue the run after `step`; points of later steps are replaced."""

    def metrics(self, step: int, values: Mapping[str, float]) -> None:
        """Log numbers by name."""

    def sample(self, step: int, prompt: str, text: str) -> None:
        """Log a text that was sampled."""

    def close(self) -> None:
        """Write everything that is left."""


def main() -> None:
    """Log what comes from stdin to the tracker `sys.argv[1]`, for the run in `sys.argv[2]`."""
    name, run = sys.argv[1:]
    log_lines(_sink(name, Path(run)), sys.stdin.buffer)


def log_lines(sink: Sink, lines: Iterator[bytes] | Any) -> None:
    """Log every line, then close the tracker."""
    for line in lines:
        message = parse_json(line)
        if "start" in message:
            sink.start(message["start"], message.get("profile") or {})
        if "metrics" in message:
            values = dict(message["metrics"])
            sink.metrics(values.pop("step"), _numbers(values))
        if "sample" in message:
            sample = message["sample"]
            sink.sample(sample["step"], sample["prompt"], sample["text"])
    sink.close()


def _numbers(values: Values) -> dict[str, float]:
    return {name: float(v) for name, v in values.items() if isinstance(v, (int, float))}


def _sink(name: str, run: Path) -> Sink:
    if name == "tensorboard":
        from llmtrain.tracking.tensorboard import TensorBoardSink

        return TensorBoardSink(run)
    if name == "trackio":
        from llmtrain.tracking.trackio import TrackioSink

        return TrackioSink(run)
    if name == "wandb":
        from llmtrain.tracking.wandb import WandbSink

        return WandbSink(run)
    if name == "mlflow":
        from llmtrain.tracking.mlflow import MLflowSink

        return MLflowSink(run)
    raise ValueError(f"unknown tracker {name}")
