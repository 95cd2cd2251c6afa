"""The plan of a run that goes on, as its run.yaml has it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from llmtrain.engine.record import machine_signature
from llmtrain.engine.resume import Target
from llmtrain.machine.facts import Facts
from llmtrain.plan.planner import Plan, plan_from_document
from llmtrain.profile.load import profile_from_values
from llmtrain.profile.schema import DeviceSection, Profile
from llmtrain.train.distributed.world import World


def recorded_plan(target: Target, facts: Facts, world: World) -> Plan | None:
    """The plan of the run that goes on, if machine, wishes and processes are what they were."""
    record = target.record
    if record is None or record.get("machine") != machine_signature(facts):
        return None
    recorded, options = profile_from_values(record["profile"], "run.yaml"), target.loaded.profile
    if _planned_by(recorded) != _planned_by(options):
        return None
    plan = _plan_in(record)
    if plan is None:
        return None
    launched = world.size if world.size > 1 else plan.processes.value
    return plan if plan.processes.value == launched else None


def recorded_numerics(record: Mapping[str, Any]) -> dict[str, Any] | None:
    """What of that plan decides the bits; None where run.yaml holds none."""
    plan = _plan_in(record)
    return None if plan is None else plan.numerics()


def _planned_by(profile: Profile) -> tuple[DeviceSection, int | str]:
    """The wishes that a plan follows."""
    options = profile.device.model_copy(update={"collective_timeout": 0.0})
    return options, profile.train.micro_batch


def _plan_in(record: Mapping[str, Any]) -> Plan | None:
    """The plan of run.yaml, if it holds one that this llmtrain could have made."""
    try:
        return plan_from_document(record["plan"])
    except (KeyError, TypeError, ValueError):
        return None
