"""When a run is looked at, and what is learnt: its validation loss, and text that it writes."""

from __future__ import annotations

import math
import time
from functools import partial

from llmtrain.data.shards.index import SplitFacts
from llmtrain.eval.evaluate import bits_per_byte
from llmtrain.profile.schema import EvalSection
from llmtrain.train.checkpoint.format import SavedState
from llmtrain.train.events import Evaluated, Sampled
from llmtrain.train.examine import Evaluator
from llmtrain.train.logger import Reporter
from llmtrain.train.loop import Run
from llmtrain.train.memory_guard import MemoryGuard
from llmtrain.train.pace import Pace
from llmtrain.train.run_directory.directory import RunDirectory


class Looks:
    """Evaluations and samples of a run. All ranks evaluate together; rank 0 draws samples."""

    def __init__(
        self,
        run: Run,
        options: EvalSection,
        facts: SplitFacts,
        directory: RunDirectory,
        examiner: Evaluator,
        reporter: Reporter,
        pace: Pace,
        guard: MemoryGuard,
    ) -> None:
        """`facts` are those of the validation text."""
        self._run = run
        self._options = options
        self._facts = facts
        self._directory = directory
        self._examiner = examiner
        self._reporter = reporter
        self._pace = pace
        self._guard = guard
        self.begin_anew()

    def begin_anew(self) -> None:
        """What was looked at is what the run directory says: it was rewound, or goes on."""
        self._evaluated_step = self._sampled_step = 0
        if self._run.world.is_main and self._run.position.step > 0:
            evaluated = [m["step"] for m in self._directory.read_metrics() if "val_loss" in m]
            sampled = [line["step"] for line in self._directory.read_samples()]
            self._evaluated_step = max(evaluated, default=0)
            self._sampled_step = max(sampled, default=0)

    def time_evaluation(self) -> None:
        """A little of it is tried, so that its cost is known before the end."""
        few = self._run.plan.micro_batch.value * self._run.world.size
        for _ in range(2):  # the first call is a slow one
            begun_s = time.monotonic()
            self._guard.within(lambda: self._examiner.validation_loss(few))
        share = self._examiner.windows / min(few, self._examiner.windows)
        self._pace.took("evaluation", share * (time.monotonic() - begun_s))

    def end_within(self, seconds: float) -> None:
        """What is looked at from now on ends after so long."""
        self._examiner.time_is_over_s = time.monotonic() + seconds

    def evaluate_if_due(self, step: int, state: SavedState, *, is_over: bool) -> SavedState:
        """The state, with the validation loss where it is due."""
        return self._evaluate(step, state) if self._evaluation_is_due(step, is_over) else state

    def sample_if_due(self, step: int, *, is_over: bool) -> None:
        """Samples are drawn, recorded and told, where they are due."""
        if self._sample_is_due(step, is_over):
            self._sample(step)

    def patience_is_over(self, state: SavedState) -> bool:
        """Whether so many evaluations were without a new best that the run ends."""
        patience = self._options.patience
        return patience is not None and state.evaluations_without_best >= patience

    def _evaluation_is_due(self, step: int, is_over: bool) -> bool:
        if not is_over and step % self._options.every_steps:
            return False
        was_done = self._run.world.sum_values([step == self._evaluated_step], self._run.device)
        return was_done[0] == 0

    def _evaluate(self, step: int, state: SavedState) -> SavedState:
        """The validation loss is told, and in the state; and whether it is the best so far."""
        begun_s = time.monotonic()
        found = self._guard.within(self._examiner.validation_loss)
        loss = found.nats_per_token
        bpb = bits_per_byte(loss, self._facts.tokens, self._facts.text_bytes)
        best = math.inf if state.best_val_loss is None else state.best_val_loss
        is_best = loss < best and math.isfinite(loss)
        self._pace.took("evaluation", time.monotonic() - begun_s)
        self._evaluated_step = step
        self._reporter.record(Evaluated(step, loss, bpb, is_best))
        if found.tokens < self._examiner.tokens:
            self._reporter.note(
                f"the time is over: validated on {found.tokens} of {self._examiner.tokens} tokens"
            )
        self._reporter.pause(time.monotonic() - begun_s)
        return _with_loss(state, step, loss, bpb, is_best=is_best)

    def _sample_is_due(self, step: int, is_over: bool) -> bool:
        every = self._options.sample_every_steps
        if not self._run.world.is_main or every is None or step == self._sampled_step:
            return False
        return is_over or step % every == 0

    def _sample(self, step: int) -> None:
        begun_s = time.monotonic()
        for number, prompt in enumerate(self._options.prompts):
            text = self._guard.within(partial(self._examiner.sample, prompt, seed=step + number))
            self._reporter.record(Sampled(step, prompt, text))
        self._sampled_step = step
        self._pace.took("samples", time.monotonic() - begun_s)
        self._reporter.pause(time.monotonic() - begun_s)


def _with_loss(
    state: SavedState, step: int, loss: float, bpb: float, *, is_best: bool
) -> SavedState:
    """The state with a validation loss; none where it is no number."""
    is_finite = math.isfinite(loss)
    update: dict[str, object] = {
        "val_loss": loss if is_finite else None,
        "val_bpb": bpb if is_finite else None,
        "evaluations_without_best": 0 if is_best else state.evaluations_without_best + 1,
    }
    if is_best:
        update |= {"best_val_loss": loss, "best_step": step}
    return state.model_copy(update=update)
