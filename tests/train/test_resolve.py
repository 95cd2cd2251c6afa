"""A request is resolved once, and what is trusted on the way: checkpoints, run.yaml, leftovers."""

from __future__ import annotations

import errno
import json
import shutil
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import yaml
from pydantic import TypeAdapter

from llmtrain.engine import plan_run, text_notes, train_run
from llmtrain.engine.find_run import ResolvedRun, resolve
from llmtrain.engine.plan_run import plan_resolved
from llmtrain.engine.request import TrainRequest
from llmtrain.errors import DoesNotFitError, InterruptedRunError, LlmtrainError
from llmtrain.files import sha256_file
from llmtrain.machine import probe
from llmtrain.plan.planned import Planned
from llmtrain.prepare import dataset
from llmtrain.profile.schema import Profile
from llmtrain.train.checkpoint import integrity
from llmtrain.train.checkpoint.format import load_state
from llmtrain.train.checkpoint.integrity import RemovedCheckpointError, verify_checkpoint
from llmtrain.train.distributed.world import World
from llmtrain.train.divergence import rewind
from llmtrain.train.events import Event, Step
from llmtrain.train.run_directory.directory import RunDirectory
from llmtrain.train.run_directory.verify import verify_run
from tests.train.harness import Files, InProcessTrainer, Llmtrain

RESUME = ("train", "--out", "run", "--resume", "auto")
START = ("train", "-p", "tiny.yaml", "--out", "run")


def after_step(step: int) -> Callable[[Event], bool]:
    return lambda event: isinstance(event, Step) and event.step == step


@pytest.fixture
def stopped(train: InProcessTrainer, place: Path) -> Files:
    """A run with checkpoints of the steps 4, 8 and 10."""
    settings = {"checkpoint__every_steps": 4, "checkpoint__keep_last": 9}
    train(place / "run", stop_at=after_step(9), **settings)
    return Files(place / "run")


def names(directory: Path) -> list[str]:
    return sorted(path.name for path in directory.iterdir())


def edit_record(path: Path, **changes: Any) -> None:
    record = yaml.safe_load((path / "run.yaml").read_text()) | changes
    kept = {name: value for name, value in record.items() if value is not None}
    (path / "run.yaml").write_text(yaml.safe_dump(kept, sort_keys=False))


class Counts(dict[str, int]):
    """How often each function was called."""

    def watch(self, patch: pytest.MonkeyPatch, owner: Any, name: str) -> None:
        original = getattr(owner, name)

        def counting(*args: Any, **kwargs: Any) -> Any:
            self[name] = self.get(name, 0) + 1
            return original(*args, **kwargs)

        patch.setattr(owner, name, counting)


@pytest.fixture
def counts(monkeypatch: pytest.MonkeyPatch) -> Counts:
    found = Counts()
    found.watch(monkeypatch, Profile, "model_validate_json")
    found.watch(monkeypatch, Profile, "model_validate")
    found.watch(monkeypatch, probe, "read_cpu")
    found.watch(monkeypatch, plan_run, "make_plan")
    for module in (dataset, text_notes):
        found.watch(monkeypatch, module, "resolve_sources")
    return found


ONCE = {"model_validate_json": 1, "read_cpu": 1, "make_plan": 1, "resolve_sources": 1}


def test_one_request_validates_probes_plans_and_resolves_its_text_once(
    counts: Counts, llmtrain: Llmtrain
) -> None:
    assert llmtrain(*START).code == 0
    assert counts == ONCE


def test_also_where_the_profile_is_chosen(counts: Counts, llmtrain: Llmtrain) -> None:
    assert llmtrain("train", "--dry-run", "--data", "corpus.txt", "--force-cpu").code == 0
    assert counts == ONCE


def test_resuming_by_the_recorded_plan_makes_no_other(
    stopped: Files, counts: Counts, llmtrain: Llmtrain
) -> None:
    assert llmtrain(*RESUME).code == 0
    profiles = 2  # the run's, and this call's
    assert counts == {"model_validate_json": profiles, "read_cpu": 1, "resolve_sources": 1}


@pytest.mark.parametrize("is_resumed", [False, True])
def test_other_ranks_get_the_run_and_its_plan_as_they_are(
    is_resumed: bool, stopped: Files, place: Path
) -> None:
    out, resume = (stopped.path, "auto") if is_resumed else (place / "new", None)
    request = TrainRequest("tiny.yaml", out=out, resume=resume, command=["llmtrain", "train"])
    with resolve(request, lambda event: None, World()) as resolved:
        planned = plan_resolved(resolved)
    runs, plans = TypeAdapter(ResolvedRun), TypeAdapter(Planned)
    assert runs.validate_json(runs.dump_json(resolved), strict=True) == resolved
    assert plans.validate_json(plans.dump_json(planned), strict=True) == planned


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def empty(path: Path) -> None:
    path.write_bytes(b"")


def overwrite(path: Path) -> None:
    path.write_bytes(b"\xff" * path.stat().st_size)


@pytest.mark.parametrize(
    ("name", "damage"),
    [
        ("state.json", truncate),
        ("state.json", overwrite),
        ("state.json", Path.unlink),
        ("manifest.json", truncate),
        ("manifest.json", empty),
        ("config.json", empty),
        ("optimizer.safetensors", truncate),
    ],
)
def test_a_damaged_file_of_the_newest_checkpoint_leads_to_the_one_before(
    name: str,
    damage: Callable[[Path], None],
    stopped: Files,
    llmtrain: Llmtrain,
    reference: Files,
) -> None:
    damage(stopped.newest / name)

    outcome = llmtrain(*RESUME)

    assert outcome.code == 0, outcome.err
    assert "warning: damaged checkpoint" in outcome.err
    assert name in outcome.err
    assert "step-00000010.damaged" in stopped.checkpoints
    assert stopped.digests() == reference.digests()
    assert stopped.course() == reference.course()


def test_the_checkpoint_before_may_have_ended_the_run_before_it_was_made_longer(
    train: InProcessTrainer, llmtrain: Llmtrain, place: Path
) -> None:
    train(place / "run")
    assert llmtrain(*RESUME, "--steps", 25).code == 0
    truncate(Files(place / "run").newest / "state.json")

    assert llmtrain(*RESUME).code == 0
    assert Files(place / "run").newest.name == "step-00000025"


def cut_before_sessions(path: Path) -> None:
    path.write_text(path.read_text().partition("sessions:")[0])


@pytest.mark.parametrize("damage", [truncate, empty, overwrite, cut_before_sessions])
@pytest.mark.parametrize("names_directory", [True, False])
def test_a_damaged_run_file_is_an_error_and_not_a_new_run(
    damage: Callable[[Path], None],
    names_directory: bool,
    train: InProcessTrainer,
    place: Path,
    llmtrain: Llmtrain,
) -> None:
    train(place / "runs" / "older", stop_at=after_step(1))
    train(place / "runs" / "mine", stop_at=after_step(3))
    damage(place / "runs" / "mine" / "run.yaml")
    before = sorted((place / "runs").rglob("*"))

    where = ("--out", "runs/mine") if names_directory else ()
    outcome = llmtrain("train", "-p", "tiny.yaml", *where, "--resume", "auto")

    assert outcome.code == 2
    assert "run.yaml" in outcome.err
    assert "hint:" in outcome.err
    assert sorted((place / "runs").rglob("*")) == before


@pytest.mark.parametrize("error", [errno.EACCES, errno.EIO])
@pytest.mark.parametrize("reader", ["sha256_file", "read_json"])
def test_what_cannot_be_read_is_not_renamed(
    error: int,
    reader: str,
    stopped: Files,
    llmtrain: Llmtrain,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def refuse(path: Path, *_: Any) -> None:
        raise OSError(error, "the system says no", str(path))

    monkeypatch.setattr(integrity, reader, refuse)
    before = stopped.checkpoints

    outcome = llmtrain(*RESUME)

    assert outcome.code == 1
    assert "the system says no" in outcome.err
    assert "step-00000010" in outcome.err
    assert stopped.checkpoints == before


@pytest.mark.parametrize("name", ["run.yaml", "checkpoints"])
@pytest.mark.parametrize(
    "words",
    [RESUME, ("eval", "run"), ("generate", "run"), ("runs", "show", "run")],
    ids=lambda words: words[0],
)
def test_a_record_or_directory_that_cannot_be_read_is_told_in_one_way(
    words: tuple[str, ...],
    name: str,
    stopped: Files,
    llmtrain: Llmtrain,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    denied = PermissionError(errno.EACCES, "the system says no", name)
    stat, iterdir = Path.stat, Path.iterdir

    def refuse_stat(path: Path, **options: Any) -> Any:
        if path.name == name == "run.yaml" and sys._getframe(1).f_code.co_name == "open_regular":
            raise denied
        return stat(path, **options)

    def refuse_listing(path: Path) -> Iterator[Path]:
        if path.name == name:
            raise denied
        return iterdir(path)

    monkeypatch.setattr(Path, "stat", refuse_stat)
    monkeypatch.setattr(Path, "iterdir", refuse_listing)
    before = stopped.path / "run.yaml", stopped.path / "checkpoints"

    outcome = llmtrain(*words)

    assert outcome.code == 1, outcome.err
    assert f"run/{name} cannot be read: the system says no" in outcome.err
    assert "nothing was renamed" in outcome.err
    assert all(path.exists() for path in before)


def test_a_checkpoint_that_is_removed_meanwhile_is_not_damaged(
    stopped: Files, llmtrain: Llmtrain, monkeypatch: pytest.MonkeyPatch
) -> None:
    def remove(path: Path) -> str:
        shutil.rmtree(path.parent)
        raise FileNotFoundError(errno.ENOENT, "gone", str(path))

    monkeypatch.setattr(integrity, "sha256_file", remove)

    outcome = llmtrain(*RESUME)

    assert outcome.code == 1
    assert "step-00000010 was removed" in outcome.err
    assert stopped.checkpoints == ["step-00000004", "step-00000008"]


def test_eval_and_generate_report_what_cannot_be_read_and_what_is_damaged(
    stopped: Files, llmtrain: Llmtrain, monkeypatch: pytest.MonkeyPatch
) -> None:
    for command in ("eval", "generate"):
        with monkeypatch.context() as patch:
            patch.setattr(integrity, "sha256_file", refuse_to_read)
            outcome = llmtrain(command, "run")
        assert outcome.code == 1
        assert "cannot be read" in outcome.err
        assert "damaged" not in outcome.err
    for name in stopped.checkpoints:
        (stopped.path / "checkpoints" / name).rename(
            stopped.path / "checkpoints" / f"{name}.damaged"
        )
    outcome = llmtrain("generate", "run")
    assert outcome.code == 1
    assert "step-00000010.damaged" in outcome.err


def refuse_to_read(path: Path) -> str:
    raise OSError(errno.EACCES, "Permission denied", str(path))


@pytest.mark.parametrize(
    "words", [RESUME, ("eval", "run"), ("generate", "run")], ids=lambda w: w[0]
)
def test_fewer_embedding_rows_than_pieces_are_named_by_every_command(
    words: tuple[str, ...], stopped: Files, llmtrain: Llmtrain
) -> None:
    for name in stopped.checkpoints:
        path = stopped.path / "checkpoints" / name
        config, manifest = (
            json.loads((path / file).read_text()) for file in ("config.json", "manifest.json")
        )
        (path / "config.json").write_text(json.dumps(config | {"vocab_size": 300}))
        size, digest = (path / "config.json").stat().st_size, sha256_file(path / "config.json")
        manifest["files"]["config.json"] = {"bytes": size, "sha256": digest}
        (path / "manifest.json").write_text(json.dumps(manifest))

    outcome = llmtrain(*words)

    assert outcome.code == 5, outcome.err
    assert "the model has 300 embedding rows for the" in outcome.err


def test_a_rewind_does_not_pass_over_what_cannot_be_read(
    stopped: Files, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(integrity, "sha256_file", refuse_to_read)
    with pytest.raises(LlmtrainError, match="cannot be read"):
        rewind._first_finite([stopped.newest])


def test_verify_does_not_call_a_replaced_checkpoint_damaged(
    stopped: Files, monkeypatch: pytest.MonkeyPatch
) -> None:
    newest = stopped.newest

    def replace(path: Path) -> str:
        monkeypatch.undo()
        shutil.copytree(newest, newest.with_name("copy"))
        shutil.rmtree(newest)
        newest.with_name("copy").rename(newest)
        return "of other content"

    monkeypatch.setattr(integrity, "sha256_file", replace)
    with pytest.raises(RemovedCheckpointError):
        verify_checkpoint(newest)


def test_runs_verify_tells_unreadable_from_damaged_and_leaves_out_what_was_removed(
    stopped: Files, llmtrain: Llmtrain, monkeypatch: pytest.MonkeyPatch
) -> None:
    def read(path: Path) -> str:
        if "step-00000004" in str(path) and path.parent.exists():  # as retention does
            shutil.copytree(stopped.newest, stopped.newest.with_name("step-00000012"))
            path.parent.rename(path.parent.with_name(".step-00000004.removed"))
            raise FileNotFoundError(errno.ENOENT, "gone", str(path))
        if "step-00000008" in str(path):
            return refuse_to_read(path)
        return sha256_file(path)

    truncate(stopped.newest / "model.safetensors")
    monkeypatch.setattr(integrity, "sha256_file", read)

    outcome = llmtrain("runs", "verify", "run", "--json")

    found = json.loads(outcome.out)
    assert outcome.code == 1
    assert [Path(each["checkpoint"]).name for each in found["unreadable"]] == ["step-00000008"]
    damaged = [Path(each["checkpoint"]).name for each in found["damaged"]]
    assert damaged == ["step-00000010", "step-00000012"]
    assert found["good"] == []
    assert "unreadable" in llmtrain("runs", "verify", "run").out


def strip_optimizer(run: Any) -> None:
    for checkpoint in (run.path / "checkpoints").iterdir():
        (checkpoint / "optimizer.safetensors").unlink()


@pytest.mark.parametrize("resume", ["auto", "run/checkpoints/step-00000010"])
def test_weights_without_optimizer_state_are_used_and_trained_on(
    resume: str, stopped: Files, llmtrain: Llmtrain
) -> None:
    strip_optimizer(stopped)
    for command in ("eval", "generate"):
        assert llmtrain(command, "run").code == 0

    outcome = llmtrain("train", "--out", "run", "--resume", resume)

    assert outcome.code == 0, outcome.err
    assert "no optimizer state" in outcome.err
    assert "step-00000010" in stopped.checkpoints
    assert load_state(stopped.newest).not_bitwise_from_step == 10
    assert verify_run("run").newest_good == stopped.newest.relative_to(Path.cwd())


def test_nothing_starts_fresh_beside_damaged_checkpoints(
    stopped: Files, llmtrain: Llmtrain
) -> None:
    for name in stopped.checkpoints:
        truncate(stopped.path / "checkpoints" / name / "state.json")
    assert llmtrain(*RESUME).code == 1
    aside = stopped.checkpoints
    assert all(name.endswith(".damaged") for name in aside)

    for resume in ((), ("--resume", "auto")):
        outcome = llmtrain(*START, *resume)
        assert outcome.code == (1 if resume else 2)
        assert "starting fresh" not in outcome.err
        assert stopped.checkpoints == aside
    assert all(name in outcome.err for name in aside)


LOST = "its checkpoints are gone"


@pytest.mark.parametrize("all_of_it", [False, True])
def test_a_run_whose_checkpoints_are_gone_is_never_begun_again_silently(
    all_of_it: bool, stopped: Files, llmtrain: Llmtrain
) -> None:
    shutil.rmtree(stopped.path / "checkpoints")
    if not all_of_it:
        (stopped.path / "checkpoints").mkdir()
    before = {name: (stopped.path / name).read_bytes() for name in ("run.yaml", "metrics.jsonl")}

    for command in (
        ("train", "--resume", "run"),
        RESUME,
        (*START, "--resume", "auto"),
        (*START, "--dry-run"),
        START,
        ("eval", "run"),
    ):
        outcome = llmtrain(*command)
        assert outcome.code == 1, outcome.err
        assert f"run run was saved up to step 10, and {LOST}" in outcome.err
        assert "llmtrain runs rm run" in outcome.err
    assert {name: (stopped.path / name).read_bytes() for name in before} == before


def test_auto_takes_no_older_run_for_one_whose_checkpoints_are_gone(
    train: InProcessTrainer, place: Path, llmtrain: Llmtrain
) -> None:
    for name in ("older", "newer"):
        train(place / "runs" / name, train__steps=1)
    shutil.rmtree(place / "runs" / "newer" / "checkpoints")

    outcome = llmtrain("train", "-p", "tiny.yaml", "--resume", "auto")
    assert outcome.code == 1
    assert "runs/newer" in outcome.err.replace("\\", "/")
    assert LOST in outcome.err


def test_a_crash_after_the_first_save_is_remembered_by_the_record(
    train: InProcessTrainer, place: Path
) -> None:
    """What ends a process at once writes no result."""

    def crash(event: Event) -> bool:
        if isinstance(event, Step) and event.step == 9:
            raise RuntimeError
        return False

    with pytest.raises(RuntimeError):
        train(place / "run", stop_at=crash, checkpoint__every_steps=4)
    shutil.rmtree(place / "run" / "checkpoints")
    with pytest.raises(LlmtrainError, match="saved up to step 4"):
        train(place / "run", resume="auto")


@contextmanager
def failing_at_the_first_step(error: Exception) -> Iterator[None]:
    def fail(_: Any) -> None:
        raise error

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(train_run, "trained_with_energy", fail)
        yield


def test_a_stop_before_the_first_checkpoint_does_not_block_the_same_command(
    llmtrain: Llmtrain, place: Path, reference: Files
) -> None:
    with failing_at_the_first_step(InterruptedRunError("interrupted")):
        assert llmtrain(*START).code == 75
    assert (place / "run" / "run.yaml").is_file()

    assert llmtrain(*START).code == 0
    assert Files(place / "run").digests() == reference.digests()


@pytest.mark.parametrize("resume", [(), ("--resume", "auto")])
def test_a_run_that_failed_at_its_start_is_begun_anew_with_other_settings(
    resume: tuple[str, ...], llmtrain: Llmtrain, place: Path
) -> None:
    (place / "short.txt").write_text("only a few words\n")
    with failing_at_the_first_step(DoesNotFitError("no memory")):
        assert llmtrain(*START, "--seed", "1").code == 3
    assert llmtrain(*START, "--data", "short.txt").code == 5

    outcome = llmtrain(*START, *resume, "--seed", "7")

    assert outcome.code == 0, outcome.err
    record = RunDirectory(place / "run").read_record()
    assert record["profile"]["train"]["seed"] == 7
    assert len(record["sessions"]) == 1


def test_a_start_without_a_checkpoint_is_no_run(
    train: InProcessTrainer, llmtrain: Llmtrain, place: Path
) -> None:
    train(place / "runs" / "good", stop_at=after_step(3))
    with failing_at_the_first_step(InterruptedRunError("interrupted")):
        assert llmtrain("train", "-p", "tiny.yaml", "--out", "runs/leftover").code == 75
    assert "leftover" in llmtrain("runs", "list").out  # of this process, which is still there
    record = RunDirectory(place / "runs" / "leftover").read_record()
    ended = record["sessions"][0] | {"process": "1 1.0"}
    edit_record(place / "runs" / "leftover", sessions=[ended])

    listed = llmtrain("runs", "list").out
    assert "good" in listed
    assert "leftover" not in listed
    assert llmtrain("train", "-p", "tiny.yaml", "--resume", "auto").code == 0
    assert Files(place / "runs" / "good").newest.name == "step-00000020"
    assert not (place / "runs" / "leftover" / "checkpoints").exists()


def test_a_finished_run_of_another_machine_is_finished(
    llmtrain: Llmtrain, place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert llmtrain(*START).code == 0
    edit_record(place / "run", machine={"cpu": "a larger one", "isa": []})

    def does_not_fit(*_: Any) -> None:
        raise DoesNotFitError("too large for this machine")

    monkeypatch.setattr(plan_run, "make_plan", does_not_fit)

    outcome = llmtrain(*RESUME)

    assert outcome.code == 0, outcome.err
    assert "already finished" in outcome.err


def test_a_run_file_of_schema_version_1_is_read(stopped: Files, llmtrain: Llmtrain) -> None:
    sessions = RunDirectory(stopped.path).read_record()["sessions"]
    edit_record(stopped.path, schema_version=1, sittings=sessions, sessions=None)

    assert llmtrain(*RESUME).code == 0

    record = RunDirectory(stopped.path).read_record()
    assert record["schema_version"] == 2
    assert [session["from_step"] for session in record["sessions"]] == [0, 10]
    assert "sittings" not in record


def test_text_that_was_moved_is_resumed_from_its_new_place(
    stopped: Files, place: Path, llmtrain: Llmtrain, reference: Files
) -> None:
    (place / "archive").mkdir()
    (place / "corpus.txt").rename(place / "archive" / "text.txt")

    outcome = llmtrain(*RESUME, "--data", "archive/text.txt")

    assert outcome.code == 0, outcome.err
    assert stopped.digests() == reference.digests()
    data = RunDirectory(stopped.path).read_record()["profile"]["data"]
    assert data["sources"] == ["archive/text.txt"]


def test_other_text_is_refused_on_a_resume(stopped: Files, place: Path, llmtrain: Llmtrain) -> None:
    (place / "other.txt").write_text((place / "corpus.txt").read_text() + "more")
    before = (stopped.path / "run.yaml").read_bytes()

    outcome = llmtrain(*RESUME, "--data", "other.txt")

    assert outcome.code == 2
    assert "other.txt" in outcome.err
    assert "another --out" in outcome.err
    assert (stopped.path / "run.yaml").read_bytes() == before


def test_a_run_without_cache_and_text_says_what_it_needs(
    stopped: Files,
    place: Path,
    llmtrain: Llmtrain,
    monkeypatch: pytest.MonkeyPatch,
    reference: Files,
) -> None:
    monkeypatch.setenv("LLMTRAIN_CACHE_DIR", str(place / "empty"))
    (place / "corpus.txt").rename(place / "text.txt")

    outcome = llmtrain(*RESUME)

    assert outcome.code == 5
    assert "corpus.txt" in outcome.err
    assert "no longer in the cache" in outcome.err
    assert "--data" in outcome.err
    assert llmtrain(*RESUME, "--data", "text.txt").code == 0
    assert stopped.digests() == reference.digests()
