"""What a plan is made of: decisions with their reasons, and what a run asks of a machine."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Generic, Literal, TypeVar

from llmtrain.profile.shape import ModelShape

T = TypeVar("T")
DeviceKind = Literal["cpu", "cuda", "mps"]
Precision = Literal["fp32", "bf16", "fp16"]
MatmulPrecision = Literal["highest", "high", "medium"]
Backend = Literal["gloo", "nccl"]
AttentionKernel = Literal["sdpa", "blocks", "flex"]
ActivationCheckpointing = Literal["off", "selective", "full"]
OptimizerName = Literal["muon", "adamw"]


@dataclass(frozen=True, slots=True)
class Choice(Generic[T]):
    """A decision and why it was made; shown by `device info`, saved with the run."""

    value: T
    reason: str


@dataclass(frozen=True, slots=True)
class Needs:
    """What a run asks of a machine."""

    shape: ModelShape
    tokens_per_step: int
    micro_batch: int | Literal["auto"] = "auto"
    launched_processes: int | None = None  # by --nproc or torchrun; None: the plan decides
    launched_local_processes: int | None = None  # those on this machine
    optimizer: OptimizerName = "adamw"
    tokens: int | None = None  # that the run trains on, where it is that which ends it
    time_s: float | None = None  # that the run lasts, where it is that
    mask_documents: bool = False  # attention stays within documents

    def masks_pairs(self, attention: AttentionKernel) -> bool:
        """Whether that takes a mask of all pairs of tokens: torch's kernels want one."""
        return self.mask_documents and attention == "sdpa"
