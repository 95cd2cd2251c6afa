"""Documents about machines: what was found, and what of it will be used."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from typing_extensions import Self

from llmtrain.documents.base import (
    Document,
    Part,
    Text,
    Threshold,
    key,
    present,
    thresholds,
)
from llmtrain.documents.plans import Explained
from llmtrain.machine.facts import AcceleratorKind

if TYPE_CHECKING:
    from llmtrain.engine.explain import Explained as ExplainedRun


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
    numa_cores: list[int] = key(
        "physical cores of each NUMA node that this process may run on; empty: unknown"
    )
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
