"""`llmtrain finetune`."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Annotated, Any

import typer

from llmtrain.cli import completion, options
from llmtrain.cli.output import Output
from llmtrain.cli.run_training import RunFlags, duration_of, train_or_show
from llmtrain.errors import UsageError

if TYPE_CHECKING:
    from llmtrain.engine.request import TrainRequest

_ROWS = (
    "Conversations: a .jsonl, .json, .parquet, .arrow or .csv, or hf://OWNER/NAME, with rows "
    '{"messages": [{"role": "user", "content": "…"}, {"role": "assistant", "content": "…"}]} or '
    '{"prompt": "…", "completion": "…"}. Or preferences, for DPO: rows {"prompt": "…", '
    '"chosen": "…", "rejected": "…"}. Repeatable.'
)


def finetune(
    output: Output,
    model: Annotated[
        str | None,
        typer.Argument(
            metavar="[RUN]",
            help="The model: a run, a checkpoint, a Qwen3 or Llama directory, or hf://OWNER/NAME. "
            "Only with --resume it may be left out.",
            autocompletion=completion.run_names,
        ),
    ] = None,
    profile: options.Profile = None,
    data: Annotated[list[str] | None, typer.Option("--data", help=_ROWS)] = None,
    weight: options.Weight = None,
    lora: Annotated[
        str | None,
        typer.Option(
            "--lora",
            metavar="r=16,alpha=32,targets=all",
            help="Train adapters of rank r beside frozen weights; targets are all, or names such "
            "as q_proj+v_proj. Without it all weights are trained.",
        ),
    ] = None,
    device: options.Device = None,
    force_cpu: options.ForceCpu = False,
    time: options.Time = None,
    steps: options.Steps = None,
    epochs: Annotated[
        float | None, typer.Option("--epochs", help="Passes over the conversations; default: 3.")
    ] = None,
    set_: options.Set = None,
    out: options.RunDirectory = None,
    resume: options.Resume = None,
    nproc: options.Nproc = None,
    seed: Annotated[int | None, options.whole_number("--seed", "Seed of the data order.")] = None,
    dry_run: options.DryRun = False,
    max_loss: options.MaxLoss = None,
) -> int:
    """Teach a model to answer, on conversations, or by preferences between two answers (DPO).

    Only what the assistant says carries loss.
    """
    if model is None and resume is None:
        raise UsageError(
            "no model is named to fine-tune", hint="llmtrain finetune RUN --data chat.jsonl"
        )

    def request() -> TrainRequest:
        settings = options.request_of(
            profile,
            set_,
            data_sources=options.weighted_sources(data, weight),
            model_init_from=model,
            train_steps=steps,
            train_epochs=epochs,
            train_time=duration_of(time),
            train_seed=seed,
            device_kind=device,
            device_force_cpu=force_cpu,
            device_processes=nproc,
            **lora_settings(lora),
        )
        return replace(settings, purpose="finetune")

    return train_or_show(output, request, RunFlags(out, resume, time, dry_run, max_loss))


def lora_settings(text: str | None) -> dict[str, Any]:
    """Return the flags of `--lora r=16,alpha=32,targets=all`. Raises UsageError."""
    if text is None:
        return {}
    names = {"r": "lora_rank", "alpha": "lora_alpha", "targets": "lora_targets"}
    settings: dict[str, Any] = {"lora_rank": 16}
    for part in filter(None, text.split(",")):
        name, equals, value = part.partition("=")
        if name.strip() not in names or not equals or not value.strip():
            raise UsageError(
                f"--lora {text}: {part!r} is none of r=N, alpha=X and targets=NAMES",
                hint="--lora r=16,alpha=32,targets=all",
            )
        key = names[name.strip()]
        settings[key] = _lora_value(key, value.strip(), text)
    return settings


def _lora_value(key: str, value: str, text: str) -> object:
    if key == "lora_targets":
        return value if value == "all" else value.split("+")
    try:
        return int(value) if key == "lora_rank" else float(value)
    except ValueError:
        raise UsageError(
            f"--lora {text}: {value!r} is not a number", hint="--lora r=16,alpha=32,targets=all"
        ) from None
