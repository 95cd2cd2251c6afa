"""`device info` on machines that one does not have, as text and as a document.

What it says there is kept in `snapshots`. After a change that is meant, rewrite and review them:

    python -m pytest tests/cli/test_machines.py --write-snapshots
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

import llmtrain as package
from tests.cli.invented import MACHINES, Machine

SNAPSHOTS = Path(__file__).parent / "snapshots"


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
    monkeypatch.setattr("llmtrain.plan.auto_profile.measured_products", pytest.fail)
    return machine


def test_text(name: str, machine: Machine, llmtrain: Any, snapshot: Any) -> None:
    outcome = llmtrain("device", "info", *machine.arguments)

    assert (outcome.code, outcome.err) == (0, "")
    lines = [line.rstrip() for line in outcome.out.splitlines()]
    snapshot(SNAPSHOTS / f"{name}.txt", "\n".join(lines) + "\n")


def test_document(name: str, machine: Machine, llmtrain: Any, snapshot: Any) -> None:
    document = llmtrain("device", "info", *machine.arguments, "--json").document

    assert document["llmtrain"] == package.__version__
    lasting = rounded(document | {"llmtrain": "…"})
    text = json.dumps(lasting, indent=1, ensure_ascii=False)
    snapshot(SNAPSHOTS / f"{name}.json", text + "\n")


def test_every_snapshot_is_of_a_machine() -> None:
    found = {path.name for path in SNAPSHOTS.iterdir()}
    assert found == {f"{name}.{kind}" for name in MACHINES for kind in ("txt", "json")}


def rounded(value: Any) -> Any:
    """Without the last digits, in which C libraries differ."""
    if isinstance(value, float):
        return float(f"{value:.9g}")
    if isinstance(value, dict):
        return {key: rounded(inner) for key, inner in value.items()}
    return [rounded(inner) for inner in value] if isinstance(value, list) else value
