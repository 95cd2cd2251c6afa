"""Own operators, and that what a run does without compiling leaves torch's compiler alone."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch
from torch import Tensor

from llmtrain.ops import blocked_attention

_EAGER_STEP = """
import sys

import torch

from llmtrain.model.optimizer import RoleOptimizer
from llmtrain.ops.blocked_attention import blocked_attention

q = torch.ones(1, 2, 4, 8, requires_grad=True)
heads = torch.nn.Parameter(torch.ones(8, 16))
algorithm = {"algorithm": "adamw", "lr": 1e-3, "weight_decay": 0.0, "betas": (0.9, 0.95)}
stepping = RoleOptimizer(
    [algorithm | {"eps": 1e-8, "params": [heads]}], product_dtype=torch.float32
)
(blocked_attention(q, q, q) @ heads.t()).sum().backward()
stepping.step()
stepping.zero_grad()
assert heads.grad is None
print("torch._dynamo" in sys.modules)
"""


def test_an_eager_step_does_not_import_the_compiler() -> None:
    """It is tens of MiB of every such run, and a second before its first step."""
    done = subprocess.run(
        [sys.executable, "-c", _EAGER_STEP], check=True, capture_output=True, text=True
    )
    assert done.stdout.strip() == "False"


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_an_operator_agrees_with_what_its_registration_says(dtype: torch.dtype) -> None:
    q: Tensor = torch.randn(2, 4, 8, 16, dtype=dtype)
    torch.library.opcheck(
        blocked_attention.OPERATOR,
        (q.requires_grad_(), *(torch.randn(2, 2, 8, 16, dtype=dtype) for _ in "kv")),
        test_utils=("test_schema", "test_faketensor"),
    )
