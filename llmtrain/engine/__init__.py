"""What the command line and a notebook call: `plan`, `train`, `evaluate`, `generate`."""

from llmtrain.engine.api import evaluate, generate, plan, train

__all__ = ["evaluate", "generate", "plan", "train"]
