"""run.yaml: what a run was asked, what was decided, and what came out."""

from __future__ import annotations

import platform
from collections.abc import Mapping
from dataclasses import asdict
from datetime import datetime, timezone
from typing import Any

import torch

import llmtrain
from llmtrain.engine.request import TrainRequest
from llmtrain.engine.resume import Target
from llmtrain.machine.facts import Facts
from llmtrain.plan.forecast import Forecast
from llmtrain.plan.planned import Planned
from llmtrain.prepare.dataset import Dataset
from llmtrain.train.distributed.world import launcher_identity, run_process_identity
from llmtrain.train.events import TrainResult
from llmtrain.train.run_directory.directory import RunDirectory


def machine_signature(facts: Facts) -> dict[str, Any]:
    """What has to be equal for a recorded plan to compute the same bits."""
    return {
        "cpu": facts.cpu.model,
        "isa": list(facts.cpu.isa),
        "accelerators": [gpu.name for gpu in facts.accelerators],
        "torch": facts.torch_version,
    }


def begin_record(
    request: TrainRequest,
    target: Target,
    planned: Planned,
    foreseen: Forecast,
    dataset: Dataset,
    step: int,
) -> None:
    """run.yaml says everything that is known before the first step."""
    before = target.record or {}
    index = dataset.shards.index
    sitting = {
        "begun": _now(),
        "from_step": step,
        "command": list(request.command) or None,
        "numerics": planned.plan.numerics(),
        "launcher": launcher_identity(),
        "process": run_process_identity(),
    }
    record = {
        "schema_version": llmtrain.SCHEMA_VERSION,
        "llmtrain": llmtrain.__version__,
        "versions": _versions(),
        "profile": target.loaded.profile.values(),
        "origins": dict(target.loaded.origins),
        "plan": planned.plan.document(),
        "predicted": planned.prediction.items(),
        "forecast": before.get("forecast") or foreseen.document(),
        "peak_flops": planned.peak_flops,
        "machine": machine_signature(planned.facts),
        "data": {
            "key": index.key,
            "corpus_sha256": index.corpus_fingerprint,
            "tokenizer_sha256": index.encoder_fingerprint,
            "train_tokens": index.train.tokens,
            "validation_tokens": index.validation.tokens,
            "sources": dataset.sources or (before.get("data") or {}).get("sources", []),
            "mixture": [asdict(source) for source in dataset.mixture],
            **_checked(dataset, before),
        },
        "sittings": [*before.get("sittings", []), sitting],
    }
    target.directory.cut_after(step)
    target.directory.write_record(record)


def end_record(directory: RunDirectory, result: TrainResult) -> None:
    """run.yaml says what came out, too."""
    record = directory.read_record()
    values = asdict(result) | {"run": str(result.run), "checkpoint": str(result.checkpoint)}
    del values["prompt_example"]  # text, for the terminal only
    directory.write_record(record | {"result": values})


def _checked(dataset: Dataset, before: Mapping[str, Any]) -> dict[str, Any]:
    """What was left out, and what leaks; of shards from the cache, what was known at first."""
    if dataset.checked is not None:
        return dataset.checked
    data = before.get("data") or {}
    return {name: data[name] for name in ("left_out", "leakage") if name in data}


def _versions() -> dict[str, str]:
    return {"python": platform.python_version(), "torch": str(torch.__version__)}


def _now() -> str:
    return datetime.now(timezone.utc).isoformat(timespec="seconds")
