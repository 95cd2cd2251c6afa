"""Kernels of attention, the loss and blocks: another one only where it pays, with its figures."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, Literal

import pytest

from llmtrain.choice import AttentionKernel, Choice
from llmtrain.errors import UsageError
from llmtrain.machine.facts import AttentionTimes, CpuTimes, Facts, LossTimes
from llmtrain.plan import kernels
from llmtrain.plan.planner import make_plan
from tests.machines import CPU, CUDA, MPS, WORKLOAD, products, wish

OWN = Choice(True, "not compared")


def attention(
    times: CpuTimes | None, wanted: Literal["auto", "sdpa", "blocks"] = "auto"
) -> Choice[AttentionKernel]:
    return kernels.choose_attention(wish(attention=wanted), "cpu", times)


@pytest.mark.parametrize(
    ("sdpa_s", "blocks_s", "kernel"),
    [(0.100, 0.079, "blocks"), (0.100, 0.081, "sdpa"), (0.100, 0.250, "sdpa")],
)
def test_blocks_must_save_a_fifth_and_the_reason_says_by_how_much(
    sdpa_s: float, blocks_s: float, kernel: str
) -> None:
    times = replace(products(1.0, 1.0, 1.0), attention=AttentionTimes(sdpa_s, blocks_s))
    choice = attention(times)
    assert choice.value == kernel
    assert f"products over blocks {1e3 * blocks_s:.1f} ms" in choice.reason
    assert f"torch's kernel {1e3 * sdpa_s:.1f} ms" in choice.reason
    assert ("not clearly faster" in choice.reason) == (kernel == "sdpa")


@pytest.mark.parametrize(
    ("sdpa_s", "blocks_s", "native_s", "kernel"),
    [
        (0.100, 0.050, 0.062, "native"),
        (0.100, 0.050, 0.063, "blocks"),
        (0.050, 0.100, 0.063, "sdpa"),
        (0.050, 0.100, 0.062, "native"),
    ],
)
def test_the_native_kernel_stays_unless_another_saves_a_fifth(
    sdpa_s: float, blocks_s: float, native_s: float, kernel: str
) -> None:
    timed = AttentionTimes(sdpa_s, blocks_s, native_s)
    choice = attention(replace(products(1.0, 1.0, 1.0), attention=timed))
    assert choice.value == kernel
    assert f"native kernel {1e3 * native_s:.1f} ms" in choice.reason


@pytest.mark.parametrize(
    ("native_s", "chosen", "why"),
    [
        (0.099, "native", "faster: native kernel 99 ms"),
        (0.124, "native", "torch is not clearly faster: native kernel 124 ms"),
        (0.126, "chunks", "faster: native kernel 126 ms"),
    ],
)
def test_the_native_loss_stays_unless_chunks_save_a_fifth(
    native_s: float, chosen: str, why: str
) -> None:
    times = replace(products(1.0, 1.0, 0.5), loss=LossTimes(0.100, native_s))
    choice = kernels.choose_loss(CPU, wish(), "cpu", WORKLOAD, "bf16", times, OWN)
    assert choice.value == chosen
    assert why in choice.reason


def test_a_width_that_the_native_loss_does_not_take() -> None:
    narrow = replace(WORKLOAD, shape=replace(WORKLOAD.shape, hidden_size=72))
    times = replace(products(1.0, 1.0, 0.5), loss=LossTimes(0.1, 0.01))
    choice = kernels.choose_loss(CPU, wish(), "cpu", narrow, "bf16", times, OWN)
    assert choice.value == "chunks"
    assert "hidden_size 72 is no multiple of 32" in choice.reason
    with pytest.raises(UsageError, match="hidden_size 72 is no multiple of 32"):
        kernels.choose_loss(CPU, wish(loss="native"), "cpu", narrow, "bf16", times, OWN)


def test_attention_that_was_not_measured_is_torchs() -> None:
    for times in (None, products(1.0, 1.0, 1.0)):
        assert attention(times) == Choice("sdpa", "not measured on this CPU")


@pytest.mark.parametrize("kind", ["cuda", "mps"])
def test_a_gpu_has_its_own_kernel(kind: Literal["cuda", "mps"]) -> None:
    choice = kernels.choose_attention(wish(), kind, None)
    assert choice == Choice("sdpa", "the device's own kernel")


def test_documents_have_a_kernel_that_is_compiled_for_them() -> None:
    """Where it can be compiled and something is masked; asked for elsewhere, it is refused."""
    masked = replace(WORKLOAD, mask_documents=True)
    assert kernels.can_use_flex(masked, "cuda", "bf16", compiled=True)
    chosen = kernels.choose_attention(wish(), "cuda", None, masked=True, can_use_flex=True)
    assert chosen.value == "flex"
    narrow = replace(masked, shape=replace(WORKLOAD.shape, head_dim=8))
    for workload, kind, precision, compiled in (
        (WORKLOAD, "cuda", "bf16", True),
        (masked, "cpu", "bf16", True),
        (masked, "cuda", "fp16", True),
        (masked, "cuda", "bf16", False),
        (narrow, "cuda", "bf16", True),
    ):
        assert not kernels.can_use_flex(workload, kind, precision, compiled)
    with pytest.raises(UsageError, match=r"data\.mask_documents, compiled, in bf16, on CUDA"):
        kernels.choose_attention(wish(attention="flex"), "cpu", None, masked=True)


@pytest.mark.parametrize("kernel", ["sdpa", "blocks"])
def test_a_kernel_that_was_asked_for_is_used_though_it_is_slow(
    kernel: Literal["sdpa", "blocks"],
) -> None:
    slow = AttentionTimes(*((0.9, 0.1) if kernel == "sdpa" else (0.1, 0.9)))
    times = replace(products(1.0, 1.0, 1.0), attention=slow)
    assert attention(times, kernel) == Choice(kernel, "asked for")


def test_own_gpu_kernels_are_chosen_where_blocks_are_compiled_in_half_precision() -> None:
    def kernels(facts: Facts, **options: Any) -> tuple[str, str]:
        plan = make_plan(facts, wish(**options), WORKLOAD)
        return plan.block_kernels.value, plan.loss.value

    assert kernels(CUDA) == ("triton", "triton")
    assert kernels(CUDA, precision="fp32") == ("torch", "triton")
    assert kernels(CUDA, compile=False) == ("torch", "triton")
    assert kernels(replace(CUDA, has_triton=False)) == ("torch", "chunks")
    assert kernels(CUDA, block_kernels="torch", loss="chunks") == ("torch", "chunks")
    assert kernels(MPS) == kernels(CPU) == ("torch", "chunks")
