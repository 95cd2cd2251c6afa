"""Predict how fast a CPU will train, from measurements. Pure: nothing is timed here.

    micro_batch_s = L · block_s + head_s
    head_s        = 1.2 · 6·n·V·C / (FLOP/s of the measured products, in the plan's precision)
    optimizer_s   = 30 bytes · parameters / 10 GB/s + (FLOPs of Muon's products) / (the same rate)
    step_s        = accumulation · micro_batch_s + optimizer_s
    tokens/s      = processes · accumulation · n / step_s

Beside adapters the head has four products and no gradient, 4·n·V·C, and only adapters are updated.

of n tokens in a micro-batch, L blocks, V vocabulary rows and C hidden features; block_s is one
block forward and backward on a micro-batch, compiled or eager as the run computes it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from llmtrain.choice import MatmulPrecision, OptimizerName, Precision
from llmtrain.machine.facts import CpuTimes, MatmulTimes
from llmtrain.plan.planner import Plan
from llmtrain.plan.workload import Workload
from llmtrain.profile.lora_shape import LoraShape
from llmtrain.profile.shape import ModelShape, muon_flops

ProductKind = Literal["fp32", "medium", "bf16"]

# The head's time over that of its products alone: the softmax over the vocabulary. An estimate.
HEAD_OVERHEAD = 1.2
# What clipping and AdamW move for a parameter, in fp32: the gradient is read twice, the weight and
# both moments are read and written. About 32, some of it in cache.
OPTIMIZER_BYTES_PER_PARAMETER = 30
# Memory bandwidth of a few cores. An estimate: it is not measured.
MEMORY_BYTES_PER_S = 10e9


@dataclass(frozen=True, slots=True)
class StepWork:
    """The decisions of a plan that a step's time depends on."""

    micro_batch: int  # sequences
    accumulation: int  # micro-batches that one process computes in a step
    processes: int
    precision: Precision
    matmul_precision: MatmulPrecision
    compiled: bool
    optimizer: OptimizerName
    lora: LoraShape | None = None


def step_work(plan: Plan, workload: Workload) -> StepWork:
    """Return what a step's time depends on."""
    return StepWork(
        optimizer=workload.optimizer,
        lora=workload.lora,
        micro_batch=plan.micro_batch.value,
        accumulation=plan.accumulation.value,
        processes=plan.processes.value,
        precision=plan.precision.value,
        matmul_precision=plan.matmul_precision.value,
        compiled=plan.compile.value,
    )


def predicted_tokens_per_s(shape: ModelShape, work: StepWork, times: CpuTimes) -> float | None:
    """Predict the tokens per second of all processes; None where no block was measured."""
    step_s = predicted_step_s(shape, work, times)
    if step_s is None:
        return None
    return work.processes * work.accumulation * work.micro_batch * shape.context / step_s


def predicted_step_s(shape: ModelShape, work: StepWork, times: CpuTimes) -> float | None:
    """Predict the seconds of one optimizer step; None where no block was measured."""
    if times.block is None:
        return None
    block_s = times.block.compiled_s if work.compiled else times.block.eager_s
    rate = product_flops_per_s(times.matmul, work)
    micro_batch_s = shape.num_layers * block_s + _head_s(shape, work, rate)
    return work.accumulation * micro_batch_s + _optimizer_s(shape, work, rate)


def product_flops_per_s(products: MatmulTimes, work: StepWork) -> float:
    """Return the rate of the measured products in the plan's precision."""
    return (
        products.flops
        / seconds_by_kind(products)[product_kind(work.precision, work.matmul_precision)]
    )


def product_kind(precision: Precision, matmul_precision: MatmulPrecision) -> ProductKind:
    """Return which of the measured products a precision uses."""
    if precision == "bf16":
        return "bf16"
    return "medium" if matmul_precision == "medium" else "fp32"


def seconds_by_kind(products: MatmulTimes) -> dict[ProductKind, float]:
    """Return the products' seconds in each precision."""
    return {"fp32": products.fp32_s, "medium": products.medium_s, "bf16": products.bf16_s}


def _head_s(shape: ModelShape, work: StepWork, flops_per_s: float) -> float:
    tokens = work.micro_batch * shape.context
    products = 3 if work.lora is None else 2  # no gradient of the head beside adapters
    flops = 2 * products * tokens * shape.vocab_size * shape.hidden_size
    return HEAD_OVERHEAD * flops / flops_per_s


def _optimizer_s(shape: ModelShape, work: StepWork, flops_per_s: float) -> float:
    trained = shape.parameters if work.lora is None else work.lora.parameters(shape)
    moved_s = OPTIMIZER_BYTES_PER_PARAMETER * trained / MEMORY_BYTES_PER_S
    return moved_s + (muon_flops(shape) / flops_per_s if work.optimizer == "muon" else 0.0)
