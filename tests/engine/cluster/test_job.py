from __future__ import annotations

import pytest

from llmtrain.errors import DoesNotFitError, UsageError
from llmtrain.plan.tensor_bytes import checkpoint_bytes_of
from tests.engine.cluster.conftest import MakeJob


def test_a_job_has_a_rank_for_every_gpu_of_every_machine(make: MakeJob) -> None:
    job = make(nodes=4)
    assert (job.ranks, job.ranks_per_node, job.gpus_per_node) == (32, 8, 8)
    assert job.planned.plan.processes.value == 32
    assert job.planned.workload.launched_local_processes == 8
    assert job.cores_per_rank == 8
    assert job.command[-4:] == ("--out", "/shared/run", "--resume", "auto")


def test_what_does_not_fit_as_a_replica_is_sharded_within_machines(make: MakeJob) -> None:
    fits, hybrid = make(), make("cuda:8x24GiB")
    assert fits.planned.plan.sharding.value == "replicate"
    assert hybrid.planned.plan.sharding.value == "hybrid"
    assert hybrid.memory_bytes == fits.memory_bytes, "the first machine's ranks copy it all"
    sharded = make("cuda:8x24GiB", assignments=["device.sharding=shard"])
    assert sharded.memory_bytes < fits.memory_bytes, "each rank copies its part to save it"
    asked = make("cuda:8x24GiB", assignments=["device.sharding=hybrid"])
    assert asked.planned.plan.sharding.reason == "asked for"
    with pytest.raises(UsageError, match="all processes are on one machine"):
        make("cuda:8x24GiB", nodes=1, assignments=["device.sharding=hybrid"])
    with pytest.raises(DoesNotFitError):
        make("cuda:8x24GiB", assignments=["device.sharding=replicate"])


def test_main_memory_has_what_every_rank_copies_of_its_own_state(make: MakeJob) -> None:
    plain, rounds = make(), make(assignments=["train.sync_every=30"])
    workload = rounds.planned.workload
    more = checkpoint_bytes_of(workload, 16) // 2 - checkpoint_bytes_of(plain.planned.workload, 16)
    assert more > 0
    assert rounds.memory_bytes - plain.memory_bytes == pytest.approx(1.25 * more, abs=2)


def test_main_memory_is_enough_for_rounds_that_ranks_may_choose(make: MakeJob) -> None:
    rounds, auto = (make(assignments=[f"train.sync_every={every}"]) for every in (30, "auto"))
    assert auto.memory_bytes == rounds.memory_bytes
    assert auto.planned.plan.sync_every.value == 1
    sharded = make("cuda:8x24GiB", assignments=["train.sync_every=auto"])
    assert sharded.memory_bytes == make("cuda:8x24GiB").memory_bytes


def test_cpus_have_one_rank_a_machine_and_the_memory_that_is_predicted(make: MakeJob) -> None:
    job = make("cpu:16c:64GiB", "cpu-small")
    assert (job.ranks, job.gpus_per_node, job.cores_per_rank) == (2, 0, 16)
    assert job.memory_bytes > job.planned.prediction.total_bytes


def test_one_machine_launches_its_own_ranks(make: MakeJob) -> None:
    assert make(nodes=1).rank_command().endswith("--nproc 8")
    assert "--nproc" not in make(nodes=2).rank_command()


def test_warning_comes_early_enough_and_leaves_most_of_the_time(make: MakeJob) -> None:
    assert make(limit_s=600).warning_s == 120
    assert make(limit_s=7200).warning_s == 360
    assert make(limit_s=864000).warning_s == 600


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ({"nodes": 5000}, "--nodes 5000"),
        ({"limit_s": 60}, "shorter than 600"),
        ({"nodes": 3}, "not a multiple"),
        ({"spec": "mps:16GiB", "profile": "cpu-small"}, "mps"),
    ],
)
def test_what_cannot_run_is_refused(make: MakeJob, more: dict[str, object], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        make(**more)
