"""Training from Python: `plan`, `train`, `evaluate`, `generate`, and the modules behind them."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from llmtrain.engine import bench
    from llmtrain.engine.api import evaluate, generate, plan, train

__all__ = ["bench", "evaluate", "generate", "plan", "train"]


def __getattr__(name: str) -> Any:
    # torch takes 200 MB and seconds to import; commands that only read text do without it.
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    if name == "bench":
        return import_module("llmtrain.engine.bench")
    return getattr(import_module("llmtrain.engine.api"), name)
