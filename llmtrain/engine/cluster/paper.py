"""A run on a cluster that is not here: memory of a rank, time of a step, GPU hours."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace

from llmtrain.engine.request import TrainRequest, resolve_profile
from llmtrain.engine.workload import workload_of
from llmtrain.errors import DoesNotFitError, UsageError
from llmtrain.machine.facts import Facts
from llmtrain.plan.gpu_speeds import SPEEDS, GpuSpeed, speed_of
from llmtrain.plan.planned import Planned, planned_with
from llmtrain.plan.planner import Plan, make_plan
from llmtrain.plan.rounds import choose_sync_every
from llmtrain.plan.scaling import (
    COLLECTIVE_SHARE,
    Hardware,
    StepPrediction,
    predict_exchange,
    predict_step,
    scaled_shape,
)
from llmtrain.plan.workload import Workload
from llmtrain.profile.schema import DeviceSection
from llmtrain.profile.shape import ModelShape
from llmtrain.train.distributed.world import World

MOST_NODES = 4096
_WIDTH_STEP, _WIDEST = 128, 65536
_RATE = re.compile(r"(\d+(?:\.\d+)?)\s*([kMGT]?)(b|bit|B)(?:/s|ps)?", re.ASCII)
_SCALE = {"": 1.0, "k": 1e3, "M": 1e6, "G": 1e9, "T": 1e12}


@dataclass(frozen=True, slots=True)
class ClusterPlan:
    """A plan for many machines, with what is predicted of it."""

    nodes: int
    ranks: int
    planned: Planned
    hardware: Hardware
    step: StepPrediction
    largest: ModelShape | None  # of the profile's proportions, that fits; None: the profile's own

    @property
    def tokens_per_s(self) -> float:
        """Tokens a second of all ranks."""
        return self.planned.workload.tokens_per_step / self.step.step_s

    @property
    def utilisation(self) -> float:
        """The share of all GPUs' peak that the model's own FLOPs are."""
        flops = self.tokens_per_s * self.planned.workload.flops_per_token
        return flops / self.ranks / self.hardware.peak_flops

    @property
    def hours(self) -> float | None:
        """The time of the whole run; None where its length is not known in tokens."""
        tokens = self.planned.workload.tokens
        return None if tokens is None else tokens / self.tokens_per_s / 3600

    @property
    def gpu_hours(self) -> float | None:
        """`hours`, of every GPU."""
        return None if self.hours is None else self.ranks * self.hours


def plan_cluster(
    request: TrainRequest,
    *,
    nodes: int,
    network: str,
    gpu: str | None,
    utilisation: float,
) -> ClusterPlan:
    """Plan the request on `nodes` machines like the request's. Pure arithmetic: nothing is timed.

    `network`: into each machine, as in 400Gb. `gpu`: its model, unless the machine is this one.
    `utilisation`: of the peak, by a whole step on one GPU. Raises UsageError and DoesNotFitError.
    """
    if not 1 <= nodes <= MOST_NODES:
        raise UsageError(f"--nodes {nodes}: not from 1 to {MOST_NODES}", hint="--nodes 2")
    if not 0 < utilisation <= 1:
        raise UsageError(
            f"--utilisation {utilisation:g}: not above 0 and at most 1", hint="--utilisation 0.4"
        )
    resolved = resolve_profile(request)
    profile, facts = resolved.loaded.profile, resolved.facts
    gpus = facts.of_kind("cuda")
    if not gpus or profile.device.kind == "cpu" or profile.device.force_cpu:
        raise UsageError(
            "cluster plan predicts GPUs, of which this machine has none",
            hint="--assume cuda:8x80GiB --gpu H100",
        )
    speed = _speed(gpu, facts)
    world = World(rank=0, size=nodes * len(gpus), local_size=len(gpus))
    hardware = Hardware(
        peak_flops=speed.flops,
        utilisation=utilisation,
        link_bytes_per_s=COLLECTIVE_SHARE * speed.link_bytes_per_s,
        network_bytes_per_s=COLLECTIVE_SHARE * parse_rate(network),
    )
    workload = workload_of(profile, world, facts, measure=False)
    workload, plan = _planned(workload, facts, profile.device, hardware, nodes)
    return ClusterPlan(
        nodes=nodes,
        ranks=world.size,
        planned=planned_with(plan, workload, facts),
        hardware=hardware,
        step=predict_step(workload, plan, hardware, nodes=nodes),
        largest=_largest(workload, facts, profile.device),
    )


def _planned(
    workload: Workload, facts: Facts, options: DeviceSection, hardware: Hardware, nodes: int
) -> tuple[Workload, Plan]:
    """Return the plan, and the workload with `train.sync_every` decided, if that is auto."""
    plan = make_plan(facts, options, workload)
    if not (workload.sync_is_open and plan.may_take_rounds):
        return workload, plan
    step = predict_step(workload, plan, hardware, nodes=nodes)
    exchange = predict_exchange(plan, hardware, nodes=nodes)
    choice = choose_sync_every(workload, step.compute_s + step.update_s, exchange)
    decided = replace(workload, sync_every=choice.value, sync_is_open=False)
    return decided, replace(make_plan(facts, options, decided), sync_every=choice)


def parse_rate(text: str) -> float:
    """Return bytes a second of `400Gb` (bits) or `50GB`. Raises UsageError."""
    match = _RATE.fullmatch(text.strip())
    if match is None or float(match[1]) <= 0:
        raise UsageError(f"--network {text} is no rate", hint="--network 400Gb, in bits, or 50GB")
    return float(match[1]) * _SCALE[match[2]] / (1 if match[3] == "B" else 8)


def _speed(name: str | None, facts: Facts) -> GpuSpeed:
    wanted = name if name is not None else facts.of_kind("cuda")[0].name
    speed = speed_of(wanted)
    if speed is None:
        raise UsageError(
            f"the speed of {wanted} is not known: there are {', '.join(SPEEDS)}", hint="--gpu H100"
        )
    return speed


def _largest(workload: Workload, facts: Facts, options: DeviceSection) -> ModelShape | None:
    """Return the widest shape of the same proportions that fits; None if none wider does."""

    def fits(width: int) -> bool:
        shape = scaled_shape(workload.shape, width)
        try:
            make_plan(facts, options, replace(workload, shape=shape))
        except DoesNotFitError:
            return False
        return True

    first = workload.shape.hidden_size // _WIDTH_STEP + 1
    low, high = first - 1, _WIDEST // _WIDTH_STEP  # low fits, as the profile itself does
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if fits(middle * _WIDTH_STEP) else (low, middle - 1)
    return scaled_shape(workload.shape, low * _WIDTH_STEP) if low >= first else None
