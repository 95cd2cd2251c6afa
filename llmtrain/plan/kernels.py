"""Decide which kernels compute attention, the loss and blocks. Pure, from facts and timings.

Native kernels of a CPU, where they were timed, stay unless torch's are clearly faster: they keep
less memory and need no compiling, and a tie, as on CPUs with AVX512_BF16, is decided alike each
time.
"""

from __future__ import annotations

from dataclasses import replace

from llmtrain.choice import (
    AttentionKernel,
    BlockKernels,
    Choice,
    DeviceKind,
    LossKernel,
    Precision,
)
from llmtrain.errors import UsageError
from llmtrain.machine.facts import BlockTimes, CpuTimes, Facts, StepTimes
from llmtrain.ops.chunk_sizes import NATIVE_WIDTH_MULTIPLE
from llmtrain.plan.numerics import choose_precision, is_faster, is_long
from llmtrain.plan.workload import Workload
from llmtrain.profile.schema import DeviceSection

# Of training without them. Compiling the kernels, once for a machine, took 37 s on two cores of a
# Xeon, so that its first run may be longer for it; comparing them takes seconds, once for a shape.
_WORTH_NATIVE_TIME_S, _WORTH_NATIVE_CPU_S = 30.0, 15.0
# Compiling a block, to compare it with a native one, takes up to 20 s.
_WORTH_COMPARING_S = 600.0


_ATTENTION_PRECISIONS: tuple[Precision, ...] = ("bf16", "fp32")  # of native kernels
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
        _refuse_native("device.attention", kind, precision, times, _ATTENTION_PRECISIONS)
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
        f"measured here{_without_native(times)}"
    )
    if native_s is not None:
        figures = f"native kernel {1e3 * native_s:.1f} ms, {figures}"
        if not is_faster(min(blocks_s, sdpa_s), native_s):
            return Choice("native", figures)
    if is_faster(blocks_s, sdpa_s):
        return Choice("blocks", f"faster: {figures}")
    return Choice("sdpa", f"blocks are not clearly faster: {figures}")


def without_native(options: DeviceSection) -> DeviceSection:
    """Return the options of the same run without native kernels."""
    attention = "auto" if options.attention == "native" else options.attention
    update = {"attention": attention, "loss": "chunks", "block_kernels": "torch"}
    return options.model_copy(update=update)


def wants_native(
    facts: Facts, options: DeviceSection, workload: Workload, times: CpuTimes, processes: int = 1
) -> bool:
    """Return whether native kernels are compiled and compared: if the run is long enough.

    It goes by how long the run takes without them, and not by whether they have been compiled
    before, so that the same run computes the same bits each time.
    """
    precision = choose_precision(facts, options, "cpu", times.matmul).value
    if precision not in _ATTENTION_PRECISIONS:
        return False
    asked = (options.attention, *((options.loss,) if precision == "bf16" else ()))
    limits = _WORTH_NATIVE_TIME_S, _WORTH_NATIVE_CPU_S
    lasts = is_long(workload, times.plain, processes, *limits)
    is_asked_for = "native" in (*asked, options.block_kernels)
    return is_asked_for or ("auto" in asked and lasts)


def times_to_plan_with(
    facts: Facts, options: DeviceSection, workload: Workload, times: CpuTimes, processes: int
) -> CpuTimes:
    """Return the times that a plan goes by: without those of native kernels for a short run."""
    if wants_native(facts, options, workload, times, processes):
        return times
    attention = times.attention
    if attention is not None:
        attention = replace(attention, native_s=None)
    return replace(times, attention=attention, loss=None, native=None, native_missing=None)


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
        _refuse_native("device.loss", kind, precision, times)
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
        missing = _without_native(times) if times is not None else ""
        return Choice("chunks", f"no other was measured on this CPU{missing}")
    native_s, chunks_s = times.loss.native_s, times.loss.chunks_s
    figures = (
        f"native kernel {1e3 * native_s:.0f} ms, chunks {1e3 * chunks_s:.0f} ms, measured here"
    )
    if is_faster(chunks_s, native_s):
        return Choice("chunks", f"faster: {figures}")
    return Choice("native", figures)


def unfit_for_native_loss(workload: Workload) -> str | None:
    """Return why a training cannot use the native loss; None: it can."""
    width = workload.shape.hidden_size
    if workload.is_dpo:
        return "it has no weights for tokens, which pairs of answers need"
    if width % NATIVE_WIDTH_MULTIPLE:
        return f"model.hidden_size {width} is no multiple of {NATIVE_WIDTH_MULTIPLE}"
    return None


def unfit_for_native_block(options: DeviceSection, workload: Workload) -> str | None:
    """Return why native kernels cannot compute the blocks of a training; None: they can."""
    shape = workload.shape
    if options.attention not in ("auto", "native"):
        return f"their attention is native, and device.attention is {options.attention}"
    if options.compile is True:
        return "they are not compiled, and device.compile is true"
    if options.sharding in ("shard", "hybrid"):
        return "they are for whole matrices, and the model is sharded"
    widths = {
        "model.hidden_size": shape.hidden_size,
        "model.intermediate_size": shape.intermediate_size,
        "heads times head_dim": shape.attention_width,
        "key heads times head_dim": shape.kv_width,
    }
    for name, width in widths.items():
        if width % NATIVE_WIDTH_MULTIPLE:
            return f"{name}, {width}, is no multiple of {NATIVE_WIDTH_MULTIPLE}"
    return None


def choose_native_block(
    options: DeviceSection,
    kind: DeviceKind,
    workload: Workload,
    precision: Precision,
    times: CpuTimes | None,
    processes: int,
) -> Choice[bool]:
    """Choose whether native kernels compute whole blocks of a CPU; by CPU times, as measured here.

    They stay unless eager blocks, or compiled ones where they were compared, are clearly faster.
    """
    asked, unfit = options.block_kernels, unfit_for_native_block(options, workload)
    if asked == "native":
        if unfit is not None:
            raise UsageError(
                f"device.block_kernels native: {unfit}", hint="--set device.block_kernels=auto"
            )
        _refuse_native("device.block_kernels", kind, precision, times)
        return Choice(True, "asked for")
    if asked == "triton" and kind == "cpu":
        raise UsageError(
            "device.block_kernels triton: made for CUDA, and the device is cpu",
            hint="--set device.block_kernels=auto",
        )
    if asked != "auto":
        return Choice(False, "asked for")
    if kind != "cpu" or precision != "bf16":
        return Choice(False, "the others are for bf16 on a CPU, or for CUDA")
    if unfit is not None:
        return Choice(False, f"not by native kernels: {unfit}")
    if times is None or times.native is None or times.eager is None:
        missing = _without_native(times) if times is not None else ""
        return Choice(False, f"no others were measured on this CPU{missing}")
    return _faster_block(workload, times.native, times.eager, times.block, processes)


def _faster_block(
    workload: Workload,
    native: StepTimes,
    eager: StepTimes,
    compiled: BlockTimes | None,
    processes: int,
) -> Choice[bool]:
    """Choose between native and eager blocks, and compiled ones in a run that lasts for minutes."""
    per_sequence = 1e3 / native.micro_batch, 1e3 / eager.micro_batch
    native_ms = per_sequence[0] * native.by_cpu().block.seconds
    eager_ms = per_sequence[1] * eager.by_cpu().block.seconds
    figures = f"native kernels take {native_ms:.1f} ms a block and sequence, torch's {eager_ms:.1f}"
    if is_faster(eager_ms, native_ms):
        return Choice(False, f"torch's are faster: {figures}, measured here")
    if compiled is None or not is_worth_comparing_native(workload, native, processes):
        return Choice(True, f"{figures}, measured here")
    compiled_ms = eager_ms * compiled.compiled_s / compiled.eager_s
    figures += f", compiled {compiled_ms:.1f}"
    if is_faster(compiled_ms, native_ms):
        return Choice(False, f"compiled is faster: {figures}, measured here")
    return Choice(True, f"{figures}, measured here")


def is_worth_comparing_native(workload: Workload, native: StepTimes, processes: int) -> bool:
    """Return whether a run by native kernels lasts long enough to compile a block, and compare."""
    return is_long(workload, native, processes, _WORTH_COMPARING_S, _WORTH_COMPARING_S)


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


def _without_native(times: CpuTimes) -> str:
    return f"; no native kernels: {times.native_missing}" if times.native_missing else ""


def _refuse_native(
    option: str,
    kind: DeviceKind,
    precision: Precision,
    times: CpuTimes | None,
    precisions: tuple[Precision, ...] = ("bf16",),
) -> None:
    """Raise UsageError where native kernels that were asked for cannot be used."""
    reason = None
    if kind != "cpu":
        reason = f"made for a CPU, and the device is {kind}"
    elif precision not in precisions:
        reason = f"made for {' and '.join(precisions)}, and the precision is {precision}"
    elif times is not None:
        reason = times.native_missing
    if reason is not None:
        raise UsageError(f"{option} native: {reason}", hint=f"--set {option}=auto")
