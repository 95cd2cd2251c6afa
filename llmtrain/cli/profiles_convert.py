"""`llmtrain profiles convert`."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from llmtrain.cli.output import Output
from llmtrain.cli.yaml_lines import commented, yaml_scalar
from llmtrain.errors import UsageError

if TYPE_CHECKING:
    from llmtrain.profile.convert.rules import Conversion, Entry

_TITLES = {"replaced": "something else does it:", "dropped": "nothing does it:"}


def convert(
    output: Output,
    old: Annotated[
        Path,
        typer.Argument(
            metavar="OLD",
            help="A YAML of llm-trainer 0.1 or 0.2, a config/*.py of nanoGPT (read, never run), "
            "or Hugging Face TrainingArguments as JSON.",
        ),
    ],
    out: Annotated[
        Path | None, typer.Option("--out", help="The profile to write; default: stdout.")
    ] = None,
) -> None:
    """Convert a configuration of another tool to a profile; every key is accounted for."""
    from llmtrain.documents.profiles import ProfilesConvert
    from llmtrain.files import write_text_atomically
    from llmtrain.profile.convert.read import convert_file, profile_of

    conversion = convert_file(old)
    name = profile_of(conversion, old).profile.name
    text = "".join(f"{line}\n" for line in profile_lines(conversion, name))
    if out is not None:
        if out.exists():
            raise UsageError(f"--out {out} exists already", hint="name a file that does not exist")
        try:
            write_text_atomically(out, text)
        except OSError as error:
            raise UsageError(f"--out {out} cannot be written: {error.strerror}") from None
    if output.json:
        entries, settings = conversion.entries, dict(conversion.settings)
        output.document(
            ProfilesConvert.of(conversion, profile=settings, keys=list(entries), out=out)
        )
    elif out is None:
        output.text(text)
    else:
        counts = {
            outcome: sum(entry.outcome == outcome for entry in conversion.entries)
            for outcome in ("mapped", *_TITLES)
        }
        counted = ", ".join(f"{number} {outcome}" for outcome, number in counts.items())
        output.result(f"{out}: {len(conversion.entries)} keys of {conversion.source}: {counted}")
        for line in _account(conversion):
            output.result(line)


def profile_lines(conversion: Conversion, name: str) -> Iterator[str]:
    """Yield the profile as YAML: each value with the key it is from, then what is not carried."""
    yield f"name: {yaml_scalar(name)}"
    by = {path: entry for entry in reversed(conversion.entries) for path in entry.settings}
    sections = dict.fromkeys(path.partition(".")[0] for path in conversion.settings)
    for section in sections:
        if section == "name":
            continue
        yield f"{section}:"
        for path, value in conversion.settings.items():
            if path.startswith(section + "."):
                yield from _setting_lines(path.split(".")[1:], value, by[path])
    yield from (f"# {line}".rstrip() for line in _account(conversion))


def _setting_lines(parts: list[str], value: object, entry: Entry) -> Iterator[str]:
    """Yield a setting, on a line a level; sections of sections have one key each here."""
    for depth, part in enumerate(parts[:-1], start=1):
        yield f"{'  ' * depth}{part}:"
    origin = entry.name if entry.given else f"{entry.name}, by default"
    note = f"{origin}: {entry.note}" if entry.note else origin
    yield commented(f"{'  ' * len(parts)}{parts[-1]}: {yaml_scalar(value)}", note)


def _account(conversion: Conversion) -> Iterator[str]:
    """Yield a line for each key that is no setting of the profile."""
    for outcome, title in _TITLES.items():
        entries = [entry for entry in conversion.entries if entry.outcome == outcome]
        if entries:
            yield title
        for entry in entries:
            yield f"  {entry.name}: {yaml_scalar(entry.value)}: {entry.note}"
