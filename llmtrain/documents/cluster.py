"""Job files of clusters, and predictions of runs on them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from typing_extensions import Self

from llmtrain.choice import Sharding
from llmtrain.documents.base import Document, Number, Part, Reasoned, Text, key
from llmtrain.documents.plans import Prediction

if TYPE_CHECKING:
    from llmtrain.engine.cluster.job import Job
    from llmtrain.engine.cluster.prediction import ClusterPlan as Paper


class ClusterScript(Document):
    """`llmtrain cluster script`: the job file, and what it asks for."""

    cluster: Literal["slurm", "kubernetes", "skypilot"] = key("what runs the job")
    text: Text = key("the file")
    name: Text = key("of the job")
    nodes: int = key("machines")
    ranks_per_node: int = key("processes on each")
    gpus_per_node: int = key("GPUs of each that compute; 0: the CPU trains")
    cores_per_rank: int = key("cores of each process")
    memory_bytes: int = key("main memory that is asked for on each machine")
    limit_s: int = key("how long the job may take")
    warning_s: int = key("how long before that it is told to save and stop")
    command: list[Text] = key("of each rank, or for one machine of what launches them")
    sharding: Reasoned[Sharding] = key(
        "whether each process has all weights and optimizer state, or a part; hybrid: each machine "
        "has all"
    )
    predicted: Prediction = key("the peak of a GPU, or of all processes of a machine on CPUs")
    memory_limit_bytes: int = key("what that may be")

    @classmethod
    def of_job(cls, job: Job, *, cluster: str, text: str) -> Self:
        """Return the document of a job and its file."""
        return cls.of(
            job,
            cluster=cluster,
            text=text,
            command=list(job.command),
            sharding=job.planned.plan.sharding,
            predicted=job.planned.prediction,
            memory_limit_bytes=job.planned.limit_bytes,
        )


class LargestShape(Part):
    """The widest model of the profile's proportions that fits."""

    parameters: int = key("weights")
    hidden_size: int = key("its width")
    num_layers: int = key("its depth")


class PredictedStep(Part):
    """The predicted time of a step, in seconds."""

    step_s: float = key("the whole step")
    compute_s: float = key("forward and backward of a rank's windows, with what is recomputed")
    communication_s: float = key("all communication, whether or not computation runs beside it")
    exposed_s: float = key("of that, what nothing runs beside")
    update_s: float = key("Muon's products; of CPUs the whole update")
    received_bytes: float = key("that come into a rank")


class AssumedHardware(Part):
    """The speeds that the prediction assumes."""

    peak_flops: float = key(
        "of one GPU, by its data sheet; of a process on CPUs, measured of the model's products"
    )
    utilisation: float = key("of that, by a whole step on one GPU, or by a process's computation")
    link_bytes_per_s: float = key("into a GPU or a process, from the others of its machine")
    network_bytes_per_s: float = key("into a machine")


class Assumption(Part):
    """A quantity that a prediction rests on."""

    name: Text = key("which")
    value: Text = key("in words, with its unit; they may change")
    source: Text = key("measured, given or assumed, and by what")


class ClusterPlan(Document):
    """`llmtrain cluster plan`: a run on many machines, on paper."""

    nodes: int = key("machines")
    ranks: int = key("processes on all of them")
    sharding: Reasoned[Sharding] = key(
        "whether each process has all weights and optimizer state, or a part; hybrid: each machine "
        "has all"
    )
    sync_every: Reasoned[int] = key(
        "steps that each process takes by itself before weights are averaged; 1: gradients are "
        "averaged in every step"
    )
    micro_batch: int = key("sequences of one forward and backward")
    accumulation: int = key("micro-batches of one process in a step")
    predicted: Prediction = key(
        "the peak of memory of one GPU, or of all processes of a machine on CPUs"
    )
    memory_limit_bytes: int = key("what that may be")
    hardware: AssumedHardware = key("the speeds that are assumed")
    assumed: list[Assumption] = key("what the prediction rests on, each with its source")
    step: PredictedStep = key("the time of a step")
    tokens_per_s: float = key("of all processes")
    utilisation: float = key("the model's own FLOPs, of the peak of all GPUs or processes")
    hours: Number = key("of the whole run; null: its length in tokens is not known")
    gpu_hours: Number = key("`hours` times the GPUs; null: as there, or CPUs train")
    largest: LargestShape | None = key("the largest that fits; null: none wider than the profile's")

    @classmethod
    def of_plan(cls, found: Paper) -> Self:
        """Return the document of a plan on paper."""
        planned = found.planned
        return cls.of(
            found,
            sharding=planned.plan.sharding,
            sync_every=planned.plan.sync_every,
            micro_batch=planned.plan.micro_batch.value,
            accumulation=planned.plan.accumulation.value,
            predicted=planned.prediction,
            memory_limit_bytes=planned.limit_bytes,
        )
