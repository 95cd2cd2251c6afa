"""The fault shim: built, preloaded, and armed from Python. Linux with a C compiler only."""

from __future__ import annotations

import ctypes
import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from enum import IntEnum
from pathlib import Path

_SOURCE = Path(__file__).with_name("shim.c")


class Kind(IntEnum):
    """What happens at the chosen operation, as in shim.c."""

    COUNT = 0
    FULL = 1  # ENOSPC, there and at every later operation that takes room
    FAILING = 2  # EIO, once
    KILL = 3  # SIGKILL before the operation


def is_possible() -> bool:
    """Whether this machine can build and preload the shim."""
    return sys.platform == "linux" and shutil.which("cc") is not None


def build(directory: Path) -> Path:
    """The shim as a library in `directory`."""
    library = directory / "shim.so"
    command = ["cc", "-O1", "-shared", "-fPIC", "-o", str(library), str(_SOURCE), "-ldl"]
    subprocess.run([*command, "-lpthread"], check=True, capture_output=True)
    return library


def environment(
    library: Path, at: int | None = None, kind: Kind = Kind.COUNT, under: Path | None = None
) -> dict[str, str]:
    """The environment of a process with the shim preloaded, and armed where `at` is given."""
    variables = {**os.environ, "LD_PRELOAD": str(library)}
    if at is not None and under is not None:
        variables |= {"FAULT_AT": str(at), "FAULT_KIND": str(int(kind)), "FAULT_PREFIX": str(under)}
    return variables


def run_preloaded(module: str, arguments: Sequence[str], library: Path) -> int:
    """The exit code of `python -m MODULE ARGUMENTS` with the shim preloaded."""
    command = [sys.executable, "-m", module, *arguments]
    return subprocess.run(command, env=environment(library)).returncode


class Armed:
    """The shim of this process, which was started with it preloaded."""

    def __init__(self) -> None:
        self._library = ctypes.CDLL(None)
        self._library.fault_arm.argtypes = [ctypes.c_long, ctypes.c_int, ctypes.c_char_p]
        self._library.fault_disarm.restype = ctypes.c_long

    def arm(self, at: int, kind: Kind, under: Path) -> None:
        """The `at`-th operation from now on under that directory is struck."""
        self._library.fault_arm(at, int(kind), os.fsencode(under))

    def disarm(self) -> int:
        """Nothing more is struck; returns how many operations were seen."""
        return int(self._library.fault_disarm())
