"""Training with native kernels: a resume gives the same bits, and without them a run goes on."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from llmtrain.choice import Choice
from llmtrain.engine import plan_run
from llmtrain.machine.facts import AttentionTimes, LossTimes
from llmtrain.plan import kernel_probes, native_kernels
from llmtrain.progress import Note
from llmtrain.train.events import Started
from tests.train.harness import Files, InProcessTrainer, RunAlone

pytestmark = pytest.mark.usefixtures("native_kernels")
SETTINGS: dict[str, Any] = {
    "device__precision": "bf16",
    "device__attention": "native",
    "device__loss": "native",
    "device__block_kernels": "native",
    "device__compile": False,
    "data__mask_documents": True,
}


@pytest.fixture(scope="module")
def whole(native_kernels: None, run_alone: RunAlone) -> Files:
    return run_alone(**SETTINGS)


def stops(event: object) -> bool:
    return getattr(event, "step", 0) == 7


def test_the_plan_is_followed_and_the_loss_falls(whole: Files) -> None:
    losses = [line["loss"] for line in whole.course() if "loss" in line]
    assert losses[-1] < losses[0] - 0.3


@pytest.mark.parametrize("keeps", [("auto", "auto"), ("off", "selective"), ("full", "off")])
def test_an_interrupted_run_goes_on_as_if_it_had_not_been(
    whole: Files, train: InProcessTrainer, place: Path, keeps: tuple[str, str]
) -> None:
    """Whatever is kept for the backward: another measurement or less memory may change that."""
    before, after = (SETTINGS | {"device__activation_checkpointing": mode} for mode in keeps)
    train(place / "run", stop_at=stops, **before)
    train(place / "run", resume="auto", **after)
    assert not [event for event in train.events if "not bitwise" in getattr(event, "text", "")]
    assert Files(place / "run").digests() == whole.digests()


def test_both_ways_to_compute_train_alike(whole: Files, run_alone: RunAlone) -> None:
    others = {
        "device__attention": "blocks",
        "device__loss": "chunks",
        "device__block_kernels": "torch",
    }
    found = run_alone(**SETTINGS | others).course()[-1]["val_loss"]
    assert whole.course()[-1]["val_loss"] == pytest.approx(found, rel=5e-3)


def test_a_run_whose_kernels_are_gone_goes_on_without_them(
    train: InProcessTrainer, place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They were chosen by their measured times; the resume says why it computes other bits."""
    monkeypatch.setattr(native_kernels, "_WORTH_NATIVE_CPU_S", 0.0)
    times = AttentionTimes(sdpa_s=0.3, blocks_s=0.2, native_s=0.1)
    monkeypatch.setattr(kernel_probes, "time_attention", lambda *_: times)
    monkeypatch.setattr(kernel_probes, "time_loss", lambda *_: LossTimes(0.2, 0.1))
    chooses = SETTINGS | {
        "device__attention": "auto",
        "device__loss": "auto",
        "device__block_kernels": "torch",
    }
    train(place / "run", stop_at=stops, **chooses)
    gone = Choice(False, "no C++ compiler was found")
    for module in (plan_run, kernel_probes):
        monkeypatch.setattr(module, "load_kernels", lambda *_, **__: gone)
    train(place / "run", resume="auto", **chooses)

    plans = [event.plan for event in train.events if isinstance(event, Started)]
    assert [(plan.attention.value, plan.loss.value) for plan in plans] == [
        ("native", "native"),
        ("blocks", "chunks"),
    ]
    said = [event.text for event in train.events if isinstance(event, Note)]
    why = "the run used native kernels, and continues without them: no C++ compiler was found"
    assert why in said
    assert Files(place / "run").course()[-1]["step"] == 20
