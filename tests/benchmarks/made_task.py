"""A model from nothing to answers about the standard library, measured before and after.

    python -m tests.benchmarks.made_task out --profile cpu-small --pretrain-time 90s --device cuda
    python -m tests.benchmarks.made_task out --profile cpu-tiny --steps 20 --questions 20 --rows 500

Three stages, each skipped where `out` has what it makes: a model is pretrained on the standard
library (and on `--package`, installed packages), fine-tuned on nine tenths of the rows of
`tests.benchmarks.docstrings`, and both are asked the held-back tenth. The text has the answers:
what is taught is to say them. All rows about a function are on one side. The model before is asked
twice: by the chat template, and by examples of questions in plain text, which suits it better. A
baseline gives the commonest answer of the training rows.

`out/result.json` has the figures with 95% intervals, `out/transcripts.md` answers, good and bad.
"""

from __future__ import annotations

import argparse
import hashlib
import itertools
import json
import sys
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import yaml

from llmtrain.data.batches.conversations import END
from llmtrain.data.sources.resolve import resolve_sources
from llmtrain.engine.api import train
from llmtrain.engine.evaluate_chat import encoded_conversations, evaluate_conversations
from llmtrain.engine.inference import Trained, generate_texts, load_trained
from llmtrain.eval.bootstrap import bits_per_byte_interval, paired_difference
from llmtrain.eval.questions import ExactMatches, share_interval
from llmtrain.eval.segments import SegmentLosses
from llmtrain.generate.sampling import Sampling
from llmtrain.generate.text import TextRequest
from llmtrain.prepare.chat import ChatEncoder
from llmtrain.prepare.context import PrepareContext
from llmtrain.profile.schema import DeviceSection
from llmtrain.progress import Note
from llmtrain.tokenizer.chat_template import CHAT_PIECES, with_chat_template
from llmtrain.train.events import Event
from tests.benchmarks.corpus import package_root
from tests.benchmarks.docstrings import Row, questions
from tests.programs import program_parser

_HELD_BACK = 10  # one in so many functions
_EXAMPLES = 4  # in the plain prompt
_LONGEST_EXAMPLE = 100  # characters
_MOST_TOKENS = 48  # of an answer
_SHOWN = 12  # transcripts of each kind
_TOGETHER = 64  # questions in one call


def main(arguments: Sequence[str]) -> int:
    """Run the stages that are missing; print and write the result."""
    options = _parser().parse_args(arguments)
    out: Path = options.out
    out.mkdir(parents=True, exist_ok=True)
    taught, held_back = _split(list(itertools.islice(questions(), options.rows)))
    _write(out / "train.jsonl", taught)
    _write(out / "held-back.jsonl", held_back)
    result: dict[str, Any] = {"rows": len(taught), "held_back": len(held_back)}
    result["pretraining"] = _stage(out / "pretrained", lambda run: _pretrain(options, run))
    result["fine_tuning"] = _stage(out / "tuned", lambda run: _fine_tune(options, run))
    result |= _evaluated(options, taught, held_back)
    text = json.dumps(result, indent=1)
    (out / "result.json").write_text(text + "\n", encoding="utf-8")
    sys.stdout.write(text + "\n")
    return 0


def _split(rows: Sequence[Row]) -> tuple[list[Row], list[Row]]:
    """Return the rows to train on and those held back, by the hash of what they are about."""
    sides: tuple[list[Row], list[Row]] = ([], [])
    for row in rows:
        digest = hashlib.sha256(row.subject.encode()).digest()
        sides[int.from_bytes(digest[:4], "big") % _HELD_BACK == 0].append(row)
    return sides


def _write(file: Path, rows: Sequence[Row]) -> None:
    lines = (json.dumps({"prompt": row.question, "completion": row.answer}) for row in rows)
    file.write_text("".join(line + "\n" for line in lines), encoding="utf-8")


def _stage(run: Path, work: Callable[[Path], dict[str, Any]]) -> dict[str, Any]:
    """Return what the stage found, now or when it was run."""
    kept = run.with_suffix(".json")
    if not kept.exists():
        started_s = time.monotonic()
        found = work(run)
        found["wall_s"] = round(time.monotonic() - started_s, 1)
        kept.write_text(json.dumps(found), encoding="utf-8")
    values: dict[str, Any] = json.loads(kept.read_text(encoding="utf-8"))
    return values


def _pretrain(options: argparse.Namespace, run: Path) -> dict[str, Any]:
    settings: dict[str, Any] = {
        "data.tokenizer_reserve": CHAT_PIECES,
        "device.kind": options.device,
        "eval.every_steps": 500,
        "eval.sample_every_steps": None,
        "checkpoint.keep_last": 1,
    }
    if options.packages:
        settings |= {"data.include": ["*.py"]}
    if options.steps is not None:
        settings["train.steps"] = options.steps
    elif options.pretrain_time is not None:
        settings["train.time"] = options.pretrain_time
    settings |= profile_values(options.set)
    sources = [options.text, *(str(package_root(name)) for name in options.packages)]
    return _trained(options.profile, sources, settings, run)


def profile_values(assignments: Sequence[str]) -> dict[str, Any]:
    """Return the settings of `KEY=VALUE`, values as YAML."""
    pairs = (assignment.partition("=") for assignment in assignments)
    return {name: yaml.safe_load(text) for name, _, text in pairs}


def _fine_tune(options: argparse.Namespace, run: Path) -> dict[str, Any]:
    settings: dict[str, Any] = {
        "model.init_from": str(options.out / "pretrained"),
        "model.context": 256,
        "data.validation": str(options.out / "held-back.jsonl"),
        "device.kind": options.device,
        "train.tokens_per_step": options.tokens_per_step,
        "eval.sample_every_steps": None,
        "checkpoint.keep_last": 1,
    }
    if options.steps is None:
        settings["train.epochs"] = options.epochs
    else:
        settings["train.steps"] = options.steps
    if options.lora_rank is not None:
        settings["lora.rank"] = options.lora_rank
    if options.rate is not None:
        settings["optim.learning_rate"] = options.rate
    profile = "finetune-gpu" if options.device == "cuda" else "finetune-cpu"
    return _trained(profile, [str(options.out / "train.jsonl")], settings, run)


def _trained(
    profile: str, data: Sequence[str], settings: dict[str, Any], run: Path
) -> dict[str, Any]:
    done = train(profile, data=data, settings=settings, out=run, observe=_report)
    return {
        "profile": profile,
        "steps": done.steps,
        "tokens": done.tokens,
        "tokens_per_s": done.tokens_per_s,
        "val_loss": done.val_loss,
        "val_bpb": done.val_bpb,
        "peak_memory_bytes": done.peak_memory_bytes,
    }


@dataclass(frozen=True, slots=True)
class _Answers:
    """What a model says to the questions, and its loss on the answers."""

    losses: SegmentLosses
    by_template: list[str]
    by_examples: list[str]


def _evaluated(
    options: argparse.Namespace, taught: Sequence[Row], held_back: Sequence[Row]
) -> dict[str, Any]:
    asked = sorted(held_back, key=lambda row: hashlib.sha256(row.question.encode()).digest())
    asked = asked[: options.questions]
    examples = [row for row in taught if len(row.question + row.answer) < _LONGEST_EXAMPLE]
    before = _answers(options, options.out / "pretrained", asked, examples)
    after = _answers(options, options.out / "tuned", asked, [])
    common = Counter(row.answer for row in taught).most_common(1)[0][0]
    known = {row.answer for row in taught}
    difference = paired_difference(before.losses, after.losses)
    _write_transcripts(options.out / "transcripts.md", asked, before, after)
    exact = {
        "commonest_answer": _exact(asked, [common] * len(asked)),
        "before_by_template": _exact(asked, before.by_template),
        "before_by_examples": _exact(asked, before.by_examples),
        "after": _exact(asked, after.by_template),
        "after_of_answers_not_in_training_rows": _exact(asked, after.by_template, known),
    }
    return {
        "bits_per_byte": {"before": _bits(before.losses), "after": _bits(after.losses)},
        "bits_per_byte_after_less_before": [
            difference.bits_per_byte,
            difference.interval.low,
            difference.interval.high,
        ],
        "exact": {name: asdict(found) for name, found in exact.items()},
    }


def _bits(losses: SegmentLosses) -> list[float]:
    """Return bits per byte of the answers, and the ends of the interval."""
    found = bits_per_byte_interval(losses)
    bits = float(losses.nats.sum() / losses.bytes.sum()) / 0.6931471805599453
    return [bits, found.low, found.high]


def _exact(
    asked: Sequence[Row], answers: Sequence[str], known: frozenset[str] | set[str] = frozenset()
) -> ExactMatches:
    pairs = [(r.answer, a) for r, a in zip(asked, answers, strict=True) if r.answer not in known]
    count = sum(expected == answer.strip() for expected, answer in pairs)
    return ExactMatches(len(pairs), count, *share_interval(count, len(pairs)))


def _answers(
    options: argparse.Namespace, run: Path, asked: Sequence[Row], examples: Sequence[Row]
) -> _Answers:
    """Return the loss of a model on all held-back answers, and what it says to `asked`.

    Where there are `examples` it is asked by some of them, too.
    """
    trained = load_trained(str(run), DeviceSection(kind=options.device), _report)
    trained.model.has_padding, trained.model.separator_id = True, END
    if trained.plan.device.value == "cpu":
        trained.model.compute_with(attention="blocks")  # torch's kernel wants a mask of all pairs
    encoder = ChatEncoder(with_chat_template(trained.tokenizer))
    work = PrepareContext(1, _report, lambda: None)
    corpus = resolve_sources([str(options.out / "held-back.jsonl")], rows="chat")
    found = evaluate_conversations(
        trained.model,
        encoder,
        encoded_conversations(corpus, encoder, work),
        work,
        questions=0,
        precision=trained.plan.precision.value,
    )
    template, greedy = encoder.template, Sampling(temperature=0.0)
    by_template = [
        TextRequest(
            tuple(
                template.encode(
                    [{"role": "user", "content": row.question}], add_generation_prompt=True
                )
            ),
            greedy,
            _MOST_TOKENS,
            ends=template.stop_ids,
        )
        for row in asked
    ]
    step = max(1, len(examples) // _EXAMPLES)
    shown = "".join(f"Q: {r.question}\nA: {r.answer}\n\n" for r in examples[::step][:_EXAMPLES])
    by_examples = [
        TextRequest(f"{shown}Q: {row.question}\nA:", greedy, _MOST_TOKENS, stop=("\n",))
        for row in (asked if shown else ())
    ]
    return _Answers(found.losses, _said(trained, by_template), _said(trained, by_examples))


def _said(trained: Trained, requests: Sequence[TextRequest]) -> list[str]:
    texts = [""] * len(requests)
    for start in range(0, len(requests), _TOGETHER):
        together = requests[start : start + _TOGETHER]
        for index, piece, _ in generate_texts(trained, together, _report, lambda: None):
            texts[start + index] += piece.text
    return texts


def _write_transcripts(file: Path, asked: Sequence[Row], before: _Answers, after: _Answers) -> None:
    """Write the first questions answered exactly, and the first answered otherwise."""
    good, bad = list[str](), list[str]()
    for row, then, now in zip(asked, before.by_examples, after.by_template, strict=True):
        shown = good if now.strip() == row.answer else bad
        shown.append(
            f"- **{row.question}**\n  - the docstring or definition: `{row.answer}`\n"
            f"  - before: `{then.strip()}`\n  - after: `{now.strip()}`\n"
        )
    file.write_text(
        f"# Answered exactly ({len(good)})\n\n{''.join(good[:_SHOWN])}\n"
        f"# Answered otherwise ({len(bad)})\n\n{''.join(bad[:_SHOWN])}",
        encoding="utf-8",
    )


def _report(event: Event) -> None:
    if isinstance(event, Note):
        sys.stderr.write(f"{event.text}\n")


def _parser() -> argparse.ArgumentParser:
    parser = program_parser(__file__, __doc__)
    add = parser.add_argument
    add("out", type=Path, help="the directory of the runs and the result")
    add("--profile", default="cpu-small", help="what is pretrained")
    add("--device", choices=["auto", "cpu", "cuda"], default="auto")
    add("--text", default="builtin:python", help="what is pretrained on")
    add("--package", dest="packages", action="append", default=[], help="more text to pretrain on")
    add("--pretrain-time", help="90s, 5m …; without it what the profile says")
    add("--set", action="append", default=[], metavar="KEY=VALUE", help="of pretraining")
    add("--rows", type=int, help="only the first so many, to try it out")
    add("--steps", type=int, help="of both trainings, to try it out")
    add("--epochs", type=float, default=3.0, help="of fine-tuning")
    add("--tokens-per-step", type=int, default=4096, help="of fine-tuning")
    add("--lora-rank", type=int, help="train adapters instead of all weights")
    add("--rate", type=float, help="of fine-tuning; without it the rule's")
    add("--questions", type=int, default=500, help="asked of both models")
    return parser


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
