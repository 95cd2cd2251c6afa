"""Curves as each tracker's own files have them, and those of metrics.jsonl to compare with."""

from __future__ import annotations

import json
import math
import sqlite3
import struct
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing
from pathlib import Path
from typing import Any

CURVES = ("loss", "lr", "grad_norm", "tokens", "elapsed_s", "val_loss", "val_bpb")
Curves = dict[str, dict[int, float]]


def logged(run: Path) -> Curves:
    """The numbers of metrics.jsonl."""
    curves: Curves = defaultdict(dict)
    for text in (run / "metrics.jsonl").read_text().splitlines():
        line = json.loads(text)
        for name in CURVES:
            if line.get(name) is not None:
                curves[name][line["step"]] = line[name]
    return curves


def difference(found: Mapping[str, Mapping[int, float]], expected: Curves) -> str:
    """The first difference, in words; empty where there is none."""
    for name in CURVES:
        if found[name].keys() != expected[name].keys():
            return f"{name} has {len(found[name])} steps of {len(expected[name])}"
        for step, value in expected[name].items():
            if not math.isclose(found[name][step], value, rel_tol=1e-6):
                return f"{name} at step {step} is {found[name][step]}, and {value} was logged"
    return ""


def in_tensorboard(run: Path, _: Path) -> Curves:
    """The scalars of the event files."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(run / "tensorboard"), {"scalars": 0})
    events.Reload()
    tags = set(events.Tags()["scalars"])
    return {
        name: {e.step: e.value for e in events.Scalars(name)} if name in tags else {}
        for name in CURVES
    }


def in_trackio(run: Path, place: Path) -> Curves:
    """The rows of the SQLite file in `place`, which is TRACKIO_DIR."""
    found: Curves = defaultdict(dict)
    for database in place.glob("llmtrain*.db"):
        with closing(sqlite3.connect(database)) as connection:
            query = "select step, metrics from metrics where run_name = ?"
            for step, text in connection.execute(query, (run.name,)):
                for name, value in json.loads(text).items():
                    found[name][step] = value
    return found


def in_wandb(run: Path, _: Path) -> Curves:
    """The history of the offline files."""
    from wandb.proto.wandb_internal_pb2 import Record

    found: dict[str, dict[int, Any]] = defaultdict(dict)
    for path in sorted((run / "wandb").glob("*run-*/run-*.wandb")):
        for data in _wandb_records(path):
            record = Record.FromString(data)
            if record.WhichOneof("record_type") == "history":
                for item in record.history.item:
                    name = item.key or "/".join(item.nested_key)
                    found[name][record.history.step.num] = json.loads(item.value_json)
    return found


def _wandb_records(path: Path) -> Iterator[bytes]:
    """The records of a .wandb file: a log in blocks of 32 KiB, in the form of LevelDB's."""
    data, at, whole = path.read_bytes(), 7, b""
    while at + 7 <= len(data):
        left = 32768 - at % 32768
        if left < 7:
            at += left
            continue
        _, size, kind = struct.unpack_from("<IHB", data, at)
        whole += data[at + 7 : at + 7 + size]
        at += 7 + size
        if kind in (1, 4):  # all of a record, or the last part of one
            yield whole
            whole = b""


def in_mlflow(run: Path, _: Path) -> Curves:
    """The metrics of the SQLite file; of steps that were logged twice the later point."""
    found: Curves = defaultdict(dict)
    path = run / "mlflow" / "mlflow.db"
    if path.exists():
        with closing(sqlite3.connect(path)) as connection:
            query = "select key, step, value from metrics order by timestamp"
            for name, step, value in connection.execute(query):
                found[name][step] = value
    return found


READERS: dict[str, Callable[[Path, Path], Curves]] = {
    "tensorboard": in_tensorboard,
    "trackio": in_trackio,
    "wandb": in_wandb,
    "mlflow": in_mlflow,
}
