"""Machines from a drawer to a data centre, with what was measured on them: values, all invented."""

from __future__ import annotations

from dataclasses import dataclass, replace

from llmtrain.machine.facts import (
    Accelerator,
    AttentionTimes,
    BlockTimes,
    CpuFacts,
    CpuTimes,
    Facts,
    MatmulTimes,
    PartTime,
    StepTimes,
)

GIB = 2**30
AVX512 = ("avx2", "avx512f", "avx512_bf16")


@dataclass(frozen=True)
class Machine:
    """What `device info` finds, and what the CPU was measured at."""

    facts: Facts
    times: CpuTimes | None = None
    arguments: tuple[str, ...] = ()


def cpu(
    model: str | None, cores: int, gib: float, isa: tuple[str, ...], *, threads: int = 2
) -> CpuFacts:
    return CpuFacts(
        model=model,
        architecture="x86_64",
        physical_cores=cores,
        logical_cores=threads * cores,
        sockets=1,
        affinity_cores=threads * cores,
        quota_cores=None,
        isa=isa,
        memory_total_bytes=int(gib * GIB),
        memory_limit_bytes=None,
        affinity_physical_cores=cores,
    )


def linux(processor: CpuFacts, *, build: str = "cpu") -> Facts:
    return Facts(
        system="Linux",
        python_version="3.12.3",
        torch_version="2.13.0",
        torch_build=build,
        cpu=processor,
        cxx_compiler="/usr/bin/g++",
        backends=("gloo",),
    )


def with_gpus(facts: Facts, number: int, name: str, gib: int) -> Facts:
    return replace(
        facts,
        torch_build="cu130",
        accelerators=tuple(
            Accelerator("cuda", index, name, gib * GIB, True, (9, 0)) for index in range(number)
        ),
        has_triton=True,
        backends=("gloo", "nccl"),
    )


def times(
    fp32_s: float, medium_s: float, bf16_s: float, block: BlockTimes | None = None
) -> CpuTimes:
    products = MatmulTimes(fp32_s, medium_s, bf16_s, flops=1e10)
    eager = parts(4 * min(fp32_s, medium_s, bf16_s))
    return CpuTimes(
        products,
        AttentionTimes(sdpa_s=2 * bf16_s, blocks_s=bf16_s),
        block,
        eager=eager,
        compiled=None if block is None else replace(eager, block=PartTime(block.compiled_s)),
    )


def parts(block_s: float) -> StepTimes:
    """The parts of an eager step, in the proportions of a small model."""
    return StepTimes(8, PartTime(block_s), PartTime(1.2 * block_s), PartTime(0.7 * block_s))


OLD_LAPTOP = linux(cpu("Intel(R) Core(TM) i5-8250U CPU @ 1.60GHz", 4, 7.7, ("avx2",)))
EPYC = linux(cpu("AMD EPYC 9554 64-Core Processor", 64, 377, AVX512))
CLOUD_VM = linux(
    replace(
        cpu("AMD EPYC", 2, 15.6, AVX512, threads=1),
        quota_cores=1.5,
        memory_limit_bytes=3 * GIB,
        memory_limited_by="the control group",
    )
)
RASPBERRY = linux(
    replace(cpu("Cortex-A76", 4, 3.9, ("neon",), threads=1), architecture="aarch64", sockets=None)
)
APPLE = Facts(
    system="Darwin",
    python_version="3.12.3",
    torch_version="2.13.0",
    torch_build="cpu",
    cpu=replace(
        cpu("Apple M2", 8, 16, ("neon", "bf16"), threads=1),
        architecture="arm64",
        affinity_cores=None,
        affinity_physical_cores=None,
    ),
    accelerators=(Accelerator("mps", 0, "Apple M2", 10 * GIB + 2 * GIB // 3, True),),
    cxx_compiler="/usr/bin/clang++",
    backends=("gloo",),
)
WINDOWS = Facts(
    system="Windows",
    python_version="3.12.3",
    torch_version="2.13.0",
    torch_build="cpu",
    cpu=replace(
        cpu("13th Gen Intel(R) Core(TM) i7-1355U", 10, 15.7, ("avx2",)),
        architecture="AMD64",
        logical_cores=12,
        affinity_cores=12,
        affinity_physical_cores=None,
        sockets=None,
    ),
    backends=("gloo",),
)
DESKTOP = linux(cpu("AMD Ryzen 7 5800X 8-Core Processor", 8, 31.3, ("avx2",)))
SERVER = linux(cpu("Intel(R) Xeon(R) Platinum 8480+", 56, 1007, (*AVX512, "amx_bf16")))

MACHINES = {
    "old-laptop": Machine(OLD_LAPTOP, times(0.120, 0.121, 0.240)),
    "cloud-vm-with-a-limit": Machine(CLOUD_VM, times(0.060, 0.058, 0.030)),
    "xeon-with-amx": Machine(
        linux(cpu("Intel(R) Xeon(R) Gold 6426Y", 16, 125, (*AVX512, "amx_bf16"))),
        times(0.020, 0.008, 0.003, BlockTimes(eager_s=0.050, compiled_s=0.036, compile_s=11.0)),
        ("--profile", "cpu-small"),
    ),
    "epyc-with-64-cores": Machine(
        EPYC,
        times(0.006, 0.006, 0.004, BlockTimes(eager_s=0.020, compiled_s=0.023, compile_s=9.0)),
        ("--profile", "cpu-medium", "--nproc", "2"),
    ),
    "raspberry-pi": Machine(RASPBERRY, times(0.900, 0.910, 2.500)),
    "apple-m2": Machine(APPLE, times(0.030, 0.030, 0.045)),
    "consumer-gpu": Machine(with_gpus(DESKTOP, 1, "NVIDIA GeForce RTX 3070", 8)),
    "h100": Machine(with_gpus(SERVER, 1, "NVIDIA H100 80GB HBM3", 79)),
    "8-h100": Machine(
        with_gpus(SERVER, 8, "NVIDIA H100 80GB HBM3", 79),
        arguments=("--profile", "gpu-large", "--set", "train.seed=7"),
    ),
    "gpu-without-cuda-in-torch": Machine(
        replace(
            DESKTOP,
            unusable_gpu="an NVIDIA driver is installed, but torch 2.13.0 is built without CUDA",
        ),
        times(0.040, 0.040, 0.080),
    ),
    "windows-without-a-compiler": Machine(WINDOWS, times(0.050, 0.050, 0.100)),
}
