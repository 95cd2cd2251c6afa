"""Decide which kernels compute attention, the loss and blocks. Pure, from facts and timings."""

from __future__ import annotations

from llmtrain.choice import (
    AttentionKernel,
    BlockKernels,
    Choice,
    DeviceKind,
    LossKernel,
    Precision,
)
from llmtrain.errors import UsageError
from llmtrain.machine.facts import CpuTimes, Facts
from llmtrain.plan.native_kernels import (
    ATTENTION_PRECISIONS,
    refuse_native,
    unfit_for_native_loss,
    why_native,
    why_without_native,
)
from llmtrain.plan.numerics import is_faster
from llmtrain.plan.workload import Workload
from llmtrain.profile.schema import DeviceSection

_LEAST_FLEX_HEAD_DIM = 16  # its kernels multiply tiles of 16 features


def can_use_flex(
    workload: Workload, kind: DeviceKind, precision: Precision, compiled: bool
) -> bool:
    """Return whether FlexAttention works and pays: without a mask torch's own kernel is faster."""
    compiles = kind == "cuda" and compiled and precision == "bf16"
    return workload.mask_documents and compiles and workload.shape.head_dim >= _LEAST_FLEX_HEAD_DIM


def choose_attention(
    options: DeviceSection,
    kind: DeviceKind,
    times: CpuTimes | None,
    *,
    masked: bool = False,
    can_use_flex: bool = False,
    precision: Precision = "bf16",
    native_block: bool = False,
) -> Choice[AttentionKernel]:
    """Choose the attention kernel.

    `native_block`: native kernels compute whole blocks.

    `masked`: attention stays within documents, in the measurements too. `can_use_flex` is what
    the function of that name returned.
    """
    if options.attention == "flex" and not can_use_flex:
        raise UsageError(
            "device.attention flex: made for data.mask_documents, compiled, in bf16, on CUDA, "
            f"with a head_dim of {_LEAST_FLEX_HEAD_DIM} or more",
            hint="--set device.attention=auto",
        )
    if options.attention == "blocks" and kind != "cpu":
        raise UsageError(
            f"device.attention blocks: made for a CPU, and the device is {kind}",
            hint="--set device.attention=auto",
        )
    if options.attention == "native":
        refuse_native("device.attention", kind, precision, times, ATTENTION_PRECISIONS)
    if options.attention != "auto":
        return Choice(options.attention, "asked for")
    if native_block:
        return Choice("native", "that of a block by native kernels")
    if can_use_flex:
        return Choice("flex", "compiled for documents: blocks that are masked entirely are skipped")
    if kind != "cpu":
        how = ", by a mask of all pairs of tokens" if masked else ""
        return Choice("sdpa", f"the device's own kernel{how}")
    if times is None or times.attention is None:
        return Choice("sdpa", "not measured on this CPU")
    blocks_s, sdpa_s = times.attention.blocks_s, times.attention.sdpa_s
    native_s = times.attention.native_s
    figures = (
        f"products over blocks {1e3 * blocks_s:.1f} ms, torch's kernel {1e3 * sdpa_s:.1f} ms, "
        f"measured here{why_without_native(times)}"
    )
    if native_s is not None:
        figures = f"native kernel {1e3 * native_s:.1f} ms, {figures}"
        fastest_s = min(blocks_s, sdpa_s)
        if not is_faster(fastest_s, native_s):
            return Choice("native", why_native(native_s, fastest_s, figures))
    if is_faster(blocks_s, sdpa_s):
        return Choice("blocks", f"faster: {figures}")
    return Choice("sdpa", f"blocks are not clearly faster: {figures}")


def choose_loss(
    facts: Facts,
    options: DeviceSection,
    kind: DeviceKind,
    workload: Workload,
    precision: Precision,
    times: CpuTimes | None,
    own: Choice[bool],
) -> Choice[LossKernel]:
    """Choose how the loss is computed: in chunks of logits, and on which kernels.

    `own`: whether a GPU is to use our own.
    """
    if options.loss == "triton":
        _refuse_triton("device.loss", facts, kind, own)
    unfit = unfit_for_native_loss(workload)
    if options.loss == "native":
        if unfit is not None:
            raise UsageError(f"device.loss native: {unfit}", hint="--set device.loss=auto")
        refuse_native("device.loss", kind, precision, times)
    if options.loss != "auto":
        return Choice(options.loss, "asked for")
    # In fp16 small probabilities vanish, unless they are divided by their sum afterwards.
    if kind == "cuda" and facts.has_triton and precision != "fp16":
        if not own.value:
            return Choice("chunks", own.reason)
        return Choice("triton", f"one kernel makes logits their own gradient; {own.reason}")
    if kind != "cpu":
        return Choice("chunks", "the device's own products")
    if unfit is not None:
        return Choice("chunks", f"not by the native kernel: {unfit}")
    if times is None or times.loss is None:
        missing = why_without_native(times) if times is not None else ""
        return Choice("chunks", f"no other was measured on this CPU{missing}")
    native_s, chunks_s = times.loss.native_s, times.loss.chunks_s
    figures = (
        f"native kernel {1e3 * native_s:.0f} ms, chunks {1e3 * chunks_s:.0f} ms, measured here"
    )
    if is_faster(chunks_s, native_s):
        return Choice("chunks", f"faster: {figures}")
    return Choice("native", why_native(native_s, chunks_s, figures))


def choose_block_kernels(
    facts: Facts,
    options: DeviceSection,
    kind: DeviceKind,
    workload: Workload,
    precision: Precision,
    compiled: bool,
    own: Choice[bool],
    native_block: Choice[bool],
) -> Choice[BlockKernels]:
    """Choose what computes a block: torch, native kernels of a CPU, or own ones of a GPU.

    `own`: whether a GPU is to use those; `native_block`: what `choose_native_block` returned.
    """
    if kind == "cpu":
        return Choice("native" if native_block.value else "torch", native_block.reason)
    asked = options.block_kernels
    if asked == "triton":
        _refuse_triton("device.block_kernels", facts, kind, own)
    if workload.lora is not None:
        if asked == "triton":
            raise UsageError(
                "device.block_kernels triton: made for matrices without adapters",
                hint="--set device.block_kernels=auto",
            )
        return Choice("torch", "the others are for matrices without adapters")
    if asked != "auto":
        return Choice(asked, "asked for")
    if kind != "cuda":
        return Choice("torch", "the others are for CUDA")
    if not compiled or precision == "fp32":
        return Choice("torch", "the others are for compiled blocks in half precision")
    if not own.value:
        return Choice("torch", own.reason)
    return Choice("triton", f"one pass over memory each, forward and backward; {own.reason}")


def _refuse_triton(option: str, facts: Facts, kind: DeviceKind, own: Choice[bool]) -> None:
    """Raise UsageError where Triton kernels that were asked for cannot be used."""
    reason = None if own.value else own.reason
    if not facts.has_triton:
        reason = "Triton is not installed"
    if kind != "cuda":
        reason = f"made for CUDA, and the device is {kind}"
    if reason is not None:
        raise UsageError(f"{option} triton: {reason}", hint=f"--set {option}=auto")
