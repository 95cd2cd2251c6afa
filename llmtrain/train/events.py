"""Events of a run for its observer, which decides how to show them."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from llmtrain.machine.live_memory import LiveMemory
from llmtrain.plan.memory import MemoryPrediction
from llmtrain.plan.planner import Plan
from llmtrain.progress import Note, Progress

Stopped = Literal["done", "time", "interrupted"]


@dataclass(frozen=True, slots=True)
class Started:
    """Training starts or continues; everything is decided."""

    run: Path
    plan: Plan
    prediction: MemoryPrediction
    parameters: int
    train_tokens: int
    validation_tokens: int
    tokens_per_step: int
    from_step: int
    horizon_steps: int | None
    horizon_s: float | None


@dataclass(frozen=True, slots=True)
class Step:
    """A step. `tokens_per_s` and `mfu` are since the last one logged in metrics.jsonl."""

    step: int
    tokens: int
    loss: float
    lr: float
    grad_norm: float
    tokens_per_s: float
    mfu: float | None
    memory: LiveMemory
    elapsed_s: float
    horizon_steps: int | None
    remaining_s: float | None
    is_logged: bool


@dataclass(frozen=True, slots=True)
class Evaluated:
    """An evaluation on held-out text."""

    step: int
    val_loss: float
    val_bpb: float  # of pairs of answers, that of the chosen ones
    is_best: bool
    reward_margin: float | None = None  # of pairs of answers alone
    reward_accuracy: float | None = None


@dataclass(frozen=True, slots=True)
class Sampled:
    """A text sampled from the model."""

    step: int
    prompt: str
    text: str


@dataclass(frozen=True, slots=True)
class Saved:
    """A checkpoint is on disk."""

    step: int
    path: Path


@dataclass(frozen=True, slots=True)
class TrainResult:
    """The result of a run."""

    run: Path
    checkpoint: Path | None
    steps: int
    tokens: int
    seconds: float
    tokens_per_s: float | None
    train_loss: float | None
    val_loss: float | None
    val_bpb: float | None
    peak_memory_bytes: int
    predicted_peak_bytes: int | None
    stopped: Stopped
    already_finished: bool = False
    trained_steps: int = 0  # in this session
    trained_tokens_per_step: int = 0
    step_s: float | None = None  # the median of the last steps
    predicted_tokens_per_s: float | None = None
    predicted_seconds: float | None = None
    waited_share: float | None = None  # of the time threads waited for a core; None: unknown
    energy_joules: float | None = None  # of this session; None: the machine does not measure it
    prompt_example: str | None = None  # the beginning of a text of the run
    is_chat: bool = False  # its text is conversations
    loss_is_per: str = "token"  # or the pair of answers


Event = Note | Progress | Started | Step | Evaluated | Sampled | Saved
Observer = Callable[[Event], None]


def metrics_line(event: Step | Evaluated | Sampled) -> dict[str, object]:
    """Return the event as a line of metrics.jsonl or samples.jsonl."""
    hidden = {"horizon_steps", "remaining_s", "is_logged", "is_best", "memory"}
    names = [name for name in type(event).__dataclass_fields__ if name not in hidden]
    values = {name: getattr(event, name) for name in names}
    if isinstance(event, Evaluated) and event.reward_margin is None:
        del values["reward_margin"], values["reward_accuracy"]
    memory = _memory_values(event.memory) if isinstance(event, Step) else {}
    return {name: _json_value(value) for name, value in (values | memory).items()}


def _memory_values(memory: LiveMemory) -> dict[str, int | float]:
    """Return the known memory figures; `accelerator_bytes` is reserved by torch's allocator."""
    values: dict[str, int | float | None] = {
        "memory_bytes": memory.process_bytes,
        "memory_available_bytes": memory.available_bytes,
        "memory_percent": memory.percent,
    }
    gpu = memory.accelerator
    if gpu is not None:
        values |= {
            "accelerator_bytes": gpu.reserved_bytes,
            "accelerator_allocated_bytes": gpu.allocated_bytes,
            "accelerator_peak_bytes": gpu.peak_reserved_bytes,
            "accelerator_total_bytes": gpu.total_bytes,
            "accelerator_available_bytes": gpu.available_bytes,
            "accelerator_percent": gpu.percent,
        }
    return {name: value for name, value in values.items() if value is not None}


def _json_value(value: object) -> object:
    """Return None for numbers that JSON does not have; fp16's gradient norm can be infinite."""
    return None if isinstance(value, float) and not math.isfinite(value) else value
