from __future__ import annotations

from collections import Counter
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llmtrain.data.batches.permutation import count_windows, permuted_index
from llmtrain.errors import DataError


def epoch_order(num_windows: int, seed: int, epoch: int = 0) -> list[int]:
    first = epoch * num_windows
    pairs = [permuted_index(first + i, num_windows, seed) for i in range(num_windows)]
    assert {epoch for epoch, _ in pairs} == {epoch}
    return [index for _, index in pairs]


@pytest.mark.parametrize("seed", [0, 1, 2**63, -5])
@pytest.mark.parametrize("num_windows", [1, 2, 3, 7, 100, 1000, 65537])
def test_every_epoch_is_every_window_once(num_windows: int, seed: int) -> None:
    for epoch in (0, 3):
        assert sorted(epoch_order(num_windows, seed, epoch)) == list(range(num_windows))


@settings(deadline=None)
@given(st.integers(1, 3000), st.integers(-(2**70), 2**70), st.integers(0, 2**40))
def test_an_epoch_is_a_bijection_for_any_size_and_seed(size: int, seed: int, epoch: int) -> None:
    assert sorted(epoch_order(size, seed, epoch)) == list(range(size))


def test_epochs_and_seeds_have_orders_of_their_own() -> None:
    orders = [tuple(epoch_order(1000, seed, epoch)) for seed in range(5) for epoch in range(5)]
    assert len(set(orders)) == 25
    assert tuple(range(1000)) not in orders


def test_no_window_prefers_a_place() -> None:
    """Over many epochs each of 5 windows comes first about equally often: 5σ around 800."""
    first = Counter(epoch_order(5, seed=7, epoch=epoch)[0] for epoch in range(4000))
    assert all(abs(first[window] - 800) < 5 * (4000 * 0.2 * 0.8) ** 0.5 for window in range(5))


def test_all_orders_of_three_windows_occur() -> None:
    assert len({tuple(epoch_order(3, seed=0, epoch=epoch)) for epoch in range(200)}) == 6


def test_neighbouring_positions_are_not_neighbouring_windows() -> None:
    order = epoch_order(10_000, seed=1)
    neighbours = sum(abs(a - b) == 1 for a, b in pairwise(order))
    assert neighbours < 20  # 2 are expected of a random order


def test_the_order_is_fixed_for_ever() -> None:
    """A resumed run depends on these numbers: a change here breaks every run under way."""
    fixed = [(0, 2), (0, 5), (1, 4), (1, 1), (1, 7)]
    assert [permuted_index(i, 10, 42) for i in range(8, 13)] == fixed


@pytest.mark.parametrize(("tokens", "windows"), [(5, 1), (8, 1), (9, 2), (12, 2), (13, 3)])
def test_windows_share_the_token_between_them(tokens: int, windows: int) -> None:
    assert count_windows(tokens, context=4) == windows


@pytest.mark.parametrize("tokens", [0, 1, 4])
def test_too_few_tokens_for_a_window(tokens: int) -> None:
    with pytest.raises(DataError, match=f"{tokens} tokens .* context 4") as caught:
        count_windows(tokens, context=4)
    assert caught.value.exit_code == 5
    assert "--data" in str(caught.value.hint)
