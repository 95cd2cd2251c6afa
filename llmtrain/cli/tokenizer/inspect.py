"""`llmtrain tokenizer inspect`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from llmtrain.cli.options import DataOption, JsonOption, TextFieldOption
from llmtrain.cli.output import Output
from llmtrain.cli.tokenizer.text import TokenizerOption

if TYPE_CHECKING:
    from llmtrain.documents.tokenizer import TokenizerInspect

_NOT_FIGURES = {
    *("schema_version", "llmtrain", "sources", "beside", "spellings", "rarest_pieces"),
}


def inspect(
    output: Output,
    tokenizer: TokenizerOption,
    data: DataOption = None,
    text_field: TextFieldOption = "text",
    beside: Annotated[
        list[Path] | None,
        typer.Option("--beside", help="Another tokenizer, for comparison. Repeatable."),
    ] = None,
    json: JsonOption = False,
) -> int:
    """Show a tokenizer's vocabulary, and with --data how well it fits a text, beside others."""
    from llmtrain.data.sources.resolve import resolve_sources
    from llmtrain.documents.tokenizer import TokenizerInspect
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
    report = TokenizerInspect.of(inspect_tokenizer(own, samples, others))
    if json:
        output.document(report)
    else:
        _show(output, report)
    return 0


def _show(output: Output, report: TokenizerInspect) -> None:
    """Print a line for each figure, text and tokenizer."""
    for name, value in report:
        if value is not None and name not in _NOT_FIGURES:
            output.result(f"{name:<20}{_shown(value)}")
    rarest = "  ".join(f"{each.piece!r} {each.times}×" for each in report.rarest_pieces)
    if rarest:
        output.result(f"{'rarest_pieces':<20}{rarest}")
    for spelling in report.spellings:
        output.result(f"{'':<20}{spelling.text!r} = {_shown(spelling.pieces)}")
    for part, fits in (("sources", report.sources), ("beside", report.beside)):
        for fit in fits:
            rate = fit.bytes_per_token
            density = "no text" if rate is None else f"{rate:.3f} bytes per token"
            output.result(f"{part:<20}{density:<24}{fit.tokens:>12} tokens  {fit.name}")


def _shown(value: object) -> str:
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, (list, tuple)):
        return "  ".join(repr(item) for item in value)
    return str(value)
