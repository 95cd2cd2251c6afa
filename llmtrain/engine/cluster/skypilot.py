"""A task for SkyPilot."""

from __future__ import annotations

from typing import Any

from llmtrain.engine.cluster.job import Job
from llmtrain.engine.cluster.ranks import LINES, start_ranks, yaml_with_lines
from llmtrain.errors import UsageError

_STORAGE = "/runs"


def skypilot_script(job: Job, gpu: str | None, bucket: str) -> str:
    """Return the text of a file for `sky jobs launch`, which starts it again after pre-emption.

    `gpu` is SkyPilot's name of the GPU, `bucket` the address of the storage that all machines
    share. Raises UsageError where a GPU trains and is not named.
    """
    if job.gpus_per_node and gpu is None:
        raise UsageError("SkyPilot looks for GPUs by name", hint="--gpu H100")
    resources: dict[str, Any] = {
        "cpus": f"{job.cores_per_rank * job.ranks_per_node}+",
        "memory": f"{job.memory_gib}+",
        "use_spot": True,
    }
    if job.gpus_per_node:
        resources["accelerators"] = f"{gpu}:{job.gpus_per_node}"
    address = '$(echo "$SKYPILOT_NODE_IPS" | head -n 1)'
    task = {
        "name": job.name,
        "num_nodes": job.nodes,
        "resources": resources,
        "file_mounts": {_STORAGE: {"source": bucket, "mode": "MOUNT"}},
        "setup": "pip install llmtrain",
        "run": LINES,
    }
    lines = start_ranks(job, "SKYPILOT_NODE_RANK", address)
    return "".join(f"# {line}\n" for line in job.facts()) + yaml_with_lines(task, lines)
