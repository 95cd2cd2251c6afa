"""Options that several commands share, and how flags become settings."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

if TYPE_CHECKING:
    from llmtrain.profile.load import Setting
    from llmtrain.profile.schema import DeviceSection

Device = Literal["auto", "cpu", "cuda", "mps"]

ProfileOption = Annotated[
    str | None, typer.Option("--profile", "-p", help="A shipped profile's name, or a YAML file.")
]
DataOption = Annotated[
    list[str] | None,
    typer.Option(
        "--data",
        help="Text: a file, directory, glob, .jsonl, .gz, or builtin:python. Repeatable.",
    ),
]
DeviceOption = Annotated[
    Device | None, typer.Option("--device", help="Where to compute; auto: CUDA, MPS, CPU.")
]
ForceCpuOption = Annotated[
    bool, typer.Option("--force-cpu", help="The CPU, whatever else is there.")
]
SetOption = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE", help="Any profile value. Repeatable."),
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print one JSON document on stdout.")]
NprocOption = Annotated[
    int | None, typer.Option("--nproc", min=1, help="Processes on this machine.")
]


def flag_settings(**flags: Any) -> dict[str, Setting]:
    """Profile settings of named flags: `train_steps=5` is train.steps, said by --steps.

    A flag that was not given (None, False, empty) says nothing.
    """
    from llmtrain.profile.load import Setting

    names = {
        "data_sources": "--data",
        "data_text_field": "--text-field",
        "data_tokenizer": "--tokenizer",
        "train_steps": "--steps",
        "train_tokens": "--tokens",
        "train_epochs": "--epochs",
        "train_time": "--time",
        "train_seed": "--seed",
        "device_kind": "--device",
        "device_force_cpu": "--force-cpu",
        "device_processes": "--nproc",
    }
    return {
        key.replace("_", ".", 1): Setting(value, names[key])
        for key, value in flags.items()
        if value is not None and value is not False and value != []
    }


def device_section(device: Device | None, force_cpu: bool) -> DeviceSection:
    """The device wishes of a command that has no profile."""
    from llmtrain.profile.schema import DeviceSection

    return DeviceSection(kind=device or "auto", force_cpu=force_cpu)
