"""The predicted speed is its formula, and nothing where a block was not measured."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from llmtrain.machine.facts import BlockTimes, CpuTimes, MatmulTimes
from llmtrain.plan.throughput import StepWork, predicted_step_s, predicted_tokens_per_s
from llmtrain.profile.schema import ModelSection
from llmtrain.profile.shape import muon_flops, shape_of

SHAPE = shape_of(
    ModelSection(
        vocab_size=1000,
        hidden_size=100,
        intermediate_size=300,
        num_layers=3,
        num_heads=5,
        context=10,
    )
)
# 1 GFLOP: 1, 2 and 4 GFLOP/s.
PRODUCTS = MatmulTimes(fp32_s=1.0, medium_s=0.5, bf16_s=0.25, flops=1e9)
TIMES = CpuTimes(PRODUCTS, block=BlockTimes(eager_s=0.05, compiled_s=0.02, compile_s=9.0))
WORK = StepWork(
    micro_batch=4,
    accumulation=2,
    processes=1,
    precision="fp32",
    matmul_precision="highest",
    compiled=False,
    optimizer="adamw",
)
# 40 tokens a micro-batch: 6 · 40 · 1000 · 100 = 24 MFLOP at 1 GFLOP/s, 1.2 times.
HEAD_S = 0.0288
OPTIMIZER_S = 30 * SHAPE.parameters / 10e9


@pytest.mark.parametrize(
    ("change", "micro_batch_s"),
    [
        ({}, 3 * 0.05 + HEAD_S),
        ({"compiled": True}, 3 * 0.02 + HEAD_S),
        ({"matmul_precision": "medium"}, 3 * 0.05 + HEAD_S / 2),
        ({"matmul_precision": "high"}, 3 * 0.05 + HEAD_S),
        ({"precision": "bf16"}, 3 * 0.05 + HEAD_S / 4),
        ({"precision": "bf16", "matmul_precision": "medium"}, 3 * 0.05 + HEAD_S / 4),
        ({"accumulation": 1}, 3 * 0.05 + HEAD_S),
    ],
)
def test_step_is_its_micro_batches_and_the_optimizer(
    change: dict[str, Any], micro_batch_s: float
) -> None:
    work = replace(WORK, **change)

    step_s = predicted_step_s(SHAPE, work, TIMES)

    assert step_s == pytest.approx(work.accumulation * micro_batch_s + OPTIMIZER_S)


def test_optimizer_of_many_parameters_takes_long() -> None:
    large = replace(SHAPE, vocab_size=10_000_000)  # 1B parameters: 3 s
    no_head = replace(TIMES, matmul=replace(PRODUCTS, flops=1e30))
    step_s = predicted_step_s(large, replace(WORK, accumulation=1), no_head)
    assert step_s == pytest.approx(3 * 0.05 + 3.0, rel=1e-3)


def test_muon_takes_its_products_at_the_measured_rate() -> None:
    adamw_s = predicted_step_s(SHAPE, WORK, TIMES)
    muon_s = predicted_step_s(SHAPE, replace(WORK, optimizer="muon"), TIMES)
    assert adamw_s is not None
    assert muon_s == pytest.approx(adamw_s + muon_flops(SHAPE) / 1e9)


def test_tokens_of_all_processes_over_the_seconds_of_a_step() -> None:
    step_s = 2 * (3 * 0.05 + HEAD_S) + OPTIMIZER_S

    assert predicted_tokens_per_s(SHAPE, WORK, TIMES) == pytest.approx(2 * 40 / step_s)
    assert predicted_tokens_per_s(SHAPE, replace(WORK, processes=3), TIMES) == pytest.approx(
        3 * 2 * 40 / step_s
    )


def test_without_a_block_there_is_no_guess() -> None:
    unmeasured = replace(TIMES, block=None, compile_failure="no compiler")
    assert predicted_step_s(SHAPE, WORK, unmeasured) is None
    assert predicted_tokens_per_s(SHAPE, WORK, unmeasured) is None
