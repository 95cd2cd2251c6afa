"""A checkpoint of several ranks is whole when its save returns, or the run ends with an error."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch.distributed as dist

from llmtrain.errors import LlmtrainError
from llmtrain.profile.schema import CheckpointSection
from llmtrain.train.checkpoint import part_saver as module
from llmtrain.train.checkpoint.format import Checkpoint, load_checkpoint
from llmtrain.train.checkpoint.part_saver import PartSaver
from llmtrain.train.distributed.world import World
from llmtrain.train.events import Saved
from tests.faults.saves import small_checkpoint

RANKS = 2


@pytest.fixture
def told() -> list[Saved]:
    return []


@pytest.fixture
def savers(tmp_path: Path, told: list[Saved]) -> Iterator[list[PartSaver]]:
    store = dist.HashStore()
    made = [
        PartSaver(
            tmp_path,
            CheckpointSection(),
            told.append,
            World(rank=rank, size=RANKS, store=store),
            30.0,
            ranks=RANKS,
        )
        for rank in range(RANKS)
    ]
    yield made
    for saver in made:
        saver.close()


def part_of(checkpoint: Checkpoint, rank: int) -> Checkpoint:
    """Every second tensor of the weights; rank 0 has the optimizer's."""
    names = sorted(checkpoint.weights)[rank::RANKS]
    weights = {name: checkpoint.weights[name] for name in names}
    return replace(checkpoint, weights=weights, optimizer={} if rank else checkpoint.optimizer)


def save_all(savers: list[PartSaver], checkpoint: Checkpoint) -> list[BaseException | None]:
    """Save on every rank at once; return the error of each."""

    def save(rank: int) -> None:
        savers[rank].save(part_of(checkpoint, rank), in_background=False)

    with ThreadPoolExecutor(RANKS) as threads:
        return [each.exception() for each in [threads.submit(save, n) for n in range(RANKS)]]


def run_short(monkeypatch: pytest.MonkeyPatch, number: int, times: int) -> None:
    """Let the rank that writes this part run out of memory so often."""
    write: Callable[..., Any] = module.write_part
    left = times

    def short(written: Any, checkpoint: Any, part: int, parts: int) -> Any:
        nonlocal left
        if part == number and left:
            left -= 1
            raise MemoryError
        return write(written, checkpoint, part, parts)

    monkeypatch.setattr(module, "write_part", short)


@pytest.mark.parametrize("number", [1, 2])
def test_a_save_that_is_short_of_memory_on_one_rank_is_repeated_by_all(
    number: int,
    savers: list[PartSaver],
    told: list[Saved],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    checkpoint = small_checkpoint(4)
    run_short(monkeypatch, number, 1)
    assert save_all(savers, checkpoint) == [None, None]
    path = tmp_path / "step-00000004"
    assert [saver.newest for saver in savers] == [path, path]
    assert [saved.path for saved in told] == [path]
    loaded = load_checkpoint(path)
    assert set(loaded.weights) == set(checkpoint.weights)
    assert not any(saver.is_due(5) for saver in savers)


@pytest.mark.parametrize("number", [1, 2])
def test_a_save_that_stays_short_of_memory_is_an_error_on_every_rank(
    number: int, savers: list[PartSaver], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run_short(monkeypatch, number, 2)
    errors = save_all(savers, small_checkpoint(4))
    assert [type(error) for error in errors] == [LlmtrainError, LlmtrainError]
    assert "step 4 could not be written: memory ran out" in str(errors[0])
    assert list(tmp_path.iterdir()) == []
