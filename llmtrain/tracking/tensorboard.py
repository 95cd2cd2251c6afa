"""TensorBoard's event files, in the run's directory `tensorboard`."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

DIRECTORY = "tensorboard"


class TensorBoardSink:
    """Writes event files without tensorflow or torch."""

    def __init__(self, run: Path) -> None:
        from tensorboard.summary.writer.event_file_writer import EventFileWriter

        self._writer = EventFileWriter(str(run / DIRECTORY))

    def start(self, step: int, profile: Mapping[str, Any]) -> None:
        """Tell TensorBoard to drop points after `step`, which an earlier session wrote."""
        from tensorboard.compat.proto.event_pb2 import Event, SessionLog

        self._add(Event(step=step + 1, session_log=SessionLog(status=SessionLog.START)))
        if profile:
            self._text(step, "profile", f"```\n{json.dumps(dict(profile), indent=2)}\n```")

    def metrics(self, step: int, values: Mapping[str, float]) -> None:
        """Add a scalar for each number."""
        from tensorboard.compat.proto.event_pb2 import Event
        from tensorboard.compat.proto.summary_pb2 import Summary

        found = [Summary.Value(tag=tag, simple_value=value) for tag, value in values.items()]
        self._add(Event(step=step, summary=Summary(value=found)))

    def sample(self, step: int, prompt: str, text: str) -> None:
        """Add a text, of which TensorBoard escapes what is HTML."""
        self._text(step, f"sample/{prompt[:60]}", _as_code(prompt + text))

    def close(self) -> None:
        """Write what is buffered and close the file."""
        self._writer.close()

    def _text(self, step: int, tag: str, text: str) -> None:
        from tensorboard.compat.proto.event_pb2 import Event
        from tensorboard.compat.proto.summary_pb2 import Summary, SummaryMetadata
        from tensorboard.compat.proto.tensor_pb2 import TensorProto
        from tensorboard.compat.proto.tensor_shape_pb2 import TensorShapeProto
        from tensorboard.compat.proto.types_pb2 import DT_STRING

        plugin = SummaryMetadata.PluginData(plugin_name="text")
        one = TensorShapeProto(dim=[TensorShapeProto.Dim(size=1)])
        tensor = TensorProto(dtype=DT_STRING, string_val=[text.encode()], tensor_shape=one)
        value = Summary.Value(tag=tag, metadata=SummaryMetadata(plugin_data=plugin), tensor=tensor)
        self._add(Event(step=step, summary=Summary(value=[value])))

    def _add(self, event: Any) -> None:
        event.wall_time = time.time()
        self._writer.add_event(event)
        self._writer.flush()


def _as_code(text: str) -> str:
    """Return text as an indented block of Markdown, in which nothing is markup."""
    return "\n".join(f"    {line}" for line in text.splitlines())
