"""`llmtrain cluster script`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from llmtrain.cli import options
from llmtrain.cli.output import Output
from llmtrain.errors import UsageError

if TYPE_CHECKING:
    from llmtrain.engine.cluster.job import Job

Cluster = Literal["slurm", "kubernetes", "skypilot"]
_IMAGE = "--image"


def script(
    output: Output,
    for_: Annotated[Cluster, typer.Option("--for", help="What runs the job.")],
    profile: options.Profile = None,
    nodes: Annotated[int, options.whole_number("--nodes", "Machines.", 1)] = 1,
    limit: Annotated[
        str, typer.Option("--limit", help="How long the job may take: 12h, 90m, 2d.")
    ] = "24h",
    out: Annotated[
        str | None,
        typer.Option("--out", help="The run directory, on storage that all machines share."),
    ] = None,
    data: options.Data = None,
    set_: options.Set = None,
    partition: Annotated[str | None, typer.Option("--partition", help="Slurm's.")] = None,
    account: Annotated[str | None, typer.Option("--account", help="Slurm's.")] = None,
    image: Annotated[
        str | None, typer.Option(_IMAGE, help="Kubernetes: a container image with llmtrain.")
    ] = None,
    claim: Annotated[
        str, typer.Option("--claim", help="Kubernetes: the claim of the shared volume.")
    ] = "llmtrain",
    gpu: Annotated[
        str | None, typer.Option("--gpu", help="SkyPilot: the GPU's name, as in H100.")
    ] = None,
    bucket: Annotated[
        str, typer.Option("--bucket", help="SkyPilot: the storage of runs.")
    ] = "s3://llmtrain-runs",
    assume: options.Assume = None,
) -> None:
    """Write a job file that trains a profile on a cluster, as planned for its machines.

    --assume describes one machine of the cluster; without it they are like this one.
    """
    from llmtrain.documents.cluster import ClusterScript
    from llmtrain.engine.cluster.job import make_job

    training = [f"--profile={profile}"] if profile is not None else []
    training += [f"--data={source}" for source in data or []]
    training += [f"--set={assignment}" for assignment in set_ or []]
    request = options.request_of(profile, set_, assume, data_sources=data or None)
    job = make_job(
        request,
        nodes=nodes,
        limit_s=_seconds(limit),
        run=Path(out) if out is not None else _default_run(for_, profile),
        training_options=training,
    )
    if for_ == "kubernetes" and image is None:
        raise UsageError(
            f"{_IMAGE} is missing: the container image that has llmtrain",
            hint=f"{_IMAGE} registry/llmtrain:tag, built from the Containerfile of the repository",
        )
    text = _text(for_, job, partition, account, image or "", claim, gpu, bucket)
    if output.json:
        output.document(ClusterScript.of_job(job, cluster=for_, text=text))
    else:
        output.text(text)


def _text(
    cluster: Cluster,
    job: Job,
    partition: str | None,
    account: str | None,
    image: str,
    claim: str,
    gpu: str | None,
    bucket: str,
) -> str:
    from llmtrain.engine.cluster.kubernetes import kubernetes_script
    from llmtrain.engine.cluster.skypilot import skypilot_script
    from llmtrain.engine.cluster.slurm import slurm_script

    if cluster == "slurm":
        return slurm_script(job, partition, account)
    if cluster == "kubernetes":
        return kubernetes_script(job, image, claim)
    return skypilot_script(job, gpu, bucket)


def _default_run(cluster: Cluster, profile: str | None) -> Path:
    name = Path(profile).stem if profile is not None else "run"
    return Path("/runs" if cluster == "skypilot" else "runs") / name


def _seconds(text: str) -> float:
    from llmtrain.units import parse_duration_s

    try:
        return parse_duration_s(text)
    except ValueError as error:
        raise UsageError(f"--limit {text}: {error}", hint="--limit 12h") from None
