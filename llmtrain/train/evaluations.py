"""The evaluations and samples of a session: computed, logged, and their time kept apart."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

from llmtrain.eval.preferences import PreferenceLoss
from llmtrain.plan.planner import can_sample
from llmtrain.plan.workload import Workload
from llmtrain.train.evaluation import Evaluator
from llmtrain.train.events import Evaluated, Sampled
from llmtrain.train.logger import TrainLogger
from llmtrain.train.loop import Run
from llmtrain.train.memory_guard import MemoryGuard
from llmtrain.train.pace import Pace


class Evaluations:
    """Evaluates and samples between two steps. Every rank has to call each method."""

    def __init__(
        self,
        run: Run,
        workload: Workload,
        evaluator: Evaluator,
        prompts: Sequence[str],
        pace: Pace,
        logger: TrainLogger,
        guard: MemoryGuard,
    ) -> None:
        self._run = run
        self._workload = workload
        self._evaluator = evaluator
        self._prompts = prompts
        self._pace = pace
        self._logger = logger
        self._guard = guard
        self._has_warned = False

    def evaluate(self, step: int, best_val_loss: float | None) -> Evaluated:
        """Return the validation loss after a step, logged."""
        evaluator, logger = self._evaluator, self._logger
        with logger.excluded():
            logger.log_activity("evaluating", self._pace.cost_s("evaluation"))
            with self._pace.measured("evaluation"):
                loss = self._guard.run_guarded(evaluator.validation_loss)
            evaluated = evaluator.evaluated(step, loss, best_val_loss)
            logger.log_event(evaluated)
            if loss.tokens < evaluator.tokens:
                what = "pairs" if isinstance(loss, PreferenceLoss) else "tokens"
                of_all = f"{loss.tokens} of {evaluator.tokens} {what}"
                logger.log_warning(f"the time is over: validated on {of_all}")
        return evaluated

    def measure_cost(self) -> None:
        """Evaluate a few windows, so that the time of all is known."""
        windows = self._evaluator.windows
        few = self._run.plan.micro_batch.value * self._run.world.size
        with self._logger.excluded():
            for _ in range(2):  # the first call is slower; the second replaces its cost
                with self._pace.measured("evaluation", windows / min(few, windows)):
                    self._guard.run_guarded(partial(self._evaluator.validation_loss, few))

    def sample(self, step: int) -> None:
        """Continue every prompt and log it, if there is memory for that; else warn, once."""
        if not can_sample(self._workload, self._run.plan):
            self._warn_once()
            return
        with self._logger.excluded(), self._pace.measured("samples"), self._run.whole_weights():
            self._logger.log_activity("sampling", self._pace.cost_s("samples"))
            for number, prompt in enumerate(self._prompts if self._run.world.is_main else ()):
                sample = partial(self._evaluator.sample, prompt, seed=step + number)
                self._logger.log_event(Sampled(step, prompt, self._guard.run_guarded(sample)))
        self._evaluator.sampled(step)

    def _warn_once(self) -> None:
        if not self._has_warned:
            self._has_warned = True
            self._logger.log_warning(
                "no text is sampled during the run: a rank has no room for the whole weights"
            )
