"""Choose the number of processes on a CPU from the timed steps of several. Pure.

    step_s(p) = (micro-batches / p - 1) · micro_s + synced_s + update_s

Threads of one process wait for each other at the end of every product; those of p processes do so
in smaller groups, but each process updates the whole model, and gradients have to be averaged.
Which weighs more differs between CPUs, so it is timed. Between equals one process is the standing
choice: it holds one copy of the model.
"""

from __future__ import annotations

from collections.abc import Mapping

from llmtrain.choice import Choice
from llmtrain.machine.facts import CpuTimes, Facts, ProcessTimes
from llmtrain.plan.numerics import is_long
from llmtrain.plan.workload import Workload
from llmtrain.profile.schema import DeviceSection

_LEAST_CORES = 4
_LEAST_THREADS = 2  # of each process
_MOST_PROCESSES = 8
# Of a run that gains more by several processes than timing them takes, in time and in CPU time.
_WORTH_TIME_S, _WORTH_CPU_S = 900.0, 900.0
_LEAST_GAIN = 0.04  # for which a run holds further copies of the model


def several_processes(facts: Facts, options: DeviceSection, workload: Workload) -> list[int]:
    """Return the numbers of processes, above one, that a CPU may be shared among.

    There are none where the launcher or an option decides it, and where threads are decided.
    """
    cores = facts.cpu.usable_cores
    decided = (
        workload.launched_processes is not None
        or options.processes != "auto"
        or options.threads != "auto"
        or options.sharding in ("shard", "hybrid")
        or facts.cpu.omp_threads is not None
    )
    unmeasured = workload.sync_every > 1 or workload.lora is not None or workload.is_dpo
    if decided or unmeasured or cores < _LEAST_CORES or "gloo" not in facts.backends:
        return []
    windows = workload.tokens_per_step // workload.shape.context
    most = min(_MOST_PROCESSES, cores // _LEAST_THREADS)
    return [n for n in range(2, most + 1) if cores % n == 0 and windows % n == 0]


def is_worth_timing(workload: Workload, times: CpuTimes) -> bool:
    """Return whether the run is long enough to time several processes before it."""
    return is_long(workload, times.plain, 1, _WORTH_TIME_S, _WORTH_CPU_S)


def choose_by_time(
    times: Mapping[int, ProcessTimes], micro_batches: Mapping[int, float], cores: int
) -> Choice[int]:
    """Choose the fastest number of processes, if it is faster than one beyond noise.

    `times` and `micro_batches` (of each process in a step) are by the number, one among them.
    """
    steps_s = {n: each.step_s(micro_batches[n]) for n, each in times.items()}
    fastest = min((n for n in steps_s if n > 1), key=lambda n: steps_s[n])
    gain = 1 - steps_s[fastest] / steps_s[1]
    margin = max(_LEAST_GAIN, times[1].noise + times[fastest].noise)
    found = (
        f"a step takes {steps_s[fastest]:.3g} s by {fastest} processes of "
        f"{cores // fastest} threads and {steps_s[1]:.3g} s by one, timed here"
    )
    if gain > margin:
        return Choice(fastest, found)
    return Choice(1, f"{found}; more than one has to be {margin:.0%} faster")
