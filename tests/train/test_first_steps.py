"""Advice after the first steps is for runs that can take it."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from llmtrain.profile.lora_shape import LoraShape
from llmtrain.train.checkpoint.adapter import Adapter, BaseModel
from llmtrain.train.distributed.world import World
from llmtrain.train.first_steps import could_average_rarely
from tests.train.distributed.sharded_ranks import run_of


@pytest.mark.parametrize("change", ["nothing", "by itself", "adapters", "loss scale"])
def test_rounds_are_advised_to_runs_that_can_take_them(change: str) -> None:
    run = run_of(World(), **{"device.sharding": "auto", "device.kind": "cpu"})
    assert not could_average_rarely(run), "one process averages nothing"
    run.objective = torch.nn.Sequential(run.model)  # as DDP is around it
    if change == "by itself":
        run.objective = run.model
    elif change == "adapters":
        run.adapter = Adapter(LoraShape(4, 8.0, ("q_proj",)), BaseModel(Path("base"), {}))
    elif change == "loss scale":
        run.scaler = torch.amp.GradScaler("cpu", enabled=True)
    assert could_average_rarely(run) == (change == "nothing")
