from __future__ import annotations

import errno
import io
import os
import signal
import subprocess
import sys
from contextlib import suppress
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import pytest

from llmtrain.errors import UsageError
from llmtrain.train.run_directory.directory import RunDirectory
from llmtrain.train.run_directory.find import (
    all_runs,
    find_checkpoints,
    find_run,
    new_run_path,
    newest_run,
)

RECORD: dict[str, Any] = {"profile": {"name": "tiny"}, "text": "straße", "numbers": [1.5e-6, None]}


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def begun(path: str, *steps: int, profile: str = "tiny") -> RunDirectory:
    run = RunDirectory(Path(path))
    run.path.mkdir(parents=True)
    run.write_record(RECORD | {"profile": {"name": profile}})
    for step in steps:
        directory = run.checkpoints / f"step-{step:08d}"
        directory.mkdir(parents=True)
        (directory / "manifest.json").write_text("{}")
    return run


def test_record_reads_back() -> None:
    run = begun("run")
    run.write_record(RECORD)
    assert run.read_record() == RECORD
    assert [path.name for path in run.path.iterdir()] == ["run.yaml"]


@pytest.mark.parametrize("text", ["", "- a list", "{unclosed", "name: no profile", "\x00"])
def test_record_that_is_none_is_a_usage_error(text: str) -> None:
    run = begun("run")
    (run.path / "run.yaml").write_text(text)
    with pytest.raises(UsageError, match=r"run\.yaml"):
        run.read_record()


def test_lines_that_were_being_written_are_left_out() -> None:
    run = begun("run")
    run.append(run.metrics, {"step": 1, "loss": 2.5})
    with run.metrics.open("a") as file:
        file.write('{"step": 2, "lo')
    assert list(run.read_metrics()) == [{"step": 1, "loss": 2.5}]


def test_cutting_keeps_everything_up_to_the_step() -> None:
    run = begun("run")
    for path in (run.metrics, run.samples):
        for step in (1, 2, 2, 3, 4):
            run.append(path, {"step": step, "text": "ß"})
    run.cut_after(2)
    assert [line["step"] for line in run.read_metrics()] == [1, 2, 2]
    assert [line["step"] for line in run.read_samples()] == [1, 2, 2]


def test_directory_that_was_claimed_for_nothing_is_gone() -> None:
    run = RunDirectory(Path("some/where/deep"))
    with run.claimed():
        assert run.path.is_dir()
    assert not run.path.exists()


def test_claimed_directory_that_is_used_stays_without_a_lock() -> None:
    run = begun("run")
    with run.claimed():
        pass
    assert [path.name for path in run.path.iterdir()] == ["run.yaml"]


def test_a_directory_has_one_owner_at_a_time() -> None:
    run = begun("run")
    with (
        run.claimed(),
        pytest.raises(UsageError, match="trained by another process"),
        RunDirectory(run.path).claimed(),
    ):
        pass
    with run.claimed():
        assert run.exists


@pytest.mark.skipif(sys.platform == "win32", reason="kills as POSIX does")
def test_a_killed_owner_gives_the_directory_back() -> None:
    run = begun("run")
    code = (
        "import os, signal; from pathlib import Path\n"
        "from llmtrain.train.run_directory.directory import RunDirectory\n"
        "with RunDirectory(Path('run')).claimed():\n"
        "    os.kill(os.getpid(), signal.SIGKILL)"
    )
    assert subprocess.run([sys.executable, "-c", code]).returncode == -signal.SIGKILL
    with run.claimed():
        assert run.exists


def test_claim_refuses_what_is_no_directory() -> None:
    Path("file").write_text("")
    for path in ("file", "file/below"):
        with (
            pytest.raises(UsageError, match="cannot be written"),
            RunDirectory(Path(path)).claimed(),
        ):
            pass


@pytest.mark.parametrize(("has_begun", "whose"), [(True, "run kept"), (False, "--out kept")])
def test_what_cannot_be_written_is_named_as_it_was_given(
    has_begun: bool, whose: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = begun("kept") if has_begun else RunDirectory(Path("kept"))

    def refuse(path: Path, *_: Any, **__: Any) -> None:
        raise OSError(errno.EROFS, "Read-only file system", str(path))

    monkeypatch.setattr(Path, "mkdir", refuse)
    with pytest.raises(UsageError, match=f"^{whose} cannot be written") as caught, run.claimed():
        pass
    assert ("--resume" in str(caught.value.hint)) == has_begun


def test_new_names_say_profile_and_time_and_are_new() -> None:
    now = datetime(2030, 1, 2, 3, 4, 5, tzinfo=timezone.utc)
    names = []
    for _ in range(3):
        path = new_run_path("tiny", now)
        path.mkdir(parents=True)
        names.append(path.as_posix())
    assert names == [
        "runs/tiny-20300102-030405",
        "runs/tiny-20300102-030405-2",
        "runs/tiny-20300102-030405-3",
    ]


def test_newest_run_is_of_the_same_profile() -> None:
    begun("runs/b", 1)
    begun("runs/a", 1)
    begun("runs/c", 1, profile="other")
    begun("runs/d")  # never saved a state
    Path("runs/not-a-run").mkdir()
    assert newest_run("tiny") == Path("runs/a")
    assert newest_run("unheard-of") is None
    assert [run.path.name for run in all_runs()] == ["a", "b", "c", "d"]


@pytest.mark.parametrize(
    "text", ["runs/mine", "mine", "runs/mine/checkpoints/step-00000005", "runs/mine/"]
)
def test_run_is_found_by_what_a_user_types(text: str) -> None:
    begun("runs/mine", 5)
    assert find_run(text).path == Path("runs/mine")


def test_unknown_run_names_a_similar_one() -> None:
    begun("runs/first-run")
    with pytest.raises(UsageError, match="frist-run") as failure:
        find_run("frist-run")
    assert failure.value.hint == "did you mean first-run?"


def test_unknown_run_is_unknown_inside_a_run_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(begun("runs/mine", 5).path)
    for find in (find_run, find_checkpoints):
        with pytest.raises(UsageError, match="unknown run"):
            find("typo")


def test_checkpoints_are_found_newest_last() -> None:
    run = begun("runs/mine", 5, 20, 100_000_000)
    (run.checkpoints / "step-00000007.damaged").mkdir()
    (run.checkpoints / ".step-00000008.tmp").mkdir()
    names = [path.name for path in find_checkpoints("mine")]
    assert names == ["step-00000005", "step-00000020", "step-100000000"]
    assert find_checkpoints(str(run.checkpoints / names[0])) == [run.checkpoints / names[0]]


def test_run_without_a_checkpoint_says_so() -> None:
    begun("runs/mine")
    with pytest.raises(UsageError, match="no checkpoint") as failure:
        find_checkpoints("mine")
    assert failure.value.hint is not None
    assert "--resume" in failure.value.hint


def test_a_log_that_cannot_be_written_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Failing(io.StringIO):
        def write(self, text: str) -> int:
            raise OSError(errno.EIO, os.strerror(errno.EIO))

    run = RunDirectory(tmp_path)
    monkeypatch.setattr(Path, "open", lambda *_, **__: Failing())
    with pytest.raises(OSError, match="Input/output error") as raised:
        run.append(run.metrics, {"step": 1})
    assert raised.value.filename == str(run.metrics)


@pytest.mark.parametrize("name", ["metrics.jsonl", "samples.jsonl"])
def test_files_that_a_run_would_write_over_are_refused_where_there_is_no_run(name: str) -> None:
    run, text = RunDirectory(Path("notes")), '{"text": "my only copy"}\n'
    run.path.mkdir()
    (run.path / name).write_text(text)
    with pytest.raises(UsageError, match=f"{name} is there, and notes is no run"), run.claimed():
        pass
    assert [path.name for path in run.path.iterdir()] == [name]
    assert (run.path / name).read_text() == text


def test_a_run_that_fails_before_its_first_step_leaves_what_was_there() -> None:
    run = RunDirectory(Path("notes"))
    (run.path / "checkpoints").mkdir(parents=True)
    (run.path / "mine.txt").write_text("mine")
    with suppress(KeyError), run.claimed():
        run.write_record({"format": 1})
        raise KeyError
    assert sorted(path.name for path in run.path.iterdir()) == ["checkpoints", "mine.txt"]
