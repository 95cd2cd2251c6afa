"""Decide about devices, processes and threads. Pure, from facts, options and workload.

What fits in memory is decided in `memory_fit`, how it is computed in `numerics` and `kernels`.
"""

from __future__ import annotations

from typing import Literal

from llmtrain.choice import (
    Backend,
    Choice,
    DeviceKind,
    Precision,
)
from llmtrain.errors import UsageError
from llmtrain.machine.facts import Accelerator, Facts
from llmtrain.plan.workload import Workload
from llmtrain.profile.schema import DeviceSection
from llmtrain.units import format_bytes

# A process's micro-batches of a step, of which shares by speed are made: they differ by an eighth.
UNITS_OF_SHARES = 8


def may_use_gpu(options: DeviceSection) -> bool:
    """Return True if the options allow a GPU."""
    return not options.force_cpu and options.kind != "cpu"


def choose_device(facts: Facts, options: DeviceSection) -> Choice[DeviceKind]:
    """Choose CUDA, else MPS, else the CPU; a device that is asked for has to exist."""
    if options.force_cpu:
        return Choice("cpu", "device.force_cpu is set")
    if options.kind == "cpu":
        return Choice("cpu", "asked for")
    if options.kind != "auto":
        return _named_accelerator(facts, options.kind)
    for kind in ("cuda", "mps"):
        found = facts.of_kind(kind)
        if found:
            return Choice(kind, _found(found))
    return Choice("cpu", _why_cpu(facts))


def _named_accelerator(facts: Facts, kind: Literal["cuda", "mps"]) -> Choice[DeviceKind]:
    found = facts.of_kind(kind)
    if found:
        return Choice(kind, f"asked for; {_found(found)}")
    failures = [reason for failed, reason in facts.failures if failed == kind]
    because = failures[0] if failures else f"torch {facts.torch_version} finds none"
    if kind == "cuda" and facts.unusable_gpu and not failures:
        because = facts.unusable_gpu
    raise UsageError(f"device {kind} was asked for: {because}", hint="llmtrain device info")


def _found(accelerators: tuple[Accelerator, ...]) -> str:
    first = accelerators[0]
    number = f"{len(accelerators)} × " if len(accelerators) > 1 else ""
    return f"{number}{first.name}, {format_bytes(first.memory_total_bytes)}"


def _why_cpu(facts: Facts) -> str:
    reasons = [f"{kind} failed to initialise: {reason}" for kind, reason in facts.failures]
    if facts.unusable_gpu:
        reasons.append(facts.unusable_gpu)
    return "; ".join(reasons) if reasons else "no accelerator found"


def choose_processes(
    facts: Facts, options: DeviceSection, workload: Workload, kind: DeviceKind
) -> Choice[int]:
    """Choose the number of processes. Raises UsageError where they do not fit the GPUs or steps."""
    if workload.launched_processes is not None:
        choice = Choice(workload.launched_processes, "as launched")
    elif options.processes != "auto":
        choice = Choice(options.processes, "asked for")
    elif kind == "cuda":
        return _gpus_that_divide(len(facts.of_kind("cuda")), workload)
    elif kind == "mps":
        return Choice(1, "one GPU")
    elif workload.timed_processes is not None:
        return workload.timed_processes
    else:
        return Choice(1, "threads share one model; each further process would hold a copy")
    here = workload.launched_local_processes or choice.value
    gpus = len(facts.of_kind("cuda"))
    if kind == "cuda" and here > gpus:
        raise UsageError(
            f"{here} processes need as many GPUs; there are {gpus}", hint=f"--nproc {gpus}"
        )
    if kind == "mps" and choice.value > 1:
        raise UsageError("mps has one GPU and no collective backend", hint="--nproc 1")
    windows_per_process(workload, choice.value)
    return choice


def _gpus_that_divide(gpus: int, workload: Workload) -> Choice[int]:
    windows = workload.tokens_per_step // workload.shape.context
    used = max(n for n in range(1, gpus + 1) if windows % n == 0 or n == 1)
    if used == gpus:
        return Choice(used, "one per GPU")
    return Choice(used, f"of {gpus} GPUs: {windows} windows per step are divisible by {used}")


def windows_per_process(workload: Workload, processes: int) -> int:
    """Return the windows that one process reads in a step. Raises UsageError for a fraction."""
    share = workload.shape.context * processes
    if workload.tokens_per_step % share:
        nearest = max(1, (2 * workload.tokens_per_step + share) // (2 * share)) * share
        raise UsageError(
            f"train.tokens_per_step {workload.tokens_per_step} is not a multiple of context "
            f"{workload.shape.context} × {processes} processes",
            hint=f"--set train.tokens_per_step={nearest}",
        )
    return workload.tokens_per_step // share


def choose_threads(facts: Facts, options: DeviceSection, local_processes: int) -> Choice[int]:
    """Choose the threads of each process: its share of the usable cores."""
    if options.threads != "auto":
        return Choice(options.threads, "asked for")
    if facts.cpu.omp_threads is not None:
        return Choice(facts.cpu.omp_threads, "OMP_NUM_THREADS in the environment")
    usable = facts.cpu.usable_cores
    share = max(1, usable // local_processes)
    reason = f"{usable} usable cores ({_core_limits(facts)})"
    return Choice(
        share, reason + (f" ÷ {local_processes} processes" if local_processes > 1 else "")
    )


def choose_numa_binding(
    facts: Facts, options: DeviceSection, kind: DeviceKind, local_processes: int
) -> Choice[bool]:
    """Choose whether each process keeps to the cores of one NUMA node: where that costs none."""
    cores = facts.cpu.numa_cores
    if options.numa_binding == "off":
        return Choice(False, "asked for")
    if kind != "cpu":
        return Choice(False, "a GPU computes")
    if local_processes == 1:
        return Choice(False, "one process computes on all cores")
    if len(cores) < 2:
        return Choice(False, "there is one NUMA node" if cores else "NUMA nodes are unknown")
    if local_processes % len(cores):
        return Choice(
            False, f"{local_processes} processes do not divide among {len(cores)} NUMA nodes"
        )
    together = local_processes // len(cores)
    threads = choose_threads(facts, options, local_processes).value
    if together * threads > min(cores):
        return Choice(False, f"{together} × {threads} threads are more than a node's {min(cores)}")
    return Choice(
        True, f"{together} on each of {len(cores)} NUMA nodes, so that memory is beside its cores"
    )


def _core_limits(facts: Facts) -> str:
    cpu = facts.cpu
    limits = [f"{cpu.physical_cores or '?'} physical, {cpu.logical_cores} logical"]
    if cpu.affinity_cores is not None and cpu.affinity_cores < cpu.logical_cores:
        limits.append(f"affinity {cpu.affinity_cores}")
    if cpu.quota_cores is not None:
        limits.append(f"quota {cpu.quota_cores:g}")
    return ", ".join(limits)


def refuse_loss_scale_of_local_steps(workload: Workload, precision: Precision) -> None:
    """Raise UsageError where processes that take steps of their own would each scale the loss."""
    if workload.sync_every > 1 and precision == "fp16":
        raise UsageError(
            "train.sync_every: fp16 needs a loss scale that all processes share in every step",
            hint="--set device.precision=fp32, or --set train.sync_every=1",
        )


def shares_by_speed(workload: Workload, processes: int) -> bool:
    """Return True if faster processes are to take more of a step's windows."""
    return workload.sync_every > 1 and workload.sync_shares == "speed" and processes > 1


def remark_on_shares(workload: Workload, processes: int, accumulation: int) -> str | None:
    """Return why shares by speed, which are asked for, have no effect; None where they have one."""
    if not shares_by_speed(workload, processes) or accumulation > 1:
        return None
    what = "a process's share of a step is one micro-batch, the least that it can take"
    if windows_per_process(workload, processes) > 1:
        hint = "--set train.micro_batch=auto"
    else:
        tokens = UNITS_OF_SHARES * workload.tokens_per_step
        hint = f"a larger step, as --set train.tokens_per_step={tokens}"
    return f"train.sync_shares: speed has no effect, as {what}: {hint}"


def choose_backend(facts: Facts, options: DeviceSection, kind: DeviceKind) -> Choice[Backend]:
    """Choose the backend of torch.distributed. Raises UsageError for one that is missing."""
    if options.backend == "nccl" and kind != "cuda":
        raise UsageError("device.backend nccl needs CUDA", hint="--set device.backend=gloo")
    if options.backend == "nccl" and "nccl" not in facts.backends:
        raise UsageError(
            "device.backend nccl: this torch build has none", hint="--set device.backend=gloo"
        )
    if options.backend != "auto":
        return Choice(options.backend, "asked for")
    if kind == "cuda" and "nccl" in facts.backends:
        return Choice("nccl", "GPUs communicate directly")
    if kind == "cuda":
        return Choice("gloo", "this torch build has no nccl")
    return Choice("gloo", "for several processes without CUDA")


def choose_workers(facts: Facts, options: DeviceSection) -> Choice[int]:
    """Choose how many processes tokenize the text."""
    if options.workers != "auto":
        return Choice(options.workers, "asked for")
    return Choice(
        facts.cpu.usable_cores, "one per usable core; tokenization ends before training starts"
    )


def choose_pin_memory(options: DeviceSection, kind: DeviceKind) -> Choice[bool]:
    """Choose whether batches are read into page-locked memory."""
    if options.pin_memory != "auto":
        return Choice(options.pin_memory, "asked for")
    if kind == "cuda":
        return Choice(True, "copies to the GPU overlap with computation")
    return Choice(False, "nothing is copied to another device")
