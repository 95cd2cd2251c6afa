"""The workload: what a run requires of a machine."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from llmtrain.choice import AttentionKernel, OptimizerName
from llmtrain.profile.shape import ModelShape


@dataclass(frozen=True, slots=True)
class Workload:
    """A model, its optimizer, and the size and length of its training."""

    shape: ModelShape
    tokens_per_step: int
    micro_batch: int | Literal["auto"] = "auto"
    launched_processes: int | None = None  # --nproc or torchrun; None: the plan decides
    launched_local_processes: int | None = None  # those on this machine
    optimizer: OptimizerName = "adamw"
    tokens: int | None = None  # that end the run
    time_s: float | None = None  # that end the run
    mask_documents: bool = False  # attention stays within documents
    compiles_anew: bool = False  # this process compiles a block for the first time on the machine

    def masks_pairs(self, attention: AttentionKernel) -> bool:
        """Return True if attention needs a mask of all pairs of tokens, as torch's kernels do."""
        return self.mask_documents and attention == "sdpa"
