"""Import of tokenizers from other tools: sentencepiece, tokenizer.json, or tiktoken's ranks.

Imported tokenizers keep their ids. Training needs a separator that no text encodes to: one of the
control tokens, or an added one. Where the tokenizer puts a bos before texts, documents begin with
that and end with its eos (`text_ends`). Whether text round-trips exactly is checked.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from llmtrain.errors import DataError
from llmtrain.tokenizer.chat_source import read_chat_source
from llmtrain.tokenizer.codec import (
    CONFIG_FILE,
    NAMING_FILES,
    Kind,
    KindName,
)
from llmtrain.tokenizer.huggingface_codec import HuggingFaceCodec
from llmtrain.tokenizer.import_files import file_to_import, files_in, is_model
from llmtrain.tokenizer.piece import SEPARATOR
from llmtrain.tokenizer.probes import PROBES
from llmtrain.tokenizer.round_trip import changed_texts, describe_change
from llmtrain.tokenizer.sentencepiece_codec import SentencePieceCodec
from llmtrain.tokenizer.structure import with_control_piece
from llmtrain.tokenizer.supported_models import refuse_affixes, require_supported
from llmtrain.tokenizer.text_ends import (
    StatedEnds,
    Template,
    ends_of,
    stated_ends,
    template_json,
)
from llmtrain.tokenizer.tiktoken_ranks import ranks_json
from llmtrain.tokenizer.tokenizer import MAX_JSON_BYTES, MAX_MODEL_BYTES, Tokenizer
from llmtrain.tokenizer.vocabulary_json import (
    VOCABULARY_FILE,
    special_token,
    vocabulary_json,
)
from llmtrain.untrusted import parse_json, problem_of, read_bytes

# End-of-text tokens of well-known tokenizers, in order of preference; used if none is stated.
_ENDS = (SEPARATOR, "<|end_of_text|>", "</s>", "<eos>", "<|eos|>", "<s>", "<bos>")


@dataclass(frozen=True, slots=True)
class ImportOptions:
    """The options of an import: what the tokenizer file does not contain."""

    pattern: str | None = None  # splits text before ranks apply: a name or a regular expression
    separator: str | None = None  # the name of the control token between documents
    allow_lossy: bool = False  # whether a tokenizer that changes some text is accepted
    of_model: bool = False  # whether it is that of a model, which knows what is around a text


@dataclass(frozen=True, slots=True)
class Imported:
    """An imported tokenizer, with its file, its separator and the warnings of the import."""

    tokenizer: Tokenizer
    path: Path  # of the file
    separator: str
    added_separator: bool
    warnings: tuple[str, ...]


def open_tokenizer(path: Path) -> Tokenizer:
    """Load the tokenizer saved in the directory `path`, or else import `path`. Raises DataError."""
    is_saved = any((path / name).is_file() for name in NAMING_FILES)
    if path.is_file() or (not is_saved and path.is_dir() and files_in(path)):
        return import_tokenizer(path, ImportOptions()).tokenizer
    return Tokenizer.load(path)


def import_tokenizer(path: Path, options: ImportOptions) -> Imported:
    """Import the tokenizer in a file, or in the tokenizer file of a directory; the ids are kept.

    The chat template of a directory is kept with it. Raises DataError, naming the file, if the
    file cannot be used, or if text does not round-trip and `options.allow_lossy` is false.
    """
    file = file_to_import(path, has_pattern=options.pattern is not None)
    imported = _import_file(file, options)
    if not path.is_dir():
        return imported
    return replace(imported, tokenizer=imported.tokenizer.with_chat(read_chat_source(path)))


def _import_file(file: Path, options: ImportOptions) -> Imported:
    try:
        if options.pattern is None and is_model(file):
            return _of_model(file, options)
        if options.pattern is None and file.name == VOCABULARY_FILE:
            return _of_json(file, vocabulary_json(file), options)
        if options.pattern is None and file.suffix == ".json":
            return _of_json(file, read_bytes(file, MAX_JSON_BYTES, follow_links=True), options)
        return _of_ranks(file, options)
    except (OSError, ValueError) as error:
        raise DataError(f"{file} cannot be read: {problem_of(error)}") from None
    except DataError as error:
        raise DataError(f"{file} cannot be used: {error.message}", hint=error.hint) from None


def _of_model(file: Path, options: ImportOptions) -> Imported:
    model = read_bytes(file, MAX_MODEL_BYTES, follow_links=True)
    try:
        own = Tokenizer.of_model(model)
    except DataError:
        return _of_foreign_model(file, model, options)
    return Imported(own, file, SEPARATOR, False, ())


def _of_foreign_model(file: Path, model: bytes, options: ImportOptions) -> Imported:
    codec = SentencePieceCodec(model)
    names = {
        piece.text: token for token, piece in enumerate(codec.pieces()) if piece.kind == "control"
    }
    end_id, stated = codec.end_id(), stated_ends(file)
    if end_id is not None:
        stated = replace(stated, eos=codec.piece(end_id))
    separator = _chosen(options.separator, stated.eos, names)
    added = separator not in names
    if added:
        names[separator] = codec.vocab_size
        model = with_control_piece(model, separator)
    adds_bos = options.of_model and stated.puts_bos_by_class and stated.bos is not None
    template = Template(before=(str(stated.bos),) if adds_bos else ())
    kind = _kind("sentencepiece", names, separator, stated, template, options)
    return _checked(file, model, kind, options, tuple(names), separator, added)


def _of_ranks(file: Path, options: ImportOptions) -> Imported:
    if options.pattern is None:
        raise DataError(
            "ranks do not say how text is split before it is merged",
            hint="--pattern gpt2, cl100k_base, o200k_base or a regular expression",
        )
    data = read_bytes(file, MAX_MODEL_BYTES, follow_links=True)
    return _of_json(file, ranks_json(data, options.pattern), options)


def _of_json(file: Path, data: bytes, options: ImportOptions) -> Imported:
    document = parse_json(data)
    refuse_affixes(document)
    codec = HuggingFaceCodec(data)  # validates the form of the document as well
    document.setdefault("added_tokens", [])
    require_supported(document)
    names = {
        each["content"]: each["id"] for each in document["added_tokens"] if each.get("special")
    }
    stated, template = stated_ends(file), codec.template()
    separator = _chosen(options.separator, stated.eos, names)
    added = separator not in names
    if added:
        names[separator] = codec.vocab_size
        document["added_tokens"].append(special_token(separator, codec.vocab_size))
    kind = _kind("huggingface", names, separator, stated, template, options)
    before = dict(document)
    warnings = (
        []
        if options.of_model and kind.ends is None
        else _set_template(document, template, kind, codec)
    )
    if not options.of_model:
        warnings += _take_lengths(document)
    if added or document != before:
        data = json.dumps(document, ensure_ascii=False).encode()
    if options.separator is None and stated.eos is not None and stated.eos not in names:
        warnings.append(
            f"{CONFIG_FILE} ends a text with {stated.eos}, which is no special token of "
            f"{file.name}; the separator is {separator}"
        )
    imported = _checked(file, data, kind, options, tuple(names), separator, added)
    return replace(imported, warnings=(*warnings, *imported.warnings))


def _kind(
    name: KindName,
    names: Mapping[str, int],
    separator: str,
    stated: StatedEnds,
    template: Template,
    options: ImportOptions,
) -> Kind:
    """Return the kind of an imported tokenizer: which token begins documents, and which ends them.

    A separator that is asked for does both.
    """
    ends = None
    if options.separator is None:
        ends = ends_of(stated, template, names, separator, of_model=options.of_model)
    begins = names[separator] if ends is None or not ends.adds_bos else ends.bos_id
    assert begins is not None, "bos that is added has an id"
    return Kind(name, begins, escaped=False, ends=ends)


def _set_template(
    document: Any, template: Template, kind: Kind, codec: HuggingFaceCodec
) -> list[str]:
    """Let the template of tokenizer.json put what prompts begin with before a text, and no more.

    Left in the file, other tokens would make other programs give the model other ids. Return what
    was left out.
    """
    adds_bos = kind.ends is not None and kind.ends.adds_bos
    bos = codec.piece(kind.separator_id) if adds_bos else None
    wanted = Template(before=() if bos is None else (bos,))
    if template == wanted:
        return []
    document["post_processor"] = None if bos is None else template_json(bos, kind.separator_id)
    around = [each for each in (*template.before, *template.after) if each != bos]
    return [f"its template puts {' '.join(around)} around a text; left out"] if around else []


def _take_lengths(document: Any) -> list[str]:
    """Take lengths that texts are cut or filled up to out of tokenizer.json; return what was."""
    warnings = []
    for key, does in (("truncation", "cuts texts"), ("padding", "fills texts up")):
        if document.get(key) is not None:
            document[key] = None
            warnings.append(f"it {does} to a fixed length; that is left out")
    return warnings


def _chosen(requested: str | None, stated: str | None, names: dict[str, int]) -> str:
    """Return the separator's name.

    It is `requested`, else the first in `names` of `stated` and the usual ones, else `SEPARATOR`,
    which has to be added.
    """
    if requested is not None:
        return requested
    candidates = (stated, *_ENDS)
    return next((name for name in candidates if name is not None and name in names), SEPARATOR)


def _checked(
    file: Path,
    model: bytes,
    kind: Kind,
    options: ImportOptions,
    controls: Sequence[str],
    separator: str,
    added: bool,
) -> Imported:
    """Check that texts round-trip; escape "▁" if that helps; otherwise refuse or warn.

    Raises DataError if texts do not round-trip and `options.allow_lossy` is false, and if no
    tokenizer.json gives the ids of a sentencepiece model.
    """
    probes = (*PROBES, *controls)
    warnings: list[str] = []
    tokenizer = Tokenizer.read_as(kind, model)
    lost = list(changed_texts(tokenizer, probes))
    if lost:
        escaped = Tokenizer.read_as(replace(kind, escaped=True), model)
        if next(changed_texts(escaped, probes), None) is None:
            tokenizer, lost = escaped, []
            warnings.append(
                "it reads a literal ▁ (U+2581) as a space; text with one is escaped, and has "
                "other ids than elsewhere"
            )
    if lost:
        problem = f"it does not keep text exactly: {describe_change(lost)}"
        if not options.allow_lossy:
            raise DataError(
                problem,
                hint="llmtrain tokenizer import FILE --out DIR --allow-lossy takes it all the "
                "same; bits per byte then count bytes that the model was never shown",
            )
        warnings.append(f"{problem}; bits per byte count bytes that the model is never shown")
    differs_at = tokenizer.json_of_model()[1] if kind.name == "sentencepiece" else None
    if differs_at is not None:
        raise DataError(
            "no tokenizer.json gives the ids of this sentencepiece model, so Hugging Face would "
            f"read the checkpoint with others: {differs_at[:80]!r} differs",
            hint="import the tokenizer.json of the same model, if it has one",
        )
    return Imported(tokenizer, file, separator, added, tuple(warnings))
