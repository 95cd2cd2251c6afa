"""The closing lines of a training run: result, predictions, and the next commands."""

from __future__ import annotations

import shlex
from collections.abc import Iterator

from llmtrain.plan.past_runs import rate_remark
from llmtrain.train.events import TrainResult
from llmtrain.train.run_directory.directory import RunDirectory
from llmtrain.units import format_bytes, format_count, format_duration

_PROMPT_CHARACTERS = 30
_ENDINGS = {"done": "done", "time": "time is up", "interrupted": "interrupted"}


def summary_lines(result: TrainResult) -> list[str]:
    """Return the result of a run, and what to type next."""
    if result.already_finished:
        return [f"already finished: {result.run}, {result.steps} steps"]
    lines = []
    if result.steps:
        rate = (
            f", {format_count(round(result.tokens_per_s))} tokens/s" if result.tokens_per_s else ""
        )
        lines.append(
            f"{_ENDINGS[result.stopped]} after {result.steps} steps, "
            f"{format_count(result.tokens)} tokens, {format_duration(result.seconds)}{rate}"
        )
    if result.val_loss is not None and result.val_bpb is not None:
        lines.append(
            f"validation loss {result.val_loss:.4f} nats/{result.loss_is_per}, "
            f"{result.val_bpb:.4f} bits/byte"
        )
    if result.energy_joules is not None:
        lines.append(f"energy {result.energy_joules / 3.6e6:.3g} kWh in this session")
    lines.extend(_beside_predictions(result))
    return [*lines, *next_commands(result)]


def _beside_predictions(result: TrainResult) -> Iterator[str]:
    """Yield measured values beside the predicted ones."""
    if result.predicted_peak_bytes is not None:
        measured, predicted = result.peak_memory_bytes, result.predicted_peak_bytes
        yield f"peak memory {format_bytes(measured)}, predicted {format_bytes(predicted)}"
    if result.predicted_tokens_per_s is not None and result.step_s is not None:
        rate = result.trained_tokens_per_step / result.step_s
        line = f"typical step {format_count(round(rate))} tokens/s, predicted "
        line += f"{format_count(round(result.predicted_tokens_per_s))}"
        if result.predicted_seconds is not None and result.stopped == "done":
            line += f"; {format_duration(result.seconds)}, predicted "
            line += format_duration(result.predicted_seconds)
        yield line
        predicted_rate = result.predicted_tokens_per_s
        if remark := rate_remark(rate, predicted_rate, result.waited_share):
            yield remark


def next_commands(result: TrainResult) -> list[str]:
    """Return lines with the commands that go on from the result."""
    if result.checkpoint is None and not RunDirectory(result.run).exists:
        return ["nothing was trained yet; the same command starts again"]
    run = shlex.quote(str(result.run))
    if result.stopped == "interrupted":
        return [f"resume:   llmtrain train --out {run} --resume auto"]
    use = f"generate: llmtrain generate {run}{_prompt_option(result.prompt_example)}"
    if result.is_chat:
        use = f"chat:     llmtrain chat {run}"
    return [f"run:      {result.run}", f"evaluate: llmtrain eval {run}", use]


def _prompt_option(text: str | None) -> str:
    """Return `--prompt` with the first words of the first line of `text`; empty without any."""
    words = next((line.split() for line in (text or "").splitlines() if line.strip()), [])
    prompt = ""
    for word in words:
        if len(prompt) + len(word) >= _PROMPT_CHARACTERS:
            break
        prompt = f"{prompt} {word}".lstrip()
    if not prompt.isprintable() or not prompt:
        return ""
    return f" --prompt {shlex.quote(prompt)}"
