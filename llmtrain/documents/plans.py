"""Documents about machines, profiles and plans."""

from __future__ import annotations

from typing import Any, Literal

from llmtrain.choice import (
    ActivationCheckpointing,
    AttentionKernel,
    Backend,
    DeviceKind,
    MatmulPrecision,
    Precision,
)
from llmtrain.documents.base import (
    Document,
    Part,
    Reasoned,
    T,
    Threshold,
    key,
    thresholds,
)
from llmtrain.machine.facts import AcceleratorKind


class Decision(Reasoned[T]):
    """A decision of the plan: what, why, and who asked for it."""

    origin: str = key("who asked for it: as in `settings`; `plan`: nobody did")


class Setting(Part):
    """A value of the profile, and where it comes from."""

    value: Any = key("as a profile holds it; `auto`: left to the plan")
    origin: str = key(
        "`default` of the schema, `FILE:LINE` of a profile, `environment VARIABLE`, "
        "`--set KEY=VALUE`, the flag (`--device`), or `chosen: WHY` where the profile left it open"
    )


class Assumed(Part):
    """A machine that is not here."""

    spec: str = key("what `--assume` said")
    assumptions: list[str] = key("what it did not say and is assumed, in sentences for people")


class Plan(Part):
    """Every decision about how a run uses the machine."""

    device: Decision[DeviceKind] = key("where to compute")
    precision: Decision[Precision] = key("of matrix products")
    matmul_precision: Decision[MatmulPrecision] = key("torch's setting for products in fp32")
    processes: Decision[int] = key("ranks on all machines")
    threads: Decision[int] = key("of one process")
    micro_batch: Decision[int] = key("sequences of one forward and backward")
    accumulation: Decision[int] = key("micro-batches of one process in an optimizer step")
    attention: Decision[AttentionKernel] = key("the kernel")
    compile: Decision[bool] = key("whether blocks are compiled by torch.compile")
    activation_checkpointing: Decision[ActivationCheckpointing] = key(
        "what the backward computes again instead of keeping it"
    )
    keep_weight_casts: Decision[bool] = key("whether weights are rounded once a step")
    backend: Decision[Backend] = key("what several processes talk through")
    grad_scaler: Decision[bool] = key("whether gradients are scaled")
    workers: Decision[int] = key("processes that tokenize")
    pin_memory: Decision[bool] = key("whether batches are copied from pinned memory")


class Measured(Part):
    """What the last run by this plan on this machine came to."""

    peak_memory_bytes: int = key("as `train` gives it: on a GPU without `libraries_bytes`")
    tokens_per_s: float = key("its rate while it trained")
    steps: int = key("that it was measured over")


class Prediction(Part):
    """Predicted memory at the peak, in bytes: of all this machine's processes on a CPU, of one
    process on a GPU."""

    parameters_bytes: int = key("the weights, in fp32")
    gradients_bytes: int = key("their gradients")
    optimizer_bytes: int = key("moments")
    weight_casts_bytes: int = key("weights rounded to half precision")
    activations_bytes: int = key("what the forward keeps for the backward")
    loss_bytes: int = key("a chunk of logits and what the loss needs beside it")
    working_bytes: int = key("what a block's backward, Muon, or a GPU's libraries work with")
    caches_bytes: int = key("keys and values of the text so far, where a model generates")
    communication_bytes: int = key("buffers of several processes")
    libraries_bytes: int = key("what a process holds without a model")
    slack_bytes: int = key("what the allocator holds beyond live tensors")
    total_bytes: int = key("the sum: the predicted peak")


class Figure(Part):
    """A number that is said beforehand, and how it is known."""

    value: float = key("the number, or the middle of a range")
    source: Literal["asked for", "measured", "estimated"] = key("how it is known")
    how: str = key("from what, in a few words for people; they may change")
    low: float | None = key("the lower end of the range; null: no range is said")
    high: float | None = key("the upper end of the range; null: no range is said")


class Forecast(Part):
    """What is known of a run before it begins. null: not known, as of a machine that was not
    measured."""

    steps: Figure | None = key("optimizer steps")
    tokens: Figure | None = key("tokens that are trained on")
    tokens_per_s: Figure | None = key("tokens a second, of all processes")
    seconds: Figure | None = key("seconds from the start to the last evaluation and save")
    checkpoints_bytes: Figure = key("room on the disk for the checkpoints that are kept")
    val_bpb: Figure | None = key("bits a byte of validation text at the end")


class _Asked(Part):
    """What a plan is for."""

    assumed: Assumed | None = key("the machine of `--assume`; null: the machine that is here")
    profile: Reasoned[str] = key("which profile, and why that")
    settings: dict[str, Setting] = key("every value of the profile, by dotted key")


class Planned(Part):
    """What was decided, and what it takes."""

    derived: dict[str, Reasoned[Any]] = key(
        "what becomes of `auto` values about which the plan says nothing, by dotted key"
    )
    plan: Plan = key("every decision")
    prediction: Prediction = key("the predicted peak of memory, itemised")
    limit_bytes: int = key("what the run may use of the device's memory, in bytes")
    fits: bool = key("whether the predicted peak is within the limit")
    measured: Measured | None = key("what such a run came to here; null: there was none")
    forecast: Forecast = key("what the run will take and come to")


class Explained(Planned, _Asked):
    """A profile, where each value of it comes from, and the plan for it."""


class Platform(Part):
    """System and libraries."""

    system: str = key("Linux, Darwin, Windows, or unknown")
    python: str = key("Python's version")
    torch: str = key("torch's version")
    torch_build: str = key("what torch was compiled for: cpu, cu130, rocm6.4, for CUDA …")
    cxx_compiler: str | None = key(
        "what torch.compile would use on the CPU; null: none was found; with `--assume`: assumed"
    )
    triton: bool = key("whether Triton is installed, which torch.compile needs on CUDA")
    backends: list[str] = key("of gloo and nccl, what torch has")


class Cpu(Part):
    """Processor and memory, and what of them this process may use."""

    model: str | None = key("its name; null: unknown")
    architecture: str = key("x86_64, aarch64, arm64, AMD64, or unknown")
    physical_cores: int | None = key("null: unknown")
    logical_cores: int = key("hardware threads")
    sockets: int | None = key("null: unknown")
    usable_cores: int = key("physical cores that this process may keep busy")
    quota_cores: float | None = key("the control group's limit, in cores; null: none")
    isa: list[str] = key("instruction sets that matter here, as far as they are known")
    memory_total_bytes: int = key("the machine's memory")
    memory_limit_bytes: int | None = key("the tightest limit below that; null: none")
    memory_limited_by: str | None = key("what sets that limit; null: none")


class Accelerator(Part):
    """A GPU that computes."""

    kind: AcceleratorKind = key("what torch calls it; ROCm's are cuda")
    index: int = key("from 0, as torch counts")
    name: str = key("its name")
    memory_total_bytes: int = key("its memory; on MPS what Metal recommends not to exceed")
    supports_bf16: bool = key("whether it multiplies bf16 natively")
    compute_capability: list[int] | None = key("major and minor; null: not CUDA, or unknown")


class FailedDevice(Part):
    """A device that is there and does not work."""

    kind: str = key("cuda or mps")
    reason: str = key("what it said")


class DeviceInfo(Explained, Document):
    """`llmtrain device info`: what was found, what will be used, and why."""

    platform: Platform = key("system and libraries")
    cpu: Cpu = key("processor and memory")
    accelerators: list[Accelerator] = key("GPUs that compute")
    failures: list[FailedDevice] = key("devices that could not be initialised")
    unusable_gpu: str | None = key("why this torch cannot use a GPU that is there; null: no such")
    thresholds: list[Threshold] = thresholds("`--require`")


class TrainDryRun(Explained, Document):
    """`llmtrain train --dry-run`: how the run would be trained, and what it would take."""


class ListedProfile(Part):
    """A shipped profile."""

    name: str = key("what `--profile` takes")
    parameters: int = key("weights of the model")
    context: int = key("tokens that the model sees at once")
    vocab_size: int = key("rows of the embedding")
    tokens_per_step: int | Literal["auto"] = key("tokens of an optimizer step")
    path: str = key("its file")


class ProfilesList(Document):
    """`llmtrain profiles list`."""

    profiles: list[ListedProfile] = key("the shipped profiles, by name")


class _Values(Part):
    profile: dict[str, Any] = key(
        "its values by section, as a profile file holds them (`llmtrain profiles schema`); "
        "values that are not set are left out"
    )
    origins: dict[str, str] = key("who set each value, by dotted key: as `settings` says it")


class ProfilesShow(_Values, Document):
    """`llmtrain profiles show`: every value and where it comes from."""


class ProfilesShowResolved(Planned, _Values, Document):
    """`llmtrain profiles show --resolved`: with what becomes of it on this machine."""

    assumed: Assumed | None = key("the machine of `--assume`; null: the machine that is here")


class ProfilesValidate(Document):
    """`llmtrain profiles validate`, of a profile without fault; else the `error` document."""

    valid: Literal[True] = key("always true")
    name: str = key("the profile's name")
    parameters: int = key("weights of the model")
