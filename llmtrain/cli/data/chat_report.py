"""The report of `data inspect --chat`: counts, and a conversation with what carries loss."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from rich.text import Text

from llmtrain.cli.tables import facts_table
from llmtrain.units import counted

if TYPE_CHECKING:
    from llmtrain.cli.output import Part
    from llmtrain.documents.data import ChatSegment, DataInspectChat

_MOST_CHARACTERS = 4000


def chat_parts(report: DataInspectChat) -> Iterator[Part]:
    """Yield the counts, then the example: what carries loss is between two brackets."""
    share = report.answer_tokens / report.tokens
    template = "its own, with {% generation %} marks"
    if not report.marks_answers:
        template = "without {% generation %} marks: answers are what follows each prompt"
    what = "conversations" if report.rejected is None else "pairs of answers"
    cut = f"{report.truncated:,} end early, {report.left_out:,} are left out"
    yield facts_table(
        [
            ("model", report.model),
            ("template", template),
            (what, f"{report.conversations:,}, {counted(report.messages, 'message')}"),
            ("tokens", f"{report.tokens:,}"),
            ("carry loss", f"{report.answer_tokens:,}, {share:.1%}"),
            (f"in {report.context:,} tokens", cut),
        ]
    )
    yield ""
    yield Text(f"{report.origin}: what carries loss is in brackets", style="bold")
    yield _example(report.example)
    if report.rejected is not None:
        yield Text("and rejected", style="bold")
        yield _example(report.rejected)


def _example(segments: Sequence[ChatSegment]) -> Text:
    text = Text()
    for segment in segments:
        shown = segment.text[: _MOST_CHARACTERS - len(text)]
        if segment.carries_loss:
            text.append("[[", "green").append(shown, "bold green").append("]]", "green")
        else:
            text.append(shown)
        if len(text) >= _MOST_CHARACTERS:
            text.append(" …")
            break
    return text
