"""No module needs what only one kind of system has, unless it asks first.

Linux, macOS and Windows run the same code. What differs is found in the source: a name of `os`,
`signal` or `socket` that Windows lacks, a module of Unix, a path such as /proc, a rename that
Windows refuses. Each is guarded (`sys.platform`, `os.name`, `hasattr`, `getattr`, an `except` for
its absence), or is listed below with the reason why it needs no guard.
"""

from __future__ import annotations

import ast
import os
import signal
import socket
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

import llmtrain

PACKAGE = Path(llmtrain.__file__).parent
UNIX_MODULES = {
    *("crypt", "curses", "fcntl", "grp", "posix", "pty", "pwd", "readline", "resource", "syslog"),
    *("termios", "tty"),
}
WINDOWS_MODULES = {"_winapi", "msvcrt", "winreg", "winsound"}
# What Windows' own modules have, by the documentation of Python ("Availability: Unix").
WINDOWS_SIGNALS = {
    *("SIGABRT", "SIGBREAK", "SIGFPE", "SIGILL", "SIGINT", "SIGSEGV", "SIGTERM", "SIG_DFL"),
    *("SIG_IGN", "CTRL_BREAK_EVENT", "CTRL_C_EVENT", "Signals", "Handlers", "signal"),
    *("getsignal", "raise_signal", "strsignal", "valid_signals", "default_int_handler"),
    "set_wakeup_fd",
}
UNIX_OS = {
    *("WNOHANG", "chown", "chroot", "confstr", "ctermid", "execve", "fchdir", "fchmod", "fchown"),
    *("fork", "forkpty", "getegid", "geteuid", "getgid", "getgroups", "getloadavg", "getpgid"),
    *("getpgrp", "getpriority", "getresuid", "getsid", "getuid", "killpg", "lchown", "lockf"),
    *("major", "makedev", "memfd_create", "minor", "mkfifo", "mknod", "nice", "openpty"),
    *("pathconf", "pidfd_open", "pipe2", "posix_fadvise", "posix_fallocate", "posix_spawn"),
    *("pread", "pwrite", "register_at_fork", "sched_getaffinity", "sched_setaffinity"),
    *("sched_yield", "sendfile", "setgid", "setpgid", "setpgrp", "setpriority", "setsid"),
    *("setuid", "statvfs", "sync", "sysconf", "tcgetpgrp", "ttyname", "uname", "wait", "wait3"),
    *("wait4", "waitid", "O_CLOEXEC", "O_DIRECTORY", "O_DSYNC", "O_NOCTTY", "O_NOFOLLOW"),
    *("O_NONBLOCK", "O_SYNC", "kill", "symlink", "rename"),
}
UNIX_SOCKET = {"AF_UNIX", "SO_REUSEPORT", "socketpair_unix", "send_fds", "recv_fds"}
UNIX_PATHS = ("/proc", "/sys", "/dev", "/etc", "/tmp", "/usr", "/var", "/opt")
UNIX_ARGUMENTS = {"preexec_fn", "pass_fds", "start_new_session", "process_group"}
GUARDS = ("sys.platform", "os.name", "hasattr", "getattr", "platform.system")

# By file and name: why it needs no guard where it stands.
UNGUARDED = {
    (
        "engine/cluster/kubernetes.py",
        "/dev/shm",
    ): "a path in a container, in a file that is written",
    ("machine/gpu_memory.py", "/dev/nvidiactl"): "looked for, and asked for Linux in the next line",
    ("machine/gpu_memory.py", "/dev/kfd"): "looked for, and asked for Linux in the next line",
    ("machine/memory_usage.py", "/proc"): "the reader of Linux, chosen by sys.platform",
    ("machine/probe.py", "/usr/sbin/sysctl"): "the reader of macOS, chosen by sys.platform",
    ("children.py", "start_new_session"): "below the return of Windows' own way",
    ("train/distributed/launch.py", "start_new_session"): "below the return of Windows' own way",
    ("train/checkpoint/writing.py", "rename"): "of directories, to names that are free",
    ("train/checkpoint/names.py", "rename"): "of a directory, to a name that is free",
    ("data/shards/cache_entry.py", "rename"): "of directories, to names that are free",
    ("data/shards/cache.py", "rename"): "of a directory, to a name that is free",
}


@dataclass(frozen=True, slots=True)
class Use:
    """What only one kind of system has, where it is used, and whether something asks first."""

    file: str
    line: int
    name: str
    guarded: bool

    def __str__(self) -> str:
        return f"{self.file}:{self.line} uses {self.name}"


def uses(file: str, source: str) -> Iterator[Use]:
    """Yield what only one kind of system has, of what a module uses."""
    tree = ast.parse(source)
    parents = {child: node for node in ast.walk(tree) for child in ast.iter_child_nodes(node)}
    for node in ast.walk(tree):
        for name in names_of(node):
            guarded = is_guarded(node, parents)
            yield Use(file, node.lineno, name, guarded)  # type: ignore[attr-defined]


def names_of(node: ast.AST) -> Iterator[str]:
    """Yield what of `node` only one kind of system has."""
    if isinstance(node, ast.Import):
        yield from (each.name for each in node.names if is_of_one_system(each.name))
    elif (
        isinstance(node, ast.ImportFrom) and node.level == 0 and is_of_one_system(node.module or "")
    ):
        yield str(node.module)
    elif isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
        module, name = node.value.id, node.attr
        lacking = {"os": UNIX_OS, "socket": UNIX_SOCKET}.get(module, set())
        is_signal = module == "signal" and not name.startswith("_") and name not in WINDOWS_SIGNALS
        if name in lacking or is_signal:
            yield f"{module}.{name}"
    elif isinstance(node, ast.Call):
        for each in node.keywords:
            if each.arg in UNIX_ARGUMENTS and not is_question(each.value):
                yield each.arg
        if isinstance(node.func, ast.Attribute) and node.func.attr in ("rename", "symlink_to"):
            yield node.func.attr
    elif isinstance(node, ast.Constant) and isinstance(node.value, str):
        is_path = node.value in UNIX_PATHS or node.value.startswith(
            tuple(f"{p}/" for p in UNIX_PATHS)
        )
        if is_path and "\n" not in node.value and " " not in node.value:
            yield node.value


def is_of_one_system(module: str) -> bool:
    return module.partition(".")[0] in UNIX_MODULES | WINDOWS_MODULES


def is_guarded(node: ast.AST, parents: dict[ast.AST, ast.AST]) -> bool:
    """Whether code around or above `node` asks for the system, or for what may be missing."""
    while node in parents:
        node, below = parents[node], node
        if isinstance(node, (ast.If, ast.IfExp, ast.BoolOp)) and asks(node):
            return True
        if isinstance(node, (ast.Try, ast.With)) and forgives(node):
            return True
        if isinstance(node, ast.FunctionDef) and any(map(leaves_if_asked, before(node, below))):
            return True
    return False


def asks(node: ast.If | ast.IfExp | ast.BoolOp) -> bool:
    return is_question(node if isinstance(node, ast.BoolOp) else node.test)


def is_question(expression: ast.expr) -> bool:
    return any(guard in ast.unparse(expression) for guard in GUARDS)


def before(function: ast.FunctionDef, statement: ast.AST) -> list[ast.stmt]:
    return [each for each in function.body if each.lineno < statement.lineno]  # type: ignore[attr-defined]


def leaves_if_asked(statement: ast.stmt) -> bool:
    """Whether it is `if sys.platform …: return`."""
    return (
        isinstance(statement, ast.If)
        and asks(statement)
        and isinstance(statement.body[-1], (ast.Return, ast.Raise))
    )


def forgives(node: ast.Try | ast.With) -> bool:
    """Whether what is missing is an error that is caught."""
    if isinstance(node, ast.Try):
        caught = " ".join(ast.unparse(each.type) for each in node.handlers if each.type)
    else:
        caught = " ".join(ast.unparse(each.context_expr) for each in node.items)
        caught = caught if "suppress" in caught else ""
    return any(word in caught for word in ("ImportError", "AttributeError", "OSError"))


def writes_text(call: ast.Call) -> bool:
    """Whether it is `path.write_text(…)`, or a `path.open(…)` that writes text."""
    if not isinstance(call.func, ast.Attribute):
        return False
    modes = {each.value for each in call.args if isinstance(each, ast.Constant)}
    opens_text = call.func.attr == "open" and bool(modes & set("awx"))
    return opens_text or call.func.attr == "write_text"


def of_package() -> list[Use]:
    return [
        use
        for path in sorted(PACKAGE.rglob("*.py"))
        for use in uses(path.relative_to(PACKAGE).as_posix(), path.read_text(encoding="utf-8"))
    ]


def test_what_one_system_has_is_asked_for_first() -> None:
    unguarded = [use for use in of_package() if not use.guarded]
    assert [str(use) for use in unguarded if (use.file, use.name) not in UNGUARDED] == []


def test_files_have_the_same_ends_of_lines_on_every_system() -> None:
    translated = [
        f"{path.relative_to(PACKAGE).as_posix()}:{node.lineno}"
        for path in sorted(PACKAGE.rglob("*.py"))
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Call) and writes_text(node)
        if "newline" not in {each.arg for each in node.keywords}
    ]
    assert translated == []


def test_every_exception_is_still_needed() -> None:
    assert set(UNGUARDED) - {(use.file, use.name) for use in of_package()} == set()


def test_what_is_said_to_be_missing_exists_here() -> None:
    """A name that is misspelt would never be found."""
    if os.name == "nt":
        pytest.skip("about names that Windows lacks")
    mostly = [name for name in UNIX_OS if hasattr(os, name)]
    assert len(mostly) > 0.8 * len(UNIX_OS)  # macOS lacks some
    assert hasattr(socket, "AF_UNIX")
    assert {"SIGINT", "SIGTERM", "getsignal"} <= WINDOWS_SIGNALS & set(dir(signal))


@pytest.mark.parametrize(
    ("source", "found"),
    [
        ("import os\nos.fork()", ["os.fork"]),
        ("import fcntl", ["fcntl"]),
        ("from pwd import getpwuid", ["pwd"]),
        ("import signal\nsignal.signal(signal.SIGHUP, f)", ["signal.SIGHUP"]),
        ("import signal\nsignal.signal(signal.SIGINT, f)", []),
        ("open('/proc/meminfo')", ["/proc/meminfo"]),
        ("a.rename(b)", ["rename"]),
        ("run(c, preexec_fn=f)", ["preexec_fn"]),
        ("import os, sys\nif sys.platform != 'win32':\n    os.fork()", []),
        ("import os\nif hasattr(os, 'fork'):\n    os.fork()", []),
        ("import os\ndef f():\n    if os.name == 'nt':\n        return\n    os.fork()", []),
        ("run(c, start_new_session=sys.platform != 'win32')", []),
        ("import os, sys\ndef f():\n    os.fork()\n    if sys.platform == 'win32':\n        return",
         ["os.fork"]),
        ("try:\n    import fcntl\nexcept ImportError:\n    fcntl = None", []),
        ("try:\n    import fcntl\nexcept ValueError:\n    fcntl = None", ["fcntl"]),
        ("with suppress(OSError):\n    open('/proc/meminfo')", []),
        ("with open(x):\n    open('/proc/meminfo')", ["/proc/meminfo"]),
        ("print('see /proc for more')", []),
    ],
)  # fmt: skip
def test_a_use_without_a_guard_is_found(source: str, found: list[str]) -> None:
    assert [use.name for use in uses("a.py", source) if not use.guarded] == found
