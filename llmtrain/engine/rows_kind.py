"""What the rows of a fine-tuning are: conversations, or preferences."""

from __future__ import annotations

from typing import Literal

from llmtrain.data.corpus import Corpus
from llmtrain.data.sources.download import FetchOptions
from llmtrain.data.sources.resolve import resolve_sources
from llmtrain.data.sources.urls import without_secrets
from llmtrain.errors import LlmtrainError
from llmtrain.files import cache_directory
from llmtrain.profile.load import LoadedProfile, flat_values, validate_profile
from llmtrain.profile.setting import Setting, layer_of

_ROWS = "data.rows"


def kind_of_rows(corpus: Corpus) -> Literal["chat", "preferences"]:
    """Return what the first row of a corpus is that was resolved with the rows `kind`."""
    first = next(iter(corpus.documents()), None)
    return "preferences" if first is not None and first.text == "preferences" else "chat"


def with_kind_of_rows(loaded: LoadedProfile) -> LoadedProfile:
    """Return the profile with `data.rows` as the first row of the data is, unless it was asked for.

    Sources that cannot be read stay what the profile says; preparing them says what is wrong.
    """
    section = loaded.profile.data
    if layer_of(loaded.origin_of(_ROWS)) > 1 or section.rows != "chat":
        return loaded
    try:
        corpus = resolve_sources(
            section.specs,
            rows="kind",
            include=section.include,
            exclude=section.exclude,
            skips_bad=True,
            fetching=FetchOptions(cache_directory(), section.text_field, "chat"),
        )
        first = next(iter(corpus.documents()), None)
    except LlmtrainError:
        return loaded
    if first is None or first.text != "preferences":
        return loaded
    values = dict(flat_values(loaded.profile.model_dump(mode="json")))
    kept = {path: Setting(values[path], o) for path, o in loaded.origins.items() if path in values}
    origin = f"the first row of {without_secrets(first.origin)}"
    return validate_profile(kept | {_ROWS: Setting("preferences", origin)})
