"""What a job on a cluster needs, from a profile and its plan on so many machines."""

from __future__ import annotations

import re
import shlex
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import PurePath

from llmtrain.engine.cluster.nodes import require_nodes
from llmtrain.engine.plan_run import plan_run
from llmtrain.engine.request import TrainRequest, resolve_profile
from llmtrain.engine.workload import workload_of
from llmtrain.errors import DoesNotFitError, UsageError
from llmtrain.plan.decisions import choose_device, choose_processes
from llmtrain.plan.memory import libraries_bytes
from llmtrain.plan.planned import Planned, planned_with
from llmtrain.plan.planner import make_plan
from llmtrain.plan.rounds import LONGEST_ROUND
from llmtrain.plan.tensor_bytes import checkpoint_bytes_of
from llmtrain.profile.schema import DeviceSection
from llmtrain.train.distributed.world import World
from llmtrain.units import counted

PORT = 29500
# Of the main memory that a process of a GPU takes beside what it copies to save: libraries, text
# that is prepared, batches. Generous: a job that asks for too little is killed.
_HOST_BYTES = 6 << 30
_SPARE = 1.25
_SHORTEST_LIMIT_S = 600
_NAME = re.compile(r"[^a-z0-9]+")


@dataclass(frozen=True, slots=True)
class Job:
    """A job: machines, what each has to have, and the command of every rank."""

    name: str  # letters, digits and hyphens
    nodes: int
    ranks_per_node: int
    gpus_per_node: int  # 0: the CPU trains
    cores_per_rank: int
    memory_bytes: int  # main memory of a node
    limit_s: int
    warning_s: int  # before the limit, for the step and the save
    command: tuple[str, ...]
    planned: Planned

    @property
    def ranks(self) -> int:
        """The number of processes on all machines."""
        return self.nodes * self.ranks_per_node

    @property
    def memory_gib(self) -> int:
        """Main memory of a node in GiB, rounded up."""
        return -(-self.memory_bytes // 2**30)

    def rank_command(self) -> str:
        """Return the command that each rank runs; for one machine, what launches its ranks."""
        words = list(self.command)
        if self.nodes == 1 and self.ranks_per_node > 1:
            words += ["--nproc", str(self.ranks_per_node)]
        return shlex.join(words)

    def facts(self) -> list[str]:
        """Return what the file says of the plan, in lines."""
        plan, prediction = self.planned.plan, self.planned.prediction
        where = "of all ranks of a machine" if self.gpus_per_node == 0 else "of a GPU"
        micro_batch = f"micro-batch {plan.micro_batch.value} x {plan.accumulation.value}"
        size = f"{counted(self.nodes, 'machine')}, {counted(self.ranks, 'rank')}"
        peak, limit = prediction.total_bytes / 2**30, self.planned.limit_bytes / 2**30
        return [
            f"{size}, {plan.precision.value}",
            f"sharding: {plan.sharding.value} ({plan.sharding.reason})",
            f"{micro_batch}, activation checkpointing {plan.activation_checkpointing.value}",
            f"predicted memory {where}: {peak:.2f} GiB of {limit:.2f} GiB",
        ]


def make_job(
    request: TrainRequest,
    *,
    nodes: int,
    limit_s: float,
    run: PurePath,
    training_options: Sequence[str],
) -> Job:
    """Return the job that trains the request on `nodes` machines like the request's.

    `training_options`: those that choose what is trained, as `llmtrain train` takes them. `run`:
    the run directory, on storage that all machines share. Raises UsageError and DoesNotFitError.
    """
    require_nodes(nodes)
    if limit_s < _SHORTEST_LIMIT_S:
        raise UsageError(
            f"--limit {limit_s:g}s is shorter than {_SHORTEST_LIMIT_S} seconds, which starting and "
            "saving take",
            hint="--limit 4h",
        )
    resolved = resolve_profile(request)
    profile, facts = resolved.loaded.profile, resolved.facts
    kind = choose_device(facts, profile.device).value
    of_one = workload_of(profile, None, facts, measure=False)
    local = choose_processes(facts, profile.device, of_one, kind).value
    if kind == "mps" and nodes > 1:
        raise UsageError("mps has no collective backend for several machines", hint="--nodes 1")
    if kind == "cuda":
        local = len(facts.of_kind("cuda"))
    world = World(rank=0, size=nodes * local, local_size=local)
    planned = plan_run(profile, world=world, facts=facts, measure=False)
    planned = replace(planned, facts=facts)
    limit = round(limit_s)
    return Job(
        name=_NAME.sub("-", profile.name.lower()).strip("-") or "llmtrain",
        nodes=nodes,
        ranks_per_node=local,
        gpus_per_node=local if kind == "cuda" else 0,
        cores_per_rank=max(1, facts.cpu.usable_cores // local),
        memory_bytes=max(
            _main_memory_bytes(each, local, nodes * local)
            for each in (planned, *_with_rounds(planned, profile.device))
        ),
        limit_s=limit,
        warning_s=min(600, max(120, limit // 20)),
        command=("llmtrain", "train", *training_options, "--out", str(run), "--resume", "auto"),
        planned=planned,
    )


def _with_rounds(planned: Planned, options: DeviceSection) -> list[Planned]:
    """Return the plan with rounds, which ranks may choose when they meet; none if they may not."""
    facts, open_ = planned.facts, planned.workload
    if not (open_.sync_is_open and planned.plan.may_take_rounds):
        return []
    workload = replace(open_, sync_every=LONGEST_ROUND)
    try:
        return [planned_with(make_plan(facts, options, workload), workload, facts)]
    except DoesNotFitError:
        return []


def _main_memory_bytes(planned: Planned, local: int, ranks: int) -> int:
    """Return what a machine's ranks take of its main memory."""
    plan, workload = planned.plan, planned.workload
    if plan.device.value == "cpu":
        return round(_SPARE * planned.prediction.total_bytes)
    saved = checkpoint_bytes_of(workload, ranks)
    saving = ranks if workload.sync_every > 1 else workload.shards(plan.sharding.value, ranks)
    copied = saved * min(local, saving) // saving  # on the first machine
    return round(_SPARE * (local * (_HOST_BYTES + libraries_bytes("cpu")) + copied))
