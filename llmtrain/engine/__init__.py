"""What the command line and a notebook call: `plan`, `train`, `evaluate`, `generate`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from llmtrain.engine.api import evaluate, generate, plan, train

__all__ = ["evaluate", "generate", "plan", "train"]


def __getattr__(name: str) -> Any:
    # torch takes 200 MB and seconds to import, and what reads text has no use for it.
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from llmtrain.engine import api

    return getattr(api, name)
