"""Files of a run directory: run.yaml, and the lines of metrics.jsonl and samples.jsonl."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import RootModel

from llmtrain.documents.base import NOT_FINITE, Number, Part, Reasoned, key, optional
from llmtrain.documents.plans import Forecast


class StepLine(Part):
    """A line of metrics.jsonl: a logged step. Rates are since the logged step before."""

    step: int = key("from 1")
    tokens: int = key("trained on since the run began")
    loss: Number = key(f"of the step's text, nats a token; {NOT_FINITE}")
    lr: Number = key("the first parameter group's learning rate")
    grad_norm: Number = key(f"before clipping; {NOT_FINITE}, which fp16 has now and then")
    tokens_per_s: Number = key("tokens a second, of all processes")
    mfu: Number = key("share of the measured products' rate, 0 to 1; null: not measured")
    memory_bytes: int = key("resident memory of all processes of the run on this machine")
    memory_available_bytes: int = optional(
        "left within the nearest of the limits on it; missing where the system does not say"
    )
    memory_percent: float = optional("of that limit, in use by whomever, 0 to 100; missing as well")
    accelerator_bytes: int = optional(
        "of the GPU's memory, reserved by this process's allocator; missing on a CPU"
    )
    accelerator_allocated_bytes: int = optional("of that, in live tensors; missing on a CPU")
    accelerator_peak_bytes: int = optional(
        "the most that was reserved; missing on a CPU, and on MPS, which keeps no peak"
    )
    accelerator_total_bytes: int = optional("the GPU's memory; missing on a CPU")
    accelerator_available_bytes: int = optional(
        "of the GPU's memory, free for anyone; missing on a CPU, and where it does not say"
    )
    accelerator_percent: float = optional(
        "of the GPU's memory, in use by whomever, 0 to 100; missing as well"
    )
    elapsed_s: float = key("seconds of all sessions")


class EvaluationLine(Part):
    """A line of metrics.jsonl: an evaluation."""

    step: int = key("after which step")
    val_loss: Number = key(f"on validation text, nats a token; {NOT_FINITE}")
    val_bpb: Number = key(f"on validation text, bits a byte; {NOT_FINITE}")


class SkippedLine(Part):
    """A line of metrics.jsonl: a step whose update was withheld."""

    step: int = key("which")
    skipped: Literal[True] = key("always true")
    reason: str = key("why")


class RewoundLine(Part):
    """A line of metrics.jsonl: the run went back."""

    step: int = key("to which step")
    rewound_from: int = key("from which step")
    windows: int = key("the data cursor, in windows, that it goes on from")


class MetricsLine(RootModel[StepLine | EvaluationLine | SkippedLine | RewoundLine]):
    """A line of metrics.jsonl."""


class SampleLine(Part):
    """A line of samples.jsonl: a text drawn from the model as it was."""

    step: int = key("after which step")
    prompt: str = key("what was continued")
    text: str = key("the continuation")


class RunFile(Part):
    """The top-level keys of run.yaml. Keys below them may change without notice, where they are
    not those of a document here."""

    schema_version: Literal[2] = optional(
        "of this file, and of the lines of the .jsonl files beside it; missing in older runs"
    )
    llmtrain: str = key("the version of llmtrain of the last session")
    versions: dict[str, str] = key("of python and torch")
    profile: dict[str, Any] = key("the profile's values: `llmtrain profiles schema`")
    origins: dict[str, str] = key("who set each value that is no default, by dotted key")
    plan: dict[str, Reasoned[Any]] = key("every decision: see `Plan`")
    predicted: dict[str, int] = key("the predicted peak of memory in bytes: see `Prediction`")
    forecast: Forecast = optional("what was said before the run; missing in older runs")
    peak_flops: Number = key("operations a second of one process's products; null: not measured")
    machine: dict[str, Any] = key("what has to be equal for a resume to compute the same bits")
    data: dict[str, Any] = key("what was read: fingerprints, tokens, sources")
    sessions: list[dict[str, Any]] = key(
        "when, from which step and by which command it was trained"
    )
    result: dict[str, Any] = optional("how the last session ended: see `train`; missing until then")
