"""The document of a command that failed."""

from __future__ import annotations

from llmtrain.documents.base import Document, Part, Text, key, optional


class Failure(Part):
    """Why a command failed."""

    code: int = key("the exit code")
    message: Text = key("what is wrong: the value, the limit, where it came from")
    hint: Text = key("what to type next; empty: nothing is known to help")
    ways_out: list[Text] = optional(
        "commands that would fit, the cheapest change first; missing unless `code` is 3"
    )


class Error(Document):
    """The document of every command on failure, with `--json`."""

    error: Failure = key("why")
