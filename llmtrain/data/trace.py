"""Find the document of a passage by searching the sources' text, without an index."""

from __future__ import annotations

import time
from collections.abc import Sequence

from llmtrain.data.sources.huggingface import is_dataset
from llmtrain.data.sources.resolve import resolve_sources
from llmtrain.data.sources.stdin import is_stdin
from llmtrain.data.sources.urls import is_remote
from llmtrain.errors import LlmtrainError


def trace_passages(
    passages: Sequence[str],
    specs: Sequence[str],
    text_field: str,
    *,
    limit_s: float,
    include: Sequence[str] = (),
    exclude: Sequence[str] = (),
) -> list[str]:
    """Return the places of the passages in the sources, as `file` or `file:line` and a position.

    The first place of each that is found in time; none if the sources are no longer what they
    were, or cannot be read. Standard input is not read again, and nothing is fetched.
    """
    end_s = time.monotonic() + limit_s
    found: dict[str, str] = {}
    here = [spec for spec in specs if not (is_stdin(spec) or is_remote(spec) or is_dataset(spec))]
    documents = (
        document
        for spec in here
        if time.monotonic() < end_s
        for document in resolve_sources(
            [spec], text_field=text_field, include=include, exclude=exclude
        ).documents()
    )
    try:
        for document in documents:
            for passage in set(passages) - found.keys():
                start = document.text.find(passage)
                if start >= 0:
                    found[passage] = f"{document.origin} from character {start} on"
            if len(found) == len(set(passages)) or time.monotonic() > end_s:
                break
    except (LlmtrainError, OSError):
        pass  # places found before the error are returned
    return [found[passage] for passage in dict.fromkeys(passages) if passage in found]
