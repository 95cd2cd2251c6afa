"""The provenance of a model, from the files of its run."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path, PurePath
from typing import Any

import llmtrain
from llmtrain.engine.inference import Trained
from llmtrain.errors import UsageError
from llmtrain.export.huggingface_directory import CHAT_TEMPLATE
from llmtrain.export.model_card import Sample
from llmtrain.export.provenance import Provenance
from llmtrain.train.checkpoint.format import load_state, weights_sha256
from llmtrain.train.checkpoint.parts import STATE
from llmtrain.train.run_directory.directory import RunDirectory
from llmtrain.untrusted import problem_of, read_bytes

_TEMPLATE_BYTES = 1 << 20
_SAMPLES = 3


def provenance_of(trained: Trained, license_id: str) -> Provenance:
    """Return the origin of a model, from its checkpoint and its run. Raises UsageError."""
    checkpoint, record = trained.checkpoint, trained.record or {}
    has_state = (checkpoint / STATE).is_file()
    state = load_state(checkpoint) if has_state else None
    data, machine = record.get("data") or {}, record.get("machine") or {}
    return Provenance(
        name=(checkpoint.parent.parent if record else checkpoint).resolve().name,
        llmtrain_version=str(record.get("llmtrain", llmtrain.__version__)),
        checkpoint_sha256=weights_sha256(checkpoint),
        license=license_id,
        chat_template=_chat_template(checkpoint / CHAT_TEMPLATE),
        profile=record.get("profile", {}).get("name"),
        corpus_sha256=data.get("corpus_sha256"),
        sources=tuple(_shared_name(each) for each in data.get("sources", [])),
        steps=None if state is None else state.step,
        tokens=None if state is None else state.tokens,
        seconds=None if state is None else state.elapsed_s,
        machine=None if "cpu" not in machine else _machine_name(machine),
    )


def recorded_val_bpb(checkpoint: Path) -> float | None:
    """Return the last validation loss that the run recorded, in bits per byte."""
    return load_state(checkpoint).val_bpb if (checkpoint / STATE).is_file() else None


def recorded_samples(trained: Trained) -> list[Sample]:
    """Return what the run sampled last."""
    if trained.record is None:
        return []
    run = RunDirectory(trained.checkpoint.parent.parent)
    lines = list(run.read_samples())[-_SAMPLES:]
    return [Sample(str(line.get("prompt", "")), str(line.get("text", ""))) for line in lines]


def _machine_name(machine: Mapping[str, Any]) -> str:
    accelerators = ", ".join(map(str, machine.get("accelerators") or []))
    return accelerators or str(machine["cpu"])


def _shared_name(source: object) -> str:
    """Return a source as others may read it: of an absolute path only the name."""
    spec = str(source.get("spec", "")) if isinstance(source, Mapping) else str(source)
    return PurePath(spec).name if PurePath(spec).is_absolute() else spec


def _chat_template(path: Path) -> str | None:
    try:
        return read_bytes(path, _TEMPLATE_BYTES).decode()
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        raise UsageError(f"{path} cannot be read: {problem_of(error)}") from None
