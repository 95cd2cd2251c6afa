"""How numbers are computed: changed only where it pays, and with the figures it rests on."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from llmtrain.choice import Choice, Precision
from llmtrain.machine.facts import (
    AttentionTimes,
    BlockTimes,
    CpuTimes,
    Facts,
    PartTime,
    StepTimes,
)
from llmtrain.plan import numerics
from llmtrain.plan.planner import make_plan
from tests.machines import (
    CPU,
    CUDA,
    CUDA_OLD,
    LONG,
    MPS,
    OLD_MPS,
    WORKLOAD,
    after_following,
    decided,
    products,
    refused,
    step_times,
    wish,
)

WITH_COMPILER = replace(CPU, cxx_compiler="/usr/bin/g++")


@pytest.mark.parametrize(
    ("facts", "options", "what"),
    [
        (CPU, {"precision": "fp16"}, "fp16: a CPU computes fp16"),
        (CUDA, {"precision": "fp16", "kind": "cpu"}, "fp16: a CPU computes fp16"),
        (MPS, {"precision": "fp16"}, "fp16: gradients cannot be scaled on MPS"),
        (OLD_MPS, {"precision": "bf16"}, "bf16: this GPU has none"),
        (CUDA_OLD, {"precision": "bf16"}, "bf16: this GPU has none"),
        (CPU, {"compile": True}, "needs a C++ compiler"),
        (replace(CUDA, has_triton=False), {"compile": True}, "needs Triton"),
        (CUDA, {"attention": "blocks"}, "blocks: made for a CPU, and the device is cuda"),
        (MPS, {"attention": "blocks"}, "blocks: made for a CPU, and the device is mps"),
        (CUDA, {"attention": "native"}, "native: made for a CPU, and the device is cuda"),
        (MPS, {"attention": "native"}, "native: made for a CPU, and the device is mps"),
        (MPS, {"loss": "native"}, "native: made for a CPU, and the device is mps"),
        (CPU, {"loss": "native", "precision": "fp32"}, "native: made for bf16"),
        (CPU, {"loss": "triton"}, "triton: made for CUDA, and the device is cpu"),
        (replace(CUDA, has_triton=False), {"loss": "triton"}, "triton: Triton is not installed"),
        (MPS, {"block_kernels": "triton"}, "triton: made for CUDA, and the device is mps"),
    ],
)
def test_what_cannot_be_is_refused_and_the_hint_helps(
    facts: Facts, options: dict[str, Any], what: str
) -> None:
    error = refused(facts, **options)
    assert what in error.message
    assert decided(facts, **after_following(error.hint, options))


def test_one_gpu_without_bf16_decides_for_all() -> None:
    plan = decided(CUDA_OLD)
    assert (plan["precision"], plan["grad_scaler"]) == ("fp16", True)


@pytest.mark.parametrize(
    ("times", "precision", "matmul"),
    [
        (None, "fp32", "highest"),
        (products(1.0, 1.0, 0.25), "bf16", "highest"),
        (products(1.0, 0.5, 0.25), "bf16", "highest"),
        (products(1.0, 0.5, 0.49), "bf16", "highest"),  # half the memory comes with it
        (products(1.0, 0.5, 0.6), "bf16", "highest"),  # medium has to win clearly, too
        (products(1.0, 0.5, 0.79), "fp32", "medium"),
        (products(1.0, 0.9, 0.81), "fp32", "highest"),
        (products(1.0, 0.79, 0.81), "fp32", "medium"),
        (products(1.0, 0.95, 0.95), "fp32", "highest"),
        (products(1.0, 1.1, 5.0), "fp32", "highest"),
    ],
)
def test_numerics_change_only_where_it_pays(
    times: CpuTimes | None, precision: str, matmul: str
) -> None:
    plan = make_plan(CPU, wish(), WORKLOAD, times)
    assert (plan.precision.value, plan.matmul_precision.value) == (precision, matmul)


def test_fp32_that_was_asked_for_is_full_fp32() -> None:
    """With a kernel and compilation asked for, no measurement decides how a run is computed."""
    pinned = wish(precision="fp32", attention="sdpa", compile=False)
    plans = [
        make_plan(WITH_COMPILER, pinned, LONG, times)
        for times in (None, FAST, replace(FAST, matmul=products(1.0, 0.1, 0.1).matmul))
    ]
    assert plans[0].matmul_precision.value == "highest"
    assert len({str(plan.numerics()) for plan in plans}) == 1


def test_times_of_the_cpu_say_nothing_of_a_gpu() -> None:
    times = replace(
        products(1.0, 0.1, 0.01),
        attention=AttentionTimes(sdpa_s=1.0, blocks_s=0.1),
        block=BlockTimes(eager_s=1.0, compiled_s=0.1, compile_s=9.0),
    )
    assert make_plan(MPS, wish(), WORKLOAD, times) == make_plan(MPS, wish(), WORKLOAD)
    assert make_plan(CUDA, wish(), WORKLOAD, times) == make_plan(CUDA, wish(), WORKLOAD)


@pytest.mark.parametrize(
    ("facts", "compiled", "why"),
    [
        (CPU, False, "no C++ compiler was found"),
        (WITH_COMPILER, False, "not measured"),
        (MPS, False, "experimental on MPS"),
        (CUDA, True, "Triton is installed"),
        (replace(CUDA, has_triton=False), False, "Triton is not installed"),
    ],
)
def test_compiling_where_it_is_possible(facts: Facts, compiled: bool, why: str) -> None:
    choice = make_plan(facts, wish(), WORKLOAD).compile
    assert choice.value is compiled
    assert why in choice.reason
    assert decided(facts, compile=False)["compile"] is False


FAST = replace(products(1.0, 1.0, 1.0), block=BlockTimes(0.400, 0.300, 12.0))


@pytest.mark.parametrize(
    ("change", "compiled", "why"),
    [
        ({"block": None}, True, "the run is long enough; compared with eager when it starts"),
        (
            {},
            True,
            "one block takes 300 ms against 400 ms eager, measured here; compiling took 12 s",
        ),
        ({"block": BlockTimes(0.4, 0.4, 12.0)}, True, "compiling took 12 s"),
        ({"block": BlockTimes(0.4, 0.49, 12.0)}, True, "compiling took 12 s"),
        (
            {"block": BlockTimes(0.4, 0.51, 12.0)},
            False,
            "eager: one block takes 510 ms against 400 ms",
        ),
        (
            {"block": None, "compile_failure": "fatal error: omp.h: No such file"},
            False,
            "eager: compiling failed: fatal error: omp.h: No such file",
        ),
    ],
)
def test_compiling_is_decided_by_what_a_block_was_measured_at(
    change: dict[str, Any], compiled: bool, why: str
) -> None:
    choice = make_plan(WITH_COMPILER, wish(), LONG, replace(FAST, **change)).compile
    assert choice.value is compiled
    assert why in choice.reason


# 2 blocks of 0.2 s and 0.5 s beside them: 1 s for a step of 24 × 64 tokens.
EAGER = step_times(0.2, 0.5, 0.1, micro_batch=24)
TOKENS_PER_S = 24 * 64


@pytest.mark.parametrize(
    ("tokens_s", "time_s", "compiled"),
    [
        (30, None, False),
        (59, None, False),
        (61, None, True),
        (None, 119, False),
        (None, 121, True),
        (None, None, True),
    ],
)
def test_a_run_too_short_to_gain_by_it_is_not_compiled(
    tokens_s: float | None, time_s: float | None, compiled: bool
) -> None:
    """The run is given as tokens that take so many seconds, or as a time, or has no end."""
    tokens = None if tokens_s is None else tokens_s * TOKENS_PER_S
    workload = replace(WORKLOAD, tokens=tokens, time_s=time_s)
    choice = make_plan(WITH_COMPILER, wish(), workload, replace(FAST, eager=EAGER)).compile
    assert choice.value is compiled
    if not compiled:
        seconds = time_s if time_s is not None else tokens_s
        assert choice.reason == f"eager: the run takes about {seconds} s, and compiling up to 20 s"


def test_how_long_a_run_takes_follows_from_the_parts_of_a_step() -> None:
    """Faster products alone change nothing: the run of 75 s is one still."""
    workload = replace(WORKLOAD, tokens=75 * TOKENS_PER_S)
    timed = replace(FAST, eager=EAGER)
    faster_products = replace(timed, matmul=replace(FAST.matmul, bf16_s=0.01))
    faster_head = replace(timed, eager=replace(EAGER, head=PartTime(0.1)))
    for times, compiled in ((timed, True), (faster_products, True), (faster_head, False)):
        assert make_plan(WITH_COMPILER, wish(), workload, times).compile.value is compiled


def test_a_busy_machine_decides_as_an_idle_one() -> None:
    """By CPU time: the same request computes the same bits, whatever runs beside it."""
    workload = replace(WORKLOAD, tokens=75 * TOKENS_PER_S)
    for wall in (1.0, 3.0):
        block, head, update = (PartTime(wall * s, 1 / wall, s) for s in (0.2, 0.5, 0.1))
        times = replace(FAST, eager=StepTimes(24, block, head, update))
        assert make_plan(WITH_COMPILER, wish(), workload, times).compile.value is True
        short = replace(workload, tokens=45 * TOKENS_PER_S)
        assert make_plan(WITH_COMPILER, wish(), short, times).compile.value is False


def test_processes_share_the_work_of_a_run() -> None:
    workload = replace(WORKLOAD, tokens=75 * TOKENS_PER_S, launched_processes=2)
    choice = make_plan(WITH_COMPILER, wish(), workload, replace(FAST, eager=EAGER)).compile
    assert choice.value is False


def test_compiling_that_was_asked_for_is_done_in_the_shortest_run() -> None:
    workload = replace(WORKLOAD, time_s=1.0)
    plan = make_plan(WITH_COMPILER, wish(compile=True), workload, FAST)
    assert plan.compile == Choice(True, "asked for")


@pytest.mark.parametrize(
    ("precision", "micro_batches", "kept", "why"),
    [
        ("fp32", 8, False, "need no cast"),
        ("bf16", 1, False, "use a copy once"),
        ("bf16", 2, True, "not in each of 2"),
        ("fp16", 6, True, "not in each of 6"),
    ],
)
def test_casts_are_kept_where_they_are_used_again(
    precision: str, micro_batches: int, kept: bool, why: str
) -> None:
    choice = numerics.choose_keep_weight_casts(precision, micro_batches)
    assert choice.value is kept
    assert why in choice.reason


def test_casts_that_the_update_writes_are_kept_whatever_uses_them() -> None:
    kept = numerics.choose_keep_weight_casts("bf16", 1, block_kernels="native")
    assert kept.value
    assert "as they update" in kept.reason
    assert not numerics.choose_keep_weight_casts("bf16", 1, block_kernels="triton").value


def test_only_fp16_scales_gradients() -> None:
    precisions: tuple[Precision, ...] = ("fp32", "bf16", "fp16")
    scaled = {p: numerics.choose_grad_scaler(p).value for p in precisions}
    assert scaled == {"fp32": False, "bf16": False, "fp16": True}
