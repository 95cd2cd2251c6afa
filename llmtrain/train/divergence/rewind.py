"""What a run does about skipped steps: it explains them, is rewound, or ends.

A rewind goes to the step that `DivergenceState.rewind_step` names, whichever checkpoints exist.
From the nearest checkpoint before it the steps are recomputed, bit for bit where training is
deterministic, and at that step the data cursor jumps to where it was. So a run that was interrupted
and has other checkpoints for it is rewound like one that was not.
"""

from __future__ import annotations

import json
import shlex
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import torch

from llmtrain.data.trace import trace_passages
from llmtrain.errors import DivergedError
from llmtrain.profile.schema import Profile
from llmtrain.tokenizer import Tokenizer
from llmtrain.train.build import rewind_run
from llmtrain.train.checkpoint.format import SavedState, is_on_current_path, load_checkpoint
from llmtrain.train.checkpoint.integrity import DamagedCheckpointError, verify_checkpoint
from llmtrain.train.checkpoint.names import list_checkpoints, step_of
from llmtrain.train.divergence.diagnosis import describe, describe_batch, diagnose, passages
from llmtrain.train.divergence.policy import BAD_STEPS_WITHIN
from llmtrain.train.loop import Run, StepReport
from llmtrain.train.run_directory.directory import RunDirectory
from llmtrain.train.state import rewound_state

# A later checkpoint is preferred to recomputing more steps than this.
_LONGEST_REPLAY_STEPS = 1000
_TRACE_LIMIT_S = 20.0


@dataclass(frozen=True, slots=True)
class Rewind:
    """A rewind that was done: the run now stands at `state`, on its way to `to_step`."""

    from_step: int
    to_step: int
    state: SavedState


class Rewinder:
    """Explains and rewinds; all ranks have to ask for the same at the same steps."""

    def __init__(
        self, run: Run, profile: Profile, directory: RunDirectory, tokenizer: Tokenizer
    ) -> None:
        self._run = run
        self._profile = profile
        self._directory = directory
        self._tokenizer = tokenizer
        self._explanation: str | None = None
        self._passages: list[str] = []
        self._rewinds = 0  # of this session

    def explain(self, report: StepReport) -> str:
        """Return why a step was skipped: its numbers, the module and the text that caused them."""
        why = self._cause(report.first_window, is_finite=report.verdict.is_finite)
        self._explanation = f"{report.verdict.skipped} at learning rate {report.lr:g}; {why}"
        return self._explanation

    def rewind_if_due(self, state: SavedState) -> Rewind | None:
        """Rewind the run if skipping has not helped.

        Raises DivergedError if rewinding has not helped either.
        """
        run = self._run
        if run.divergence.action == "continue":
            return None
        if run.divergence.action == "stop":
            raise self._diverged()
        from_step, (base, target) = run.position.step, self._agreed_base()
        run.divergence = run.divergence.with_rewind(target, run.position.windows, from_step)
        checkpoint = load_checkpoint(base) if base is not None else None
        rewind_run(run, self._profile.train.seed, checkpoint)
        if run.world.is_main:
            self._directory.cut_after(run.position.step)
        base_state = checkpoint.state if checkpoint is not None else None
        return Rewind(from_step, target, rewound_state(state, base_state))

    def _cause(self, first_window: int, *, is_finite: bool) -> str:
        # Of a local step only this rank knows, and a diagnosis needs all of them.
        if is_finite or self._run.rounds is not None:
            return describe_batch(self._run, self._tokenizer, first_window)
        found = diagnose(self._run, first_window)
        self._passages = passages(self._run, self._tokenizer, first_window, found)
        if found is not None and found.place == "weight":
            self._run.divergence = self._run.divergence.model_copy(update={"is_lost": True})
        return describe(self._run, self._tokenizer, first_window, found)

    def _diverged(self) -> DivergedError:
        run, divergence = self._run, self._run.divergence
        explanation = self._explain_last() + self._source_files()
        newest = next(reversed(list_checkpoints(self._directory.checkpoints)), None)
        saved = "nothing was saved" if newest is None else f"the last checkpoint is {newest}"
        return DivergedError(
            f"step {run.position.step}: {explanation}; of the last {BAD_STEPS_WITHIN} steps "
            f"{len(divergence.bad_steps)} were bad, after {divergence.rewinds} rewinds; {saved}",
            hint=f"--set optim.learning_rate={run.peak_learning_rate / 2:g}, or show the data and "
            f"settings of the run: llmtrain runs show {shlex.quote(str(self._directory.path))}",
        )

    def _source_files(self) -> str:
        """Return the files that contain the text; rank 0 searches and the others wait."""
        data = self._profile.data

        def find() -> str:
            return " and ".join(
                trace_passages(
                    self._passages,
                    data.specs,
                    data.text_field,
                    limit_s=_TRACE_LIMIT_S,
                    include=data.include,
                    exclude=data.exclude,
                )
            )

        origins = self._run.world.broadcast_from_main("documents", find)
        return f", in {origins}" if origins else ""

    def _explain_last(self) -> str:
        """Return why the last step was bad, or which ranks' steps of the last round were.

        This rank's own explanation is not that of another rank's step.
        """
        rounds = self._run.rounds
        if rounds is None or (rounds.left_out.keys() == {rounds.world.rank} and self._explanation):
            return self._explanation or self._explain_last_step()
        return rounds.describe_left_out() or "a step of one of the ranks was not finite"

    def _explain_last_step(self) -> str:
        """Explain the last step of the session before this one."""
        run, position = self._run, self._run.position
        lr = run.peak_learning_rate * run.schedule.factor(position.step - 1, position.progress)
        why = self._cause(position.windows - run.windows_per_step, is_finite=False)
        return f"it was not finite at learning rate {lr:g}; {why}"

    def _agreed_base(self) -> tuple[Path | None, int]:
        """Return rank 0's `_base` on every rank."""
        self._rewinds += 1

        def find() -> str:
            base, target = self._base()
            return json.dumps([None if base is None else str(base), target])

        path, target = json.loads(
            self._run.world.broadcast_from_main(f"rewind {self._rewinds}", find)
        )
        return None if path is None else Path(path), target

    def _base(self) -> tuple[Path | None, int]:
        """Return the checkpoint to load (None: the run's beginning) and the step to rewind to."""
        divergence = self._run.divergence
        target = divergence.rewind_step
        own = [
            p
            for p in list_checkpoints(self._directory.checkpoints)
            if is_on_current_path(divergence, p)
        ]
        base = _first_finite(p for p in reversed(own) if step_of(p) <= target)
        if target - (0 if base is None else step_of(base)) <= _LONGEST_REPLAY_STEPS:
            return base, target
        # A checkpoint before the last sound step is good: a sound step followed it.
        later = _first_finite(p for p in own if target < step_of(p) < divergence.sound_step)
        return (base, target) if later is None else (later, step_of(later))


def _first_finite(paths: Iterable[Path]) -> Path | None:
    """Return the first checkpoint that verifies and whose weights are all finite.

    Raises LlmtrainError for one that cannot be read: it may be the one to load.
    """
    for path in paths:
        try:
            verify_checkpoint(path)
            weights = load_checkpoint(path, with_optimizer=False).weights
        except DamagedCheckpointError:
            continue
        if all(bool(torch.isfinite(weight).all()) for weight in weights.values()):
            return path
    return None
