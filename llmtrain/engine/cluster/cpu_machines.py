"""A run on machines of CPUs like this one, from what is timed here and a network that is given."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

from llmtrain.choice import Choice
from llmtrain.engine.cluster.prediction import (
    Assumption,
    ClusterPlan,
    largest_that_fits,
    parse_rate,
    parse_round_trip_s,
)
from llmtrain.engine.request import ResolvedProfile
from llmtrain.engine.workload import workload_of
from llmtrain.errors import UsageError
from llmtrain.machine.facts import CpuTimes, ExchangeTimes, Facts, StepTimes
from llmtrain.plan.cpu_benchmarks import measured_cpu
from llmtrain.plan.decisions import choose_processes
from llmtrain.plan.exchange_benchmarks import exchange_probe
from llmtrain.plan.gloo_scaling import (
    ETHERNET_PAYLOAD,
    Computation,
    GlooNetwork,
    predict_gloo_step,
)
from llmtrain.plan.kernel_probes import Announce
from llmtrain.plan.planned import Planned, planned_with
from llmtrain.plan.planner import make_plan
from llmtrain.plan.process_benchmarks import process_probe, timed_in_turn, with_timed_processes
from llmtrain.plan.rounds import choose_sync_every
from llmtrain.plan.scaling import Hardware
from llmtrain.plan.throughput import micro_batch_s
from llmtrain.plan.workload import Workload
from llmtrain.profile.schema import DeviceSection
from llmtrain.train.distributed.world import World
from llmtrain.units import counted

_NETWORK, _ROUND_TRIP = "1Gb", "0.2ms"  # where nothing is said


@dataclass(frozen=True, slots=True)
class _Machine:
    """One of the machines, and how many ranks all of them have."""

    facts: Facts
    options: DeviceSection
    world: World
    announce: Announce | None

    @property
    def local(self) -> int:
        return self.world.local_size

    def exchange(self) -> ExchangeTimes:
        """Return the times of an exchange between its ranks, or two processes, timed once."""
        probe = exchange_probe(self.facts, max(2, self.local))
        if self.announce is not None and probe.saved() is None:
            self.announce("timing an exchange between processes, once for this machine: seconds")
        return probe.times()


def plan_cpu_machines(
    resolved: ResolvedProfile,
    *,
    nodes: int,
    network: str | None,
    round_trip: str | None,
    announce: Announce | None,
) -> ClusterPlan:
    """Plan a run on `nodes` machines whose CPUs are like this one's.

    Raises UsageError and DoesNotFitError.
    """
    profile, facts = resolved.loaded.profile, resolved.facts
    if resolved.assumed is not None:
        raise UsageError(
            "the computation of CPUs is timed, and those of an assumed machine are not here",
            hint="without --assume, on one of the machines",
        )
    rate = parse_rate(network or _NETWORK) * ETHERNET_PAYLOAD
    round_trip_s = parse_round_trip_s(round_trip or _ROUND_TRIP)
    local = _ranks_of_a_machine(resolved)
    world = World(rank=0, size=nodes * local, local_size=local)
    machine = _Machine(facts, profile.device, world, announce)
    workload = workload_of(profile, world, facts)
    times = measured_cpu(facts, profile.device, workload)
    exchange = machine.exchange()
    linked = GlooNetwork(world.size, nodes, exchange, max(2, local), rate, round_trip_s)
    workload, planned, computation = _planned(machine, workload, times, linked)
    accumulation = float(planned.plan.accumulation.value)
    step = predict_gloo_step(workload, computation, linked, accumulation)
    hardware = _hardware(planned, linked, step.compute_s)
    return ClusterPlan(
        nodes=nodes,
        ranks=world.size,
        planned=planned,
        hardware=hardware,
        step=step,
        largest=largest_that_fits(workload, facts, profile.device),
        assumed=(
            *_measured(machine, planned, computation, profile.name),
            *_assumed(linked, network, round_trip),
        ),
    )


def _ranks_of_a_machine(resolved: ResolvedProfile) -> int:
    """Return how many ranks a machine has: as asked for, or as timed before."""
    options, facts = resolved.loaded.profile.device, resolved.facts
    of_one = workload_of(resolved.loaded.profile, None, facts)
    of_one = with_timed_processes(facts, options, of_one)
    local = choose_processes(facts, options, of_one, "cpu").value
    if local > 1 and (of_one.lora is not None or of_one.is_dpo):
        raise UsageError(
            "a step of several processes with adapters or preferences is not timed",
            hint="--nproc 1, on each machine",
        )
    return local


def _planned(
    machine: _Machine, workload: Workload, times: CpuTimes, network: GlooNetwork
) -> tuple[Workload, Planned, Computation]:
    """Return the plan, with `train.sync_every` decided if that is auto, and a rank's times."""
    facts, options = machine.facts, machine.options
    plan = make_plan(facts, options, workload, times)
    if plan.sharding.value != "replicate":
        raise UsageError(
            "the time of a model that is sharded over CPUs is not predicted",
            hint="--set device.sharding=replicate, where a replica fits",
        )
    planned = planned_with(plan, workload, facts, times)
    computation = _computation(machine, planned)
    if not (workload.sync_is_open and plan.may_take_rounds):
        return workload, planned, computation
    step_s = plan.accumulation.value * computation.micro_s + computation.update_s
    between = "these ranks, as predicted"
    choice = choose_sync_every(workload, step_s, network.all_reduce(), between)
    decided = replace(workload, sync_every=choice.value, sync_is_open=False)
    plan = replace(make_plan(facts, options, decided, times), sync_every=choice)
    planned = planned_with(plan, decided, facts, times)
    return decided, planned, _computation(machine, planned)


def _computation(machine: _Machine, planned: Planned) -> Computation:
    """Return the seconds of a rank's parts, timed by as many processes as the machine has."""
    parts, shape = planned.step_times, planned.workload.shape
    assert parts is not None
    micro_s = micro_batch_s(shape, parts)
    head_share = parts.head.seconds / micro_s
    if machine.local == 1:
        return Computation(micro_s, parts.update.seconds, head_share)
    plan = replace(planned.plan, processes=Choice(machine.local, "of one machine"))
    probe = process_probe(machine.facts, planned.workload, plan)
    saved = probe.saved()
    if saved is None:
        if machine.announce is not None:
            machine.announce(
                f"timing a step by {machine.local} processes, once for this machine and shape: up "
                "to a minute"
            )
        saved = timed_in_turn({machine.local: probe})[machine.local]
    gain = _gain_of_compiling(planned, parts)
    synced_s = None
    if machine.world.size == machine.local and planned.workload.sync_every == 1:
        synced_s = saved.synced_s - (1 - gain) * saved.micro_s
    return Computation(gain * saved.micro_s, saved.update_s, head_share, synced_s)


def _gain_of_compiling(planned: Planned, parts: StepTimes) -> float:
    """Return the time of a micro-batch as the plan computes it, over that of several processes.

    Those are timed eager: what compiling gains, it gains alike for each.
    """
    times, shape = planned.cpu_times, planned.workload.shape
    if times is None or times.eager is None or parts is not times.compiled:
        return 1.0
    return micro_batch_s(shape, parts) / micro_batch_s(shape, times.eager)


def _hardware(planned: Planned, network: GlooNetwork, compute_s: float) -> Hardware:
    """Return the speeds that were measured and given."""
    workload, peak = planned.workload, planned.peak_flops
    assert peak is not None
    flops = workload.flops_per_token * workload.tokens_per_step / network.ranks
    return Hardware(
        peak_flops=peak,
        utilisation=flops / compute_s / peak,
        link_bytes_per_s=network.local_bytes_per_s,
        network_bytes_per_s=network.bytes_per_s,
    )


def _measured(
    machine: _Machine, planned: Planned, computation: Computation, profile: str
) -> Iterator[Assumption]:
    yield Assumption("machines", "CPUs like this one's, of one kind", "assumed")
    threads = counted(planned.plan.threads.value, "thread")
    yield Assumption(
        "computation",
        f"{1e3 * computation.micro_s:.4g} ms a micro-batch, "
        f"{1e3 * computation.update_s:.4g} ms an update, by {threads}",
        _how_timed(machine, planned, profile),
    )


def _how_timed(machine: _Machine, planned: Planned, profile: str) -> str:
    parts, times = planned.step_times, planned.cpu_times
    assert parts is not None
    again = f"llmtrain device bench --profile {profile}"
    if machine.local > 1:
        how = f"timed here by {machine.local} processes at once"
    else:
        how = "from the parts of a step, timed here"
    if planned.plan.compile.value and (times is None or parts is not times.compiled):
        return f"{how}; compiled they are not timed yet: {again}"
    return f"{how}; other programs kept it busy: {again}" if parts.is_contended else how


def _assumed(
    network: GlooNetwork, given: str | None, round_trip: str | None
) -> Iterator[Assumption]:
    yield Assumption(
        "exchange in a machine",
        f"{network.local_bytes_per_s / 1e9:.2g} GB/s into a process",
        f"gloo between {network.timed} processes, timed here",
    )
    if network.nodes == 1:
        return
    yield Assumption(
        "network",
        f"{network.bytes_per_s / 1e6:.4g} MB/s of data into a machine",
        f"{_NETWORK}: assumed; give --network" if given is None else f"--network {given}",
    )
    yield Assumption(
        "of that",
        f"{ETHERNET_PAYLOAD:.0%} of its rate are data",
        "TCP in Ethernet frames of 1,500 bytes",
    )
    yield Assumption(
        "round trip",
        f"{1e3 * network.round_trip_s:.3g} ms",
        "assumed; give --round-trip" if round_trip is None else "--round-trip",
    )
