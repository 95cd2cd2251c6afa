"""What a run tells as it goes: events for whoever watches, lines for metrics and samples."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Mapping, Sequence

from llmtrain.data.batches.mixture import MixedSource
from llmtrain.machine.live_memory import MemoryMeter
from llmtrain.profile.horizon import Horizon
from llmtrain.profile.schema import Profile
from llmtrain.profile.shape import shape_of
from llmtrain.progress import Note
from llmtrain.train.distributed.world import is_launched
from llmtrain.train.divergence.policy import Jump
from llmtrain.train.events import Evaluated, Observer, Sampled, Step, metrics_line
from llmtrain.train.loop import Run, StepReport
from llmtrain.train.pace import Pace
from llmtrain.train.repetition import overfitting_note, repetition_warnings
from llmtrain.train.run_directory.directory import RunDirectory


class Reporter:
    """Rank 0 observes and records; other ranks are silent."""

    def __init__(
        self,
        run: Run,
        profile: Profile,
        horizon: Horizon,
        directory: RunDirectory,
        pace: Pace,
        *,
        text_tokens: int,
        peak_flops: float | None,
        observe: Observer,
        mixture: Sequence[MixedSource] = (),
    ) -> None:
        self._run = run
        self._profile = profile
        self._horizon = horizon
        self._directory = directory
        self._pace = pace
        self._text_tokens = text_tokens
        self._mixture = mixture
        self._peak_flops = peak_flops
        self.observe = observe
        self._first_step = self._logged_step = run.position.step
        self._logged_at_s = time.monotonic()
        self._is_length_known = False
        self._memory = MemoryMeter(
            launcher_pid=os.getppid() if is_launched() else None,
            is_on_cpu=run.device.type == "cpu",
            device_index=run.device.index,
        )

    def step(self, report: StepReport, *, is_last: bool) -> None:
        """The observer hears of every step; the first, the last and every n-th are recorded."""
        if not self._run.world.is_main:
            return
        self._warn_of_repetition()
        if report.verdict.skipped is not None:
            return  # it is told by `skipped`
        is_first = report.step == self._first_step + 1
        is_due = report.step % self._profile.train.log_every_steps == 0
        event = self._step_event(report, is_logged=is_first or is_last or is_due)
        if event.is_logged:
            self._logged_at_s, self._logged_step = time.monotonic(), report.step
            self._directory.append(self._directory.metrics, metrics_line(event))
        self.observe(event)

    def record(self, event: Evaluated | Sampled) -> None:
        """The event is in its file, and observed."""
        if not self._run.world.is_main:
            return
        directory = self._directory
        path = directory.samples if isinstance(event, Sampled) else directory.metrics
        directory.append(path, metrics_line(event))
        self.observe(event)

    def skipped(self, step: int, reason: str) -> None:
        """A step whose update was withheld is recorded, and warned of."""
        text = f"step {step} is skipped: {reason}"
        self._tell(text, {"step": step, "skipped": True, "reason": reason})

    def rewound(self, from_step: int, to_step: int) -> None:
        """The run is where it was, or will be once it has computed some steps again."""
        self._logged_step, self._logged_at_s = self._run.position.step, time.monotonic()
        again = f", from step {self._logged_step} on" if self._logged_step != to_step else ""
        self._tell(
            f"skipping has not helped: the run is rewound from step {from_step} to step "
            f"{to_step}{again}, and goes on with other text"
        )

    def jumped(self, jump: Jump) -> None:
        """A rewind is recorded, at the step that it led to."""
        windows = self._run.position.windows
        self._tell(None, {"step": jump.step, "rewound_from": jump.from_step, "windows": windows})

    def note(self, text: str) -> None:
        """The observer is warned."""
        self._tell(text)

    def _tell(self, warning: str | None, line: Mapping[str, object] | None = None) -> None:
        if not self._run.world.is_main:
            return
        if line is not None:
            self._directory.append(self._directory.metrics, line)
        if warning is not None:
            self.observe(Note(warning, is_warning=True))

    def pause(self, seconds: float) -> None:
        """So long nothing was trained: rates do not count it."""
        self._logged_at_s += seconds

    def end(self, val_loss: float | None, best: float | None, best_step: int | None) -> None:
        """What validation says of a run that is finished."""
        note = overfitting_note(val_loss, best, best_step)
        if note is not None and self._run.world.is_main:
            self.observe(Note(note))

    def _warn_of_repetition(self) -> None:
        """Once, as soon as it is known how many steps there will be."""
        steps = self._run.position.horizon_steps
        if steps is None or self._is_length_known:
            return
        self._is_length_known = True
        tokens_per_step = self._profile.train.chosen_tokens_per_step
        for warning in repetition_warnings(
            steps, tokens_per_step, self._text_tokens, self._mixture
        ):
            self.observe(Note(warning, is_warning=True))

    def _step_event(self, report: StepReport, *, is_logged: bool) -> Step:
        tokens = (report.step - self._logged_step) * self._profile.train.chosen_tokens_per_step
        tokens_per_s = tokens / max(1e-9, time.monotonic() - self._logged_at_s)
        flops = shape_of(self._profile.model).training_flops_per_token * tokens_per_s
        return Step(
            step=report.step,
            tokens=self._run.position.tokens,
            loss=report.loss,
            lr=report.lr,
            grad_norm=report.grad_norm,
            tokens_per_s=tokens_per_s,
            mfu=flops / self._peak_flops / self._run.world.size if self._peak_flops else None,
            memory=self._memory.now(),
            elapsed_s=self._pace.elapsed_s,
            horizon_steps=self._run.position.horizon_steps,
            remaining_s=self._remaining_s(report.step),
            is_logged=is_logged,
        )

    def _remaining_s(self, step: int) -> float | None:
        if not self._pace.is_known:
            return None
        if self._horizon.time_s is not None:
            used_s = self._horizon.used_s(self._pace.elapsed_s, time.time())
            return max(0.0, self._horizon.time_s - used_s)
        known = self._run.position.horizon_steps
        if known is None:
            return None
        looking_s = sum(
            self._pace.cost_s(what) * ((known - 1) // every - step // every)
            for what, every in self._looks_every_steps()
        )
        return (known - step) * self._pace.step_s + looking_s + self._pace.reserve_s

    def _looks_every_steps(self) -> Iterator[tuple[str, int]]:
        """What comes between steps, and after how many each; at the end it comes once more."""
        options = self._profile.eval
        yield "evaluation", options.every_steps
        if options.sample_every_steps is not None:
            yield "samples", options.sample_every_steps
