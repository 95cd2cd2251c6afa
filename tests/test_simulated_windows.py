"""Training, resuming and using a model on a simulated Windows: see tests/simulated_windows.py."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.checkout import ROOT
from tests.cli.conftest import PROFILE

pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="simulated on Linux")


def run(place: Path, *commands: list[str], program: str = "") -> subprocess.CompletedProcess[bytes]:
    """Run command lines, or a program, on a simulated Windows."""
    file = place / "commands.json"
    file.write_text(json.dumps(commands), encoding="utf-8")
    code = program or "from tests.simulated_windows import main; main()"
    return subprocess.run(
        [sys.executable, "-W", "error::ResourceWarning", "-c", code, str(file)],
        cwd=place,
        env={**os.environ, "PYTHONPATH": str(ROOT), "LLMTRAIN_CACHE_DIR": str(place / "cache")},
        capture_output=True,
        check=False,
        timeout=250,
    )


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """A directory with a profile and a text."""
    (tmp_path / "tiny.yaml").write_text(PROFILE, encoding="utf-8")
    words = "the quick brown fox jumps over a lazy dog of letters €–\n"
    (tmp_path / "corpus.txt").write_text(words * 800, encoding="utf-8")
    return tmp_path


@pytest.mark.slow
def test_a_run_is_trained_resumed_and_used(place: Path) -> None:
    train = ["train", "-p", "tiny.yaml", "--out", "run"]
    done = run(
        place,
        ["device", "info", "-p", "tiny.yaml"],
        [*train, "--steps", "20"],
        [*train, "--steps", "30", "--resume", "auto"],
        ["runs", "verify", "run"],
        ["runs", "list", "."],
        ["runs", "show", "run"],
        ["eval", "run", "--json"],
        ["generate", "run", "--prompt", "the €", "--max-tokens", "8"],
        ["memory", "--json"],
        ["data", "cache", "list"],
        ["data", "cache", "clear", "--all", "--yes"],
        ["runs", "rm", "run", "--yes"],
    )
    assert done.returncode == 0, done.stdout.decode("cp1252") + done.stderr.decode("cp1252")
    assert not (place / "run").exists()
    assert b"Traceback" not in done.stderr
    assert b"still holds" not in done.stderr
    assert "the €".encode() in done.stdout  # not on a console: UTF-8


def test_what_is_simulated_is_there(place: Path) -> None:
    """An open file is not renamed, a mapped one not removed, and there is no fork."""
    program = """if True:
        import mmap, os, sys
        from pathlib import Path
        from tests.simulated_windows import simulate
        simulate()
        from llmtrain import files
        from llmtrain.train import signals
        assert files.sys.platform == "win32" and not hasattr(files.os, "fork")
        assert signals.save_signals() == [] and not hasattr(signals.signal, "SIGHUP")
        def refused(function):
            try:
                function()
            except PermissionError as error:
                return error.winerror == 32
            return False
        Path("a").write_text("x")
        Path("directory").mkdir()
        Path("directory/b").write_text("x")
        with open("a"):
            assert refused(lambda: Path("a").replace("c")) and refused(lambda: os.unlink("a"))
        with open("directory/b") as file:
            assert refused(lambda: Path("directory").rename("other"))
            mapped = mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ)
        assert refused(lambda: Path("directory/b").unlink())
        mapped.close()
        Path("directory").rename("other")
        Path("a").replace("other/b")
        try:
            Path("other/b").rename("other/b2")
            Path("a").write_text("y")
            Path("a").rename("other/b2")
            raise SystemExit("replaced")
        except FileExistsError:
            pass
        try:
            exec("import fcntl", {"__name__": "llmtrain.a"})
        except ImportError:
            print("as on Windows")
    """
    done = run(place, program=program)
    assert done.stdout.split() == [b"as", b"on", b"Windows"], done.stderr.decode()
