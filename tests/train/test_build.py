"""A run computes as its plan says, and how it computes is no part of what it learns."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from llmtrain.choice import Choice
from llmtrain.engine.workload import workload_of
from llmtrain.machine.probe import read_facts
from llmtrain.model.decoder import Decoder
from llmtrain.plan.planner import Plan, make_plan
from llmtrain.profile.load import load_profile
from llmtrain.profile.schema import Profile
from llmtrain.profile.setting import Setting
from llmtrain.profile.shape import shape_of
from llmtrain.tokenizer import Tokenizer
from llmtrain.train import build
from llmtrain.train.build import RandomState, build_run, rewind_run
from llmtrain.train.checkpoint.format import Checkpoint, SavedState
from llmtrain.train.distributed.world import World
from llmtrain.train.divergence.policy import DivergenceState
from llmtrain.train.loop import Run, training_steps
from llmtrain.train.model_weights import trained_model, with_vocabulary
from llmtrain.train.readers import TrainTokens
from tests.data.fixed import TOKENIZER
from tests.tokens import PredictableIds

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


def planned(**settings: Any) -> tuple[Profile, Plan]:
    """A profile and its plan; `device__precision="fp32"` sets device.precision."""
    values = SETTINGS | {name.replace("__", "."): value for name, value in settings.items()}
    flags = {name: Setting(value, "test") for name, value in values.items()}
    profile = load_profile(environment={}, flags=flags).profile
    facts = replace(read_facts(), accelerators=())
    return profile, make_plan(facts, profile.device, workload_of(profile, None, facts))


def run_of(profile: Profile, plan: Plan) -> Run:
    return build_run(profile, plan, World(), TrainTokens(PredictableIds()))


def weights_after(run: Run, steps: int) -> dict[str, Tensor]:
    stepping = training_steps(run)
    for _ in range(steps):
        next(stepping)
    return {name: weight.clone() for name, weight in run.model.state_dict().items()}


def same(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


@pytest.mark.parametrize("is_bound", [False, True])
def test_a_process_keeps_to_its_numa_node_if_that_is_planned(
    is_bound: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    bound: list[tuple[int, int]] = []
    monkeypatch.setattr(build, "bind_to_node", lambda *place: bound.append(place))
    profile, plan = planned()
    run_of(profile, replace(plan, numa_binding=Choice(is_bound, "")))
    assert bound == [(0, 1)] * is_bound


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


def continued(profile: Profile, plan: Plan, weights: dict[str, Tensor]) -> Run:
    return build_run(profile, plan, World(), TrainTokens(PredictableIds()), initial=lambda: weights)


def test_continuing_is_resuming_without_optimizer_state() -> None:
    """Of a checkpoint whose steps and windows begin again."""
    profile, plan = planned()
    weights = weights_after(run_of(profile, plan), 3)
    state = SavedState(
        step=0,
        tokens=0,
        windows=0,
        elapsed_s=0,
        horizon_steps=None,
        torch_rng=RandomState.now().text,
        numerics={},
        course=DivergenceState(),
    )
    tokenizer = Tokenizer.load(TOKENIZER)
    shape = shape_of(profile.model)
    checkpoint = Checkpoint(state, weights, {}, shape, tokenizer, has_optimizer=False)
    resumed = build_run(profile, plan, World(), TrainTokens(PredictableIds()), checkpoint)
    begun = continued(profile, plan, weights)
    assert same(weights_after(begun, 4), weights_after(resumed, 4))


def test_a_continued_run_is_rewound_to_the_weights_it_began_with() -> None:
    profile, plan = planned()
    weights = weights_after(run_of(profile, plan), 3)
    run = continued(profile, plan, weights)
    weights_after(run, 3)
    rewind_run(run, profile.train.seed, None)
    assert same(dict(run.model.state_dict()), weights)


def test_a_continued_model_has_half_of_the_rates() -> None:
    auto: dict[str, Any] = {"optim__learning_rate": "auto"}
    new = run_of(*planned(**auto))
    more = continued(*planned(**auto, model__init_from="it"), dict(new.model.state_dict()))
    for a, b in zip(new.optimizer.param_groups, more.optimizer.param_groups, strict=True):
        assert b["peak_lr"] == a["peak_lr"] * 0.5
    assert more.peak_learning_rate == new.peak_learning_rate * 0.5
    named = continued(*planned(model__init_from="it"), dict(new.model.state_dict()))
    assert named.peak_learning_rate == 1e-2


@pytest.mark.parametrize("is_tied", [True, False])
def test_rows_that_are_added_are_the_mean_and_change_no_other_logits(is_tied: bool) -> None:
    profile, _ = planned(model__tie_embeddings=is_tied)
    model = Decoder(shape_of(profile.model)).eval()
    model.initialise(0)
    weights = with_vocabulary(model.state_dict(), 310)
    shape = replace(model.shape, vocab_size=310)
    larger = trained_model(shape, weights, "it").eval()
    tokens = torch.arange(16)[None]
    with torch.no_grad():
        before, after = model.logits(tokens), larger.logits(tokens)
    assert torch.allclose(after[..., :300], before, atol=1e-6)
    mean = before.mean(dim=-1, keepdim=True).expand(-1, -1, 10)
    assert torch.allclose(after[..., 300:], mean, atol=1e-5)


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
