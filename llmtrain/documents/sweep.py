"""The document of `sweep`."""

from __future__ import annotations

from typing import Any, Literal

from llmtrain.documents.base import Document, Number, Part, Text, key


class SweepTrial(Part):
    """A trial that ended; also a line of the sweep's results.jsonl."""

    trial: int = key("its number, from 0")
    run: Text = key("its run directory")
    settings: dict[Text, Any] = key("what was varied, by dotted key of the profile")
    outcome: Literal["done", "stopped early", "diverged", "failed"] = key("how it ended")
    val_bpb: Number = key(
        "bits per byte of its last evaluation, where it was stopped of the one that stopped it; "
        "null: there was none"
    )
    step: int = key("of that evaluation; 0: there was none")
    tokens: int = key("trained on by then")
    seconds: float = key("of all its sessions by then")
    reason: Text = key("why it was stopped or failed; empty if it is done")


class Sweep(Document):
    """`llmtrain sweep`."""

    sweep: Text = key("the sweep's directory")
    trials: list[SweepTrial] = key("the best first, those that are not done last")
    best: SweepTrial | None = key("the first of them; null: none is done")
    command: Text | None = key("trains the best setting again; null: none is done")
