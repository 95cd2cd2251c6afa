"""What is settled before torch is imported, unless the user settled it."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from llmtrain.files import cache_directory
from llmtrain.machine import startup
from llmtrain.machine.cgroup import CgroupLimits
from llmtrain.machine.startup import prepare_for_torch

ALLOCATORS = ("PYTORCH_ALLOC_CONF", "PYTORCH_CUDA_ALLOC_CONF")
SET = ("TORCHINDUCTOR_CACHE_DIR", "OMP_WAIT_POLICY", "GOMP_SPINCOUNT")


@pytest.fixture(autouse=True)
def unset(monkeypatch: pytest.MonkeyPatch) -> None:
    """No variable is set, and the allocator of this process is told nothing."""
    monkeypatch.setattr(startup, "keep_freed_memory", lambda: None)
    for name in (*SET, *ALLOCATORS):
        monkeypatch.setenv(name, "")  # so that what the test sets is undone
        monkeypatch.delenv(name)


@pytest.mark.parametrize(
    ("cores", "allowed", "quota", "policy"),
    [
        (1, None, None, "PASSIVE"),
        (4, 4, None, "PASSIVE"),
        (16, 16, None, None),
        (16, None, 8.0, None),
        (16, 2, None, "PASSIVE"),  # taskset
        (16, 16, 2.0, "PASSIVE"),  # docker --cpus 2
    ],
)
def test_waiting_threads_sleep_soon_where_cores_are_few(
    monkeypatch: pytest.MonkeyPatch,
    cores: int,
    allowed: int | None,
    quota: float | None,
    policy: str | None,
) -> None:
    mask = None if allowed is None else range(allowed)
    monkeypatch.setattr(os, "cpu_count", lambda: cores)
    monkeypatch.setattr(startup, "allowed_cores", lambda: mask)
    monkeypatch.setattr(startup, "read_limits", lambda: CgroupLimits(quota, None))
    prepare_for_torch()
    assert os.environ.get("OMP_WAIT_POLICY") == policy
    spins = None if policy is None else int(os.environ["GOMP_SPINCOUNT"])
    assert spins is None or 0 < spins < 20_000  # from 20,000 on two runs were a third slower


def test_what_the_user_has_set_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "cpu_count", lambda: 2)
    theirs = {"TORCHINDUCTOR_CACHE_DIR": "/theirs", "OMP_WAIT_POLICY": "ACTIVE"}
    for name, value in theirs.items():
        monkeypatch.setenv(name, value)
    prepare_for_torch()
    assert {name: os.environ.get(name) for name in SET} == theirs | {"GOMP_SPINCOUNT": None}


def test_who_says_how_long_to_spin_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "cpu_count", lambda: 2)
    monkeypatch.setenv("GOMP_SPINCOUNT", "1000")
    prepare_for_torch()
    assert "OMP_WAIT_POLICY" not in os.environ


def test_compiled_kernels_are_kept_in_the_cache() -> None:
    prepare_for_torch()
    assert os.environ["TORCHINDUCTOR_CACHE_DIR"] == str(cache_directory() / "compiled")


def test_it_comes_before_torch() -> None:
    code = "import sys, llmtrain.machine.startup; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"


@pytest.mark.parametrize("name", ALLOCATORS)
def test_a_gpus_allocator_grows_its_segments_unless_it_was_set_up(
    monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.setattr(sys, "platform", "linux")
    prepare_for_torch()
    assert [os.environ.get(each) for each in ALLOCATORS] == ["expandable_segments:True", None]
    monkeypatch.delenv("PYTORCH_ALLOC_CONF")
    monkeypatch.setenv(name, "backend:native")
    prepare_for_torch()
    assert [os.environ.get(each) for each in ALLOCATORS if each != name] == [None]
    assert os.environ[name] == "backend:native"


def test_other_systems_have_no_segments_that_grow(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "platform", "win32")
    monkeypatch.setattr(startup, "allowed_cores", lambda: None)
    prepare_for_torch()
    assert not [name for name in ALLOCATORS if name in os.environ]
