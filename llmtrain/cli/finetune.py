"""`llmtrain finetune`."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import typer

from llmtrain.cli import completion, options
from llmtrain.cli.output import Output
from llmtrain.cli.thresholds import positive
from llmtrain.cli.train import deadline_of, is_deadline, show_dry_run, train_request
from llmtrain.errors import UsageError

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
    time: Annotated[
        str | None, typer.Option("--time", help="Finish after 150s, 30m, 2h …, or by until=07:30.")
    ] = None,
    steps: Annotated[int | None, options.whole_number("--steps", "Optimizer steps.")] = None,
    epochs: Annotated[
        float | None, typer.Option("--epochs", help="Passes over the conversations; default: 3.")
    ] = None,
    set_: options.Set = None,
    out: Annotated[
        Path | None, typer.Option("--out", help="The run directory; default: under runs/.")
    ] = None,
    resume: Annotated[
        str | None,
        typer.Option(
            "--resume",
            metavar="auto|RUN",
            help="Continue a run from its last checkpoint.",
            autocompletion=completion.resumable_names,
        ),
    ] = None,
    nproc: options.Nproc = None,
    seed: Annotated[int | None, options.whole_number("--seed", "Seed of the data order.")] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Show the plan and its cost; train nothing.")
    ] = False,
    max_loss: Annotated[
        float | None,
        typer.Option(
            "--max-loss",
            metavar="NATS",
            help="Exit with 6 if the final validation loss per token is above this.",
        ),
    ] = None,
) -> int:
    """Teach a model to answer, on conversations, or by preferences between two answers (DPO).

    Only what the assistant says carries loss.
    """
    from llmtrain.train.signals import stop_on_signals

    positive("--max-loss", max_loss)
    if model is None and resume is None:
        raise UsageError(
            "no model is named to fine-tune", hint="llmtrain finetune RUN --data chat.jsonl"
        )
    with stop_on_signals() as stop:  # before torch is imported, which takes seconds
        from llmtrain.machine.startup import prepare_for_torch

        prepare_for_torch()
        request = options.request_of(
            profile,
            set_,
            data_sources=options.weighted_sources(data, weight),
            model_init_from=model,
            train_steps=steps,
            train_epochs=epochs,
            train_time=None if is_deadline(time) else time,
            train_seed=seed,
            device_kind=device,
            device_force_cpu=force_cpu,
            device_processes=nproc,
            **lora_settings(lora),
        )
        request = replace(
            request,
            out=out,
            resume=resume,
            deadline=deadline_of(time),
            command=["llmtrain", *sys.argv[1:]],
            purpose="finetune",
        )
        if dry_run:
            stop.check()
            show_dry_run(output, request)
            return 0
        return train_request(output, request, stop, max_loss)


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
