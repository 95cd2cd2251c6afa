"""A fault at every operation of a save: what then still loads?

    python -m tests.faults.saves

Every write, sync, rename, removal and creation of a save with its thinning out is counted, and the
save is repeated once for each of them with a full disk from there on, a disk that fails there, and
a SIGKILL there: for a new step, and for a step that was saved before. Each time the newest
checkpoint that loads must be the one before or the new one, bit for bit, and nothing hidden be
left after the recovery that a resume begins with. Prints a line of JSON a kind; exit code 1 where
a promise was broken. Linux with a C compiler only.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import signal
import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import torch

from llmtrain.errors import LlmtrainError
from llmtrain.profile.schema import CheckpointSection, ModelSection
from llmtrain.profile.shape import shape_of
from llmtrain.tokenizer import train_tokenizer
from llmtrain.train.checkpoint.format import Checkpoint, SavedState, load_checkpoint, newest_good
from llmtrain.train.checkpoint.names import step_of
from llmtrain.train.checkpoint.saver import Saver
from llmtrain.train.checkpoint.writing import recover
from llmtrain.train.divergence.policy import DivergenceState
from tests.faults import shim
from tests.faults.shim import Kind

_SHAPE = shape_of(
    ModelSection(
        vocab_size=300, hidden_size=8, intermediate_size=12, num_layers=1, num_heads=2, context=8
    )
)
_OPTIONS = CheckpointSection(keep_last=1, keep_best=False)


def main(arguments: Sequence[str]) -> int:
    """Every point of every kind; with the shim preloaded by another start of this module."""
    parser = argparse.ArgumentParser(prog="python -m tests.faults.saves")
    parser.add_argument("--preloaded", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--every", type=int, default=1, help="only every n-th operation")
    values = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory(prefix="llmtrain-saves-") as scratch:
        if not values.preloaded:
            library = shim.build(Path(scratch))
            again = ["--preloaded", f"--every={values.every}"]
            return shim.run_preloaded("tests.faults.saves", again, library)
        torch.set_num_threads(1)
        return _strike_everywhere(Path(scratch), values.every)


def _strike_everywhere(scratch: Path, every: int) -> int:
    armed, original, broken = shim.Armed(), small_checkpoint(1), 0
    for name, step in (("a new step", 3), ("the same step", 2)):
        place = _place(scratch, original)
        armed.arm(0, Kind.COUNT, place)
        _save(place, at_step(original, step))
        points = armed.disarm()
        for kind in (Kind.FULL, Kind.FAILING, Kind.KILL):
            ends: Counter[str] = Counter()
            for at in range(1, points + 1, every):
                place = _place(scratch, original)
                ended = _struck(armed, at, kind, place, at_step(original, step))
                ends[f"{ended}, {_checked(place, step)}"] += 1
            broken += sum(count for end, count in ends.items() if "BROKEN" in end)
            line = {"saving": name, "operations": points, "kind": kind.name.lower(), "ends": ends}
            sys.stdout.write(json.dumps(line) + "\n")
            sys.stdout.flush()
    return 1 if broken else 0


def _struck(armed: shim.Armed, at: int, kind: Kind, place: Path, checkpoint: Checkpoint) -> str:
    """How a save with a fault ended."""
    if kind is Kind.KILL:
        return _in_child(lambda: armed.arm(at, kind, place), place, checkpoint)
    armed.arm(at, kind, place)
    try:
        _save(place, checkpoint)
    except LlmtrainError:
        return "refused"
    finally:
        armed.disarm()
    return "saved"


def _in_child(arm: Callable[[], None], place: Path, checkpoint: Checkpoint) -> str:
    child = os.fork()
    if child == 0:
        arm()
        _save(place, checkpoint)
        os._exit(0)
    _, status = os.waitpid(child, 0)
    return "killed" if os.waitstatus_to_exitcode(status) == -signal.SIGKILL else "saved"


def _checked(place: Path, step: int) -> str:
    """What a resume finds, or the promise that was broken."""
    recover(place)
    found = newest_good(place, lambda path, problem: None)
    if found is None or step_of(found) not in (2, step):
        return f"BROKEN: {found}"
    weights, expected = load_checkpoint(found).weights, small_checkpoint(step_of(found)).weights
    if any(not torch.equal(weights[name], expected[name]) for name in expected):
        return "BROKEN: other weights"
    if hidden := [path.name for path in place.iterdir() if path.name.startswith(".")]:
        return f"BROKEN: {hidden} are left"
    return "the new one loads" if _is_new(found, step) else "the one before loads"


def _is_new(found: Path, step: int) -> bool:
    return load_checkpoint(found).state.step == step and load_checkpoint(found).state.finished


def _save(place: Path, checkpoint: Checkpoint) -> None:
    saver = Saver(place, _OPTIONS, lambda saved: None)
    try:
        saver.save(checkpoint, in_background=False)
    finally:
        saver.close()


def _place(scratch: Path, checkpoint: Checkpoint) -> Path:
    """A directory with checkpoints of steps 1 and 2."""
    place, model = scratch / "place", scratch / "model"
    shutil.rmtree(place, ignore_errors=True)
    if not model.exists():
        for step in (1, 2):
            _save(model, replace(at_step(checkpoint, step), state=_state(step, finished=False)))
    shutil.copytree(model, place)
    return place


def small_checkpoint(step: int) -> Checkpoint:
    """A checkpoint of a finished run whose weights say which step they are of."""
    text = ["def f(x):\n    return x\n" * 20]
    tokenizer = train_tokenizer(text, vocab_size=300).tokenizer
    return at_step(Checkpoint(_state(step), {}, {}, _SHAPE, tokenizer), step)


def at_step(checkpoint: Checkpoint, step: int) -> Checkpoint:
    """The same of another step, and with that step's weights, of a few pages."""
    weights = {"w": torch.arange(20_000.0) + step, "v": torch.full((3, 5), float(step))}
    return replace(checkpoint, state=_state(step), weights=weights, optimizer={"w.m": weights["w"]})


def _state(step: int, *, finished: bool = True) -> SavedState:
    return SavedState(
        step=step,
        tokens=step,
        windows=step,
        elapsed_s=1.0,
        horizon_steps=None,
        torch_rng="c2VlZA==",
        course=DivergenceState(),
        numerics={},
        finished=finished,
    )


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
