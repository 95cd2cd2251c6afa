"""Which document a passage is from. No index remembers it: it is looked for in the text itself."""

from __future__ import annotations

import time
from collections.abc import Sequence

from llmtrain.data.sources import resolve_sources
from llmtrain.errors import DataError


def trace_passages(
    passages: Sequence[str], specs: Sequence[str], text_field: str, *, limit_s: float
) -> list[str]:
    """Where the passages are in the sources, as `file` or `file:line` and a position in it.

    The first place of each that is found in time; none where the sources are no longer what they
    were, or cannot be read.
    """
    end_s = time.monotonic() + limit_s
    found: dict[str, str] = {}
    try:
        for document in resolve_sources(specs, text_field=text_field).documents():
            for passage in set(passages) - found.keys():
                start = document.text.find(passage)
                if start >= 0:
                    found[passage] = f"{document.origin} from character {start} on"
            if len(found) == len(set(passages)) or time.monotonic() > end_s:
                break
    except DataError:
        pass  # what was found before counts
    return [found[passage] for passage in dict.fromkeys(passages) if passage in found]
