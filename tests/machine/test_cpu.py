"""The processor is read from invented texts and trees of /proc, /sys and sysctl."""

from __future__ import annotations

import sys
from pathlib import Path

import psutil
import pytest

from llmtrain.machine.cpu import (
    CpuDescription,
    allowed_cores,
    parse_cpuinfo,
    parse_sysctl,
    read_linux_cpu,
)


def x86_processor(number: int, socket: int, core: int, model: str, flags: str) -> str:
    return (
        f"processor\t: {number}\nmodel name\t: {model}\nphysical id\t: {socket}\n"
        f"core id\t\t: {core}\nflags\t\t: {flags}\n\n"
    )


def two_socket_xeon() -> str:
    """2 sockets × 4 cores × 2 threads; the second threads are numbered after all the first."""
    flags = "fpu sse2 avx2 avx512f avx512_bf16 amx_bf16 amx_tile"
    return "".join(
        x86_processor(thread * 8 + socket * 4 + core, socket, core, "Intel Xeon 8480+", flags)
        for thread in range(2)
        for socket in range(2)
        for core in range(4)
    )


def arm_server() -> str:
    return "".join(
        f"processor\t: {n}\nFeatures\t: fp asimd sve bf16 i8mm svebf16\nCPU implementer\t: 0x41\n"
        f"CPU architecture: 8\nCPU variant\t: 0x1\nCPU part\t: 0xd40\nCPU revision\t: 1\n\n"
        for n in range(4)
    )


def write_topology(root: Path, cpu: int, siblings: str, package: int) -> None:
    topology = root / f"sys/devices/system/cpu/cpu{cpu}/topology"
    topology.mkdir(parents=True)
    (topology / "thread_siblings_list").write_text(f"{siblings}\n")
    (topology / "physical_package_id").write_text(f"{package}\n")


def test_two_socket_xeon_with_amx() -> None:
    cpu = parse_cpuinfo(two_socket_xeon())
    assert cpu.model == "Intel Xeon 8480+"
    assert cpu.isa == ("avx2", "avx512f", "avx512_bf16", "amx_bf16")
    assert (cpu.physical_cores, cpu.sockets, len(cpu.core_of)) == (8, 2, 16)


def test_cores_among_an_affinity_mask() -> None:
    cpu = parse_cpuinfo(two_socket_xeon())
    assert cpu.cores_among(range(8)) == 8  # one thread of each core
    assert cpu.cores_among([0, 8]) == 1  # both threads of one
    assert cpu.cores_among([0, 4]) == 2  # core 0 of each socket
    assert cpu.cores_among([0, 99]) is None


def test_amd_laptop_with_avx2_only() -> None:
    text = "".join(
        x86_processor(n, 0, n // 2, "AMD Ryzen 5 5500U", "fpu sse2 avx avx2") for n in range(12)
    )
    cpu = parse_cpuinfo(text)
    assert (cpu.isa, cpu.physical_cores, cpu.sockets) == (("avx2",), 6, 1)


def test_what_not_every_core_can_do_does_not_count() -> None:
    mixed = x86_processor(0, 0, 0, "m", "avx2 avx512f") + x86_processor(1, 0, 1, "m", "avx2")
    assert parse_cpuinfo(mixed).isa == ("avx2",)


def test_arm_has_no_name_and_no_cores_in_cpuinfo() -> None:
    cpu = parse_cpuinfo(arm_server())
    assert cpu.model == "ARM implementer 0x41 part 0xd40"
    assert cpu.isa == ("neon", "sve", "bf16", "sve_bf16")
    assert (cpu.physical_cores, cpu.sockets) == (None, None)


def test_sys_counts_the_cores_that_cpuinfo_does_not(tmp_path: Path) -> None:
    (tmp_path / "proc").mkdir()
    (tmp_path / "proc/cpuinfo").write_text(arm_server())
    for cpu in range(4):
        write_topology(tmp_path, cpu, siblings=f"{cpu}", package=-1)
    described = read_linux_cpu(tmp_path)
    assert (described.physical_cores, described.sockets) == (4, None)


def test_sys_shows_which_threads_share_a_core(tmp_path: Path) -> None:
    for cpu, siblings in enumerate(["0-1", "0-1", "2-3", "2-3"]):
        write_topology(tmp_path, cpu, siblings, package=0)
    described = read_linux_cpu(tmp_path)
    assert (described.physical_cores, described.sockets) == (2, 1)
    assert described.cores_among([0, 1]) == 1
    assert described.model is None


def test_nothing_to_read_is_unknown(tmp_path: Path) -> None:
    assert read_linux_cpu(tmp_path) == CpuDescription()
    assert parse_cpuinfo("garbage\n\n: :\nprocessor") == CpuDescription()


def test_apple_silicon() -> None:
    cpu = parse_sysctl(
        "machdep.cpu.cores_per_package: 8\nmachdep.cpu.brand_string: Apple M2\nhw.packages: 1\n"
        "hw.optional.neon: 1\nhw.optional.AdvSIMD: 1\nhw.optional.arm.FEAT_BF16: 1\n"
        "hw.optional.arm.FEAT_SME: 0\n"
    )
    assert cpu == CpuDescription("Apple M2", ("neon", "bf16"), {}, 1)


def test_intel_mac() -> None:
    cpu = parse_sysctl(
        "machdep.cpu.brand_string: Intel(R) Core(TM) i7-8569U CPU @ 2.80GHz\n"
        "hw.optional.avx2_0: 1\nhw.optional.avx512f: 0\n"
    )
    assert cpu.model == "Intel(R) Core(TM) i7-8569U CPU @ 2.80GHz"
    assert cpu.isa == ("avx2",)


def test_windows_is_asked_through_psutil(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "platform", "win32")
    monkeypatch.setattr(psutil.Process, "cpu_affinity", lambda _: [0, 2], raising=False)
    assert allowed_cores() == [0, 2]
