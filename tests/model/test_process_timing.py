"""A step is timed by processes that are started for it, and average gradients over gloo."""

from __future__ import annotations

import pytest

from llmtrain.errors import LlmtrainError
from llmtrain.machine.facts import ProcessTimes
from llmtrain.model.process_timing import time_processes
from llmtrain.model.step_timing import Way
from llmtrain.profile.schema import ModelSection
from llmtrain.profile.shape import shape_of

SHAPE = shape_of(ModelSection(hidden_size=32, num_heads=2, num_layers=2, context=32))
WAY = Way(
    micro_batch=2,
    precision="fp32",
    attention="blocks",
    checkpointing="full",
    keep_casts=False,
    threads=1,
    masked=True,
)


def test_two_processes_agree_on_the_times_of_the_slowest() -> None:
    times = time_processes(2, SHAPE, WAY, "highest", "muon")
    assert min(times.micro_s, times.synced_s, times.update_s) > 0
    assert times.step_s(3) == pytest.approx(2 * times.micro_s + times.synced_s + times.update_s)


def test_one_process_meets_no_others() -> None:
    times = time_processes(1, SHAPE, WAY, "highest", "adamw")
    assert isinstance(times, ProcessTimes)
    assert times.noise == 0.0


def test_a_process_that_fails_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GLOO_SOCKET_IFNAME", "none-of-that-name")
    with pytest.raises(LlmtrainError, match="several processes cannot train here"):
        time_processes(2, SHAPE, WAY, "highest", "adamw")
