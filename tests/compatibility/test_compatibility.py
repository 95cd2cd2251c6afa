"""Runs that earlier versions made are shown, verified, evaluated, used and gone on with.

`make_fixtures.py` made them, with what that version said of each and what its own resume came to.
All but the tokens of a greedy text goes through the command line.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import takewhile
from pathlib import Path
from typing import Any

import pytest

from llmtrain.generate.sampling import Sampling
from llmtrain.train.checkpoint.format import load_checkpoint
from llmtrain.train.model_weights import trained_model
from tests.caches import measured_cache
from tests.checkout import import_path
from tests.sampled import sampled_ids

FIXTURES = Path(__file__).with_name("runs_0_2_0")
EXPECTED: dict[str, Any] = json.loads((FIXTURES / "expected.json").read_text(encoding="utf-8"))
RUNS: dict[str, dict[str, Any]] = EXPECTED["runs"]
# A clock runs from the start of the process, and ranks are started with its arguments.
OF_THEIR_OWN = ("timed", "two")
FINISHED = tuple(name for name, known in RUNS.items() if known["status"] == "done")


@dataclass(frozen=True)
class Outcome:
    """What a command answered."""

    code: int
    out: str
    err: str

    @property
    def document(self) -> dict[str, Any]:
        """The JSON on stdout of a command that succeeded."""
        assert self.code == 0, self.err
        found: dict[str, Any] = json.loads(self.out)
        return found


Command = Callable[..., Outcome]


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working directory: a copy of all runs with their text; measurements are cached."""
    place = tmp_path / "place"
    shutil.copytree(FIXTURES, place)
    monkeypatch.chdir(place)
    monkeypatch.setenv("LLMTRAIN_CACHE_DIR", str(measured_cache(tmp_path / "cache")))
    return place


@pytest.fixture(scope="module")
def environment() -> dict[str, str]:
    """That of processes in which bf16 never pays: products are in fp32 on any processor."""
    return os.environ | {"PYTHONPATH": import_path(), "ONEDNN_MAX_CPU_ISA": "AVX2"}


@pytest.fixture(scope="module")
def server(environment: dict[str, str]) -> Iterator[subprocess.Popen[str]]:
    """A process that runs command lines."""
    script = Path(__file__).with_name("command_lines.py")
    with subprocess.Popen(
        [sys.executable, str(script)],
        env=environment,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        encoding="utf-8",
    ) as process:
        yield process
        assert process.stdin is not None
        process.stdin.close()


@pytest.fixture
def llmtrain(place: Path, server: subprocess.Popen[str]) -> Command:
    """Runs a command line in that process."""

    def call(*words: str) -> Outcome:
        assert server.stdin is not None
        assert server.stdout is not None
        cache = os.environ["LLMTRAIN_CACHE_DIR"]
        request = {"words": words, "directory": str(place), "cache": cache}
        server.stdin.write(json.dumps(request) + "\n")
        server.stdin.flush()
        return Outcome(**json.loads(server.stdout.readline()))

    return call


@pytest.fixture
def process(place: Path, environment: dict[str, str]) -> Command:
    """Runs a command line as a process of its own."""

    def call(*words: str) -> Outcome:
        cache = os.environ["LLMTRAIN_CACHE_DIR"]
        done = subprocess.run(
            [sys.executable, "-m", "llmtrain", *words],
            env=environment | {"LLMTRAIN_CACHE_DIR": cache},
            capture_output=True,
            text=True,
            encoding="utf-8",
            timeout=200,
            check=False,
        )
        return Outcome(done.returncode, done.stdout, done.stderr)

    return call


def test_all_are_listed(llmtrain: Command) -> None:
    rows = llmtrain("runs", "list", ".", "--json").document["runs"]
    found = {row["run"]: (row["step"], row["status"]) for row in rows}
    assert found == {name: (known["step"], known["status"]) for name, known in RUNS.items()}


@pytest.mark.parametrize("name", RUNS)
def test_one_is_shown_and_verified(name: str, llmtrain: Command) -> None:
    known = RUNS[name]
    verified = llmtrain("runs", "verify", name, "--json").document
    assert (len(verified["good"]), verified["damaged"]) == (len(known["checkpoints"]), [])

    shown = llmtrain("runs", "show", name, "--json").document
    told = ("step", "tokens", "train_loss", "val_loss", "checkpoints", "status")
    assert {key: shown[key] for key in told} == {key: known[key] for key in told}
    assert shown["record"]["llmtrain"] == EXPECTED["llmtrain"]


@pytest.mark.parametrize("name", RUNS)
def test_the_model_is_what_it_was(name: str, llmtrain: Command, place: Path) -> None:
    known = RUNS[name]
    evaluated = llmtrain("eval", name, "--json").document
    assert evaluated["loss_nats_per_token"] == pytest.approx(known["eval_loss"], abs=1e-4)
    assert evaluated["tokens"] == known["eval_tokens"]

    drawn = ("--temperature", "0", "--max-tokens", str(EXPECTED["max_tokens"]))
    written = llmtrain("generate", name, "--prompt", EXPECTED["prompt"], *drawn, "--json").document
    assert written["text"]
    assert _text_of_whole_prompt(place / name) == known["text"]


@pytest.mark.parametrize("name", [name for name in RUNS if name not in OF_THEIR_OWN])
def test_one_goes_on(name: str, llmtrain: Command, place: Path) -> None:
    before = _steps_logged(place / name)
    done = resumed(name, llmtrain)

    require_ended_as_before(name, done)
    assert _steps_logged(place / name)[: len(before)] == before  # not begun anew
    assert llmtrain("runs", "verify", name).code == 0


def test_two_processes_go_on(process: Command) -> None:
    require_ended_as_before("two", resumed("two", process))


def test_a_time_goes_on(process: Command, place: Path) -> None:
    """It was stopped on the way, and has the rest of its time, or more on a busy machine."""
    before = _steps_logged(place / "timed")
    for more in ((), ("--time", "40s"), ("--time", "90s")):
        done = resumed("timed", process, *more).document
        assert done["stopped"] == "time"
        if done["steps"] > RUNS["timed"]["step"]:  # else it was over when torch was imported
            break

    assert done["steps"] > RUNS["timed"]["step"]
    assert _steps_logged(place / "timed")[: len(before)] == before
    assert done["val_loss"] < RUNS["timed"]["eval_loss"] + 0.1


@pytest.mark.parametrize("name", FINISHED[:1])
def test_a_finished_one_says_so(name: str, llmtrain: Command, place: Path) -> None:
    outcome = llmtrain("train", "--resume", "auto", "--out", name, "--json")
    assert outcome.document["steps"] == RUNS[name]["step"]
    assert outcome.document["stopped"] == "done"
    assert f"{name} is finished: {RUNS[name]['step']} steps" in outcome.err


def test_a_damaged_checkpoint_is_passed_over(llmtrain: Command, place: Path) -> None:
    older, newest = RUNS["stopped"]["checkpoints"]
    weights = place / "stopped" / "checkpoints" / newest / "model.safetensors"
    content = bytearray(weights.read_bytes())
    content[len(content) // 2] ^= 1
    weights.write_bytes(content)

    verified = llmtrain("runs", "verify", "stopped", "--json")
    assert verified.code == 1
    assert [Path(path).name for path in json.loads(verified.out)["good"]] == [older]

    done = resumed("stopped", llmtrain)
    require_ended_as_before("stopped", done)  # the same steps were done again
    assert "damaged checkpoint" in done.err
    assert (weights.parent.with_name(f"{newest}.damaged")).is_dir()


def resumed(name: str, command: Command, *more: str) -> Outcome:
    """What the run came to in going on as when it was recorded."""
    options = (*RUNS[name]["resume"]["options"], *more)
    return command("train", "--resume", "auto", "--out", name, *options, "--json")


def require_ended_as_before(name: str, outcome: Outcome) -> None:
    """The steps and losses are those that the version which made the run came to."""
    known, done = RUNS[name]["resume"], outcome.document
    told = ("steps", "tokens", "train_loss", "val_loss")
    assert {key: done[key] for key in told} == pytest.approx(
        {key: known[key] for key in told}, rel=1e-4
    )
    assert done["stopped"] == "done"
    assert done["steps"] > RUNS[name]["step"]


def _steps_logged(directory: Path) -> list[dict[str, Any]]:
    lines = (directory / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    return [json.loads(line) for line in lines]


def _text_of_whole_prompt(run: Path) -> str:
    """Return the likeliest text after all tokens of the prompt, of which none is sampled again.

    Version 0.2.0 kept the space at the prompt's end as a token of its own.
    """
    newest = max((run / "checkpoints").glob("step-*"))
    checkpoint = load_checkpoint(newest, with_optimizer=False)
    tokenizer = checkpoint.tokenizer
    prompt = [tokenizer.separator_id, *tokenizer.encode(EXPECTED["prompt"])]
    ids = sampled_ids(
        trained_model(checkpoint.shape, checkpoint.weights, "it").eval(),
        prompt,
        Sampling(temperature=0),
        tokenizer.vocab_size,
        EXPECTED["max_tokens"],
    )
    return tokenizer.decode(list(takewhile(lambda token: token != tokenizer.separator_id, ids)))
