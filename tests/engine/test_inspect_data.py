"""`data inspect` reads no more of the machine than it needs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from llmtrain.engine import inspect_data as module
from llmtrain.engine.inspect_data import inspect_data
from llmtrain.prepare.context import PrepareContext
from llmtrain.profile.load import load_profile
from tests.machines import CPU


@pytest.mark.parametrize(
    ("setting", "tries"),
    [("device.kind=cpu", False), ("device.force_cpu=true", False), ("device.kind=auto", True)],
)
def test_no_gpu_is_touched_for_a_cpu(
    setting: str, tries: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "text.txt").write_text("a few words\n" * 100)
    asked: list[bool] = []

    def read(*, tries_gpus: bool = True) -> Any:
        asked.append(tries_gpus)
        return CPU

    monkeypatch.setattr(module, "read_facts", read)
    assignments = [setting, "train.steps=10", f"data.sources=['{tmp_path / 'text.txt'}']"]
    profile = load_profile("cpu-tiny", environment={}, assignments=assignments).profile
    work = PrepareContext(1, lambda event: None, lambda: None)
    report = inspect_data(profile, work, only_first=5, is_for_profile=True)

    assert asked == [tries]
    assert report.epochs is not None
