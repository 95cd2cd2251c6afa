"""What a CPU does a profile's work at, measured now, and the plan and the speed it leads to."""

from __future__ import annotations

from dataclasses import dataclass, replace

from llmtrain.device.choice import Needs
from llmtrain.device.decisions import choose_device
from llmtrain.device.facts import CpuTimes, Facts
from llmtrain.device.plan import Plan, make_plan
from llmtrain.device.speed import predicted_step_s, predicted_tokens_per_s, step_work
from llmtrain.engine.measuring import (
    Announce,
    attention_probe,
    block_probe,
    cpu_threads,
    products_probe,
    with_fresh_block,
)
from llmtrain.engine.planning import needs_of
from llmtrain.errors import UsageError
from llmtrain.profile.schema import DeviceSection, Profile


@dataclass(frozen=True, slots=True)
class Bench:
    """Fresh times, the plan they decide, and the speed they predict, where a block was measured."""

    facts: Facts
    times: CpuTimes
    plan: Plan
    step_s: float | None
    tokens_per_s: float | None


def bench_cpu(profile: Profile, facts: Facts, *, block: bool, announce: Announce) -> Bench:
    """This CPU measured on the profile's shapes; the next run finds the times.

    A block is measured where `block` says so and there is a C++ compiler. That it cannot be
    compiled is part of the times. Raises UsageError where the plan is for a GPU, and
    DoesNotFitError.
    """
    wishes, needs = profile.device, needs_of(profile, None, facts)
    _refuse_gpu(facts, wishes)
    times = _kernels(facts, wishes, needs, announce)
    if not block or facts.cxx_compiler is None:
        return _bench(facts, needs, times, make_plan(facts, wishes, needs, times))
    # The block of a run that compiles, also where this one would be too short to.
    compiling = make_plan(facts, wishes.model_copy(update={"compile": True}), needs, times)
    announce("compiling one block…")
    times = with_fresh_block(times, block_probe(facts, needs, compiling), announce)
    plan = make_plan(facts, wishes, needs, times)
    return _bench(facts, needs, times, plan, block_applies=_same_block(plan, compiling))


def _refuse_gpu(facts: Facts, wishes: DeviceSection) -> None:
    device = choose_device(facts, wishes).value
    if device != "cpu":
        raise UsageError(
            f"only the CPU is measured, and the plan is for {device}", hint="--force-cpu"
        )


def _kernels(facts: Facts, wishes: DeviceSection, needs: Needs, announce: Announce) -> CpuTimes:
    announce("timing products…")
    products = products_probe(facts, needs.shape, cpu_threads(facts, wishes, needs)).fresh()
    announce("timing attention…")
    return CpuTimes(products, attention_probe(facts, wishes, needs, products).fresh())


def _same_block(plan: Plan, timed: Plan) -> bool:
    """Whether a block timed for one plan is what the other runs; eager it was timed keeping all."""
    checkpointing = timed.activation_checkpointing.value if plan.compile.value else "off"
    return (
        plan.activation_checkpointing.value == checkpointing
        and plan.micro_batch.value == timed.micro_batch.value
    )


def _bench(
    facts: Facts, needs: Needs, times: CpuTimes, plan: Plan, *, block_applies: bool = True
) -> Bench:
    work = step_work(plan, needs.optimizer)
    applying = times if block_applies else replace(times, block=None)
    return Bench(
        facts=facts,
        times=times,
        plan=plan,
        step_s=predicted_step_s(needs.shape, work, applying),
        tokens_per_s=predicted_tokens_per_s(needs.shape, work, applying),
    )
