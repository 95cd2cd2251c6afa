"""Rounds of local steps, on two ranks; all that needs ranks is in one launch."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from llmtrain.errors import UsageError
from llmtrain.plan.decisions import refuse_loss_scale_of_local_steps
from llmtrain.plan.memory import predict_training
from llmtrain.plan.rounds import Exchange
from llmtrain.plan.tensor_bytes import (
    TrainingSetup,
    checkpoint_bytes,
    checkpoint_bytes_of,
    communication_bytes,
    copied_bytes,
    gradient_bytes,
)
from llmtrain.profile.load import load_profile
from llmtrain.profile.setting import Setting
from llmtrain.train.checkpoint.saver import passes_multiple
from llmtrain.train.distributed.own_state import own_name, own_state
from llmtrain.train.distributed.rounds import OuterStep
from llmtrain.train.distributed.shares import shares_by_speed
from llmtrain.train.distributed.world import World
from tests.machines import WORKLOAD
from tests.train.distributed.rounds_ranks import (
    EVERY,
    descend,
    largest_difference,
    losses,
    rounds_of,
    run_of,
    small_model,
    weights_of,
)
from tests.train.distributed.two_ranks import found_by_two_ranks, run_two_ranks

HERE: dict[str, Any] = {"device.sharding": "auto", "device.kind": "cpu"}  # in this process


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where both ranks have left what they found."""
    directory = tmp_path_factory.mktemp("rounds")
    run_two_ranks("tests.train.distributed.rounds_ranks", directory)
    return directory


@pytest.fixture(scope="module")
def found(directory: Path) -> list[dict[str, Any]]:
    return found_by_two_ranks(directory)


def test_rounds_of_one_step_with_a_plain_outer_step_average_gradients(
    found: list[dict[str, Any]],
) -> None:
    """Of SGD, whose update is linear in the gradient: what DDP does, within rounding."""
    for rank in found:
        assert rank["as_gradients"]["difference"] < 1e-6 < 0.1 < rank["as_gradients"]["moved"]


@pytest.mark.parametrize(("precision", "tolerance"), [("fp32", 1e-6), ("bf16", 1e-2)])
def test_the_outer_step_is_that_of_the_formula(
    precision: str, tolerance: float, found: list[dict[str, Any]]
) -> None:
    first, second = (rank[precision] for rank in found)
    assert max(first["difference"], second["difference"]) < tolerance
    assert first["sum"] == second["sum"], "bit for bit"
    assert first["losses"] == second["losses"] == [1.5] * 3 * EVERY, "the mean of both ranks"


def test_an_exchange_beside_the_next_steps_is_mixed_in_after_them(
    found: list[dict[str, Any]],
) -> None:
    for rank in found:
        assert rank["delayed"]["difference"] < 1e-6
        assert rank["delayed"]["agreed"] < 1e-6
        assert rank["delayed"]["mixed_after"] == 3 * EVERY + 2


def test_a_run_that_is_saved_in_an_exchange_goes_on_bit_for_bit(
    found: list[dict[str, Any]],
) -> None:
    for rank in found:
        in_flight = rank["in_flight"]
        assert in_flight["looked"], "saving changes nothing"
        assert in_flight["agreed"] == 0.0 < in_flight["differs"]
        assert in_flight["resumed"]
        assert in_flight["weights"] == 0.0
        assert in_flight["at_one"] < 0.5
        assert in_flight["fell"] > 0.05


def test_a_rank_that_is_not_finite_counts_for_nothing(found: list[dict[str, Any]]) -> None:
    for rank in found:
        assert rank["bad_rank"]["difference"] < 1e-6
        assert (rank["bad_rank"]["bad_steps"], rank["bad_rank"]["losses"]) == ([1], [])


def test_ranks_that_left_out_steps_are_named_on_all(found: list[dict[str, Any]]) -> None:
    named = "rank 1 left out 1 of the round's 1 step: not finite"
    assert [rank["bad_rank"]["left_out"] for rank in found] == [named, named]
    assert [rank["bad_rank"]["but_own"] for rank in found] == [named, None]


def test_ranks_differ_within_a_round_and_agree_at_its_end(found: list[dict[str, Any]]) -> None:
    for rank in found:
        trained = rank["trained"]
        assert trained["agreed"] == 0.0 < trained["within"]
        assert trained["is_within_round"]
        assert trained["fell"] > 0.1
        assert "train.sync_every" in trained["sharding"]


def test_a_checkpoint_goes_on_bit_for_bit_and_at_another_number_of_ranks(
    found: list[dict[str, Any]], directory: Path
) -> None:
    for rank in found:
        assert rank["trained"]["resumed"]
        assert rank["trained"]["weights"] == 0.0
        assert rank["trained"]["at_one"] < 0.5
    checkpoint = directory / "two" / f"step-{EVERY:08d}"
    assert len(list(checkpoint.glob("optimizer-*.safetensors"))) == 2


def test_a_checkpoint_is_as_large_as_predicted(
    found: list[dict[str, Any]], directory: Path
) -> None:
    run = run_of(World(), **HERE)
    workload = replace(WORKLOAD, shape=run.model.shape, optimizer="muon", sync_every=EVERY)
    tensors = sum(
        tensor.nbytes
        for path in (directory / "two" / f"step-{EVERY:08d}").glob("*.safetensors")
        for tensor in load_file(path).values()
    )
    assert found
    assert tensors == pytest.approx(checkpoint_bytes_of(workload, 2), rel=0.01)


def test_a_slow_rank_takes_fewer_windows_and_each_is_read_once(
    found: list[dict[str, Any]],
) -> None:
    first, second = (rank["by_speed"] for rank in found)
    assert first["shares"] == first["resumed"] == second["shares"] == second["resumed"] == [6, 2]
    assert len(second["read"]) == EVERY * 4 + EVERY * 2
    assert sorted(first["read"] + second["read"]) == list(range(8 * 2 * EVERY))
    assert first["differ"] == second["differ"] == 0.0


def test_ranks_time_an_exchange_alike_in_a_group_before_their_own(
    found: list[dict[str, Any]],
) -> None:
    first, second = (Exchange(**rank["exchange"]) for rank in found)
    assert first == second
    assert 0 < first.seconds(4 << 20) < 10.0


def test_ranks_know_how_many_each_machine_has(found: list[dict[str, Any]]) -> None:
    assert [rank["machines"] for rank in found] == [[2], [2]]


@pytest.mark.parametrize(
    ("window_s", "shares", "micro_batch", "expected"),
    [
        ([1.0, 1.0], [8, 8], 2, [8, 8]),
        ([1.0, 1.05], [8, 8], 1, [8, 8]),  # not worth it
        ([1.0, 3.0], [8, 8], 1, [12, 4]),
        ([1.0, 3.0], [8, 8], 4, [12, 4]),
        ([1.0, 3.0], [8, 8], 8, [8, 8]),  # in whole micro-batches
        ([1.0, 1000.0, 1.0], [4, 4, 4], 1, [6, 1, 5]),  # none is left out
    ],
)
def test_shares_follow_the_speed_of_ranks(
    window_s: list[float], shares: list[int], micro_batch: int, expected: list[int]
) -> None:
    assert shares_by_speed(window_s, shares, micro_batch) == expected


def test_one_rank_with_a_plain_outer_step_trains_as_without_rounds() -> None:
    settings = HERE
    plain = {"optim.outer_learning_rate": 1.0, "optim.outer_momentum": 0.0}
    alone = losses(run_of(World(), **settings), 7)
    rounds = losses(run_of(World(), **settings, **plain, **{"train.sync_every": 3}), 7)
    assert rounds == pytest.approx(alone, abs=1e-5)


def test_a_round_that_no_rank_has_good_weights_after_is_undone() -> None:
    model = small_model()
    before = weights_of(model)
    rounds = rounds_of(model, World(), OuterStep(2, 0.7, 0.5))
    descend(model, 1, slice(8))
    with torch.no_grad():
        next(model.parameters()).fill_(torch.inf)
    rounds.record(1.0, 1.0, 1.0)
    assert not rounds.is_at_end
    rounds.finish(1, run_of(World(), **HERE).divergence)
    assert rounds.is_at_end
    assert rounds.left_out == {0: 1}
    assert largest_difference(before, weights_of(model)) == 0.0


@pytest.mark.parametrize(
    ("step", "horizon", "ends"),
    [
        (14, 100, False),
        (15, 100, True),
        (12, 12, True),
        (11, 12, False),
        (11, 3, True),
        (14, None, False),
        (15, None, True),
    ],
)
def test_a_round_ends_after_so_many_steps_or_with_the_run(
    step: int, horizon: int | None, ends: bool
) -> None:
    rounds = rounds_of(small_model(), World(), OuterStep(5, 0.7, 0.5))
    rounds.begun_step = 10
    assert rounds.ends_after(step, horizon) is ends


def test_without_a_known_end_the_first_rounds_are_short() -> None:
    rounds = rounds_of(small_model(), World(), OuterStep(500, 0.7, 0.5))
    assert not rounds.ends_after(4, None)
    assert rounds.ends_after(5, None)
    assert not rounds.ends_after(5, 1000)


def test_the_time_of_an_exchange_is_spread_over_its_round() -> None:
    rounds = rounds_of(small_model(), World(), OuterStep(4, 0.7, 0.5))
    rounds.exchange_s, rounds.last_steps = 2.0, 4
    assert rounds.spread(3.0) == pytest.approx(1.5), "the step that the exchange ended"
    rounds.record(1.0, 1.0, 1.0)
    assert rounds.spread(1.0) == pytest.approx(1.5)


def test_ranks_take_their_own_state_or_the_mean_of_all() -> None:
    saved = {own_name(rank, "w.momentum"): torch.full((2,), float(rank)) for rank in range(3)}
    saved["outer.w"] = torch.ones(2)
    assert own_state(saved, 2, 3)["w.momentum"].tolist() == [2.0, 2.0]
    assert own_state(saved, 1, 2)["w.momentum"].tolist() == [1.0, 1.0]
    assert own_state({}, 0, 2) == {}


def test_what_is_due_within_a_round_is_done_at_its_end() -> None:
    assert [step for step in (4, 8, 12, 16, 20) if passes_multiple(step, 4, 10)] == [12, 20]


@pytest.mark.parametrize(
    ("flags", "reason"),
    [
        ({"train.sync_delay": 30}, "has to be less than train.sync_every, 30"),
        ({"train.sync_every": "auto", "train.sync_delay": 1}, "only when the ranks meet"),
        ({"train.sync_every": "auto", "device.sharding": "shard"}, "have a part of them"),
        ({"train.sync_every": "always"}, "has to be a whole number or 'auto'"),
        ({"device.sharding": "shard"}, "a sharded model's have a part of them"),
        ({"device.sharding": "hybrid"}, "a sharded model's have a part of them"),
        (
            {"lora.rank": 4, "model.init_from": "x", "optim.name": "adamw"},
            "adapters are small",
        ),
    ],
)
def test_refused_with_the_reason(flags: dict[str, Any], reason: str) -> None:
    settings = {name: Setting(value, "--set") for name, value in flags.items()}
    with pytest.raises(UsageError, match=reason):
        load_profile(environment={}, flags={"train.sync_every": Setting(30, "--set"), **settings})


def test_who_waits_for_a_rank_says_how_long_that_follows_from() -> None:
    flags = {"device.collective_timeout": Setting("60s", "--set")}
    alone = load_profile(environment={}, flags=flags).profile
    flags["train.sync_every"] = Setting(30, "--set")
    rounds = load_profile(environment={}, flags=flags).profile
    assert (alone.exchange_timeout_s, rounds.exchange_timeout_s) == (60.0, 1800.0)
    assert alone.exchange_timeout_name == "device.collective_timeout"
    assert rounds.exchange_timeout_name == "train.sync_every × device.collective_timeout"


@pytest.mark.parametrize(
    ("flags", "rate"),
    [({}, 1.0), ({"optim.name": "adamw"}, 0.5), ({"optim.outer_learning_rate": 0.4}, 0.4)],
)
def test_the_outer_rate_follows_the_optimizer_inside(flags: dict[str, Any], rate: float) -> None:
    settings = {name: Setting(value, "--set") for name, value in flags.items()}
    profile = load_profile(environment={}, flags=settings).profile
    assert profile.optim.chosen_outer_learning_rate == rate


def test_fp16_is_refused() -> None:
    workload = replace(WORKLOAD, sync_every=30)
    refuse_loss_scale_of_local_steps(workload, "bf16")
    with pytest.raises(UsageError, match=r"train\.sync_every: fp16"):
        refuse_loss_scale_of_local_steps(workload, "fp16")
    refuse_loss_scale_of_local_steps(WORKLOAD, "fp16")


def test_memory_knows_of_the_copies_that_are_saved_beside_the_next_steps() -> None:
    local = TrainingSetup(1, half_precision=False, device_kind="cpu", sync_every=30, processes=2)
    shape, gpu = WORKLOAD.shape, replace(local, device_kind="cuda")
    rounds = communication_bytes(shape, local)
    on_cpu, on_gpu = (predict_training(shape, each).communication_bytes for each in (local, gpu))
    assert (on_cpu, on_gpu) == (rounds + copied_bytes(shape, local), rounds)


def test_memory_knows_of_what_travels_beside_the_next_steps() -> None:
    setup = TrainingSetup(1, half_precision=False, device_kind="cpu", sync_every=30, processes=2)
    delayed_setup = replace(setup, is_sync_delayed=True)
    weights, shape = gradient_bytes(WORKLOAD.shape, setup), WORKLOAD.shape
    assert communication_bytes(shape, delayed_setup) == 4 * weights
    assert copied_bytes(shape, delayed_setup) == copied_bytes(shape, setup) + weights
    rounds = replace(WORKLOAD, sync_every=30)
    own = checkpoint_bytes_of(replace(rounds, sync_delay=5), 2) - checkpoint_bytes_of(rounds, 2)
    assert own == 2 * weights, "each rank's own weights"


def test_memory_knows_of_the_agreed_weights_and_their_momentum() -> None:
    setup = TrainingSetup(1, half_precision=False, device_kind="cpu", sync_every=30, processes=2)
    weights = gradient_bytes(WORKLOAD.shape, setup)
    assert communication_bytes(WORKLOAD.shape, setup) == 2 * weights
    assert communication_bytes(WORKLOAD.shape, replace(setup, sync_every=1)) == weights
    assert copied_bytes(WORKLOAD.shape, setup) == 2 * weights + weights, "own state, a share of two"
    assert copied_bytes(WORKLOAD.shape, replace(setup, sync_every=1)) == 0
    plain = checkpoint_bytes(WORKLOAD.shape, "adamw")
    assert checkpoint_bytes(WORKLOAD.shape, "adamw", local_ranks=2) == 2 * plain
    assert checkpoint_bytes_of(WORKLOAD, 2) == plain
    assert checkpoint_bytes_of(replace(WORKLOAD, sync_every=30), 2) == 2 * plain
