"""How long training stops for a checkpoint that is written beside it.

    python -m tests.benchmarks.saving --profile cpu-small --steps 24

Every third step is saved. The time from a step's end to the next one's is compared: where a
checkpoint was begun in it, where one was still being sealed, and where there was none.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from llmtrain.engine.api import train
from llmtrain.train.events import Event, Saved, Step
from tests.programs import program_parser

_EVERY_STEPS = 3
_FIRST = 3  # steps that compile and fill caches


def main(arguments: Sequence[str]) -> int:
    """The medians as a line of JSON."""
    values = _parser().parse_args(arguments)
    ends: dict[int, float] = {}
    sealed: dict[int, float] = {}

    def observe(event: Event) -> None:
        if isinstance(event, Step):
            ends[event.step] = time.monotonic()
        elif isinstance(event, Saved):
            sealed[event.step] = time.monotonic()

    settings = {
        "device.kind": values.device,
        "train.steps": values.steps,
        "train.tokens_per_step": 8192,
        "checkpoint.every_steps": _EVERY_STEPS,
        "eval.every_steps": values.steps,
        "eval.tokens": 4096,
        "eval.sample_every_steps": None,
    }
    with tempfile.TemporaryDirectory(prefix="llmtrain-saving-") as scratch:
        out = Path(scratch) / "run"
        result = train(values.profile, settings=settings, out=out, observe=observe)
        assert result.checkpoint is not None
        size_bytes = sum(path.stat().st_size for path in result.checkpoint.iterdir())
    sys.stdout.write(json.dumps(_told(values.profile, size_bytes, ends, sealed)) + "\n")
    return 0


def _told(
    profile: str, size_bytes: int, ends: dict[int, float], sealed: dict[int, float]
) -> dict[str, object]:
    begun, beside, alone = [], [], []
    for step in range(_FIRST + 1, max(ends)):
        took_s = ends[step + 1] - ends[step]
        last_saved = step - step % _EVERY_STEPS
        if step % _EVERY_STEPS == 0:
            begun.append(took_s)
        elif sealed.get(last_saved, 0.0) > ends[step]:
            beside.append(took_s)
        else:
            alone.append(took_s)
    step_s = statistics.median(alone)
    return {
        "profile": profile,
        "checkpoint_bytes": size_bytes,
        "step_s": round(step_s, 3),
        "step_with_a_save_begun_s": round(statistics.median(begun), 3),
        "stall_steps": round((statistics.median(begun) - step_s) / step_s, 3),
        "steps_beside_sealing_s": [round(seconds, 3) for seconds in beside],
    }


def _parser() -> argparse.ArgumentParser:
    parser = program_parser(__file__, __doc__)
    parser.add_argument("--profile", default="cpu-small", help="what is trained")
    parser.add_argument("--steps", type=int, default=24, help="in all")
    parser.add_argument("--device", default="cpu", help="where")
    return parser


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
