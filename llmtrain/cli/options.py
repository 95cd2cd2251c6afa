"""Options that several commands share, and their conversion to profile settings."""

from __future__ import annotations

import math
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from llmtrain.cli import completion
from llmtrain.units import HIGHEST_PORT

if TYPE_CHECKING:
    from llmtrain.engine.request import TrainRequest
    from llmtrain.machine.assume import AssumedMachine
    from llmtrain.profile.schema import DeviceSection
    from llmtrain.profile.setting import Setting

_WITHOUT_SECTION = {"log_to"}  # keys at the top of a profile
DeviceName = Literal["auto", "cpu", "cuda", "mps"]

Profile = Annotated[
    str | None,
    typer.Option(
        "--profile",
        "-p",
        metavar="NAME",
        help="A shipped profile's name, or a YAML file.",
        autocompletion=completion.profile_names,
    ),
]
Run = Annotated[
    str,
    typer.Argument(
        metavar="RUN",
        help="A run directory, a checkpoint, or a name under runs/.",
        autocompletion=completion.run_names,
    ),
]
Runs = Annotated[
    list[str],
    typer.Argument(
        metavar="RUN...",
        help="Run directories, checkpoints, or names under runs/.",
        autocompletion=completion.run_names,
    ),
]
Data = Annotated[
    list[str] | None,
    typer.Option(
        "--data",
        help="Text: a file (.txt, .jsonl, .csv, .parquet, .zip …), a directory, a glob, one of "
        "these at s3:// or https://, hf://OWNER/NAME[/CONFIG][:SPLIT][#COLUMN], - for stdin, or "
        "builtin:python, the default where no profile names text. Repeatable.",
    ),
]
Weight = Annotated[
    list[float] | None,
    typer.Option(
        "--weight",
        help="The weight of the --data in the same position, one for each. "
        "A source's share of the training tokens is its weight over the sum of all, "
        "whatever its size; without weights it is by size. In a profile: "
        "data.sources: [{spec: a.jsonl, weight: 2}, …].",
    ),
]
InitFrom = Annotated[
    str | None,
    typer.Option(
        "--init-from",
        metavar="MODEL",
        help="Continue a model: a run, a Qwen3 or Llama directory, or hf://OWNER/NAME. Its shape "
        "and tokenizer replace the profile's.",
        autocompletion=completion.run_names,
    ),
]
Device = Annotated[
    DeviceName | None, typer.Option("--device", help="The device; auto: CUDA, else MPS, else CPU.")
]
ForceCpu = Annotated[bool, typer.Option("--force-cpu", help="Use the CPU even if there is a GPU.")]
Set = Annotated[
    list[str] | None,
    typer.Option(
        "--set",
        metavar="KEY=VALUE",
        help="Set any profile value. Repeatable.",
        autocompletion=completion.assignments,
    ),
]
Time = Annotated[
    str | None, typer.Option("--time", help="Finish after 150s, 30m, 2h …, or by until=07:30.")
]
RunDirectory = Annotated[
    Path | None, typer.Option("--out", help="The run directory; default: under runs/.")
]
Resume = Annotated[
    str | None,
    typer.Option(
        "--resume",
        metavar="auto|RUN",
        help="Continue a run from its last checkpoint.",
        autocompletion=completion.resumable_names,
    ),
]
DryRun = Annotated[
    bool, typer.Option("--dry-run", help="Show the plan and its cost; train nothing.")
]
MaxLoss = Annotated[
    float | None,
    typer.Option(
        "--max-loss",
        metavar="NATS",
        help="Exit with 6 if the final validation loss per token is above this.",
    ),
]
Assume = Annotated[
    str | None,
    typer.Option(
        "--assume",
        metavar="SPEC",
        help="Plan for another machine: cuda:80GiB, cuda:8x80GiB:64c (GPUs, then cores), "
        "mps:16GiB, cpu:8c:32GiB; then instruction sets as in :amx_bf16, :no-bf16 (of the GPU), "
        ":no-compiler.",
    ),
]
Overwrite = Annotated[
    bool, typer.Option("--overwrite", help="Replace the tokenizer that is in --out.")
]
TextField = Annotated[
    str, typer.Option("--text-field", help="The field or column that is the text.")
]
ProfileTextField = Annotated[  # None: as in the profile
    str | None,
    typer.Option("--text-field", help="The field or column that is the text; default: text."),
]


def whole_number(
    flag: str, help_text: str, least: int | None = None, most: int | None = None
) -> Any:
    """Return an option that is an integer from `least` to `most`, written as `5000` or `5e3`."""

    def parse(given: str | int) -> int:
        from llmtrain.units import parse_count

        text = str(given)  # a default is parsed too
        try:
            number = -parse_count(text[1:]) if text.startswith("-") else parse_count(text)
        except ValueError:
            raise typer.BadParameter(
                f"has to be a whole number, not {text:.40}; write 20000, 20k or 2e4"
            ) from None
        is_too_small = least is not None and number < least
        if is_too_small or (most is not None and number > most):
            limits = f"at least {least}" + ("" if most is None else f" and at most {most}")
            raise typer.BadParameter(f"has to be {limits}, not {text:.40}")
        return number

    return typer.Option(flag, metavar="NUMBER", parser=parse, help=help_text)


def decimal_number(
    flag: str, help_text: str, least: float, most: float | None = None, *, above: bool = False
) -> Any:
    """Return an option that is a finite number from `least`, or `above` it, to `most`."""

    def parse(given: str | float) -> float:
        try:
            number = float(given)  # a default is parsed too
        except ValueError:
            number = math.nan
        is_in_range = number > least if above else number >= least
        if not (is_in_range and number <= (sys.float_info.max if most is None else most)):
            limits = f"{'above' if above else 'at least'} {least:g}"
            limits += "" if most is None else f" and at most {most:g}"
            raise typer.BadParameter(f"has to be a number {limits}, not {given!s:.40}")
        return number

    return typer.Option(flag, metavar="NUMBER", parser=parse, help=help_text)


Temperature = Annotated[
    float, decimal_number("--temperature", "0: always the most likely token.", 0)
]
TopK = Annotated[int | None, whole_number("--top-k", "Sample from the k most likely tokens.", 1)]
TopP = Annotated[
    float | None,
    decimal_number(
        "--top-p",
        "Sample from the most likely tokens that together have this probability.",
        0,
        1,
        above=True,
    ),
]
RepetitionPenalty = Annotated[
    float, decimal_number("--repetition-penalty", "Above 1: fewer repetitions.", 1, 100)
]


def port(help_text: str) -> Any:
    """Return the option `--port`; 0 is any free one."""
    return whole_number("--port", help_text, 0, HIGHEST_PORT)


Nproc = Annotated[int | None, whole_number("--nproc", "Processes on this machine.", 1)]
Steps = Annotated[int | None, whole_number("--steps", "Optimizer steps.")]


def weighted_sources(data: list[str] | None, weights: list[float] | None) -> list[Any] | None:
    """Return data.sources of `--data` and `--weight`; None if not given. Raises UsageError."""
    from llmtrain.errors import UsageError

    if not weights:
        return data or None
    specs = data or []
    if len(specs) != len(weights):
        raise UsageError(
            f"there are {len(specs)} --data and {len(weights)} --weight",
            hint="--data a.jsonl --weight 2 --data b.jsonl --weight 1: one weight per source",
        )
    for spec, weight in zip(specs, weights, strict=True):
        if not 0 < weight < float("inf"):
            raise UsageError(
                f"--weight {weight:g} of --data {spec}: it has to be a number above 0",
                hint="leave out that --data, or give it a weight such as --weight 0.1",
            )
    return [{"spec": s, "weight": w} for s, w in zip(specs, weights, strict=True)]


def flag_settings(**flags: Any) -> dict[str, Setting]:
    """Return profile settings of flags: `train_steps=5` sets train.steps, with origin --steps.

    Flags that were not given (None, False, an empty list) are left out.
    """
    from llmtrain.profile.setting import Setting

    flag_of = {
        "data_sources": "data",
        "data_tokenizer_reserve": "reserve",
        "model_init_from": "init-from",
        "data_rows": "chat",
        "lora_rank": "lora",
        "lora_alpha": "lora",
        "lora_targets": "lora",
        "device_kind": "device",
        "device_processes": "nproc",
        "log_to": "log-to",
    }
    given = {key: v for key, v in flags.items() if v is not None and v is not False and v != []}
    settings = {}
    for key, value in given.items():
        flag = flag_of.get(key, key.partition("_")[2]).replace("_", "-")
        path = key if key in _WITHOUT_SECTION else key.replace("_", ".", 1)
        settings[path] = Setting(value, f"--{flag}")
    return settings


def request_of(
    profile: str | None, assignments: list[str] | None, assume: str | None = None, **flags: Any
) -> TrainRequest:
    """Return the request of a command that plans; `flags` as `flag_settings` takes them."""
    from llmtrain.engine.request import TrainRequest

    assumed = assumed_machine(assume)
    return TrainRequest(profile, assignments or [], flag_settings(**flags), assumed=assumed)


def device_section(device: DeviceName | None, force_cpu: bool) -> DeviceSection:
    """Return the device options of a command without a profile."""
    from llmtrain.profile.schema import DeviceSection

    return DeviceSection(kind=device or "auto", force_cpu=force_cpu)


def assumed_machine(spec: str | None) -> AssumedMachine | None:
    """Return the machine that `--assume` names, with the versions of this one; None: this one."""
    if spec is None:
        return None
    import platform
    from importlib.metadata import version

    from llmtrain.machine.assume import assume_machine

    return assume_machine(
        spec,
        python_version=platform.python_version(),
        torch_version=version("torch").partition("+")[0],
    )
