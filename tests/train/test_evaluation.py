"""The validation loss does not depend on how many ranks share its windows."""

from __future__ import annotations

from contextlib import nullcontext
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor

from llmtrain.model.decoder import Decoder
from llmtrain.profile.schema import EvalSection, ModelSection
from llmtrain.profile.shape import shape_of
from llmtrain.train.distributed.world import World
from llmtrain.train.evaluation import Evaluator

CONTEXT, PIECES = 8, 300
TOKENIZER: Any = None  # nothing is sampled


class Windows:
    """Windows that differ, so that one which counts twice shows."""

    def __init__(self, number: int) -> None:
        drawn = np.random.default_rng(0).integers(PIECES, size=(number, CONTEXT + 1))
        self._rows: NDArray[np.int64] = drawn
        self.num_windows = number

    def read(self, first: int, count: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        rows = self._rows[first : first + count]
        return rows[:, :-1], rows[:, 1:]

    def count_targets(self, first: int, count: int) -> int:
        return count * CONTEXT


@pytest.fixture(scope="module")
def model() -> Decoder:
    section = ModelSection(
        vocab_size=PIECES,
        hidden_size=16,
        intermediate_size=32,
        num_layers=1,
        num_heads=2,
        context=CONTEXT,
    )
    torch.manual_seed(0)
    return Decoder(shape_of(section))


class Counted:
    """A model that counts its forwards."""

    def __init__(self, model: Decoder) -> None:
        self._model, self.forwards = model, 0
        self.head_weight = model.head_weight

    def __call__(self, *arguments: Tensor) -> Tensor:
        self.forwards += 1
        result: Tensor = self._model(*arguments)
        return result


def of_rank(model: Decoder, windows: int, world: World, *, is_sharded: bool) -> Any:
    """Return nats and tokens that a rank adds, and how often it computes the model."""
    counted, added = Counted(model), list[list[float]]()
    run: Any = SimpleNamespace(
        world=world,
        plan=SimpleNamespace(micro_batch=SimpleNamespace(value=1)),
        sharded=SimpleNamespace(free=lambda: None) if is_sharded else None,
        model=counted,
        autocast=nullcontext,
        all_reduce=lambda values: added.append(values) or [1.0, 1.0],
        context=CONTEXT,
    )
    validation: Any = SimpleNamespace(reader=Windows(windows))
    stop: Any = SimpleNamespace(check=lambda: None)
    options = EvalSection(tokens=windows * CONTEXT)
    loss = Evaluator(run, options, validation, TOKENIZER, stop).validation_loss()
    nats, tokens = added[0] if added else (loss.nats, loss.tokens)
    return nats, tokens, counted.forwards


@pytest.mark.parametrize("is_sharded", [False, True])
@pytest.mark.parametrize(("windows", "ranks"), [(3, 2), (3, 4), (1, 3), (5, 3)])
def test_every_window_counts_once_whatever_the_number_of_ranks(
    model: Decoder, windows: int, ranks: int, is_sharded: bool
) -> None:
    nats, tokens, _ = of_rank(model, windows, World(), is_sharded=False)
    worlds = [World(rank=rank, size=ranks) for rank in range(ranks)]
    shared = [of_rank(model, windows, world, is_sharded=is_sharded) for world in worlds]
    assert sum(part[1] for part in shared) == tokens == windows * CONTEXT
    assert sum(part[0] for part in shared) == pytest.approx(nats, rel=1e-6)
    if is_sharded:
        assert len({part[2] for part in shared}) == 1  # or they would wait for each other
