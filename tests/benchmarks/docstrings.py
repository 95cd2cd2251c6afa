"""What a model learns of a made task by fine-tuning, by the rate, all weights or adapters.

    python -m tests.benchmarks.docstrings MODEL --rates 1 0.3 --lora-rates 3 1 --epochs 2
    python -m tests.benchmarks.docstrings TUNED --rates --lora-rates --dpo-rates 3 1 0.3 --epochs 1

The rows ask what a function, class or method of Python's standard library does, or how it is
called, and have the first sentence of its docstring or its arguments as the answer; a tenth is held
back. MODEL is a run or a directory. Each training prints a line of JSON: the loss of held-back
answers, and how many short ones are exact. Rates are shares of the rule's for a model that is
continued; with `--dpo-rates`, of the rule's for preferences: the right answer is preferred to that
of another question of the same kind. `--rows` alone writes the rows.
"""

from __future__ import annotations

import argparse
import ast
import json
import random
import sys
import tempfile
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from llmtrain.data.sources.discover import library_files
from llmtrain.engine.api import train
from llmtrain.engine.evaluation import evaluate_run
from llmtrain.profile.load import load_profile
from llmtrain.profile.schema import DeviceSection
from llmtrain.profile.shape import shape_of
from llmtrain.recipe.learning_rate import CONTINUED_SHARE, DPO_SHARE, adamw_rate
from llmtrain.train.checkpoint.pretrained import shape_in
from tests.programs import program_parser

_LONGEST_CHARACTERS = 120
_MOST_ARGUMENTS = 4


def main(arguments: Sequence[str]) -> int:
    """Print every training as a line of JSON."""
    options = _parser().parse_args(arguments)
    if options.rows is not None:
        write_rows(options.rows)
        return 0
    with tempfile.TemporaryDirectory(prefix="llmtrain-docstrings-") as scratch:
        place = Path(scratch)
        write_rows(place / "rows.jsonl")
        _write_preferences(place / "preferences.jsonl")
        ways = {"full": options.rates, "lora": options.lora_rates, "dpo": options.dpo_rates}
        for way, share in [(way, share) for way, shares in ways.items() for share in shares]:
            line = _trained(options, place, share, way)
            sys.stdout.write(json.dumps(line) + "\n")
            sys.stdout.flush()
    return 0


def _trained(options: argparse.Namespace, place: Path, share: float, way: str) -> dict[str, Any]:
    is_dpo = way == "dpo"
    settings: dict[str, Any] = {
        "train.epochs": options.epochs,
        "train.tokens_per_step": options.tokens_per_step,
        "model.context": options.context,
        "model.init_from": str(options.model),
        "optim.learning_rate": share * _rate(options) * (DPO_SHARE if is_dpo else 1.0),
        "device.kind": options.device,
        "data.rows": "preferences" if is_dpo else "chat",
        "eval.every_steps": 10**6,
        "eval.sample_every_steps": None,
        "eval.tokens": 10**6,
        "checkpoint.keep_last": 1,
    }
    if way == "lora":
        settings |= {"lora.rank": options.rank}
    out, rows = place / f"run-{share:g}-{way}", "preferences.jsonl" if is_dpo else "rows.jsonl"
    profile = "finetune-gpu" if options.device == "cuda" else "finetune-cpu"
    result = train(profile, data=[str(place / rows)], settings=settings, out=out)
    found = evaluate_run(
        str(out),
        [],
        DeviceSection(kind=options.device),
        lambda _: None,
        lambda: None,
        questions=options.questions,
    )
    answers, pairs = found.answers, found.preferences
    scores = {} if pairs is None else {"dpo_loss": pairs.loss, "prefers": pairs.accuracy}
    return {
        "way": way,
        "share": share,
        "rate": settings["optim.learning_rate"],
        "steps": result.steps,
        "val_loss": found.loss_nats_per_token,
        **scores,
        "exact": None if answers is None else answers.exact,
        "questions": None if answers is None else answers.questions,
    }


def _rate(options: argparse.Namespace) -> float:
    profile = load_profile("finetune-cpu").profile
    directory = options.model
    newest = sorted((options.model / "checkpoints").glob("step-????????"))
    shape = shape_in(newest[-1] if newest else directory)
    assert shape_of(profile.model).context >= options.context
    return CONTINUED_SHARE * adamw_rate(options.tokens_per_step, shape.hidden_size)


def write_rows(file: Path) -> int:
    """Write the rows of the standard library to `file`; return how many there are."""
    count = 0
    with file.open("w", encoding="utf-8") as out:
        for row in questions():
            out.write(json.dumps({"prompt": row.question, "completion": row.answer}) + "\n")
            count += 1
    return count


def _write_preferences(file: Path) -> None:
    """Write a pair for each question: its answer, and that of another question of its kind."""
    draw, by_kind = random.Random(0), dict[str, list[Row]]()
    for row in questions():
        by_kind.setdefault(row.question.partition(" ")[2][:3], []).append(row)
    with file.open("w", encoding="utf-8") as out:
        for row in (row for rows in by_kind.values() for row in rows):
            others = (draw.choice(by_kind[row.question.partition(" ")[2][:3]]) for _ in range(100))
            other = next(each for each in others if each.answer != row.answer)
            pair = {"prompt": row.question, "chosen": row.answer, "rejected": other.answer}
            out.write(json.dumps(pair) + "\n")


@dataclass(frozen=True, slots=True)
class Row:
    """A question about a function, method or class, and the answer."""

    subject: str
    question: str
    answer: str


def questions() -> Iterator[Row]:
    """Yield the rows of the interpreter's own standard library, no question twice."""
    seen = set[str]()
    for file in library_files():
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                tree = ast.parse(file.path.read_bytes())
        except (SyntaxError, ValueError):
            continue
        parts = PurePosixPath(file.origin).with_suffix("").parts[1:]
        module = ".".join(parts[:-1] if parts[-1] == "__init__" else parts)
        for row in _of_body(module, "", tree.body):
            if row.question not in seen:
                seen.add(row.question)
                yield row


def _of_body(module: str, owner: str, body: Sequence[ast.stmt]) -> Iterator[Row]:
    """Yield the rows of the public definitions in a body, and of those in its classes."""
    for node in body:
        if not isinstance(node, ast.FunctionDef | ast.ClassDef) or node.name.startswith("_"):
            continue
        name = f"{owner}{node.name}"
        subject = f"{name} of {module}"
        first = (ast.get_docstring(node) or "").strip().partition("\n\n")[0]
        sentence = " ".join(first.split()).partition(". ")[0].removesuffix(".")
        if 0 < len(sentence) <= _LONGEST_CHARACTERS:
            yield Row(subject, f"What does {subject} do?", sentence + ".")
        if isinstance(node, ast.ClassDef):
            yield from _of_body(module, f"{name}.", node.body)
            continue
        names = [each.arg for each in node.args.args if each.arg not in {"self", "cls"}]
        if 0 < len(names) <= _MOST_ARGUMENTS:
            yield Row(subject, f"What are the arguments of {subject}?", f"({', '.join(names)})")


def _parser() -> argparse.ArgumentParser:
    parser = program_parser(__file__, __doc__)
    parser.add_argument("model", type=Path, nargs="?", help="what is fine-tuned")
    parser.add_argument("--rows", type=Path, help="write the rows to this file, and stop")
    parser.add_argument("--rates", type=float, nargs="*", default=[1.0, 0.3, 0.1])
    parser.add_argument("--lora-rates", type=float, nargs="*", default=[3.0, 1.0, 0.3])
    parser.add_argument("--dpo-rates", type=float, nargs="*", default=[])
    parser.add_argument("--device", choices=["auto", "cpu", "cuda"], default="auto")
    parser.add_argument("--epochs", type=float, default=2.0)
    parser.add_argument("--context", type=int, default=256)
    parser.add_argument("--tokens-per-step", type=int, default=2048)
    parser.add_argument("--rank", type=int, default=16)
    parser.add_argument("--questions", type=int, default=100)
    return parser


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
