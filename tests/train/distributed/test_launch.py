"""The launcher, with scripts in place of ranks."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

from llmtrain.errors import DataError, InterruptedRunError, LlmtrainError, PeerLostError
from llmtrain.files import LAUNCHED_VARIABLE
from llmtrain.train.distributed import launch as launch_module
from llmtrain.train.distributed.failures import (
    open_store,
    rank_environment,
    report_failure,
    reported_failure,
)
from llmtrain.train.distributed.launch import launch
from llmtrain.train.signals import StopRequest, stop_on_signals

if sys.platform == "win32":
    pytest.skip("ranks are killed as POSIX does", allow_module_level=True)

FOREVER = "time.sleep(600)"
Launched = Callable[..., int]


@pytest.fixture
def ranks(monkeypatch: pytest.MonkeyPatch) -> Launched:
    """Launches a line of Python a rank, and sees that all have ended."""
    begin, begun = launch_module._started, list[subprocess.Popen[bytes]]()

    def started(command: list[str], environment: dict[str, str]) -> subprocess.Popen[bytes]:
        line = command[3 + int(environment["RANK"])]
        script = f"import os, signal, sys, time; {line}"
        begun.append(begin([sys.executable, "-c", script], environment))
        return begun[-1]

    monkeypatch.setattr(launch_module, "_started", started)
    monkeypatch.setattr(launch_module, "_GRACE_S", 0.3)

    def run(*lines: str, stop: StopRequest | None = None) -> int:
        try:
            return launch(len(lines), lines, stop or StopRequest())
        finally:
            assert not any(psutil.pid_exists(process.pid) for process in begun)

    return run


def test_the_code_is_rank_0s(ranks: Launched) -> None:
    assert ranks("sys.exit(75)", "sys.exit(0)") == 75
    assert ranks("sys.exit(0)", "pass") == 0


@pytest.mark.parametrize("victim", [0, 1, 2])
def test_a_killed_rank_is_named_and_ends_all(victim: int, ranks: Launched) -> None:
    lines = [FOREVER] * 3
    lines[victim] = "os.kill(os.getpid(), signal.SIGKILL)"
    with pytest.raises(LlmtrainError, match=f"rank {victim} was killed by SIGKILL") as failure:
        ranks(*lines)
    assert failure.value.exit_code == 1


def test_a_rank_that_heeds_nothing_is_killed(ranks: Launched) -> None:
    deaf = f"signal.signal(signal.SIGTERM, signal.SIG_IGN); {FOREVER}"
    suspended = "os.kill(os.getpid(), signal.SIGSTOP)"
    with pytest.raises(LlmtrainError, match="rank 2 ended with code 3"):
        ranks(deaf, suspended, "sys.exit(3)")


def told(kind: str) -> str:
    code = "from llmtrain.train.distributed.failures import report_failure; "
    code += "from llmtrain import errors; "
    return (
        code + f"e = errors.{kind}('because', hint='do'); report_failure(e); sys.exit(e.exit_code)"
    )


def test_what_a_rank_tells_is_told_once_with_its_code(ranks: Launched) -> None:
    with pytest.raises(DataError, match="because") as failure:
        ranks(told("DataError"), told("DataError"))
    assert (failure.value.exit_code, failure.value.hint) == (5, "do")


def test_the_first_cause_is_told_and_not_its_consequence(ranks: Launched) -> None:
    with pytest.raises(DataError):
        ranks(told("PeerLostError"), told("DataError"))
    with pytest.raises(PeerLostError):
        ranks(FOREVER, told("PeerLostError"))
    assert ranks("sys.exit(75)", told("PeerLostError")) == 75


def test_a_signal_before_the_ranks_handle_it_is_an_interruption(ranks: Launched) -> None:
    with stop_on_signals() as stop, pytest.raises(InterruptedRunError, match="SIGTERM"):
        ranks(
            f"os.kill(os.getppid(), signal.SIGTERM); {FOREVER}",
            f"signal.signal(signal.SIGTERM, lambda *_: sys.exit(0)); {FOREVER}",
            stop=stop,
        )


def test_ranks_are_not_killed_by_a_save_signal_that_comes_early(ranks: Launched) -> None:
    early = "os.kill(os.getpid(), signal.SIGUSR1); sys.exit(0)"
    assert ranks(early, early) == 0


def test_a_failure_survives_the_way_to_the_launcher(monkeypatch: pytest.MonkeyPatch) -> None:
    store, port = open_store()
    for name, value in (rank_environment(1, 2, port) | {LAUNCHED_VARIABLE: "1"}).items():
        monkeypatch.setenv(name, value)
    assert reported_failure(store, 1) is None
    assert report_failure(DataError("it is ümläut", hint="do"))
    failure = reported_failure(store, 1)
    assert isinstance(failure, DataError)
    assert (failure.message, failure.hint) == ("it is ümläut", "do")


def test_a_rank_stops_when_its_launcher_is_gone(tmp_path: Path) -> None:
    rank = (
        "import json, sys, time; from llmtrain.train.signals import *\n"
        "stop = StopRequest(); stop_with_parent(stop); print('ready', flush=True)\n"
        "while not stop.is_made: time.sleep(0.05)\n"
        f"open({str(tmp_path / 'said')!r}, 'w').write(json.dumps(stop.signal_name))"
    )
    launcher = (
        "import subprocess, sys, os, signal\n"
        f"p = subprocess.Popen([sys.executable, '-c', {rank!r}], stdout=subprocess.PIPE)\n"
        "p.stdout.readline(); os.kill(os.getpid(), signal.SIGKILL)"
    )
    subprocess.run([sys.executable, "-c", launcher], env=dict(os.environ), check=False)
    end_s = time.monotonic() + 60
    while not (tmp_path / "said").is_file() or not (tmp_path / "said").read_text():
        assert time.monotonic() < end_s
        time.sleep(0.05)
    assert json.loads((tmp_path / "said").read_text()) == "the end of the launcher"
    assert signal.getsignal(signal.SIGTERM) is not None
