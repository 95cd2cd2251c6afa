"""`llmtrain profiles list|show|validate|schema`; `convert` is in `profiles_convert`."""

from __future__ import annotations

import json as json_text
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Annotated, Any

import typer

from llmtrain.cli import completion
from llmtrain.cli.command import command, group
from llmtrain.cli.options import (
    AssumeOption,
    DeviceOption,
    ForceCpuOption,
    JsonOption,
    NprocOption,
    SetOption,
    assumed_machine,
    flag_settings,
)
from llmtrain.cli.output import Output
from llmtrain.cli.profiles_convert import convert
from llmtrain.cli.yaml_lines import commented, yaml_scalar

if TYPE_CHECKING:
    from llmtrain.choice import Choice
    from llmtrain.engine.explain import Explained
    from llmtrain.engine.request import TrainRequest
    from llmtrain.profile.load import LoadedProfile

NameArgument = Annotated[
    str,
    typer.Argument(
        metavar="PROFILE",
        help="A shipped profile's name, or a YAML file.",
        autocompletion=completion.profile_names,
    ),
]


def register(app: typer.Typer) -> None:
    """Add the group `profiles` to `app`."""
    profiles = group("Profiles: what can be trained, every value, and the schema of profile files.")
    app.add_typer(profiles, name="profiles")
    command(profiles, "list", "llmtrain profiles list")(list_profiles)
    command(profiles, "show", "llmtrain profiles show cpu-small > my.yaml")(show)
    command(profiles, "validate", "llmtrain profiles validate my.yaml")(validate)
    command(profiles, "convert", "llmtrain profiles convert old.yaml --out my.yaml")(convert)
    command(profiles, "schema", "llmtrain profiles schema > profile.schema.json")(schema)


def list_profiles(output: Output, json: JsonOption = False) -> int:
    """List the shipped profiles with their sizes."""
    from llmtrain.documents.plans import ListedProfile, ProfilesList
    from llmtrain.profile.load import load_profile, shipped_profiles
    from llmtrain.profile.shape import shape_of
    from llmtrain.units import format_count

    profiles = []
    for name, path in shipped_profiles().items():
        profile = load_profile(name, environment={}).profile
        shape = shape_of(profile.model)
        profiles.append(
            ListedProfile.of(
                profile.model,  # context, vocab_size
                name=name,
                parameters=shape.parameters,
                tokens_per_step=profile.train.tokens_per_step,
                path=path,
            )
        )
    if json:
        output.document(ProfilesList.of(profiles=profiles))
        return 0
    row = "{:<12}{:>10}{:>9}{:>12}{:>15}".format
    output.result(row("profile", "parameters", "context", "vocabulary", "tokens per step"))
    for each in sorted(profiles, key=lambda each: each.parameters):
        step = each.tokens_per_step
        per_step = f"{step:,}" if isinstance(step, int) else step
        size = format_count(each.parameters)
        output.result(row(each.name, size, f"{each.context:,}", f"{each.vocab_size:,}", per_step))
    return 0


def show(
    output: Output,
    profile: NameArgument,
    device: DeviceOption = None,
    force_cpu: ForceCpuOption = False,
    nproc: NprocOption = None,
    set_: SetOption = None,
    resolved: Annotated[
        bool,
        typer.Option(
            "--resolved", help="Also the value of each auto on this machine, and all decisions."
        ),
    ] = False,
    assume: AssumeOption = None,
    json: JsonOption = False,
) -> int:
    """Show every value of a profile and its origin, as YAML that `--profile` takes."""
    from llmtrain.documents.plans import ProfilesShow
    from llmtrain.profile.load import load_profile

    flags = flag_settings(device_kind=device, device_force_cpu=force_cpu, device_processes=nproc)
    if resolved or assume is not None:
        from llmtrain.engine.request import TrainRequest

        assumed = assumed_machine(assume)
        request = TrainRequest(profile, assignments=set_ or [], flags=flags, assumed=assumed)
        return _show_resolved(output, request, as_json=json)
    loaded = load_profile(profile, assignments=set_ or [], flags=flags)
    if json:
        output.document(ProfilesShow.of_profile(loaded))
        return 0
    for line in _yaml_lines(loaded):
        output.result(line)
    return 0


def _show_resolved(output: Output, request: TrainRequest, *, as_json: bool) -> int:
    from llmtrain.documents.plans import ProfilesShowResolved
    from llmtrain.engine.explain import explain

    explained = explain(request)
    if as_json:
        output.document(ProfilesShowResolved.of_resolved(explained))
        return 0
    for line in _resolved_lines(explained):
        output.result(line)
    return 0


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


def validate(output: Output, profile: NameArgument, json: JsonOption = False) -> int:
    """Check a profile file; errors name the line."""
    from llmtrain.documents.plans import ProfilesValidate
    from llmtrain.profile.load import load_profile
    from llmtrain.profile.shape import shape_of
    from llmtrain.units import format_count

    loaded = load_profile(profile, environment={})
    parameters = shape_of(loaded.profile.model).parameters
    if json:
        output.document(
            ProfilesValidate.of(valid=True, name=loaded.profile.name, parameters=parameters)
        )
    else:
        output.result(f"{profile} is valid: {format_count(parameters)} parameters")
    return 0


def schema(output: Output) -> int:
    """Print the JSON Schema of profile files."""
    from llmtrain.profile.schema import Profile

    output.result(json_text.dumps(Profile.model_json_schema(), indent=2))
    return 0


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
