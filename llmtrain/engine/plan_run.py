"""From a request to a plan: facts are read, the CPU is timed once, decisions are made."""

from __future__ import annotations

from llmtrain.errors import DoesNotFitError
from llmtrain.machine.facts import CpuTimes, Facts
from llmtrain.machine.probe import read_facts
from llmtrain.plan.alternatives import alternatives
from llmtrain.plan.auto_profile import choose_tokens_per_step
from llmtrain.plan.cpu_benchmarks import Announce, measured_cpu, measured_products
from llmtrain.plan.decisions import (
    choose_device,
    may_use_gpu,
    refuse_model_that_does_not_fit,
)
from llmtrain.plan.decisions import threads as decide_threads
from llmtrain.plan.past_runs import last_run
from llmtrain.plan.planned import Planned, planned_with
from llmtrain.plan.planner import InferencePlan, make_inference_plan, make_plan
from llmtrain.plan.workload import Workload
from llmtrain.profile.schema import DeviceSection, Profile
from llmtrain.profile.shape import ModelShape, shape_of
from llmtrain.train.distributed.world import World


def plan_run(
    profile: Profile,
    *,
    world: World | None = None,
    facts: Facts | None = None,
    measure: bool = True,
    announce: Announce | None = None,
) -> Planned:
    """How a machine would train `profile`. Raises UsageError and DoesNotFitError.

    `facts` are this machine's where they are not given. For those of another one `measure` is
    False: then nothing is timed. With `announce` a run is about to begin, and what takes long
    may be measured.
    """
    found = read_facts(tries_gpus=may_use_gpu(profile.device)) if facts is None else facts
    workload = workload_of(profile, world, found, measure=measure)
    on_cpu = choose_device(found, profile.device).value == "cpu"
    try:
        times = (
            measured_cpu(found, profile.device, workload, announce) if on_cpu and measure else None
        )
        plan = make_plan(found, profile.device, workload, times)
        kept = last_run(found, workload, plan) if measure else None
        return planned_with(plan, workload, found, times, kept)
    except DoesNotFitError as error:
        raise _with_alternatives(error, profile, world, found, measure=on_cpu and measure) from None


def _with_alternatives(
    error: DoesNotFitError, profile: Profile, world: World | None, facts: Facts, *, measure: bool
) -> DoesNotFitError:
    """The same with what would make it fit. Only what is measured in a second is measured."""
    threads = decide_threads(facts, profile.device, 1).value

    def predicted_bytes(changed: Profile) -> int:
        workload = workload_of(changed, world, facts, measure=measure)
        products = measured_products(facts, workload.shape, threads) if measure else None
        times = CpuTimes(products) if products is not None else None
        return planned_with(
            make_plan(facts, changed.device, workload, times), workload, facts
        ).bytes

    ways = alternatives(profile, predicted_bytes)
    return DoesNotFitError(error.message, hint=error.hint, alternatives=ways)


def plan_inference(device: DeviceSection, shape: ModelShape) -> InferencePlan:
    """How this machine would use a model of `shape`. Raises UsageError and DoesNotFitError."""
    facts = read_facts(tries_gpus=may_use_gpu(device))
    threads = decide_threads(facts, device, 1).value
    kind = choose_device(facts, device).value
    refuse_model_that_does_not_fit(facts, shape, kind)
    times = measured_products(facts, shape, threads) if kind == "cpu" else None
    return make_inference_plan(facts, device, times)


def workload_of(
    profile: Profile, world: World | None, facts: Facts, *, measure: bool = True
) -> Workload:
    """What the profile asks of a machine, launched as `world` or not yet."""
    launched = world is not None and world.size > 1
    train = profile.train
    tokens_per_step = choose_tokens_per_step(profile, facts, measure=measure).value
    tokens = train.steps * tokens_per_step if train.steps is not None else train.tokens
    return Workload(
        shape=shape_of(profile.model),
        tokens_per_step=tokens_per_step,
        micro_batch=profile.train.micro_batch,
        launched_processes=world.size if world is not None and launched else None,
        launched_local_processes=world.local_size if world is not None and launched else None,
        optimizer=profile.optim.name,
        tokens=tokens,
        time_s=train.time,
        mask_documents=profile.data.mask_documents,
    )
