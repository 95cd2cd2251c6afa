"""What a run asks of a machine."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from llmtrain.choice import AttentionKernel, OptimizerName
from llmtrain.profile.shape import ModelShape


@dataclass(frozen=True, slots=True)
class Workload:
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
