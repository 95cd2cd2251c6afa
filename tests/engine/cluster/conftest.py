"""A job of the size that a test asks for."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from llmtrain.engine.cluster.job import Job, make_job
from llmtrain.engine.request import TrainRequest
from llmtrain.machine.assume import assume_machine

MakeJob = Callable[..., Job]


@pytest.fixture
def make() -> MakeJob:
    def job(spec: str = "cuda:8x80GiB", profile: str = "gpu-large", **more: Any) -> Job:
        assumed = assume_machine(spec, python_version="3.12.0", torch_version="2.13.0")
        request = TrainRequest(profile, more.pop("assignments", ()), assumed=assumed)
        values: dict[str, Any] = {"nodes": 2, "limit_s": 43200, "run": Path("/shared/run")} | more
        return make_job(request, training_options=[f"--profile={profile}"], **values)

    return job
