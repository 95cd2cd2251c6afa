"""The prediction for a GPU is that of what torch reserved in trainings on one.

`gpu_memory.json` is what `python -m tests.benchmarks.memory_error --device cuda` measured.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from llmtrain.engine.explain import explain
from llmtrain.engine.request import TrainRequest
from llmtrain.machine.assume import assume_machine

MEASURED = json.loads((Path(__file__).parent / "gpu_memory.json").read_text(encoding="utf-8"))
GPU = assume_machine("cuda:140GiB", python_version="3.12.3", torch_version="2.11.0")


def predicted_bytes(profile: str, settings: dict[str, Any]) -> int:
    assignments = [f"{name}={json.dumps(value)}" for name, value in settings.items()]
    request = TrainRequest(profile=profile, assignments=assignments, assumed=GPU)
    return explain(request).planned.prediction.measured_on("cuda")


@pytest.mark.parametrize("case", MEASURED["cases"], ids=lambda case: case["profile"])
def test_the_prediction_is_within_5_percent_and_at_most_2_under(case: dict[str, Any]) -> None:
    error = predicted_bytes(case["profile"], case["settings"]) / case["reserved_bytes"] - 1
    assert -0.02 <= error <= 0.05


def test_the_cases_cover_what_memory_depends_on() -> None:
    said = {name for case in MEASURED["cases"] for name in case["settings"]}
    assert len(MEASURED["cases"]) == 34
    assert {"device.compile", "device.precision", "device.activation_checkpointing"} <= said
    assert {"model.vocab_size", "model.tie_embeddings", "model.context", "optim.name"} <= said
