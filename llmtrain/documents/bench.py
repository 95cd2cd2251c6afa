"""Measured times of a CPU."""

from __future__ import annotations

from llmtrain.choice import (
    ActivationCheckpointing,
    AttentionKernel,
    BlockKernels,
    LossKernel,
    MatmulPrecision,
    Precision,
)
from llmtrain.documents.base import Document, Number, Part, Reasoned, Text, key
from llmtrain.machine.facts import StepTimes


class Product(Part):
    """Matrix products of two layers, forward and backward."""

    seconds: float = key("one pass")
    gflops: float = key("billions of operations a second")


class Products(Part):
    """Matrix products by precision."""

    fp32: Product = key("in fp32")
    medium: Product = key("in fp32, by bf16 passes inside")
    bf16: Product = key("in bf16")


class Attention(Part):
    """Attention forward and backward by each kernel."""

    sdpa_s: float = key("torch's kernel, seconds")
    blocks_s: float = key("products over blocks of rows, seconds")
    native_s: float | None = key("the native kernel, seconds; null: there is none")


class Loss(Part):
    """The loss and its gradients, for some tokens in bf16."""

    chunks_s: float = key("in chunks of logits, seconds")
    native_s: float = key("the native kernel, seconds")


class Block(Part):
    """One block forward and backward on a micro-batch."""

    eager_s: float = key("eager, seconds")
    compiled_s: float = key("compiled, seconds")
    compile_s: float = key("compiling it, seconds")
    load_s: float | None = key("loading its compiled code, seconds; null: not timed")
    import_s: float | None = key(
        "importing torch's compiler and probing the CPU, seconds; null: not timed"
    )


class StepParts(Part):
    """The parts of a training step."""

    block_s: float = key("one block, forward and backward, on a micro-batch, seconds")
    head_s: float = key("embedding, final norm, head and loss, likewise")
    update_s: float = key("clipping, optimizer and rounding of the weights, of the whole model")
    contended: bool = key("whether other programs kept the cores busy: measured again by a run")


class MeasuredPlan(Part):
    """The decisions that the times bear on; see `Plan`."""

    precision: Reasoned[Precision] = key("of matrix products")
    matmul_precision: Reasoned[MatmulPrecision] = key("torch's setting for products in fp32")
    attention: Reasoned[AttentionKernel] = key("the kernel")
    loss: Reasoned[LossKernel] = key("how the loss is computed")
    block_kernels: Reasoned[BlockKernels] = key("what computes a block beside its attention")
    compile: Reasoned[bool] = key("whether blocks are compiled")
    threads: Reasoned[int] = key("of one process")
    micro_batch: Reasoned[int] = key("sequences of one forward and backward")
    activation_checkpointing: Reasoned[ActivationCheckpointing] = key(
        "what the backward computes again"
    )


class BenchCpu(Part):
    """The measured CPU."""

    model: Text | None = key("its name; null: unknown")
    cores: int = key("physical cores that may be used")
    threads: int = key("that were used")


class PredictedSpeed(Part):
    """The speed that training is predicted to have."""

    tokens_per_s: Number = key("of all processes")
    step_s: float = key("seconds of an optimizer step")


class DeviceBench(Document):
    """`llmtrain device bench`: this CPU, measured at a profile's work."""

    profile: Reasoned[Text] = key("at the work of which profile, and why that")
    cpu: BenchCpu = key("what was measured")
    products: Products = key("matrix products by precision")
    attention: Attention | None = key("null: not measured")
    loss: Loss | None = key("null: there are no native kernels to compare")
    native_missing: Text | None = key(
        "why there are no native kernels; null: there are, or the work needs none"
    )
    block: Block | None = key("null: not measured, or it could not be compiled")
    eager: StepParts | None = key("null: not measured, as only a compiled step fits the memory")
    compiled: StepParts | None = key("null: not measured, or it could not be compiled")
    native: StepParts | None = key("blocks by native kernels; null: not measured")
    native_keeping: StepParts | None = key(
        "blocks by native kernels that keep their gates for the backward; null: not measured"
    )
    compile_failure: Text | None = key("why a block could not be compiled; null: it could")
    plan: MeasuredPlan = key("the decisions that follow")
    predicted: PredictedSpeed | None = key("null: no step was measured as the plan computes it")


def step_parts(times: StepTimes | None) -> dict[str, object] | None:
    """Return the values of `StepParts`."""
    if times is None:
        return None
    return {
        "block_s": times.block.seconds,
        "head_s": times.head.seconds,
        "update_s": times.update.seconds,
        "contended": times.is_contended,
    }
