"""What a plan is explained with: who asked for what, and what becomes of every `auto`."""

from __future__ import annotations

from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import pytest

from llmtrain.engine import explain as explain_module
from llmtrain.engine.explain import PLAN, Explained, explain, explain_run
from llmtrain.engine.request import TrainRequest
from llmtrain.machine.assume import assume_machine
from llmtrain.plan import kernel_probes, probe
from llmtrain.plan.planner import Plan
from llmtrain.profile.load import flat_values, known_paths
from llmtrain.profile.setting import Setting

MACHINE = assume_machine("cuda:2x24GiB:16c", python_version="3.12.3", torch_version="2.13.0")
# A wish for every decision that can be wished, by a different layer each.
WISHES = """\
name: wishful
train: {steps: 10, micro_batch: 2}
device: {threads: 3, workers: 5}
"""


def explained(*assignments: str, profile: str = "gpu-small", **flags: Any) -> Explained:
    settings = {
        path.replace("_", ".", 1): Setting(value, f"--{path}") for path, value in flags.items()
    }
    return explain(TrainRequest(profile, assignments, settings, assumed=MACHINE))


def origins(of: Explained) -> dict[str, str]:
    return {name: origin for name, _, origin in of.decisions()}


def test_nobody_asked_for_what_is_left_to_the_plan() -> None:
    assert set(origins(explained()).values()) == {PLAN}
    assert set(origins(explained())) == {field.name for field in fields(Plan)}


def test_every_layer_is_seen_in_the_decisions_that_it_made(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "wishful.yaml"
    path.write_text(WISHES)
    monkeypatch.setenv("LLMTRAIN_DEVICE__BACKEND", "gloo")
    shown = explained("device.compile=false", profile=str(path), device_kind="cuda")

    assert origins(shown) == dict.fromkeys(origins(shown), PLAN) | {
        "micro_batch": f"{path}:2",
        "threads": f"{path}:3",
        "workers": f"{path}:3",
        "backend": "environment LLMTRAIN_DEVICE__BACKEND",
        "compile": "--set device.compile=false",
        "device": "--device_kind",
    }
    said = {key: (value, origin) for key, value, origin in shown.settings()}
    assert said["train.micro_batch"] == (2, f"{path}:2")
    assert said["device.compile"] == (False, "--set device.compile=false")
    assert said["optim.beta1"] == (0.9, "default")
    assert said["train.tokens_per_step"][1].startswith("chosen: ")


def test_a_cpu_that_was_forced() -> None:
    assert origins(explained("device.force_cpu=true"))["device"] == "--set device.force_cpu=true"


@pytest.mark.parametrize("name", ["muon", "adamw"])
@pytest.mark.parametrize("kind", ["cpu", "cuda"])
def test_something_becomes_of_every_auto(name: str, kind: str) -> None:
    shown = explained(f"optim.name={name}", f"device.kind={kind}")
    left_open = {key for key, value, _ in shown.settings() if value == "auto"}
    assert left_open - set(shown.decided()) == {
        *("data.tokenizer", "eval.prompts")  # known once there is text
    }
    assert set(shown.decided()) <= left_open
    assert all(choice.value != "auto" and choice.reason for choice in shown.decided().values())


def test_what_is_said_is_not_derived() -> None:
    assert "optim.learning_rate" in explained().derived()
    assert "optim.learning_rate" not in explained("optim.learning_rate=0.01").derived()


def test_wishes_are_keys_of_a_profile_and_decisions_of_a_plan() -> None:
    assert set(explain_module._OPTIONS.values()) <= set(known_paths())
    assert set(explain_module._OPTIONS) <= {field.name for field in fields(Plan)}


def test_every_value_is_there_once() -> None:
    shown = explained()
    values = dict(flat_values(shown.loaded.profile.values()))
    assert [(key, value) for key, value, _ in shown.settings()] == list(values.items())


@pytest.mark.parametrize("call", [explain, explain_run])
@pytest.mark.parametrize("profile", [None, "cpu-tiny"])
@pytest.mark.parametrize("horizon", ["train.time=20m", "train.steps=100"])
def test_nothing_here_is_read_or_timed_for_another_machine(
    call: Any, profile: str | None, horizon: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in ("request", "plan_run"):
        monkeypatch.setattr(f"llmtrain.engine.{module}.read_facts", pytest.fail)
    for name in ("time_matmuls", "time_attention", "time_block"):
        monkeypatch.setattr(kernel_probes, name, pytest.fail)
    monkeypatch.setattr(probe, "load_measurement", pytest.fail)
    machine = assume_machine("cpu:6c:8GiB", python_version="3.12.3", torch_version="2.13.0")
    shown = call(TrainRequest(profile, [horizon], assumed=machine))

    assert shown.assumed == machine
    assert shown.planned.facts == machine.facts
    assert shown.planned.plan.threads.value == 6
    assert shown.planned.plan.precision.reason == "not measured on this CPU"
    assert shown.planned.limit_bytes < 8 * 2**30


def test_the_machine_that_is_assumed_decides() -> None:
    one = replace(MACHINE, facts=replace(MACHINE.facts, accelerators=()))
    assert explained().planned.plan.processes.value == 2
    alone = explain(TrainRequest("gpu-small", assumed=one)).planned.plan
    assert (alone.device.value, alone.processes.value) == ("cpu", 1)
