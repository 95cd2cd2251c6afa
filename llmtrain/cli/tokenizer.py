"""`llmtrain tokenizer import|inspect`, and the group that the other commands are in."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer

from llmtrain.cli.command import command, group
from llmtrain.cli.options import DataOption, JsonOption, OverwriteOption, TextFieldOption
from llmtrain.cli.tokenizer_text import TokenizerOption, decode, encode
from llmtrain.cli.tokenizer_train import require_directory, train
from llmtrain.cli.voice import Voice


def register(app: typer.Typer) -> None:
    """`tokenizer` is a group of `app`."""
    tokenizer = group("Train a tokenizer, and use one.")
    app.add_typer(tokenizer, name="tokenizer")
    command(tokenizer, "train")(train)
    command(tokenizer, "import")(import_)
    command(tokenizer, "encode")(encode)
    command(tokenizer, "decode")(decode)
    command(tokenizer, "inspect")(inspect)


def import_(
    voice: Voice,
    file: Annotated[
        Path,
        typer.Argument(
            metavar="FILE",
            help="A sentencepiece .model, a tokenizer.json, a .tiktoken, or a directory with one.",
        ),
    ],
    out: Annotated[Path, typer.Option("--out", help="The directory to write.")],
    overwrite: OverwriteOption = False,
    pattern: Annotated[
        str | None,
        typer.Option(
            "--pattern",
            help="How a .tiktoken splits text: gpt2, cl100k_base, o200k_base, or a regex.",
        ),
    ] = None,
    separator: Annotated[
        str | None,
        typer.Option("--separator", help="The token between documents; default: its own end."),
    ] = None,
    allow_lossy: Annotated[
        bool, typer.Option("--allow-lossy", help="Take one that changes some text.")
    ] = False,
    json: JsonOption = False,
) -> int:
    """Make a tokenizer of another's file, with the ids that it has there."""
    from llmtrain.tokenizer import ImportOptions, import_tokenizer

    imported = import_tokenizer(file, ImportOptions(pattern, separator, allow_lossy))
    require_directory(out, overwrite=overwrite)
    tokenizer = imported.tokenizer
    tokenizer.save(out)
    for warning in imported.warnings:
        voice.warning(warning)
    if json:
        voice.document(
            {
                "out": str(out),
                "source": str(imported.path),
                "kind": tokenizer.kind.name,
                "vocab_size": tokenizer.vocab_size,
                "separator": imported.separator,
                "separator_id": tokenizer.separator_id,
                "added_separator": imported.added_separator,
                "warnings": list(imported.warnings),
                "sha256": tokenizer.fingerprint,
            }
        )
    else:
        how = ", added" if imported.added_separator else ""
        voice.result(
            f"{out}: {tokenizer.vocab_size} pieces of {imported.path}; separator "
            f"{imported.separator} ({tokenizer.separator_id}{how})"
        )
    return 0


def inspect(
    voice: Voice,
    tokenizer: TokenizerOption,
    data: DataOption = None,
    text_field: TextFieldOption = "text",
    beside: Annotated[
        list[Path] | None,
        typer.Option("--beside", help="Another tokenizer, on the same text. Repeatable."),
    ] = None,
    json: JsonOption = False,
) -> int:
    """A tokenizer's vocabulary, and with --data how well it fits a text, beside others."""
    from llmtrain.data.sources import resolve_sources
    from llmtrain.tokenizer import inspect_tokenizer, open_tokenizer
    from llmtrain.tokenizer.well_known import well_known_tokenizers

    own = open_tokenizer(tokenizer)
    others = {str(path): open_tokenizer(path) for path in beside or ()}
    if data:
        others |= well_known_tokenizers()
    corpora = {spec: resolve_sources([spec], text_field=text_field) for spec in data or ()}
    samples = {
        spec: (document.text for document in corpus.documents()) for spec, corpus in corpora.items()
    }
    report = asdict(inspect_tokenizer(own, samples, others))
    if json:
        voice.document(report)
    else:
        _show(voice, report)
    return 0


def _show(voice: Voice, report: dict[str, Any]) -> None:
    """A line a figure, and one a text or tokenizer."""
    for name, value in report.items():
        if value is not None and name not in ("sources", "beside", "spellings", "rarest_pieces"):
            voice.result(f"{name:<20}{_shown(value)}")
    rarest = "  ".join(f"{each['piece']!r} {each['times']}×" for each in report["rarest_pieces"])
    if rarest:
        voice.result(f"{'rarest_pieces':<20}{rarest}")
    for spelling in report["spellings"]:
        voice.result(f"{'':<20}{spelling['text']!r} = {_shown(spelling['pieces'])}")
    for part in ("sources", "beside"):
        for fit in report[part]:
            rate = fit["bytes_per_token"]
            told = "no text" if rate is None else f"{rate:.3f} bytes per token"
            voice.result(f"{part:<20}{told:<24}{fit['tokens']:>12} tokens  {fit['name']}")


def _shown(value: object) -> str:
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, (list, tuple)):
        return "  ".join(repr(item) for item in value)
    return str(value)
