"""What is compared with what, and the settings that make the systems train the same."""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from tests.benchmarks.results import OURS
from tests.benchmarks.shapes import Shape

SYSTEMS = (OURS, "naive", "nanogpt", "hf", "hf-fp32")
_HUGGING_FACE = ("transformers", "accelerate")
_BROUGHT_BY_EXTRA = {"hf": _HUGGING_FACE, "hf-fp32": _HUGGING_FACE}


@dataclass(frozen=True, slots=True)
class Comparison:
    """One call of the benchmark.

    `threads` is of each process of ours; None: as it plans, which is all usable cores in all.
    """

    shape: Shape
    systems: tuple[str, ...]
    rounds: int
    steps: int
    warmup: int
    threads: int | None
    nproc: int
    assignments: tuple[str, ...]
    tokens: Literal["text", "random"]
    text: str
    seed: int
    nanogpt: Path | None

    @property
    def all_steps(self) -> int:
        """Steps of one run, the warm-up and the measured ones."""
        return self.warmup + self.steps

    def tokens_per_step(self, system: str) -> int:
        """One micro-batch a step and process; only ours has more than one process."""
        return self.shape.tokens_per_micro_batch * (self.nproc if system == OURS else 1)

    @property
    def threads_in_all(self) -> int | None:
        """Threads of all processes of ours together; None: the usable cores."""
        return None if self.threads is None else self.threads * self.nproc

    @property
    def own_assignments(self) -> tuple[str, ...]:
        """The `--set` of ours: the shape, one micro-batch a step, every step in the log."""
        model = self.shape.model
        values: dict[str, object] = {
            "model.vocab_size": model.vocab_size,
            "model.hidden_size": model.hidden_size,
            "model.intermediate_size": model.intermediate_size,
            "model.num_layers": model.num_layers,
            "model.num_heads": model.num_heads,
            "model.context": model.context,
            "train.tokens_per_step": self.tokens_per_step(OURS),
            "train.micro_batch": self.shape.micro_batch,
            "train.log_every_steps": 1,
            "optim.name": "adamw",  # as the others have; Muon's products would count too
            "eval.tokens": self.tokens_per_step(OURS),
            "eval.sample_every_steps": "null",
        }
        if self.threads is not None:
            values["device.threads"] = self.threads
        return (*(f"{key}={value}" for key, value in values.items()), *self.assignments)


def missing_packages(systems: Sequence[str]) -> list[str]:
    """What the extra `bench` would bring for these systems and is not installed."""
    needed = dict.fromkeys(name for system in systems for name in _BROUGHT_BY_EXTRA.get(system, ()))
    return [name for name in needed if importlib.util.find_spec(name) is None]
