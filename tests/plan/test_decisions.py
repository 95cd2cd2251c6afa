"""What a machine cannot do is refused by name, with a hint that works where it is followed."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from llmtrain.choice import Choice, DeviceKind
from llmtrain.errors import DoesNotFitError
from llmtrain.machine.facts import Facts
from llmtrain.plan import decisions as decide
from llmtrain.plan import memory_fit
from llmtrain.plan.memory import TrainingSetup, predict_training
from llmtrain.plan.planner import Plan, make_plan
from llmtrain.profile.lora_shape import LoraShape
from tests.machines import (
    CPU,
    CUDA,
    GIB,
    MPS,
    WORKLOAD,
    after_following,
    decided,
    gpu,
    products,
    refused,
    wish,
)

BROKEN = replace(CPU, failures=(("cuda", "no kernel image is available"),))
UNUSABLE = replace(CPU, unusable_gpu="an NVIDIA GPU is here; this torch is built for the CPU")


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
        (CPU, "cuda", "torch 2.13.0 finds none"),
        (CPU, "mps", "torch 2.13.0 finds none"),
        (CUDA, "mps", "torch 2.13.0 finds none"),
        (MPS, "cuda", "torch 2.13.0 finds none"),
    ],
)
def test_a_device_that_was_named_has_to_be_there(facts: Facts, kind: str, because: str) -> None:
    error = refused(facts, kind=kind)
    assert error.message == f"device {kind} was asked for: {error.message.partition(': ')[2]}"
    assert because in error.message
    assert error.exit_code == 2


@pytest.mark.parametrize(
    ("facts", "options", "what"),
    [
        (CPU, {"backend": "nccl"}, "nccl needs CUDA"),
        (CUDA, {"backend": "nccl", "force_cpu": True}, "nccl needs CUDA"),
        (MPS, {"backend": "nccl"}, "nccl needs CUDA"),
        (replace(CUDA, backends=("gloo",)), {"backend": "nccl"}, "this torch build has none"),
        (CUDA, {"processes": 3}, "3 processes need as many GPUs; there are 2"),
        (MPS, {"processes": 2}, "mps has one GPU"),
    ],
)
def test_what_cannot_be_is_refused_and_the_hint_helps(
    facts: Facts, options: dict[str, Any], what: str
) -> None:
    error = refused(facts, **options)
    assert what in error.message
    assert decided(facts, **after_following(error.hint, options))


def test_launched_processes_need_a_gpu_each_on_their_machine() -> None:
    four = replace(WORKLOAD, launched_processes=4, launched_local_processes=2)
    assert decided(CUDA, four)["processes"] == 4
    too_many = replace(WORKLOAD, launched_processes=4, launched_local_processes=4)
    assert "4 processes need as many GPUs; there are 2" in refused(CUDA, too_many).message


def test_the_smallest_gpu_is_the_limit() -> None:
    mixed = replace(CUDA, accelerators=(gpu(0, gib=24), gpu(1, gib=8)))
    assert 7 * GIB < memory_fit.memory_limit_bytes(mixed, "cuda") < 8 * GIB
    small = replace(CPU, cpu=replace(CPU.cpu, memory_limit_bytes=GIB))
    assert memory_fit.memory_limit_bytes(small, "cpu") < GIB


def test_a_micro_batch_that_does_not_divide_is_refused() -> None:
    error = refused(CPU, replace(WORKLOAD, micro_batch=5))
    assert "train.micro_batch 5 does not divide the 24 windows" in error.message
    assert error.hint == "--set train.micro_batch=auto"
    assert decided(CPU, replace(WORKLOAD, micro_batch=8))["accumulation"] == 3


@pytest.mark.parametrize(
    ("windows", "micro_batch", "why"),
    [
        (64, 64, "the whole step"),
        (24, 24, "the whole step"),
        (128, 64, "more is no faster"),
        (67, 1, "divides the step"),
        (96, 48, "divides the step"),
    ],
)
def test_the_micro_batch_is_the_largest_divisor_that_is_of_use(
    windows: int, micro_batch: int, why: str
) -> None:
    plan = make_plan(CPU, wish(), replace(WORKLOAD, tokens_per_step=64 * windows))
    assert plan.micro_batch.value == micro_batch
    assert why in plan.micro_batch.reason


def test_beside_adapters_micro_batches_are_small_on_a_cpu() -> None:
    lora = LoraShape(4, 8.0, ("q_proj",))
    workload = replace(WORKLOAD, tokens_per_step=64 * 64, lora=lora)
    assert make_plan(CPU, wish(), workload).micro_batch.value == 512 // 64
    assert make_plan(CPU, wish(), replace(workload, micro_batch=64)).micro_batch.value == 64


def test_in_fine_tuning_micro_batches_are_small_on_a_cpu() -> None:
    workload = replace(WORKLOAD, tokens_per_step=64 * 64, has_conversations=True)
    assert make_plan(CPU, wish(), workload).micro_batch.value == 512 // 64


def test_beside_adapters_blocks_are_computed_again_though_all_would_fit() -> None:
    workload = replace(WORKLOAD, lora=LoraShape(4, 8.0, ("q_proj",)))
    assert make_plan(CPU, wish(), WORKLOAD).activation_checkpointing.value == "off"
    chosen = make_plan(CPU, wish(), workload).activation_checkpointing
    assert (chosen.value, "little memory" in chosen.reason) == ("full", True)
    on_a_gpu = make_plan(CUDA, wish(), workload).activation_checkpointing
    assert on_a_gpu.value == "off"


@pytest.mark.parametrize(("processes", "threads"), [(1, 8), (2, 4), (3, 2), (8, 1), (12, 1)])
def test_processes_of_one_machine_share_its_cores(processes: int, threads: int) -> None:
    assert decided(CPU, processes=processes)["threads"] == threads


def on_a_cpu_with(limit_bytes: int, *, compiled: bool = False, **options: Any) -> Plan:
    cpu = replace(CPU.cpu, memory_limit_bytes=limit_bytes)
    facts = replace(CPU, cpu=cpu, cxx_compiler="g++" if compiled else None)
    return make_plan(facts, wish(**options), DEEP, products(1.0, 1.0, 1.0))


# One sequence is most of what it needs.
DEEP = replace(WORKLOAD, shape=replace(WORKLOAD.shape, num_layers=40, context=8192))
DEEP = replace(DEEP, tokens_per_step=2 * 8192)


def just_enough_bytes(checkpointing: Any, *, compiled: bool = False) -> int:
    """The smallest memory in which one sequence fits."""
    how = TrainingSetup(1, False, "cpu", checkpointing, compiled, accumulates=True)
    predicted = predict_training(DEEP.shape, how)
    return int(predicted.total_bytes / 0.85) + 2


def test_as_memory_shrinks_more_is_computed_again() -> None:
    off, selective, full = map(just_enough_bytes, ("off", "selective", "full"))
    assert off > selective > full
    found = [
        on_a_cpu_with(n).activation_checkpointing
        for n in (2 * off, off, off - 2**20, selective, selective - 2**20, full)
    ]
    modes = ["off", "off", "selective", "selective", "full", "full"]
    assert [choice.value for choice in found] == modes
    assert found[0].reason == "everything fits"
    assert {c.reason for c in found[2:]} == {"without it not even one sequence fits"}
    with pytest.raises(DoesNotFitError):
        on_a_cpu_with(full - 2**20)


def test_more_recomputation_is_never_chosen_for_a_larger_micro_batch() -> None:
    plan = on_a_cpu_with(just_enough_bytes("off"))
    assert (plan.activation_checkpointing.value, plan.micro_batch.value) == ("off", 1)


def test_what_is_compiled_keeps_products_and_attention_though_all_would_fit() -> None:
    roomy = on_a_cpu_with(16 * GIB, compiled=True).activation_checkpointing
    assert roomy.value == "selective"
    assert "the compiled backward recomputes the rest" in roomy.reason
    enough = just_enough_bytes("full", compiled=True)
    tight = on_a_cpu_with(enough, compiled=True).activation_checkpointing
    assert (tight.value, tight.reason) == ("full", "without it not even one sequence fits")


def test_the_micro_batch_that_was_asked_for_is_why_all_is_computed_again() -> None:
    workload = replace(DEEP, micro_batch=2)
    cpu = replace(CPU.cpu, memory_limit_bytes=just_enough_bytes("selective"))
    found = make_plan(replace(CPU, cpu=cpu, cxx_compiler=None), wish(), workload, None)
    assert found.activation_checkpointing.value == "full"
    assert found.activation_checkpointing.reason == "without it 2 sequences do not fit"


@pytest.mark.parametrize("mode", ["off", "selective", "full"])
def test_checkpointing_that_was_asked_for_is_done(mode: str) -> None:
    for compiled in (False, True):
        plan = on_a_cpu_with(16 * GIB, compiled=compiled, activation_checkpointing=mode)
        assert plan.activation_checkpointing == Choice(mode, "asked for")
    with pytest.raises(DoesNotFitError):  # not another mode, that would
        on_a_cpu_with(just_enough_bytes(mode) - 2**20, activation_checkpointing=mode)


@pytest.mark.parametrize(("facts", "kind"), [(CUDA, "cuda"), (MPS, "mps")])
def test_a_gpu_keeps_all_that_fits(facts: Facts, kind: DeviceKind) -> None:
    plan = make_plan(facts, wish(), WORKLOAD)
    assert (plan.device.value, plan.activation_checkpointing.value) == (kind, "off")


@pytest.mark.parametrize(
    ("numa_cores", "processes", "asked", "is_bound", "why"),
    [
        ((8, 8), 2, {}, True, "1 on each of 2 NUMA nodes"),
        ((8, 8), 4, {}, True, "2 on each of 2 NUMA nodes"),
        ((4, 4, 4, 4), 4, {}, True, "1 on each of 4 NUMA nodes"),
        ((8, 8), 2, {"numa_binding": "off"}, False, "asked for"),
        ((8, 8), 1, {}, False, "one process"),
        ((16,), 2, {}, False, "there is one NUMA node"),
        ((), 2, {}, False, "NUMA nodes are unknown"),
        ((8, 8), 3, {}, False, "3 processes do not divide among 2 NUMA nodes"),
        ((12, 4), 2, {}, False, "1 × 8 threads are more than a node's 4"),
        ((8, 8), 4, {"threads": 5}, False, "2 × 5 threads are more than a node's 8"),
    ],
)
def test_processes_keep_to_numa_nodes_where_that_costs_no_core(
    numa_cores: tuple[int, ...], processes: int, asked: dict[str, Any], is_bound: bool, why: str
) -> None:
    sixteen = replace(CPU.cpu, physical_cores=16, logical_cores=16, numa_cores=numa_cores)
    facts = replace(CPU, cpu=replace(sixteen, affinity_cores=None, affinity_physical_cores=None))
    made = make_plan(facts, wish(processes=processes, **asked), WORKLOAD)
    assert made.numa_binding.value == is_bound
    assert why in made.numa_binding.reason


def test_a_gpus_processes_are_not_bound() -> None:
    facts = replace(CUDA, cpu=replace(CUDA.cpu, numa_cores=(8, 8)))
    assert make_plan(facts, wish(), WORKLOAD).numa_binding == Choice(False, "a GPU computes")
