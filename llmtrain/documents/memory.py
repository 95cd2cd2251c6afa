"""Documents about memory."""

from __future__ import annotations

from typing import Literal

from llmtrain.documents.base import Document, Part, Text, Threshold, key, optional, thresholds
from llmtrain.documents.files import StepLine
from llmtrain.documents.plans import Explained, Prediction
from llmtrain.machine.facts import AcceleratorKind


class SystemMemory(Part):
    """The machine's memory now."""

    total_bytes: int = key("installed")
    available_bytes: int = key("what programs can still get without swapping")
    used_bytes: int = key("total − available")
    percent: float = key("used of total, 0 to 100")
    limit_bytes: int | None = key("the control group's limit; null: none below the total")
    limit_used_bytes: int | None = key("charged against that limit, page cache included")
    source: Text = key("psutil, or the standard library's module that is used without it")


class GroupMemory(Part):
    """The memory now of the limited control group that has the least left."""

    path: Text = key("which control group")
    total_bytes: int = key("its limit")
    available_bytes: int = key("left within the limit")
    used_bytes: int = key(
        "charged to it, without the page cache, which the system frees when needed"
    )
    percent: float = key("used of its limit, 0 to 100")


class ProcessMemory(Part):
    """The memory of a process and its descendants now."""

    pid: int = optional("which process; missing: this one")
    total_bytes: int = key("the machine's")
    available_bytes: int = key("the machine's")
    used_bytes: int = key("resident: as `resident_bytes`")
    percent: float = key("used of the machine's total, 0 to 100")
    resident_bytes: int = key("resident memory; shared pages count once for each process")
    peak_resident_bytes: int = key(
        "the process's own peak since its start, and what its descendants use now"
    )
    processes: int = key("how many")
    source: Text = key("psutil, or the standard library's module that is used without it")


class AcceleratorMemory(Part):
    """One GPU's memory now. The allocator of another process is unknown."""

    kind: AcceleratorKind = key("what torch calls it")
    index: int = key("from 0, as torch counts")
    name: Text = key("its name")
    total_bytes: int = key("its memory; on MPS what Metal recommends not to exceed")
    available_bytes: int | None = key("free for anyone; null: the device does not report it")
    used_bytes: int | None = key("total − available; null: the device does not report it")
    percent: float | None = key("used of total, 0 to 100; null: the device does not report it")
    allocated_bytes: int | None = key("in live tensors of this process; null: of another process")
    reserved_bytes: int | None = key("allocated, and cached for reuse; null: of another process")
    peak_reserved_bytes: int | None = key(
        "the most since the start; null: of another process, and on MPS, which keeps no peak"
    )


class WatchedRun(Part):
    """The run whose processes are shown."""

    path: Text = key("its directory")
    logged: StepLine | None = key("its last logged step; null: none yet")


class Memory(Document):
    """`llmtrain memory`: in use now. With `--watch` and `--json`, or off a terminal, a line of this
    per sample."""

    time: Text = optional("of the sample, UTC, ISO 8601; missing without `--watch`")
    elapsed_s: float = optional("seconds since the first sample; missing without `--watch`")
    system: SystemMemory = key("the machine's")
    cgroup: GroupMemory | None = key("the control group's; null: none limits the memory")
    process: ProcessMemory = key("of the process that was named, and its descendants")
    accelerators: list[AcceleratorMemory] = key("each GPU's")
    run: WatchedRun = optional("the run of these processes; missing: unknown")
    thresholds: list[Threshold] = thresholds("`--fail-over`")


class MemoryProfile(Explained, Document):
    """`llmtrain memory --profile`: the memory that training takes, and what is in use now."""

    uses: dict[Literal["evaluation", "generation"], Prediction] = key(
        "the predicted peak of one process that uses the trained model"
    )
    system: SystemMemory = optional("the machine's; missing with `--assume`")
    cgroup: GroupMemory | None = optional(
        "the control group's; null: none limits the memory; missing with `--assume`"
    )
    process: ProcessMemory = optional("of this process; missing with `--assume`")
    accelerators: list[AcceleratorMemory] = optional("each GPU's; missing with `--assume`")
    thresholds: list[Threshold] = thresholds("`--fail-over`")
