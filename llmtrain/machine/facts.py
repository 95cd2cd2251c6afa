"""The facts about a machine, as plain values. Nothing here reads the hardware.

Tests construct facts, so that plans for any machine are tested on every machine. `None` means
unknown; nothing is guessed.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

AcceleratorKind = Literal["cuda", "mps"]

# A faster way to compute that gives other bits replaces the default if it takes less than this
# share of its time. Repeated measurements differ by less than the margin, so that the same request
# is computed in the same way each time: see tests/benchmarks/kernel_choice.py.
FASTER_RATIO = 0.8
CONTENDED_SHARE = 0.15  # of the time that a run's threads wait for a core


def was_contended(ran_share: float) -> bool:
    """Return whether threads waited for a core longer than an undisturbed program's do."""
    return ran_share < 1 - CONTENDED_SHARE


@dataclass(frozen=True, slots=True)
class CpuFacts:
    """A processor and memory, and the limits on this process's use of them."""

    model: str | None
    architecture: str  # x86_64, aarch64, arm64, AMD64
    physical_cores: int | None
    logical_cores: int
    sockets: int | None
    affinity_cores: int | None  # logical cores that the scheduler lets this process run on
    quota_cores: float | None  # CPU bandwidth limit of the control group, in cores
    isa: tuple[str, ...]  # of avx2, avx512f, avx512_bf16, amx_bf16, neon, bf16 …
    memory_total_bytes: int
    memory_limit_bytes: int | None  # the tightest, if it is below the total
    affinity_physical_cores: int | None = None  # distinct physical cores behind affinity_cores
    memory_limited_by: str | None = None  # the control group, RLIMIT_AS, RLIMIT_DATA
    omp_threads: int | None = None  # OMP_NUM_THREADS, if the user set it
    numa_cores: tuple[int, ...] = ()  # allowed physical cores of each NUMA node; empty: unknown

    @property
    def usable_cores(self) -> int:
        """The physical cores that affinity and quota allow this process, at least 1.

        The affinity mask counts hardware threads. If it is unknown which of them share a core,
        the count is scaled by the machine's threads per core.
        """
        physical = self.physical_cores or self.logical_cores
        limits = [float(physical)]
        if self.affinity_physical_cores is not None:
            limits.append(self.affinity_physical_cores)
        elif self.affinity_cores is not None:
            limits.append(self.affinity_cores * physical / self.logical_cores)
        if self.quota_cores is not None:
            limits.append(self.quota_cores)
        return max(1, int(min(limits)))

    @property
    def usable_memory_bytes(self) -> int:
        """The machine's memory, or the limit on it."""
        if self.memory_limit_bytes is None:
            return self.memory_total_bytes
        return min(self.memory_total_bytes, self.memory_limit_bytes)


@dataclass(frozen=True, slots=True)
class Accelerator:
    """One GPU."""

    kind: AcceleratorKind
    index: int
    name: str
    memory_total_bytes: int
    supports_bf16: bool
    compute_capability: tuple[int, int] | None = None  # CUDA only


@dataclass(frozen=True, slots=True)
class Facts:
    """A machine, as `device info` shows it and plans are made for it."""

    system: str  # Linux, Darwin, Windows
    python_version: str
    torch_version: str
    torch_build: str  # cpu, cu130, rocm6.4 …
    cpu: CpuFacts
    accelerators: tuple[Accelerator, ...] = ()
    failures: tuple[tuple[str, str], ...] = ()  # (device kind, why it could not be initialised)
    cxx_compiler: str | None = None  # of torch.compile on the CPU
    has_triton: bool = False  # of torch.compile on CUDA
    backends: tuple[str, ...] = ()  # of gloo, nccl
    unusable_gpu: str | None = None  # a GPU that this torch build cannot use
    has_unused_cuda: bool = False  # this torch is built for CUDA, and there is no driver

    def of_kind(self, kind: AcceleratorKind) -> tuple[Accelerator, ...]:
        """Return the accelerators of one kind, in index order."""
        return tuple(a for a in self.accelerators if a.kind == kind)


@dataclass(frozen=True, slots=True)
class MatmulTimes:
    """Seconds for one forward and backward of two linear layers of the model, on this CPU.

    `medium` is fp32 with `torch.set_float32_matmul_precision("medium")`, where oneDNN may use
    bf16 passes inside; inputs, outputs and accumulation stay fp32.
    """

    fp32_s: float
    medium_s: float
    bf16_s: float
    flops: float  # of each

    @property
    def fastest_flops_per_s(self) -> float:
        """The rate in the fastest precision."""
        return self.flops / min(self.fp32_s, self.medium_s, self.bf16_s)


@dataclass(frozen=True, slots=True)
class AttentionTimes:
    """Seconds for attention forward and backward over some sequences."""

    sdpa_s: float
    blocks_s: float
    native_s: float | None = None  # None: no native kernels


@dataclass(frozen=True, slots=True)
class LossTimes:
    """Seconds for the loss of some tokens and both its gradients, in bf16."""

    chunks_s: float
    native_s: float


@dataclass(frozen=True, slots=True)
class BlockTimes:
    """Seconds for one block forward and backward on a micro-batch, and for compiling it.

    `compiled_s` is the eager time times the ratio of CPU times, which a busy machine hardly
    changes: the two are to be compared. `wall_s` is the compiled block's own time, `load_s` that
    of compiling it again, with the code in the compiler's cache, and `import_s` that of importing
    the compiler before it, which then probes the CPU, as a run has to.
    """

    eager_s: float
    compiled_s: float
    compile_s: float
    wall_s: float | None = None  # None: as `compiled_s`
    ran_share: float = 1.0  # of its runnable time in which threads had a core
    load_s: float | None = None  # None: not timed
    import_s: float | None = None  # None: not timed, as it had been imported

    @property
    def is_contended(self) -> bool:
        """True if other programs kept the cores busy: only the ratio of the two holds."""
        return was_contended(self.ran_share)


@dataclass(frozen=True, slots=True)
class PartTime:
    """Seconds of a part of a training step.

    `seconds` are for forecasts. `cpu_s`, of all threads over their number, are less by what
    threads wait for each other; they hardly depend on the load, as a choice that changes bits
    must not.
    """

    seconds: float
    ran_share: float = 1.0  # of their runnable time in which the threads had a core
    cpu_s: float | None = None  # None: as `seconds`

    @property
    def is_contended(self) -> bool:
        """True if other programs kept the cores busy: measured again for the next run."""
        return was_contended(self.ran_share)


@dataclass(frozen=True, slots=True)
class StepTimes:
    """The parts of a training step, by one way to compute: eager or compiled."""

    micro_batch: int  # sequences
    block: PartTime  # one block, forward and backward, on a micro-batch
    head: PartTime  # embedding, final norm, head and loss, likewise
    update: PartTime  # clipping, the optimizer and rounding the weights, of the whole model

    def by_cpu(self) -> StepTimes:
        """Return the same parts with their CPU time as their seconds."""
        return replace(
            self,
            block=_by_cpu(self.block),
            head=_by_cpu(self.head),
            update=_by_cpu(self.update),
        )

    @property
    def is_contended(self) -> bool:
        """True if other programs kept the cores busy during one of the measurements."""
        return any(part.is_contended for part in (self.block, self.head, self.update))


def _by_cpu(part: PartTime) -> PartTime:
    return part if part.cpu_s is None else replace(part, seconds=part.cpu_s)


@dataclass(frozen=True, slots=True)
class ProcessTimes:
    """Seconds of a training step's parts, by several processes at once or by one with all cores.

    Each process computes a micro-batch of its own; that of the slowest counts.
    """

    micro_s: float  # a micro-batch, forward and backward
    synced_s: float  # likewise, with averaging the gradients of all processes
    update_s: float  # clipping and the optimizer, which each process does for the whole model
    noise: float  # by how much a repetition took longer than another, as a share

    def step_s(self, micro_batches: float) -> float:
        """Return the seconds of a step of so many micro-batches of each process."""
        return (micro_batches - 1) * self.micro_s + self.synced_s + self.update_s


@dataclass(frozen=True, slots=True)
class ExchangeTimes:
    """How long some processes of this machine take to add up tensors over gloo."""

    latency_s: float  # of the smallest tensors
    byte_s: float  # more for each byte of a tensor
    cpu_byte_s: float  # CPU seconds of one process, for each of those bytes


@dataclass(frozen=True, slots=True)
class RunFigures:
    """The measurements of a run: its training rate and its peak memory."""

    tokens_per_s: float
    peak_memory_bytes: float
    steps: float
    ran_share: float = 1.0  # the share of their runnable time in which its threads had a core

    @property
    def is_contended(self) -> bool:
        """True if other programs kept the cores busy, so that the rate is too low."""
        return was_contended(self.ran_share)


@dataclass(frozen=True, slots=True)
class CpuTimes:
    """All measurements of the CPU, on the shapes of one model."""

    matmul: MatmulTimes
    attention: AttentionTimes | None = None
    block: BlockTimes | None = None
    compile_failure: str | None = None  # why a block could not be compiled
    eager: StepTimes | None = None  # the parts of a step; None: not measured
    compiled: StepTimes | None = None
    plain: StepTimes | None = None  # those of an eager step without native kernels
    native: StepTimes | None = None  # those of an eager step whose blocks native kernels compute
    native_keeping: StepTimes | None = None  # likewise, where blocks keep their gates
    loss: LossTimes | None = None
    native_missing: str | None = None  # why there are no native kernels, where they are wanted


@dataclass(frozen=True, slots=True)
class GpuTimes:
    """The parts of a step on a GPU, on the shapes of one model, by the kernels that it may use."""

    own: StepTimes | None = None  # by our own kernels, or torch's where those are not planned
    torch: StepTimes | None = None  # by torch's kernels, where the two are compared
    own_failure: str | None = None  # why our own kernels cannot be used here
