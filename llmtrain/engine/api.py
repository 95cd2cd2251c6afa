"""The engine for Python: the same calls that the command line makes, with plain arguments."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from llmtrain.engine.evaluation import Evaluation, evaluate_run
from llmtrain.engine.inference import generate_text, load_trained
from llmtrain.engine.plan_run import plan_run
from llmtrain.engine.request import TrainRequest, resolve_profile
from llmtrain.engine.train_run import run_training
from llmtrain.engine.train_session import TrainSession
from llmtrain.generate.sampling import Sampling
from llmtrain.plan.planned import Planned
from llmtrain.profile.load import load_section
from llmtrain.profile.schema import DeviceSection
from llmtrain.profile.setting import Setting
from llmtrain.train.distributed.world import world_from_environment
from llmtrain.train.events import Event, Observer, TrainResult
from llmtrain.train.signals import StopRequest, stop_on_signals


def _ignore(event: Event) -> None:
    """Ignore an event."""


def plan(profile: str | None = None, settings: Mapping[str, Any] | None = None) -> Planned:
    """Return how this machine would train a profile: decisions, and predicted memory.

    `settings` are dotted keys, as in `{"train.steps": 100}`. Raises UsageError,
    DoesNotFitError.
    """
    request = TrainRequest(profile=profile, flags=_flags(settings))
    resolved = resolve_profile(request)
    return plan_run(resolved.loaded.profile, facts=resolved.facts)


def train(
    profile: str | None = None,
    *,
    data: Sequence[str] = (),
    settings: Mapping[str, Any] | None = None,
    out: str | Path | None = None,
    resume: str | None = None,
    observe: Observer = _ignore,
) -> TrainResult:
    """Train a model and save it in a run directory. Raises LlmtrainError.

    `data` are sources as `--data` takes them; `settings` dotted keys of a profile; `observe` is
    called with every event of `llmtrain.train.events`. Under torchrun each rank calls it.
    SIGINT and SIGTERM save the run after the current step and end it.
    """
    request = TrainRequest(
        profile=profile,
        flags=_flags(settings, data),
        out=Path(out) if out is not None else None,
        resume=resume,
    )
    with stop_on_signals() as stop:
        return run_training(request, TrainSession(world_from_environment(), observe, stop))


def evaluate(
    run: str | Path, *, data: Sequence[str] = (), device: str = "auto", observe: Observer = _ignore
) -> Evaluation:
    """Return the loss of the run's newest checkpoint on its validation text, or on `data`."""
    return evaluate_run(str(run), data, _options(device), observe, StopRequest().check)


def generate(
    run: str | Path,
    prompt: str = "",
    *,
    max_tokens: int = 100,
    sampling: Sampling | None = None,
    device: str = "auto",
    observe: Observer = _ignore,
) -> Iterator[str]:
    """Yield text that continues `prompt`, as it is sampled."""
    trained = load_trained(str(run), _options(device), observe)
    return generate_text(trained, prompt, sampling or Sampling(), max_tokens, StopRequest().check)


def _options(device: str) -> DeviceSection:
    """Return the options for a device by name. Raises UsageError."""
    kind = {"device.kind": Setting(device, "argument device")}
    return load_section(DeviceSection, "device", kind)


def _flags(settings: Mapping[str, Any] | None, data: Sequence[str] = ()) -> dict[str, Setting]:
    flags = {key: Setting(value, f"argument {key}") for key, value in (settings or {}).items()}
    if data:
        flags["data.sources"] = Setting(list(data), "argument data")
    return flags
