"""Objects for Kubernetes: an indexed job, and for several machines a service that names them."""

from __future__ import annotations

from typing import Any

from llmtrain.engine.cluster.job import PORT, Job
from llmtrain.engine.cluster.ranks import LINES, start_ranks, yaml_with_lines
from llmtrain.profile.yaml_text import dump_document

_RESTARTS = 1000  # of pods, after pre-emptions and failures of machines
_STORAGE = "/workspace"


def kubernetes_script(job: Job, image: str, claim: str) -> str:
    """Return the text of a file for `kubectl apply -f`.

    `claim` is the volume claim of the storage that all pods share; it is mounted at /workspace,
    where the command runs. A pod that was stopped and saved ends with 75, and another takes its
    place.
    """
    lines = start_ranks(job, "JOB_COMPLETION_INDEX", f"{job.name}-0.{job.name}")
    documents = [yaml_with_lines(_job(job, image, claim), lines)]
    if job.nodes > 1:
        documents.insert(0, dump_document(_service(job), "the service"))
    return "".join(f"# {line}\n" for line in job.facts()) + "---\n".join(documents)


def _service(job: Job) -> dict[str, Any]:
    return {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {"name": job.name},
        "spec": {
            "clusterIP": "None",
            "publishNotReadyAddresses": True,
            "selector": {"job-name": job.name},
            "ports": [{"port": PORT, "name": "rendezvous"}],
        },
    }


def _job(job: Job, image: str, claim: str) -> dict[str, Any]:
    return {
        "apiVersion": "batch/v1",
        "kind": "Job",
        "metadata": {"name": job.name},
        "spec": {
            "completions": job.nodes,
            "parallelism": job.nodes,
            "completionMode": "Indexed",
            "backoffLimit": _RESTARTS,
            "activeDeadlineSeconds": job.limit_s,
            "podFailurePolicy": {
                "rules": [
                    {"action": "Ignore", "onPodConditions": [{"type": "DisruptionTarget"}]},
                    {
                        "action": "Ignore",
                        "onExitCodes": {"operator": "In", "values": [75]},
                    },
                    # what the same command cannot do a second time either
                    {
                        "action": "FailJob",
                        "onExitCodes": {"operator": "In", "values": [2, 3, 4, 5]},
                    },
                ]
            },
            "template": {"spec": _pod(job, image, claim)},
        },
    }


def _pod(job: Job, image: str, claim: str) -> dict[str, Any]:
    resources: dict[str, Any] = {
        "cpu": str(job.cores_per_rank * job.ranks_per_node),
        "memory": f"{job.memory_gib}Gi",
    }
    gpus = {"nvidia.com/gpu": str(job.gpus_per_node)} if job.gpus_per_node else {}
    return {
        **({"subdomain": job.name} if job.nodes > 1 else {}),
        "restartPolicy": "Never",
        "terminationGracePeriodSeconds": job.warning_s,
        "containers": [
            {
                "name": "llmtrain",
                "image": image,
                "workingDir": _STORAGE,
                "command": ["bash", "-c", LINES],
                "resources": {"requests": resources | gpus, "limits": gpus | _memory(resources)},
                "volumeMounts": [
                    {"name": "storage", "mountPath": _STORAGE},
                    {"name": "shared-memory", "mountPath": "/dev/shm"},
                ],
            }
        ],
        "volumes": [
            {"name": "storage", "persistentVolumeClaim": {"claimName": claim}},
            {"name": "shared-memory", "emptyDir": {"medium": "Memory"}},
        ],
    }


def _memory(resources: dict[str, Any]) -> dict[str, Any]:
    return {"memory": resources["memory"]}
