"""How long a vocabulary takes to learn, beside Hugging Face's byte-level BPE on the same text.

    python -m tests.benchmarks.tokenizer_training --bytes 100MB

Whole processes, one after the other, round after round, on one .jsonl: `llmtrain tokenizer train`
as it comes, which learns from a sample of at most 64 MiB, the same from all of the text, and
`tokenizers` with as many pieces; or those that --systems names. The ratios are to the last. All are
asked how many bytes a token holds on text that none of them saw. The table is on stdout;
`--json FILE` has the figures. Exit code 1 if a process failed.

The text is given by --data, or made of builtin:python: each further copy of it spells a tenth of
its longer words in another way, so that there is always something new to count.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import random
import re
import statistics
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path

from llmtrain.data.sources.resolve import resolve_sources
from llmtrain.tokenizer import open_tokenizer
from llmtrain.units import format_bytes, parse_bytes
from tests.benchmarks.process import run_measured, tail
from tests.checkout import import_path

_HELD_OUT = 50  # one document in so many is only for judging
_WORD = re.compile(r"[A-Za-z]{6,}")
_SPELT_ANEW = 10  # one word in so many
SYSTEMS = OURS, OURS_ALL, THEIRS = "llmtrain", "llmtrain, no sampling", "tokenizers"


@dataclass(frozen=True, slots=True)
class Result:
    """One process: its time, its memory, and what its vocabulary makes of other text."""

    system: str
    wall_s: float
    peak_bytes: int  # of all its processes
    bytes_per_token: float


def main(arguments: Sequence[str]) -> int:
    """The table is shown; the exit code."""
    values = _parser().parse_args(arguments)
    with tempfile.TemporaryDirectory(prefix="llmtrain-tokenizers-") as name:
        scratch = Path(name)
        text_bytes, held_out = _write_corpus(values.data, values.bytes, scratch / "text.jsonl")
        _say(f"{format_bytes(text_bytes)} of text, {values.vocab_size} pieces")
        results: list[Result] = []
        for _ in range(values.rounds):
            for system, command in _commands(values.vocab_size, text_bytes).items():
                if system not in values.systems:
                    continue
                result = _measured(system, command, scratch, held_out)
                if result is None:
                    return 1
                results.append(result)
    _show(results)
    if values.json:
        told = {
            "text_bytes": text_bytes,
            "vocab_size": values.vocab_size,
            "machine": platform.machine(),
            "cores": os.cpu_count(),
            "versions": {name: version(name) for name in ("sentencepiece", "tokenizers")},
            "results": [asdict(result) for result in results],
        }
        values.json.write_text(json.dumps(told, indent=1) + "\n", encoding="utf-8")
    return 0


def learn_with_tokenizers(text: Path, vocab_size: int, out: Path) -> None:
    """`out` holds a byte-level BPE that `tokenizers` learnt of a .jsonl, as its users write it."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    def documents() -> Iterator[str]:
        with text.open(encoding="utf-8") as lines:
            for line in lines:
                yield json.loads(line)["text"]

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size, initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(documents(), trainer)
    out.mkdir()
    tokenizer.save(str(out / "tokenizer.json"))


def _commands(vocab_size: int, text_bytes: int) -> dict[str, list[str]]:
    """What is compared, to be run beside text.jsonl; each writes the directory `out`."""
    ours = [
        *(sys.executable, "-m", "llmtrain", "tokenizer", "train", "--data", "text.jsonl"),
        *("--vocab-size", str(vocab_size), "--out", "out", "-q"),
    ]
    theirs = [sys.executable, "-m", "tests.benchmarks.tokenizer_training", "--learn"]
    return {
        OURS: ours,
        OURS_ALL: [*ours, "--max-bytes", str(64 * text_bytes)],  # of which no document is a part
        THEIRS: [*theirs, str(vocab_size)],
    }


def _measured(
    system: str, command: list[str], scratch: Path, held_out: Sequence[str]
) -> Result | None:
    environment = {**os.environ, "PYTHONPATH": import_path(), "PYTHONWARNINGS": "ignore"}
    out, log = scratch / "out", scratch / "log.txt"
    finished = run_measured(command, environment, log, scratch)
    if finished.exit_code:
        _say(f"{system} ended with code {finished.exit_code}:\n{tail(log)}")
        return None
    tokenizer = open_tokenizer(out)
    tokens = sum(len(tokenizer.encode(text)) for text in held_out)
    text_bytes = sum(len(text.encode()) for text in held_out)
    for path in out.iterdir():
        path.unlink()
    out.rmdir()
    result = Result(system, finished.wall_s, finished.peak_tree_bytes, text_bytes / tokens)
    _say(f"{system}: {result.wall_s:.1f} s, {format_bytes(result.peak_bytes)}")
    return result


def _write_corpus(data: str | None, wanted_bytes: int, path: Path) -> tuple[int, list[str]]:
    """Bytes of text in the .jsonl at `path`, and documents that are not in it."""
    text_bytes, held_out = 0, []
    with path.open("w", encoding="utf-8") as file:
        for number, text in enumerate(_documents(data)):
            if number % _HELD_OUT == 0:
                held_out.append(text)
                continue
            file.write(json.dumps({"text": text}, ensure_ascii=False) + "\n")
            text_bytes += len(text.encode())
            if text_bytes >= wanted_bytes:
                break
    return text_bytes, held_out


def _documents(data: str | None) -> Iterator[str]:
    """Those of `data`, once; or copies of builtin:python without end."""
    corpus = resolve_sources([data or "builtin:python"])
    yield from (document.text for document in corpus.documents())
    copy = 0
    while data is None:
        copy += 1
        spelt = _spelling(copy)
        yield from (_WORD.sub(spelt, document.text) for document in corpus.documents())


def _spelling(copy: int) -> Callable[[re.Match[str]], str]:
    """The word as this copy spells it: the same each time."""
    known: dict[str, str] = {}

    def spelt(found: re.Match[str]) -> str:
        word = found[0]
        if word not in known:
            draw = random.Random(f"{copy} {word}")
            anew = "".join(draw.sample(word, len(word)))
            known[word] = word if draw.randrange(_SPELT_ANEW) else anew
        return known[word]

    return spelt


def _show(results: Sequence[Result]) -> None:
    last = [result for result in results if result.system == results[-1].system]
    their_s = statistics.median(result.wall_s for result in last)
    their_peak = statistics.median(result.peak_bytes for result in last)
    for system in dict.fromkeys(result.system for result in results):
        own = [result for result in results if result.system == system]
        wall_s = statistics.median(result.wall_s for result in own)
        peak_bytes = statistics.median(result.peak_bytes for result in own)
        sys.stdout.write(
            f"{system:<24}{wall_s:8.1f} s {wall_s / their_s:6.2f}×  "
            f"{format_bytes(int(peak_bytes)):>9} {peak_bytes / their_peak:6.2f}×  "
            f"{own[0].bytes_per_token:.3f} bytes per token on other text\n"
        )


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--bytes", type=parse_bytes, default=parse_bytes("100MB"))
    parser.add_argument("--vocab-size", type=int, default=32_000)
    parser.add_argument("--data", help="text, as for llmtrain; default: made of builtin:python")
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--systems", nargs="+", choices=SYSTEMS, default=SYSTEMS)
    parser.add_argument("--json", type=Path)
    return parser


def _say(text: str) -> None:
    sys.stderr.write(text + "\n")


if __name__ == "__main__":
    if sys.argv[1:2] == ["--learn"]:
        learn_with_tokenizers(Path("text.jsonl"), int(sys.argv[2]), Path("out"))
    else:
        sys.exit(main(sys.argv[1:]))
