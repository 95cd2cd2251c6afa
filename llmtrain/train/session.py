"""One sitting of a run: steps, and around them logging, evaluation, samples and checkpoints."""

from __future__ import annotations

import time
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from llmtrain.data.shards import PreparedData
from llmtrain.device.choice import Needs
from llmtrain.device.exhaustion import MEMORY_ERRORS, out_of_memory
from llmtrain.device.usage import read_accelerator_memory, read_process_memory
from llmtrain.errors import InterruptedRunError
from llmtrain.eval.evaluate import bits_per_byte
from llmtrain.profile.schema import Profile
from llmtrain.profile.shape import shape_of
from llmtrain.tokenizer import Tokenizer
from llmtrain.train.checkpoint import Checkpoint, SavedState, remove_old, save_checkpoint
from llmtrain.train.events import Evaluated, Note, Observer, Sampled, Saved, Stopped, TrainResult
from llmtrain.train.examine import Examiner
from llmtrain.train.horizon import Horizon
from llmtrain.train.loop import Run
from llmtrain.train.memory import MemoryGuard
from llmtrain.train.optim import named_state
from llmtrain.train.pace import Pace, expected_steps
from llmtrain.train.reporting import Reporter
from llmtrain.train.run import RandomState
from llmtrain.train.rundir import RunDirectory
from llmtrain.train.signals import StopRequest

_DEFAULT_MINUTES_BETWEEN_CHECKPOINTS = 10.0
# What saving costs before it was measured: hashed, written and synced.
_SAVE_S, _SAVED_BYTES_PER_PARAMETER, _SAVED_BYTES_PER_S = 0.3, 12, 250e6


@dataclass(frozen=True, slots=True)
class Decision:
    """What all ranks do after a step."""

    is_over: bool
    stop_requested: bool
    save_is_due: bool


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
        needs: Needs,
        peak_flops: float | None,
        stop: StopRequest,
        observe: Observer,
        elapsed_before_s: float,
    ) -> None:
        self.run = run
        self.profile = profile
        self.horizon = horizon
        self.directory = directory
        self.data = data
        self.tokenizer = tokenizer
        self.state = state
        self.stop = stop
        self.examiner = Examiner(run, profile, data, tokenizer, stop)
        self.pace = Pace(
            elapsed_before_s,
            state.begun_s,
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
            peak_flops=peak_flops,
            observe=observe,
        )
        self.guard = MemoryGuard(
            run, needs, directory, observe, changed=self._plan_changed, rescue=self._rescue
        )
        self.saved_at_s = time.monotonic()
        self.first_step = run.position.step
        self.trained_s = 0.0
        self.evaluated_step, self.sampled_step = self._steps_looked_at()
        self.checkpoint: Path | None = None
        self.is_end_timed = horizon.time_s is None

    def train(self) -> TrainResult:
        """The run is trained to its end or to the stop request, and saved."""
        if self.first_step > 0 and self._look_and_save(self.first_step, self._decide_at_once()):
            return self._result(self._stopped())
        answer = self.guard.look()
        self.guard.heed(*self._sum([answer.smaller, answer.stop]))
        self.guard.end(self.checkpoint)
        begun_s = time.monotonic()
        for report in self.guard.steps():
            took_s, begun_s = time.monotonic() - begun_s, time.monotonic()
            self.pace.step_took(took_s)
            self.trained_s += took_s
            if self.pace.is_known and not self.is_end_timed:
                self._time_the_end()
            decision = self._decide()
            self.state = self.state.model_copy(update={"train_loss": report.loss})
            self.reporter.step(report, is_last=decision.is_over or decision.stop_requested)
            if self._look_and_save(report.step, decision):
                break
            begun_s = time.monotonic()
        self.guard.end(self.checkpoint)
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
                self._save(self.run.position.step)
            except MEMORY_ERRORS as error:
                problem = out_of_memory(error)
                if problem is None:
                    raise
                self.reporter.observe(Note(f"could not be saved: {problem}", is_warning=True))
        return self.checkpoint

    def _time_the_end(self) -> None:
        """A little of what ends the run is tried, so that its cost is known in time."""
        self.is_end_timed = True
        examiner, few = self.examiner, self.run.plan.micro_batch.value * self.run.world.size
        for _ in range(2):  # the first call is a slow one
            begun_s = time.monotonic()
            self.guard.within(lambda: examiner.validation_loss(few))
        share = examiner.windows / min(few, examiner.windows)
        self.pace.took("evaluation", share * (time.monotonic() - begun_s))
        size_bytes = _SAVED_BYTES_PER_PARAMETER * shape_of(self.profile.model).parameters
        self.pace.took("save", _SAVE_S + size_bytes / _SAVED_BYTES_PER_S)
        self.reporter.pause(time.monotonic() - begun_s)

    def _decide_at_once(self) -> Decision:
        """A run that was stopped after its last step, before the last look, has none left."""
        is_over = self.horizon.is_over(
            step=self.first_step,
            elapsed_s=self.horizon.used_s(self.pace.elapsed_s, time.time()),
            step_s=0.0,
            reserve_s=0.0,
        )
        agreed = self._sum([is_over and self.run.world.is_main])
        return Decision(agreed[0] > 0, stop_requested=False, save_is_due=False)

    def _steps_looked_at(self) -> tuple[int, int]:
        """The last step that was evaluated and the last that was sampled from; 0 for none."""
        if not self.run.world.is_main or self.first_step == 0:
            return 0, 0
        evaluated = [m["step"] for m in self.directory.read_metrics() if "val_loss" in m]
        sampled = [line["step"] for line in self.directory.read_samples()]
        return max(evaluated, default=0), max(sampled, default=0)

    def _stopped(self) -> Stopped:
        if self.stop.is_made and not self.state.finished:
            return "interrupted"
        return "done" if self.horizon.time_s is None or self._patience_is_over() else "time"

    def _look_and_save(self, step: int, decision: Decision) -> bool:
        """Evaluation, samples and a checkpoint where they are due; whether the run ends here."""
        over, stop = decision.is_over, decision.stop_requested
        best_before = self.state.best_step
        try:
            if not stop and self._evaluation_is_due(step, over):
                self._evaluate(step)
            if not stop and self._sample_is_due(step, over):
                self._sample(step)
        except InterruptedRunError:
            over, stop = False, True
        if self._patience_is_over():
            over = True
        is_new_best = self.state.best_step != best_before and self.profile.checkpoint.keep_best
        self.state = self.state.model_copy(update={"finished": over and not stop})
        if over or stop or decision.save_is_due or is_new_best:
            self._save(step)
        return over or stop

    def _decide(self) -> Decision:
        """The clock and the signals are rank 0's and everybody's; all ranks agree on them."""
        position, pace, elapsed_s = (
            self.run.position,
            self.pace,
            self.horizon.used_s(self.pace.elapsed_s, time.time()),
        )
        reserve_s = pace.reserve_s
        known = position.horizon_steps
        if pace.is_known:
            known = self.horizon.estimate(
                step=position.step, elapsed_s=elapsed_s, step_s=pace.step_s, reserve_s=reserve_s
            )
        is_over = self.horizon.is_over(
            step=position.step,
            elapsed_s=elapsed_s,
            step_s=pace.slow_step_s,
            reserve_s=reserve_s,
        )
        progress = self.horizon.progress(
            elapsed_s=elapsed_s, begun_s=pace.begun_s, reserve_s=reserve_s
        )
        save_is_due = self._save_is_due(position.step)
        ours = [known or 0, progress or 0.0, is_over, save_is_due]
        if not self.run.world.is_main:
            ours = [0] * len(ours)
        answer = self.guard.look()
        agreed = self._sum([*ours, self.stop.is_made, answer.smaller, answer.stop])
        self.guard.heed(agreed[5], agreed[6])
        position.horizon_steps = int(agreed[0]) or None
        if position.time_progress is not None:  # costs that turn out lower do not raise the rate
            position.time_progress = max(position.time_progress, agreed[1])
        return Decision(agreed[2] > 0, agreed[4] > 0 or self.guard.is_over, agreed[3] > 0)

    def _save_is_due(self, step: int) -> bool:
        wishes = self.profile.checkpoint
        if wishes.every_steps is not None:
            return step % wishes.every_steps == 0
        minutes = wishes.every_minutes or _DEFAULT_MINUTES_BETWEEN_CHECKPOINTS
        return time.monotonic() - self.saved_at_s >= 60 * minutes

    def _evaluate(self, step: int) -> None:
        """The validation loss is known, and whether it is the best so far."""
        begun_s = time.monotonic()
        nats_per_token = self.guard.within(self.examiner.validation_loss).nats_per_token
        facts = self.data.index.validation
        bpb = bits_per_byte(nats_per_token, facts.tokens, facts.text_bytes)
        best = self.state.best_val_loss
        is_best = best is None or nats_per_token < best
        update = {"val_loss": nats_per_token, "val_bpb": bpb}
        if is_best:
            update |= {"best_val_loss": nats_per_token, "best_step": step}
        waited = 0 if is_best else self.state.evaluations_without_best + 1
        self.state = self.state.model_copy(update=update | {"evaluations_without_best": waited})
        self.pace.took("evaluation", time.monotonic() - begun_s)
        self.evaluated_step = step
        self.reporter.record(Evaluated(step, nats_per_token, bpb, is_best))
        self.reporter.pause(time.monotonic() - begun_s)

    def _patience_is_over(self) -> bool:
        patience = self.profile.eval.patience
        return patience is not None and self.state.evaluations_without_best >= patience

    def _evaluation_is_due(self, step: int, over: bool) -> bool:
        if not over and step % self.profile.eval.every_steps:
            return False
        return self._sum([step == self.evaluated_step])[0] == 0

    def _sample_is_due(self, step: int, over: bool) -> bool:
        every = self.profile.eval.sample_every_steps
        if not self.run.world.is_main or every is None or step == self.sampled_step:
            return False
        return over or step % every == 0

    def _sample(self, step: int) -> None:
        begun_s = time.monotonic()
        for number, prompt in enumerate(self.profile.eval.prompts):
            draw = partial(self.examiner.sample, prompt, seed=step + number)
            text = self.guard.within(draw)
            self.reporter.record(Sampled(step, prompt, text))
        self.sampled_step = step
        self.pace.took("samples", time.monotonic() - begun_s)
        self.reporter.pause(time.monotonic() - begun_s)

    def _save(self, step: int) -> None:
        """A durable checkpoint of this step; older ones are thinned out after it."""
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
            self.checkpoint = save_checkpoint(self.directory.checkpoints, checkpoint)
            wishes = self.profile.checkpoint
            keep_step = self.state.best_step if wishes.keep_best else None
            remove_old(self.directory.checkpoints, wishes.keep_last, keep_step)
            self.reporter.observe(Saved(step, self.checkpoint))
        self._sum([0.0])  # a rank that went on, or ended, could bring the others down in mid-save
        self.saved_at_s = time.monotonic()
        self.pace.took("save", self.saved_at_s - begun_s)
        self.reporter.pause(self.saved_at_s - begun_s)

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
                "grad_scaler": scaler.state_dict() if scaler.is_enabled() else None,
            }
        )

    def _peak_memory(self) -> int:
        """The peak of all ranks' processes together, and of their GPUs."""
        peak = read_process_memory().peak_resident_bytes
        if self.run.device.type != "cpu":
            readings = read_accelerator_memory(self.run.device.index)
            peak += sum(reading.peak_reserved_bytes or 0 for reading in readings)
        return int(self._sum([peak])[0])

    def _sum(self, values: list[float]) -> list[float]:
        return self.run.world.sum_values(values, self.run.device)

    def _result(self, stopped: Stopped) -> TrainResult:
        steps = self.run.position.step - self.first_step
        tokens = steps * self.profile.train.chosen_tokens_per_step
        return TrainResult(
            run=self.directory.path,
            checkpoint=self.checkpoint,
            steps=self.run.position.step,
            tokens=self.run.position.tokens,
            seconds=self.state.elapsed_s,
            tokens_per_s=tokens / self.trained_s if steps else None,
            train_loss=self.state.train_loss,
            val_loss=self.state.val_loss,
            val_bpb=self.state.val_bpb,
            peak_memory_bytes=self.state.peak_memory_bytes,
            predicted=self.guard.predicted,
            stopped=stopped,
        )
