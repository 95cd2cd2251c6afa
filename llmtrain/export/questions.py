"""What another program is asked about an exported model, and its answers.

It runs in a process of its own: a crash there is an error here, and its memory is freed.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

from pydantic import BaseModel, ConfigDict

from llmtrain.children import WorkerProgram, ask_workers, serve
from llmtrain.errors import DataError, LlmtrainError
from llmtrain.untrusted import parse_json

TOP = 10  # log-probabilities of so many likeliest tokens


class Prompt(BaseModel):
    """Ids, to be continued greedily by so many tokens."""

    model_config = ConfigDict(frozen=True)

    ids: list[int]
    tokens: int


class Questions(BaseModel):
    """Texts to encode, and prompts to continue."""

    model_config = ConfigDict(frozen=True)

    context: int
    texts: list[str]
    prompts: list[Prompt]


class Step(BaseModel):
    """The token that was taken, and the likeliest ones with their log-probabilities in nats.

    There may be none: see `llama_process`.
    """

    model_config = ConfigDict(frozen=True)

    token: int
    top: list[tuple[int, float]]


class Answers(BaseModel):
    """The ids of each text, and the steps of each continuation."""

    model_config = ConfigDict(frozen=True)

    ids: list[list[int]]
    prefix: list[int]  # what it puts before a prompt
    continuations: list[list[Step]]


@dataclass(frozen=True, slots=True)
class Reader:
    """A program that reads exported models: the module of its process, and its package."""

    program: str  # what people call it
    module: str  # with a function main
    package: str


@dataclass(frozen=True, slots=True)
class Arguments:
    """The arguments of a reader's process."""

    path: str
    threads: int


def ask(
    reader: Reader, path: Path, threads: int, questions: Questions, check_stop: Callable[[], None]
) -> Answers:
    """Ask a program about the model at `path`. Raises LlmtrainError if it cannot read it."""
    program = WorkerProgram(
        f"{reader.module}:main",
        (json.dumps(asdict(Arguments(str(path), threads))),),
        task=f"read the model with {reader.program}",
        hint="the file was removed; --no-verify writes it without the check",
    )
    request = [questions.model_dump_json().encode()]
    try:
        [[answer]] = ask_workers(program, [request], check_stop)
    except DataError as error:
        raise LlmtrainError(
            f"{reader.program} cannot read the exported model: {error.message}",
            hint="nothing was exported; --no-verify writes it without the check",
        ) from None
    return Answers.model_validate_json(answer)


def answer_with(argument: str, answer: Callable[[Arguments, Questions], Answers]) -> None:
    """Serve in a reader's process: answer the questions of the parent by `answer`."""
    arguments = Arguments(**parse_json(argument))

    def handle(request: Iterator[bytes]) -> list[bytes]:
        questions = Questions.model_validate_json(b"".join(request))
        return [answer(arguments, questions).model_dump_json().encode()]

    serve(handle)
