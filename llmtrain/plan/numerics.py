"""Decide about precision and compilation. Pure, from facts and timings."""

from __future__ import annotations

import math

from llmtrain.choice import (
    BlockKernels,
    Choice,
    DeviceKind,
    MatmulPrecision,
    Precision,
    Sharding,
)
from llmtrain.errors import UsageError
from llmtrain.machine.facts import FASTER_RATIO, CpuTimes, Facts, MatmulTimes, StepTimes
from llmtrain.plan.throughput import predicted_tokens_per_s
from llmtrain.plan.workload import Workload
from llmtrain.profile.schema import DeviceSection

# Of eager training: compiled it takes a fifth to two fifths less, after up to 20 s of compilation.
# A run for a time gives of that time. For another it is CPU time, which repeated measurements find
# alike also beside other programs: a run computes the same bits each time it is started.
_WORTH_COMPILING_TIME_S, _WORTH_COMPILING_CPU_S = 120.0, 60.0


_NO_NATIVE_BLOCK = Choice(False, "not for this device")


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
        return Choice("fp32", "half precision is not tested on MPS")
    if times is None:
        return Choice("fp32", "not measured on this CPU")
    figures = _figures(times)
    medium_is_faster = is_faster(times.medium_s, times.bf16_s)
    if is_faster(times.bf16_s, times.fp32_s) and not medium_is_faster:
        return Choice("bf16", f"faster than fp32: {figures}; weights stay fp32")
    return Choice("fp32", f"bf16 is not clearly faster: {figures}")


def is_faster(seconds: float, standing_s: float) -> bool:
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
        if is_faster(times.medium_s, times.fp32_s):
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
    native_block: Choice[bool] = _NO_NATIVE_BLOCK,
) -> Choice[bool]:
    """Choose whether blocks are compiled. Raises UsageError where a compiler is missing.

    `native_block`: whether native kernels compute blocks, which leave nothing to compile.
    """
    if native_block.value:
        return Choice(False, "eager: native kernels compute all of a block")
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
    if not is_long(workload, times.eager, processes, *limits):
        run_s = workload.time_s or _run_s(workload, times.eager, processes)
        return Choice(False, f"eager: the run takes about {run_s:.0f} s, and compiling up to 20 s")
    block = times.block
    if block is None:
        return Choice(True, "the run is long enough; compared with eager when it starts")
    figures = (
        f"one block takes {1e3 * block.compiled_s:.0f} ms against {1e3 * block.eager_s:.0f} ms "
        "eager, measured here"
    )
    if is_faster(block.eager_s, block.compiled_s):
        return Choice(False, f"eager: {figures}")
    # Compiled is the standing choice, as it halves the activations.
    return Choice(True, f"{figures}; compiling took {block.compile_s:.0f} s")


def is_long(
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


def choose_keep_weight_casts(
    precision: str,
    micro_batches: int,
    sharding: Sharding = "replicate",
    block_kernels: BlockKernels = "torch",
) -> Choice[bool]:
    """Choose whether half-precision copies of the weights are kept between uses."""
    if sharding != "replicate":
        return Choice(False, "sharded weights are rounded before they are gathered")
    if precision == "fp32":
        return Choice(False, "fp32 weights need no cast")
    if block_kernels == "native":
        return Choice(True, "native kernels write them as they update the weights")
    if micro_batches == 1:
        return Choice(False, "one micro-batch per step would use a copy once")
    return Choice(
        True, f"weights are rounded once per step, not in each of {micro_batches} micro-batches"
    )


def choose_grad_scaler(precision: str) -> Choice[bool]:
    """Choose whether the loss is scaled: for fp16 alone."""
    if precision == "fp16":
        return Choice(True, "fp16 gradients would underflow")
    if precision == "bf16":
        return Choice(False, "bf16 has fp32's range")
    return Choice(False, "fp32 gradients do not underflow")
