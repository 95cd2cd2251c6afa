"""`llmtrain profiles list|show|validate|schema`."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Annotated, Any

import typer

from llmtrain.cli import completion, options
from llmtrain.cli.output import Output
from llmtrain.cli.yaml_lines import commented, yaml_scalar

if TYPE_CHECKING:
    from rich.table import Table

    from llmtrain.choice import Choice
    from llmtrain.documents.profiles import ListedProfile
    from llmtrain.engine.explain import Explained
    from llmtrain.profile.load import LoadedProfile
    from llmtrain.profile.schema import Profile

NameArgument = Annotated[
    str,
    typer.Argument(
        metavar="PROFILE",
        help="A shipped profile's name, or a YAML file.",
        autocompletion=completion.profile_names,
    ),
]


def _parameters(profile: Profile) -> int | None:
    """Return the number of weights; None for fine-tuning, which takes the shape of its model."""
    from llmtrain.profile.shape import shape_of

    return shape_of(profile.model).parameters if profile.data.rows == "text" else None


def list_profiles(output: Output) -> None:
    """List the shipped profiles with their sizes."""
    from llmtrain.documents.profiles import ListedProfile, ProfilesList
    from llmtrain.profile.load import load_profile, shipped_profiles

    profiles = []
    for name, path in shipped_profiles().items():
        profile = load_profile(name, environment={}).profile
        parameters = _parameters(profile)
        profiles.append(
            ListedProfile.of(
                profile.model,  # context
                name=name,
                parameters=parameters,
                vocab_size=None if parameters is None else profile.model.vocab_size,
                tokens_per_step=profile.train.tokens_per_step,
                path=path,
            )
        )
    output.answer(ProfilesList.of(profiles=profiles), [_list_table(profiles)])


def _list_table(profiles: Sequence[ListedProfile]) -> Table:
    from llmtrain.cli.tables import columns_table
    from llmtrain.units import format_count

    columns = ("profile", "parameters", "context", "vocabulary", "tokens per step")
    rows = []
    for each in sorted(profiles, key=lambda each: each.parameters or math.inf):
        step = each.tokens_per_step
        per_step = f"{step:,}" if isinstance(step, int) else step
        size = "the model's" if each.parameters is None else format_count(each.parameters)
        pieces = "its own" if each.vocab_size is None else f"{each.vocab_size:,}"
        rows.append((each.name, size, f"{each.context:,}", pieces, per_step))
    return columns_table(columns, rows, numbers=columns[1:])


def show(
    output: Output,
    profile: NameArgument,
    device: options.Device = None,
    force_cpu: options.ForceCpu = False,
    nproc: options.Nproc = None,
    set_: options.Set = None,
    resolved: Annotated[
        bool,
        typer.Option(
            "--resolved", help="Also the value of each auto on this machine, and all decisions."
        ),
    ] = False,
    assume: options.Assume = None,
) -> None:
    """Show every value of a profile and its origin, as YAML that `--profile` takes."""
    from llmtrain.documents.profiles import ProfilesShow, ProfilesShowResolved
    from llmtrain.profile.load import load_profile

    flags = {"device_kind": device, "device_force_cpu": force_cpu, "device_processes": nproc}
    if resolved or assume is not None:
        from llmtrain.engine.explain import explain

        explained = explain(options.request_of(profile, set_, assume, **flags))
        document = ProfilesShowResolved.of_resolved(explained)
        output.answer(document, _resolved_lines(explained))
    else:
        settings = options.flag_settings(**flags)
        loaded = load_profile(profile, assignments=set_ or [], flags=settings)
        output.answer(ProfilesShow.of_profile(loaded), _yaml_lines(loaded))


def _resolved_lines(explained: Explained) -> Iterator[str]:
    """Yield YAML that `--profile` takes; what is not a value of the profile is a comment."""
    from llmtrain.cli.plan_tables import assumed_lines, fits_line, forecast_rows, plan_rows

    if explained.assumed is not None:
        yield from (f"# {line}" for line in assumed_lines(explained.assumed))
    yield from _yaml_lines(explained.loaded, explained.decided())
    yield "# the plan:"
    for name, value, origin, reason in plan_rows(explained):
        yield f"#   {name + ': ' + value:<36}{origin}: {' '.join(reason.split())}"
    yield f"# {fits_line(explained.planned)}"
    yield "# expected:"
    for name, value, source, how in forecast_rows(explained):
        yield f"#   {name + ': ' + value:<36}{source}: {how}" if how else f"#   {name}: {value}"


def validate(output: Output, profile: NameArgument) -> None:
    """Check a profile file; errors name the line."""
    from llmtrain.documents.profiles import ProfilesValidate
    from llmtrain.profile.load import load_profile
    from llmtrain.units import format_count

    loaded = load_profile(profile, environment={})
    parameters = _parameters(loaded.profile)
    document = ProfilesValidate.of(valid=True, name=loaded.profile.name, parameters=parameters)
    size = (
        "the shape is that of the model that is fine-tuned"
        if parameters is None
        else f"{format_count(parameters)} parameters"
    )
    output.answer(document, [f"{profile} is valid: {size}"])


def schema(output: Output) -> None:
    """Print the JSON Schema of profile files."""
    from llmtrain.profile.schema import Profile

    output.result(json.dumps(Profile.model_json_schema(), indent=2))


def _yaml_lines(
    loaded: LoadedProfile, decided: Mapping[str, Choice[Any]] | None = None
) -> list[str]:
    """Return the profile's values as YAML with their origins as comments.

    Defaults have no comment, unless there is `decided`: then each value has one, and that of an
    `auto` names its value and the reason.
    """

    def line(path: str, value: object, indent: str) -> str:
        name = path.rpartition(".")[2]
        return commented(f"{indent}{name}: {yaml_scalar(value)}", comment_on(path))

    def comment_on(path: str) -> str:
        origin = loaded.origin_of(path)
        if decided is None:
            return "" if origin == "default" else origin
        if path not in decided:
            return origin
        choice = decided[path]
        value = (
            f"{choice.value:.4g}" if isinstance(choice.value, float) else yaml_scalar(choice.value)
        )
        return f"{origin}; here {value}: {choice.reason}"

    def section(values: Mapping[str, Any], prefix: str, indent: str) -> Iterator[str]:
        for key, value in values.items():
            if isinstance(value, dict) and value:
                yield f"{indent}{key}:"
                yield from section(value, f"{prefix}{key}.", indent + "  ")
            else:
                yield line(prefix + key, value, indent)

    return list(section(loaded.profile.values(), "", ""))
