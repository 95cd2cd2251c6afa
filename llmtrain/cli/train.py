"""`llmtrain train`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from llmtrain.cli import options
from llmtrain.cli.output import Output
from llmtrain.cli.run_training import RunFlags, duration_of, train_or_show
from llmtrain.errors import UsageError

if TYPE_CHECKING:
    from llmtrain.engine.request import TrainRequest


def train(
    output: Output,
    profile: options.Profile = None,
    data: options.Data = None,
    weight: options.Weight = None,
    device: options.Device = None,
    force_cpu: options.ForceCpu = False,
    time: options.Time = None,
    steps: options.Steps = None,
    tokens: Annotated[
        str | None, typer.Option("--tokens", help="Tokens to train on, as in 50M.")
    ] = None,
    epochs: Annotated[float | None, typer.Option("--epochs", help="Passes over the text.")] = None,
    set_: options.Set = None,
    out: options.RunDirectory = None,
    resume: options.Resume = None,
    nproc: options.Nproc = None,
    seed: Annotated[
        int | None, options.whole_number("--seed", "Seed of the weights and the data order.")
    ] = None,
    tokenizer: Annotated[
        str | None,
        typer.Option("--tokenizer", help="A tokenizer's directory or file; default: train one."),
    ] = None,
    init_from: options.InitFrom = None,
    reserve: Annotated[
        int | None,
        options.whole_number("--reserve", "Control pieces to add to the tokenizer.", 0),
    ] = None,
    text_field: options.ProfileTextField = None,
    log_to: Annotated[
        list[str] | None,
        typer.Option(
            "--log-to",
            metavar="tensorboard|trackio|wandb|mlflow",
            help="Send the metrics to a tracker too. Repeatable.",
        ),
    ] = None,
    dry_run: options.DryRun = False,
    max_loss: options.MaxLoss = None,
    assume: options.Assume = None,
) -> int:
    """Train a model. Without --profile, one is chosen for the machine and the time."""
    if assume is not None and not dry_run:
        raise UsageError("--assume: an assumed machine cannot train", hint="add --dry-run")

    def request() -> TrainRequest:
        return options.request_of(
            profile,
            set_,
            assume,
            data_sources=options.weighted_sources(data, weight),
            data_text_field=text_field,
            data_tokenizer=tokenizer,
            data_tokenizer_reserve=reserve,
            model_init_from=init_from,
            train_steps=steps,
            train_tokens=tokens,
            train_epochs=epochs,
            train_time=duration_of(time),
            train_seed=seed,
            device_kind=device,
            device_force_cpu=force_cpu,
            device_processes=nproc,
            log_to=log_to,
        )

    return train_or_show(output, request, RunFlags(out, resume, time, dry_run, max_loss))
