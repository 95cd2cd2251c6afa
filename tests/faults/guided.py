"""The readers of `tests.faults.readers` under atheris, which follows what an input reaches.

    pip install atheris
    python -m tests.faults.guided --reader profile --seconds 60 [--corpus DIRECTORY]

Begins from the reader's valid file. An error that is not ours ends it with a traceback, an exit
code other than 0 and the input in the working directory, as libFuzzer does; so does an input
that takes more than 5 s or 2 GiB.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

import atheris

# libFuzzer's clock is the wall's, and other work may share the processor.
_LONGEST_S = 5
_MOST_MIB = 2048

with atheris.instrument_imports(include=["llmtrain", "yaml", "json"]):
    from llmtrain.errors import LlmtrainError
    from tests.faults.readers import readers


def main(arguments: Sequence[str]) -> None:
    """One reader is fuzzed for so long; libFuzzer ends the process."""
    parser = argparse.ArgumentParser(prog="python -m tests.faults.guided")
    parser.add_argument("--reader", required=True)
    parser.add_argument("--seconds", type=int, default=60)
    parser.add_argument("--corpus", type=Path, help="inputs found are kept here")
    values = parser.parse_args(arguments)
    place = Path(tempfile.mkdtemp(prefix="llmtrain-guided-"))
    corpus = values.corpus or Path(tempfile.mkdtemp(prefix="llmtrain-corpus-"))
    reader = readers(place)[values.reader]()
    (corpus / "valid").write_bytes(reader.valid)

    def read(data: bytes) -> None:
        try:
            reader.read(data, place)
        except LlmtrainError:
            return

    limits = [f"-timeout={_LONGEST_S}", f"-rss_limit_mb={_MOST_MIB}", "-max_len=65536"]
    atheris.Setup([sys.argv[0], f"-max_total_time={values.seconds}", *limits, str(corpus)], read)
    atheris.Fuzz()


if __name__ == "__main__":
    main(sys.argv[1:])
