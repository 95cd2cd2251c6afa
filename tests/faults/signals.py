"""A signal in each phase of a run: `python -m tests.faults.signals [--times 10] [--phase NAME]`.

Each time the run has to be out within a step and ten seconds, with 75, saved, and nothing half-made
left behind. Prints the slowest of each phase, and ends with 1 where one failed.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from llmtrain.engine.prove_resume.observe import Watch
from llmtrain.profile.schema import EvalSection
from llmtrain.train.checkpoint.format import load_checkpoint
from llmtrain.train.checkpoint.names import list_checkpoints
from llmtrain.train.run_directory.directory import RunDirectory
from tests.faults.tiny import furnish

LIMIT_S = 10.0  # beside one step
_PATIENCE_S = 120.0  # for a phase to come
_STOPPING = (signal.SIGTERM, signal.SIGINT)
_SETTINGS = {
    "train.steps": 10**6,
    "eval.every_steps": 10**6,
    "eval.sample_every_steps": 10**6,
    "device.compile": False,  # a run of so many steps would try it
}


@dataclass(frozen=True)
class Scene:
    """What can be seen of a process from outside."""

    log: Path
    cache: Path
    watch: Watch

    def says(self, words: str) -> bool:
        """A line of its stderr begins so."""
        return f"\n{words}" in "\n" + self.log.read_text(encoding="utf-8", errors="replace")


@dataclass(frozen=True)
class Moment:
    """A phase: how to see that it has begun, and for how long at least it goes on."""

    has_come: Callable[[Scene], bool]
    length_s: float
    settings: dict[str, Any] = field(default_factory=dict)
    data: str = "corpus.txt"
    is_prepared: bool = True  # the cache has tokenizer, shards and what was measured


MOMENTS = {
    "planning": Moment(lambda s: (s.cache / "probe").is_dir(), 0.5, is_prepared=False),
    "probing a block": Moment(
        lambda s: s.says("compiling one block"), 4, {"device.compile": "auto"}, is_prepared=False
    ),
    "learning a tokenizer": Moment(
        lambda s: s.says("training a tokenizer"),
        2,
        {"model.vocab_size": 3000},
        data="big.txt",
        is_prepared=False,
    ),
    "tokenizing": Moment(
        lambda s: s.says("tokenizing"),
        1,
        {"data.tokenizer": "tokenizer"},
        data="big.txt",
        is_prepared=False,  # a text that was tokenized once is not again
    ),
    "compiling": Moment(lambda s: s.says("training run"), 6, {"device.compile": True}),
    "step": Moment(
        lambda s: s.watch.phase() == "step" and s.watch.step > 0,
        1,
        {"train.tokens_per_step": 32768, "train.micro_batch": 64},
    ),
    "evaluation": Moment(
        lambda s: s.watch.phase() == "evaluation",
        0.2,
        {"eval.every_steps": 1, "eval.tokens": 10**6},
    ),
    "sampling": Moment(
        lambda s: s.watch.phase() == "sampling",
        0.2,
        {"eval.every_steps": 1, "eval.sample_every_steps": 1}
        | {"eval.tokens": 32, "eval.sample_tokens": 2000},
    ),
    "save": Moment(
        lambda s: s.watch.phase() == "save",
        0.05,
        {"checkpoint.every_steps": 1, "model.intermediate_size": 8192},
    ),
}


@dataclass(frozen=True)
class Outcome:
    """How a run answered a signal."""

    seconds: float  # from the signal to the end of the process
    step_s: float  # what a step took
    steps: int
    problem: str | None


def kill_at(moment: Moment, number: int, draw: random.Random) -> Outcome:
    """A run in the current directory that gets the signal at that moment."""
    cache = Path("prepared" if moment.is_prepared else "fresh")
    for left in ("run", "fresh", "kernels"):
        shutil.rmtree(left, ignore_errors=True)
    settings = _SETTINGS | moment.settings
    options = EvalSection(
        every_steps=settings["eval.every_steps"],
        sample_every_steps=settings["eval.sample_every_steps"],
    )
    scene = Scene(Path("log"), cache, Watch(RunDirectory(Path("run")), cache, options, 10**6))
    flags = [f"--set={name}={value}" for name, value in settings.items()]
    command = ["train", "-p", "tiny.yaml", "--data", moment.data, "--out", "run", "--json", *flags]
    with scene.log.open("wb") as words, Path("answer").open("wb") as answer:
        process = _started(command, cache, stdout=answer, stderr=words)
    try:
        _wait_for(lambda: moment.has_come(scene), process)
        time.sleep(draw.uniform(0, moment.length_s))
        begun_s = time.monotonic()
        process.send_signal(number)
        process.wait(_PATIENCE_S)
        return _outcome(process.returncode, time.monotonic() - begun_s, cache)
    except (TimeoutError, subprocess.TimeoutExpired) as error:
        return Outcome(0.0, 0.0, 0, str(error))
    finally:
        process.kill()
        process.wait()


def _started(command: list[str], cache: Path, **streams: Any) -> subprocess.Popen[bytes]:
    kernels = {"TORCHINDUCTOR_CACHE_DIR": str(Path("kernels").absolute())}
    environment = os.environ | kernels | {"LLMTRAIN_CACHE_DIR": str(cache.absolute())}
    return subprocess.Popen(
        [sys.executable, "-m", "llmtrain", *command], env=environment, **streams
    )


def _wait_for(has_come: Callable[[], bool], process: subprocess.Popen[bytes]) -> None:
    end_s = time.monotonic() + _PATIENCE_S
    while not has_come():
        if process.poll() is not None or time.monotonic() > end_s:
            raise TimeoutError(f"the phase did not come; exit code {process.poll()}")
        time.sleep(0.001)


def _outcome(code: int, seconds: float, cache: Path) -> Outcome:
    """What is left behind is judged."""
    run = RunDirectory(Path("run"))
    times = [line["elapsed_s"] for line in run.read_metrics() if "loss" in line]
    step_s = max((b - a for a, b in itertools.pairwise(times)), default=0.0)
    problem, steps = None, 0
    try:
        answer = json.loads(Path("answer").read_text(encoding="utf-8"))
        steps = int(answer.get("steps", -1))
        newest = list_checkpoints(run.checkpoints)[-1:]
        saved = load_checkpoint(newest[0]).state.step if newest else 0
        half_made = [*_hidden(run.path), *_hidden(cache)]
        if code != 75 or answer.get("stopped") != "interrupted":
            problem = f"exit code {code}: {Path('log').read_text(encoding='utf-8')[-800:]}"
        elif saved != steps or half_made:
            problem = f"{steps} steps, {saved} saved, half-made: {half_made}"
        elif seconds > step_s + LIMIT_S:
            problem = f"{seconds:.1f} s"
    except ValueError as error:
        problem = f"exit code {code}: {error}: {Path('log').read_text(encoding='utf-8')[-800:]}"
    return Outcome(seconds, step_s, steps, problem)


def _hidden(directory: Path) -> list[str]:
    return [str(path) for path in directory.rglob(".*")]


def prepare(*, big: bool) -> None:
    """The current directory has profile, texts, big ones too, a tokenizer and a cache."""
    furnish(Path())
    draw = random.Random(1)
    if big:
        words = ("".join(draw.choices("abcdefghijklm", k=draw.randint(3, 9))) for _ in range(10**6))
        Path("big.txt").write_text("".join(f"{word}\n" for word in words), encoding="utf-8")
    command = ["train", "-p", "tiny.yaml", "--out", "first", "--steps", "1", "-q"]
    if _started(command, Path("prepared")).wait():
        raise SystemExit("the tiny profile does not train")
    shutil.copytree("first/checkpoints/step-00000001", "tokenizer")


def main() -> int:
    """0 where every run was out in time, saved."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--times", type=int, default=10)
    parser.add_argument("--phase", choices=list(MOMENTS), action="append")
    options = parser.parse_args()
    failed = 0
    with tempfile.TemporaryDirectory(prefix="llmtrain-signals-") as directory:
        os.chdir(directory)
        prepare(big=True)
        for name in options.phase or MOMENTS:
            draw = random.Random(name)
            found = [kill_at(MOMENTS[name], _STOPPING[i % 2], draw) for i in range(options.times)]
            problems = [outcome.problem for outcome in found if outcome.problem]
            failed += len(problems)
            sys.stdout.write(
                f"{name:<22}{len(found) - len(problems)} of {len(found)} well, slowest "
                f"{max(o.seconds for o in found):.1f} s, a step "
                f"{max(o.step_s for o in found):.2f} s {' | '.join(problems)}\n"
            )
            sys.stdout.flush()
        os.chdir("/")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
