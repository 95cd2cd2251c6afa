"""Job files of clusters."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from typing_extensions import Self

from llmtrain.choice import Sharding
from llmtrain.documents.base import Document, Reasoned, Text, key
from llmtrain.documents.plans import Prediction

if TYPE_CHECKING:
    from llmtrain.engine.cluster.job import Job


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
        "whether each process has all weights and optimizer state, or a part"
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
