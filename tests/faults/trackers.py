"""Trackers that are killed, whose disk is full, or whose server is gone, half-way in a run.

    python -m tests.faults.trackers --steps 200

Each tracker that is installed logs the same training four times: undisturbed, where its own files
must have the curves of metrics.jsonl; with its process killed half-way; with files that cannot
grow; and, where it has a server, with one that goes away half-way. Each training must exit with 0
and end with the weights of the one without a tracker. Prints a line of JSON each; exit code 1 where
a promise was broken. Linux and macOS.
"""

from __future__ import annotations

import argparse
import hashlib
import importlib.util
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import psutil

from tests.checkout import import_path
from tests.faults import tiny
from tests.faults.mlflow_server import MlflowServer
from tests.programs import program_parser
from tests.tracking.curves import READERS, difference, logged

_WORKER = "llmtrain.tracking.worker"
_RUN = """
import sys
from llmtrain.tracking import tracker
tracker._WORKER = sys.argv.pop(1)
from llmtrain.cli.app import main
sys.exit(main())
"""
_REFUSING = "http://127.0.0.1:9"  # the port of `discard`, on which nothing listens
_FAULTS = ("none", "killed", "full disk", "server gone")


def main(arguments: Sequence[str]) -> int:
    """Try every tracker with every fault; 1 where a promise was broken."""
    values = _parser().parse_args(arguments)
    names = [name for name in values.trackers if importlib.util.find_spec(name) is not None]
    broken = 0
    with tempfile.TemporaryDirectory() as place:
        tiny.furnish(Path(place))
        trial = Trial(Path(place), values.steps)
        plain_s = trial.train("plain")[1]
        for name in names:
            for fault in _FAULTS:
                if fault == "server gone" and name in ("tensorboard", "trackio"):
                    continue  # they write files alone
                outcome = trial.outcome(name, fault)
                broken += not outcome["kept"]
                line = {"tracker": name, "fault": fault, **outcome, "plain_s": round(plain_s, 1)}
                sys.stdout.write(json.dumps(line) + "\n")
                sys.stdout.flush()
    return 1 if broken else 0


class Trial:
    """Trainings of one profile in one place, of equal length."""

    def __init__(self, place: Path, steps: int) -> None:
        self._place, self._steps = place, steps

    def outcome(self, name: str, fault: str) -> dict[str, object]:
        """Train with a tracker and a fault; say whether code, weights and curves are right."""
        out = f"{name}-{fault.replace(' ', '-')}"
        with _server(name, fault) as server:
            code, seconds, said = self.train(out, name, fault, server)
        same = _weights(self._place / out) == _weights(self._place / "plain")
        run = self._place / out
        wrong = ""
        if fault == "none":
            wrong = difference(READERS[name](run, self._place / "trackio"), logged(run))
        return {
            "kept": code == 0 and same and not wrong,
            "code": code,
            "same_weights": same,
            "curves": wrong or ("equal" if fault == "none" else "not compared"),
            "warned": "stopped logging" in said or "lines were dropped" in said,
            "seconds": round(seconds, 1),
        }

    def train(
        self, out: str, name: str = "", fault: str = "none", server: MlflowServer | None = None
    ) -> tuple[int, float, str]:
        """Train in a process; return its exit code, seconds, and what it said."""
        worker = f"{_WORKER}:main"
        if fault == "full disk":
            worker = "tests.faults.tracker_process:limited"
        options = ["train", "-p", "tiny.yaml", "--steps", str(self._steps), "--out", out]
        options += ["--log-to", name] if name else []
        begun_s = time.monotonic()
        process = subprocess.Popen(
            [sys.executable, "-c", _RUN, worker, *options, "--quiet"],
            cwd=self._place,
            env=self._environment(name, fault, server),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        )
        if fault in ("killed", "server gone"):
            self._disturb_half_way(process, out, fault, server)
        _, said = process.communicate(timeout=600)
        return process.returncode, time.monotonic() - begun_s, said

    def _environment(self, name: str, fault: str, server: MlflowServer | None) -> dict[str, str]:
        found = {k: v for k, v in os.environ.items() if not k.startswith(("WANDB_", "MLFLOW_"))}
        found |= {"PYTHONPATH": import_path(), "LLMTRAIN_CACHE_DIR": str(self._place / "cache")}
        found |= {"TRACKIO_DIR": str(self._place / "trackio"), "WANDB_SILENT": "true"}
        if server is not None:
            found["MLFLOW_TRACKING_URI"] = server.url
        if name == "wandb" and fault == "server gone":
            found |= {"WANDB_MODE": "online", "WANDB_BASE_URL": _REFUSING}
            found["WANDB_API_KEY"] = "0" * 40  # of no one
        return found

    def _disturb_half_way(
        self,
        process: subprocess.Popen[str],
        out: str,
        fault: str,
        server: MlflowServer | None,
    ) -> None:
        metrics = self._place / out / "metrics.jsonl"
        while process.poll() is None:
            lines = metrics.read_bytes().count(b"\n") if metrics.exists() else 0
            if lines >= self._steps // 2:
                break
            time.sleep(0.05)
        if fault == "server gone" and server is not None:
            server.close()
        elif fault == "killed" and process.poll() is None:
            for child in psutil.Process(process.pid).children(recursive=True):
                if any(_WORKER in word for word in child.cmdline()):
                    child.kill()


@contextmanager
def _server(name: str, fault: str) -> Iterator[MlflowServer | None]:
    """Within the block a server answers MLflow, until the fault or the end."""
    if (name, fault) != ("mlflow", "server gone"):
        yield None
        return
    with MlflowServer() as server:
        yield server


def _weights(run: Path) -> str:
    checkpoints = sorted((run / "checkpoints").glob("step-????????"))
    data = (checkpoints[-1] / "model.safetensors").read_bytes() if checkpoints else b""
    return hashlib.sha256(data).hexdigest()


def _parser() -> argparse.ArgumentParser:
    parser = program_parser(__file__, __doc__)
    add = parser.add_argument
    add("--steps", type=int, default=200, help="of each training")
    add("--trackers", nargs="+", choices=sorted(READERS), default=sorted(READERS), help="of these")
    return parser


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
