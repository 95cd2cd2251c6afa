"""The parts of a step are what a step is made of, timed without leaving a trace."""

from __future__ import annotations

import gc
import math
import weakref
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor

from llmtrain.choice import AttentionKernel, OptimizerName
from llmtrain.machine.facts import PartTime
from llmtrain.model import decoder, step_timing
from llmtrain.model.block import Block
from llmtrain.model.decoder import Backbone, Decoder
from llmtrain.model.optimizer import RoleOptimizer
from llmtrain.model.preferences import preference_weights
from llmtrain.model.step_timing import Way, time_chained_block, time_head, time_update
from llmtrain.ops.precision import autocast_as
from llmtrain.profile.lora_shape import LoraShape
from llmtrain.profile.shape import ModelShape

WAY = Way(
    micro_batch=3,
    precision="bf16",
    attention="blocks",
    checkpointing="off",
    keep_casts=True,
    threads=1,
)
PART = PartTime(1.0)


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
    timed = time_chained_block(small_shape, way)
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


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_beside_adapters_only_they_are_updated(
    small_shape: ModelShape, precision: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    lora = LoraShape(rank=2, alpha=4.0, targets=("q_proj", "down_proj"))
    way = replace(WAY, precision=precision, lora=lora)
    updated: list[int] = []

    def updating(parameters: Any, *arguments: Any) -> Any:
        updated.append(sum(each.numel() for each in parameters))
        return original(parameters, *arguments)

    original = step_timing.updating
    monkeypatch.setattr(step_timing, "updating", updating)
    timed = [time_chained_block(small_shape, way), time_head(small_shape, way, compiled=False)]
    timed.append(time_update(small_shape, way, "adamw"))

    assert all(0 < part.seconds < math.inf for part in timed)
    assert updated == [lora.parameters(small_shape)]


def test_measuring_leaves_threads_and_random_numbers(small_shape: ModelShape) -> None:
    threads, state = torch.get_num_threads(), torch.get_rng_state()
    way = replace(WAY, threads=threads + 1)
    time_chained_block(small_shape, way)
    time_head(small_shape, way, compiled=False)
    time_update(small_shape, way, "muon")
    assert torch.get_num_threads() == threads
    assert torch.equal(torch.get_rng_state(), state)


class Clock:
    """A clock by which a call takes a second: of those timed, one less and one more."""

    SECONDS = (1.0, 0.5, 1.0, 4.5)

    def __init__(self) -> None:
        self.ran_share = 1.0
        self.now_s, self.calls = 0.0, 0

    def perf_counter(self) -> float:
        return self.now_s

    def called(self) -> None:
        self.now_s += self.SECONDS[self.calls % len(self.SECONDS)]
        self.calls += 1

    def share(self, *_: object) -> float:
        return self.ran_share


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    """The clock of everything that is timed; it does not limit the sequences of a part."""
    clock = Clock()
    monkeypatch.setattr(step_timing, "_LEAST_ROUNDS", 3)
    monkeypatch.setattr(step_timing, "_LONGEST_ROUND_S", 1.0)
    real = step_timing._time

    def timed(run: Callable[[], object], way: Way) -> PartTime:
        def call() -> None:
            run()
            clock.called()

        clock.calls = 0
        return real(call, way)

    monkeypatch.setattr(step_timing, "_time", timed)
    monkeypatch.setattr(step_timing, "ran_share", clock.share)
    monkeypatch.setattr(step_timing, "perf_counter", clock.perf_counter)
    return clock


def test_each_block_has_its_share_of_the_chain(clock: Clock, small_shape: ModelShape) -> None:
    assert time_chained_block(small_shape, WAY).seconds == 1 / 2
    assert time_chained_block(replace(small_shape, num_layers=1), WAY).seconds == 1.0


def test_the_fewer_tokens_read_the_weights_the_longer_is_the_chain(
    clock: Clock, small_shape: ModelShape, monkeypatch: pytest.MonkeyPatch
) -> None:
    deep = replace(small_shape, num_layers=8)
    assert time_chained_block(deep, WAY).seconds == 1 / 8
    tokens = WAY.micro_batch * small_shape.context
    for times, count in ((5, 5), (1, 2)):
        monkeypatch.setattr(step_timing, "_CHAINED_TOKENS", times * tokens)
        assert time_chained_block(deep, WAY).seconds == 1 / count


def test_compiled_blocks_are_freed_once_they_are_timed(
    monkeypatch: pytest.MonkeyPatch, small_shape: ModelShape
) -> None:
    """A run that times its machine first would keep them: nothing collects cycles meanwhile."""
    monkeypatch.setattr(torch, "compile", lambda call, **_options: call)
    timed: list[weakref.ref[Block]] = []

    def compile_block(block: Block) -> None:
        block.compile()
        timed.append(weakref.ref(block))

    monkeypatch.setattr(step_timing, "compile_block", compile_block)
    way = Way(1, "fp32", "sdpa", "off", False, 1, compiled_block=True)
    gc.disable()
    try:
        time_chained_block(small_shape, way)
        assert timed
        assert all(block() is None for block in timed)
    finally:
        gc.enable()


def test_a_long_part_is_timed_on_fewer_sequences(
    clock: Clock, small_shape: ModelShape, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert time_head(small_shape, WAY, compiled=False).seconds == 1.0
    monkeypatch.setattr(step_timing, "_LONGEST_ROUND_S", 0.0)
    assert time_head(small_shape, WAY, compiled=False).seconds == 3.0


def test_the_update_is_that_of_all_layers(
    clock: Clock, small_shape: ModelShape, monkeypatch: pytest.MonkeyPatch
) -> None:
    deep = replace(small_shape, num_layers=10)
    assert time_update(deep, WAY, "muon").seconds == 1.0 + 1.0  # blocks, and what is beside them
    monkeypatch.setitem(step_timing._UPDATED_PARAMETERS, "cpu", 2 * small_shape.block_parameters)
    assert time_update(deep, WAY, "muon").seconds == 10 / 2 + 1.0


def test_cpu_time_is_that_of_one_thread(
    clock: Clock, small_shape: ModelShape, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(step_timing, "cpu_seconds", lambda: 0.6 * clock.now_s)
    deep = replace(small_shape, num_layers=4)
    way = replace(WAY, threads=2)
    assert time_chained_block(deep, way).cpu_s == pytest.approx(0.15 / 4)
    monkeypatch.setitem(step_timing._UPDATED_PARAMETERS, "cpu", small_shape.block_parameters)
    assert time_update(deep, way, "muon").cpu_s == pytest.approx(4 * 0.15 + 0.15)


def test_a_busy_machine_is_timed_without_the_waiting_and_marked(
    clock: Clock, small_shape: ModelShape
) -> None:
    clock.ran_share = 0.2
    timed = time_chained_block(replace(small_shape, num_layers=1), WAY)
    assert (timed.seconds, timed.ran_share) == (2.0 * 0.2, 0.2)  # the mean call
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


class Gpu:
    """A device whose kernels take 10 ms each, after the calls that start them."""

    def __init__(self) -> None:
        self.now_s, self.queued, self.most_queued = 0.0, 0, 0

    def synchronize(self) -> None:
        self.now_s += 0.010 * self.queued
        self.most_queued = max(self.queued, self.most_queued)
        self.queued = 0

    def call(self) -> None:
        self.queued += 1

    def perf_counter(self) -> float:
        return self.now_s


def test_a_gpu_is_waited_for_and_kept_busy(monkeypatch: pytest.MonkeyPatch) -> None:
    gpu = Gpu()
    monkeypatch.setattr(torch, "get_device_module", lambda _: gpu)
    monkeypatch.setattr(step_timing, "perf_counter", gpu.perf_counter)
    monkeypatch.setattr(step_timing, "_BUDGET_S", 0.4)
    timed = step_timing._time(gpu.call, replace(WAY, device="cuda"))
    assert timed.seconds == pytest.approx(0.010)
    assert gpu.most_queued == 40


def test_the_head_is_timed_at_the_loss_that_a_run_begins_with(
    small_shape: ModelShape, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The native loss computes tokens again whose logits lie far apart, as no run's do."""
    timed: list[partial[None]] = []

    def keep(run: partial[None], _way: Way) -> PartTime:
        timed.append(run)
        return PartTime(1.0)

    monkeypatch.setattr(step_timing, "_time_sequences", keep)
    time_head(small_shape, WAY, compiled=False)
    model, way, tokens, _references = timed[0].args
    with autocast_as(way.precision, tokens.device):
        loss = model(tokens, tokens.roll(-1)) / tokens.numel()
    assert abs(float(loss.detach()) - math.log(small_shape.vocab_size)) < 1.0


@pytest.mark.parametrize("sequences", [1, 3])
def test_the_head_of_preferences_weighs_pairs_of_answers(
    small_shape: ModelShape, monkeypatch: pytest.MonkeyPatch, sequences: int
) -> None:
    """Every window has a pair, however few of them are timed."""
    pairs: list[int] = []

    def counted(losses: Tensor, targets: Tensor, *rest: Any) -> tuple[Tensor, Tensor]:
        pairs.append(int((targets == small_shape.vocab_size - 1).sum()) // 2)
        return preference_weights(losses, targets, *rest)

    monkeypatch.setattr(decoder, "preference_weights", counted)
    monkeypatch.setattr(step_timing, "_time_sequences", lambda run, _: run(sequences) or PART)
    assert time_head(small_shape, replace(WAY, preferences=True), compiled=False) is PART
    assert pairs == [sequences]
