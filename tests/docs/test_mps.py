"""The page says of an Apple GPU what a plan for one says, and how that differs from CUDA's."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from llmtrain.errors import UsageError
from llmtrain.plan.planner import make_plan
from tests.machines import CUDA, MPS, WORKLOAD, wish

PAGE = Path(__file__).parents[2] / "docs" / "reference" / "platforms.md"
SECTION = PAGE.read_text(encoding="utf-8").split("## An Apple GPU (MPS)")[1]
ROWS = re.findall(r"^\| `(\w+)` \| `([\w.]+)` \|", SECTION, flags=re.MULTILINE)


def test_the_page_is_the_plan() -> None:
    plan = dict(make_plan(MPS, wish(), WORKLOAD).choices())
    assert len(ROWS) == 8
    assert {name: str(plan[name].value).lower() for name, _ in ROWS} == dict(ROWS)


def test_whatever_differs_from_cuda_is_listed() -> None:
    mps, cuda = (dict(make_plan(each, wish(), WORKLOAD).choices()) for each in (MPS, CUDA))
    differs = {name for name in mps if mps[name].value != cuda[name].value}
    follows = {
        *("device", "backend"),  # the machine's own
        *("threads", "micro_batch", "accumulation", "matmul_precision"),  # of sizes and precision
        *("keep_weight_casts", "activation_checkpointing"),
    }
    assert differs <= {name for name, _ in ROWS} | follows


def test_half_precision_is_as_the_page_says() -> None:
    assert make_plan(MPS, wish(precision="bf16"), WORKLOAD).precision.value == "bf16"
    with pytest.raises(UsageError, match="gradients cannot be scaled on MPS"):
        make_plan(MPS, wish(precision="fp16"), WORKLOAD)
