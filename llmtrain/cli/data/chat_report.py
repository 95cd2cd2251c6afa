"""The report of `data inspect --chat`: counts, and a conversation with what carries loss."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from rich.text import Text

from llmtrain.cli.tables import facts_table
from llmtrain.units import counted

if TYPE_CHECKING:
    from llmtrain.cli.output import Part
    from llmtrain.documents.data import DataInspectChat

_MOST_CHARACTERS = 4000


def chat_parts(report: DataInspectChat) -> Iterator[Part]:
    """Yield the counts, then the example: what carries loss is between two brackets."""
    share = report.answer_tokens / report.tokens
    template = "its own, with {% generation %} marks"
    if not report.marks_answers:
        template = "without {% generation %} marks: answers are what follows each prompt"
    cut = f"{report.truncated:,} end early, {report.left_out:,} are left out"
    yield facts_table(
        [
            ("model", report.model),
            ("template", template),
            ("conversations", f"{report.conversations:,}, {counted(report.messages, 'message')}"),
            ("tokens", f"{report.tokens:,}"),
            ("carry loss", f"{report.answer_tokens:,}, {share:.1%}"),
            (f"in {report.context:,} tokens", cut),
        ]
    )
    yield ""
    yield Text(f"{report.origin}: what carries loss is in brackets", style="bold")
    yield _example(report)


def _example(report: DataInspectChat) -> Text:
    text = Text()
    for segment in report.example:
        shown = segment.text[: _MOST_CHARACTERS - len(text)]
        if segment.carries_loss:
            text.append("[[", "green").append(shown, "bold green").append("]]", "green")
        else:
            text.append(shown)
        if len(text) >= _MOST_CHARACTERS:
            text.append(" …")
            break
    return text
