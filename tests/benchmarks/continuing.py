"""What continuing a model gains over training from scratch, by the rate that it continues with.

    python -m tests.benchmarks.continuing --prose prose.txt --code-tokens 1M --prose-tokens 200k

A model is trained on code, then continued on prose with shares of the rule's rates; beside it, one
of the same shape is trained on the same prose from scratch, with a tokenizer of its own. Bits per
byte of the same validation text are compared.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import yaml

from llmtrain.engine.api import train
from llmtrain.profile.load import load_profile
from llmtrain.profile.shape import shape_of
from llmtrain.recipe.learning_rate import peak_learning_rates
from tests.programs import program_parser


def main(arguments: Sequence[str]) -> int:
    """Print every training as a line of JSON."""
    values = _parser().parse_args(arguments)
    settings = {
        name: yaml.safe_load(text)
        for name, _, text in (assignment.partition("=") for assignment in values.set)
    }
    settings |= {"eval.every_steps": 10**6, "eval.sample_every_steps": None}
    settings |= {"eval.tokens": 10**6, "train.tokens_per_step": values.tokens_per_step}
    with tempfile.TemporaryDirectory(prefix="llmtrain-continuing-") as scratch:
        for line in _trainings(values, settings, Path(scratch)):
            sys.stdout.write(json.dumps(line) + "\n")
            sys.stdout.flush()
    return 0


def _trainings(
    values: argparse.Namespace, settings: Mapping[str, object], scratch: Path
) -> Iterator[dict[str, object]]:
    model, number = values.model, 0
    if model is None:
        model = scratch / "code"
        code = {**settings, "train.tokens": values.code_tokens}
        result = train(values.profile, data=[values.code], settings=code, out=model)
        yield {"way": "code", "val_bpb": result.val_bpb, "tokens": result.tokens}
    prose = {**settings, "train.tokens": values.prose_tokens}
    for seed in range(values.seeds):
        for share in (None, *values.shares):
            number += 1
            own = {**prose, "train.seed": seed}
            if share is not None:
                own |= {"model.init_from": str(model), **_rates(values, settings, share)}
            out = scratch / f"prose-{number}"
            result = train(values.profile, data=[values.prose], settings=own, out=out)
            way = "scratch" if share is None else f"continued, {share:g} of the rates"
            yield {"way": way, "seed": seed, "val_bpb": result.val_bpb, "tokens": result.tokens}


def _rates(
    values: argparse.Namespace, settings: Mapping[str, object], share: float
) -> dict[str, float]:
    """Return the rates of a model that begins with random weights, times `share`."""
    assignments = [f"{name}={json.dumps(value)}" for name, value in settings.items()]
    profile = load_profile(values.profile, assignments=assignments).profile
    width = shape_of(profile.model).hidden_size
    rates = peak_learning_rates(profile.optim, width, values.tokens_per_step)
    return {
        "optim.learning_rate": share * rates["matrix"],
        "optim.embedding_learning_rate": share * rates["embedding"],
    }


def _parser() -> argparse.ArgumentParser:
    parser = program_parser(__file__, __doc__)
    parser.add_argument("--profile", default="cpu-tiny", help="what is trained")
    parser.add_argument("--code", default="builtin:python", help="the first text")
    parser.add_argument("--prose", required=True, help="the second text")
    parser.add_argument("--code-tokens", default="1M", help="of the first training")
    parser.add_argument("--prose-tokens", default="200k", help="of each other training")
    parser.add_argument("--model", type=Path, help="a run to continue, in place of the first")
    parser.add_argument("--tokens-per-step", type=int, default=2048)
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument(
        "--shares", type=float, nargs="+", default=[1.0, 0.5, 0.3, 0.15, 0.05], help="of the rates"
    )
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE")
    return parser


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
