"""Decide about the native kernels of a CPU: when a run has them, and whether they compute blocks.

They stay where they were timed, unless torch's are clearly faster: they keep less memory and need
no compiling by torch, and a near-tie, as on CPUs with AVX512_BF16, is decided alike each time.
Pure, from facts and timings.
"""

from __future__ import annotations

from dataclasses import replace

from llmtrain.choice import Choice, DeviceKind, Precision
from llmtrain.errors import UsageError
from llmtrain.machine.facts import BlockTimes, CpuTimes, Facts, StepTimes
from llmtrain.ops.chunk_sizes import NATIVE_WIDTH_MULTIPLE
from llmtrain.plan.numerics import choose_precision, is_faster, is_long
from llmtrain.plan.workload import Workload
from llmtrain.profile.schema import DeviceSection

ATTENTION_PRECISIONS: tuple[Precision, ...] = ("bf16", "fp32")  # the other kernels: bf16
# Of training without them. Compiling the kernels, once for a machine, took 14 s on two Zen 4 cores,
# so that its first run may be longer for it; comparing them takes seconds, once for a shape.
_WORTH_NATIVE_TIME_S, _WORTH_NATIVE_CPU_S = 30.0, 15.0
# Compiling a block, to compare it with a native one, takes up to 20 s.
_WORTH_COMPARING_S = 600.0
# Of a block's time with gates computed again, at most which with them kept: they take a seventh
# more memory at the shape of cpu-small. It was 0.88 to 0.92 on two Zen 4 cores and 0.93 to 1.03 on
# two and sixteen of a Xeon with AMX. No bit depends on it, so that it may go by the time that
# passes, too: on two of those cores kept gates were faster only in their fastest calls.
_WORTH_KEEPING_GATES = 0.93


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
    if precision not in ATTENTION_PRECISIONS:
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
    return replace(
        times, attention=attention, loss=None, native=None, native_keeping=None, native_missing=None
    )


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
        refuse_native("device.block_kernels", kind, precision, times)
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
        missing = why_without_native(times) if times is not None else ""
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
        return Choice(True, why_native(native_ms, eager_ms, f"{figures}, measured here"))
    compiled_ms = eager_ms * compiled.compiled_s / compiled.eager_s
    figures += f", compiled {compiled_ms:.1f}"
    if is_faster(compiled_ms, native_ms):
        return Choice(False, f"compiled is faster: {figures}, measured here")
    fastest_ms = min(eager_ms, compiled_ms)
    return Choice(True, why_native(native_ms, fastest_ms, f"{figures}, measured here"))


def is_worth_comparing_native(workload: Workload, native: StepTimes, processes: int) -> bool:
    """Return whether a run by native kernels lasts long enough to compile a block, and compare."""
    return is_long(workload, native, processes, _WORTH_COMPARING_S, _WORTH_COMPARING_S)


def choose_keeping_gates(times: CpuTimes | None) -> Choice[bool]:
    """Choose whether native blocks keep their gates or compute them again, to the same bits.

    On a CPU whose products are fast compared with its memory, computing again is as fast.
    """
    again, keeping = (None, None) if times is None else (times.native, times.native_keeping)
    if again is None or keeping is None:
        return Choice(False, "gates are computed again; keeping them was not compared here")
    again_ms, keeping_ms = (
        1e3 * each.block.seconds / each.micro_batch for each in (again, keeping)
    )
    ratios = (
        kept.block.seconds / kept.micro_batch * other.micro_batch / other.block.seconds
        for kept, other in ((keeping, again), (keeping.by_cpu(), again.by_cpu()))
    )
    is_worth_it = max(ratios) < _WORTH_KEEPING_GATES
    what = "kept gates are faster" if is_worth_it else "gates are computed again: hardly slower"
    return Choice(
        is_worth_it,
        f"{what}: {keeping_ms:.1f} ms a block and sequence kept, {again_ms:.1f} computed again, "
        "measured here",
    )


def why_native(native: float, other: float, figures: str) -> str:
    """Return the reason for native kernels, from their time and the least of torch's."""
    return f"{'faster' if native < other else 'torch is not clearly faster'}: {figures}"


def why_without_native(times: CpuTimes) -> str:
    """Return the end of a reason: why there are no native kernels; empty where there are."""
    return f"; no native kernels: {times.native_missing}" if times.native_missing else ""


def refuse_native(
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
