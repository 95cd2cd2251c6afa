"""The NUMA nodes of a Linux machine, and binding this process to the cores of one.

A core reads the memory of its own node sooner than another's. Linux gives a page to the node of the
core that first writes to it, so that a process which is bound before it allocates has its memory
beside its cores.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Collection
from contextlib import suppress
from pathlib import Path

from llmtrain.machine.cpu import allowed_cores

_NODES = "sys/devices/system/node"
_MOST_CORES = 1 << 16


def read_numa_nodes(
    allowed: Collection[int] | None, root: Path = Path("/")
) -> list[frozenset[int]]:
    """Return the logical cores of each NUMA node that this process may run on, in order of nodes.

    Nodes without such cores, as those that are memory alone, are left out. Empty where the system
    does not say. `allowed`: the cores that this process may run on; None: all.
    """
    found: dict[int, frozenset[int]] = {}
    for path in (root / _NODES).glob("node[0-9]*/cpulist"):
        number = path.parent.name.removeprefix("node")
        with suppress(OSError, ValueError):
            found[int(number)] = parse_cores(path.read_text(encoding="ascii"))
    nodes = [found[number] for number in sorted(found)]
    if allowed is not None:
        nodes = [node.intersection(allowed) for node in nodes]
    return [node for node in nodes if node]


def parse_cores(text: str) -> frozenset[int]:
    """Return the cores of a list as the kernel writes it: `0-3,8-11`. Raises ValueError."""
    cores: set[int] = set()
    for part in filter(None, text.strip().split(",")):
        first, _, last = part.partition("-")
        begin, end = int(first), int(last or first)
        if not 0 <= begin <= end < _MOST_CORES:
            raise ValueError(f"{part} is no range of cores")
        cores.update(range(begin, end + 1))
    return frozenset(cores)


def bind_to_node(process: int, processes: int) -> None:
    """Let this process run on the cores of one NUMA node only, with all the threads that it has.

    `process` of `processes` on this machine, which share its nodes evenly in their order. Does
    nothing where there are no several nodes, or the system cannot do it.
    """
    if sys.platform != "linux":
        return
    nodes = read_numa_nodes(allowed_cores())
    if len(nodes) < 2:
        return
    cores = nodes[process * len(nodes) // processes]
    for thread in Path("/proc/self/task").iterdir():
        with suppress(OSError):  # it has ended, or a container forbids it
            os.sched_setaffinity(int(thread.name), cores)
