"""A large file takes no more memory than a small one."""

from __future__ import annotations

import random
import subprocess
import sys
from pathlib import Path

import pytest

from tests.data.making import FORMATS, PACKINGS, parquet, tar_of

TEXT_BYTES = 1 << 18
CHILD = """
import sys
from pathlib import Path
import pyarrow.ipc, pyarrow.parquet
from llmtrain.data.document import Limits
from llmtrain.data.sources.resolve import resolve_sources
def peak():  # not ru_maxrss, which begins with what the parent had
    status = Path("/proc/self/status").read_text()
    return 1024 * int(status.partition("VmHWM:")[2].split()[0])
texts = list(resolve_sources([sys.argv[1]]).documents())  # a few: what a first time takes
del texts
before = peak()
corpus = resolve_sources([sys.argv[2]], limits=Limits(longest_bytes=1 << 20))
print(sum(len(document.text) for document in corpus.documents()))
print(peak() - before)
"""


linux = pytest.mark.skipif(sys.platform != "linux", reason="peaks are read from /proc")


def characters_and_growth(small: Path, large: Path) -> tuple[int, int]:
    """How much text a process read in `large`, and by how many bytes that made it grow."""
    done = subprocess.run(
        [sys.executable, "-c", CHILD, str(small), str(large)],
        capture_output=True,
        text=True,
        check=True,
    )
    characters, grown = done.stdout.split()
    return int(characters), int(grown)


@linux
def test_a_value_that_many_rows_share_is_one_in_memory(tmp_path: Path) -> None:
    for count in (2, 1000):
        (tmp_path / f"{count}.parquet").write_bytes(parquet(["x" * TEXT_BYTES] * count, count))
    assert (tmp_path / "1000.parquet").stat().st_size < 1 << 20
    characters, grown = characters_and_growth(tmp_path / "2.parquet", tmp_path / "1000.parquet")
    assert characters == 1000 * TEXT_BYTES
    assert grown < 24 << 20


@linux
def test_the_headers_of_a_tar_are_not_kept(tmp_path: Path) -> None:
    for count in (2, 10_000):
        members = {f"{number}.txt": b"x" for number in range(count)}
        (tmp_path / f"{count}.tar").write_bytes(tar_of(members))
    characters, grown = characters_and_growth(tmp_path / "2.tar", tmp_path / "10000.tar")
    assert characters == 10_000
    assert grown < 4 << 20


@linux
@pytest.mark.parametrize(
    ("kind", "packing"),
    [
        *((".json-array", ""), (".json-strings", ".zst"), (".csv", ""), (".parquet", "")),
        *((".feather", ""), (".arrow-stream", ""), (".zip", ""), (".tar", ".zst")),
    ],
)
def test_memory_is_that_of_a_few_records(tmp_path: Path, kind: str, packing: str) -> None:
    draw = random.Random(0)
    words = [f"{draw.random()} " for _ in range(1000)]
    text = "".join(draw.choices(words, k=TEXT_BYTES // 18))
    paths = []
    for count in (2, 120):
        texts = [f"{number} {text}" for number in range(count)]
        data = FORMATS[kind](texts)
        (tmp_path / str(count)).mkdir()
        path = tmp_path / str(count) / f"a{kind.partition('-')[0]}{packing}"
        path.write_bytes(PACKINGS[packing](data) if packing else data)
        paths.append(path)
        size = sum(map(len, texts))
    assert size > 28 << 20
    characters, grown = characters_and_growth(*paths)
    assert characters == size
    assert grown < 24 << 20  # of 28 MiB and more; older pyarrows keep a little more
