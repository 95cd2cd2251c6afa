"""Run llmtrain's command line as Windows would let it: python -m tests.simulated_windows FILE

FILE is a JSON list of command lines; all run in this process, in the current directory, and the
exit code is that of the first that fails. It is Linux underneath. What is simulated is what breaks
programs that were written on it:

- What llmtrain imports as `sys`, `os`, `signal` and `subprocess` is what Windows has: the platform
  is win32; there is no `os.fork`, no `os.sysconf`, and few signals; modules of Unix are missing.
  Libraries go on seeing the system that they run on.
- A file that is open or mapped, in this process or a child, can be neither renamed, replaced nor
  removed, nor can a directory that holds one.
- Standard streams are a cp1252 console that refuses what it cannot show, where nobody set
  another encoding.
"""

from __future__ import annotations

import builtins
import errno
import io
import json
import os
import pathlib
import re
import shutil
import signal
import stat
import subprocess
import sys
import types
from collections import namedtuple
from collections.abc import Callable, Collection
from contextlib import suppress
from pathlib import Path
from typing import Any

import filelock
import psutil

from tests.test_platforms import UNIX_MODULES, UNIX_OS, WINDOWS_SIGNALS

_ON_WINDOWS_TOO = {"kill", "rename", "symlink", "wait"}  # of UNIX_OS: there, and different
_SHARING_VIOLATION = 32


class View(types.ModuleType):
    """A module as Windows has it: some names are missing, some are others."""

    def __init__(self, module: Any, lacking: Collection[str] = (), **others: Any) -> None:
        super().__init__(module.__name__)
        vars(self).update(_module=module, _lacking=lacking, _others=others)

    def __getattr__(self, name: str) -> Any:
        if name in self._lacking:
            raise AttributeError(f"module {self.__name__!r} has no attribute {name!r}")
        return self._others[name] if name in self._others else getattr(self._module, name)

    def __setattr__(self, name: str, value: object) -> None:
        setattr(self._module, name, value)


def simulate() -> None:
    """Let llmtrain, when it is imported, see a Windows."""
    views = {
        "sys": View(sys, platform="win32"),
        "os": View(os, UNIX_OS - _ON_WINDOWS_TOO),
        "signal": View(signal, _unix_signals(), CTRL_BREAK_EVENT=signal.SIGTERM),
        "subprocess": View(subprocess, CREATE_NEW_PROCESS_GROUP=0x200, Popen=_Process),
        "stat": View(stat, IO_REPARSE_TAG_MOUNT_POINT=0xA0000003),
        "winreg": View(types.ModuleType("winreg"), HKEY_LOCAL_MACHINE=0, OpenKey=_no_key),
    }
    load = builtins.__import__

    def imported(name: str, importer: Any = None, *more: Any, **options: Any) -> Any:
        if str((importer or {}).get("__name__", "")).partition(".")[0] == "llmtrain":
            if name in views:
                return views[name]
            if name in UNIX_MODULES:
                raise ModuleNotFoundError(f"No module named {name!r}")
        return load(name, importer, *more, **options)

    builtins.__import__ = imported
    _add_facts_of_windows()
    _lock_open_files()


def _unix_signals() -> set[str]:
    signals = {name for name in dir(signal) if name.startswith("SIG")} - WINDOWS_SIGNALS
    return signals | {"pthread_kill", "pthread_sigmask", "alarm", "pause", "sigwait", "setitimer"}


class _Process(subprocess.Popen[bytes]):
    """A child that is started with Windows' flags in place of Unix's options."""

    def __init__(self, *args: Any, creationflags: int = 0, **options: Any) -> None:
        assert not options.get("start_new_session")
        super().__init__(*args, **options)


def _no_key(*_: object) -> None:
    raise FileNotFoundError(errno.ENOENT, "The system cannot find the file specified")


def _add_facts_of_windows() -> None:
    lstat = pathlib.Path.lstat

    class Information:
        """Of a file, with the tag that Windows gives to links of its own."""

        st_reparse_tag = 0

        def __init__(self, path: Path) -> None:
            self._found = lstat(path)

        def __getattr__(self, name: str) -> Any:
            return getattr(self._found, name)

    pathlib.Path.lstat = lambda self: Information(self)  # type: ignore[method-assign, assignment]
    memory_info = psutil.Process.memory_info

    def with_peak(self: psutil.Process) -> Any:
        found = memory_info(self)
        kind = namedtuple("pmem", ["rss", "vms", "peak_wset"])
        return kind(found.rss, found.vms, found.rss)

    psutil.Process.memory_info = with_peak  # type: ignore[method-assign]
    release = filelock.FileLock.release

    def release_and_remove(self: Any, *args: Any, **options: Any) -> None:
        release(self, *args, **options)
        with suppress(OSError):
            os.unlink(self.lock_file)  # noqa: PTH108

    filelock.FileLock.release = release_and_remove  # type: ignore[method-assign]


def open_paths() -> set[str]:
    """Return the files that this process and its children have open or mapped."""
    found = set()
    for process in (psutil.Process(), *psutil.Process().children(recursive=True)):
        place = Path("/proc", str(process.pid))
        with suppress(OSError):  # it ended meanwhile
            maps = (place / "maps").read_text(encoding="utf-8")
            found |= set(re.findall(r" (/\S+)$", maps, re.MULTILINE))
            for each in os.listdir(place / "fd"):  # noqa: PTH208
                with suppress(OSError):  # of the listing itself
                    found.add(os.readlink(place / "fd" / each))  # noqa: PTH115
    return found


def _lock_open_files() -> None:
    for module, name, count in (
        (os, "replace", 2), (os, "rename", 2), (os, "unlink", 1), (os, "remove", 1),
        (os, "rmdir", 1),
    ):  # fmt: skip
        setattr(module, name, _refusing(getattr(os, name), count, name))
    shutil._use_fd_functions = False  # type: ignore[attr-defined]  # as on Windows
    pathlib.Path.rename = _path_method(os.rename)  # type: ignore[method-assign, assignment]
    pathlib.Path.replace = _path_method(os.replace)  # type: ignore[method-assign, assignment]


def _path_method(function: Callable[..., None]) -> Callable[[Path, Any], Path]:
    def method(self: Path, target: Any) -> Path:
        function(self, target)
        return Path(target)

    return method


def _refusing(function: Callable[..., None], paths: int, name: str) -> Callable[..., None]:
    def checked(*arguments: Any, **options: Any) -> None:
        opened = open_paths()
        for path in arguments[:paths]:
            full = os.path.realpath(path)
            if any(each == full or each.startswith(f"{full}/") for each in opened):
                text = (
                    "The process cannot access the file because it is being used by another process"
                )
                error = PermissionError(errno.EACCES, text, os.fspath(path))
                error.winerror = _SHARING_VIOLATION  # type: ignore[attr-defined]
                raise error
        if name == "rename" and os.path.exists(arguments[1]):  # noqa: PTH110
            raise FileExistsError(
                errno.EEXIST, "Cannot create a file when that file already exists"
            )
        function(*arguments, **options)

    return checked


def _use_console() -> None:
    """Make the standard streams a Windows console's, in the code page of Western Europe."""
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        setattr(sys, name, io.TextIOWrapper(stream.buffer, encoding="cp1252", errors="strict"))


def main() -> None:
    """Run the command lines of the file."""
    commands = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))
    simulate()
    _use_console()
    from llmtrain.cli.app import run
    from llmtrain.cli.streams import set_up_standard_streams

    set_up_standard_streams()
    for command in commands:
        code = run(command)
        sys.stdout.flush()
        if code:
            raise SystemExit(code)


if __name__ == "__main__":
    main()
