"""What a run logs: events for the observer, lines for metrics.jsonl and samples.jsonl."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch

from llmtrain.data.batches.mixture import MixedSource
from llmtrain.machine.live_memory import MemoryMeter
from llmtrain.profile.schema import TrainSection
from llmtrain.progress import Note, Progress
from llmtrain.train.distributed.world import World, is_launched
from llmtrain.train.divergence.policy import Jump
from llmtrain.train.events import Evaluated, Observer, Sampled, Step, metrics_line
from llmtrain.train.loop import Position, StepReport
from llmtrain.train.repetition import overfitting_note, repetition_warnings
from llmtrain.train.run_directory.directory import RunDirectory
from llmtrain.units import format_duration


@dataclass
class TrainLogger:
    """Logs on rank 0; does nothing on other ranks.

    `flops_per_token` and `peak_flops` (of one process) give the model FLOPs utilisation.
    """

    directory: RunDirectory
    observe: Observer
    options: TrainSection
    world: World
    device: torch.device
    first_step: int
    flops_per_token: float
    peak_flops: float | None
    text_tokens: int
    mixture: Sequence[MixedSource] = ()
    _is_length_known: bool = field(default=False, init=False)

    def __post_init__(self) -> None:
        self._logged_step, self._logged_at_s = self.first_step, time.monotonic()
        self._newest_step = self.first_step
        self._memory = MemoryMeter(
            launcher_pid=os.getppid() if is_launched() else None,
            is_on_cpu=self.device.type == "cpu",
            device_index=self.device.index,
        )

    def log_step(
        self,
        report: StepReport,
        position: Position,
        *,
        elapsed_s: float,
        remaining_s: float | None,
        is_last: bool,
    ) -> None:
        """Notify the observer of a step that was not skipped, and log the first, last and n-th."""
        if not self.world.is_main:
            return
        self._newest_step = report.step
        self._warn_of_repetition(position.horizon_steps)
        if report.verdict.skipped is not None:
            return  # see `log_skipped`
        is_first = report.step == self.first_step + 1
        is_due = report.step % self.options.log_every_steps == 0
        tokens = (report.step - self._logged_step) * self.options.chosen_tokens_per_step
        tokens_per_s = tokens / max(1e-9, time.monotonic() - self._logged_at_s)
        event = Step(
            step=report.step,
            tokens=position.tokens,
            loss=report.loss,
            lr=report.lr,
            grad_norm=report.grad_norm,
            tokens_per_s=tokens_per_s,
            mfu=self._mfu(tokens_per_s),
            memory=self._memory.now(),
            elapsed_s=elapsed_s,
            horizon_steps=position.horizon_steps,
            remaining_s=remaining_s,
            is_logged=is_first or is_last or is_due,
        )
        if event.is_logged:
            self._logged_at_s, self._logged_step = time.monotonic(), report.step
            self.directory.append(self.directory.metrics, metrics_line(event))
        self.observe(event)

    def log_event(self, event: Evaluated | Sampled) -> None:
        """Append the event to metrics.jsonl or samples.jsonl and notify the observer."""
        if not self.world.is_main:
            return
        directory = self.directory
        path = directory.samples if isinstance(event, Sampled) else directory.metrics
        directory.append(path, metrics_line(event))
        self.observe(event)

    def log_skipped(self, step: int, reason: str) -> None:
        """Log a step whose update was skipped, and warn."""
        self._append_metrics({"step": step, "skipped": True, "reason": reason})
        self.log_warning(f"step {step} is skipped: {reason}")

    def log_rewind(self, from_step: int, to_step: int, resumed_step: int) -> None:
        """Warn of a rewind to `to_step`, which is replayed from `resumed_step`."""
        self._logged_step, self._logged_at_s = resumed_step, time.monotonic()
        replay = f" (recomputed from step {resumed_step})" if resumed_step != to_step else ""
        self.log_warning(
            f"skipping has not helped: the run is rewound from step {from_step} to step "
            f"{to_step}{replay} and continues with other text"
        )

    def log_jump(self, jump: Jump, windows: int) -> None:
        """Log the jump of the data cursor to `windows`, at the step that a rewind led to."""
        self._append_metrics(
            {"step": jump.step, "rewound_from": jump.from_step, "windows": windows}
        )

    def log_end(self, val_loss: float | None, best: float | None, best_step: int | None) -> None:
        """Note if a finished run's validation loss was clearly better before its end."""
        note = overfitting_note(val_loss, best, best_step)
        if note is not None:
            self.log_note(note)

    def log_activity(self, activity: str, expected_s: float) -> None:
        """Notify the observer of what now takes the time between steps, and about how much."""
        if self.world.is_main:
            about = f" (about {format_duration(expected_s)})" if expected_s >= 1 else ""
            self.observe(Progress(f"step {self._newest_step}: {activity}{about}", 0, 0))

    def log_note(self, text: str) -> None:
        """Send the observer a note."""
        if self.world.is_main:
            self.observe(Note(text))

    def log_warning(self, text: str) -> None:
        """Send the observer a warning."""
        if self.world.is_main:
            self.observe(Note(text, is_warning=True))

    def exclude(self, seconds: float) -> None:
        """Exclude time that was not spent training from the token rate."""
        self._logged_at_s += seconds

    @contextmanager
    def excluded(self) -> Iterator[None]:
        """Within the block, exclude the time from the token rate."""
        started_s = time.monotonic()
        yield
        self.exclude(time.monotonic() - started_s)

    def _append_metrics(self, line: Mapping[str, object]) -> None:
        if self.world.is_main:
            self.directory.append(self.directory.metrics, line)

    def _mfu(self, tokens_per_s: float) -> float | None:
        if not self.peak_flops:
            return None
        return self.flops_per_token * tokens_per_s / self.peak_flops / self.world.size

    def _warn_of_repetition(self, steps: int | None) -> None:
        """Warn once, when the number of steps is first known."""
        if steps is None or self._is_length_known:
            return
        self._is_length_known = True
        tokens_per_step = self.options.chosen_tokens_per_step
        for warning in repetition_warnings(steps, tokens_per_step, self.text_tokens, self.mixture):
            self.log_warning(warning)
