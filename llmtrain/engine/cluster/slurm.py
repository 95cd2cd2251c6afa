"""A batch script for Slurm."""

from __future__ import annotations

import shlex

from llmtrain.engine.cluster.job import Job


def slurm_script(job: Job, partition: str | None = None, account: str | None = None) -> str:
    """Return the text of a file for `sbatch`.

    Slurm's own `srun` starts the ranks, so that its signals reach them and not a launcher that
    would end them after half a minute. A stopped and saved run ends with 75 and is queued again.
    """
    tasks = job.ranks_per_node if job.nodes > 1 else 1
    cores = job.cores_per_rank * (1 if job.nodes > 1 else job.ranks_per_node)
    options = {
        "job-name": job.name,
        "partition": partition,
        "account": account,
        "nodes": job.nodes,
        "ntasks-per-node": tasks,
        "cpus-per-task": cores,
        "gpus-per-node": job.gpus_per_node or None,
        "mem": f"{job.memory_gib}G",
        "time": slurm_time(job.limit_s),
        "signal": f"TERM@{job.warning_s}",
        "open-mode": "append",
        "output": f"{job.name}-%j.log",
    }
    lines = ["#!/bin/bash"]
    lines += [f"#SBATCH --{name}={value}" for name, value in options.items() if value is not None]
    lines += ["#SBATCH --requeue", "#", *(f"# {line}" for line in job.facts())]
    lines += [
        f"# SIGTERM comes {job.warning_s} s before the limit, and when the job is pre-empted: the",
        "# step is finished, the run saved, and the job is queued again.",
        "",
        *(_several_machines(job) if job.nodes > 1 else [f"srun {job.rank_command()}"]),
        "code=$?",
        'if [ "$code" -eq 75 ]; then scontrol requeue "$SLURM_JOB_ID"; fi',
        'exit "$code"',
    ]
    return "\n".join(lines) + "\n"


def slurm_time(seconds: int) -> str:
    """Return seconds as Slurm writes them: `1-02:30:00`."""
    days, rest = divmod(seconds, 86400)
    clock = f"{rest // 3600:02d}:{rest % 3600 // 60:02d}:{rest % 60:02d}"
    return f"{days}-{clock}" if days else clock


def _several_machines(job: Job) -> list[str]:
    ranks = (
        "export RANK=$SLURM_PROCID LOCAL_RANK=$SLURM_LOCALID WORLD_SIZE=$SLURM_NTASKS "
        f"LOCAL_WORLD_SIZE={job.ranks_per_node}; exec {job.rank_command()}"
    )
    return [
        'MASTER_ADDR=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)',
        "MASTER_PORT=$((20000 + SLURM_JOB_ID % 20000))",
        "export MASTER_ADDR MASTER_PORT",
        f"srun --kill-on-bad-exit=0 --wait={job.warning_s} bash -c {shlex.quote(ranks)}",
    ]
