"""One sitting of a run: steps, and around them logging, evaluation, samples and checkpoints."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import closing, suppress
from itertools import chain
from pathlib import Path

from llmtrain.data.batches.mixture import MixedSource
from llmtrain.data.shards.prepared import PreparedData
from llmtrain.errors import AbortedError, InterruptedRunError, LlmtrainError
from llmtrain.machine.gpu_memory import read_accelerator_memory
from llmtrain.machine.memory_usage import read_process_memory
from llmtrain.machine.out_of_memory import memory_errors_mapped
from llmtrain.plan.activation_bytes import checkpoint_bytes
from llmtrain.plan.workload import Workload
from llmtrain.profile.horizon import Horizon
from llmtrain.profile.schema import Profile
from llmtrain.profile.shape import shape_of
from llmtrain.progress import Note
from llmtrain.tokenizer import Tokenizer
from llmtrain.train.build import RandomState
from llmtrain.train.checkpoint.format import Checkpoint, SavedState
from llmtrain.train.checkpoint.saver import Saver
from llmtrain.train.distributed.signals import StopRequest
from llmtrain.train.divergence.rewind import Recovery
from llmtrain.train.evaluation import Looks
from llmtrain.train.events import Observer, Stopped, TrainResult
from llmtrain.train.examine import Evaluator
from llmtrain.train.logger import Reporter
from llmtrain.train.loop import Run, StepReport
from llmtrain.train.memory_guard import MemoryGuard
from llmtrain.train.optim import named_state
from llmtrain.train.pace import Pace, expected_steps
from llmtrain.train.run_directory.directory import RunDirectory
from llmtrain.train.stopping import StopDecision, StopPolicy

# What saving costs before it was measured: written, hashed, synced and read back.
_SAVE_S, _SAVED_BYTES_PER_S = 0.3, 170e6


class Session:
    """Trains `run` until its horizon, a stop request or patience ends it."""

    def __init__(
        self,
        run: Run,
        profile: Profile,
        horizon: Horizon,
        directory: RunDirectory,
        data: PreparedData,
        tokenizer: Tokenizer,
        state: SavedState,
        *,
        mixture: Sequence[MixedSource],
        workload: Workload,
        peak_flops: float | None,
        stop: StopRequest,
        observe: Observer,
        used_before_s: float,
        starting_s: float,
    ) -> None:
        self.run = run
        self.profile = profile
        self.horizon = horizon
        self.directory = directory
        self.data = data
        self.tokenizer = tokenizer
        self.state = state
        self.stop = stop
        self.pace = Pace(
            used_before_s,
            starting_s,
            state.begun_s or 0.0,
            expected_steps(profile),
            first_step_counts=not run.plan.compile.value,
        )
        self.reporter = Reporter(
            run,
            profile,
            horizon,
            directory,
            self.pace,
            text_tokens=data.index.train.tokens,
            mixture=mixture,
            peak_flops=peak_flops,
            observe=observe,
        )
        self.saver = Saver(
            directory.checkpoints, profile.checkpoint, lambda saved: self.reporter.observe(saved)
        )
        self.guard = MemoryGuard(
            run, workload, directory, observe, changed=self._plan_changed, rescue=self._rescue
        )
        self.decider = StopPolicy(run, horizon, self.pace, self.saver, self.guard, stop)
        self.recovery = Recovery(run, profile, directory, tokenizer, self.reporter)
        self.first_step = run.position.step
        self.trained_s, self.trained_steps = 0.0, 0
        self.looks = Looks(
            run,
            profile.eval,
            data.index.validation,
            directory,
            Evaluator(run, profile, data, tokenizer, stop),
            self.reporter,
            self.pace,
            self.guard,
        )
        self.is_end_timed = horizon.time_s is None

    def train(self) -> TrainResult:
        """The run is trained to its end or to the stop request, and saved.

        Raises DivergedError where neither skipping steps nor rewinding helps, and
        InterruptedRunError where nothing was trained that could be saved.
        """
        with closing(self.saver):
            return self._trained()

    def _trained(self) -> TrainResult:
        is_fresh = self.first_step == 0 or self._rewound()
        if not is_fresh and self._look_and_save(self.first_step, self.decider.before_steps()):
            return self._result(self._stopped())
        answer = self.guard.look()
        self.guard.heed(*self._sum([answer.smaller, answer.stop]))
        self.guard.end(self.saver.newest)
        begun_s = time.monotonic()
        for report in self._steps():
            took_s, begun_s = time.monotonic() - begun_s, time.monotonic()
            trained_s = self.pace.step_took(took_s)
            self.trained_s += trained_s
            self.trained_steps += 1
            self.reporter.pause(took_s - trained_s)
            if self.pace.is_known and not self.is_end_timed:
                with suppress(InterruptedRunError):  # the request is heeded when the step is told
                    self._time_the_end()
            self._look_after_saving()
            decision = self.decider.after_step()
            self._learn_of(report)
            self.reporter.step(report, is_last=decision.is_over or decision.stop_requested)
            if not decision.stop_requested and self._rewound():
                begun_s = time.monotonic()
                continue
            if self._look_and_save(report.step, decision):
                break
            begun_s = time.monotonic()
        self.guard.end(self.saver.newest)
        if self.state.finished:
            state = self.state
            self.reporter.end(state.val_loss, state.best_val_loss, state.best_step)
        return self._result(self._stopped())

    def _plan_changed(self, after_step: int) -> None:
        """The state says by what plan it goes on, and from where it is another run's bits."""
        drifted = self.state.not_bitwise_from_step
        if drifted is None and after_step > 0:
            drifted = after_step
        numerics = self.run.plan.numerics()
        self.state = self.state.model_copy(
            update={"numerics": numerics, "not_bitwise_from_step": drifted}
        )

    def _rescue(self) -> Path | None:
        """The last step that was done is saved, if memory allows it; where the newest one is."""
        if self.run.position.step > self.state.step:
            try:
                with memory_errors_mapped():
                    self._save(in_background=False)
            except (AbortedError, InterruptedRunError):
                raise
            except LlmtrainError as error:  # why the run ends is told after it
                text = f"step {self.run.position.step} could not be saved: {error.message}"
                self.reporter.observe(Note(text, is_warning=True))
        return self.saver.newest

    def _learn_of(self, report: StepReport) -> None:
        """What became of the step is known; its loss is the run's unless it was skipped."""
        if report.verdict.skipped is None:
            self.state = self.state.model_copy(update={"train_loss": report.loss})
        self.guard.within(lambda: self.recovery.look_at(report))

    def _rewound(self) -> bool:
        """Whether steps that were skipped brought the run back to a state before them."""
        if self.run.course.answer != "go on":
            self.saver.finish()  # it may be what the run goes back to
        state = self.recovery.rewound(self.state)
        if state is None:
            return False
        self.state = state
        self.guard.begin_anew()
        self.looks.begin_anew()
        return True

    def _steps(self) -> Iterator[StepReport]:
        """The steps to come. Raises InterruptedRunError for a signal while the first one compiles.

        That takes up to minutes. Several ranks have to stop together, after a step.
        """
        steps = self.guard.steps()
        if not self.run.plan.compile.value or self.run.world.size > 1:
            return steps
        with self.stop.at_once():
            hook = self.run.optimizer.register_step_pre_hook(lambda *_: self.stop.finish())
            first = next(steps)
        hook.remove()
        return chain([first], steps)

    def _time_the_end(self) -> None:
        """A little of what ends the run is tried, so that its cost is known in time."""
        self.is_end_timed = True
        begun_s = time.monotonic()
        self.looks.time_evaluation()
        size_bytes = checkpoint_bytes(shape_of(self.profile.model), self.profile.optim.name)
        self.pace.took("save", _SAVE_S + size_bytes / _SAVED_BYTES_PER_S)
        self.reporter.pause(time.monotonic() - begun_s)

    def _stopped(self) -> Stopped:
        if self.stop.is_made and not self.state.finished:
            return "interrupted"
        by_the_clock = self.horizon.time_s is not None
        return "time" if by_the_clock and not self.looks.patience_is_over(self.state) else "done"

    def _look_and_save(self, step: int, decision: StopDecision) -> bool:
        """Evaluation, samples and a checkpoint where they are due; whether the run ends here."""
        over, stop = decision.is_over, decision.stop_requested
        best_before = self.state.best_step
        try:
            if over and (left_s := self.decider.left_to_look_s()) is not None:
                self.looks.end_within(left_s)
            if not stop:
                self.state = self.looks.evaluate_if_due(step, self.state, is_over=over)
                self.looks.sample_if_due(step, is_over=over)
        except InterruptedRunError:
            over, stop = False, True
        if self.looks.patience_is_over(self.state):
            over = True
        is_new_best = self.state.best_step != best_before and self.profile.checkpoint.keep_best
        self.state = self.state.model_copy(update={"finished": over and not stop})
        # After a rewind what was saved before it is the better state until there is another.
        is_due = (decision.save_is_due or is_new_best) and self.run.course.has_come_on
        if over or stop or is_due:
            self._save(in_background=not (over or stop))
        return over or stop

    def _save(self, *, in_background: bool) -> None:
        """A checkpoint of this step; durable, unless that happens while training goes on."""
        begun_s = time.monotonic()
        self.state = self._state_now()
        if self.run.world.is_main:
            checkpoint = Checkpoint(
                state=self.state,
                weights=self.run.model.state_dict(),
                optimizer=named_state(self.run.model, self.run.optimizer),
                shape=shape_of(self.profile.model),
                tokenizer=self.tokenizer,
            )
            self.saver.save(checkpoint, in_background=in_background)
            self._look_after_saving()
        self._sum([0.0])  # a rank that went on, or ended, could bring the others down in mid-save
        self.reporter.pause(time.monotonic() - begun_s)

    def _look_after_saving(self) -> None:
        self.saver.poll()
        if self.saver.took_s is not None:
            self.pace.took("save", self.saver.took_s)

    def _state_now(self) -> SavedState:
        position, scaler = self.run.position, self.run.scaler
        return self.state.model_copy(
            update={
                "step": position.step,
                "tokens": position.tokens,
                "windows": position.windows,
                "begun_s": self.pace.begun_s,
                "horizon_steps": position.horizon_steps,
                "time_progress": position.time_progress,
                "elapsed_s": self.pace.elapsed_s,
                "peak_memory_bytes": max(self.state.peak_memory_bytes, self._peak_memory()),
                "torch_rng": RandomState.now().text,
                "course": self.run.course,
                "grad_scaler": scaler.state_dict() if scaler.is_enabled() else None,
            }
        )

    def _peak_memory(self) -> int:
        """The peak of all ranks' processes together, or of the GPU that holds most."""
        world = self.run.world
        if self.run.device.type == "cpu":
            return int(self._sum([read_process_memory().peak_resident_bytes])[0])
        readings = read_accelerator_memory(self.run.device.index)
        own = sum(r.peak_reserved_bytes or r.reserved_bytes or 0 for r in readings)
        return int(max(self._sum([own if rank == world.rank else 0 for rank in range(world.size)])))

    def _sum(self, values: list[float]) -> list[float]:
        return self.run.world.sum_values(values, self.run.device)

    def _result(self, stopped: Stopped) -> TrainResult:
        tokens = self.trained_steps * self.profile.train.chosen_tokens_per_step
        return TrainResult(
            run=self.directory.path,
            checkpoint=self.saver.newest,
            steps=self.run.position.step,
            tokens=self.run.position.tokens,
            seconds=self.pace.elapsed_s,
            tokens_per_s=tokens / self.trained_s if tokens else None,
            train_loss=self.state.train_loss,
            val_loss=self.state.val_loss,
            val_bpb=self.state.val_bpb,
            peak_memory_bytes=self.state.peak_memory_bytes,
            predicted_peak_bytes=self.guard.predicted.measured_on(self.run.plan.device.value),
            stopped=stopped,
            trained_steps=self.trained_steps,
            trained_tokens_per_step=self.profile.train.chosen_tokens_per_step,
            step_s=self.pace.step_s if self.pace.is_known else None,
        )
