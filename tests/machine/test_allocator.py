"""What the allocator is told, and whom it leaves alone."""

from __future__ import annotations

import ctypes
import os
import platform
import subprocess
import sys

import pytest

from llmtrain.machine.allocator import (
    keep_freed_memory,
    restart_with_allocator_settings,
    return_free_memory,
)


class Library:
    """A C library that notes what it is told."""

    def __init__(self) -> None:
        self.told: list[tuple[int, ...]] = []

    def mallopt(self, parameter: int, value: int) -> int:
        self.told.append((parameter, value))
        return 1

    def malloc_trim(self, pad: int) -> int:
        self.told.append((pad,))
        return 1


@pytest.fixture
def library(monkeypatch: pytest.MonkeyPatch) -> Library:
    """What is called in place of this machine's C library, on a Linux without settings."""
    made = Library()
    monkeypatch.setattr(ctypes, "CDLL", lambda _: made)
    monkeypatch.setattr(sys, "platform", "linux")
    for name in ("GLIBC_TUNABLES", "LD_PRELOAD"):
        monkeypatch.delenv(name, raising=False)
    return made


def test_glibc_is_told_to_map_nothing_and_to_trim_nothing(library: Library) -> None:
    keep_freed_memory()
    told = dict(library.told)
    m_fastbins, m_mmap_max, m_trim_threshold = 1, -4, -1  # of malloc.h
    assert (told[m_fastbins], told[m_mmap_max], told[m_trim_threshold]) == (0, 0, -1)


@pytest.mark.parametrize("is_limited", [False, True])
def test_a_limit_on_what_is_mapped_is_not_used_up_by_arenas(
    library: Library, monkeypatch: pytest.MonkeyPatch, is_limited: bool
) -> None:
    """With a top pad of 64 MiB every thread that allocates maps as much at once."""
    monkeypatch.setattr("llmtrain.machine.allocator.has_process_limit", lambda: is_limited)
    keep_freed_memory()
    m_top_pad = -2
    assert (m_top_pad in dict(library.told)) is not is_limited


@pytest.mark.skipif(sys.platform != "linux", reason="glibc's arenas")
def test_threads_map_little_under_a_limit() -> None:
    """Eight threads that allocate stay within a limit that leaves each of them 24 MiB."""
    if not platform.libc_ver()[0]:
        pytest.skip("needs glibc")
    script = """
import ctypes, resource, threading
from pathlib import Path
resource.setrlimit(resource.RLIMIT_DATA, (2 << 30, 2 << 30))
from llmtrain.machine.allocator import keep_freed_memory
keep_freed_memory()
data = lambda: int(Path("/proc/self/statm").read_text().split()[5]) * resource.getpagesize()
malloc = ctypes.CDLL(None).malloc
malloc.restype = ctypes.c_void_p
before, barrier = data(), threading.Barrier(9)
def work():
    malloc(4096)
    barrier.wait()
    barrier.wait()
for _ in range(8):
    threading.Thread(target=work, daemon=True).start()
barrier.wait()
print((data() - before) >> 20)
barrier.wait()
"""
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True
    )
    assert int(done.stdout) < 8 * 24


@pytest.mark.parametrize("name", ["GLIBC_TUNABLES", "LD_PRELOAD"])
@pytest.mark.parametrize("value", ["glibc.malloc.arena_max=2", ""])
def test_who_set_an_allocator_up_is_left_alone(
    library: Library, monkeypatch: pytest.MonkeyPatch, name: str, value: str
) -> None:
    monkeypatch.setenv(name, value)
    keep_freed_memory()
    assert library.told == []


@pytest.mark.parametrize("system", ["darwin", "win32"])
def test_nothing_is_told_off_linux(
    library: Library, monkeypatch: pytest.MonkeyPatch, system: str
) -> None:
    monkeypatch.setattr(sys, "platform", system)
    keep_freed_memory()
    return_free_memory()
    assert library.told == []


def test_another_c_library_is_passed_over(
    library: Library, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ctypes, "CDLL", lambda _: object())  # musl has neither call
    keep_freed_memory()
    return_free_memory()

    def missing(_: None) -> None:
        raise OSError("no such library")

    monkeypatch.setattr(ctypes, "CDLL", missing)
    keep_freed_memory()
    return_free_memory()
    assert library.told == []


WATCH = """
import sys
from llmtrain.machine.allocator import keep_freed_memory, return_free_memory
def resident_mib():
    return int(open("/proc/self/statm").read().split()[1]) * 4096 >> 20
if sys.argv[1] == "keep":
    keep_freed_memory()
blocks = [bytearray(b"1" * (16 << 20)) for _ in range(8)]
del blocks
freed = resident_mib()
return_free_memory()
print(freed, resident_mib())
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="needs glibc")
def test_what_is_freed_stays_until_it_is_returned() -> None:
    unset = {k: v for k, v in os.environ.items() if k not in ("GLIBC_TUNABLES", "LD_PRELOAD")}
    found = {}
    for how in ("keep", "leave"):
        command = [sys.executable, "-c", WATCH, how]
        done = subprocess.run(command, env=unset, capture_output=True, text=True, check=True)
        found[how] = [int(word) for word in done.stdout.split()]
    freed, returned = found["keep"]
    assert freed > 100 > found["leave"][0]
    assert returned < 100


BEGUN = """
import os, sys
from llmtrain.machine.allocator import restart_with_allocator_settings
print("begun", os.environ.get("GLIBC_TUNABLES"), flush=True)
restart_with_allocator_settings()
print(os.getpid(), "GLIBC_TUNABLES" in os.environ, sys.argv[1:], sys.flags.dont_write_bytecode)
"""


def begun(**variables: str) -> tuple[int, list[str]]:
    """The process that printed, and its lines."""
    plain = {k: v for k, v in os.environ.items() if k not in ("GLIBC_TUNABLES", "LD_PRELOAD")}
    command = [sys.executable, "-B", "-c", BEGUN, "a b", "--c"]
    process = subprocess.Popen(
        command, env=plain | variables, stdout=subprocess.PIPE, text=True, encoding="utf-8"
    )
    out, _ = process.communicate()
    assert process.returncode == 0
    return process.pid, out.splitlines()


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="needs glibc")
def test_the_process_begins_anew_once_as_it_was_called_and_tells_nobody() -> None:
    pid, lines = begun()
    assert lines == [
        "begun None",
        "begun glibc.malloc.tcache_count=0:glibc.malloc.hugetlb=1",
        f"{pid} False ['a b', '--c'] 1",
    ]


@pytest.mark.parametrize("name", ["GLIBC_TUNABLES", "LD_PRELOAD"])
def test_who_set_an_allocator_up_begins_once(name: str) -> None:
    _, lines = begun(**{name: ""})
    assert len(lines) == 2


@pytest.mark.parametrize("system", ["darwin", "win32"])
def test_elsewhere_nothing_begins_anew(monkeypatch: pytest.MonkeyPatch, system: str) -> None:
    monkeypatch.setattr(os, "execve", lambda *_: pytest.fail("begun anew"))
    monkeypatch.setattr(sys, "platform", system)
    for name in ("GLIBC_TUNABLES", "LD_PRELOAD"):
        monkeypatch.delenv(name, raising=False)
    restart_with_allocator_settings()
    assert "GLIBC_TUNABLES" not in os.environ
