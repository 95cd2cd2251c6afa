"""A process that reads a GGUF file with llama.cpp, by its server on this machine.

It computes with an fp32 cache and without flash attention, so that what differs is the file.
"""

from __future__ import annotations

import http.client
import json
import os
import secrets
import sys
import tempfile
from typing import IO, Any
from urllib.parse import urlsplit

from llmtrain.errors import DataError
from llmtrain.export.questions import TOP, Answers, Arguments, Prompt, Questions, Step, answer_with
from llmtrain.untrusted import parse_json

_LOG_BYTES = 16 << 20


def main() -> None:
    """Run a reader's process."""
    answer_with(sys.argv[1], _answer)


def _answer(arguments: Arguments, questions: Questions) -> Answers:
    with tempfile.TemporaryFile() as log:
        os.dup2(log.fileno(), 2)  # until this process ends: the library logs as long as it lives
        server = Server(arguments, questions.context, log)
    return Answers(
        ids=[server.ids(text) for text in questions.texts],
        prefix=server.prefix(),
        continuations=[server.continuation(prompt) for prompt in questions.prompts],
    )


class Server:
    """llama.cpp's server, which only this process has the key of."""

    def __init__(self, arguments: Arguments, context: int, log: IO[bytes]) -> None:
        """Load the model. Raises DataError, with the reason in the library's log."""
        import xllamacpp

        self._key = secrets.token_hex(16)
        parameters = xllamacpp.CommonParams()
        parameters.model.path = arguments.path
        parameters.api_keys = [self._key]
        parameters.cors_origins = ""
        parameters.port = 0  # any that is free
        parameters.ui = False
        parameters.warmup = False
        parameters.fit_params = False
        parameters.n_gpu_layers = 0
        parameters.n_ctx = context
        parameters.n_parallel = 1
        parameters.cpuparams.n_threads = arguments.threads
        parameters.cpuparams_batch.n_threads = arguments.threads
        parameters.cache_type_k = xllamacpp.ggml_type.GGML_TYPE_F32
        parameters.cache_type_v = xllamacpp.ggml_type.GGML_TYPE_F32
        kinds = xllamacpp.llama_flash_attn_type
        parameters.flash_attn_type = kinds.LLAMA_FLASH_ATTN_TYPE_DISABLED
        try:
            self._server = xllamacpp.Server(parameters)
        except RuntimeError as error:
            raise DataError(_reason(log) or str(error)) from None
        self._connection = http.client.HTTPConnection(
            urlsplit(self._server.listening_address).netloc
        )

    def ids(self, text: str) -> list[int]:
        """Return the ids of a text."""
        return self._ids(text, adds_special=False)

    def prefix(self) -> list[int]:
        """Return the ids that are put before a prompt."""
        return self._ids("", adds_special=True)

    def _ids(self, text: str, *, adds_special: bool) -> list[int]:
        document = {"content": text, "add_special": adds_special, "parse_special": False}
        ids: list[int] = self._post("/tokenize", document)["tokens"]
        return ids

    def continuation(self, prompt: Prompt) -> list[Step]:
        """Return the steps of a greedy continuation; it ends before an end-of-text token."""
        steps: list[Step] = []
        while len(steps) < prompt.tokens and (step := self._step(prompt, steps)) is not None:
            steps.append(step)
        return steps

    def _step(self, prompt: Prompt, before: list[Step]) -> Step | None:
        """Return the next step; None at the end of the text.

        The server says no probabilities where the new text ends inside a character. One step is
        asked for at a time, because it would not say which steps those are.
        """
        document = {
            "prompt": [*prompt.ids, *(step.token for step in before)],
            "n_predict": 1,
            "n_probs": TOP,
            "temperature": 0,
            "cache_prompt": True,
            "return_tokens": True,
        }
        answer = self._post("/completion", document)
        if not answer["tokens"]:
            return None
        top = [
            (each["id"], each["logprob"])
            for step in answer.get("completion_probabilities", [])
            for each in step["top_logprobs"]
        ]
        return Step(token=answer["tokens"][0], top=top)

    def _post(self, path: str, document: dict[str, object]) -> Any:
        headers = {"Authorization": f"Bearer {self._key}", "Content-Type": "application/json"}
        self._connection.request("POST", path, json.dumps(document).encode(), headers)
        return parse_json(self._connection.getresponse().read())


def _reason(log: IO[bytes]) -> str:
    """Return the first line of the log that reports an error."""
    log.seek(0)
    lines = log.read(_LOG_BYTES).decode(errors="replace").splitlines()
    return next((line.strip() for line in lines if "error" in line.lower()), "")[:300]
