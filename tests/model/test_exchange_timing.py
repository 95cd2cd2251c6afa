"""An exchange is timed by processes that are started for it, and meet over gloo."""

from __future__ import annotations

import pytest

from llmtrain.errors import LlmtrainError
from llmtrain.model.exchange_timing import time_exchange


def test_two_processes_agree_on_the_times_of_the_slowest() -> None:
    times = time_exchange(2)
    assert times.latency_s > 0
    assert 1e-11 < times.byte_s < 1e-6, "between 1 MB/s and 100 GB/s"
    assert 1e-12 < times.cpu_byte_s < 1e-6


def test_a_process_that_fails_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GLOO_SOCKET_IFNAME", "none-of-that-name")
    with pytest.raises(LlmtrainError, match="processes cannot exchange tensors here"):
        time_exchange(2)
