"""`llmtrain` as a rank that runs short of memory: `python -m tests.faults.short_rank RANK HOW …`.

HOW is `out` (an allocation fails in step 3), `smaller` or `stop` (what the rank finds that memory
asks for after step 2). Other ranks find nothing. Started by torchrun.
"""

from __future__ import annotations

import os
import sys
from typing import Any

import torch
from torch import Tensor

from llmtrain.cli.app import main
from llmtrain.machine.memory_pressure import MemoryAction
from llmtrain.model.decoder import Decoder
from llmtrain.plan.memory_watch import MemoryWatch

_ANSWERS = {
    "smaller": MemoryAction(smaller=1, reason="short"),
    "stop": MemoryAction(stop=True, reason="short"),
}


def run_out() -> None:
    """The third training forward fails."""
    forward, calls = Decoder.forward, 0

    def short_forward(self: Decoder, tokens: Tensor, targets: Tensor) -> Tensor:
        nonlocal calls
        calls += torch.is_grad_enabled()
        if calls == 3:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 64.00 MiB.")
        return forward(self, tokens, targets)

    Decoder.forward = short_forward  # type: ignore[assignment,method-assign]


def find(answer: MemoryAction) -> None:
    """The look after the second step, the third of all, gives `answer`."""
    looks = 0

    def look(self: MemoryWatch, plan: Any, step: int) -> MemoryAction:
        nonlocal looks
        looks += 1
        return answer if looks == 3 else MemoryAction()

    MemoryWatch.check = look  # type: ignore[method-assign]


if __name__ == "__main__":
    rank, how = sys.argv[1:3]
    del sys.argv[1:3]
    if os.environ["RANK"] == rank:
        if how == "out":
            run_out()
        else:
            find(_ANSWERS[how])
    main()
