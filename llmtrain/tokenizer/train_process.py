"""Train a vocabulary in a worker process, since sentencepiece cannot be interrupted by signals."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict

from llmtrain.children import WorkerProgram, ask_workers, serve
from llmtrain.tokenizer.training import LearnedVocabulary, VocabularySpec, learn_vocabulary


def train_in_process(
    texts: Iterable[str], spec: VocabularySpec, check_stop: Callable[[], None]
) -> LearnedVocabulary:
    """Learn a vocabulary in a worker process, which ends when `check_stop` raises.

    Raises the errors of `learn_vocabulary`, and LlmtrainError if the process dies.
    """
    program = WorkerProgram(
        "llmtrain.tokenizer.train_process:main",
        (json.dumps(asdict(spec)),),
        task="trained the tokenizer",
        hint="run the same command again, or use a trained tokenizer: --tokenizer DIRECTORY",
    )
    request = (text.encode() for text in texts)
    [(character_coverage, model_proto)] = ask_workers(program, [request], check_stop)
    return LearnedVocabulary(model_proto, float(character_coverage))


def main() -> None:
    """Run a worker process; its argument is the VocabularySpec as JSON."""
    spec = VocabularySpec(**json.loads(sys.argv[1]))

    def handle(texts: Iterator[bytes]) -> tuple[bytes, bytes]:
        learned = learn_vocabulary((data.decode() for data in texts), spec)
        return repr(learned.character_coverage).encode(), learned.model_proto

    serve(handle)
