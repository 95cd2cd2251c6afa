"""What a process held and how it ended is known, whatever it does."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from tests.benchmarks.process import Finished, run_measured, tail

MIB = 2**20
ROOT = Path(__file__).parents[2]

MEASURING = """\
import json, os, signal, sys
from dataclasses import asdict
from pathlib import Path
from tests.benchmarks.process import run_measured
signal.signal(signal.SIGINT, signal.default_int_handler)  # whoever started the tests may ignore it
log = Path(sys.argv[1])
finished = run_measured([sys.executable, "-c", sys.argv[2]], os.environ, log, log.parent)
print(json.dumps(asdict(finished)))
"""


def measured(code: str, log: Path) -> Finished:
    """`code`, measured by a process as small as the one that compares: see the last test."""
    done = subprocess.run(
        [sys.executable, "-c", MEASURING, str(log), code],
        capture_output=True,
        text=True,
        check=True,
        cwd=ROOT,
    )
    return Finished(**json.loads(done.stdout))


def is_running(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def test_the_peak_is_known_even_if_nobody_looked_at_it(tmp_path: Path) -> None:
    code = "held = b'x' * (200 << 20)\ndel held\nimport time\ntime.sleep(0.2)"
    finished = measured(code, tmp_path / "log")
    assert finished.exit_code == 0
    assert 200 * MIB < finished.peak_process_bytes < 250 * MIB
    assert finished.peak_tree_bytes >= finished.peak_process_bytes


def test_what_a_grandchild_held_counts(tmp_path: Path) -> None:
    inner = "held = b'x' * (150 << 20)\nimport time\ntime.sleep(0.2)"
    code = f"import subprocess, sys\nsubprocess.run([sys.executable, '-c', {inner!r}])"
    finished = measured(code, tmp_path / "log")
    assert 150 * MIB < finished.peak_tree_bytes < 220 * MIB


def test_a_failure_keeps_its_code_and_its_last_words(tmp_path: Path) -> None:
    log = tmp_path / "log"
    code = "import sys\nfor i in range(99): sys.stderr.write(f'line {i}\\n')\nsys.exit(3)"
    finished = run_measured([sys.executable, "-c", code], os.environ, log, tmp_path)
    assert finished.exit_code == 3
    assert tail(log).splitlines()[-1] == "line 98"
    assert len(tail(log).splitlines()) == 15


@pytest.mark.skipif(sys.platform == "win32", reason="signals")
def test_an_interrupt_ends_the_whole_tree(tmp_path: Path) -> None:
    log, started = tmp_path / "log", tmp_path / "started"
    inner = f"import pathlib, os, time; pathlib.Path({str(started)!r}).write_text(str(os.getpid()))"
    inner += "; time.sleep(60)"
    code = f"import subprocess, sys\nsubprocess.run([sys.executable, '-c', {inner!r}])"
    with subprocess.Popen(
        [sys.executable, "-c", MEASURING, str(log), code],
        cwd=ROOT,
        stderr=subprocess.DEVNULL,
    ) as measuring:
        while not (started.exists() and started.read_text()):
            assert measuring.poll() is None
        os.kill(measuring.pid, 2)
        measuring.wait(20)
    # Bounded here: a time limit of the tests that ends it while psutil reads leaves a file open.
    end_s = time.monotonic() + 20
    while is_running(int(started.read_text())):
        assert time.monotonic() < end_s
        time.sleep(0.05)


def test_the_environment_is_handed_on(tmp_path: Path) -> None:
    code = "import os, sys; sys.exit(int(os.environ['LLMTRAIN_PROBE_OF_BENCH']))"
    environment = {**os.environ, "LLMTRAIN_PROBE_OF_BENCH": "7"}
    log = tmp_path / "log"
    finished = run_measured([sys.executable, "-c", code], environment, log, tmp_path)
    assert finished.exit_code == 7


def test_the_process_that_compares_is_small() -> None:
    # The kernel counts what a parent holds as the child's until it has started.
    code = "import tests.benchmarks.compare, json, sys\nprint(json.dumps(sorted(sys.modules)))"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT
    )
    assert not {"torch", "numpy", "transformers"} & set(json.loads(done.stdout))
