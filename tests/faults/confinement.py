"""Children that may use only so much memory: in a control group of their own, or by RLIMIT_DATA."""

from __future__ import annotations

import os
import secrets
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

Means = Literal["cgroup", "rlimit"]
_ROOT = Path("/sys/fs/cgroup")


@dataclass(frozen=True)
class Confinement:
    """How a child is kept to `limit_bytes`."""

    means: Means
    limit_bytes: int
    group: Path | None = None

    def start(self, command: Sequence[str], environment: Mapping[str, str], **options: Any) -> Any:
        """The command, as a confined process."""
        return subprocess.Popen(command, env=dict(environment), preexec_fn=self._enter(), **options)

    def run(
        self, command: Sequence[str], environment: Mapping[str, str], log: Path, limit_s: float
    ) -> int:
        """The exit code of the confined command, which writes what it says to `log`."""
        with log.open("wb") as output:
            streams = {"stdin": subprocess.DEVNULL, "stdout": output, "stderr": output}
            process = self.start(command, environment, **streams)
            try:
                return int(process.wait(limit_s))
            finally:
                process.kill()
                process.wait()

    def _enter(self) -> Callable[[], None]:
        group, limit_bytes = self.group, self.limit_bytes
        if group is not None:
            procs = str(group / "cgroup.procs")

            def join() -> None:
                with open(procs, "w", encoding="ascii") as file:  # noqa: PTH123
                    file.write(str(os.getpid()))

            return join

        def limit() -> None:
            import resource

            resource.setrlimit(resource.RLIMIT_DATA, (limit_bytes, limit_bytes))

        return limit


@contextmanager
def confined(means: Means, limit_bytes: int) -> Iterator[Confinement]:
    """A confinement; its control group is gone afterwards. Raises OSError where it cannot be."""
    if sys.platform != "linux":
        raise OSError(f"{sys.platform} has no limit of private memory that holds")
    if means == "rlimit":
        yield Confinement("rlimit", limit_bytes)
        return
    group = _new_group()
    try:
        _limit(group, limit_bytes)
        yield Confinement("cgroup", limit_bytes, group)
    finally:
        _remove(group)


def _new_group() -> Path:
    """A group below this process's own, so that every limit above still holds."""
    for line in Path("/proc/self/cgroup").read_text(encoding="ascii").splitlines():
        _, controllers, path = line.split(":", 2)
        base = _ROOT / controllers if controllers else _ROOT
        own = base / path.lstrip("/")
        if controllers == "memory" or (not controllers and _hands_down_memory(own)):
            group = own / f"llmtrain-faults-{secrets.token_hex(4)}"
            group.mkdir()
            return group
    raise OSError("no control group with a memory limit can be made here")


def _hands_down_memory(group: Path) -> bool:
    """Whether groups below a version 2 group may limit memory."""
    control = group / "cgroup.subtree_control"
    return control.is_file() and "memory" in control.read_text(encoding="ascii").split()


def _limit(group: Path, limit_bytes: int) -> None:
    is_version_2 = (group / "memory.max").exists()
    (group / ("memory.max" if is_version_2 else "memory.limit_in_bytes")).write_text(
        str(limit_bytes), encoding="ascii"
    )
    with suppress(OSError):  # no swap, or none of it counted
        if is_version_2:
            (group / "memory.swap.max").write_text("0", encoding="ascii")
        else:
            (group / "memory.memsw.limit_in_bytes").write_text(str(limit_bytes), encoding="ascii")


def _remove(group: Path) -> None:
    """The group is gone, once the kernel has taken leave of its last process."""
    for _ in range(100):
        try:
            group.rmdir()
        except OSError:
            time.sleep(0.05)
        else:
            return
    group.rmdir()
