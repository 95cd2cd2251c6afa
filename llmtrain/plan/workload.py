"""The workload: what a run requires of a machine."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from llmtrain.choice import AttentionKernel, Choice, OptimizerName, Sharding
from llmtrain.profile.lora_shape import LoraShape
from llmtrain.profile.shape import ModelShape


@dataclass(frozen=True, slots=True)
class Workload:
    """A model, its optimizer, and the size and length of its training."""

    shape: ModelShape
    tokens_per_step: int
    micro_batch: int | Literal["auto"] = "auto"
    launched_processes: int | None = None  # --nproc or torchrun; None: the plan decides
    launched_local_processes: int | None = None  # those on this machine
    has_equal_machines: bool = True  # each has as many of them, with neighbouring ranks
    timed_processes: Choice[int] | None = None  # on a CPU, by timing a step of several
    optimizer: OptimizerName = "adamw"
    tokens: int | None = None  # that end the run
    time_s: float | None = None  # that end the run
    mask_documents: bool = False  # attention stays within documents
    lora: LoraShape | None = None  # adapters that are trained beside the model
    has_conversations: bool = False  # a model is fine-tuned
    is_dpo: bool = False  # the loss is that of pairs of answers
    torch_build: str = "cpu"  # what torch was compiled for
    sync_every: int = 1  # steps that each process takes by itself before weights are averaged
    sync_is_open: bool = False  # that is decided when the ranks meet, and 1 until then
    sync_precision: Literal["fp32", "bf16"] = "fp32"  # of what they send then
    sync_shares: Literal["equal", "speed"] = "equal"  # of a step's windows, among processes
    sync_delay: int = 0  # steps beside which that travels
    compiles_anew: bool = False  # this process compiles a block for the first time on the machine

    @property
    def trained_parameters(self) -> int:
        """The number of weights that are trained: all, or those of the adapters."""
        return self.shape.parameters if self.lora is None else self.lora.parameters(self.shape)

    @property
    def flops_per_token(self) -> int:
        """Model FLOPs of one token's forward and backward pass.

        Beside adapters the backward has one product for each matrix in place of two, and the
        adapters are small matrices that are trained.
        """
        whole = self.shape.training_flops_per_token
        if self.lora is None:
            return whole
        return whole * 2 // 3 + 6 * self.lora.parameters(self.shape)

    def shards(self, sharding: Sharding, processes: int) -> int:
        """Return over how many processes weights, gradients and optimizer state are spread."""
        if sharding == "hybrid":
            return self.launched_local_processes or processes
        return processes if sharding == "shard" else 1

    def masks_pairs(self, attention: AttentionKernel) -> bool:
        """Return True if attention needs a mask of all pairs of tokens, as torch's kernels do."""
        return self.mask_documents and attention == "sdpa"
