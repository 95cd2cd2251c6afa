"""From a request to a plan: facts are read, the CPU is timed once, decisions are made."""

from __future__ import annotations

from dataclasses import dataclass

from llmtrain.device.choice import Choice, Needs
from llmtrain.device.decisions import choose_device, memory_limit_bytes
from llmtrain.device.decisions import threads as decide_threads
from llmtrain.device.facts import Facts, MatmulTimes
from llmtrain.device.memory import MemoryPrediction
from llmtrain.device.plan import InferencePlan, Plan, make_inference_plan, make_plan, predict
from llmtrain.device.probe import read_facts
from llmtrain.device.probe_cache import cached_matmul_times, probe_key
from llmtrain.device.timing import time_matmuls
from llmtrain.files import cache_directory
from llmtrain.profile.schema import DeviceSection, Profile
from llmtrain.profile.shape import ModelShape, shape_of
from llmtrain.train.world import World

_PROBE_TOKENS = 2048


@dataclass(frozen=True, slots=True)
class Planned:
    """A plan, and what it was made from."""

    plan: Plan
    needs: Needs
    facts: Facts
    prediction: MemoryPrediction
    limit_bytes: int
    peak_flops: float | None  # of one process's matrix products, where measured


def plan_run(
    profile: Profile,
    *,
    world: World | None = None,
    facts: Facts | None = None,
    measure: bool = True,
) -> Planned:
    """How a machine would train `profile`. Raises UsageError and DoesNotFitError.

    `facts` are this machine's where they are not given. For those of another one `measure` is
    False: then nothing is timed.
    """
    found = read_facts() if facts is None else facts
    needs = needs_of(profile, world)
    local = needs.launched_local_processes or 1
    kind = choose_device(found, profile.device).value
    threads = decide_threads(found, profile.device, local).value
    times = _matmul_times(found, needs.shape, threads) if kind == "cpu" and measure else None
    return planned_with(make_plan(found, profile.device, needs, times), needs, found, times)


def plan_inference(device: DeviceSection, shape: ModelShape) -> InferencePlan:
    """How this machine would use a model of `shape`. Raises UsageError."""
    facts = read_facts()
    threads = decide_threads(facts, device, 1).value
    on_cpu = choose_device(facts, device).value == "cpu"
    times = _matmul_times(facts, shape, threads) if on_cpu else None
    return make_inference_plan(facts, device, times)


def planned_with(
    plan: Plan, needs: Needs, facts: Facts, times: MatmulTimes | None = None
) -> Planned:
    """A plan with what it implies."""
    return Planned(
        plan=plan,
        needs=needs,
        facts=facts,
        prediction=predict(needs, plan),
        limit_bytes=memory_limit_bytes(facts, plan.device.value),
        peak_flops=_peak_flops(needs.shape, times, plan),
    )


def needs_of(profile: Profile, world: World | None) -> Needs:
    """What the profile asks of a machine, launched as `world` or not yet."""
    launched = world is not None and world.size > 1
    return Needs(
        shape=shape_of(profile.model),
        tokens_per_step=profile.train.tokens_per_step,
        micro_batch=profile.train.micro_batch,
        launched_processes=world.size if world is not None and launched else None,
        launched_local_processes=world.local_size if world is not None and launched else None,
    )


def choose_profile(facts: Facts, time_s: float | None) -> Choice[str]:
    """The shipped profile for a machine and the time there is, for when none is named."""
    if facts.of_kind("cuda"):
        return Choice("gpu-small", "a CUDA GPU is here")
    if facts.of_kind("mps"):
        return Choice("mps-small", "an Apple GPU is here")
    if time_s is not None and time_s >= 3600:
        return Choice("cpu-small", "an hour or more on the CPU")
    return Choice("cpu-tiny", "a CPU, and minutes" if time_s else "a CPU: done in minutes")


def _matmul_times(facts: Facts, shape: ModelShape, threads: int) -> MatmulTimes:
    sizes = {
        "hidden_size": shape.hidden_size,
        "intermediate_size": shape.intermediate_size,
        "tokens": _PROBE_TOKENS,
        "threads": threads,
    }
    key = probe_key(facts, **sizes)
    return cached_matmul_times(cache_directory(), key, lambda: time_matmuls(**sizes))[0]


def _peak_flops(shape: ModelShape, times: MatmulTimes | None, plan: Plan) -> float | None:
    """The rate of the profile's own products: two layers, three products each, 2 FLOPs a weight."""
    if times is None:
        return None
    flops = 2 * 3 * 2 * _PROBE_TOKENS * shape.hidden_size * shape.intermediate_size
    fp32_s = times.medium_s if plan.matmul_precision.value == "medium" else times.fp32_s
    return flops / (times.bf16_s if plan.precision.value == "bf16" else fp32_s)
