"""Write run.yaml: what was asked, what was decided, and the result."""

from __future__ import annotations

import math
import platform
from contextlib import suppress
from dataclasses import asdict, replace
from datetime import datetime, timezone
from typing import Any

import torch

import llmtrain
from llmtrain.data.shards.index import ShardIndex
from llmtrain.engine.find_run import ResolvedRun
from llmtrain.engine.resume_settings import machine_signature
from llmtrain.errors import LlmtrainError
from llmtrain.eval.evaluate import bits_per_byte
from llmtrain.plan.cpu_benchmarks import forget_step
from llmtrain.plan.forecast import Forecast
from llmtrain.plan.past_runs import replace_run
from llmtrain.plan.planned import Planned
from llmtrain.prepare.dataset import Dataset
from llmtrain.train.distributed.world import (
    World,
    launcher_identity,
    launcher_name,
    run_process_identity,
)
from llmtrain.train.events import Event, Observer, Saved, TrainResult
from llmtrain.train.rate_check import RateDifference
from llmtrain.train.run_directory.directory import RunDirectory

# What reading the text shows; shards from the cache no longer do.
_CHECKED = ("left_out", "leakage", "documents")


def launched_ranks(world: World, backend: str, device: torch.device) -> dict[str, Any] | None:
    """Return what was launched; None: one process. Every rank has to call it."""
    if world.size == 1:
        return None
    return {
        "by": launcher_name(),
        "processes": world.size,
        "of_machines": world.processes_of_machines(device),
        "backend": backend,
    }


def write_start(
    resolved: ResolvedRun,
    planned: Planned,
    forecast: Forecast,
    dataset: Dataset,
    step: int,
    ranks: dict[str, Any] | None,
) -> None:
    """Write run.yaml before the session's first step, and cut the logs after `step`.

    `ranks`: what was launched for the session; None: one process. `sessions` is the last key, so
    that its absence shows a file that was cut.
    """
    before = resolved.recorded.values if resolved.recorded is not None else {}
    index, loaded = dataset.shards.index, resolved.profile.loaded
    session = {
        "begun": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "from_step": step,
        "command": list(resolved.command) or None,
        "numerics": planned.plan.numerics(),
        "launcher": launcher_identity(),
        "process": run_process_identity(),
        "ranks": ranks,
    }
    record = {
        "schema_version": llmtrain.SCHEMA_VERSION,
        "llmtrain": llmtrain.__version__,
        "versions": {"python": platform.python_version(), "torch": str(torch.__version__)},
        "profile": loaded.profile.values(),
        "origins": dict(loaded.origins),
        "plan": planned.plan.document(),
        "predicted": planned.prediction.items(),
        "forecast": before.get("forecast") or forecast.document(),
        "peak_flops": planned.peak_flops,
        "machine": machine_signature(planned.facts),
        "data": {
            "key": index.key,
            "corpus_sha256": index.corpus_fingerprint,
            "tokenizer_sha256": index.encoder_fingerprint,
            "train_tokens": index.train.tokens,
            "validation_tokens": index.validation.tokens,
            "train_text_bytes": index.train.text_bytes,
            "validation_text_bytes": index.validation.text_bytes,
            "baselines": _baselines(index) if loaded.profile.data.rows == "text" else None,
            "mixture": [asdict(source) for source in dataset.mixture],
            **_read_data(dataset, before.get("data") or {}),
        },
        **_initial_model(resolved),
        "sessions": [*before.get("sessions", []), session],
    }
    resolved.directory.cut_after(step)
    resolved.directory.write_record(record)


def _initial_model(resolved: ResolvedRun) -> dict[str, Any]:
    initial = resolved.initial_model
    return {} if initial is None else {"init_from": initial.document()}


def correct_forecast(directory: RunDirectory, planned: Planned, difference: RateDifference) -> None:
    """Add to run.yaml what the first steps came to, and forget what the forecast rested on.

    On a busy machine the measurements are kept: they are those of an idle one.
    """
    record = directory.read_record()
    *earlier, session = record["sessions"]
    corrected = {
        "after_step": difference.after_step,
        "tokens_per_s": difference.tokens_per_s,
        "remaining_s": difference.remaining_s,
        "contended": difference.is_contended,
    }
    directory.write_record(record | {"sessions": [*earlier, session | {"corrected": corrected}]})
    if difference.is_contended:
        return
    facts, workload, plan = planned.facts, planned.workload, planned.plan
    if planned.last_run is None:
        forget_step(facts, workload, plan)
    else:
        corrected_run = replace(
            planned.last_run, tokens_per_s=difference.tokens_per_s, ran_share=difference.ran_share
        )
        replace_run(facts, workload, plan, corrected_run)


def recording_first_save(directory: RunDirectory, observe: Observer) -> Observer:
    """Return `observe`, changed to write the session's first saved step to run.yaml.

    From then on checkpoints that are missing were removed (`RunDirectory.refuse_lost`).
    """
    is_recorded = False

    def observed(event: Event) -> None:
        nonlocal is_recorded
        if isinstance(event, Saved) and not is_recorded:
            is_recorded = True
            # A full disk, or a run that was moved, is reported where it is next written to.
            with suppress(OSError, LlmtrainError):
                record = directory.read_record()
                *earlier, session = record["sessions"]
                sessions = [*earlier, session | {"saved_step": event.step}]
                directory.write_record(record | {"sessions": sessions})
        observe(event)

    return observed


def write_result(directory: RunDirectory, result: TrainResult) -> None:
    """Add the session's result to run.yaml."""
    checkpoint = None if result.checkpoint is None else str(result.checkpoint)
    values = asdict(result) | {"run": str(result.run), "checkpoint": checkpoint}
    for name in ("prompt_example", "is_chat"):  # for the terminal only
        del values[name]
    directory.write_record(directory.read_record() | {"result": values})


def _read_data(dataset: Dataset, before: dict[str, Any]) -> dict[str, Any]:
    """Return sources, dropped text and leakage: of shards from the cache, as first recorded."""
    found = {"sources": dataset.sources or before.get("sources", [])}
    checked = dataset.checked
    if checked is None:
        checked = {name: before[name] for name in _CHECKED if name in before}
    return found | checked


def _baselines(index: ShardIndex) -> dict[str, float] | None:
    """Return bits per byte of the validation text by two models that read no context."""
    facts = index.validation
    if not facts.text_bytes:
        return None
    return {
        f"{name}_bpb": bits_per_byte(nats, facts.tokens, facts.text_bytes)
        for name, nats in (
            ("uniform", math.log(index.vocab_size)),
            ("unigram", index.unigram_cross_entropy_nats),
        )
    }
