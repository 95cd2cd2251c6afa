"""One session of a run: training steps, and between them logs, evaluations and checkpoints."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import closing, suppress
from dataclasses import replace
from functools import partial
from itertools import chain
from pathlib import Path

from llmtrain.errors import AbortedError, InterruptedRunError, LlmtrainError
from llmtrain.machine.out_of_memory import memory_errors_mapped
from llmtrain.plan.forecast import SAVED_BYTES_PER_S
from llmtrain.plan.tensor_bytes import checkpoint_bytes_of
from llmtrain.profile.shape import shape_of
from llmtrain.train.checkpoint.format import Checkpoint, SavedState
from llmtrain.train.checkpoint.part_saver import PartSaver
from llmtrain.train.checkpoint.saver import Saver
from llmtrain.train.distributed.rounds import Rounds
from llmtrain.train.divergence.rewind import Rewinder
from llmtrain.train.evaluation import Evaluator
from llmtrain.train.evaluations import Evaluations
from llmtrain.train.events import Stopped, TrainResult
from llmtrain.train.first_steps import FirstSteps
from llmtrain.train.logger import TrainLogger
from llmtrain.train.loop import StepReport
from llmtrain.train.memory_guard import MemoryGuard, MemoryStopError, agreed_action
from llmtrain.train.pace import Pace, expected_steps
from llmtrain.train.state import current_state, saved_tensors, with_evaluation, with_plan
from llmtrain.train.stopping import StopDecision, StopPolicy
from llmtrain.train.train_setup import TrainSetup
from llmtrain.train.validation import open_validation

_SAVE_S = 0.3  # of a save before one is measured, beside what its bytes take


class Trainer:
    """Trains a run until its horizon, a stop request or patience ends it.

    The loop is `_train`. The collaborators do not know each other: what one returns, the trainer
    passes to the next.
    """

    def __init__(self, setup: TrainSetup, state: SavedState) -> None:
        run, profile, directory = setup.run, setup.profile, setup.directory
        self.setup, self.run, self.state = setup, run, state
        self.shape = shape_of(profile.model)
        self.pace = Pace(
            setup.used_before_s,
            setup.starting_s,
            state.begun_s or 0.0,
            expected_steps(profile),
            first_step_counts=not run.plan.compile.value,
        )
        self.logger = _logger(setup)
        self.first_steps = FirstSteps(setup, self.pace, self.logger)
        self.saver = _saver(setup)
        self.guard = MemoryGuard(run, setup.workload, directory, setup.observe)
        self.stopping = StopPolicy(setup.horizon, profile.eval, run.world, run.device)
        self.rewinder = Rewinder(run, profile, directory, setup.tokenizer)
        validation = open_validation(
            profile, setup.data, setup.tokenizer, setup.validation_references
        )
        self.evaluator = Evaluator(run, profile.eval, validation, setup.tokenizer, setup.stop)
        self.evaluator.restore(directory)
        self.evaluations = Evaluations(
            run,
            setup.workload,
            self.evaluator,
            validation.prompts,
            self.pace,
            self.logger,
            self.guard,
        )
        self.trained_s, self.trained_steps = 0.0, 0
        self.end_costs_known = setup.horizon.time_s is None  # only a time limit needs them early

    def train(self) -> TrainResult:
        """Train to the end of the run or to the stop request, save, and return the result.

        Raises DivergedError if neither skipping steps nor rewinding helps, DoesNotFitError if
        memory ends the run, and InterruptedRunError if stopped with nothing to save.
        """
        with closing(self.saver):
            try:
                self._train()
            except MemoryStopError:
                self.guard.raise_if_stopped(self._save_before_exit())
                raise
            return self._result()

    def _train(self) -> None:
        if self._is_over_before_steps():
            return
        self._check_memory()
        for report, step_s in self._timed_steps():
            self._record_times(step_s)
            decision = self._decide(report.step)
            self._log(report, decision)
            self.first_steps.check(self.trained_steps, self._remaining_s())
            if self.run.is_within_round:  # ranks decide together when it ends
                continue
            if not decision.stop_requested and self._rewind():
                continue
            decision = self._evaluate_and_sample(report.step, decision)
            self._save_if_due(decision)
            if decision.ends_run:
                break
        self.guard.raise_if_stopped(self.saver.newest)
        if self.state.finished:
            self.logger.log_end(self.state.val_loss, self.state.best_val_loss, self.state.best_step)

    def _is_over_before_steps(self) -> bool:
        """Evaluate and save a run that was resumed after its last step; return whether it was."""
        step = self.run.position.step
        if step == 0 or self._rewind():
            return False
        decision = self._evaluate_and_sample(step, self.stopping.before_steps(step, self.pace))
        self._save_if_due(decision)
        return decision.ends_run

    def _check_memory(self) -> None:
        """Take a smaller plan or raise DoesNotFitError if memory is short before the first step."""
        action = self.guard.check()
        smaller, stop = self.run.all_reduce([action.smaller, action.stop])
        self.guard.apply(agreed_action(action, smaller, stop, self.run.world.size))
        self.guard.raise_if_stopped(self.saver.newest)

    def _timed_steps(self) -> Iterator[tuple[StepReport, float]]:
        """Yield each step's report and the seconds it took."""
        started_s = time.monotonic()
        for report in self._steps():
            yield report, time.monotonic() - started_s
            started_s = time.monotonic()

    def _steps(self) -> Iterator[StepReport]:
        """Return the steps; a signal while the first one compiles raises InterruptedRunError.

        Compiling takes up to minutes. Several ranks can only stop together, after a step.
        """
        steps = self.guard.steps()
        if not self.run.plan.compile.value or self.run.world.size > 1:
            return steps
        stop = self.setup.stop
        with stop.immediate():
            hook = self.run.optimizer.register_step_pre_hook(lambda *_: stop.defer())
            first = next(steps)
        hook.remove()
        return chain([first], steps)

    def _record_times(self, step_s: float) -> None:
        if self.run.rounds is not None:
            step_s = self.run.rounds.spread(step_s)
        trained_s = self.pace.record_step(step_s)
        self.trained_s += trained_s
        self.trained_steps += 1
        self.first_steps.record(self.trained_steps)
        self.logger.exclude(step_s - trained_s)
        if self.pace.is_known and not self.end_costs_known:
            self.end_costs_known = True
            with suppress(InterruptedRunError):  # `_decide` handles the request
                self._measure_end_costs()
        self._poll_saver()

    def _measure_end_costs(self) -> None:
        """Evaluate a few windows and estimate a save, so that the run can end in time."""
        self.evaluations.measure_cost()
        size_bytes = checkpoint_bytes_of(self.setup.workload, self.run.world.size)
        self.pace.record_cost("save", _SAVE_S + size_bytes / SAVED_BYTES_PER_S)

    def _decide(self, step: int) -> StopDecision:
        """Agree with all ranks on what to do after a step, and apply its memory action."""
        stop, changed_after = self.setup.stop, self.guard.confirm_changes()
        if changed_after is not None:
            self.state = with_plan(self.state, self.run.plan, changed_after)
        if self.run.is_within_round:
            return StopDecision(is_over=False, stop_requested=False, save_is_due=False)
        save_requested = stop.take_save_request()
        decision = self.stopping.after_step(
            self.run.position,
            self.pace,
            save_is_due=save_requested or self.saver.is_due(step, self.run.steps_together),
            memory=self.guard.check(),
            stop_requested=stop.is_made,
        )
        self.guard.apply(decision.memory)
        return decision

    def _log(self, report: StepReport, decision: StopDecision) -> None:
        if report.verdict.skipped is None:
            self.state = self.state.model_copy(update={"train_loss": report.loss})
        else:
            with self.logger.excluded():
                reason = self.guard.run_guarded(partial(self.rewinder.explain, report))
                self.logger.log_skipped(report.step, reason)
        if self.run.rounds is not None and not self.run.is_within_round:
            self._log_left_out(self.run.rounds)
        self._log_jumps()
        self.logger.log_step(
            report,
            self.run.position,
            elapsed_s=self.pace.elapsed_s,
            remaining_s=0.0 if decision.is_over else self._remaining_s(),
            is_last=decision.ends_run,
        )

    def _remaining_s(self) -> float | None:
        return self.pace.remaining_s(
            self.setup.horizon,
            self.setup.profile.eval,
            self.run.position.step,
            self.run.position.horizon_steps,
        )

    def _log_left_out(self, rounds: Rounds) -> None:
        """Name other ranks that left out steps of the round; rank 0 logs its own as they come."""
        left_out = rounds.describe_left_out(but=self.run.world.rank)
        if left_out is not None:
            self.logger.log_warning(f"step {self.run.position.step}: {left_out}")

    def _log_jumps(self) -> None:
        position = self.run.position
        for jump in self.run.divergence.jumps:
            if jump.step == position.step:
                self.logger.log_jump(jump, position.windows)

    def _rewind(self) -> bool:
        """Rewind the run if skipping bad steps has not helped; return whether it was rewound."""
        if self.run.divergence.action != "continue":
            self.saver.finish()  # the rewind may need that checkpoint
        rewind = self.rewinder.rewind_if_due(self.state)
        if rewind is None:
            return False
        self.state = rewind.state
        resumed_step = self.run.position.step
        self.logger.log_rewind(rewind.from_step, rewind.to_step, resumed_step)
        if resumed_step == rewind.to_step:
            self._log_jumps()
        self.guard.reset()
        self.evaluator.restore(self.setup.directory)
        return True

    def _evaluate_and_sample(self, step: int, decision: StopDecision) -> StopDecision:
        """Evaluate and sample where due; return the decision as it is after that."""
        best_step = self.state.best_step
        try:
            if decision.is_over:
                limit_s = self.stopping.evaluation_limit_s(self.pace)
                if limit_s is not None:
                    self.evaluator.deadline_s = time.monotonic() + limit_s
            if not decision.stop_requested:
                if self.evaluator.is_due(step, is_last=decision.is_over):
                    with self.run.agreed_weights():
                        evaluated = self.evaluations.evaluate(step, self.state.best_val_loss)
                    self.state = with_evaluation(self.state, evaluated)
                if self.evaluator.sample_is_due(step, is_last=decision.is_over):
                    with self.run.agreed_weights():
                        self.evaluations.sample(step)
        except InterruptedRunError:
            decision = replace(decision, is_over=False, stop_requested=True)
        is_new_best = self.state.best_step != best_step and self.setup.profile.checkpoint.keep_best
        return replace(
            decision,
            is_over=decision.is_over or self.stopping.patience_is_over(self.state),
            save_is_due=decision.save_is_due or is_new_best,
        )

    def _save_if_due(self, decision: StopDecision) -> None:
        """Save: durably at the end, otherwise in the background.

        After a rewind the checkpoint before it is the better one until there is another update.
        """
        finished = decision.is_over and not decision.stop_requested
        self.state = self.state.model_copy(update={"finished": finished})
        is_due = decision.save_is_due and self.run.divergence.has_updated_since_rewind
        if decision.ends_run or is_due:
            self._save(in_background=not decision.ends_run)

    def _save(self, *, in_background: bool) -> None:
        with self.logger.excluded():
            self.state = current_state(self.state, self.run, self.pace)
            if self.run.world.rank < self.run.saving_ranks:
                weights, optimizer = saved_tensors(self.run)
                checkpoint = Checkpoint(
                    self.state,
                    weights,
                    optimizer,
                    self.shape,
                    self.setup.tokenizer,
                    adapter=self.run.adapter,
                )
                if not in_background:
                    self.logger.log_activity("saving", self.pace.cost_s("save"))
                self.saver.save(checkpoint, in_background=in_background)
                self._poll_saver()
            self.run.all_reduce([0.0])  # a rank that ended now could interrupt rank 0's save

    def _save_before_exit(self) -> Path | None:
        """Save the last step if memory allows it; return the newest checkpoint."""
        step = self.run.position.step
        if step > self.state.step and not self.run.is_within_round:
            try:
                with memory_errors_mapped():
                    self._save(in_background=False)
            except (AbortedError, InterruptedRunError):
                raise
            except LlmtrainError as error:  # the error that ends the run follows
                self.logger.log_warning(f"step {step} could not be saved: {error.message}")
        return self.saver.newest

    def _poll_saver(self) -> None:
        self.saver.poll()
        if self.saver.elapsed_s is not None:
            self.pace.record_cost("save", self.saver.elapsed_s)

    def _result(self) -> TrainResult:
        state, tokens_per_step = self.state, self.setup.profile.train.chosen_tokens_per_step
        tokens = self.trained_steps * tokens_per_step
        return TrainResult(
            run=self.setup.directory.path,
            checkpoint=self.saver.newest,
            steps=self.run.position.step,
            tokens=self.run.position.tokens,
            seconds=self.pace.elapsed_s,
            tokens_per_s=tokens / self.trained_s if tokens else None,
            train_loss=state.train_loss,
            val_loss=state.val_loss,
            val_bpb=state.val_bpb,
            peak_memory_bytes=state.peak_memory_bytes,
            predicted_peak_bytes=self.guard.predicted.measured_on(self.run.plan.device.value),
            stopped=self._stopped(),
            trained_steps=self.trained_steps,
            trained_tokens_per_step=tokens_per_step,
            step_s=self.pace.step_s if self.pace.is_known else None,
            waited_share=self.first_steps.waited_share,
        )

    def _stopped(self) -> Stopped:
        if not self.state.finished:  # by a signal to any rank
            return "interrupted"
        has_time_limit = self.setup.horizon.time_s is not None
        return (
            "time" if has_time_limit and not self.stopping.patience_is_over(self.state) else "done"
        )


def _logger(setup: TrainSetup) -> TrainLogger:
    run = setup.run
    return TrainLogger(
        setup.directory,
        setup.observe,
        setup.profile.train,
        run.world,
        run.device,
        first_step=run.position.step,
        flops_per_token=setup.workload.flops_per_token,
        peak_flops=setup.peak_flops,
        text_tokens=setup.data.index.train.tokens,
        mixture=setup.mixture,
    )


def _saver(setup: TrainSetup) -> Saver:
    """Return what saves the run: rank 0 alone, or the ranks that have something of their own."""
    directory, profile, run = setup.directory.checkpoints, setup.profile, setup.run
    if run.saving_ranks == 1 or run.world.rank >= run.saving_ranks:
        return Saver(directory, profile.checkpoint, setup.observe)
    limit_s = profile.device.collective_timeout
    rounds = run.rounds
    return PartSaver(
        directory,
        profile.checkpoint,
        setup.observe,
        run.world,
        limit_s,
        ranks=run.saving_ranks,
        waiting_s=None if rounds is None else lambda: rounds.travelled_s,
    )
