"""`llmtrain cluster plan`."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Annotated

import typer

from llmtrain.cli import options
from llmtrain.cli.output import Output
from llmtrain.units import counted, format_bytes, format_count, format_duration

if TYPE_CHECKING:
    from llmtrain.cli.output import Part
    from llmtrain.engine.cluster.prediction import ClusterPlan


def plan(
    output: Output,
    profile: options.Profile = None,
    nodes: Annotated[int, options.whole_number("--nodes", "Machines.", 1)] = 1,
    nproc: Annotated[
        int | None,
        options.whole_number("--nproc", "Processes on each machine, where CPUs train.", 1),
    ] = None,
    network: Annotated[
        str | None,
        typer.Option(
            "--network",
            metavar="RATE",
            help="Into each machine: 400Gb (bits a second), or 50GB (bytes). "
            "100Gb with GPUs and 1Gb with CPUs, if not given.",
        ),
    ] = None,
    round_trip: Annotated[
        str | None,
        typer.Option(
            "--round-trip",
            metavar="TIME",
            help="Between two machines, as ping shows it, where CPUs train. 0.2ms, if not given.",
        ),
    ] = None,
    gpu: Annotated[
        str | None,
        typer.Option(
            "--gpu", metavar="NAME", help="The GPU, as in H100, for its speed by the data sheet."
        ),
    ] = None,
    utilisation: Annotated[
        float | None,
        typer.Option(
            "--utilisation",
            help="Of a GPU's peak, by a whole step on one; measured, if you can. 0.4, if not "
            "given.",
        ),
    ] = None,
    set_: options.Set = None,
    assume: options.Assume = None,
) -> None:
    """Predict a run on many machines: memory of a rank, time of a step, GPU hours.

    --assume describes one machine with GPUs; without it they are like this one. Of CPUs this one's
    are timed, once.
    """
    from llmtrain.documents.cluster import ClusterPlan as Published
    from llmtrain.engine.cluster.paper import plan_cluster

    request = options.request_of(profile, set_, assume, device_processes=nproc)
    found = plan_cluster(
        request,
        nodes=nodes,
        network=network,
        round_trip=round_trip,
        gpu=gpu,
        utilisation=utilisation,
        announce=output.note,
    )
    output.answer(Published.of_plan(found), _parts(found))


def _parts(found: ClusterPlan) -> Iterator[Part]:
    from llmtrain.cli.plan_tables import prediction_parts
    from llmtrain.cli.tables import facts_table

    chosen, step = found.planned.plan, found.step
    size = f"{counted(found.nodes, 'machine')}, {counted(found.ranks, 'rank')}"
    yield facts_table(
        [
            ("ranks", size),
            ("sharding", f"{chosen.sharding.value}: {chosen.sharding.reason}"),
            ("sync every", f"{chosen.sync_every.value}: {chosen.sync_every.reason}"),
            ("micro-batch", f"{chosen.micro_batch.value} × {chosen.accumulation.value}"),
            ("recomputation", chosen.activation_checkpointing.value),
        ],
        title="plan",
    )
    yield ""
    yield facts_table(
        [(each.name, f"{each.value} ({each.source})") for each in found.assumed], title="rests on"
    )
    yield ""
    yield from prediction_parts(found.planned)
    yield ""
    yield facts_table(
        [
            ("step", f"{step.step_s:.3g} s"),
            ("computation", f"{step.compute_s:.3g} s"),
            ("communication", f"{step.communication_s:.3g} s, {step.exposed_s:.3g} s not hidden"),
            ("update", f"{step.update_s:.3g} s"),
            ("received by a rank", f"{format_bytes(round(step.received_bytes))} a step"),
            ("tokens/s", format_count(round(found.tokens_per_s))),
            ("model FLOPs", f"{found.utilisation:.1%} of {_whose_peak(found)}"),
            *_length(found),
            ("largest that fits", _largest(found)),
        ],
        title="predicted",
    )


def _length(found: ClusterPlan) -> Iterator[tuple[str, str]]:
    if found.hours is None:
        return
    gpu_hours = "" if found.gpu_hours is None else f", {found.gpu_hours:,.0f} GPU hours"
    yield "the run", f"{format_duration(3600 * found.hours)}{gpu_hours}"


def _whose_peak(found: ClusterPlan) -> str:
    if found.has_gpus:
        return "all GPUs' peak"
    return "what all processes' matrix products would be alone"


def _largest(found: ClusterPlan) -> str:
    shape = found.largest
    if shape is None:
        return "this one"
    return (
        f"{format_count(shape.parameters)} parameters: {shape.num_layers} layers of width "
        f"{shape.hidden_size}, at the same tokens a step"
    )
