"""The report of `data inspect`: at most 80 columns, on a terminal and in a file."""

from __future__ import annotations

import shutil
import sys
import textwrap
import unicodedata
from collections.abc import Iterator, Sequence

from rich.console import Group
from rich.text import Text

from llmtrain.cli.output import Output
from llmtrain.data.quality.dropped import DropCount
from llmtrain.data.quality.leakage import Leakage
from llmtrain.data.quality.survey import Copies, LengthBin, SampledDocument, Survey
from llmtrain.engine.inspect_data import DataReport, Epochs
from llmtrain.units import format_bytes, format_count

_COLUMNS = 80  # at most, and in a file
_NAME_COLUMNS = 13
_MOST_ROWS = 14
_SAMPLE_LINES = 4
_MOST_LANGUAGES = 8
_EIGHTHS = "▏▎▍▌▋▊▉█"
_SIMPLE = str.maketrans({"–": "-", "…": "~", **dict.fromkeys(_EIGHTHS, "#")})
_NOT_PRINTABLE = {"Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp"}  # control characters and invisible ones


def show_report(output: Output, report: DataReport) -> None:
    """Print the report in blocks of lines."""
    columns = _COLUMNS
    if sys.stdout.isatty():
        columns = min(columns, shutil.get_terminal_size().columns)
    blocks = [
        _fact_lines(report, columns),
        _length_lines(report.found.lengths, columns),
        *([_dropped_lines(report.left_out)] if report.left_out else []),
        *(_sample_lines(drawn) for drawn in report.samples),
    ]
    lines: list[Text] = []
    for block in blocks:
        lines += [Text()] if lines else []
        lines += block
    for line in lines:
        line.rstrip()
        line.truncate(columns, overflow="ellipsis")
    output.show(Group(*(_writable(line, columns) for line in lines)))


def _writable(line: Text, columns: int) -> Text:
    """Return the line, simplified if stdout's encoding lacks some of its characters."""
    encoding = sys.stdout.encoding or "ascii"
    try:
        line.plain.encode(encoding)
    except UnicodeEncodeError:
        simple = line.plain.translate(_SIMPLE)
        return Text(simple.encode(encoding, "backslashreplace").decode(encoding)[:columns])
    return line


def _fact_lines(report: DataReport, columns: int) -> Iterator[Text]:
    """Yield the facts, their names in a column of their own."""
    for name, value in _facts(report):
        wrapped = textwrap.wrap(value, max(20, columns - _NAME_COLUMNS)) or [""]
        yield Text.assemble((f"{name:<{_NAME_COLUMNS}}", "bold"), wrapped[0])
        yield from (Text(" " * _NAME_COLUMNS + line) for line in wrapped[1:])


def _facts(report: DataReport) -> Iterator[tuple[str, str]]:
    found, facts = report.found, report.found.facts
    for source in report.sources:
        yield "source", f"{shown(str(source['spec']))}: {_files(source['files'])}"
    if report.skipped:
        yield (
            "skipped",
            "; ".join(f"{reason} ({count})" for reason, count in report.skipped.items()),
        )
    only = f"; only the first {report.only_first:,} were read" if report.only_first else ""
    yield "documents", f"{facts.documents:,}{only}"
    yield "text", f"{format_bytes(facts.text_bytes)}, {found.characters:,} characters"
    yield "tokens", _tokens(report)
    if report.epochs is not None:
        yield "epochs", _epochs(report.epochs)
    longest = found.longest
    yield "longest", f"{format_bytes(longest.text_bytes)}: {shown(longest.origin)}"
    yield "equal", _copies(found.equal, found)
    yield "near copies", _copies(found.near, found)
    yield "leakage", _leakage(report.leakage)
    yield "languages", _languages(found)


def _files(number: object) -> str:
    return "1 file" if number == 1 else f"{number} files"


def _tokens(report: DataReport) -> str:
    tokens, facts = report.found.tokens, report.found.facts
    if tokens is None:
        return "not counted: that takes --tokenizer DIR, or --profile NAME without --sample"
    return f"{tokens:,}, {facts.text_bytes / tokens:.2f} bytes each, by {report.tokenizer}"


def _epochs(epochs: Epochs) -> str:
    trained = ""
    if epochs.trained_tokens is not None:
        trained = f"{format_count(epochs.trained_tokens)} tokens; "
    if epochs.epochs is None:
        return f"{epochs.profile}: {trained}epochs unknown: {epochs.reason}"
    return f"{epochs.profile}: {trained}{epochs.epochs:.3g} epochs ({epochs.reason})"


def _copies(copies: Copies | None, found: Survey) -> str:
    if copies is None:
        return "not checked: pip install 'llmtrain[dedup]'"
    share = copies.text_bytes / found.facts.text_bytes
    kind = "document repeats" if copies.documents == 1 else "documents repeat"
    return f"{copies.documents:,} {kind} an earlier one, {share:.1%} of the text"


def _leakage(leakage: Leakage | None) -> str:
    if leakage is None:
        return "not checked: pip install 'llmtrain[dedup]'"
    sampled = f", by a sample of {leakage.train_share:.0%}" if leakage.train_share < 1 else ""
    return (
        f"{leakage.share:.1%} of the validation {leakage.units} have a near copy in train "
        f"({leakage.copies:,} of {leakage.held_out:,}{sampled})"
    )


def _languages(found: Survey) -> str:
    if found.languages is None:
        return "not detected: pip install 'llmtrain[language]'"
    number = len(found.drawn)
    named = list(found.languages.items())[:_MOST_LANGUAGES]
    shown_counts = [(name, count) for name, count in named if count >= 0.005 * number]
    rest = number - sum(count for _, count in shown_counts)
    shown_counts += [("others", rest)] if rest else []
    of = "" if number == found.facts.documents else f" (of {number:,} documents drawn)"
    return ", ".join(f"{name} {count / number:.0%}" for name, count in shown_counts) + of


def _length_lines(bins: Sequence[LengthBin], columns: int) -> Iterator[Text]:
    """Yield a bar per bin, proportional to its number of documents."""
    head = f"{'length':>17}{'documents':>14}{'text':>7}"
    yield Text(head, "bold")
    rows = list(_rows(bins))
    most = max(documents for _, _, documents, _ in rows)
    whole_bytes = sum(text_bytes for _, _, _, text_bytes in rows)
    for first, beyond, documents, text_bytes in rows:
        span = f"{format_bytes(first)} – {format_bytes(beyond)}"
        figures = f"{span:>17}{documents:>14,}{text_bytes / whole_bytes:>7.0%}  "
        bar = _bar(documents / most, max(8, columns - len(figures)))
        yield Text.assemble(figures, (bar, "cyan"))


def _rows(bins: Sequence[LengthBin]) -> Iterator[tuple[int, int, int, int]]:
    """Yield a few rows of joined bins: from bytes, below bytes, documents, bytes of text."""
    together = 1 + (len(bins) - 1) // _MOST_ROWS
    for start in range(0, len(bins), together):
        some = bins[start : start + together]
        documents = sum(each.documents for each in some)
        text_bytes = sum(each.text_bytes for each in some)
        yield some[0].from_bytes, 2 * some[-1].from_bytes, documents, text_bytes


def _bar(share: float, columns: int) -> str:
    """Return a bar, precise to an eighth of a column; at least that if the share is not 0."""
    eighths = max(1 if share else 0, round(share * columns * 8))
    return _EIGHTHS[-1] * (eighths // 8) + (_EIGHTHS[eighths % 8 - 1] if eighths % 8 else "")


def _dropped_lines(tallies: Sequence[DropCount]) -> Iterator[Text]:
    for tally in tallies:
        kind = "document" if tally.documents == 1 else "documents"
        size = format_bytes(tally.text_bytes)
        what = f"{tally.documents:,} {kind}, {size}, {tally.reason}"
        yield Text.assemble((f"{'dropped':<{_NAME_COLUMNS}}", "bold"), what)
        for each in tally.examples:
            yield Text(f"  {shown(each.origin)}: {shown(' '.join(each.beginning.split()))}")


def _sample_lines(drawn: SampledDocument) -> Iterator[Text]:
    yield Text(f"{shown(drawn.origin)}, {format_bytes(drawn.text_bytes)}", "bold")
    lines = [line for line in drawn.beginning.splitlines() if line.strip()]
    yield from (Text(f"  {shown(line)}") for line in lines[:_SAMPLE_LINES])


def shown(text: str) -> str:
    """Return the text on one line, with control and invisible characters escaped."""
    return "".join(_escaped(character) for character in text)


def _escaped(character: str) -> str:
    if character == "\t":
        return "  "
    if unicodedata.category(character) not in _NOT_PRINTABLE:
        return character
    code = ord(character)
    if 0xDC80 <= code <= 0xDCFF:  # a byte of a file name that is not UTF-8
        return f"\\x{code - 0xDC00:02x}"
    return f"\\u{code:04x}" if code <= 0xFFFF else f"\\U{code:08x}"
