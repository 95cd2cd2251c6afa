"""A decision with its reason, and the values that decisions choose from."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Generic, Literal, TypeVar

T = TypeVar("T")
DeviceKind = Literal["cpu", "cuda", "mps"]
Precision = Literal["fp32", "bf16", "fp16"]
MatmulPrecision = Literal["highest", "high", "medium"]
Backend = Literal["gloo", "nccl"]
AttentionKernel = Literal["sdpa", "blocks", "flex", "native"]
LossKernel = Literal["chunks", "native", "triton"]
BlockKernels = Literal["torch", "native", "triton"]  # of blocks beside attention
ActivationCheckpointing = Literal["off", "selective", "full"]
# Of weights and optimizer state over processes; hybrid: over those of a machine, on each machine.
Sharding = Literal["replicate", "shard", "hybrid"]
OptimizerName = Literal["muon", "adamw"]
Algorithm = Literal["muon", "adamw"]  # that steps a parameter group


@dataclass(frozen=True, slots=True)
class Choice(Generic[T]):
    """A value and why it was chosen; shown by `device info`, saved with the run."""

    value: T
    reason: str
