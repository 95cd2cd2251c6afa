"""The predicted speed is the sum of its parts, each as it was timed."""

from __future__ import annotations

import inspect
from dataclasses import replace

import pytest

from llmtrain.machine.facts import BlockTimes, CpuTimes, MatmulTimes, PartTime
from llmtrain.plan import forecast, numerics, throughput
from llmtrain.plan.throughput import (
    compiled_block,
    parts_of,
    predicted_step_s,
    predicted_tokens_per_s,
    product_flops_per_s,
)
from llmtrain.profile.schema import ModelSection
from llmtrain.profile.shape import shape_of
from llmtrain.recipe import model_size
from tests.machines import step_times

SHAPE = shape_of(ModelSection(hidden_size=100, num_layers=3, num_heads=5, context=10))
PRODUCTS = MatmulTimes(fp32_s=1.0, medium_s=0.5, bf16_s=0.25, flops=1e9)
PARTS = step_times(0.05, 0.03, 0.02, micro_batch=4)
MICRO_BATCH_S = 3 * 0.05 + 0.03  # of 40 tokens


@pytest.mark.parametrize(
    ("tokens_per_step", "processes", "micro_batches"),
    [(40, 1, 1), (80, 1, 2), (80, 2, 1), (400, 1, 10), (60, 1, 1.5)],
)
def test_a_step_is_its_micro_batches_and_one_update(
    tokens_per_step: int, processes: int, micro_batches: float
) -> None:
    asked = {"tokens_per_step": tokens_per_step, "processes": processes}
    step_s = predicted_step_s(SHAPE, PARTS, **asked)
    assert step_s == pytest.approx(micro_batches * MICRO_BATCH_S + 0.02)
    assert predicted_tokens_per_s(SHAPE, PARTS, **asked) == pytest.approx(tokens_per_step / step_s)


def test_an_eager_step_stands_in_until_a_compiled_one_is_timed() -> None:
    compiled = step_times(0.02, 0.02, 0.02)
    both = CpuTimes(PRODUCTS, eager=PARTS, compiled=compiled)
    assert parts_of(both, compiled=True) is compiled
    assert parts_of(both, compiled=False) is PARTS
    assert parts_of(CpuTimes(PRODUCTS, eager=PARTS), compiled=True) is PARTS
    assert parts_of(CpuTimes(PRODUCTS), compiled=False) is None


def test_a_compiled_block_is_timed_by_itself_on_an_idle_machine() -> None:
    block = BlockTimes(eager_s=0.4, compiled_s=0.3, compile_s=9.0, wall_s=0.25)
    assert compiled_block(block, PARTS, micro_batch=4) == PartTime(0.25)
    assert compiled_block(replace(block, wall_s=None), PARTS, micro_batch=4) == PartTime(0.3)


def test_of_a_comparison_on_a_busy_machine_the_ratio_holds() -> None:
    busy = BlockTimes(eager_s=0.8, compiled_s=0.6, compile_s=9.0, wall_s=0.9, ran_share=0.5)
    found = compiled_block(busy, PARTS, micro_batch=8)  # that of PARTS is 4
    assert found.seconds == pytest.approx(2 * 0.75 * 0.05)
    assert found.is_contended
    assert compiled_block(busy, None, micro_batch=4).seconds == 0.9


def test_products_count_in_the_precision_of_the_plan() -> None:
    rates = [
        product_flops_per_s(PRODUCTS, "fp32", "highest"),
        product_flops_per_s(PRODUCTS, "fp32", "medium"),
        product_flops_per_s(PRODUCTS, "bf16", "medium"),
    ]
    assert rates == [1e9, 2e9, 4e9]


@pytest.mark.parametrize("module", [forecast, model_size, numerics])
def test_no_time_is_a_share_of_the_products_rate(module: object) -> None:
    """What a step needs beside products differs by machine: from a fifth to six times them."""
    source = inspect.getsource(module)  # type: ignore[arg-type]
    assert "flops_per_s" not in source
    assert "flops_per_token" not in source
    assert "product_flops" not in inspect.getsource(throughput.predicted_step_s)
