"""Times of kernels and of the parts of a step that nobody takes."""

from __future__ import annotations

import pytest
import torch

from llmtrain.machine.facts import AttentionTimes, BlockTimes, MatmulTimes, PartTime
from llmtrain.model.timing import CompileError
from llmtrain.plan import kernel_probes, step_benchmarks

KERNELS = ["products", "attention"]
PARTS = ["eager block", "head", "update"]


class Clock:
    """Times to set, in place of measured ones; what was measured, in order, and how."""

    def __init__(self) -> None:
        self.products = MatmulTimes(fp32_s=0.1, medium_s=0.1, bf16_s=0.1, flops=1e9)
        self.attention = AttentionTimes(sdpa_s=0.4, blocks_s=0.3)
        self.block = BlockTimes(eager_s=0.04, compiled_s=0.03, compile_s=7.0)
        self.part = PartTime(0.02)
        self.parts: dict[str, PartTime] = {}  # others than `part`
        self.failure: str | None = None  # of compiling
        self.asked: list[str] = []
        self.matmul_precisions: list[str] = []
        self.blocks: list[dict[str, object]] = []

    def install(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Answer instead of what measures."""
        for name in ("time_matmuls", "time_attention", "time_block"):
            monkeypatch.setattr(kernel_probes, name, getattr(self, name))
        for name in ("time_chained_block", "time_head", "time_update"):
            monkeypatch.setattr(step_benchmarks, name, getattr(self, name))

    def time_matmuls(self, *_: object) -> MatmulTimes:
        self.asked.append("products")
        return self.products

    def time_attention(self, *_: object) -> AttentionTimes:
        self.asked.append("attention")
        self.matmul_precisions.append(torch.get_float32_matmul_precision())
        return self.attention

    def time_block(self, *_: object, **settings: object) -> BlockTimes:
        self.asked.append("block")
        self.matmul_precisions.append(torch.get_float32_matmul_precision())
        self.blocks.append(settings)
        if self.failure is not None:
            raise CompileError(self.failure)
        return self.block

    def time_chained_block(self, *_: object) -> PartTime:
        return self._part("eager block")

    def time_head(self, *_: object, compiled: bool) -> PartTime:
        return self._part("compiled head" if compiled else "head")

    def time_update(self, *_: object) -> PartTime:
        return self._part("update")

    def _part(self, name: str) -> PartTime:
        self.asked.append(name)
        return self.parts.get(name, self.part)
