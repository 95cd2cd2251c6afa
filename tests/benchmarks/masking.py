"""What attention within documents, and documents whole in windows, do to what is learned.

    python -m tests.benchmarks.masking --profile cpu-tiny --steps 400 --seeds 3

Text is concatenated or packed, and attention masked or not: four ways, or those that are named.
Seeds are paired: every way begins with the same weights, and the two of one packing read the same
windows. All models are evaluated on the same concatenated validation text, masked and not.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import sys
import tempfile
from collections.abc import Sequence
from contextlib import closing
from dataclasses import asdict, dataclass
from pathlib import Path

import yaml

from llmtrain.data.batches.windows import sequential_windows
from llmtrain.data.shards.prepared import entry_directory, open_prepared
from llmtrain.engine.api import train
from llmtrain.engine.inference import Trained, load_trained
from llmtrain.eval.evaluate import bits_per_byte, sum_loss
from llmtrain.files import cache_directory
from llmtrain.profile.schema import DeviceSection
from tests.programs import program_parser

_EVALUATED_TOKENS = 8192  # of one forward


_WAYS: dict[str, dict[str, object]] = {
    f"{packing}-{'masked' if masked else 'whole'}": {
        "data.packing": packing,
        "data.mask_documents": masked,
    }
    for packing in ("concatenate", "best_fit")
    for masked in (False, True)
}


@dataclass(frozen=True, slots=True)
class Result:
    """One training: bits per byte of all validation text by each evaluation, and its pace."""

    way: str
    seed: int
    bpb_masked: float
    bpb_whole: float
    tokens_per_s: float | None

    @property
    def own_bpb(self) -> float:
        """With attention as in training."""
        return self.bpb_masked if _WAYS[self.way]["data.mask_documents"] else self.bpb_whole


def main(arguments: Sequence[str]) -> int:
    """Every training, and what each way comes to beside the first, as a line of JSON."""
    values = _parser().parse_args(arguments)
    seeds = range(values.first_seed, values.first_seed + values.seeds)
    results = {way: [_trained(values, seed, way) for seed in seeds] for way in values.ways}
    document = {
        "profile": values.profile,
        "steps": values.steps,
        "trainings": [asdict(result) for some in results.values() for result in some],
        "less": values.ways[0],
        "differences": {
            way: _differences(results[values.ways[0]], results[way]) for way in values.ways[1:]
        },
    }
    sys.stdout.write(json.dumps(document) + "\n")
    return 0


def _differences(first: list[Result], others: list[Result]) -> dict[str, dict[str, float | None]]:
    """By each evaluation, the mean over seeds and its standard error."""
    pairs = list(zip(first, others, strict=True))
    return {
        "as_trained": _mean([b.own_bpb - a.own_bpb for a, b in pairs]),
        "both_masked": _mean([b.bpb_masked - a.bpb_masked for a, b in pairs]),
        "both_whole": _mean([b.bpb_whole - a.bpb_whole for a, b in pairs]),
    }


def _trained(values: argparse.Namespace, seed: int, way: str) -> Result:
    assignments = dict(assignment.split("=", 1) for assignment in values.set)
    settings = {name: yaml.safe_load(value) for name, value in assignments.items()}
    settings |= _WAYS[way] | {
        "train.seed": seed,
        "train.steps": values.steps,
        "eval.every_steps": values.steps,
        "eval.sample_every_steps": None,
    }
    with tempfile.TemporaryDirectory(prefix="llmtrain-masking-") as scratch:
        out = Path(scratch) / "run"
        result = train(values.profile, data=values.data, settings=settings, out=out)
        device = DeviceSection.model_validate({"kind": values.device})
        trained = load_trained(str(out), device, lambda event: None)
        found = {m: _bits_per_byte(trained, out, masked=m) for m in (True, False)}
    return Result(way, seed, found[True], found[False], result.tokens_per_s)


def _bits_per_byte(trained: Trained, run: Path, *, masked: bool) -> float:
    key = yaml.safe_load((run / "run.yaml").read_text(encoding="utf-8"))["data"]["key"]
    model = trained.model
    with closing(open_prepared(entry_directory(cache_directory(), key))) as data:
        model.separator_id = data.index.separator_id if masked else None
        found = sum_loss(
            model,
            sequential_windows(data.validation, model.shape.context),
            micro_batch=max(1, _EVALUATED_TOKENS // model.shape.context),
            autocast=trained.autocast,
            check_stop=lambda: None,
        )
        facts = data.index.validation
    return bits_per_byte(found.nats_per_token, found.tokens, facts.text_bytes)


def _mean(differences: Sequence[float]) -> dict[str, float | None]:
    error = None
    if len(differences) > 1:
        error = statistics.stdev(differences) / math.sqrt(len(differences))
    return {"mean": statistics.mean(differences), "standard_error": error}


def _parser() -> argparse.ArgumentParser:
    parser = program_parser(__file__, __doc__)
    parser.add_argument("--profile", default="cpu-tiny", help="what is trained")
    parser.add_argument("--steps", type=int, default=400, help="of each training")
    parser.add_argument("--seeds", type=int, default=3, help="trainings of each way")
    parser.add_argument("--first-seed", type=int, default=0)
    parser.add_argument("--ways", nargs="+", choices=_WAYS, default=list(_WAYS), help="compared")
    parser.add_argument("--device", default="cpu", help="where they are evaluated")
    parser.add_argument("--data", action="append", default=[], help="text, if not the profile's")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE")
    return parser


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
