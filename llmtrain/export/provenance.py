"""Where a model comes from, as its metadata and its model card say it."""

from __future__ import annotations

from dataclasses import dataclass

LICENSE_PLACEHOLDER = "unknown"  # an identifier that the Hub knows; the model card says more


@dataclass(frozen=True, slots=True)
class Provenance:
    """The origin of a model; None where nothing records it."""

    name: str
    llmtrain_version: str
    checkpoint_sha256: str
    license: str = LICENSE_PLACEHOLDER
    chat_template: str | None = None
    profile: str | None = None
    corpus_sha256: str | None = None
    sources: tuple[str, ...] = ()
    steps: int | None = None
    tokens: int | None = None
    seconds: float | None = None
    machine: str | None = None

    @property
    def summary(self) -> str:
        """One line for people."""
        amount = "" if self.tokens is None else f" on {self.tokens:,} tokens"
        return f"A language model trained from scratch{amount} by llmtrain {self.llmtrain_version}"

    def metadata(self) -> dict[str, str]:
        """Return what a GGUF file records, by key; only what is known."""
        known = {
            "version": self.llmtrain_version,
            "checkpoint.sha256": self.checkpoint_sha256,
            "profile": self.profile,
            "data.sha256": self.corpus_sha256,
            "data.sources": "\n".join(self.sources),
            "steps": self.steps,
            "tokens": self.tokens,
        }
        return {key: str(value) for key, value in known.items() if value}
