"""Documents about plans: every decision, the predicted memory and time."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

from typing_extensions import Self

from llmtrain.choice import (
    ActivationCheckpointing,
    AttentionKernel,
    Backend,
    BlockKernels,
    DeviceKind,
    LossKernel,
    MatmulPrecision,
    Precision,
    Sharding,
)
from llmtrain.documents.base import (
    Amount,
    Document,
    Part,
    Reasoned,
    Rounded,
    T,
    Text,
    key,
)

if TYPE_CHECKING:
    from llmtrain.engine.explain import Explained as ExplainedRun


class Decision(Reasoned[T]):
    """A decision of the plan: what, why, and who asked for it."""

    origin: Text = key("who asked for it: as in `settings`; `plan`: nobody")


class Setting(Part):
    """A value of the profile, and where it comes from."""

    value: Any = key("as a profile holds it; `auto`: left to the plan")
    origin: Text = key(
        "`default` of the schema, `FILE:LINE` of a profile, `environment VARIABLE`, "
        "`--set KEY=VALUE`, the flag (`--device`), or `chosen: WHY` where the profile left it open"
    )


class Assumed(Part):
    """An assumed machine, in place of this one."""

    spec: Text = key("as `--assume` names it")
    assumptions: list[Text] = key("what it leaves open and is assumed, in sentences for people")


class Plan(Part):
    """Every decision about how a run uses the machine."""

    device: Decision[DeviceKind] = key("where to compute")
    precision: Decision[Precision] = key("of matrix products")
    matmul_precision: Decision[MatmulPrecision] = key("torch's setting for products in fp32")
    processes: Decision[int] = key("ranks on all machines")
    sharding: Decision[Sharding] = key(
        "whether each process has all weights and optimizer state, or a part; hybrid: each machine "
        "has all"
    )
    sync_every: Decision[int] = key(
        "steps that each process takes by itself before weights are averaged; 1: gradients are "
        "averaged in every step"
    )
    threads: Decision[int] = key("of one process")
    numa_binding: Decision[bool] = key("whether each process keeps to the cores of a NUMA node")
    micro_batch: Decision[int] = key("sequences of one forward and backward")
    accumulation: Decision[int] = key("micro-batches of one process in an optimizer step")
    attention: Decision[AttentionKernel] = key("the kernel")
    loss: Decision[LossKernel] = key("how the loss is computed")
    block_kernels: Decision[BlockKernels] = key(
        "what computes blocks beside attention: torch, native kernels of a CPU, Triton on CUDA"
    )
    compile: Decision[bool] = key("whether blocks are compiled by torch.compile")
    activation_checkpointing: Decision[ActivationCheckpointing] = key(
        "what the backward recomputes instead of saving it"
    )
    keep_weight_casts: Decision[bool] = key(
        "whether the half-precision copy of the weights is kept for a step"
    )
    backend: Decision[Backend] = key("of torch.distributed")
    grad_scaler: Decision[bool] = key("whether gradients are scaled")
    workers: Decision[int] = key("processes that tokenize")
    pin_memory: Decision[bool] = key("whether batches are copied from pinned memory")


class Measured(Part):
    """The measurements of the last run with this plan on this machine."""

    peak_memory_bytes: Rounded = key("as `train` gives it: on a GPU without `libraries_bytes`")
    tokens_per_s: float = key("while it trained")
    steps: Rounded = key("of the measurement")


class Prediction(Part):
    """Predicted memory at the peak, in bytes: of all this machine's processes on a CPU, of one
    process on a GPU."""

    parameters_bytes: int = key("the weights, in fp32")
    gradients_bytes: int = key("their gradients")
    optimizer_bytes: int = key("moments")
    weight_casts_bytes: int = key("weights rounded to half precision")
    gathered_bytes: int = key("whole weights that a sharded model computes with")
    activations_bytes: int = key("what the forward saves for the backward")
    loss_bytes: int = key("a chunk of logits and what the loss computes from it")
    working_bytes: int = key("temporary memory of a block's backward, Muon, or a GPU's libraries")
    caches_bytes: int = key("the key-value cache of generation")
    communication_bytes: int = key("buffers of several processes")
    libraries_bytes: int = key("of a process without a model: Python and libraries")
    slack_bytes: int = key("reserved by the allocator beyond live tensors")
    total_bytes: int = key("the sum: the predicted peak")


class Figure(Part):
    """A predicted number, and its source."""

    value: Amount = key("the number, or the middle of a range")
    source: Literal["asked for", "measured", "estimated"] = key("where it comes from")
    how: Text = key("from what, in a few words for people; they may change")
    low: Amount | None = key("the lower end of the range; null: no range")
    high: Amount | None = key("the upper end of the range; null: no range")


class Forecast(Part):
    """The prediction of a run before it starts. null: unknown, as on a machine that was not
    measured."""

    steps: Figure | None = key("optimizer steps")
    tokens: Figure | None = key("trained tokens")
    tokens_per_s: Figure | None = key("tokens a second, of all processes")
    seconds: Figure | None = key("seconds from the start to the last evaluation and save")
    checkpoints_bytes: Figure = key("disk space of the saved checkpoints")
    val_bpb: Figure | None = key("bits per byte of validation text at the end")


def planned_values(explained: ExplainedRun) -> dict[str, object]:
    """Return the values of `Planned`."""
    planned = explained.planned
    return {
        "derived": explained.derived(),
        "plan": {
            name: {"value": choice.value, "reason": choice.reason, "origin": origin}
            for name, choice, origin in explained.decisions()
        },
        "prediction": planned.prediction,
        "limit_bytes": planned.limit_bytes,
        "fits": planned.prediction.total_bytes <= planned.limit_bytes,
        "measured": planned.last_run,
        "forecast": explained.forecast,
    }


class OnMachine(Part):
    """A document about a machine."""

    assumed: Assumed | None = key("the machine of `--assume`; null: this machine")


class _Asked(OnMachine):
    """The request that a plan answers."""

    profile: Reasoned[Text] = key("which profile, and why that")
    settings: dict[Text, Setting] = key("every value of the profile, by dotted key")


class Planned(Part):
    """A plan, and the memory and time it is predicted to take."""

    derived: dict[Text, Reasoned[Any]] = key(
        "values of `auto` keys that are not decisions of the plan, by dotted key"
    )
    plan: Plan = key("every decision")
    prediction: Prediction = key("the predicted peak of memory, itemised")
    limit_bytes: int = key("what the run may use of the device's memory, in bytes")
    fits: bool = key("whether the predicted peak is within the limit")
    measured: Measured | None = key("of the last run with this plan here; null: there was none")
    forecast: Forecast = key("predicted steps, time, disk space and loss")


class Explained(Planned, _Asked):
    """A profile, the origin of each of its values, and the plan for it."""

    @classmethod
    def of_explained(cls, explained: ExplainedRun, **more: object) -> Self:
        """Return the document of a request that was planned; `more`: further keys."""
        settings = {
            path: {"value": value, "origin": origin} for path, value, origin in explained.settings()
        }
        return cls.of(
            explained,  # assumed, profile
            settings=settings,
            **planned_values(explained),
            **more,
        )


class TrainDryRun(Explained, Document):
    """`llmtrain train --dry-run`: the plan of a run, and its predicted cost."""


class FinetuneDryRun(TrainDryRun):
    """`llmtrain finetune --dry-run`: as of `llmtrain train --dry-run`."""
