"""`llmtrain tokenizer inspect`."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer

from llmtrain.cli.options import DataOption, JsonOption, TextFieldOption
from llmtrain.cli.output import Output
from llmtrain.cli.tokenizer.text import TokenizerOption


def inspect(
    output: Output,
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
    from llmtrain.data.sources.resolve import resolve_sources
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
        output.document(report)
    else:
        _show(output, report)
    return 0


def _show(output: Output, report: dict[str, Any]) -> None:
    """A line a figure, and one a text or tokenizer."""
    for name, value in report.items():
        if value is not None and name not in ("sources", "beside", "spellings", "rarest_pieces"):
            output.result(f"{name:<20}{_shown(value)}")
    rarest = "  ".join(f"{each['piece']!r} {each['times']}×" for each in report["rarest_pieces"])
    if rarest:
        output.result(f"{'rarest_pieces':<20}{rarest}")
    for spelling in report["spellings"]:
        output.result(f"{'':<20}{spelling['text']!r} = {_shown(spelling['pieces'])}")
    for part in ("sources", "beside"):
        for fit in report[part]:
            rate = fit["bytes_per_token"]
            told = "no text" if rate is None else f"{rate:.3f} bytes per token"
            output.result(f"{part:<20}{told:<24}{fit['tokens']:>12} tokens  {fit['name']}")


def _shown(value: object) -> str:
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, (list, tuple)):
        return "  ".join(repr(item) for item in value)
    return str(value)
