"""`llmtrain tokenizer encode|decode`: text and ids, from files and pipes of any size."""

from __future__ import annotations

import codecs
import sys
from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import Annotated

import typer

from llmtrain.cli.output import Output
from llmtrain.cli.streams import write_bytes

TokenizerOption = Annotated[
    Path, typer.Option("--tokenizer", help="A tokenizer's or a checkpoint's directory, or a file.")
]
FileArgument = Annotated[
    Path | None, typer.Argument(metavar="FILE", help="The file to read; default: stdin.")
]
_BLOCK_BYTES = 1 << 20


def encode(
    output: Output,
    tokenizer: TokenizerOption,
    file: FileArgument = None,
    out: Annotated[
        Path | None,
        typer.Option("--out", help="Write raw little-endian uint16 or uint32 to this file."),
    ] = None,
) -> None:
    """Encode text as ids, separated by spaces."""
    from llmtrain.documents.tokenizer import TokenizerEncode
    from llmtrain.errors import UsageError
    from llmtrain.tokenizer import open_tokenizer
    from llmtrain.tokenizer.streams import encoded_parts

    if out is not None and file is not None and _is_same(out, file):
        raise UsageError(
            f"--out {out} is the text that is read", hint="name another file for the ids"
        )
    model = open_tokenizer(tokenizer)
    parts = encoded_parts(model, _text_blocks(file))
    if out is not None:
        tokens = _write_ids(out, parts, model.vocab_size)
        note = f"{out}: {tokens} ids of {_id_bytes(model.vocab_size)} bytes each"
        output.answer(TokenizerEncode.of(out=out, tokens=tokens), (), note)
    elif output.json:
        ids = [token for part in parts for token in part]
        output.document(TokenizerEncode.of(ids=ids, tokens=len(ids)))
    else:
        before = ""
        for part in parts:
            if part:
                write_bytes((before + " ".join(map(str, part))).encode())
                before = " "
        write_bytes(b"\n")


def _is_same(one: Path, other: Path) -> bool:
    """Return True if both names exist and are of one file."""
    return one.exists() and other.exists() and one.samefile(other)


def decode(
    output: Output,
    tokenizer: TokenizerOption,
    file: FileArgument = None,
    raw: Annotated[
        bool, typer.Option("--raw", help="Read ids as `tokenizer encode --out` writes them.")
    ] = False,
) -> None:
    """Decode ids to the exact text."""
    from llmtrain.documents.tokenizer import TokenizerDecode
    from llmtrain.tokenizer import open_tokenizer
    from llmtrain.tokenizer.streams import decoded_parts

    model = open_tokenizer(tokenizer)
    batches = _raw_batches(file, model.vocab_size) if raw else _id_batches(file)
    parts = decoded_parts(model, batches)
    if output.json:
        output.document(TokenizerDecode.of(text="".join(parts)))
        return
    for part in parts:
        write_bytes(part.encode("utf-8"))


def _write_ids(path: Path, parts: Iterator[list[int]], vocab_size: int) -> int:
    """Write ids to a file; return their number. Raises UsageError if it cannot be written."""
    import numpy as np

    from llmtrain.errors import UsageError
    from llmtrain.files import write_pieces_atomically

    kind = f"<u{_id_bytes(vocab_size)}"
    tokens = 0

    def pieces() -> Iterator[bytes]:
        nonlocal tokens
        for part in parts:
            tokens += len(part)
            yield np.array(part, dtype=kind).tobytes()

    try:
        target = path.resolve()  # a link stays one
        if target.exists() and not target.is_file():
            with target.open("wb") as device:
                device.writelines(pieces())
        else:
            write_pieces_atomically(target, pieces())
    except OSError as error:
        raise UsageError(
            f"--out {path} cannot be written: {error.strerror}",
            hint="--out FILE, where you may write",
        ) from None
    return tokens


def _id_bytes(vocab_size: int) -> int:
    return 2 if vocab_size <= 1 << 16 else 4


def _id_batches(file: Path | None) -> Iterator[list[int]]:
    """Yield ids, a block of the file at a time. Raises DataError for a word that is not an id."""
    rest = ""
    for block in _text_blocks(file):
        words = (rest + block).split()
        rest = words.pop() if words and not block[-1:].isspace() else ""
        yield _ids_of(words)
    yield _ids_of(rest.split())


def _raw_batches(file: Path | None, vocab_size: int) -> Iterator[list[int]]:
    """Yield the ids of a raw file. Raises DataError if it ends within one."""
    import numpy as np

    from llmtrain.errors import DataError

    size, rest = _id_bytes(vocab_size), b""
    for block in _blocks(file):
        data = rest + block
        whole = len(data) // size * size
        rest = data[whole:]
        yield np.frombuffer(data[:whole], dtype=f"<u{size}").tolist()
    if rest:
        hint = f"with this vocabulary an id has {size} bytes"
        raise DataError(f"{_name(file)} ends within an id", hint=hint)


def _ids_of(words: list[str]) -> list[int]:
    from llmtrain.errors import DataError

    wrong = next((word for word in words if not word.isascii() or not word.isdigit()), None)
    if wrong is not None:
        raise DataError(
            f"{wrong[:40]!r} is not a token id",
            hint="tokenizer encode prints ids; those of encode --out are read by decode --raw",
        )
    return [int(word) if len(word) < 20 else 1 << 64 for word in words]


def _text_blocks(file: Path | None) -> Iterator[str]:
    """Yield the text of a file or stdin. Raises DataError with the offset of invalid UTF-8."""
    from llmtrain.errors import DataError

    decoder = codecs.getincrementaldecoder("utf-8")()
    read_bytes = 0
    try:
        for block in _blocks(file):
            read_bytes += len(block)
            yield decoder.decode(block)
        decoder.decode(b"", final=True)
    except UnicodeDecodeError as error:
        at = read_bytes - len(error.object) + error.start
        hint = "text has to be UTF-8; ids that encode --out wrote are read by decode --raw"
        raise DataError(f"{_name(file)}: not UTF-8 at byte {at}", hint=hint) from None


def _blocks(file: Path | None) -> Iterator[bytes]:
    from llmtrain.errors import DataError

    try:
        with nullcontext(sys.stdin.buffer) if file is None else file.open("rb") as source:
            while block := source.read(_BLOCK_BYTES):
                yield block
    except OSError as error:
        raise DataError(f"{_name(file)} cannot be read: {error.strerror}") from None


def _name(file: Path | None) -> str:
    return str(file) if file is not None else "stdin"
