"""From outside a run's process is found while it trains, and not taken for another after."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from llmtrain.errors import UsageError
from llmtrain.files import LAUNCHED_VARIABLE
from llmtrain.train.distributed.world import run_process_identity
from llmtrain.train.run_directory.directory import RunDirectory
from llmtrain.train.run_directory.running import newest_in_training, run_in_training


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv(LAUNCHED_VARIABLE, raising=False)


def recorded(name: str, process: object) -> RunDirectory:
    run = RunDirectory(Path("runs") / name)
    run.path.mkdir(parents=True)
    run.write_record({"profile": {"name": "tiny"}, "sessions": [{"process": process}]})
    return run


def test_of_ranks_the_launcher_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(LAUNCHED_VARIABLE, "1")
    assert run_process_identity().split()[0] == str(os.getppid())


def test_the_run_that_is_being_trained_is_found() -> None:
    assert newest_in_training() is None
    recorded("ended", "1 2.0")
    recorded("older-llmtrain", None)
    assert newest_in_training() is None
    own = recorded("own", run_process_identity())
    found = newest_in_training()
    assert found is not None
    assert (found[0].path, found[1]) == (own.path, os.getpid())
    assert run_in_training("own")[1] == os.getpid()


@pytest.mark.parametrize("process", ["1 2.0", None, [1], "1 2 3"])
def test_a_run_that_is_not_trained_is_refused(process: object) -> None:
    recorded("run", process)
    with pytest.raises(UsageError, match="is not being trained on this machine"):
        run_in_training("run")


def test_the_last_whole_step_is_read_from_the_end_of_any_file() -> None:
    run = recorded("run", None)
    assert run.last_step_line() is None
    run.append(run.metrics, {"step": 1, "loss": 5.0})
    run.append(run.metrics, {"step": 1, "val_loss": 5.5})
    assert run.last_step_line() == {"step": 1, "loss": 5.0}
    for step in range(2, 5000):
        run.append(run.metrics, {"step": step, "loss": 4.0, "text": "x" * 20})
    with run.metrics.open("a", encoding="utf-8") as file:
        file.write('{"step": 5000, "loss": 3')  # killed in mid-line
    last = run.last_step_line()
    assert last is not None
    assert last["step"] == 4999
