"""What is said of the network between ranks."""

from __future__ import annotations

import pytest
import torch

from llmtrain.plan.rounds import Exchange
from llmtrain.train.distributed import bandwidth
from llmtrain.train.distributed.bandwidth import advice, measured_exchange
from llmtrain.train.distributed.world import World


def test_where_averaging_takes_most_of_a_step_rounds_are_advised() -> None:
    slow = Exchange(latency_s=0.02, bytes_per_s=100e6 / 8)
    note = advice(slow, gradient_bytes=13_600_000, step_s=1.5)
    assert note is not None
    assert "13 MiB takes about 1.1s of a step of 1.5s, at 100 Mbit/s" in note
    assert "--set train.sync_every=30" in note


def test_advised_rounds_are_as_short_as_keeps_them_cheap() -> None:
    note = advice(Exchange(0.0, 10e6), gradient_bytes=13_600_000, step_s=4.0)
    assert note is not None
    assert "--set train.sync_every=10" in note


def test_where_averaging_takes_little_nothing_is_said() -> None:
    assert advice(Exchange(0.001, 1e9), gradient_bytes=106_000_000, step_s=1.4) is None


def test_an_exchange_is_a_start_and_bytes_a_second(monkeypatch: pytest.MonkeyPatch) -> None:
    seconds = {32 << 10: 0.03, 1 << 20: 0.11}

    def fastest_s(_world: World, _device: torch.device, size_bytes: int) -> float:
        return seconds[size_bytes]

    monkeypatch.setattr(bandwidth, "_fastest_s", fastest_s)
    exchange = measured_exchange(World(), torch.device("cpu"), 1 << 20)
    for size_bytes, taken_s in seconds.items():
        assert exchange.seconds(size_bytes) == pytest.approx(taken_s, rel=1e-6)


@pytest.mark.parametrize(
    ("bytes_per_s", "timed"),
    [
        (1e6, [32 << 10, 1 << 20]),  # another would take longer than a second
        (50e6, [32 << 10, 1 << 20, 32 << 20]),
        (1e9, [32 << 10, 1 << 20, 32 << 20, 100 << 20]),
    ],
)
def test_larger_exchanges_are_timed_where_they_are_fast(
    bytes_per_s: float, timed: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes: list[int] = []

    def fastest_s(_world: World, _device: torch.device, size_bytes: int) -> float:
        sizes.append(size_bytes)
        return 0.001 + size_bytes / bytes_per_s

    monkeypatch.setattr(bandwidth, "_fastest_s", fastest_s)
    exchange = measured_exchange(World(), torch.device("cpu"), 100 << 20)
    assert sizes == timed
    assert exchange.seconds(100 << 20) == pytest.approx(0.001 + (100 << 20) / bytes_per_s, rel=1e-6)
