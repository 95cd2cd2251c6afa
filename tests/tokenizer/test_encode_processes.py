"""Encoding in processes gives what encoding here gives, and ends with its parent."""

from __future__ import annotations

import itertools
import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import closing
from pathlib import Path

import psutil
import pytest

from llmtrain.errors import DataError, LlmtrainError
from llmtrain.tokenizer import Tokenizer
from llmtrain.tokenizer.encode_processes import encode_in_processes, encode_in_this_process
from tests.checkout import import_path
from tests.data.fixed import TOKENIZER, fixed_texts
from tests.test_layers import loaded_after


@pytest.fixture
def tokenizer() -> Tokenizer:
    return Tokenizer.load(TOKENIZER)


@pytest.fixture
def batches() -> list[list[bytes]]:
    """Of different numbers of texts, and one of none."""
    texts = iter([text.encode() for text in fixed_texts()])
    return [list(itertools.islice(texts, count)) for count in (1, 7, 0, 30, 5, 90, 60)]


def never() -> None:
    """Asks nobody to stop."""


def workers() -> list[psutil.Process]:
    """Return the live processes that encode for this one."""
    children = psutil.Process().children()
    return [c for c in children if "tokenizer.encode_processes" in " ".join(c.cmdline())]


def ids_of(tokenizer: Tokenizer, batch: Sequence[bytes]) -> list[list[int]]:
    return tokenizer.encode_batch([data.decode() for data in batch], threads=1)


@pytest.mark.parametrize("processes", [1, 3])
def test_ids_are_those_of_the_tokenizer_in_order(
    tokenizer: Tokenizer, batches: list[list[bytes]], processes: int
) -> None:
    encoded = encode_in_processes(TOKENIZER, tokenizer.fingerprint, processes, never, batches)
    for batch, (ids, counts), (own_ids, own_counts) in zip(
        batches, encoded, encode_in_this_process(tokenizer, batches), strict=True
    ):
        lists = ids_of(tokenizer, batch)
        assert counts.tolist() == own_counts.tolist() == [len(each) for each in lists]
        assert ids.tolist() == own_ids.tolist() == [token for each in lists for token in each]
    assert workers() == []


def test_few_batches_are_under_way(tokenizer: Tokenizer) -> None:
    taken = 0

    def endless() -> Iterator[list[bytes]]:
        nonlocal taken
        while True:
            taken += 1
            yield [b"some text"]

    with closing(
        encode_in_processes(TOKENIZER, tokenizer.fingerprint, 2, never, endless())
    ) as encoded:
        for _ in range(50):
            next(encoded)
    assert taken <= 50 + 4
    assert workers() == []


def test_a_stop_ends_them_at_once(tokenizer: Tokenizer) -> None:
    calls = itertools.count()

    def stop() -> None:
        if next(calls) == 3:
            assert len(workers()) == 2
            raise DataError("enough")

    batches = itertools.repeat([b"text " * 10_000])
    with pytest.raises(DataError, match="enough"):
        list(encode_in_processes(TOKENIZER, tokenizer.fingerprint, 2, stop, batches))
    assert workers() == []


@pytest.mark.parametrize("processes", [1, 2])
def test_one_that_dies_is_named(tokenizer: Tokenizer, processes: int) -> None:
    killed: list[int] = []

    def batches() -> Iterator[list[bytes]]:
        for number in range(100):
            if number == 6:
                process = workers()[0]
                killed.append(process.pid)
                process.kill()
            yield [b"text " * 10_000]

    with pytest.raises(LlmtrainError, match=r"which encoded text, (was killed|ended)") as caught:
        list(encode_in_processes(TOKENIZER, tokenizer.fingerprint, processes, never, batches()))
    assert f"process {killed[0]}," in caught.value.message
    assert workers() == []


def test_refusals_come_through(tokenizer: Tokenizer, tmp_path: Path) -> None:
    with pytest.raises(DataError) as in_process:
        list(encode_in_processes(tmp_path, tokenizer.fingerprint, 1, never, [[b"text"]]))
    with pytest.raises(DataError) as here:
        Tokenizer.load(tmp_path)
    assert (in_process.value.message, in_process.value.hint) == (
        here.value.message,
        here.value.hint,
    )


def test_another_tokenizer_in_the_directory_is_refused() -> None:
    with pytest.raises(DataError, match="changed while it was in use"):
        list(encode_in_processes(TOKENIZER, "0" * 64, 1, never, [[b"text"]]))


_PARENT = """
import itertools, sys
from pathlib import Path
from llmtrain.tokenizer import Tokenizer
from llmtrain.tokenizer.encode_processes import encode_in_processes
directory = Path(sys.argv[1])
fingerprint = Tokenizer.load(directory).fingerprint
batches = itertools.repeat([b"text " * 10_000])
for _ in encode_in_processes(directory, fingerprint, 2, lambda: None, batches):
    print("encoding", flush=True)
"""


def test_they_end_with_their_parent() -> None:
    command = [sys.executable, "-c", _PARENT, str(TOKENIZER)]
    environment = os.environ | {"PYTHONPATH": import_path()}
    with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE) as parent:
        assert parent.stdout is not None
        assert parent.stdout.readline().strip() == b"encoding"
        children = psutil.Process(parent.pid).children()
        assert len(children) == 2
        parent.kill()
    _, alive = psutil.wait_procs(children, timeout=30)
    assert alive == []


def test_a_process_that_encodes_needs_no_torch() -> None:
    loaded = loaded_after("import llmtrain.tokenizer.encode_processes")
    assert "sentencepiece" in loaded
    assert not loaded & {"torch", "pydantic", "rich", "typer"}
