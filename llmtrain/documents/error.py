"""The document of a command that failed."""

from __future__ import annotations

from collections.abc import Sequence

from typing_extensions import Self

from llmtrain.documents.base import Document, Part, Text, key, optional, present
from llmtrain.errors import LlmtrainError


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

    @classmethod
    def of_failure(cls, error: LlmtrainError, hint: str, commands: Sequence[str]) -> Self:
        """Return the document of a failure; `commands`: alternatives that would fit."""
        return cls.of(
            error=Failure.of(error, code=error.exit_code, hint=hint, **present(ways_out=commands))
        )
