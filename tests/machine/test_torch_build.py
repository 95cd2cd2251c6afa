"""Which build of torch replaces one that is for another machine."""

from __future__ import annotations

import shutil
from dataclasses import replace

import pytest
import torch

from llmtrain.machine.facts import Facts
from llmtrain.machine.probe import read_facts
from llmtrain.machine.torch_build import replacement_build
from tests.machine.test_probe import which_only


def facts(system: str = "Linux", **values: object) -> Facts:
    here = read_facts(tries_gpus=False)
    plain = replace(here, system=system, unusable_gpu=None, has_unused_cuda=False)
    return replace(plain, **values)  # type: ignore[arg-type]


def test_the_right_build_is_left_alone() -> None:
    assert replacement_build(facts()) is None


def test_cuda_without_a_driver_is_replaced_by_the_build_for_cpus() -> None:
    found = replacement_build(facts(torch_version="2.14.1+cu130", has_unused_cuda=True))
    assert found is not None
    assert "2.14.1+cu130 comes with gigabytes of CUDA" in found.reason
    index = "--index-url https://download.pytorch.org/whl/cpu"
    assert found.command == f"pip install --force-reinstall {index} torch==2.14.1"


@pytest.mark.parametrize(
    ("system", "index"),
    [("Linux", ""), ("Windows", "--index-url https://download.pytorch.org/whl/cu128 ")],
)
def test_a_gpu_that_is_there_gets_a_build_for_it(system: str, index: str) -> None:
    unusable = "an NVIDIA driver is installed"
    found = replacement_build(facts(system, torch_version="2.14.1+cpu", unusable_gpu=unusable))
    assert found is not None
    assert found.reason == unusable
    assert found.command == f"pip install --force-reinstall {index}torch==2.14.1"


@pytest.mark.parametrize(
    ("cuda", "programs", "unused"),
    [("13.0", (), True), ("13.0", ("nvidia-smi",), False), (None, (), False)],
)
def test_cuda_is_unused_where_there_is_no_driver(
    cuda: str | None, programs: tuple[str, ...], unused: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.version, "cuda", cuda)
    monkeypatch.setattr(shutil, "which", which_only(*programs))
    assert read_facts(tries_gpus=False).has_unused_cuda is unused
