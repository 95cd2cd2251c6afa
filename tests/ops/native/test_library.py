"""Where the native kernels cannot be had, the reason says so."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from llmtrain.errors import LlmtrainError
from llmtrain.machine.facts import Facts
from llmtrain.machine.native import NativeSource
from llmtrain.machine.probe import read_facts
from llmtrain.ops.native import library
from llmtrain.ops.native.library import (
    kernel_source,
    load_kernels,
    require_kernels,
    unsuitable,
)


@pytest.fixture
def facts() -> Facts:
    here = read_facts(tries_gpus=False)
    return replace(here, cpu=replace(here.cpu, isa=("avx2", "avx512f", "avx512_bf16")))


@pytest.fixture
def not_loaded(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the kernels have another name than those that the session has loaded."""
    other = replace(kernel_source(), namespace="llmtrain_other")
    monkeypatch.setattr(library, "kernel_source", lambda *_: other)


def test_the_files_are_there() -> None:
    source: NativeSource = kernel_source()
    assert {path.name for path in source.files} >= {"loss.cpp", "operators.cpp"}
    assert all(path.is_file() for path in (*source.files, *source.headers))


@pytest.mark.parametrize(
    ("capability", "flag", "other"),
    [("AVX2", "-mavx2", "-mavx512f"), ("AVX512", "-mavx512f", "-mavx2")],
)
def test_fp32_has_vectors_as_wide_as_torch_uses(
    capability: str, flag: str, other: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(library, "vector_instructions", lambda: capability)
    source = kernel_source("fp32")
    assert {path.name for path in source.files} >= {"attention_forward.cpp", "operators.cpp"}
    assert "scratch.h" in {path.name for path in source.headers}
    assert flag in source.flags
    assert other not in source.flags
    assert source.digest() != kernel_source().digest()


def test_fp32_is_for_processors_with_avx2(facts: Facts) -> None:
    old = replace(facts, cpu=replace(facts.cpu, isa=()))
    assert unsuitable(facts, "fp32") is None
    assert not load_kernels(old, precision="fp32").value
    assert unsuitable(old, "fp32") == "native kernels for fp32 need a CPU with AVX2"


def test_a_processor_without_bf16_needs_none(facts: Facts) -> None:
    old = replace(facts, cpu=replace(facts.cpu, isa=("avx2", "avx512f")))
    loaded = load_kernels(old)
    assert not loaded.value
    assert "AVX512_BF16" in loaded.reason


@pytest.mark.usefixtures("not_loaded")
def test_without_a_compiler_a_run_that_needs_them_stops(
    facts: Facts, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(library, "read_facts", lambda **_: replace(facts, cxx_compiler=None))
    with pytest.raises(LlmtrainError, match="no C\\+\\+ compiler was found") as caught:
        require_kernels()
    assert caught.value.hint is not None


@pytest.mark.usefixtures("native_kernels")
def test_products_that_torch_refuses_are_a_reason(
    facts: Facts, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise RuntimeError("Unsupported brgemm\nand where")

    monkeypatch.setattr(torch.ops.llmtrain_native, "attention", refuse)
    loaded = load_kernels(facts)
    assert not loaded.value
    assert loaded.reason == "torch does not multiply blocks of bf16 here: Unsupported brgemm"
