"""Standard input is a file like others: read once, there for as long as it is needed."""

from __future__ import annotations

import gzip
import io
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from llmtrain.data.corpus import Corpus
from llmtrain.data.sources import stdin
from llmtrain.data.sources.resolve import resolve_sources
from llmtrain.data.trace import trace_passages
from llmtrain.errors import DataError, UsageError

Feed = Callable[[bytes], None]


@pytest.fixture
def feed(monkeypatch: pytest.MonkeyPatch) -> Iterator[Feed]:
    """Bytes that stand on standard input, which was not read yet."""

    def stand(data: bytes) -> None:
        stdin._spooled.cache_clear()
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(data)))

    yield stand
    stdin._spooled.cache_clear()


def texts(corpus: Corpus) -> list[str]:
    return [document.text for document in corpus.documents()]


def test_it_can_be_read_any_number_of_times(feed: Feed) -> None:
    feed("a\r\n\ufeffé".encode())
    corpus = resolve_sources(["-"])
    assert texts(corpus) == texts(corpus) == texts(resolve_sources(["-"])) == ["a\r\n\ufeffé"]
    assert [document.origin for document in corpus.documents()] == ["stdin"]
    assert corpus.describe()[0]["kind"] == "stdin"


@pytest.mark.parametrize("spec", ["-.jsonl.gz", "-.JSONL.GZ"])
def test_its_name_says_what_it_is(feed: Feed, spec: str) -> None:
    feed(gzip.compress(b'{"text": "a"}\n{"text": "b"}\n'))
    corpus = resolve_sources([spec])
    assert [(d.origin, d.text) for d in corpus.documents()] == [("stdin:1", "a"), ("stdin:2", "b")]


def test_what_is_wrong_in_it_is_told_of_it(feed: Feed) -> None:
    for data, spec, said in (
        (b"a\0b", "-", "stdin is binary"),
        (b"caf\xe9", "-", "stdin is not UTF-8: byte 0xe9 at offset 3"),
        (b'{"body": "a"}', "-.jsonl", "stdin:1 has no field 'text'; it has 'body'"),
        (b"", "-", "there is no text in -"),
        (b"PAR1", "-.parquet", "stdin is not a complete parquet file"),
    ):
        feed(data)
        with pytest.raises(DataError) as caught:
            resolve_sources([spec]).measure()
        assert said in caught.value.message


def test_a_terminal_and_nothing_are_refused(feed: Feed, monkeypatch: pytest.MonkeyPatch) -> None:
    feed(b"text")
    monkeypatch.setattr(sys.stdin, "isatty", lambda: True, raising=False)
    with pytest.raises(UsageError, match="is a terminal"):
        resolve_sources(["-"])
    monkeypatch.setattr(sys, "stdin", None)
    with pytest.raises(UsageError, match="is closed"):
        resolve_sources(["-"])


def test_a_disk_without_room_is_told(
    feed: Feed, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    feed(b"text")
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "gone"))
    with pytest.raises(DataError, match=r"cannot keep standard input in .*gone"):
        resolve_sources(["-"])


def test_a_passage_of_it_is_not_waited_for(feed: Feed) -> None:
    feed(b"some text")
    assert trace_passages(["text"], ["-"], "text", limit_s=60.0) == []
    assert sys.stdin.buffer.read() == b"some text"


CHILD = """
import multiprocessing, sys, tempfile
from pathlib import Path
from llmtrain.data.sources.resolve import resolve_sources
def texts(corpus): return [document.text for document in corpus.documents()]
if __name__ == "__main__":
    corpus = resolve_sources(["-"])
    print(len(list(Path(tempfile.gettempdir()).iterdir())))
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        print(pool.apply(texts, (corpus,)) == texts(corpus) == ["x" * 300_000])
"""


def test_what_was_kept_is_there_for_other_processes_and_gone_at_the_end(tmp_path: Path) -> None:
    (tmp_path / "child.py").write_text(CHILD)
    (tmp_path / "kept").mkdir()
    done = subprocess.run(
        [sys.executable, str(tmp_path / "child.py")],
        input=b"x" * 300_000,
        capture_output=True,
        check=True,
        env={**os.environ, "TMPDIR": str(tmp_path / "kept"), "PYTHONPATH": str(Path.cwd())},
    )
    assert done.stdout.split() == [b"1", b"True"]
    assert list((tmp_path / "kept").iterdir()) == []
