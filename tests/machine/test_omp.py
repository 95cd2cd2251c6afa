from __future__ import annotations

import dataclasses

import pytest

from llmtrain.machine.probe import read_cpu, read_facts
from llmtrain.plan.decisions import choose_threads
from llmtrain.profile.schema import DeviceSection


@pytest.mark.parametrize(
    ("text", "found"), [("3", 3), ("2,1", 2), ("", None), ("many", None), ("0", None)]
)
def test_the_users_number_of_threads_is_read(
    text: str, found: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", text)
    assert read_cpu().omp_threads == found


def test_what_torchrun_sets_is_not_the_users(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "none")
    assert read_cpu().omp_threads is None


def test_threads_follow_the_environment_unless_the_profile_names_them(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    facts = read_facts(tries_gpus=False)
    chosen = choose_threads(facts, DeviceSection(), 1)
    assert chosen.value == 3
    assert "OMP_NUM_THREADS" in chosen.reason
    assert choose_threads(facts, DeviceSection(threads=2), 1).value == 2
    unset = dataclasses.replace(facts, cpu=dataclasses.replace(facts.cpu, omp_threads=None))
    assert choose_threads(unset, DeviceSection(), 1).value == facts.cpu.usable_cores
