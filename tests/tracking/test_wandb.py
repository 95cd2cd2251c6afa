from __future__ import annotations

import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

from llmtrain.tracking.wandb import WandbSink


def test_a_run_whose_path_is_not_utf_8_has_the_same_id_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    begun: list[dict[str, Any]] = []
    wandb = ModuleType("wandb")
    wandb.init = lambda **options: begun.append(options)  # type: ignore[attr-defined]
    wandb.Settings = SimpleNamespace  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "wandb", wandb)
    monkeypatch.setenv("WANDB_MODE", "offline")
    for _ in range(2):
        WandbSink(Path("runs", "caf\udce9")).start(0, {})
    first, second = (each["id"] for each in begun)
    assert first == second
