"""A run computes as its plan says, and how it computes is no part of what it learns."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor

from llmtrain.choice import Choice
from llmtrain.engine.plan_run import workload_of
from llmtrain.machine.probe import read_facts
from llmtrain.plan.planner import Plan, make_plan
from llmtrain.profile.load import Setting, load_profile
from llmtrain.profile.schema import Profile
from llmtrain.train.build import build_run, rewind_run
from llmtrain.train.distributed.world import World
from llmtrain.train.loop import Run, training_steps

SETTINGS: dict[str, Any] = {
    "model.vocab_size": 300,
    "model.hidden_size": 32,
    "model.intermediate_size": 48,
    "model.num_layers": 2,
    "model.num_heads": 2,
    "model.context": 16,
    "train.tokens_per_step": 8 * 16,
    "train.micro_batch": 2,
    "train.steps": 20,
    "optim.warmup_steps": 0,
    "optim.learning_rate": 1e-2,
    "device.kind": "cpu",
    "device.threads": 1,
    "device.compile": False,
    "device.precision": "bf16",
    "device.attention": "blocks",
}


@pytest.fixture(autouse=True)
def _settings_restored() -> Iterator[None]:
    threads, precision = torch.get_num_threads(), torch.get_float32_matmul_precision()
    yield
    torch.set_num_threads(threads)
    torch.set_float32_matmul_precision(precision)


class Ids:
    """Tokens in memory, each predictable from the one before."""

    ids: NDArray[np.int64] = np.arange(4000, dtype=np.int64) * 7 % 300

    @property
    def num_tokens(self) -> int:
        return len(self.ids)

    def read(self, start: int, count: int) -> NDArray[np.int64]:
        return self.ids[start : start + count]


def planned(**settings: Any) -> tuple[Profile, Plan]:
    """A profile and its plan; `device__precision="fp32"` sets device.precision."""
    values = SETTINGS | {name.replace("__", "."): value for name, value in settings.items()}
    flags = {name: Setting(value, "test") for name, value in values.items()}
    profile = load_profile(environment={}, flags=flags).profile
    facts = replace(read_facts(), accelerators=())
    return profile, make_plan(facts, profile.device, workload_of(profile, None, facts))


def run_of(profile: Profile, plan: Plan) -> Run:
    return build_run(profile, plan, World(), Ids(), None)


def weights_after(run: Run, steps: int) -> dict[str, Tensor]:
    stepping = training_steps(run)
    for _ in range(steps):
        next(stepping)
    return {name: weight.clone() for name, weight in run.model.state_dict().items()}


def same(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


@pytest.mark.parametrize("checkpointing", ["off", "selective", "full"])
def test_kept_casts_train_bitwise_the_same_weights(checkpointing: str) -> None:
    """Those of an old step would be found out in the second."""
    profile, plan = planned(device__activation_checkpointing=checkpointing)
    assert (plan.keep_weight_casts.value, plan.accumulation.value) == (True, 4)
    kept, cast_again = (
        run_of(profile, replace(plan, keep_weight_casts=Choice(keep, ""))) for keep in (True, False)
    )
    assert kept.model.casts is not None
    assert cast_again.model.casts is None
    assert same(weights_after(kept, 4), weights_after(cast_again, 4))


def test_checkpointing_trains_bitwise_the_same_weights() -> None:
    found = [
        weights_after(run_of(*planned(device__activation_checkpointing=mode)), 3)
        for mode in ("off", "selective", "full")
    ]
    assert same(found[0], found[1])
    assert same(found[0], found[2])


def test_one_seed_trains_one_model() -> None:
    settings = {"device__activation_checkpointing": "selective"}
    first, again = (weights_after(run_of(*planned(**settings)), 5) for _ in range(2))
    other = weights_after(run_of(*planned(**settings, train__seed=1)), 5)
    assert same(first, again)
    assert not same(first, other)


@pytest.mark.parametrize("optimizer", ["muon", "adamw"])
def test_a_run_that_is_rewound_to_its_beginning_is_a_fresh_one(optimizer: str) -> None:
    profile, plan = planned(optim__name=optimizer)
    run, fresh = run_of(profile, plan), run_of(profile, plan)
    assert run.model.casts is not None
    weights_after(run, 3)
    fault = run.model.register_forward_hook(lambda _module, _args, nats: nats * math.nan)
    weights_after(run, 1)  # skipped: what was cast for it is of weights that go now
    fault.remove()
    rewind_run(run, profile.train.seed, None)
    assert (run.position.step, run.position.tokens, run.position.windows) == (0, 0, 0)
    assert same(weights_after(run, 3), weights_after(fresh, 3))


def test_in_fp32_there_is_nothing_to_cast() -> None:
    profile, plan = planned(device__precision="fp32")
    assert plan.keep_weight_casts.value is False
    forced = replace(plan, keep_weight_casts=Choice(True, ""))
    assert run_of(profile, forced).model.casts is None


@pytest.mark.parametrize("kernel", ["sdpa", "blocks"])
def test_attention_is_computed_as_planned(kernel: str) -> None:
    """By the operators that one training step runs."""
    run = run_of(*planned(device__attention=kernel, train__micro_batch=8))
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profiled:
        next(training_steps(run))
    names = {event.key for event in profiled.key_averages()}
    assert ("llmtrain::blocked_attention" in names) == (kernel == "blocks")
    assert ("aten::scaled_dot_product_attention" in names) == (kernel == "sdpa")
