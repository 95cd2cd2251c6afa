"""Files of a run directory: run.yaml, and the lines of metrics.jsonl and samples.jsonl."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import RootModel

from llmtrain.documents.base import NOT_FINITE, Number, Part, Reasoned, Text, key, optional
from llmtrain.documents.plans import Forecast


class StepLine(Part):
    """A line of metrics.jsonl: a logged step. Rates are since the logged step before."""

    step: int = key("from 1")
    tokens: int = key("trained on since the run began")
    loss: Number = key(f"of the step's text, nats per token; {NOT_FINITE}")
    lr: Number = key("the first parameter group's learning rate")
    grad_norm: Number = key(f"before clipping; {NOT_FINITE}, which happens with fp16")
    tokens_per_s: Number = key("tokens a second, of all processes")
    mfu: Number = key("share of the measured products' rate, 0 to 1; null: not measured")
    memory_bytes: int = key("resident memory of all processes of the run on this machine")
    memory_available_bytes: int = optional(
        "left within the tightest limit; missing where the system does not report it"
    )
    memory_percent: float = optional(
        "of that limit, in use by any process, 0 to 100; missing as well"
    )
    accelerator_bytes: int = optional(
        "of the GPU's memory, reserved by this process's allocator; missing on a CPU"
    )
    accelerator_allocated_bytes: int = optional("of that, in live tensors; missing on a CPU")
    accelerator_peak_bytes: int = optional(
        "the most that was reserved; missing on a CPU, and on MPS, which keeps no peak"
    )
    accelerator_total_bytes: int = optional("the GPU's memory; missing on a CPU")
    accelerator_available_bytes: int = optional(
        "free for any process; missing on a CPU, and where the GPU does not report it"
    )
    accelerator_percent: float = optional(
        "of the GPU's memory, in use by any process, 0 to 100; missing as well"
    )
    elapsed_s: float = key("seconds of all sessions")


class EvaluationLine(Part):
    """A line of metrics.jsonl: an evaluation."""

    step: int = key("after which step")
    val_loss: Number = key(f"on validation text, nats per token; {NOT_FINITE}")
    val_bpb: Number = key(
        f"on validation text, bits per byte, of pairs of answers the chosen ones; {NOT_FINITE}"
    )
    reward_margin: Number = optional(
        "the mean margin of the rewards of pairs of answers; missing for other text"
    )
    reward_accuracy: Number = optional(
        "the share of pairs whose chosen answer has the larger reward; missing for other text"
    )


class SkippedLine(Part):
    """A line of metrics.jsonl: a step whose update was skipped."""

    step: int = key("which")
    skipped: Literal[True] = key("always true")
    reason: Text = key("why")


class RewoundLine(Part):
    """A line of metrics.jsonl: the run went back to an earlier checkpoint."""

    step: int = key("to which step")
    rewound_from: int = key("from which step")
    windows: int = key("the data cursor, in windows, that it continues from")


class MetricsLine(RootModel[StepLine | EvaluationLine | SkippedLine | RewoundLine]):
    """A line of metrics.jsonl."""


class SampleLine(Part):
    """A line of samples.jsonl: a text generated during training."""

    step: int = key("after which step")
    prompt: Text = key("what was continued")
    text: Text = key("the continuation")


class RunFile(Part):
    """The top-level keys of run.yaml. Keys below them may change without notice, where they are
    not those of a document here."""

    schema_version: int = optional(
        "of this file, and of the lines of the .jsonl files beside it; missing in older runs"
    )
    llmtrain: Text = key("the version of llmtrain of the last session")
    versions: dict[Text, Text] = key("of python and torch")
    profile: dict[Text, Any] = key("the profile's values: `llmtrain profiles schema`")
    origins: dict[Text, Text] = key("the origin of each value that is not a default, by dotted key")
    plan: dict[Text, Reasoned[Any]] = key("every decision: see `Plan`")
    predicted: dict[Text, int] = key("the predicted peak of memory in bytes: see `Prediction`")
    forecast: Forecast = optional("what was predicted before the run; missing in older runs")
    peak_flops: Number = key("operations a second of one process's products; null: not measured")
    machine: dict[Text, Any] = key("what has to be equal for a bitwise equal resume")
    data: dict[Text, Any] = key("what was read: fingerprints, tokens, sources")
    sessions: list[dict[Text, Any]] = key(
        "when, from which step and by which command it was trained, and by which ranks: how many "
        "processes, of each machine, over which backend, started by what; null: by one process"
    )
    result: dict[Text, Any] = optional(
        "the end of the last session: see `train`; missing until then"
    )
