"""Saving beside the training changes nothing of what is saved, and no failure is missed."""

from __future__ import annotations

import errno
import os
import shutil
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import pytest
import torch
import torch.distributed as dist

from llmtrain.errors import LlmtrainError
from llmtrain.profile.schema import CheckpointSection
from llmtrain.train.checkpoint import saver as saver_module
from llmtrain.train.checkpoint import writing
from llmtrain.train.checkpoint.format import Checkpoint, load_checkpoint
from llmtrain.train.checkpoint.integrity import DamagedCheckpointError
from llmtrain.train.checkpoint.part_saver import PartSaver
from llmtrain.train.checkpoint.saver import Saver
from llmtrain.train.checkpoint.writing import Written, recover, save_checkpoint, write_checkpoint
from llmtrain.train.distributed.world import World
from llmtrain.train.events import Saved
from tests.faults.saves import small_checkpoint


class Clock:
    """Seconds that pass only where the test says so."""

    def __init__(self) -> None:
        self.now_s = 1000.0

    def monotonic(self) -> float:
        return self.now_s


class Place(NamedTuple):
    """Where is saved, by whom, and what was told."""

    path: Path
    saver: Saver
    told: list[Saved]

    @property
    def names(self) -> list[str]:
        return sorted(path.name for path in self.path.iterdir())


Furnish = Callable[..., Place]


@pytest.fixture
def furnish(tmp_path: Path) -> Iterator[Furnish]:
    savers = []

    def make(**options: object) -> Place:
        told: list[Saved] = []
        saver = Saver(tmp_path, CheckpointSection.model_validate(options), told.append)
        savers.append(saver)
        return Place(tmp_path, saver, told)

    yield make
    for saver in savers:
        saver.close()


@pytest.fixture
def held(monkeypatch: pytest.MonkeyPatch) -> threading.Event:
    """Sealing waits for this."""
    go_on, seal = threading.Event(), writing.finalize_checkpoint

    def waiting(written: Written) -> Path:
        assert go_on.wait(30)
        return seal(written)

    monkeypatch.setattr(saver_module, "finalize_checkpoint", waiting)
    return go_on


def test_training_goes_on_meanwhile_and_what_it_changes_is_not_saved(
    furnish: Furnish, held: threading.Event
) -> None:
    place, checkpoint = furnish(), small_checkpoint(1)
    place.saver.save(checkpoint, in_background=True)
    expected = {name: tensor.clone() for name, tensor in checkpoint.weights.items()}
    for tensor in checkpoint.weights.values():
        tensor.zero_()
    place.saver.poll()
    assert place.told == []
    held.set()
    place.saver.finish()
    assert [saved.step for saved in place.told] == [1]
    found = load_checkpoint(place.told[0].path).weights
    assert all(torch.equal(found[name], expected[name]) for name in expected)


def test_the_next_save_waits_for_the_last(furnish: Furnish, held: threading.Event) -> None:
    place = furnish(keep_last=5)
    place.saver.save(small_checkpoint(1), in_background=True)
    held.set()
    place.saver.save(small_checkpoint(2), in_background=True)
    assert [saved.step for saved in place.told] == [1]
    place.saver.finish()
    assert place.names == ["step-00000001", "step-00000002"]


def test_nothing_is_due_while_one_is_saved(
    furnish: Furnish, held: threading.Event, monkeypatch: pytest.MonkeyPatch
) -> None:
    place, clock = furnish(), Clock()
    place.saver.save(small_checkpoint(1), in_background=True)
    monkeypatch.setattr(saver_module, "time", clock)
    clock.now_s += 1e9
    assert not place.saver.is_due(2)
    held.set()
    place.saver.finish()
    assert place.saver.is_due(2)


@pytest.mark.parametrize(("paused_s", "due_s"), [(0.0, 300.0), (6.0, 300.0), (12.0, 600.0)])
def test_no_more_than_five_minutes_or_a_fiftieth_is_lost_or_spent(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, paused_s: float, due_s: float
) -> None:
    clock, write = Clock(), writing.write_checkpoint
    monkeypatch.setattr(saver_module, "time", clock)

    def slow(directory: Path, checkpoint: Checkpoint) -> Written:
        clock.now_s += paused_s
        return write(directory, checkpoint)

    monkeypatch.setattr(saver_module, "write_checkpoint", slow)
    saver = Saver(tmp_path, CheckpointSection(), lambda saved: None)
    saver.save(small_checkpoint(1), in_background=False)
    saver.close()
    clock.now_s = 1000.0 + due_s - 0.1
    assert not saver.is_due(2)
    clock.now_s = 1000.0 + due_s + paused_s
    assert saver.is_due(2)


@pytest.mark.parametrize(
    ("waiting_s", "writing_s", "due_s"),
    [(0.0, None, 0.0), (0.0, 3.0, 60.0), (2.0, 3.0, 100.0), (0.0, 90.0, 300.0), (None, 3.0, 300.0)],
)
def test_rounds_are_saved_where_that_takes_no_more_than_a_twentieth_of_the_time(
    waiting_s: float | None,
    writing_s: float | None,
    due_s: float,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    clock = Clock()
    monkeypatch.setattr(saver_module, "time", clock)
    world = World(size=2, store=dist.HashStore())
    saver = PartSaver(
        tmp_path,
        CheckpointSection(),
        lambda _: None,
        world,
        60.0,
        ranks=2,
        waiting_s=None if waiting_s is None else lambda: waiting_s or 0.0,
    )
    saver.elapsed_s = writing_s
    assert saver.is_due(30, 30) == (due_s == 0.0)
    clock.now_s += due_s + 0.1
    assert saver.is_due(60, 30)
    saver.close()


def test_the_profile_says_when(furnish: Furnish, monkeypatch: pytest.MonkeyPatch) -> None:
    by_steps = furnish(every_steps=3).saver
    assert [step for step in range(1, 10) if by_steps.is_due(step)] == [3, 6, 9]
    clock = Clock()
    monkeypatch.setattr(saver_module, "time", clock)
    by_minutes = furnish(every_minutes=2.0).saver
    clock.now_s += 119
    assert not by_minutes.is_due(1)
    clock.now_s += 1
    assert by_minutes.is_due(1)


def test_a_failure_beside_the_training_is_told_at_the_next_look(
    furnish: Furnish, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = furnish()
    place.saver.save(small_checkpoint(1), in_background=False)

    def full(written: Written) -> Path:
        shutil.rmtree(written.hidden)
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(saver_module, "finalize_checkpoint", full)
    place.saver.save(small_checkpoint(2), in_background=True)
    with pytest.raises(LlmtrainError, match=r"checkpoint of step 2 could not be written: .*space"):
        place.saver.finish()
    assert place.names == ["step-00000001"]


def test_a_disk_without_room_is_told_before_anything_is_written(
    furnish: Furnish, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = furnish()
    monkeypatch.setattr(saver_module, "free_bytes", lambda directory: 1_000_000)
    with pytest.raises(LlmtrainError, match=r"step 1 needs .* 977 KiB are free"):
        place.saver.save(small_checkpoint(1), in_background=True)
    assert place.names == []


def test_older_ones_stay_until_the_new_one_was_read_back(
    furnish: Furnish, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = furnish(keep_last=1, keep_best=False)
    place.saver.save(small_checkpoint(1), in_background=False)

    def damaged(path: Path) -> None:
        raise DamagedCheckpointError(f"{path} is not what was written")

    monkeypatch.setattr(writing, "verify_checkpoint", damaged)
    with pytest.raises(DamagedCheckpointError):
        place.saver.save(small_checkpoint(2), in_background=False)
    assert place.names == ["step-00000001"]


def test_what_a_crash_left_is_put_right(tmp_path: Path) -> None:
    save_checkpoint(tmp_path, small_checkpoint(1))
    write_checkpoint(tmp_path, small_checkpoint(2))  # killed before it was sealed
    (tmp_path / ".step-00000003.removed").mkdir()
    lost = save_checkpoint(tmp_path, small_checkpoint(4))
    lost.rename(tmp_path / ".step-00000004.0123abcd.old")  # killed while it was replaced
    (tmp_path / ".mine").mkdir()
    recover(tmp_path)
    names = sorted(path.name for path in tmp_path.iterdir())
    assert names == [".mine", "step-00000001", "step-00000004"]


def test_a_replaced_checkpoint_does_not_come_back(tmp_path: Path) -> None:
    first = save_checkpoint(tmp_path, small_checkpoint(1))
    shutil.copytree(first, tmp_path / ".step-00000001.0123abcd.old")
    newer = replace(small_checkpoint(1), weights={"w": torch.ones(2)})
    save_checkpoint(tmp_path, newer)
    recover(tmp_path)
    assert set(load_checkpoint(first).weights) == {"w"}
    assert [path.name for path in tmp_path.iterdir()] == [first.name]


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        OSError(errno.ENOMEM, "Cannot allocate memory"),
        RuntimeError("can't allocate memory"),
    ],
)
@pytest.mark.parametrize("part", ["write_checkpoint", "finalize_checkpoint"])
def test_a_save_that_is_short_of_memory_is_repeated_in_the_foreground(
    part: str, error: Exception, furnish: Furnish, monkeypatch: pytest.MonkeyPatch
) -> None:
    place, checkpoint = furnish(every_steps=4), small_checkpoint(4)
    original, failures = getattr(saver_module, part), [error]

    def short(*arguments: object) -> object:
        if failures:
            raise failures.pop()
        return original(*arguments)

    monkeypatch.setattr(saver_module, part, short)
    place.saver.save(checkpoint, in_background=False)
    assert [saved.path for saved in place.told] == [place.saver.newest]

    failures.append(error)
    later = small_checkpoint(5)
    place.saver.save(later, in_background=True)
    place.saver._thread.submit(int).result()  # after the one that fails
    place.saver.poll()
    if part == "finalize_checkpoint":  # in the thread: by now the tensors may have changed
        assert place.saver.is_due(6)
        again = small_checkpoint(6)
        place.saver.save(again, in_background=True)
    assert place.told[-1].step == (6 if part == "finalize_checkpoint" else 5)
    assert not place.saver.is_due(7)
