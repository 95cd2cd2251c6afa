"""What Windows answers only through its libraries. Elsewhere only its structures exist."""

from __future__ import annotations

import ctypes
import os
import sys

from llmtrain.machine.memory_readings import Available, ProcessMemory


class _MemoryStatus(ctypes.Structure):
    """MEMORYSTATUSEX."""

    _fields_ = (
        ("dwLength", ctypes.c_uint32),
        ("dwMemoryLoad", ctypes.c_uint32),
        ("ullTotalPhys", ctypes.c_uint64),
        ("ullAvailPhys", ctypes.c_uint64),
        ("ullTotalPageFile", ctypes.c_uint64),
        ("ullAvailPageFile", ctypes.c_uint64),
        ("ullTotalVirtual", ctypes.c_uint64),
        ("ullAvailVirtual", ctypes.c_uint64),
        ("ullAvailExtendedVirtual", ctypes.c_uint64),
    )


class _ProcessCounters(ctypes.Structure):
    """PROCESS_MEMORY_COUNTERS."""

    _fields_ = (
        ("cb", ctypes.c_uint32),
        ("PageFaultCount", ctypes.c_uint32),
        ("PeakWorkingSetSize", ctypes.c_size_t),
        ("WorkingSetSize", ctypes.c_size_t),
        ("QuotaPeakPagedPoolUsage", ctypes.c_size_t),
        ("QuotaPagedPoolUsage", ctypes.c_size_t),
        ("QuotaPeakNonPagedPoolUsage", ctypes.c_size_t),
        ("QuotaNonPagedPoolUsage", ctypes.c_size_t),
        ("PagefileUsage", ctypes.c_size_t),
        ("PeakPagefileUsage", ctypes.c_size_t),
    )


if sys.platform == "win32":
    import winreg

    class WindowsReader:
        """Windows without psutil. Children are not looked for."""

        source = "kernel32"

        def available(self) -> Available:
            """GlobalMemoryStatusEx."""
            status = _MemoryStatus(dwLength=ctypes.sizeof(_MemoryStatus))
            if not ctypes.WinDLL("kernel32").GlobalMemoryStatusEx(ctypes.byref(status)):
                raise ctypes.WinError()
            # The page file's figures are those of both together.
            swap_free = max(0, status.ullAvailPageFile - status.ullAvailPhys)
            return Available(status.ullTotalPhys, status.ullAvailPhys, swap_free)

        def process_tree(self, pid: int | None = None) -> ProcessMemory:
            """This process alone."""
            resident, peak = _working_set_bytes(pid)
            return ProcessMemory.of(resident, peak, [], self.source)

        def resident_bytes(self, pid: int | None = None) -> int:
            """The working set."""
            return _working_set_bytes(pid)[0]

        def peak_resident_bytes(self, pid: int | None = None) -> int:
            """The largest working set there was; of another process it is not asked for."""
            return _working_set_bytes(None)[1] if pid is None else 0

    def processor_name() -> str:
        """What the registry says of the first processor. Raises OSError."""
        path = r"HARDWARE\DESCRIPTION\System\CentralProcessor\0"
        with winreg.OpenKey(winreg.HKEY_LOCAL_MACHINE, path) as key:
            return str(winreg.QueryValueEx(key, "ProcessorNameString")[0]).strip()

    def _working_set_bytes(pid: int | None) -> tuple[int, int]:
        """(now, peak), from GetProcessMemoryInfo. Raises OSError for another process."""
        if pid not in (None, os.getpid()):
            raise OSError(f"process {pid} can only be looked at with psutil on Windows")
        kernel32 = ctypes.WinDLL("kernel32")
        kernel32.GetCurrentProcess.restype = ctypes.c_void_p  # a handle is as wide as a pointer
        process = ctypes.c_void_p(kernel32.GetCurrentProcess())
        counters = _ProcessCounters(cb=ctypes.sizeof(_ProcessCounters))
        if not kernel32.K32GetProcessMemoryInfo(process, ctypes.byref(counters), counters.cb):
            raise ctypes.WinError()
        return int(counters.WorkingSetSize), int(counters.PeakWorkingSetSize)
