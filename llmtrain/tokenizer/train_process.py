"""Learning a vocabulary in a process of its own: sentencepiece takes minutes, and heeds no signal.

The process reads texts, one JSON string a line, and answers with a line of JSON and the model.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterable
from contextlib import suppress
from typing import BinaryIO

from llmtrain.children import python_command
from llmtrain.errors import DataError, LlmtrainError, UsageError, describe_exit_code
from llmtrain.tokenizer.training import Learned, ModelKind, VocabularySpec, learn_vocabulary

_LOOK_EVERY_S = 0.2
_REFUSALS: tuple[type[LlmtrainError], ...] = (UsageError, DataError)


def train_in_process(
    texts: Iterable[str], recipe: VocabularySpec, check_stop: Callable[[], None]
) -> Learned:
    """What `learn_vocabulary` returns and raises. Whatever `check_stop` raises ends the process.

    Raises LlmtrainError that says how the process ended, where it ended without an answer.
    """
    command = python_command(
        "llmtrain.tokenizer.train_process:serve",
        str(os.getpid()),
        str(recipe.vocab_size),
        recipe.kind,
        str(recipe.reserved),
    )
    with subprocess.Popen(
        command,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        start_new_session=os.name != "nt",  # a Ctrl-C is noted here, and ends it from here
    ) as process:
        try:
            answer = _answer(process, texts, check_stop)
        finally:
            process.kill()
            if process.stdin is not None:
                with suppress(OSError):  # what was not sent is lost
                    process.stdin.close()
    check_stop()
    if process.returncode or not answer:
        raise LlmtrainError(
            f"the process that learns the tokenizer {describe_exit_code(process.returncode)}",
            hint="the same command again, or a tokenizer that is there: --tokenizer DIRECTORY",
        )
    return _parsed(answer)


def _answer(
    process: subprocess.Popen[bytes], texts: Iterable[str], check_stop: Callable[[], None]
) -> bytes:
    assert process.stdin is not None
    try:
        for text in texts:
            check_stop()
            process.stdin.write(json.dumps(text).encode("ascii") + b"\n")
        process.stdin.close()
    except BrokenPipeError:
        pass  # it is dead, and says how by its exit code
    process.stdin = None  # or communicate would close it again
    while True:
        check_stop()
        try:
            return process.communicate(timeout=_LOOK_EVERY_S)[0]
        except subprocess.TimeoutExpired:
            continue


def _parsed(answer: bytes) -> Learned:
    line, _, model = answer.partition(b"\n")
    said = json.loads(line)
    for kind in _REFUSALS:
        if said.get("refused") == kind.__name__:
            raise kind(said["message"], hint=said["hint"])
    return Learned(model, said["character_coverage"])


def main(parent_pid: int, recipe: VocabularySpec, read: BinaryIO, write: BinaryIO) -> None:
    """The answer to the texts in `read` is in `write`."""
    threading.Thread(target=_end_with, args=(parent_pid,), daemon=True).start()
    try:
        learned = learn_vocabulary(map(json.loads, read), recipe)
    except _REFUSALS as error:
        refusal = {"refused": type(error).__name__, "message": error.message, "hint": error.hint}
        write.write(json.dumps(refusal).encode("ascii"))
    else:
        coverage = {"character_coverage": learned.character_coverage}
        write.write(json.dumps(coverage).encode("ascii") + b"\n" + learned.model_proto)


def _end_with(parent_pid: int) -> None:
    """Nobody waits for what this process learns once its parent is gone."""
    if os.name == "nt":
        return  # where nothing tells of the parent's end; learning ends by itself
    while os.getppid() == parent_pid:
        time.sleep(_LOOK_EVERY_S)
    os._exit(1)


def serve() -> None:
    """What this process was started for."""
    with os.fdopen(0, "rb") as texts_in, os.fdopen(1, "wb") as answer_out:
        kind: ModelKind = "unigram" if sys.argv[3] == "unigram" else "bpe"
        wanted = VocabularySpec(int(sys.argv[2]), kind, int(sys.argv[4]))
        main(int(sys.argv[1]), wanted, texts_in, answer_out)
