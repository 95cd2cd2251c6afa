"""Predict how fast a machine will train, from measurements. Pure: nothing is timed here.

    step_s    = micro-batches · (L · block_s + head_s) + update_s
    tokens/s  = tokens per step / step_s

of L blocks; a process computes its share of the step's micro-batches. Each part was timed as the
run computes it (`llmtrain.model.step_timing`), so nothing here is a share of a peak.
"""

from __future__ import annotations

from typing import Literal

from llmtrain.choice import MatmulPrecision, Precision
from llmtrain.machine.facts import BlockTimes, CpuTimes, MatmulTimes, PartTime, StepTimes
from llmtrain.profile.shape import ModelShape

ProductKind = Literal["fp32", "medium", "bf16"]


def predicted_tokens_per_s(
    shape: ModelShape,
    parts: StepTimes,
    *,
    tokens_per_step: int,
    processes: int = 1,
) -> float:
    """Predict the tokens per second of all processes."""
    return tokens_per_step / predicted_step_s(
        shape,
        parts,
        tokens_per_step=tokens_per_step,
        processes=processes,
    )


def predicted_step_s(
    shape: ModelShape,
    parts: StepTimes,
    *,
    tokens_per_step: int,
    processes: int = 1,
) -> float:
    """Predict the seconds of one optimizer step."""
    micro_batches = tokens_per_step / (processes * parts.micro_batch * shape.context)
    return micro_batches * micro_batch_s(shape, parts) + parts.update.seconds


def micro_batch_s(shape: ModelShape, parts: StepTimes) -> float:
    """Return the seconds of one micro-batch, forward and backward."""
    return shape.num_layers * parts.block.seconds + parts.head.seconds


def parts_of(
    times: CpuTimes, *, compiled: bool, native_block: bool = False, keeps_gates: bool = False
) -> StepTimes | None:
    """Return the parts of a step in the way that a plan computes it.

    Those of an eager step while a compiled or a native one is not measured; None if nothing is.
    `keeps_gates`: where native kernels compute blocks.
    """
    if native_block and keeps_gates and times.native_keeping is not None:
        return times.native_keeping
    if native_block and times.native is not None:
        return times.native
    return times.compiled if compiled and times.compiled is not None else times.eager


def compiled_block(block: BlockTimes, eager: StepTimes | None, micro_batch: int) -> PartTime:
    """Return the time of a compiled block on a micro-batch.

    If it was compared with an eager one on a busy machine, their ratio holds, and not their times.
    """
    if block.is_contended and eager is not None:
        ratio = block.compiled_s / block.eager_s * micro_batch / eager.micro_batch
        return PartTime(ratio * eager.block.seconds, block.ran_share)
    return PartTime(block.compiled_s if block.wall_s is None else block.wall_s, block.ran_share)


def product_flops_per_s(
    products: MatmulTimes, precision: Precision, matmul_precision: MatmulPrecision
) -> float:
    """Return the rate of the measured products in the plan's precision."""
    return products.flops / seconds_by_kind(products)[product_kind(precision, matmul_precision)]


def product_kind(precision: Precision, matmul_precision: MatmulPrecision) -> ProductKind:
    """Return which of the measured products a precision uses."""
    if precision == "bf16":
        return "bf16"
    return "medium" if matmul_precision == "medium" else "fp32"


def seconds_by_kind(products: MatmulTimes) -> dict[ProductKind, float]:
    """Return the products' seconds in each precision."""
    return {"fp32": products.fp32_s, "medium": products.medium_s, "bf16": products.bf16_s}
