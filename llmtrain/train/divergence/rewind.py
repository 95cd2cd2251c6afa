"""What a run does about steps that were skipped: it tells of them, is rewound, or ends.

A rewind goes to the step that `Course.rewind_step` says, wherever the run happens to be saved: from
the nearest state before, the steps up to there are computed again, bit for bit where training is
exact, and there the data cursor jumps to where it was. So a run that was interrupted, and has other
checkpoints for it, is rewound as one that was not.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterable
from pathlib import Path

import torch

from llmtrain.data.trace import trace_passages
from llmtrain.errors import DivergedError, LlmtrainError
from llmtrain.profile.schema import Profile
from llmtrain.tokenizer import Tokenizer
from llmtrain.train.build import rewind_run
from llmtrain.train.checkpoint.format import (
    SavedState,
    is_of,
    list_checkpoints,
    load_checkpoint,
    step_of,
)
from llmtrain.train.divergence.diagnosis import describe, describe_batch, diagnose, passages
from llmtrain.train.divergence.policy import BAD_STEPS_WITHIN, DivergenceState
from llmtrain.train.logger import Reporter
from llmtrain.train.loop import Run, StepReport
from llmtrain.train.run_directory.directory import RunDirectory

# Computing more than this again costs more than it is worth, where a later state is to be had.
_LONGEST_REPLAY_STEPS = 1000
_TRACING_LIMIT_S = 20.0


class Recovery:
    """All ranks of a run ask for the same things at the same steps."""

    def __init__(
        self,
        run: Run,
        profile: Profile,
        directory: RunDirectory,
        tokenizer: Tokenizer,
        reporter: Reporter,
    ) -> None:
        self._run = run
        self._profile = profile
        self._directory = directory
        self._tokenizer = tokenizer
        self._reporter = reporter
        self._trouble: str | None = None
        self._passages: list[str] = []
        self._rewinds = 0  # of this sitting

    def look_at(self, report: StepReport) -> None:
        """A step that was skipped is told, and a cursor that has jumped."""
        verdict, begun_s = report.verdict, time.monotonic()
        if verdict.skipped is not None:
            why = self._why(report.first_window, is_finite=verdict.is_finite)
            self._trouble = f"{verdict.skipped} at learning rate {report.lr:g}; {why}"
            self._reporter.skipped(report.step, self._trouble)
            self._reporter.pause(time.monotonic() - begun_s)
        self._tell_of_jump()

    def rewound(self, state: SavedState) -> SavedState | None:
        """The state that the run now has if it had to be rewound; None if it goes on.

        Raises DivergedError where rewinding has not helped.
        """
        run, begun_s = self._run, time.monotonic()
        if run.course.answer == "go on":
            return None
        if run.course.answer == "stop":
            raise self._diverged()
        from_step, (base, target) = run.position.step, self._agreed_base()
        run.course = run.course.rewound(target, run.position.windows, from_step)
        checkpoint = load_checkpoint(base) if base is not None else None
        rewind_run(run, self._profile.train.seed, checkpoint)
        if run.world.is_main:
            self._directory.cut_after(run.position.step)
        self._reporter.rewound(from_step, target)
        if run.position.step == target:
            self._tell_of_jump()
        self._reporter.pause(time.monotonic() - begun_s)
        return _state_at(checkpoint.state if checkpoint is not None else None, state)

    def _why(self, first_window: int, *, is_finite: bool) -> str:
        if is_finite:
            return describe_batch(self._run, self._tokenizer, first_window)
        found = diagnose(self._run, first_window)
        self._passages = passages(self._run, self._tokenizer, first_window, found)
        if found is not None and found.place == "weight":
            self._run.course = self._run.course.model_copy(update={"is_lost": True})
        return describe(self._run, self._tokenizer, first_window, found)

    def _tell_of_jump(self) -> None:
        position = self._run.position
        for jump in self._run.course.jumps:
            if jump.step == position.step:
                self._reporter.jumped(jump)

    def _diverged(self) -> DivergedError:
        run, course = self._run, self._run.course
        trouble = (self._trouble or self._trouble_before()) + self._documents()
        newest = next(reversed(list_checkpoints(self._directory.checkpoints)), None)
        saved = "nothing was saved" if newest is None else f"the last checkpoint is {newest}"
        return DivergedError(
            f"step {run.position.step}: {trouble}; of the last {BAD_STEPS_WITHIN} steps "
            f"{len(course.bad_steps)} were bad, after {course.rewinds} rewinds; {saved}",
            hint=f"--set optim.learning_rate={run.peak_learning_rate / 2:g}, or see what was "
            f"trained with: llmtrain runs show {self._directory.path}",
        )

    def _documents(self) -> str:
        """The files that the text is in; looked for by rank 0, and the others wait for it."""
        data = self._profile.data

        def find() -> str:
            return " and ".join(
                trace_passages(
                    self._passages,
                    data.specs,
                    data.text_field,
                    limit_s=_TRACING_LIMIT_S,
                    include=data.include,
                    exclude=data.exclude,
                )
            )

        origins = self._run.world.from_main("documents", find)
        return f", in {origins}" if origins else ""

    def _trouble_before(self) -> str:
        """Of the last step of the sitting before this one."""
        run, position = self._run, self._run.position
        lr = run.peak_learning_rate * run.schedule.factor(position.step - 1, position.progress)
        why = self._why(position.windows - run.windows_per_step, is_finite=False)
        return f"it was not finite at learning rate {lr:g}; {why}"

    def _agreed_base(self) -> tuple[Path | None, int]:
        """The checkpoint to go on from, None for the beginning, and the step to rewind to."""
        self._rewinds += 1

        def find() -> str:
            base, target = self._base()
            return json.dumps([None if base is None else str(base), target])

        path, target = json.loads(self._run.world.from_main(f"rewind {self._rewinds}", find))
        return None if path is None else Path(path), target

    def _base(self) -> tuple[Path | None, int]:
        course = self._run.course
        target = course.rewind_step
        own = [p for p in list_checkpoints(self._directory.checkpoints) if is_of(course, p)]
        base = _first_whole(p for p in reversed(own) if step_of(p) <= target)
        if target - (0 if base is None else step_of(base)) <= _LONGEST_REPLAY_STEPS:
            return base, target
        # from a state before the last sound step a sound one was taken: it is a good one
        later = _first_whole(p for p in own if target < step_of(p) < course.sound_step)
        return (base, target) if later is None else (later, step_of(later))


def _first_whole(paths: Iterable[Path]) -> Path | None:
    """The first checkpoint that verifies and whose weights are all finite."""
    for path in paths:
        try:
            weights = load_checkpoint(path, with_optimizer=False).weights
        except LlmtrainError:
            continue
        if all(bool(torch.isfinite(weight).all()) for weight in weights.values()):
            return path
    return None


def _state_at(base: SavedState | None, now: SavedState) -> SavedState:
    """What was known of the run at `base`, or at its beginning, and is still so."""
    if base is None:
        base = SavedState(
            step=0,
            tokens=0,
            windows=0,
            elapsed_s=now.elapsed_s,
            horizon_steps=None,
            torch_rng=now.torch_rng,
            course=DivergenceState(),
            numerics=now.numerics,
        )
    return base.model_copy(
        update={
            "numerics": now.numerics,
            "not_bitwise_from_step": now.not_bitwise_from_step,
            "peak_memory_bytes": now.peak_memory_bytes,
        }
    )
