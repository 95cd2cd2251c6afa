"""Detection by first bytes of files that are not what their name suggests."""

from __future__ import annotations

_READ_BYTES = 4096
_RENAME = "; rename it to end in {}"
LFS_POINTER = "a Git LFS pointer, not the file itself; git lfs pull brings it"
_LFS_HEAD = b"version https://git-lfs.github.com/spec/"
# Each of these has, or is followed by, bytes that are invalid UTF-8.
_BEGINNINGS: tuple[tuple[bytes, str, str], ...] = (
    (b"\x1f\x8b", "a gzip file", ".gz"),
    (b"BZh", "a bzip2 file", ".bz2"),
    (b"\xfd7zXZ\0", "an xz file", ".xz"),
    (b"\x28\xb5\x2f\xfd", "a zstd file", ".zst"),
    (b"PK\x03\x04", "a zip file", ".zip"),
    (b"PK\x05\x06", "a zip file", ".zip"),
    (b"PAR1", "a parquet file", ".parquet"),
    (b"ARROW1", "an arrow file", ".arrow"),
    (b"7z\xbc\xaf\x27\x1c", "a 7z file", ""),
    (b"Rar!\x1a\x07", "a rar file", ""),
    (b"\x89PNG", "a PNG image", ""),
    (b"\xff\xd8\xff", "a JPEG image", ""),
    (b"GIF8", "a GIF image", ""),
    (b"RIFF", "an image, sound or film", ""),
    (b"II*\0", "a TIFF image", ""),
    (b"MM\0*", "a TIFF image", ""),
    (b"BM", "a BMP image", ""),
    (b"\xd0\xcf\x11\xe0", "a document of an office program", ""),
    (b"SQLite format 3\0", "a SQLite database", ""),
    (b"\x7fELF", "a program", ""),
    (b"ID3", "a sound", ""),
    (b"OggS", "a sound", ""),
)
_PDF = b"%PDF-"
_WEB_PAGES = (b"<!doctype html", b"<html")
_TAR, _TAR_AT = b"ustar", 257


def reason_against_content(head: bytes) -> str | None:
    """Return a description of what a file that begins with `head` is; None if it may be text."""
    if head.startswith(_PDF):  # which may be all ASCII, and still holds no readable text
        return "a PDF file, not text; pdftotext makes text of it"
    found = None if _is_text(head) else _binary_kind(head)
    if found is None:
        return None
    what, suffix = found
    return f"{what}, not text" + (_RENAME.format(suffix) if suffix else "")


def other_content(head: bytes) -> str | None:
    """Return what a file is that is read as JSON, YAML, a model or weights and is none of them.

    None if the first bytes do not say so.
    """
    if not head:
        return "empty"
    if is_lfs_pointer(head):
        return LFS_POINTER
    if head.startswith(_PDF):
        return "a PDF file"
    if head.lstrip()[:15].lower().startswith(_WEB_PAGES):
        return "a web page, not the file itself; download it again"
    found = None if _is_text(head) else _binary_kind(head)
    return None if found is None else found[0]


def content_kind(head: bytes) -> tuple[str, str] | None:
    """Return what a file that begins with `head` is, and the suffix of such files; None if unknown.

    The suffix of text is "".
    """
    found = _binary_kind(head)
    if found is None and head and _is_text(head):
        return "text", ""
    return found


def _binary_kind(head: bytes) -> tuple[str, str] | None:
    """Return the kind of a binary file and the suffix that it should have; "" if none is read."""
    if head[_TAR_AT : _TAR_AT + len(_TAR)] == _TAR:
        return "a tar file", ".tar"
    kinds = (
        (what, suffix) for beginning, what, suffix in _BEGINNINGS if head.startswith(beginning)
    )
    return next(kinds, None)


def is_lfs_pointer(head: bytes) -> bool:
    """Return whether it is a Git LFS pointer, left in place of a file that was not downloaded."""
    return head.startswith(_LFS_HEAD)


def _is_text(head: bytes) -> bool:
    if b"\0" in head:
        return False
    head = head[:_READ_BYTES]
    try:
        head.decode()
    except UnicodeDecodeError as error:
        return error.start >= len(head) - 3  # a character that is cut
    return True
