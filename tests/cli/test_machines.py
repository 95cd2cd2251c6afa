"""`device info` on machines that one does not have, as text and as a document.

What it says there is kept in `snapshots`. After a change that is meant, rewrite and review them:

    python -m pytest tests/cli/test_machines.py --write-snapshots
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from llmtrain.cli.tables import plain_value
from llmtrain.machine.torch_build import replacement_build
from tests.cli.conftest import Command, Snapshot
from tests.cli.invented import MACHINES, Machine

SNAPSHOTS = Path(__file__).parent / "snapshots"

NOT_SCRIPTED = {"reason", "how", "schema_version", "llmtrain"}


@pytest.fixture(params=MACHINES)
def name(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def machine(name: str, monkeypatch: pytest.MonkeyPatch) -> Machine:
    """What is found and measured here is this machine's."""
    machine = MACHINES[name]
    monkeypatch.setattr("llmtrain.engine.request.read_facts", lambda **_: machine.facts)
    monkeypatch.setattr("llmtrain.engine.plan_run.read_facts", pytest.fail)
    monkeypatch.setattr("llmtrain.engine.plan_run.measured_cpu", lambda *_: machine.times)
    monkeypatch.setattr("llmtrain.plan.auto_profile.eager_tokens_per_s", pytest.fail)
    return machine


def test_text(machine: Machine, llmtrain: Command) -> None:
    """People read every decision that the document has, with its value and its reason."""
    outcome = llmtrain("device", "info", *machine.arguments)
    document = llmtrain("device", "info", *machine.arguments, "--json").document

    assert outcome.code == 0
    build = replacement_build(machine.facts)
    hint = f"hint: {build.command}\n" if build else ""
    assert outcome.err.endswith(hint)
    assert bool(outcome.err) is bool(hint)
    words = " ".join(outcome.out.split())
    for name, decision in document["plan"].items():
        assert f"{name} {plain_value(decision['value'])} " in words
        assert decision["reason"].split()[0] in words
    assert ("fits: " in words) is document["fits"]


def test_document(name: str, machine: Machine, llmtrain: Command, snapshot: Snapshot) -> None:
    document = llmtrain("device", "info", *machine.arguments, "--json").document

    text = json.dumps(scripted(document), indent=1, ensure_ascii=False)
    snapshot(SNAPSHOTS / f"{name}.json", text + "\n")


def test_every_snapshot_is_of_a_machine() -> None:
    assert {path.name for path in SNAPSHOTS.iterdir()} == {f"{name}.json" for name in MACHINES}


def scripted(value: Any) -> Any:
    """What programs rely on: no prose, no versions, no last digits, in which C libraries differ."""
    if isinstance(value, float):
        return float(f"{value:.9g}")
    if isinstance(value, dict):
        return {key: scripted(inner) for key, inner in value.items() if key not in NOT_SCRIPTED}
    return [scripted(inner) for inner in value] if isinstance(value, list) else value
