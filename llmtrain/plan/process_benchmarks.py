"""Time a step by several processes on this CPU, once, where a run is long enough to gain by it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace

from llmtrain.errors import DoesNotFitError, InterruptedRunError, LlmtrainError
from llmtrain.files import cache_directory
from llmtrain.machine.facts import CpuTimes, Facts, ProcessTimes
from llmtrain.machine.measurement_cache import measurement_key, save_measurement
from llmtrain.model.process_timing import time_processes
from llmtrain.ops.native.library import kernel_source
from llmtrain.plan.cpu_benchmarks import measured_eager_step
from llmtrain.plan.kernel_probes import Announce
from llmtrain.plan.planner import Plan, make_plan
from llmtrain.plan.probe import Measure, Probe
from llmtrain.plan.processes import choose_by_time, is_worth_timing, several_processes
from llmtrain.plan.step_benchmarks import way_of
from llmtrain.plan.workload import Workload
from llmtrain.profile.schema import DeviceSection

_REPETITIONS = 2
_LEAST_NOISE = 1e-6  # a cache holds no zeros
_STEADY = 0.1  # repetitions that differ by more are timed again before the next run


def with_timed_processes(
    facts: Facts,
    options: DeviceSection,
    workload: Workload,
    announce: Announce | None = None,
    measure: Measure | None = None,
) -> Workload:
    """Return the workload with the number of processes that a CPU is fastest with.

    With `announce` the run is about to start, and what is not known is timed; without it only what
    is saved counts. Each number is timed in processes of their own, in turn, so that what changes
    meanwhile meets all alike.
    """
    if not several_processes(facts, options, workload):
        return workload
    times = measured_eager_step(facts, options, workload, announce, measure)
    if not is_worth_timing(workload, times):
        return workload
    plans = _plans(facts, options, workload, times)
    if len(plans) < 2:
        return workload
    probes = {number: process_probe(facts, workload, plan) for number, plan in plans.items()}
    found = {number: saved for number, probe in probes.items() if (saved := probe.saved())}
    is_noisy = any(times.noise > _STEADY for times in found.values())
    if len(found) < len(probes) or (announce is not None and is_noisy):
        if announce is None:
            return workload
        names = ", ".join(str(number) for number in probes)
        announce(f"timing a step by {names} processes, once for this machine and shape: a minute")
        try:
            found = timed_in_turn(probes)
        except InterruptedRunError:
            raise
        except LlmtrainError as error:
            announce(f"one process: {error.message}")
            return workload
    micro_batches = {number: float(plan.accumulation.value) for number, plan in plans.items()}
    choice = choose_by_time(found, micro_batches, facts.cpu.usable_cores)
    return replace(workload, timed_processes=choice)


def _plans(
    facts: Facts, options: DeviceSection, workload: Workload, times: CpuTimes
) -> dict[int, Plan]:
    """Return the plans of one process and of those numbers whose copies fit without more work.

    They are eager: what compiling gains, it gains alike for each.
    """
    plans = dict[int, Plan]()
    for number in (1, *several_processes(facts, options, workload)):
        asked = options.model_copy(update={"processes": number, "compile": False})
        try:
            plan = make_plan(facts, asked, workload, times)
        except DoesNotFitError:
            break
        if plan.sharding.value != "replicate" or (
            plan.activation_checkpointing.value != plans.get(1, plan).activation_checkpointing.value
        ):
            break
        plans[number] = plan
    return plans


def timed_in_turn(probes: Mapping[int, Probe[ProcessTimes]]) -> dict[int, ProcessTimes]:
    """Return and save the times of each number: the fastest parts, and how far steps differ."""
    repeated: dict[int, list[ProcessTimes]] = {number: [] for number in probes}
    for repetition in range(_REPETITIONS):
        for number in list(probes)[:: 1 if repetition % 2 == 0 else -1]:
            repeated[number].append(probes[number].measure())
    found = {number: fastest(times) for number, times in repeated.items()}
    for number, probe in probes.items():
        save_measurement(cache_directory(), probe.key, found[number])
    return found


def fastest(times: Sequence[ProcessTimes]) -> ProcessTimes:
    """Return the fastest parts of repetitions, with the share by which their steps differ."""
    steps_s = [each.step_s(1) for each in times]
    return ProcessTimes(
        micro_s=min(each.micro_s for each in times),
        synced_s=min(each.synced_s for each in times),
        update_s=min(each.update_s for each in times),
        noise=max(_LEAST_NOISE, max(steps_s) / min(steps_s) - 1),
    )


def process_probe(facts: Facts, workload: Workload, plan: Plan) -> Probe[ProcessTimes]:
    """Return the benchmark of a step by the plan's processes, computed as it says."""
    way, processes = way_of(workload, plan), plan.processes.value
    shape, products, optimizer = workload.shape, plan.matmul_precision.value, workload.optimizer
    arguments: dict[str, int | str] = {
        "processes": processes,
        "optimizer": optimizer,
        "matmul_precision": products,
        **{name: str(value) for name, value in asdict(shape).items()},
        **{f"way_{name}": str(value) for name, value in asdict(way).items()},
    }
    if "native" in (way.attention, way.loss, way.block_kernels):
        arguments["native"] = kernel_source(way.precision).digest()
    if processes * way.threads > facts.cpu.usable_cores:
        arguments["cores"] = facts.cpu.usable_cores
    is_bound = plan.numa_binding.value
    if is_bound:
        arguments["numa_binding"] = "true"
    key = measurement_key(facts, "step: processes", way.threads, **arguments)
    return Probe(
        key,
        ProcessTimes,
        lambda: time_processes(processes, shape, way, products, optimizer, is_bound=is_bound),
    )
