"""Decide between our own Triton kernels and torch's on a GPU. Pure, from timings.

Both choices, `device.block_kernels` and `device.loss`, go by the same comparison of whole steps.
"""

from __future__ import annotations

from llmtrain.choice import Choice
from llmtrain.machine.facts import FASTER_RATIO, GpuTimes, StepTimes
from llmtrain.plan.throughput import predicted_step_s
from llmtrain.plan.workload import Workload
from llmtrain.profile.schema import DeviceSection

# Compiling the other way, to compare the two, takes ten to twenty seconds.
_WORTH_COMPARING_S = 180.0


def without_own_kernels(options: DeviceSection) -> DeviceSection:
    """Return the options of the same run by torch's kernels, as far as it may choose."""
    kernels = "torch" if options.block_kernels == "auto" else options.block_kernels
    loss = "chunks" if options.loss == "auto" else options.loss
    return options.model_copy(update={"block_kernels": kernels, "loss": loss})


def asks_for_own(options: DeviceSection) -> bool:
    """Return whether any of our own kernels is asked for by name."""
    return "triton" in (options.block_kernels, options.loss)


def is_worth_comparing(workload: Workload, own: StepTimes, processes: int) -> bool:
    """Return whether a run lasts long enough to compare its kernels with torch's first."""
    if workload.time_s is not None or workload.tokens is None:
        return (workload.time_s or _WORTH_COMPARING_S) >= _WORTH_COMPARING_S
    steps = workload.tokens / workload.tokens_per_step
    return steps * _step_s(workload, own, processes) >= _WORTH_COMPARING_S


def choose_own_kernels(
    options: DeviceSection, workload: Workload, times: GpuTimes | None, processes: int
) -> Choice[bool]:
    """Choose whether a plan that may use our own kernels does; the reason has what was measured.

    They stay unless torch's are clearly faster, so that a run is computed alike each time. What was
    asked for is not compared.
    """
    if times is None:
        return Choice(True, "not compared on this GPU")
    if times.own_failure is not None:
        return Choice(False, f"our own kernels cannot run on this GPU: {times.own_failure}")
    if times.own is None or times.torch is None or asks_for_own(options):
        return Choice(True, "not compared on this GPU")
    own_s, torch_s = (_step_s(workload, parts, processes) for parts in (times.own, times.torch))
    figures = f"a step takes {1e3 * own_s:.0f} ms, by torch's {1e3 * torch_s:.0f} ms, measured here"
    if torch_s < FASTER_RATIO * own_s:
        return Choice(False, f"faster: by our own kernels {figures}")
    return Choice(True, figures)


def _step_s(workload: Workload, parts: StepTimes, processes: int) -> float:
    return predicted_step_s(
        workload.shape,
        parts,
        tokens_per_step=workload.tokens_per_step,
        processes=processes,
    )
