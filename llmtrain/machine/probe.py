"""Read the hardware: the devices present, and those that work.

Only this module and those that it calls (cpu, cgroup, numa, rlimits, memory_usage) read the
machine. They return plain `Facts`, and every decision is a pure function of those.
"""

from __future__ import annotations

import importlib.util
import os
import platform
import shutil
import subprocess
import sys
import warnings
from collections.abc import Collection, Iterator
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import torch

from llmtrain.machine.cgroup import read_limits
from llmtrain.machine.cpu import CpuDescription, allowed_cores, parse_sysctl, read_linux_cpu
from llmtrain.machine.facts import Accelerator, AcceleratorKind, CpuFacts, Facts
from llmtrain.machine.memory_usage import read_system_memory
from llmtrain.machine.numa import read_numa_nodes
from llmtrain.machine.rlimits import read_process_limit

Failure = tuple[AcceleratorKind, str]

_TORCH_ISA = {"AVX2": ("avx2",), "AVX512": ("avx2", "avx512f"), "SVE256": ("neon", "sve")}
_MOST_THREADS = 4096
_DEVICE_ERRORS = (RuntimeError, AssertionError, OSError, torch.cuda.DeferredCudaCallError)


def read_facts(cuda_index: int | None = None, *, tries_gpus: bool = True) -> Facts:
    """Return this machine's facts, with each GPU that could allocate and compute.

    Trying a GPU opens a CUDA context of some hundred MB on it. With `cuda_index` (a rank's own
    device) only that one is tried; without `tries_gpus` (nothing will run on a GPU) none is. The
    others are as torch lists them.
    """
    found = [*_cuda(cuda_index, tries=tries_gpus), *_mps()]
    return Facts(
        system=platform.system(),
        python_version=platform.python_version(),
        torch_version=str(torch.__version__),
        torch_build=_torch_build(),
        cpu=read_cpu(),
        accelerators=tuple(f for f in found if isinstance(f, Accelerator)),
        failures=tuple(f for f in found if not isinstance(f, Accelerator)),
        cxx_compiler=_cxx_compiler(),
        has_triton=importlib.util.find_spec("triton") is not None,
        backends=_backends(),
        unusable_gpu=_unusable_gpu(),
        has_unused_cuda=torch.version.cuda is not None and not _has_nvidia_driver(),
    )


def visible_cuda_devices() -> int:
    """Return how many CUDA or ROCm devices torch sees, without opening a context on one."""
    return torch.cuda.device_count() if torch.cuda.is_available() else 0


def read_cpu(root: Path = Path("/")) -> CpuFacts:
    """Return the processor and the limits on this process; /proc and /sys are in `root`."""
    described = _describe_cpu(root)
    affinity = allowed_cores()
    memory = read_system_memory(root)
    cpu = CpuFacts(
        model=described.model,
        architecture=platform.machine(),
        physical_cores=described.physical_cores or _psutil_physical_cores(),
        logical_cores=os.cpu_count() or 1,
        sockets=described.sockets,
        affinity_cores=None if affinity is None else len(affinity),
        affinity_physical_cores=None if affinity is None else described.cores_among(affinity),
        quota_cores=read_limits(root).quota_cores,
        isa=described.isa,
        memory_total_bytes=memory.total_bytes,
        memory_limit_bytes=memory.limit_bytes,
        memory_limited_by=None if memory.limit_bytes is None else "the control group",
        omp_threads=_omp_threads(),
        numa_cores=_numa_cores(described, affinity, root),
    )
    own = read_process_limit(cpu.usable_cores, root)
    if own is None or own.reachable_bytes >= cpu.usable_memory_bytes:
        return cpu
    return replace(cpu, memory_limit_bytes=own.reachable_bytes, memory_limited_by=own.name)


def _numa_cores(
    described: CpuDescription, allowed: Collection[int] | None, root: Path
) -> tuple[int, ...]:
    """Return the allowed physical cores of each NUMA node; its logical ones where unknown."""
    if sys.platform != "linux":
        return ()
    nodes = read_numa_nodes(allowed, root)
    return tuple(described.cores_among(node) or len(node) for node in nodes)


def _omp_threads() -> int | None:
    """Return the threads that the user set in OMP_NUM_THREADS; None: no number, or torchrun's."""
    first = os.environ.get("OMP_NUM_THREADS", "").partition(",")[0].strip()
    is_number = first.isascii() and first.isdecimal() and 1 <= int(first) <= _MOST_THREADS
    if not is_number or (first == "1" and "TORCHELASTIC_RUN_ID" in os.environ):
        return None  # torchrun sets 1 if the user set nothing
    return int(first)


def _describe_cpu(root: Path) -> CpuDescription:
    if sys.platform == "linux":
        described = read_linux_cpu(root)
    elif sys.platform == "darwin":
        described = parse_sysctl(_sysctl("machdep.cpu", "hw.packages", "hw.optional"))
    elif sys.platform == "win32":
        from llmtrain.machine.cpu import windows_processor_name

        model = platform.processor() or None
        with suppress(OSError):  # a registry without it, as Wine's or a container's
            model = windows_processor_name()
        described = CpuDescription(model=model)
    else:
        described = CpuDescription(model=platform.processor() or None)
    torch_isa = _TORCH_ISA.get(torch.backends.cpu.get_cpu_capability(), ())
    return replace(described, isa=described.isa or torch_isa)


def _sysctl(*names: str) -> str:
    command = ["/usr/sbin/sysctl", *names]
    with suppress(OSError, subprocess.SubprocessError):
        return subprocess.run(command, capture_output=True, text=True, timeout=5).stdout
    return ""


def _psutil_physical_cores() -> int | None:
    try:
        import psutil
    except ImportError:
        return None
    return psutil.cpu_count(logical=False)


def _torch_build() -> str:
    """Return the platform that torch was compiled for: `cpu`, `cu130`, `rocm6.4`."""
    if torch.version.hip is not None:
        return "rocm" + ".".join(torch.version.hip.split(".")[:2])
    if torch.version.cuda is not None:
        return "cu" + torch.version.cuda.replace(".", "")
    return "cpu"


def _cuda(only_index: int | None, *, tries: bool) -> Iterator[Accelerator | Failure]:
    """Yield every CUDA or ROCm device, or why torch could not use any."""
    with warnings.catch_warnings(
        record=True
    ) as caught:  # as torch reports a driver that is too old
        warnings.simplefilter("always")
        count = visible_cuda_devices()
    if count == 0 and caught:
        yield "cuda", _first_line(caught[0].message)
    for index in range(count):
        yield _cuda_device(index, compute=tries and only_index in (None, index))


def _cuda_device(index: int, *, compute: bool) -> Accelerator | Failure:
    try:
        if compute:
            torch.ones(1, device=f"cuda:{index}").item()
        properties = torch.cuda.get_device_properties(index)
    except _DEVICE_ERRORS as error:
        return "cuda", f"device {index}: {_first_line(error)}"
    is_rocm = torch.version.hip is not None
    return Accelerator(
        kind="cuda",
        index=index,
        name=properties.name,
        memory_total_bytes=properties.total_memory,
        supports_bf16=is_rocm or properties.major >= 8,  # before, bf16 is emulated
        compute_capability=None if is_rocm else (properties.major, properties.minor),
    )


def _mps() -> Iterator[Accelerator | Failure]:
    if not torch.backends.mps.is_available():
        return
    try:
        torch.ones(1, device="mps").item()
        yield Accelerator(
            kind="mps",
            index=0,
            name=torch.backends.mps.get_name(),
            memory_total_bytes=torch.mps.recommended_max_memory(),
            supports_bf16=torch.backends.mps.is_macos_or_newer(14, 0),
        )
    except _DEVICE_ERRORS as error:
        yield "mps", _first_line(error)


def _first_line(error: object) -> str:
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__


def _cxx_compiler() -> str | None:
    """Return the path of torch.compile's C++ compiler; None: not found."""
    default = {"win32": "cl", "darwin": "clang++"}.get(sys.platform, "g++")
    return shutil.which(os.environ.get("CXX", default))


def _backends() -> tuple[str, ...]:
    if not torch.distributed.is_available():
        return ()
    present = {
        "gloo": torch.distributed.is_gloo_available(),
        "nccl": torch.distributed.is_nccl_available(),
    }
    return tuple(name for name, is_present in present.items() if is_present)


def _unusable_gpu() -> str | None:
    if torch.version.cuda is not None or not _has_nvidia_driver():
        return None
    return f"an NVIDIA driver is installed, but torch {torch.__version__} is built without CUDA"


def _has_nvidia_driver() -> bool:
    if sys.platform == "win32":
        system = Path(os.environ.get("SYSTEMROOT", r"C:\Windows"), "System32")
        traces = (system / "nvcuda.dll",)
    else:
        traces = (Path("/proc/driver/nvidia/version"),)
    return any(trace.exists() for trace in traces) or shutil.which("nvidia-smi") is not None
