"""A run on a cluster that is not here: memory of a rank, time of a step, GPU hours."""

from __future__ import annotations

from dataclasses import replace

from llmtrain.engine.cluster.cpu_machines import plan_cpu_machines
from llmtrain.engine.cluster.nodes import require_nodes
from llmtrain.engine.cluster.prediction import (
    Assumption,
    ClusterPlan,
    largest_that_fits,
    parse_rate,
)
from llmtrain.engine.request import ResolvedProfile, TrainRequest, resolve_profile
from llmtrain.engine.workload import workload_of
from llmtrain.errors import UsageError
from llmtrain.machine.facts import Facts
from llmtrain.plan.decisions import choose_device
from llmtrain.plan.gpu_speeds import SPEEDS, GpuSpeed, speed_of
from llmtrain.plan.kernel_probes import Announce
from llmtrain.plan.planned import planned_with
from llmtrain.plan.planner import Plan, make_plan
from llmtrain.plan.rounds import choose_sync_every
from llmtrain.plan.scaling import COLLECTIVE_SHARE, Hardware, predict_exchange, predict_step
from llmtrain.plan.workload import Workload
from llmtrain.profile.schema import DeviceSection
from llmtrain.train.distributed.world import World

_UTILISATION, _NETWORK = 0.4, "100Gb"  # of GPUs, where nothing is said


def plan_cluster(
    request: TrainRequest,
    *,
    nodes: int,
    network: str | None = None,
    round_trip: str | None = None,
    gpu: str | None = None,
    utilisation: float | None = None,
    announce: Announce | None = None,
) -> ClusterPlan:
    """Plan the request on `nodes` machines like the request's.

    For GPUs that is arithmetic. CPUs are like this one, which is timed, where that was not done
    before; `announce` is told.

    `network`: into each machine, as in 400Gb. `round_trip`: between two of them, as in 0.2ms.
    `gpu`: its model, unless the machine is this one. `utilisation`: of the peak, by a whole step on
    one GPU. Raises UsageError and DoesNotFitError.
    """
    require_nodes(nodes)
    if utilisation is not None and not 0 < utilisation <= 1:
        raise UsageError(
            f"--utilisation {utilisation:g}: not above 0 and at most 1", hint="--utilisation 0.4"
        )
    resolved = resolve_profile(request)
    kind = choose_device(resolved.facts, resolved.loaded.profile.device).value
    if kind == "cpu":
        _refuse("--gpu and --utilisation describe GPUs", gpu, utilisation)
        return plan_cpu_machines(
            resolved, nodes=nodes, network=network, round_trip=round_trip, announce=announce
        )
    if kind != "cuda":
        raise UsageError(
            f"cluster plan predicts CUDA's GPUs and CPUs, and the plan is for {kind}",
            hint="--assume cuda:8x80GiB --gpu H100, or --set device.kind=cpu",
        )
    if round_trip is not None:
        raise UsageError("--round-trip is of machines whose CPUs train", hint="leave it out")
    return _plan_gpus(resolved, nodes, network, gpu, utilisation)


def _refuse(problem: str, *given: object) -> None:
    if any(value is not None for value in given):
        raise UsageError(
            f"{problem}, and the plan is for CPUs", hint="--assume cuda:8x80GiB --gpu H100"
        )


def _plan_gpus(
    resolved: ResolvedProfile,
    nodes: int,
    network: str | None,
    gpu: str | None,
    utilisation: float | None,
) -> ClusterPlan:
    profile, facts = resolved.loaded.profile, resolved.facts
    gpus = facts.of_kind("cuda")
    speed, rate = _speed(gpu, facts), parse_rate(network or _NETWORK)
    world = World(rank=0, size=nodes * len(gpus), local_size=len(gpus))
    hardware = Hardware(
        peak_flops=speed.flops,
        utilisation=utilisation or _UTILISATION,
        link_bytes_per_s=COLLECTIVE_SHARE * speed.link_bytes_per_s,
        network_bytes_per_s=COLLECTIVE_SHARE * rate,
    )
    workload = workload_of(profile, world, facts, measure=False)
    workload, plan = _planned(workload, facts, profile.device, hardware, nodes)
    return ClusterPlan(
        nodes=nodes,
        ranks=world.size,
        planned=planned_with(plan, workload, facts),
        hardware=hardware,
        step=predict_step(workload, plan, hardware, nodes=nodes),
        largest=largest_that_fits(workload, facts, profile.device),
        assumed=tuple(_assumed_of_gpus(hardware, network, utilisation)),
    )


def _assumed_of_gpus(
    hardware: Hardware, network: str | None, utilisation: float | None
) -> list[Assumption]:
    collectives = f"{COLLECTIVE_SHARE:.0%} of it, by collectives: assumed"
    network_from = "assumed; give --network" if network is None else "--network"
    link, between = hardware.link_bytes_per_s, hardware.network_bytes_per_s
    return [
        Assumption("peak", f"{hardware.peak_flops / 1e12:.0f} TFLOP/s a GPU", "data sheet"),
        Assumption(
            "utilisation",
            f"{hardware.utilisation:.0%} of that by one GPU",
            "assumed; give --utilisation" if utilisation is None else "--utilisation",
        ),
        Assumption("link", f"{link / 1e9:.0f} GB/s into a GPU", f"data sheet, {collectives}"),
        Assumption(
            "network",
            f"{between / 1e9:.1f} GB/s into a machine",
            f"{network_from}, {collectives}",
        ),
    ]


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


def _speed(name: str | None, facts: Facts) -> GpuSpeed:
    wanted = name if name is not None else facts.of_kind("cuda")[0].name
    speed = speed_of(wanted)
    if speed is None:
        raise UsageError(
            f"the speed of {wanted} is not known: there are {', '.join(SPEEDS)}", hint="--gpu H100"
        )
    return speed
