"""From a request to a plan: facts are read, the CPU is timed once, decisions are made."""

from __future__ import annotations

from dataclasses import dataclass

from llmtrain.device.choice import Needs
from llmtrain.device.decisions import (
    choose_device,
    may_use_gpu,
    memory_limit_bytes,
    refuse_model_that_does_not_fit,
)
from llmtrain.device.decisions import threads as decide_threads
from llmtrain.device.facts import CpuTimes, Facts, RunFigures
from llmtrain.device.memory import MemoryPrediction
from llmtrain.device.plan import InferencePlan, Plan, make_inference_plan, make_plan, predict
from llmtrain.device.probe import read_facts
from llmtrain.device.speed import product_flops_per_s, step_work
from llmtrain.engine.calibration import kept_run
from llmtrain.engine.choosing import choose_tokens_per_step
from llmtrain.engine.fitting import ways_to_fit
from llmtrain.engine.measuring import Announce, measured_cpu, measured_products
from llmtrain.errors import DoesNotFitError
from llmtrain.profile.schema import DeviceSection, Profile
from llmtrain.profile.shape import ModelShape, shape_of
from llmtrain.train.world import World


@dataclass(frozen=True, slots=True)
class Planned:
    """A plan, and what it was made from."""

    plan: Plan
    needs: Needs
    facts: Facts
    prediction: MemoryPrediction
    limit_bytes: int
    peak_flops: float | None  # of one process's matrix products, where measured
    times: CpuTimes | None = None  # what the plan was made from
    kept: RunFigures | None = None  # what a run by this plan came to here

    @property
    def bytes(self) -> int:
        """The predicted peak."""
        return self.prediction.total_bytes


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
    needs = needs_of(profile, world, found, measure=measure)
    on_cpu = choose_device(found, profile.device).value == "cpu"
    try:
        times = measured_cpu(found, profile.device, needs, announce) if on_cpu and measure else None
        plan = make_plan(found, profile.device, needs, times)
        kept = kept_run(found, needs, plan) if measure else None
        return planned_with(plan, needs, found, times, kept)
    except DoesNotFitError as error:
        raise _with_ways_out(error, profile, world, found, measure=on_cpu and measure) from None


def _with_ways_out(
    error: DoesNotFitError, profile: Profile, world: World | None, facts: Facts, *, measure: bool
) -> DoesNotFitError:
    """The same with what would make it fit. Only what is measured in a second is measured."""
    threads = decide_threads(facts, profile.device, 1).value

    def predicted_bytes(changed: Profile) -> int:
        needs = needs_of(changed, world, facts, measure=measure)
        products = measured_products(facts, needs.shape, threads) if measure else None
        times = CpuTimes(products) if products is not None else None
        return planned_with(make_plan(facts, changed.device, needs, times), needs, facts).bytes

    ways = ways_to_fit(profile, predicted_bytes)
    return DoesNotFitError(error.message, hint=error.hint, ways_out=ways)


def plan_inference(device: DeviceSection, shape: ModelShape) -> InferencePlan:
    """How this machine would use a model of `shape`. Raises UsageError and DoesNotFitError."""
    facts = read_facts(tries_gpus=may_use_gpu(device))
    threads = decide_threads(facts, device, 1).value
    kind = choose_device(facts, device).value
    refuse_model_that_does_not_fit(facts, shape, kind)
    times = measured_products(facts, shape, threads) if kind == "cpu" else None
    return make_inference_plan(facts, device, times)


def planned_with(
    plan: Plan,
    needs: Needs,
    facts: Facts,
    times: CpuTimes | None = None,
    kept: RunFigures | None = None,
) -> Planned:
    """A plan with what it implies."""
    return Planned(
        plan=plan,
        needs=needs,
        facts=facts,
        prediction=predict(needs, plan),
        limit_bytes=memory_limit_bytes(facts, plan.device.value),
        peak_flops=_peak_flops(times, plan, needs),
        times=times,
        kept=kept,
    )


def needs_of(profile: Profile, world: World | None, facts: Facts, *, measure: bool = True) -> Needs:
    """What the profile asks of a machine, launched as `world` or not yet."""
    launched = world is not None and world.size > 1
    train = profile.train
    tokens_per_step = choose_tokens_per_step(profile, facts, measure=measure).value
    tokens = train.steps * tokens_per_step if train.steps is not None else train.tokens
    return Needs(
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


def _peak_flops(times: CpuTimes | None, plan: Plan, needs: Needs) -> float | None:
    """The rate of the profile's own products in the plan's precision."""
    if times is None:
        return None
    return product_flops_per_s(times.matmul, step_work(plan, needs.optimizer))
