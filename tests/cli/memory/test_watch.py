"""Memory that is watched: a line of JSON per sample, a live view on a terminal, and a clean end."""

from __future__ import annotations

import json
import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from llmtrain.cli.memory import watch
from llmtrain.cli.memory.now import Target, memory_lines, memory_now
from llmtrain.cli.memory.watch import _samples
from llmtrain.documents.memory import Memory
from llmtrain.train.signals import StopRequest
from tests.cli.conftest import Command, complaints
from tests.ignored_signals import ignoring

FIGURES = {"total_bytes", "available_bytes", "used_bytes", "percent"}
WATCH = (sys.executable, "-m", "llmtrain", "memory", "--watch", "--every", "0.1s")
POSIX = pytest.mark.skipif(sys.platform == "win32", reason="signals and terminals of Unix")


@contextmanager
def sleeper() -> Iterator[subprocess.Popen[bytes]]:
    """A process that waits for a line on its stdin."""
    with subprocess.Popen(
        [sys.executable, "-c", "print(flush=True); input()"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    ) as process:
        assert process.stdout is not None
        process.stdout.readline()
        yield process
        if process.poll() is None:
            process.communicate(b"\n")


def documents(out: str) -> list[dict[str, Any]]:
    found = [json.loads(line) for line in out.splitlines()]
    assert [complaints("memory", document) for document in found] == [[]] * len(found)
    return found


@POSIX
def test_each_sample_is_a_line_and_a_signal_ends_it() -> None:
    with subprocess.Popen(
        [*WATCH, "--pid", str(os.getpid())], stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as process:
        assert process.stdout is not None
        lines = [json.loads(process.stdout.readline()) for _ in range(3)]
        process.send_signal(signal.SIGINT)
        rest, err = process.communicate(timeout=60)
    assert (process.returncode, err) == (0, b"")
    assert all(json.loads(line) for line in rest.splitlines())
    assert [line["schema_version"] for line in lines] == [2, 2, 2]
    assert lines[0]["elapsed_s"] < lines[1]["elapsed_s"] < lines[2]["elapsed_s"]
    assert lines[0]["time"] < lines[1]["time"]
    for part in ("system", "process"):
        assert set(lines[0][part]) >= FIGURES
    assert lines[0]["process"]["pid"] == os.getpid()
    assert lines[0]["process"]["processes"] >= 2
    assert {"cgroup", "accelerators"} <= set(lines[0])


@POSIX
@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM"])
def test_a_signal_ends_it_where_it_was_ignored_before(name: str) -> None:
    number = signal.Signals[name]
    command = ignoring((number,), [*WATCH, "--pid", str(os.getpid())])
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout is not None
        process.stdout.readline()
        process.send_signal(number)
        try:
            _, err = process.communicate(timeout=60)
        finally:
            process.kill()
    assert (process.returncode, err) == (0, b"")


def test_a_closed_pipe_ends_it_quietly() -> None:
    with subprocess.Popen(
        [*WATCH, "--pid", str(os.getpid())], stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.readline()
        process.stdout.close()
        assert process.wait(60) == 0
        assert process.stderr.read() == b""


def after_samples(count: int, patch: pytest.MonkeyPatch, act: Callable[[], object]) -> None:
    """Call `act` while the watch waits after `count` samples."""
    waits: list[float] = []

    def wait(seconds: float) -> None:
        waits.append(seconds)
        if len(waits) == count:
            act()
        time.sleep(seconds)

    wait_with(wait, patch)


def wait_with(wait: Callable[[float], None], patch: pytest.MonkeyPatch) -> None:
    """Replace the sleep between samples alone: threads that handle signals sleep too."""
    patch.setattr(watch, "time", SimpleNamespace(monotonic=time.monotonic, sleep=wait))


def test_the_end_of_the_process_is_the_end(
    llmtrain: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    with sleeper() as process, monkeypatch.context() as patch:
        after_samples(3, patch, process.kill)  # a zombie: nobody waits for its exit code
        outcome = llmtrain("memory", "--watch", "--pid", process.pid, "--every", "0.5s")
    assert (outcome.code, outcome.err) == (0, "")
    assert len(documents(outcome.out)) == 3
    again = llmtrain("memory", "--watch", "--pid", process.pid)
    assert again.code == 2
    assert f"--pid {process.pid}" in again.err


def on_a_terminal(*flags: str) -> tuple[int, str]:
    """Return the exit code and what the terminal received, with Ctrl-C after some samples."""
    import pty

    pid, terminal = pty.fork()
    if pid == 0:
        os.environ["TERM"] = "xterm"
        os.execv(WATCH[0], [*WATCH, "--pid", str(os.getppid()), *flags])
    seen, until_s = b"", time.monotonic() + 60
    is_sent = False
    while time.monotonic() < until_s:
        if not select.select([terminal], [], [], 0.2)[0]:
            continue
        try:
            seen += os.read(terminal, 4096)
        except OSError:  # Linux: the other side has closed
            break
        if not is_sent and seen.count(b"system") > 4:
            os.write(terminal, b"\x03")
            is_sent = True
    code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    os.close(terminal)
    return code, seen.decode()


@POSIX
def test_on_a_terminal_it_is_redrawn_and_the_last_state_stays() -> None:
    code, seen = on_a_terminal()
    assert code == 0
    assert "\x1b[1A\x1b[2K" in seen  # a line up, and cleared
    assert "\x1b[?25h" in seen  # the cursor is back
    last = seen.rpartition("\x1b[2K")[2].splitlines()
    assert last[0].startswith("system   ")
    assert any(line.startswith(f"process  {os.getpid()}: ") for line in last)
    assert "Ctrl-C" not in "".join(last)


@POSIX
def test_lines_can_be_had_on_a_terminal_too() -> None:
    code, seen = on_a_terminal("--json")
    assert code == 0
    assert "\x1b" not in seen
    assert len(documents(seen.partition("^C")[0])) > 4


@POSIX
def test_a_run_is_found_and_watched_to_its_end(
    llmtrain: Command, place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    train = ("train", "-p", "tiny.yaml", "-q", "--out", "runs/r", "--steps", "100000")
    calm = ("eval.every_steps=99999", "eval.sample_every_steps=99999")
    plain = ("attention=sdpa", "block_kernels=torch", "loss=chunks", "compile=false")
    kernels = [f"device.{each}" for each in plain]  # nothing is compiled: it begins at once
    settings = [word for each in (*calm, *kernels) for word in ("--set", each)]
    process = subprocess.Popen([sys.executable, "-m", "llmtrain", *train, *settings])
    try:
        while process.poll() is None and not (place / "runs" / "r" / "metrics.jsonl").exists():
            time.sleep(0.05)
        named = llmtrain("memory", "r", "--json").document
        with monkeypatch.context() as patch:
            after_samples(3, patch, process.terminate)
            found = llmtrain("memory", "--watch", "--every", "0.1s")
        assert process.wait(60) == 75
    finally:
        process.kill()
        process.wait()

    samples = documents(found.out)
    assert found.code == 0
    assert f"watching {Path('runs/r')}, process {process.pid}" in found.err
    assert len(samples) >= 3
    for sample in (named, *samples):
        assert sample["process"]["pid"] == process.pid
        assert sample["run"]["path"] == str(Path("runs/r"))
        assert sample["run"]["logged"]["step"] >= 1
    logged_bytes = samples[-1]["run"]["logged"]["memory_bytes"]
    assert samples[-1]["process"]["used_bytes"] == pytest.approx(logged_bytes, rel=0.3)
    over = llmtrain("memory", "r")
    assert over.code == 2
    assert f"{process.pid}, is not running" in over.err


def test_where_nothing_is_trained_the_machine_is_watched(
    llmtrain: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(seconds: float) -> None:
        signal.raise_signal(signal.SIGINT)

    wait_with(interrupt, monkeypatch)
    outcome = llmtrain("memory", "--watch")
    (document,) = documents(outcome.out)
    assert outcome.code == 0
    assert "no run under runs/ is being trained" in outcome.err
    assert "pid" not in document["process"]
    assert set(document["system"]) >= FIGURES


@pytest.mark.skipif(sys.platform != "linux", reason="/proc is Linux'")
def test_without_psutil_the_system_is_asked(
    llmtrain: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setitem(sys.modules, "psutil", None)
        document = llmtrain("memory", "--json").document
    assert (document["system"]["source"], document["process"]["source"]) == ("os", "resource")
    assert document["process"]["resident_bytes"] > 0


def test_the_peak_is_never_below_what_was_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    peaks = iter([5, 9, 3])
    stop = StopRequest()

    def sample(target: Target, **more: object) -> Memory:
        memory = memory_now(target, **more)
        memory.process.peak_resident_bytes = next(peaks)
        stop.signal_name = "SIGINT" if memory.process.peak_resident_bytes == 3 else None
        return memory

    monkeypatch.setattr(watch, "memory_now", sample)
    samples = list(_samples(Target(), 0.0, stop))
    assert [sample.process.peak_resident_bytes for sample in samples] == [5, 9, 9]


def test_a_gpu_is_shown_with_all_that_is_known_of_it() -> None:
    gib = 2**30
    figures = {"total_bytes": 80 * gib, "available_bytes": 60 * gib, "used_bytes": 20 * gib}
    use = {**figures, "percent": 25.0}
    gpu = {"kind": "cuda", "index": 1, "name": "RTX", **use}
    own = {"allocated_bytes": 5 * gib, "reserved_bytes": 6 * gib, "peak_reserved_bytes": 7 * gib}
    unknown = dict.fromkeys(own)
    process = {"used_bytes": gib, "percent": 1.0, "peak_resident_bytes": gib, "processes": 1}
    process |= {"resident_bytes": gib, "total_bytes": 80 * gib, "available_bytes": 60 * gib}
    lasting = {"tokens": 1, "loss": 1.0, "lr": 1.0, "grad_norm": 1.0, "tokens_per_s": 1.0}
    logged = {
        **lasting,
        "mfu": None,
        "memory_bytes": gib,
        "elapsed_s": 1.0,
        "step": 7,
        "accelerator_bytes": 6 * gib,
        "accelerator_allocated_bytes": 5 * gib,
        "accelerator_peak_bytes": 7 * gib,
    }
    limit = {"limit_bytes": None, "limit_used_bytes": None, "source": "psutil"}
    document = {
        "system": use | limit,
        "cgroup": use | {"path": "/a"},
        "process": {**process, "pid": 3, "source": "psutil"},
        "accelerators": [gpu | own, gpu | unknown, gpu | unknown | {"available_bytes": None}],
        "run": {"path": "runs/r", "logged": logged},
    }
    said = "20 GiB of 80 GiB used (25%), 60 GiB available"
    held = "allocated 5 GiB, reserved 6 GiB, peak 7 GiB"
    assert memory_lines(Memory.of(**document)) == [
        f"system   {said}",
        f"cgroup   {said}",
        "process  3: 1 GiB (1%), peak 1 GiB (psutil)",
        f"cuda:1   RTX: {said}, {held}",
        f"cuda:1   RTX: {said}",
        "cuda:1   RTX: of 80 GiB",
        f"run      runs/r, step 7, {held}",
    ]


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (("--every", "2s"), ("--every 2s", "--watch")),
        (("--watch", "--every", "0s"), ("--every 0s",)),
        (("--watch", "--every", "often"), ("often", "not a duration")),
        (("--watch", "--every", "900d"), ("900d", "1d")),
        (("--watch", "-p", "tiny.yaml"), ("--watch", "--profile")),
        (("--pid", "1", "-p", "tiny.yaml"), ("--pid", "--profile")),
        (("run", "--pid", "1"), ("RUN", "--pid")),
        (("--pid", "0"), ("--pid",)),
        (("frist",), ("unknown run 'frist'",)),
    ],
)
def test_what_makes_no_sense_is_refused(
    flags: tuple[str, ...], words: tuple[str, ...], llmtrain: Command
) -> None:
    outcome = llmtrain("memory", *flags)
    assert (outcome.code, outcome.out) == (2, "")
    assert all(word in outcome.err for word in words)
