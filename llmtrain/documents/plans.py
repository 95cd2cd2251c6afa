"""Documents about machines, profiles and plans."""

from __future__ import annotations

from collections.abc import Sequence
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
)
from llmtrain.documents.base import (
    Amount,
    Document,
    Part,
    Reasoned,
    Rounded,
    T,
    Text,
    Threshold,
    key,
    present,
    thresholds,
)
from llmtrain.machine.facts import AcceleratorKind

if TYPE_CHECKING:
    from llmtrain.engine.explain import Explained as ExplainedRun
    from llmtrain.profile.load import LoadedProfile


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
    threads: Decision[int] = key("of one process")
    micro_batch: Decision[int] = key("sequences of one forward and backward")
    accumulation: Decision[int] = key("micro-batches of one process in an optimizer step")
    attention: Decision[AttentionKernel] = key("the kernel")
    loss: Decision[LossKernel] = key("how the loss is computed")
    block_kernels: Decision[BlockKernels] = key("what computes norms, rotary positions and SwiGLU")
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


class _OnMachine(Part):
    assumed: Assumed | None = key("the machine of `--assume`; null: this machine")


class _Asked(_OnMachine):
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


class Platform(Part):
    """System and libraries."""

    system: Text = key("Linux, Darwin, Windows, or unknown")
    python: Text = key("Python's version")
    torch: Text = key("torch's version")
    torch_build: Text = key("what torch was compiled for: cpu, cu130, rocm6.4, for CUDA …")
    cxx_compiler: Text | None = key(
        "what torch.compile would use on the CPU; null: none was found; with `--assume`: assumed"
    )
    triton: bool = key("whether Triton is installed, which torch.compile needs on CUDA")
    backends: list[Text] = key("those of gloo and nccl that torch has")


class Cpu(Part):
    """Processor and memory, and what of them this process may use."""

    model: Text | None = key("its name; null: unknown")
    architecture: Text = key("x86_64, aarch64, arm64, AMD64, or unknown")
    physical_cores: int | None = key("null: unknown")
    logical_cores: int = key("hardware threads")
    sockets: int | None = key("null: unknown")
    usable_cores: int = key("physical cores that this process may keep busy")
    quota_cores: float | None = key("the control group's limit, in cores; null: none")
    isa: list[Text] = key("instruction sets that matter here, as far as known")
    memory_total_bytes: int = key("the machine's memory")
    memory_limit_bytes: int | None = key("the tightest limit below that; null: none")
    memory_limited_by: Text | None = key("what sets that limit; null: none")


class Accelerator(Part):
    """A GPU that computes."""

    kind: AcceleratorKind = key("what torch calls it; ROCm's are cuda")
    index: int = key("from 0, as torch counts")
    name: Text = key("its name")
    memory_total_bytes: int = key("its memory; on MPS what Metal recommends not to exceed")
    supports_bf16: bool = key("whether it multiplies bf16 natively")
    compute_capability: list[int] | None = key("major and minor; null: not CUDA, or unknown")


class FailedDevice(Part):
    """A device that was found and could not be used."""

    kind: Text = key("cuda or mps")
    reason: Text = key("its error")


class DeviceInfo(Explained, Document):
    """`llmtrain device info`: what was found, what will be used, and why."""

    platform: Platform = key("operating system and libraries")
    cpu: Cpu = key("processor and memory")
    accelerators: list[Accelerator] = key("GPUs that compute")
    failures: list[FailedDevice] = key("devices that could not be initialised")
    unusable_gpu: Text | None = key("why this torch cannot use a GPU that is there; null: no such")
    thresholds: list[Threshold] = thresholds("`--require`")

    @classmethod
    def of_machine(cls, explained: ExplainedRun, limits: Sequence[object]) -> Self:
        """Return the document of a machine and a plan; `limits`: the thresholds of `--require`."""
        facts = explained.planned.facts
        return cls.of_explained(
            explained,
            platform=Platform.of(
                facts,  # system, torch_build, cxx_compiler, backends
                python=facts.python_version,
                torch=facts.torch_version,
                triton=facts.has_triton,
            ),
            cpu=facts.cpu,
            accelerators=facts.accelerators,
            failures=[{"kind": kind, "reason": reason} for kind, reason in facts.failures],
            unusable_gpu=facts.unusable_gpu,
            **present(thresholds=limits),
        )


class TrainDryRun(Explained, Document):
    """`llmtrain train --dry-run`: the plan of a run, and its predicted cost."""


class FinetuneDryRun(TrainDryRun):
    """`llmtrain finetune --dry-run`: as of `llmtrain train --dry-run`."""


class ListedProfile(Part):
    """A shipped profile."""

    name: Text = key("what `--profile` takes")
    parameters: int | None = key("weights of the model; null: of the model that is fine-tuned")
    context: int = key("tokens that the model sees at once")
    vocab_size: int | None = key("rows of the embedding; null: of the model that is fine-tuned")
    tokens_per_step: int | Literal["auto"] = key("tokens of an optimizer step")
    path: Text = key("its file")


class ProfilesList(Document):
    """`llmtrain profiles list`."""

    profiles: list[ListedProfile] = key("the shipped profiles, by name")


class _Values(Part):
    profile: dict[Text, Any] = key(
        "its values by section, as a profile file holds them (`llmtrain profiles schema`); "
        "unset values are missing"
    )
    origins: dict[Text, Text] = key("the origin of each value, by dotted key: as in `settings`")

    @classmethod
    def of_profile(cls, loaded: LoadedProfile, **more: object) -> Self:
        """Return the document of a profile; `more`: further keys."""
        from llmtrain.profile.load import flat_values

        values = loaded.profile.values()
        origins = {path: loaded.origin_of(path) for path, _ in flat_values(values)}
        return cls.of(profile=values, origins=origins, **more)


class ProfilesShow(_Values, Document):
    """`llmtrain profiles show`: every value and where it comes from."""


class ProfilesShowResolved(Planned, _Values, _OnMachine, Document):
    """`llmtrain profiles show --resolved`: with its `auto` values and the plan on this machine."""

    @classmethod
    def of_resolved(cls, explained: ExplainedRun) -> Self:
        """Return the document of a profile, its `auto` values and the plan."""
        more = planned_values(explained)
        return cls.of_profile(explained.loaded, assumed=explained.assumed, **more)


class ProfilesValidate(Document):
    """`llmtrain profiles validate`, of a valid profile; else the `error` document."""

    valid: Literal[True] = key("always true")
    name: Text = key("the profile's name")
    parameters: int | None = key("weights of the model; null: of the model that is fine-tuned")


class ConvertedKey(Part):
    """A key of the old configuration, and what became of it."""

    name: Text = key("of the key, as the old configuration has it, with its section")
    value: Any = key("its value there")
    given: bool = key("false: the other tool's default, which the profile has to say")
    outcome: Literal["mapped", "replaced", "dropped"] = key(
        "`mapped`: the profile says the same; `replaced`: something else does it; `dropped`: "
        "nothing does"
    )
    settings: dict[str, Any] = key("of the profile; empty unless mapped")
    note: Text = key("what it is now, what replaces it, or why nothing does, for people")


class ProfilesConvert(Document):
    """`llmtrain profiles convert`: a configuration of another tool as a profile."""

    source: Literal["llm-trainer", "nanogpt", "huggingface"] = key("whose configuration it was")
    profile: dict[str, Any] = key("dotted keys that the profile sets")
    keys: list[ConvertedKey] = key("every key of the old configuration")
    out: Text | None = key("the profile that was written; null: none")
