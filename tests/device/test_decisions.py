"""What a machine cannot do is refused by name, with a hint that works where it is followed."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, Literal

import pytest

from llmtrain.device import decisions as decide
from llmtrain.device.choice import Needs
from llmtrain.device.facts import Accelerator, CpuFacts, Facts, MatmulTimes
from llmtrain.device.plan import make_plan
from llmtrain.errors import UsageError
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
MPS = replace(CPU, system="Darwin", accelerators=(Accelerator("mps", 0, "M2", 12 * GIB, True),))
OLD_MPS = replace(MPS, accelerators=(Accelerator("mps", 0, "M1", 12 * GIB, False),))
BROKEN = replace(CPU, failures=(("cuda", "no kernel image is available"),))
UNUSABLE = replace(CPU, unusable_gpu="an NVIDIA GPU is here; this torch is built for the CPU")
NEEDS = Needs(
    shape_of(ModelSection(hidden_size=64, num_heads=2, num_layers=2, context=64)),
    tokens_per_step=64 * 24,
)


def wish(**values: Any) -> DeviceSection:
    return DeviceSection.model_validate(values)


def decided(facts: Facts, needs: Needs = NEEDS, **wishes: Any) -> dict[str, Any]:
    return {name: c.value for name, c in make_plan(facts, wish(**wishes), needs).choices()}


def refused(facts: Facts, needs: Needs = NEEDS, **wishes: Any) -> UsageError:
    with pytest.raises(UsageError) as caught:
        make_plan(facts, wish(**wishes), needs)
    return caught.value


def after_following(hint: str | None, wishes: dict[str, Any]) -> dict[str, Any]:
    """The wishes as they are once what the hint says was added to the command."""
    assert hint is not None
    flag, _, said = hint.partition(" ")
    assignment = {"--nproc": f"device.processes={said}", "--set": said}[flag]
    changed = load_profile(environment={}, assignments=[assignment]).profile.device
    key = assignment.removeprefix("device.").split("=")[0]
    return wishes | {key: getattr(changed, key)}


@pytest.mark.parametrize(
    ("facts", "kind"), [(CPU, "cpu"), (CUDA, "cuda"), (MPS, "mps"), (BROKEN, "cpu")]
)
def test_the_best_device_there_is(facts: Facts, kind: str) -> None:
    assert decided(facts)["device"] == kind


def test_cuda_comes_before_mps() -> None:
    both = replace(CUDA, accelerators=MPS.accelerators + CUDA.accelerators)
    assert decide.choose_device(both, wish()).value == "cuda"
    assert decide.choose_device(both, wish(kind="mps")).value == "mps"


@pytest.mark.parametrize("kind", ["auto", "cuda", "mps", "cpu"])
def test_force_cpu_wins(kind: str) -> None:
    assert decided(CUDA, kind=kind, force_cpu=True)["device"] == "cpu"
    choice = decide.choose_device(CUDA, wish(kind=kind, force_cpu=True))
    assert choice.reason == "device.force_cpu is set"


def test_a_gpu_that_failed_leaves_the_cpu_and_the_reason() -> None:
    choice = decide.choose_device(BROKEN, wish())
    assert choice.value == "cpu"
    assert choice.reason == "cuda failed to initialise: no kernel image is available"
    assert decide.choose_device(UNUSABLE, wish()).reason == UNUSABLE.unusable_gpu
    assert decide.choose_device(CPU, wish()).reason == "no accelerator found"


@pytest.mark.parametrize(
    ("facts", "kind", "because"),
    [
        (BROKEN, "cuda", "no kernel image is available"),
        (UNUSABLE, "cuda", "this torch is built for the CPU"),
        (CPU, "cuda", "torch 2.13.0 finds none here"),
        (CPU, "mps", "torch 2.13.0 finds none here"),
        (CUDA, "mps", "torch 2.13.0 finds none here"),
        (MPS, "cuda", "torch 2.13.0 finds none here"),
    ],
)
def test_a_device_that_was_named_has_to_be_there(facts: Facts, kind: str, because: str) -> None:
    error = refused(facts, kind=kind)
    assert error.message == f"device {kind} was asked for: {error.message.partition(': ')[2]}"
    assert because in error.message
    assert error.exit_code == 2


CUDA_OLD = replace(CUDA, accelerators=(gpu(0), gpu(1, bf16=False)))


@pytest.mark.parametrize(
    ("facts", "wishes", "what"),
    [
        (CPU, {"precision": "fp16"}, "fp16: a CPU computes fp16"),
        (CUDA, {"precision": "fp16", "kind": "cpu"}, "fp16: a CPU computes fp16"),
        (MPS, {"precision": "fp16"}, "fp16: gradients cannot be scaled on MPS"),
        (OLD_MPS, {"precision": "bf16"}, "bf16: this GPU has none"),
        (CUDA_OLD, {"precision": "bf16"}, "bf16: this GPU has none"),
        (CPU, {"backend": "nccl"}, "nccl needs CUDA"),
        (CUDA, {"backend": "nccl", "force_cpu": True}, "nccl needs CUDA"),
        (MPS, {"backend": "nccl"}, "nccl needs CUDA"),
        (replace(CUDA, backends=("gloo",)), {"backend": "nccl"}, "this torch build has none"),
        (CPU, {"compile": True}, "needs a C++ compiler"),
        (replace(CUDA, has_triton=False), {"compile": True}, "needs Triton"),
        (CUDA, {"processes": 3}, "3 processes need as many GPUs; there are 2"),
        (MPS, {"processes": 2}, "mps has one GPU"),
    ],
)
def test_what_cannot_be_is_refused_and_the_hint_helps(
    facts: Facts, wishes: dict[str, Any], what: str
) -> None:
    error = refused(facts, **wishes)
    assert what in error.message
    assert decided(facts, **after_following(error.hint, wishes))


def test_launched_processes_need_a_gpu_each_on_their_machine() -> None:
    four = replace(NEEDS, launched_processes=4, launched_local_processes=2)
    assert decided(CUDA, four)["processes"] == 4
    too_many = replace(NEEDS, launched_processes=4, launched_local_processes=4)
    assert "4 processes need as many GPUs; there are 2" in refused(CUDA, too_many).message


def test_one_gpu_without_bf16_decides_for_all() -> None:
    plan = decided(CUDA_OLD)
    assert (plan["precision"], plan["grad_scaler"]) == ("fp16", True)


def test_the_smallest_gpu_is_the_limit() -> None:
    mixed = replace(CUDA, accelerators=(gpu(0, gib=24), gpu(1, gib=8)))
    assert 7 * GIB < decide.memory_limit_bytes(mixed, "cuda") < 8 * GIB
    small = replace(CPU, cpu=replace(CPU.cpu, memory_limit_bytes=GIB))
    assert decide.memory_limit_bytes(small, "cpu") < GIB


@pytest.mark.parametrize(
    ("times", "precision", "matmul"),
    [
        (None, "fp32", "highest"),
        (MatmulTimes(1.0, 1.0, 0.25), "bf16", "highest"),
        (MatmulTimes(1.0, 0.5, 0.25), "bf16", "highest"),
        (MatmulTimes(1.0, 0.5, 0.49), "bf16", "highest"),  # half the memory comes with it
        (MatmulTimes(1.0, 0.5, 0.51), "fp32", "medium"),
        (MatmulTimes(1.0, 0.95, 0.95), "fp32", "highest"),
        (MatmulTimes(1.0, 1.1, 5.0), "fp32", "highest"),
    ],
)
def test_numerics_change_only_where_it_pays(
    times: MatmulTimes | None, precision: str, matmul: str
) -> None:
    plan = make_plan(CPU, wish(), NEEDS, times)
    assert (plan.precision.value, plan.matmul_precision.value) == (precision, matmul)


def test_times_of_the_cpu_say_nothing_of_a_gpu() -> None:
    times = MatmulTimes(1.0, 0.1, 0.01)
    assert make_plan(MPS, wish(), NEEDS, times) == make_plan(MPS, wish(), NEEDS)
    assert make_plan(CUDA, wish(), NEEDS, times) == make_plan(CUDA, wish(), NEEDS)


@pytest.mark.parametrize(
    ("facts", "compiled"),
    [(CPU, False), (MPS, False), (CUDA, True), (replace(CUDA, has_triton=False), False)],
)
def test_compiling_where_it_is_possible(facts: Facts, compiled: bool) -> None:
    assert decided(facts)["compile"] is compiled
    assert decided(facts, compile=False)["compile"] is False


def test_a_micro_batch_that_does_not_divide_is_refused() -> None:
    error = refused(CPU, replace(NEEDS, micro_batch=5))
    assert "train.micro_batch 5 does not divide the 24 windows" in error.message
    assert error.hint == "--set train.micro_batch=auto"
    assert decided(CPU, replace(NEEDS, micro_batch=8))["accumulation"] == 3


@pytest.mark.parametrize(
    ("windows", "micro_batch", "why"),
    [
        (64, 64, "the whole step"),
        (24, 24, "the whole step"),
        (128, 64, "more is no faster"),
        (67, 1, "a divisor of the step"),
        (96, 48, "a divisor of the step"),
    ],
)
def test_the_micro_batch_is_the_largest_divisor_that_is_of_use(
    windows: int, micro_batch: int, why: str
) -> None:
    plan = make_plan(CPU, wish(), replace(NEEDS, tokens_per_step=64 * windows))
    assert plan.micro_batch.value == micro_batch
    assert why in plan.micro_batch.reason


@pytest.mark.parametrize(("processes", "threads"), [(1, 8), (2, 4), (3, 2), (8, 1), (12, 1)])
def test_processes_of_one_machine_share_its_cores(processes: int, threads: int) -> None:
    assert decided(CPU, processes=processes)["threads"] == threads


@pytest.mark.parametrize("kind", ["cpu", "cuda", "mps"])
def test_only_fp16_scales_gradients(kind: Literal["cpu", "cuda", "mps"]) -> None:
    scaled = {p: decide.grad_scaler(kind, p).value for p in ("fp32", "bf16", "fp16")}
    assert scaled == {"fp32": False, "bf16": False, "fp16": True}
