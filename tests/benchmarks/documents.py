"""What the measuring process and the processes that it measures write to each other."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict

from llmtrain.profile.schema import ModelSection

Precision = Literal["bf16", "fp32"]


class _Document(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class PrepareJob(_Document):
    """Make the token file; `random_tokens` None: from the text of the profile."""

    profile: str
    assignments: tuple[str, ...]
    sources: tuple[str, ...]
    random_tokens: int | None
    seed: int
    directory: Path


class Machine(_Document):
    """What was measured on."""

    cpu: str | None
    architecture: str
    system: str
    isa: tuple[str, ...]
    logical_cores: int
    physical_cores: int | None
    usable_cores: int
    memory_bytes: int


class Prepared(_Document):
    """The token file that every system reads, and how ours is told of it."""

    machine: Machine
    key: str  # of the shards in the cache
    tokens_file: Path
    dtype: str
    tokens: int
    sources: tuple[str, ...]
    tokenizer: Path
    tokenizer_pieces: int


class PeakJob(_Document):
    """Find the machine's matrix peak."""

    products: tuple[tuple[int, int, int], ...]
    threads: int


class Peaks(_Document):
    """Floating-point operations a second of the fastest linear layer tried."""

    bf16_flops: float
    fp32_flops: float


class TrainJob(_Document):
    """Train `system` for `steps`."""

    system: str
    model: ModelSection
    micro_batch: int
    steps: int
    threads: int
    seed: int
    tokens_file: Path
    dtype: str
    nanogpt: Path | None
    directory: Path


class Trained(_Document):
    """What a system did. `step_s` has every step, the first one too."""

    step_s: tuple[float, ...]
    parameters: int
    precision: str
    details: dict[str, Any] = {}


class QualityJob(_Document):
    """Train the naive baseline on a profile's text for so long or so many steps.

    Exactly one of the two is set, and the schedule follows it. `curve_every_steps`: how often the
    validation loss on the way is measured, outside the time that counts.
    """

    profile: str
    assignments: tuple[str, ...]
    budget_s: float | None = None
    steps: int | None = None
    learning_rate: float
    threads: int
    device: Literal["cpu", "cuda"] = "cpu"
    evaluation_tokens: int | None = None  # the profile's
    curve_every_steps: int | None = None


class CurvePoint(_Document):
    """How good a model was on the way."""

    seconds: float
    tokens: int
    bits_per_byte: float


class Quality(_Document):
    """How good a model became. `seconds` are those of training; evaluation comes after them."""

    seconds: float
    steps: int
    tokens: int
    bits_per_byte: float
    curve: tuple[CurvePoint, ...] = ()
