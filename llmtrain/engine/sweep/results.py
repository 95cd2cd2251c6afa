"""Results of a sweep: one JSON line for each trial that ended, in results.jsonl."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from llmtrain.errors import UsageError
from llmtrain.files import named, write_pieces_atomically
from llmtrain.untrusted import parse_model, read_lines

Outcome = Literal["done", "stopped early", "diverged", "failed"]
RESULTS_FILE = "results.jsonl"


@dataclass(frozen=True, slots=True)
class TrialResult:
    """The outcome of a trial. The loss is that of its last evaluation that counts."""

    trial: int
    run: str
    settings: dict[str, Any]
    outcome: Outcome
    val_bpb: float | None  # None as well if it is not finite
    step: int
    tokens: int
    seconds: float
    reason: str  # why it was stopped or failed; empty if it is done


class SweepResults:
    """The results so far, in a file that is only appended to."""

    def __init__(self, directory: Path) -> None:
        self.path = directory / RESULTS_FILE
        self.by_trial = {result.trial: result for result in self._read()}

    def _read(self) -> list[TrialResult]:
        """Return whole lines. What a kill left of the last one is removed."""
        try:
            lines = list(read_lines(self.path))
        except FileNotFoundError:
            return []
        try:
            found = [parse_model(TrialResult, line) for line in lines]
        except ValueError as error:
            raise UsageError(
                f"{self.path} is not the results of a sweep: {error}", hint="choose another --out"
            ) from None
        write_pieces_atomically(self.path, (line + b"\n" for line in lines))
        return found

    def require_settings(self, trial: int, settings: Mapping[str, Any]) -> None:
        """Raise UsageError if a trial that is done had other settings."""
        done = self.by_trial.get(trial)
        if done is not None and done.settings != settings:
            raise UsageError(
                f"{self.path} is of another plan: trial {trial} was {done.settings}, and the plan "
                f"says {dict(settings)}",
                hint="choose another --out",
            )

    def add(self, result: TrialResult) -> None:
        """Append a result, so that the trial is not trained again."""
        self.by_trial[result.trial] = result
        with named(self.path), self.path.open("a", encoding="utf-8", newline="\n") as file:
            file.write(json.dumps(asdict(result), ensure_ascii=False, allow_nan=False) + "\n")

    def ranked(self) -> list[TrialResult]:
        """Return all results, the best first; what was stopped or failed comes last."""

        def order(result: TrialResult) -> tuple[bool, float, int]:
            bits = result.val_bpb
            return result.outcome != "done", float("inf") if bits is None else bits, result.trial

        return sorted(self.by_trial.values(), key=order)
