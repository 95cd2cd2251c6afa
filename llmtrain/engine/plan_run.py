"""From a resolved run to its plan: read and measure the machine, then call the planner.

`llmtrain.plan.planner` makes the decisions; `llmtrain.plan.planned` holds a plan with what follows
from it.
"""

from __future__ import annotations

import sys
from dataclasses import replace

from llmtrain.choice import Choice
from llmtrain.engine.find_run import ResolvedRun
from llmtrain.engine.measure_apart import measure_apart, plan_task
from llmtrain.engine.workload import workload_of
from llmtrain.errors import DoesNotFitError
from llmtrain.machine.allocator import return_free_memory
from llmtrain.machine.facts import CpuTimes, Facts
from llmtrain.machine.probe import read_facts
from llmtrain.ops.native.library import load_kernels
from llmtrain.plan import decisions
from llmtrain.plan.alternatives import alternatives
from llmtrain.plan.auto_profile import SYNC_EVERY
from llmtrain.plan.cpu_benchmarks import measured_cpu, measured_products
from llmtrain.plan.gpu_benchmarks import measured_gpu
from llmtrain.plan.kernel_probes import Announce
from llmtrain.plan.memory_fit import refuse_model_that_does_not_fit
from llmtrain.plan.past_runs import last_run
from llmtrain.plan.planned import Planned, planned_with
from llmtrain.plan.planner import InferencePlan, Plan, make_inference_plan, make_plan
from llmtrain.plan.probe import Measure
from llmtrain.plan.process_benchmarks import with_timed_processes
from llmtrain.plan.processes import several_processes
from llmtrain.plan.workload import Workload
from llmtrain.profile.load import LoadedProfile
from llmtrain.profile.schema import DeviceSection, Profile
from llmtrain.profile.setting import CHOSEN
from llmtrain.profile.shape import ModelShape
from llmtrain.train.distributed.world import World

_COMPILER = "torch._inductor.compile_fx"  # imported by the first compilation


def plan_resolved(
    resolved: ResolvedRun, world: World | None = None, announce: Announce | None = None
) -> Planned:
    """Return the run's recorded plan where it still applies, else a new one.

    With `announce` the run is about to start, and measurements that take long are made. Raises
    UsageError and DoesNotFitError.
    """
    loaded, facts = resolved.profile.loaded, resolved.profile.facts
    recorded, plan = resolved.recorded, _recorded_plan(resolved, world or World())
    if recorded is None or plan is None or not _has_kernels(plan, facts, announce):
        is_here = resolved.profile.assumed is None
        which = _which_to_measure(resolved, world, announce)
        planned = plan_run(
            loaded.profile,
            world=world,
            facts=facts,
            measure=is_here,
            announce=announce,
            which=which,
        )
    else:
        workload = workload_of(loaded.profile, world, facts)
        planned = planned_with(plan, workload, facts, last_run=last_run(facts, workload, plan))
        planned = replace(planned, peak_flops=recorded.values.get("peak_flops"))
    return replace(planned, plan=_with_chosen_rounds(planned.plan, loaded))


def _with_chosen_rounds(plan: Plan, loaded: LoadedProfile) -> Plan:
    """Return the plan with the run's steps between two exchanges, and why they were chosen.

    A run keeps them, whatever an exchange takes in a later session.
    """
    every, origin = loaded.profile.train.sync_every, loaded.origin_of(SYNC_EVERY)
    if every == "auto":
        return plan
    if origin.startswith(CHOSEN):
        return replace(plan, sync_every=Choice(every, origin.removeprefix(CHOSEN)))
    is_known = plan.sync_every.value == every
    return plan if is_known else replace(plan, sync_every=Choice(every, "asked for"))


def _which_to_measure(
    resolved: ResolvedRun, world: World | None, announce: Announce | None
) -> Measure | None:
    """Let another process measure for a run that is about to start.

    Return what this one has to measure then; None: as usual.
    """
    profile = resolved.profile
    was_measured = profile.was_measured_apart
    if not was_measured and profile.assumed is None and announce is not None:
        task = plan_task(profile.facts, profile.loaded.profile, world)
        was_measured = measure_apart(task, announce)
    return "missing" if was_measured else None


def _has_kernels(plan: Plan, facts: Facts, announce: Announce | None) -> bool:
    """Return whether a run that is about to start has the native kernels of its recorded plan."""
    if announce is None or "native" not in (plan.attention.value, plan.loss.value):
        return True
    loaded = load_kernels(facts, announce, precision=plan.precision.value)
    if not loaded.value:
        announce(f"the run used native kernels, and continues without them: {loaded.reason}")
    return loaded.value


def _recorded_plan(resolved: ResolvedRun, world: World) -> Plan | None:
    if resolved.recorded is None:
        return None
    profile, facts = resolved.profile.loaded.profile, resolved.profile.facts
    return resolved.recorded.usable_plan(profile, facts, world)


def processes_of(resolved: ResolvedRun, announce: Announce) -> int:
    """Return how many processes the run is to have, before it is planned.

    On a CPU it may be timed. Raises UsageError and DoesNotFitError.
    """
    if resolved.is_finished:
        return 1
    plan = _recorded_plan(resolved, World())
    if plan is not None:
        return plan.processes.value
    profile, facts = resolved.profile.loaded.profile, resolved.profile.facts
    kind = decisions.choose_device(facts, profile.device).value
    workload = workload_of(profile, None, facts)
    if kind == "cpu" and resolved.profile.assumed is None:
        which = None
        if several_processes(facts, profile.device, workload):
            which = _which_to_measure(resolved, None, announce)
        workload = with_timed_processes(facts, profile.device, workload, announce, which)
    return decisions.choose_processes(facts, profile.device, workload, kind).value


def plan_run(
    profile: Profile,
    *,
    world: World | None = None,
    facts: Facts | None = None,
    measure: bool = True,
    announce: Announce | None = None,
    which: Measure | None = None,
) -> Planned:
    """Return how a machine would train `profile`. Raises UsageError and DoesNotFitError.

    `facts` are read from this machine if not given; for another machine's, `measure` is False and
    nothing is timed. With `announce` measurements that take long are made. `which` is the `measure`
    of `measured_cpu`.
    """
    if facts is None:
        facts = read_facts(tries_gpus=decisions.may_use_gpu(profile.device))
    workload = workload_of(profile, world, facts, measure=measure)
    kind = decisions.choose_device(facts, profile.device).value
    measures_cpu = measure and kind == "cpu"
    try:
        times, gpu_times = None, None
        if measures_cpu:
            workload = _with_processes(facts, profile.device, workload, world)
            had_compiler = _COMPILER in sys.modules
            times = measured_cpu(facts, profile.device, workload, announce, which)
            if not had_compiler and _COMPILER in sys.modules:  # its cache was empty
                workload = replace(workload, compiles_anew=True)
                return_free_memory()
            if announce is not None and times.native_missing is not None:
                announce(f"without native kernels training takes longer: {times.native_missing}")
        if measure and kind == "cuda":
            gpu_times = measured_gpu(facts, profile.device, workload, announce)
        plan = make_plan(facts, profile.device, workload, times, gpu_times)
        previous = last_run(facts, workload, plan) if measure else None
        return planned_with(plan, workload, facts, times, previous, gpu_times)
    except DoesNotFitError as error:
        raise _with_alternatives(error, profile, world, facts, measure=measures_cpu) from None


def _with_processes(
    facts: Facts, options: DeviceSection, workload: Workload, world: World | None
) -> Workload:
    """Return the workload with the number of processes that was timed, if it was.

    A process that trains already, in `world`, stays the only one.
    """
    timed = with_timed_processes(facts, options, workload)
    choice = timed.timed_processes
    if world is None or choice is None or choice.value == 1:
        return timed
    return replace(
        workload, timed_processes=Choice(1, f"this one trains, although {choice.reason}")
    )


def _with_alternatives(
    error: DoesNotFitError, profile: Profile, world: World | None, facts: Facts, *, measure: bool
) -> DoesNotFitError:
    """Return the error with what would make the run fit. At most matrix products are timed."""
    threads = decisions.choose_threads(facts, profile.device, 1).value

    def predicted_bytes(changed: Profile) -> int:
        workload = workload_of(changed, world, facts, measure=measure)
        products = measured_products(facts, workload.shape, threads) if measure else None
        times = CpuTimes(products) if products is not None else None
        plan = make_plan(facts, changed.device, workload, times)
        return planned_with(plan, workload, facts).bytes

    ways = alternatives(profile, predicted_bytes)
    return DoesNotFitError(error.message, hint=error.hint, alternatives=ways)


def plan_inference(device: DeviceSection, shape: ModelShape) -> InferencePlan:
    """Return how to use a model of `shape` here. Raises UsageError and DoesNotFitError."""
    facts = read_facts(tries_gpus=decisions.may_use_gpu(device))
    threads = decisions.choose_threads(facts, device, 1).value
    kind = decisions.choose_device(facts, device).value
    refuse_model_that_does_not_fit(facts, shape, kind)
    times = measured_products(facts, shape, threads) if kind == "cpu" else None
    return make_inference_plan(facts, device, times)
