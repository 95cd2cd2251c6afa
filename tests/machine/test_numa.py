"""NUMA nodes are read from invented trees of /sys; a process is bound on invented machines."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from pathlib import Path

import pytest

from llmtrain.machine import numa
from llmtrain.machine.numa import bind_to_node, parse_cores, read_numa_nodes
from llmtrain.machine.probe import read_cpu


def write_nodes(root: Path, nodes: Mapping[int, str]) -> None:
    for number, cores in nodes.items():
        node = root / f"sys/devices/system/node/node{number}"
        node.mkdir(parents=True)
        (node / "cpulist").write_text(f"{cores}\n")


def test_nodes_are_in_their_order(tmp_path: Path) -> None:
    write_nodes(tmp_path, {number: str(number) for number in range(11)})
    assert read_numa_nodes(None, tmp_path) == [frozenset({number}) for number in range(11)]


def test_only_cores_that_are_allowed_count(tmp_path: Path) -> None:
    write_nodes(tmp_path, {0: "0-3,8-11", 1: "4-7,12-15", 2: ""})  # the last is memory alone
    assert [len(node) for node in read_numa_nodes(None, tmp_path)] == [8, 8]
    assert read_numa_nodes({2, 3, 4, 99}, tmp_path) == [{2, 3}, {4}]
    assert read_numa_nodes(range(4), tmp_path) == [{0, 1, 2, 3}]


def test_a_system_that_says_nothing_has_no_nodes(tmp_path: Path) -> None:
    assert read_numa_nodes(None, tmp_path) == []
    write_nodes(tmp_path, {0: "0-x", 1: "3-1", 2: "0-99999999999"})
    assert read_numa_nodes(None, tmp_path) == []


@pytest.mark.parametrize(("text", "cores"), [("0", {0}), ("1-3,7\n", {1, 2, 3, 7}), ("\n", set())])
def test_lists_of_cores(text: str, cores: set[int]) -> None:
    assert parse_cores(text) == cores


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux says it")
def test_facts_have_the_physical_cores_of_each_node(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two threads of each core; of the second node one core is allowed."""
    monkeypatch.setattr("llmtrain.machine.probe.allowed_cores", lambda: {0, 1, 2, 4, 5, 6})
    write_nodes(tmp_path, {0: "0-1,4-5", 1: "2-3,6-7"})
    (tmp_path / "proc").mkdir()
    (tmp_path / "proc/cpuinfo").write_text(
        "".join(
            f"processor\t: {n}\nphysical id\t: {n % 4 // 2}\ncore id\t: {n % 4}\n\n"
            for n in range(8)
        )
    )
    (tmp_path / "proc/meminfo").write_text("MemTotal: 1024 kB\nMemAvailable: 512 kB\n")
    assert read_cpu(tmp_path).numa_cores == (2, 1)


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux can do it")
@pytest.mark.parametrize(
    ("processes", "nodes_of"), [(2, [0, 1]), (4, [0, 0, 1, 1]), (6, [0, 0, 0, 1, 1, 1])]
)
def test_processes_share_the_nodes_evenly(
    processes: int, nodes_of: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    nodes = [frozenset(range(8)), frozenset(range(8, 16))]
    bound: dict[int, frozenset[int]] = {}
    monkeypatch.setattr(numa, "read_numa_nodes", lambda _: nodes)
    monkeypatch.setattr(os, "sched_setaffinity", bound.__setitem__)
    for process in range(processes):
        bind_to_node(process, processes)
        assert os.getpid() in bound, "the main thread, and all others"
        assert set(bound.values()) == {nodes[nodes_of[process]]}


@pytest.mark.parametrize("nodes", [[], [frozenset({0, 1})]])
def test_nothing_happens_with_one_node(
    nodes: list[frozenset[int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(numa, "read_numa_nodes", lambda _: nodes)
    monkeypatch.setattr(os, "sched_setaffinity", pytest.fail, raising=False)
    bind_to_node(0, 2)


def test_nothing_happens_on_other_systems(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(numa.sys, "platform", "darwin")
    monkeypatch.setattr(os, "sched_setaffinity", pytest.fail, raising=False)
    monkeypatch.setattr(numa, "read_numa_nodes", lambda _: [{0}, {1}])
    bind_to_node(0, 2)
