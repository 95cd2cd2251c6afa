"""A process's own limits leave what is not mapped in vain."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from llmtrain.machine.probe import read_cpu
from llmtrain.machine.rlimits import ProcessLimit, read_mapped, read_process_limit

resource: Any = pytest.importorskip("resource", reason="POSIX")
MIB, GIB = 2**20, 2**30
INFINITE = resource.RLIM_INFINITY


@pytest.fixture
def limits(monkeypatch: pytest.MonkeyPatch) -> dict[int, int]:
    """What getrlimit says, to be filled in."""
    said: dict[int, int] = {}
    monkeypatch.setattr(resource, "getrlimit", lambda kind: (said.get(kind, INFINITE), INFINITE))
    return said


def statm(root: Path, *, mapped: int, resident: int, shared: int, data: int) -> Path:
    """`root` with a process that has so many MiB."""
    pages = [n * MIB // os.sysconf("SC_PAGE_SIZE") for n in (mapped, resident, shared, 0, 0, data)]
    path = root / "proc/self/statm"
    path.parent.mkdir(parents=True)
    path.write_text(" ".join(map(str, pages)) + " 0\n")
    return root


def test_none_set_is_no_limit(limits: dict[int, int], tmp_path: Path) -> None:
    assert read_process_limit(8, tmp_path) is None


def test_address_space_is_less_what_is_mapped_and_not_used(
    limits: dict[int, int], tmp_path: Path
) -> None:
    root = statm(tmp_path, mapped=700, resident=300, shared=90, data=270)
    limits[resource.RLIMIT_AS] = 2048 * MIB
    # 2048 − (700 − 300) − 2 × 72 = 1504, in steps of 64
    assert read_process_limit(2, root) == ProcessLimit("RLIMIT_AS", 1472 * MIB)


def test_freed_blocks_of_the_heap_are_not_in_use(limits: dict[int, int], tmp_path: Path) -> None:
    root = statm(tmp_path, mapped=700, resident=300, shared=90, data=270)
    limits.update({resource.RLIMIT_AS: GIB, resource.RLIMIT_DATA: GIB})
    for thread in range(3):
        (root / f"proc/self/task/{thread}").mkdir(parents=True)
    # 270 − (300 − 90) − 3 × 8 = 36 are free
    used = {limit.name: limit.used_bytes // MIB for limit in read_mapped(root)}
    assert used == {"RLIMIT_AS": 700 - 36, "RLIMIT_DATA": 270 - 36}


def test_private_memory_is_less_what_is_not_used_of_it(
    limits: dict[int, int], tmp_path: Path
) -> None:
    root = statm(tmp_path, mapped=700, resident=300, shared=90, data=270)
    limits[resource.RLIMIT_DATA] = 2048 * MIB
    # 2048 − (270 − 210) − 2 × 8 = 1972
    assert read_process_limit(2, root) == ProcessLimit("RLIMIT_DATA", 1920 * MIB)


def test_the_tighter_counts(limits: dict[int, int], tmp_path: Path) -> None:
    root = statm(tmp_path, mapped=700, resident=300, shared=90, data=270)
    limits |= {resource.RLIMIT_AS: 4 * GIB, resource.RLIMIT_DATA: GIB}
    found = read_process_limit(1, root)
    assert found is not None
    assert found.name == "RLIMIT_DATA"
    limits |= {resource.RLIMIT_AS: GIB, resource.RLIMIT_DATA: 4 * GIB}
    found = read_process_limit(1, root)
    assert found is not None
    assert found.name == "RLIMIT_AS"


def test_a_limit_below_what_is_mapped_leaves_nothing(
    limits: dict[int, int], tmp_path: Path
) -> None:
    root = statm(tmp_path, mapped=700, resident=300, shared=90, data=270)
    limits[resource.RLIMIT_AS] = 256 * MIB
    assert read_process_limit(2, root) == ProcessLimit("RLIMIT_AS", 0)


@pytest.mark.parametrize("text", [None, "", "1 2", "a b c d e f"])
def test_where_the_system_does_not_say_what_is_mapped_the_limit_is_taken_whole(
    text: str | None, limits: dict[int, int], tmp_path: Path
) -> None:
    if text is not None:
        (tmp_path / "proc/self").mkdir(parents=True)
        (tmp_path / "proc/self/statm").write_text(text)
    limits[resource.RLIMIT_DATA] = GIB + 8 * MIB
    assert read_process_limit(1, tmp_path) == ProcessLimit("RLIMIT_DATA", GIB)


def test_facts_have_the_tightest_limit_and_its_name(limits: dict[int, int], tmp_path: Path) -> None:
    group = tmp_path / "sys/fs/cgroup/memory.max"
    group.parent.mkdir(parents=True)
    (tmp_path / "proc/self").mkdir(parents=True)
    (tmp_path / "proc/self/cgroup").write_text("0::/\n")
    (tmp_path / "proc/cpuinfo").write_text("processor : 0\n")
    group.write_text(f"{256 * MIB}\n")
    cpu = read_cpu(tmp_path)
    assert (cpu.memory_limit_bytes, cpu.memory_limited_by) == (256 * MIB, "the control group")
    limits[resource.RLIMIT_DATA] = 192 * MIB + cpu.usable_cores * 8 * MIB
    cpu = read_cpu(tmp_path)
    assert (cpu.memory_limit_bytes, cpu.memory_limited_by) == (192 * MIB, "RLIMIT_DATA")
    assert cpu.usable_memory_bytes == 192 * MIB
    limits[resource.RLIMIT_DATA] = 1024 * GIB
    assert read_cpu(tmp_path).memory_limited_by == "the control group"


@pytest.mark.skipif(sys.platform != "linux", reason="where the kernel keeps to it")
def test_the_plan_keeps_to_the_limit_of_a_real_process() -> None:
    script = (
        "import resource, json, sys\n"
        f"resource.setrlimit(resource.RLIMIT_DATA, ({2 * GIB},) * 2)\n"
        "from llmtrain.machine.probe import read_facts\n"
        "from llmtrain.plan.memory_fit import memory_limit_bytes, memory_limit_origin\n"
        "facts = read_facts()\n"
        "json.dump([memory_limit_bytes(facts, 'cpu'), memory_limit_origin(facts, 'cpu'),\n"
        "  facts.cpu.usable_cores], sys.stdout)\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, check=True)
    limit, origin, cores = json.loads(done.stdout)
    mapped = (256 if torch.version.cuda is None else 768) * MIB  # by Python and torch
    assert (2 * GIB - cores * 8 * MIB - mapped) * 0.85 < limit < 2 * GIB * 0.85
    assert "RLIMIT_DATA" in origin
