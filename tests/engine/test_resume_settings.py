from __future__ import annotations

from typing import Any

import pytest

from llmtrain.engine.resume_settings import RecordedRun, machine_signature
from llmtrain.engine.workload import workload_of
from llmtrain.machine.assume import assume_machine
from llmtrain.plan.planner import Plan, make_plan
from llmtrain.profile.load import load_profile
from llmtrain.profile.setting import Setting
from llmtrain.train.distributed.world import World

TWO_MACHINES = World(size=4, local_size=2)


def usable_plan(sharding: str, of_machines: list[int] | None, world: World) -> Plan | None:
    """What `world` can use of a plan that four ranks of two machines trained by."""
    facts = assume_machine("cpu:8c:16GiB", python_version="3.12.0", torch_version="2.13.0").facts
    flags = {"device.sharding": Setting(sharding, "test")}
    profile = load_profile("cpu-tiny", environment={}, flags=flags).profile
    plan = make_plan(
        facts, profile.device, workload_of(profile, TWO_MACHINES, facts, measure=False)
    )
    values: dict[str, Any] = {
        "machine": machine_signature(facts),
        "plan": plan.document(),
        "sessions": [{"ranks": {"of_machines": of_machines}}],
    }
    return RecordedRun(values, profile).usable_plan(profile, facts, world)


@pytest.mark.parametrize(
    ("of_machines", "world"),
    [
        ([2, 2], World(size=4, local_size=4)),
        ([2, 2], World(size=4, local_size=2, has_equal_machines=False)),
        ([2, 2], World()),
        ([1, 1, 1, 1], TWO_MACHINES),
        (None, TWO_MACHINES),
    ],
)
def test_a_replica_on_each_machine_is_planned_again_for_other_machines(
    of_machines: list[int] | None, world: World
) -> None:
    assert usable_plan("hybrid", of_machines, world) is None


def test_a_recorded_plan_is_used_again_on_the_same_machines() -> None:
    recorded = usable_plan("hybrid", [2, 2], TWO_MACHINES)
    assert recorded is not None
    assert recorded.sharding.value == "hybrid"
    assert usable_plan("shard", [2, 2], World(size=4, local_size=4)) is not None
