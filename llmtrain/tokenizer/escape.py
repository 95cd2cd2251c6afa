"""A reversible escape that removes "▁" from text.

sentencepiece writes a space as "▁" (U+2581) and so reads a literal "▁" back as a space. Escaping
keeps the two apart: `ESCAPE` becomes `ESCAPE 0`, "▁" becomes `ESCAPE 1`.

In escaped text every `ESCAPE` is the first character of a two-character code, and the second one
is never `ESCAPE`, so codes cannot overlap or be confused with other text. String replacement in
`REPLACEMENTS` order escapes; in reverse order, with the two strings swapped, it unescapes. "▁" is
restored first, because restoring `ESCAPE` may place it in front of a literal "1".
tokenizer.json supports string replacement too, so that both libraries give the same ids.
"""

from __future__ import annotations

from llmtrain.errors import DataError

SPACE_MARK = "▁"
ESCAPE = "\U000f2581"  # private use; a digit follows because digits are pieces of their own

REPLACEMENTS = ((ESCAPE, ESCAPE + "0"), (SPACE_MARK, ESCAPE + "1"))


def require_unicode(text: str) -> None:
    """Raise DataError if `text` contains a lone surrogate, which UTF-8 cannot represent."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        found = f"U+{ord(text[error.start]):04X} at character {error.start}"
        raise DataError(
            f"text holds a lone surrogate, {found}, which is not Unicode text",
            hint=r"JSON can spell half a character (\ud83d alone): repair the file that does",
        ) from None


def escape(text: str) -> str:
    """Return `text` with "▁" and `ESCAPE` replaced by codes; most texts are unchanged.

    Different texts have different escapes. Raises DataError if `text` has a lone surrogate.
    """
    require_unicode(text)
    for plain, code in REPLACEMENTS:
        text = text.replace(plain, code)
    return text


def unescape(text: str) -> str:
    """Return the string whose `escape` is `text`; codes that `escape` never writes are kept."""
    for plain, code in reversed(REPLACEMENTS):
        text = text.replace(code, plain)
    return text
