"""Native kernels of a CPU: for runs that are long enough, and unless torch's are clearly faster."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, Literal

import pytest

from llmtrain.errors import DoesNotFitError, UsageError
from llmtrain.machine.facts import (
    AttentionTimes,
    BlockTimes,
    CpuTimes,
    LossTimes,
    PartTime,
    StepTimes,
)
from llmtrain.plan.native_kernels import wants_native
from llmtrain.plan.planner import make_plan
from tests.machines import CPU, CUDA, LONG, WORKLOAD, products, wish


def test_what_native_kernels_lack_is_in_the_reasons_and_refused_where_asked_for() -> None:
    missing = replace(
        products(1.0, 1.0, 0.5),
        attention=AttentionTimes(0.1, 0.01),
        native_missing="no C++ compiler was found",
    )
    plan = make_plan(CPU, wish(), LONG, missing)
    for choice in (plan.attention, plan.loss):
        assert choice.reason.endswith("; no native kernels: no C++ compiler was found")
    for option in ("attention", "loss"):
        with pytest.raises(UsageError, match="native: no C") as caught:
            make_plan(CPU, wish(**{option: "native"}), LONG, missing)
        assert caught.value.hint == f"--set device.{option}=auto"


def test_native_kernels_are_for_runs_of_half_a_minute() -> None:
    bf16, fp32 = products(1.0, 1.0, 0.5), products(1.0, 1.0, 1.0)
    short = replace(WORKLOAD, time_s=29.0)
    assert wants_native(CPU, wish(), LONG, bf16)
    assert not wants_native(CPU, wish(), short, bf16)
    assert wants_native(CPU, wish(loss="native"), short, bf16)
    others = wish(attention="blocks", loss="chunks")
    assert not wants_native(CPU, others, LONG, bf16)
    assert wants_native(CPU, wish(), LONG, fp32)
    assert not wants_native(CPU, wish(), short, fp32)
    assert not wants_native(CPU, wish(attention="blocks"), LONG, fp32)  # has but that


@pytest.mark.parametrize("precision", ["auto", "fp32"])
def test_in_fp32_attention_alone_has_a_native_kernel(precision: Literal["auto", "fp32"]) -> None:
    times = replace(products(1.0, 1.0, 1.0), attention=AttentionTimes(0.2, 0.1, 0.07))
    plan = make_plan(CPU, wish(precision=precision), LONG, times)
    assert (plan.precision.value, plan.attention.value, plan.loss.value) == (
        "fp32",
        "native",
        "chunks",
    )
    assert plan.block_kernels.value == "torch"
    for option in ("loss", "block_kernels"):
        with pytest.raises(UsageError, match="native: made for bf16, and the precision is fp32"):
            make_plan(CPU, wish(precision=precision, **{option: "native"}), LONG, times)


def test_a_short_run_computes_alike_whether_kernels_were_measured_or_not() -> None:
    without = replace(products(1.0, 1.0, 0.5), attention=AttentionTimes(0.1, 0.01))
    measured = replace(
        without, attention=AttentionTimes(0.1, 0.01, 0.001), loss=LossTimes(0.1, 0.01)
    )
    short = replace(WORKLOAD, time_s=29.0)
    assert make_plan(CPU, wish(), short, measured) == make_plan(CPU, wish(), short, without)
    assert make_plan(CPU, wish(), LONG, measured).loss.value == "native"


def step(block_s: float, micro_batch: int = 8) -> StepTimes:
    return StepTimes(micro_batch, PartTime(block_s), PartTime(0.1), PartTime(0.01))


def native_times(native_s: float, block: BlockTimes | None = None) -> CpuTimes:
    """The times of a CPU on which a block takes a second by torch's kernels."""
    attention = AttentionTimes(0.1, 0.05, 0.01)
    times = replace(products(1.0, 1.0, 0.5), attention=attention, loss=LossTimes(0.1, 0.01))
    eager = step(1.0)
    return replace(times, plain=eager, eager=eager, native=step(native_s), block=block)


@pytest.mark.parametrize(("native_s", "kernel"), [(1.24, "native"), (1.26, "torch")])
def test_native_blocks_stay_unless_eager_ones_save_a_fifth(native_s: float, kernel: str) -> None:
    short_of_comparing = replace(WORKLOAD, time_s=599.0)
    plan = make_plan(CPU, wish(compile=False), short_of_comparing, native_times(native_s))
    assert plan.block_kernels.value == kernel
    assert f"{1e3 * native_s / 8:.1f} ms a block and sequence" in plan.block_kernels.reason
    assert plan.attention.value == "native"


def test_native_blocks_are_compared_by_sequence_whatever_the_micro_batches() -> None:
    times = replace(native_times(0.7), native=step(0.7, micro_batch=4))
    plan = make_plan(CPU, wish(compile=False), replace(WORKLOAD, time_s=599.0), times)
    assert plan.block_kernels.value == "torch"


@pytest.mark.parametrize(
    ("kept_s", "mode", "why"),
    [
        (0.46, "off", "kept gates are faster: 57.5 ms a block and sequence kept, 62.5 computed"),
        (0.47, "selective", "gates are computed again: hardly slower: 58.8 ms"),
        (None, "selective", "keeping them was not compared here"),
    ],
)
def test_gates_are_kept_where_that_was_measured_to_be_faster(
    kept_s: float | None, mode: str, why: str
) -> None:
    keeping = None if kept_s is None else step(kept_s)
    times = replace(native_times(0.5), native_keeping=keeping)
    chosen = make_plan(CPU, wish(compile=False), LONG, times).activation_checkpointing
    assert chosen.value == mode
    assert why in chosen.reason
    if keeping is not None:  # its fastest calls are no evidence where a usual one is slower
        slower = PartTime(0.51, cpu_s=keeping.block.seconds)
        times = replace(times, native_keeping=replace(keeping, block=slower))
        chosen = make_plan(CPU, wish(compile=False), LONG, times).activation_checkpointing
        assert chosen.value == "selective"
    asked = make_plan(CPU, wish(compile=False, activation_checkpointing="full"), LONG, times)
    assert asked.activation_checkpointing.value == "full"


@pytest.mark.parametrize("kernels", ["native", "torch"])
def test_a_resume_by_native_blocks_may_keep_more_or_less_than_the_run(kernels: str) -> None:
    kept, again = (
        make_plan(
            CPU,
            wish(compile=False, block_kernels=kernels, activation_checkpointing=mode),
            LONG,
            native_times(0.5),
        )
        for mode in ("off", "selective")
    )
    assert again.has_numerics(kept.numerics()) == (kernels == "native")


def test_kept_gates_that_do_not_fit_are_computed_again() -> None:
    times = replace(native_times(0.5), native_keeping=step(0.4))
    deep = replace(LONG.shape, num_layers=40, context=8192)
    workload = replace(LONG, shape=deep, tokens_per_step=2 * 8192)
    found = dict[str, list[int]]()
    for mib in range(400, 4000, 16):
        machine = replace(CPU, cpu=replace(CPU.cpu, memory_limit_bytes=mib << 20))
        try:
            plan = make_plan(machine, wish(compile=False), workload, times)
        except DoesNotFitError:
            continue
        assert plan.block_kernels.value == "native"
        found.setdefault(plan.activation_checkpointing.value, []).append(mib)
    assert list(found) == ["full", "selective", "off"]
    assert found["full"][-1] < found["selective"][0] <= found["selective"][-1] < found["off"][0]


@pytest.mark.parametrize(
    ("time_s", "compiled_s", "kernel"),
    [(600.0, 0.39, "torch"), (600.0, 0.41, "native"), (599.0, 0.39, "native")],
)
def test_a_run_of_ten_minutes_takes_compiled_blocks_that_save_a_fifth_of_native_ones(
    time_s: float, compiled_s: float, kernel: str
) -> None:
    facts = replace(CPU, cxx_compiler="g++")
    block = BlockTimes(eager_s=1.0, compiled_s=compiled_s, compile_s=10.0)
    workload = replace(WORKLOAD, time_s=time_s)
    plan = make_plan(facts, wish(), workload, native_times(0.5, block))
    assert plan.block_kernels.value == kernel
    assert plan.compile.value == (kernel == "torch")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"attention": "blocks"}, "device.attention is blocks"),
        ({"compile": True}, "device.compile is true"),
        ({"sharding": "shard"}, "the model is sharded"),
        ({"sharding": "hybrid"}, "the model is sharded"),
    ],
)
def test_native_blocks_are_refused_where_they_do_not_fit_and_else_left_out(
    options: dict[str, Any], message: str
) -> None:
    facts = replace(CPU, cxx_compiler="g++")
    with pytest.raises(UsageError, match=f"device.block_kernels native: .*{message}") as caught:
        make_plan(facts, wish(block_kernels="native", **options), LONG, native_times(0.1))
    assert caught.value.hint == "--set device.block_kernels=auto"
    plan = make_plan(facts, wish(**options), LONG, native_times(0.1))
    assert plan.block_kernels.value == "torch"
    assert message in plan.block_kernels.reason


def test_native_blocks_are_for_widths_of_whole_vectors_and_a_cpu() -> None:
    odd = replace(LONG, shape=replace(LONG.shape, intermediate_size=1000))
    plan = make_plan(CPU, wish(), odd, native_times(0.1))
    assert "model.intermediate_size, 1000, is no multiple of 32" in plan.block_kernels.reason
    with pytest.raises(UsageError, match="native: made for a CPU, and the device is cuda"):
        make_plan(CUDA, wish(block_kernels="native"), LONG)
