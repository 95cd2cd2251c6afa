"""Each decision about numerics: precision, kernels, compilation. Pure, from facts and timings."""

from __future__ import annotations

import math
from dataclasses import replace

from llmtrain.choice import (
    AttentionKernel,
    BlockKernels,
    Choice,
    DeviceKind,
    LossKernel,
    MatmulPrecision,
    Precision,
    Sharding,
)
from llmtrain.errors import UsageError
from llmtrain.machine.facts import FASTER_RATIO, CpuTimes, Facts, MatmulTimes, StepTimes
from llmtrain.ops.chunk_sizes import NATIVE_WIDTH_MULTIPLE
from llmtrain.plan.throughput import predicted_tokens_per_s
from llmtrain.plan.workload import Workload
from llmtrain.profile.schema import DeviceSection

# Of eager training: compiled it takes a fifth to two fifths less, after up to 20 s of compilation,
# and native kernels are compiled in some 15 s. A run for a time gives of that time. For another it
# is CPU time, which repeated measurements find alike also beside other programs: a run computes the
# same bits each time it is started.
_WORTH_COMPILING_TIME_S, _WORTH_COMPILING_CPU_S = 120.0, 60.0
_WORTH_NATIVE_TIME_S, _WORTH_NATIVE_CPU_S = 60.0, 30.0
_LEAST_FLEX_HEAD_DIM = 16  # its kernels multiply tiles of 16 features


def choose_precision(
    facts: Facts, options: DeviceSection, kind: DeviceKind, times: MatmulTimes | None
) -> Choice[Precision]:
    """Choose the type of matrix products; on a CPU bf16 where it was measured to be faster."""
    if options.precision != "auto":
        return _asked_precision(facts, options.precision, kind)
    if kind == "cuda":
        if all(gpu.supports_bf16 for gpu in facts.of_kind("cuda")):
            return Choice("bf16", "the GPU multiplies bf16 natively")
        return Choice("fp16", "the GPU has no bf16; the loss is scaled")
    if kind == "mps":
        return Choice("fp32", "half precision is no faster on MPS and less tested")
    if times is None:
        return Choice("fp32", "not measured on this CPU")
    figures = _figures(times)
    medium_is_faster = _is_faster(times.medium_s, times.bf16_s)
    if _is_faster(times.bf16_s, times.fp32_s) and not medium_is_faster:
        return Choice("bf16", f"faster than fp32: {figures}; weights stay fp32")
    return Choice("fp32", f"bf16 is not clearly faster: {figures}")


def _is_faster(seconds: float, standing_s: float) -> bool:
    """Return True if a way is faster than the standing choice by more than noise."""
    return seconds < FASTER_RATIO * standing_s


def _figures(times: MatmulTimes) -> str:
    milliseconds = {
        "bf16": times.bf16_s,
        "fp32 by bf16 passes": times.medium_s,
        "fp32": times.fp32_s,
    }
    timed = ", ".join(f"{name} {1e3 * seconds:.1f} ms" for name, seconds in milliseconds.items())
    return f"{timed} for two layers forward and backward, measured here"


def _asked_precision(facts: Facts, precision: Precision, kind: DeviceKind) -> Choice[Precision]:
    if precision == "fp16" and kind == "cpu":
        raise UsageError(
            "device.precision fp16: a CPU computes fp16 20 to 100 times slower than fp32",
            hint="--set device.precision=auto",
        )
    if precision == "fp16" and kind == "mps":
        raise UsageError(
            "device.precision fp16: gradients cannot be scaled on MPS",
            hint="--set device.precision=auto",
        )
    gpus = facts.of_kind(kind) if kind != "cpu" else ()
    if precision == "bf16" and not all(gpu.supports_bf16 for gpu in gpus):
        raise UsageError(
            "device.precision bf16: this GPU has none", hint="--set device.precision=auto"
        )
    return Choice(precision, "asked for")


def choose_matmul_precision(
    options: DeviceSection, kind: DeviceKind, precision: Precision, times: MatmulTimes | None
) -> Choice[MatmulPrecision]:
    """Choose how fp32 products are computed; on a CPU by bf16 passes only if it may choose."""
    if kind == "cuda":
        return Choice("high", "products that stay fp32 use TF32")
    if kind == "cpu" and options.precision == "fp32":
        return Choice("highest", "full fp32 products, as fp32 was asked for")
    if kind == "cpu" and precision == "fp32" and times is not None:
        figures = f"{1e3 * times.medium_s:.1f} ms against {1e3 * times.fp32_s:.1f} ms, measured"
        if _is_faster(times.medium_s, times.fp32_s):
            return Choice("medium", f"faster fp32 products: {figures} here")
        return Choice("highest", f"medium is not clearly faster: {figures} here")
    return Choice("highest", "full fp32 products")


def choose_compilation(
    facts: Facts,
    options: DeviceSection,
    kind: DeviceKind,
    workload: Workload,
    times: CpuTimes | None,
    processes: int = 1,
) -> Choice[bool]:
    """Choose whether blocks are compiled. Raises UsageError where a compiler is missing."""
    if options.compile != "auto":
        return _asked_compilation(facts, options.compile, kind)
    if kind == "cuda":
        if facts.has_triton:
            return Choice(True, "fused kernels; Triton is installed")
        return Choice(False, "Triton is not installed")
    if kind == "mps":
        return Choice(False, "eager: torch.compile is experimental on MPS")
    if facts.cxx_compiler is None:
        return Choice(False, "eager: no C++ compiler was found")
    if times is None:
        return Choice(False, "eager: not measured on this CPU")
    return _measured_compilation(workload, times, processes)


def missing_to_compile(facts: Facts, kind: DeviceKind) -> str | None:
    """Return what torch.compile needs on a device and does not find; None: it works."""
    if kind == "cpu" and facts.cxx_compiler is None:
        return "a C++ compiler"
    return "Triton" if kind == "cuda" and not facts.has_triton else None


def _asked_compilation(facts: Facts, asked: bool, kind: DeviceKind) -> Choice[bool]:
    missing = missing_to_compile(facts, kind)
    if asked and missing:
        raise UsageError(
            f"device.compile true: torch.compile needs {missing}, which was not found",
            hint="--set device.compile=auto",
        )
    return Choice(asked, "asked for")


def _measured_compilation(workload: Workload, times: CpuTimes, processes: int) -> Choice[bool]:
    if times.compile_failure is not None:
        return Choice(False, f"eager: compiling failed: {times.compile_failure}")
    limits = _WORTH_COMPILING_TIME_S, _WORTH_COMPILING_CPU_S
    if not _is_long(workload, times.eager, processes, *limits):
        run_s = workload.time_s or _run_s(workload, times.eager, processes)
        return Choice(False, f"eager: the run takes about {run_s:.0f} s, and compiling up to 20 s")
    block = times.block
    if block is None:
        return Choice(True, "the run is long enough; compared with eager when it starts")
    figures = (
        f"one block takes {1e3 * block.compiled_s:.0f} ms against {1e3 * block.eager_s:.0f} ms "
        "eager, measured here"
    )
    if _is_faster(block.eager_s, block.compiled_s):
        return Choice(False, f"eager: {figures}")
    # Compiled is the standing choice, as it halves the activations.
    return Choice(True, f"{figures}; compiling took {block.compile_s:.0f} s")


def _is_long(
    workload: Workload, parts: StepTimes | None, processes: int, time_s: float, cpu_s: float
) -> bool:
    """Return whether a run takes so long, also if that is unknown or it has no end.

    Unknown: only a compiled step fits the memory.
    """
    if workload.time_s is not None:
        return workload.time_s >= time_s
    return parts is None or _run_s(workload, parts.by_cpu(), processes) >= cpu_s


def _run_s(workload: Workload, parts: StepTimes | None, processes: int) -> float:
    """Return about how long the run lasts by these parts; infinity if that is unknown."""
    if workload.tokens is None or parts is None:
        return math.inf
    return workload.tokens / predicted_tokens_per_s(
        workload.shape,
        parts,
        tokens_per_step=workload.tokens_per_step,
        processes=processes,
    )


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
) -> Choice[AttentionKernel]:
    """Choose the attention kernel.

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
        _refuse_native("device.attention", kind, precision, times)
    if options.attention != "auto":
        return Choice(options.attention, "asked for")
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
        if _is_faster(native_s, min(blocks_s, sdpa_s)):
            return Choice("native", f"faster: {figures}")
    if _is_faster(blocks_s, sdpa_s):
        return Choice("blocks", f"faster: {figures}")
    return Choice("sdpa", f"blocks are not clearly faster: {figures}")


def without_native(options: DeviceSection) -> DeviceSection:
    """Return the options of the same run without native kernels."""
    attention = "auto" if options.attention == "native" else options.attention
    return options.model_copy(update={"attention": attention, "loss": "chunks"})


def wants_native(
    facts: Facts, options: DeviceSection, workload: Workload, times: CpuTimes, processes: int = 1
) -> bool:
    """Return whether native kernels are compiled and compared: for bf16, if the run is long enough.

    It goes by how long the run takes without them, and not by whether they have been compiled
    before, so that the same run computes the same bits each time.
    """
    if choose_precision(facts, options, "cpu", times.matmul).value != "bf16":
        return False
    asked = (options.attention, options.loss)
    limits = _WORTH_NATIVE_TIME_S, _WORTH_NATIVE_CPU_S
    is_long = _is_long(workload, times.plain, processes, *limits)
    return "native" in asked or ("auto" in asked and is_long)


def times_to_plan_with(
    facts: Facts, options: DeviceSection, workload: Workload, times: CpuTimes, processes: int
) -> CpuTimes:
    """Return the times that a plan goes by: without those of native kernels for a short run."""
    if wants_native(facts, options, workload, times, processes):
        return times
    attention = times.attention
    if attention is not None:
        attention = replace(attention, native_s=None)
    return replace(times, attention=attention, loss=None, native_missing=None)


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
    unfit = _unfit_for_native_loss(workload)
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
    if _is_faster(native_s, chunks_s):
        return Choice("native", f"faster: {figures}")
    return Choice("chunks", f"the native kernel is not clearly faster: {figures}")


def _unfit_for_native_loss(workload: Workload) -> str | None:
    """Return why a training cannot use the native loss; None: it can."""
    width = workload.shape.hidden_size
    if workload.lora is not None:
        return "it computes the gradient of the head, which adapters leave as it is"
    if workload.is_dpo:
        return "it has no weights for tokens, which pairs of answers need"
    if width % NATIVE_WIDTH_MULTIPLE:
        return f"model.hidden_size {width} is no multiple of {NATIVE_WIDTH_MULTIPLE}"
    return None


def choose_block_kernels(
    facts: Facts,
    options: DeviceSection,
    kind: DeviceKind,
    workload: Workload,
    precision: Precision,
    compiled: bool,
    own: Choice[bool],
) -> Choice[BlockKernels]:
    """Choose what computes norms, rotary positions and SwiGLU: torch, or own Triton kernels.

    `own`: whether a GPU is to use those.
    """
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
    option: str, kind: DeviceKind, precision: Precision, times: CpuTimes | None
) -> None:
    """Raise UsageError where native kernels that were asked for cannot be used."""
    reason = None
    if kind != "cpu":
        reason = f"made for a CPU, and the device is {kind}"
    elif precision != "bf16":
        reason = f"made for bf16, and the precision is {precision}"
    elif times is not None:
        reason = times.native_missing
    if reason is not None:
        raise UsageError(f"{option} native: {reason}", hint=f"--set {option}=auto")


def choose_keep_weight_casts(
    precision: str, micro_batches: int, sharding: Sharding = "replicate"
) -> Choice[bool]:
    """Choose whether half-precision copies of the weights are kept for a whole step."""
    if sharding == "shard":
        return Choice(False, "sharded weights are rounded before they are gathered")
    if precision == "fp32":
        return Choice(False, "fp32 weights need no cast")
    if micro_batches == 1:
        return Choice(False, "one micro-batch per step would use a copy once")
    return Choice(
        True, f"weights are rounded once per step, not in each of {micro_batches} micro-batches"
    )


def choose_grad_scaler(kind: DeviceKind, precision: str) -> Choice[bool]:
    """Choose whether the loss is scaled: for fp16 alone."""
    if precision == "fp16":
        return Choice(True, "fp16 gradients would underflow")
    if precision == "bf16":
        return Choice(False, "bf16 has fp32's range")
    return Choice(False, "fp32 gradients do not underflow")
