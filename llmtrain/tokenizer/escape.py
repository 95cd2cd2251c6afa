"""Text with no "▁" in it, from which the text itself can be had back.

sentencepiece writes a space as "▁" (U+2581) and so reads a literal "▁" back as a space. Escaping
keeps the two apart: `ESCAPE` becomes `ESCAPE 0`, "▁" becomes `ESCAPE 1`.

In escaped text every `ESCAPE` is the start of a two-character code, and no code holds a second
one, so a code is found wherever its two characters stand side by side and nowhere else. Plain
string replacement in `REPLACEMENTS` order escapes, and in the opposite order, from right to left,
unescapes: "▁" has to come back first, since restoring `ESCAPE` may put it before a literal "1".
tokenizer.json can say plain string replacement, which is what makes both readers agree.
"""

from __future__ import annotations

from llmtrain.errors import DataError

SPACE_MARK = "▁"
ESCAPE = "\U000f2581"  # private use; digits follow it because no piece joins a digit to anything

REPLACEMENTS = ((ESCAPE, ESCAPE + "0"), (SPACE_MARK, ESCAPE + "1"))


def require_unicode(text: str) -> None:
    """Raises DataError where `text` holds half a surrogate pair, which no UTF-8 file can."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        found = f"U+{ord(text[error.start]):04X} at character {error.start}"
        raise DataError(
            f"text holds a lone surrogate, {found}, which is not Unicode text",
            hint=r"JSON can spell half a character (\ud83d alone): repair the file that does",
        ) from None


def escape(text: str) -> str:
    """`text` without "▁": a different string for every string, and nearly always `text` itself.

    Raises DataError where `text` is not Unicode.
    """
    require_unicode(text)
    for plain, code in REPLACEMENTS:
        text = text.replace(plain, code)
    return text


def unescape(text: str) -> str:
    """The string whose `escape` is `text`; codes that `escape` never writes stay as they are."""
    for plain, code in reversed(REPLACEMENTS):
        text = text.replace(code, plain)
    return text
