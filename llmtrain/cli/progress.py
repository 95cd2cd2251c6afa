"""Progress of a run: a live line on a terminal, plain lines elsewhere."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager

from rich.live import Live
from rich.text import Text

from llmtrain.cli.output import Output
from llmtrain.machine.live_memory import LiveMemory
from llmtrain.progress import Note, Progress
from llmtrain.train.events import Evaluated, Event, Observer, Sampled, Saved, Started, Step
from llmtrain.units import counted, format_bytes, format_count, format_duration

_PROGRESS_INTERVAL_S = 5.0
_COMPILES = "the first step compiles: up to a minute, less where it was compiled before"


@contextmanager
def watching(output: Output) -> Iterator[Observer]:
    """Yield an observer that prints every event to `output` while the block runs."""
    if not output.is_live:
        yield PlainProgress(output)
        return
    with Live(console=output.stderr, transient=True, refresh_per_second=8) as live:
        yield LiveProgress(output, live)


class PlainProgress:
    """Print a line per event, for files and pipes."""

    def __init__(self, output: Output) -> None:
        self.output = output
        self.phase, self.shown_tenths, self.shown_s = "", 0, 0.0
        self.best = ""

    def __call__(self, event: Event) -> None:
        if isinstance(event, Progress):
            self.progress(event)
        elif isinstance(event, Step):
            self.step(event)
        elif isinstance(event, Note) and event.is_warning:
            self.output.warning(event.text)
        else:
            for line in lines(event):
                self.output.note(line)
        if isinstance(event, Started):
            for name, choice in event.plan.choices():
                self.output.detail(f"  {name}: {choice.value} ({choice.reason})")
        if isinstance(event, Evaluated) and event.is_best:
            self.best = f"  best {event.val_loss:.3f}"

    def progress(self, event: Progress) -> None:
        """Print a line for each tenth, at most one every few seconds."""
        now_s = time.monotonic()
        if event.phase != self.phase:
            self.phase, self.shown_tenths, self.shown_s = event.phase, 0, now_s
        tenths = 10 * event.done // max(1, event.total)
        if tenths != self.shown_tenths and now_s - self.shown_s >= _PROGRESS_INTERVAL_S:
            self.shown_tenths, self.shown_s = tenths, now_s
            self.output.note(progress_line(event))

    def step(self, event: Step) -> None:
        """Print a line for each logged step."""
        if event.is_logged:
            self.output.note(step_line(event))


class LiveProgress(PlainProgress):
    """Redraw one line, with lasting messages above it."""

    def __init__(self, output: Output, live: Live) -> None:
        super().__init__(output)
        self.live = live

    def progress(self, event: Progress) -> None:
        """Show the progress in the line."""
        self.live.update(Text(progress_line(event)))

    def step(self, event: Step) -> None:
        """Show the newest step in the line; logged ones stay with -v."""
        self.live.update(Text(step_line(event) + self.best, overflow="ellipsis", no_wrap=True))
        if event.is_logged:
            self.output.detail(step_line(event))


def progress_line(event: Progress) -> str:
    """Return `tokenizing 40% of 31.5 MiB, left 12s`; only the phase if the total is unknown."""
    if not event.total:
        return event.phase
    percent = 100 * event.done // max(1, event.total)
    left = f", left {format_duration(event.remaining_s)}" if event.remaining_s else ""
    return f"{event.phase} {percent}% of {format_bytes(event.total)}{left}"


def step_line(event: Step) -> str:
    """Return step, remaining time, loss, speed, tokens, learning rate and memory.

    A narrow terminal cuts off the end.
    """
    of = f"/{event.horizon_steps}" if event.horizon_steps else ""
    left = f"  left {format_duration(event.remaining_s)}" if event.remaining_s is not None else ""
    return (
        f"step {event.step}{of}{left}  loss {event.loss:.4f}  "
        f"{format_count(round(event.tokens_per_s))} tok/s  tokens {format_count(event.tokens)}  "
        f"lr {event.lr:.2e}  {memory_text(event.memory)}"
    )


def memory_text(memory: LiveMemory) -> str:
    """Return `1.2 GiB + 20 GiB gpu, 31% used`: of the run, and of the tightest limit."""
    gpu = memory.accelerator
    own = format_bytes(memory.process_bytes)
    if gpu is not None:
        own += f" + {format_bytes(gpu.reserved_bytes or 0)} gpu"
    percent = memory.tightest_percent
    return own if percent is None else f"{own}, {percent:.0f}% used"


def lines(event: Event) -> list[str]:
    """Return an event other than a step as lines of text."""
    if isinstance(event, Note):
        return [event.text]
    if isinstance(event, Started):
        return _started(event)
    if isinstance(event, Evaluated):
        best = "  (best)" if event.is_best else ""
        return [
            (
                f"step {event.step}  validation loss {event.val_loss:.4f}  "
                f"{event.val_bpb:.4f} bits/byte{_rewards(event)}{best}"
            )
        ]
    if isinstance(event, Sampled):
        return [f"step {event.step}  sample: {event.prompt + event.text!r}"]
    if isinstance(event, Saved):
        return [f"step {event.step}  saved {event.path}"]
    return []


def _started(event: Started) -> list[str]:
    plan = event.plan
    horizon = (
        f"{event.horizon_steps} steps"
        if event.horizon_steps is not None
        else format_duration(event.horizon_s or 0)
    )
    action = f"resuming from step {event.from_step} of" if event.from_step else "training"
    epochs = ""
    if event.horizon_steps is not None:
        share = event.horizon_steps * event.tokens_per_step / event.train_tokens
        epochs = f" ({share:.2g} epochs)"
    return [
        (
            f"{action} {event.run}: {format_count(event.parameters)} parameters, {horizon} of "
            f"{format_count(event.tokens_per_step)} tokens"
        ),
        (
            f"on {plan.device.value} in {plan.precision.value}, "
            f"{counted(plan.threads.value, 'thread')}, "
            f"micro-batch {plan.micro_batch.value} × {plan.accumulation.value}, "
            f"{format_bytes(event.prediction.total_bytes)} predicted"
        ),
        (
            f"{format_count(event.train_tokens)} tokens to train on{epochs}, "
            f"{format_count(event.validation_tokens)} to validate"
        ),
        *([_COMPILES] if plan.compile.value else []),
    ]


def _rewards(event: Evaluated) -> str:
    """Return what pairs of answers have more than a loss."""
    if event.reward_margin is None or event.reward_accuracy is None:
        return ""
    return f"  margin {event.reward_margin:.3f}  prefers {event.reward_accuracy:.1%} as chosen"
