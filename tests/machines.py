"""Facts of example machines, and what is planned or refused on them."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from llmtrain.errors import UsageError
from llmtrain.machine.facts import (
    Accelerator,
    CpuFacts,
    CpuTimes,
    Facts,
    MatmulTimes,
    PartTime,
    StepTimes,
)
from llmtrain.plan.planner import make_plan
from llmtrain.plan.workload import Workload
from llmtrain.profile.load import load_profile
from llmtrain.profile.schema import DeviceSection, ModelSection
from llmtrain.profile.shape import shape_of

GIB = 2**30
CPU = Facts(
    system="Linux",
    python_version="3.12.0",
    torch_version="2.13.0",
    torch_build="cpu",
    cpu=CpuFacts(
        model=None,
        architecture="x86_64",
        physical_cores=8,
        logical_cores=16,
        sockets=None,
        affinity_cores=16,
        quota_cores=None,
        isa=(),
        memory_total_bytes=16 * GIB,
        memory_limit_bytes=None,
    ),
    backends=("gloo",),
)


def gpu(index: int = 0, *, gib: int = 24, bf16: bool = True) -> Accelerator:
    return Accelerator("cuda", index, "RTX", gib * GIB, bf16)


CUDA = replace(
    CPU,
    accelerators=(gpu(0), gpu(1)),
    has_triton=True,
    cxx_compiler="g++",
    backends=("gloo", "nccl"),
)
CUDA_OLD = replace(CUDA, accelerators=(gpu(0), gpu(1, bf16=False)))
MPS = replace(CPU, system="Darwin", accelerators=(Accelerator("mps", 0, "M2", 12 * GIB, True),))
OLD_MPS = replace(MPS, accelerators=(Accelerator("mps", 0, "M1", 12 * GIB, False),))
WORKLOAD = Workload(
    shape_of(ModelSection(hidden_size=64, num_heads=2, num_layers=2, context=64)),
    tokens_per_step=64 * 24,
)
LONG = replace(WORKLOAD, time_s=3600.0)  # an hour: compiling pays


def wish(**values: Any) -> DeviceSection:
    return DeviceSection.model_validate(values)


def products(fp32_s: float, medium_s: float, bf16_s: float, flops: float = 1e10) -> CpuTimes:
    return CpuTimes(MatmulTimes(fp32_s, medium_s, bf16_s, flops))


def step_times(
    block_s: float,
    head_s: float,
    update_s: float,
    *,
    micro_batch: int = 4,
    ran_share: float = 1.0,
) -> StepTimes:
    block, head, update = (PartTime(s, ran_share) for s in (block_s, head_s, update_s))
    return StepTimes(micro_batch, block, head, update)


def decided(facts: Facts, workload: Workload = WORKLOAD, **options: Any) -> dict[str, Any]:
    return {name: c.value for name, c in make_plan(facts, wish(**options), workload).choices()}


def refused(facts: Facts, workload: Workload = WORKLOAD, **options: Any) -> UsageError:
    with pytest.raises(UsageError) as caught:
        make_plan(facts, wish(**options), workload)
    return caught.value


def after_following(hint: str | None, options: dict[str, Any]) -> dict[str, Any]:
    """Return the options after adding the flag that the hint names to the command."""
    assert hint is not None
    flag, _, value = hint.partition(" ")
    assignment = {"--nproc": f"device.processes={value}", "--set": value}[flag]
    changed = load_profile(environment={}, assignments=[assignment]).profile.device
    key = assignment.removeprefix("device.").split("=")[0]
    return options | {key: getattr(changed, key)}
