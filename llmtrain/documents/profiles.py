"""Documents about profiles: their list, their values, and conversions of other tools' files."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

from typing_extensions import Self

from llmtrain.documents.base import (
    Document,
    Part,
    Text,
    key,
)
from llmtrain.documents.plans import OnMachine, Planned, planned_values

if TYPE_CHECKING:
    from llmtrain.engine.explain import Explained as ExplainedRun
    from llmtrain.profile.load import LoadedProfile


class ListedProfile(Part):
    """A shipped profile."""

    name: Text = key("what `--profile` takes")
    parameters: int | None = key("weights of the model; null: of the model that is fine-tuned")
    context: int = key("tokens that the model sees at once")
    vocab_size: int | None = key("rows of the embedding; null: of the model that is fine-tuned")
    tokens_per_step: int | Literal["auto"] = key("tokens of an optimizer step")
    path: Text = key("its file")


class ProfilesList(Document):
    """`llmtrain profiles list`."""

    profiles: list[ListedProfile] = key("the shipped profiles, by name")


class _Values(Part):
    profile: dict[Text, Any] = key(
        "its values by section, as a profile file holds them (`llmtrain profiles schema`); "
        "unset values are missing"
    )
    origins: dict[Text, Text] = key("the origin of each value, by dotted key: as in `settings`")

    @classmethod
    def of_profile(cls, loaded: LoadedProfile, **more: object) -> Self:
        """Return the document of a profile; `more`: further keys."""
        from llmtrain.profile.load import flat_values

        values = loaded.profile.values()
        origins = {path: loaded.origin_of(path) for path, _ in flat_values(values)}
        return cls.of(profile=values, origins=origins, **more)


class ProfilesShow(_Values, Document):
    """`llmtrain profiles show`: every value and where it comes from."""


class ProfilesShowResolved(Planned, _Values, OnMachine, Document):
    """`llmtrain profiles show --resolved`: with its `auto` values and the plan on this machine."""

    @classmethod
    def of_resolved(cls, explained: ExplainedRun) -> Self:
        """Return the document of a profile, its `auto` values and the plan."""
        more = planned_values(explained)
        return cls.of_profile(explained.loaded, assumed=explained.assumed, **more)


class ProfilesValidate(Document):
    """`llmtrain profiles validate`, of a valid profile; else the `error` document."""

    valid: Literal[True] = key("always true")
    name: Text = key("the profile's name")
    parameters: int | None = key("weights of the model; null: of the model that is fine-tuned")


class ConvertedKey(Part):
    """A key of the old configuration, and what became of it."""

    name: Text = key("of the key, as the old configuration has it, with its section")
    value: Any = key("its value there")
    given: bool = key("false: the other tool's default, which the profile has to say")
    outcome: Literal["mapped", "replaced", "dropped"] = key(
        "`mapped`: the profile says the same; `replaced`: something else does it; `dropped`: "
        "nothing does"
    )
    settings: dict[str, Any] = key("of the profile; empty unless mapped")
    note: Text = key("what it is now, what replaces it, or why nothing does, for people")


class ProfilesConvert(Document):
    """`llmtrain profiles convert`: a configuration of another tool as a profile."""

    source: Literal["llm-trainer", "nanogpt", "huggingface"] = key("whose configuration it was")
    profile: dict[str, Any] = key("dotted keys that the profile sets")
    keys: list[ConvertedKey] = key("every key of the old configuration")
    out: Text | None = key("the profile that was written; null: none")
