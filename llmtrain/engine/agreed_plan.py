"""The plan that all ranks of a run train by: rank 0's, and what they find out when they meet."""

from __future__ import annotations

from dataclasses import replace

from llmtrain.choice import Choice
from llmtrain.engine.find_run import ResolvedRun
from llmtrain.engine.plan_run import plan_resolved
from llmtrain.engine.train_session import TrainSession
from llmtrain.errors import DoesNotFitError
from llmtrain.plan.auto_profile import SYNC_EVERY, with_chosen_rounds
from llmtrain.plan.planned import Planned
from llmtrain.plan.rounds import choose_sync_every
from llmtrain.plan.tensor_bytes import FP32_BYTES
from llmtrain.plan.throughput import predicted_step_s
from llmtrain.train.build import set_up_device
from llmtrain.train.distributed.bandwidth import exchange_between


def agreed_plan(resolved: ResolvedRun, session: TrainSession) -> tuple[ResolvedRun, Planned]:
    """Return the run with what was open until the ranks met, and rank 0's plan of it.

    That is `train.sync_every: auto`. Every rank has to call it. Raises UsageError, DoesNotFitError
    and PeerLostError.
    """
    planned = _planned_by_main(resolved, session, "plan")
    if resolved.profile.loaded.profile.train.sync_every != "auto":
        return resolved, planned
    choice = _agreed_rounds(resolved, planned, session)
    resolved = _with_rounds(resolved, choice)
    session.note(f"{SYNC_EVERY} is {choice.value}: {choice.reason}")
    if choice.value > 1:
        return resolved, _planned_by_main(resolved, session, "plan of rounds")
    return resolved, replace(planned, plan=replace(planned.plan, sync_every=choice))


def _planned_by_main(resolved: ResolvedRun, session: TrainSession, key: str) -> Planned:
    world = session.world

    def plan() -> Planned:
        with session.stop.immediate():  # measuring and compiling take long and have no checks
            return plan_resolved(resolved, world, session.note)

    planned = session.broadcast_from_main(key, Planned, plan, session.stop.check)
    if world.size == 1:
        return planned
    workload = replace(planned.workload, launched_local_processes=world.local_size)
    return replace(planned, workload=workload)


def _agreed_rounds(resolved: ResolvedRun, planned: Planned, session: TrainSession) -> Choice[int]:
    """Return how many steps ranks take between two exchanges, by timing one between them."""
    plan, world = planned.plan, session.world
    if not plan.may_take_rounds:
        return plan.sync_every
    device = set_up_device(plan, world)
    gradient_bytes = FP32_BYTES * planned.workload.trained_parameters
    limit_s = resolved.profile.loaded.profile.device.collective_timeout
    exchange = exchange_between(world, plan.backend.value, device, gradient_bytes, limit_s)

    def choose() -> Choice[int]:
        choice = choose_sync_every(planned.workload, _step_s(planned), exchange)
        if choice.value == 1:
            return choice
        try:
            plan_resolved(_with_rounds(resolved, choice), world)
        except DoesNotFitError as error:
            return Choice(1, f"{choice.reason}, but rounds need more memory: {error.message}")
        return choice

    return session.broadcast_from_main("rounds", Choice[int], choose, session.stop.check)


def _step_s(planned: Planned) -> float | None:
    """Return the seconds of a step's computation; None where its parts are not measured."""
    parts, workload = planned.step_times, planned.workload
    if parts is None:
        return None
    return predicted_step_s(
        workload.shape,
        parts,
        tokens_per_step=workload.tokens_per_step,
        processes=planned.plan.processes.value,
    )


def _with_rounds(resolved: ResolvedRun, choice: Choice[int]) -> ResolvedRun:
    """Return the run with its steps between two exchanges set."""
    loaded = with_chosen_rounds(resolved.profile.loaded, choice)
    return replace(resolved, profile=replace(resolved.profile, loaded=loaded))
