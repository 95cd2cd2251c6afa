"""The parts of a step are what a step is made of, timed without leaving a trace."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from typing import Any

import pytest
import torch

from llmtrain.choice import AttentionKernel, OptimizerName
from llmtrain.machine.facts import PartTime
from llmtrain.machine.timing import Timing
from llmtrain.model import step_timing
from llmtrain.model.decoder import Backbone, Decoder
from llmtrain.model.optimizer import RoleOptimizer
from llmtrain.model.step_timing import Way, time_eager_block, time_head, time_update
from llmtrain.profile.shape import ModelShape

WAY = Way(
    micro_batch=3,
    precision="bf16",
    attention="blocks",
    checkpointing="off",
    keep_casts=True,
    threads=1,
)


@pytest.fixture(autouse=True)
def _short(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(step_timing, "_BUDGET_S", 0.0)


@pytest.mark.parametrize("masked", [True, False])
@pytest.mark.parametrize("checkpointing", ["off", "full"])
@pytest.mark.parametrize("attention", ["blocks", "sdpa"])
@pytest.mark.parametrize("keep_casts", [True, False])
def test_a_block_is_timed_in_every_way_to_compute(
    small_shape: ModelShape,
    masked: bool,
    checkpointing: Any,
    attention: AttentionKernel,
    keep_casts: bool,
) -> None:
    way = replace(
        WAY, masked=masked, checkpointing=checkpointing, attention=attention, keep_casts=keep_casts
    )
    timed = time_eager_block(small_shape, way)
    assert 0 < timed.seconds < math.inf
    assert 0 < timed.ran_share <= 1


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("tied", [True, False])
def test_head_and_update_are_timed(small_shape: ModelShape, precision: Any, tied: bool) -> None:
    shape, way = replace(small_shape, tie_embeddings=tied), replace(WAY, precision=precision)
    optimizers: tuple[OptimizerName, ...] = ("muon", "adamw")
    timed = [time_head(shape, way, compiled=False)]
    timed += [time_update(shape, way, optimizer) for optimizer in optimizers]
    assert all(0 < part.seconds < math.inf for part in timed)


def test_measuring_leaves_threads_and_random_numbers(small_shape: ModelShape) -> None:
    threads, state = torch.get_num_threads(), torch.get_rng_state()
    way = replace(WAY, threads=threads + 1)
    time_eager_block(small_shape, way)
    time_head(small_shape, way, compiled=False)
    time_update(small_shape, way, "muon")
    assert torch.get_num_threads() == threads
    assert torch.equal(torch.get_rng_state(), state)


class Clock:
    """A clock that tells one second for each call, and what the calls were."""

    def __init__(self, ran_share: float = 1.0) -> None:
        self.ran_share = ran_share
        self.calls: Counter[Any] = Counter()

    def compare(self, ways: dict[str, list[Callable[[], object]]], **_: Any) -> dict[str, Timing]:
        ((run,),) = ways.values()
        if isinstance(run, partial):
            self.calls[run.args[-1]] += 1
        return {"": Timing(wall_s=1.0, cpu_s=0.6)}

    def share(self, *_: object) -> float:
        return self.ran_share


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Iterator[Clock]:
    clock = Clock()
    monkeypatch.setattr(step_timing, "compare", clock.compare)
    monkeypatch.setattr(step_timing, "ran_share", clock.share)
    return clock


def test_each_block_has_its_share_of_the_chain(clock: Clock, small_shape: ModelShape) -> None:
    assert time_eager_block(small_shape, WAY).seconds == 1 / 2
    assert time_eager_block(replace(small_shape, num_layers=1), WAY).seconds == 1.0
    assert clock.calls == {3: 2}  # the whole micro-batch, each time


def test_a_long_part_is_timed_on_fewer_sequences(
    clock: Clock, small_shape: ModelShape, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(step_timing, "_LONGEST_ROUND_S", 0.0)
    assert time_head(small_shape, WAY, compiled=False).seconds == 3.0
    assert clock.calls == {1: 1}


def test_the_update_is_that_of_all_layers(
    clock: Clock, small_shape: ModelShape, monkeypatch: pytest.MonkeyPatch
) -> None:
    deep = replace(small_shape, num_layers=10)
    assert time_update(deep, WAY, "muon").seconds == 1.0 + 1.0  # blocks, and what is beside them
    monkeypatch.setattr(step_timing, "_UPDATED_PARAMETERS", 2 * small_shape.block_parameters)
    assert time_update(deep, WAY, "muon").seconds == 10 / 2 + 1.0


def test_a_busy_machine_is_timed_by_its_cpu_and_marked(
    clock: Clock, small_shape: ModelShape
) -> None:
    clock.ran_share = 0.5
    timed = time_eager_block(replace(small_shape, num_layers=1), WAY)
    assert timed == PartTime(0.6, ran_share=0.5)
    assert timed.is_contended


def test_the_parts_are_the_whole_model(
    small_shape: ModelShape, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every parameter is in the block, or in the model without blocks; all of them are updated."""
    seen: list[int] = []
    heads: list[int] = []
    step = RoleOptimizer.step

    def counted(self: RoleOptimizer, closure: None = None) -> None:
        seen.append(sum(p.numel() for group in self.param_groups for p in group["params"]))
        step(self, closure)

    forward = Backbone.forward

    def seen_forward(self: Backbone, *args: Any) -> Any:
        heads.append(len(self.layers))
        return forward(self, *args)

    monkeypatch.setattr(RoleOptimizer, "step", counted)
    monkeypatch.setattr(Backbone, "forward", seen_forward)
    time_update(small_shape, WAY, "muon")
    assert sum(set(seen)) == small_shape.parameters
    time_head(small_shape, WAY, compiled=False)
    assert set(heads) == {0}
    beside = Decoder(replace(small_shape, num_layers=0))
    blocks = small_shape.num_layers * small_shape.block_parameters
    assert sum(p.numel() for p in beside.parameters()) + blocks == small_shape.parameters
