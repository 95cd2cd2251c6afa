from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

from llmtrain.engine.cluster.slurm import slurm_script, slurm_time
from tests.engine.cluster.conftest import MakeJob

needs_bash = pytest.mark.skipif(
    os.name == "nt" or shutil.which("bash") is None, reason="the script is for bash"
)


def test_the_script_asks_for_what_the_job_needs(make: MakeJob) -> None:
    lines = slurm_script(make(), partition="gpu").splitlines()
    assert lines[0] == "#!/bin/bash"
    options = {line.removeprefix("#SBATCH --") for line in lines if line.startswith("#SBATCH")}
    assert options >= {
        *("nodes=2", "ntasks-per-node=8", "gpus-per-node=8", "cpus-per-task=8", "partition=gpu"),
        *("time=12:00:00", "signal=TERM@600", "requeue", "open-mode=append"),
    }
    assert not any(option.startswith("account") for option in options)


def test_one_machine_is_one_task_with_all_of_its_cores(make: MakeJob) -> None:
    text = slurm_script(make(nodes=1))
    assert "--ntasks-per-node=1\n" in text
    assert "--cpus-per-task=64\n" in text
    assert "MASTER_ADDR" not in text


def test_cpus_ask_for_no_gpu(make: MakeJob) -> None:
    assert "gpus-per-node" not in slurm_script(make("cpu:16c:64GiB", "cpu-small"))


@pytest.mark.parametrize(
    ("seconds", "text"), [(600, "00:10:00"), (86399, "23:59:59"), (93784, "1-02:03:04")]
)
def test_times_are_as_slurm_reads_them(seconds: int, text: str) -> None:
    assert slurm_time(seconds) == text


@needs_bash
@pytest.mark.parametrize(("code", "is_requeued"), [(0, False), (75, True), (3, False)])
def test_ranks_get_their_variables_and_a_saved_run_is_queued_again(
    make: MakeJob, tmp_path: Path, code: int, is_requeued: bool
) -> None:
    """With commands of Slurm that say how they were called."""
    programs = {
        "srun": 'while [ "$1" != bash ]; do shift; done; exec "$@"',
        "scontrol": 'if [ "$1" = show ]; then echo first; echo second; else echo "$@" > asked; fi',
        "llmtrain": 'echo "$RANK $LOCAL_RANK $WORLD_SIZE $LOCAL_WORLD_SIZE $MASTER_ADDR '
        f'$MASTER_PORT $*" > rank; exit {code}',
    }
    for name, text in programs.items():
        (tmp_path / name).write_text(f"#!/bin/bash\n{text}\n")
        (tmp_path / name).chmod(0o755)
    (tmp_path / "job.sh").write_text(slurm_script(make()))
    variables = {"SLURM_JOB_ID": "7", "SLURM_PROCID": "9", "SLURM_LOCALID": "1"}
    variables |= {"SLURM_NTASKS": "16", "SLURM_JOB_NODELIST": "n[1-2]"}
    path = f"{tmp_path}{os.pathsep}{os.environ['PATH']}"
    done = subprocess.run(
        ["bash", "job.sh"], cwd=tmp_path, env=os.environ | variables | {"PATH": path}, check=False
    )
    assert done.returncode == code
    given = (tmp_path / "rank").read_text()
    assert given == (
        "9 1 16 8 first 20007 train --profile=gpu-large --out /shared/run --resume auto\n"
    )
    assert (tmp_path / "asked").exists() == is_requeued
    if is_requeued:
        assert (tmp_path / "asked").read_text() == "requeue 7\n"
