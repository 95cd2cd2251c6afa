"""The same vocabulary in the form that Hugging Face reads, with the same ids for every text."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass

import tokenizers
from tokenizers import AddedToken, Regex, decoders, models, normalizers, pre_tokenizers

from llmtrain.tokenizer.escape import REPLACEMENTS, SPACE_MARK
from llmtrain.tokenizer.piece import Piece

# A word with the spaces before it: no piece goes on into the next.
_WORD = f"{SPACE_MARK}+[^{SPACE_MARK}]*|[^{SPACE_MARK}]+"
_EXTRA_SPACES = ((Regex(r"\A +| +\z"), ""), (Regex(" {2,}"), " "))
_PADDINGS = ("<pad>", "<|pad|>", "[PAD]", "<|finetune_right_pad_id|>")
_NO_TEXT_SCORE = -1e4  # so low that a name in a text is spelt in any other way


@dataclass(frozen=True, slots=True)
class TextSettings:
    """What is done to a text before it is cut into pieces, and undone after."""

    escaped: bool = True
    adds_prefix: bool = False  # a space before each text
    removes_extra_spaces: bool = False
    whole_pieces: tuple[str, ...] = ()  # found in a text before all others


_OWN = TextSettings()


def bpe_json(pieces: Sequence[Piece], settings: TextSettings = _OWN) -> str:
    """tokenizer.json of pieces that are merged in the order of their scores."""
    model = models.BPE(
        {piece.text: token for token, piece in enumerate(pieces)},
        _merges(pieces),
        unk_token=next((piece.text for piece in pieces if piece.kind == "unknown"), None),
        fuse_unk=True,
        byte_fallback=True,
    )
    return _around(tokenizers.Tokenizer(model), pieces, settings)


def unigram_json(pieces: Sequence[Piece], settings: TextSettings = _OWN) -> str:
    """tokenizer.json of pieces of which the likeliest are chosen, word by word.

    The pieces have to have one for each character that the name of another piece is spelt in.
    """
    scores = [
        (piece.text, piece.score if piece.kind == "text" else _NO_TEXT_SCORE) for piece in pieces
    ]
    unknown = next(token for token, piece in enumerate(pieces) if piece.kind == "unknown")
    tokenizer = tokenizers.Tokenizer(models.Unigram(scores, unk_id=unknown, byte_fallback=True))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(_WORD), "isolated")
    return _around(tokenizer, pieces, settings)


def tokenizer_config(
    pieces: Sequence[Piece], model_max_length: int | None, *, adds_prefix: bool | None
) -> str:
    """Return the contents of tokenizer_config.json.

    The limit and `adds_prefix`, whether a space is put before each text, are left out if None.
    Batches are padded with a token that text does not become, and not with the separator if there
    is another: fine-tuning does not learn from what it takes for padding.
    """
    separator = next(piece.text for piece in pieces if piece.kind == "separator")
    unknown = next((piece.text for piece in pieces if piece.kind == "unknown"), None)
    controls = {piece.text for piece in pieces if piece.kind == "control"}
    padding = next((name for name in _PADDINGS if name in controls), unknown or separator)
    config: dict[str, object] = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": separator,
        "eos_token": separator,
        **({} if unknown is None else {"unk_token": unknown}),
        "pad_token": padding,
        "clean_up_tokenization_spaces": False,
        "split_special_tokens": True,  # the name of a token in a text is text
        "model_input_names": ["input_ids", "attention_mask"],
    }
    if adds_prefix is not None:
        config["add_prefix_space"] = adds_prefix  # for llama.cpp's converter
    if model_max_length is not None:
        config["model_max_length"] = model_max_length
    return json.dumps(config, indent=2) + "\n"


def _around(
    tokenizer: tokenizers.Tokenizer, pieces: Sequence[Piece], settings: TextSettings
) -> str:
    """tokenizer.json, the same for the same pieces: escapes, and names that no text becomes."""
    escapes = REPLACEMENTS if settings.escaped else ()
    trims = _EXTRA_SPACES if settings.removes_extra_spaces else ()
    replacements = (*escapes, *trims, (" ", SPACE_MARK))
    prefix = [normalizers.Prepend(SPACE_MARK)] if settings.adds_prefix else []
    tokenizer.normalizer = normalizers.Sequence(
        [*(normalizers.Replace(old, new) for old, new in replacements), *prefix]
    )
    # A code may be spread over several tokens: only the fused text can be unescaped.
    tokenizer.decoder = decoders.Sequence(
        [
            decoders.Replace(SPACE_MARK, " "),
            decoders.ByteFallback(),
            decoders.Fuse(),
            *([decoders.Strip(" ", 1, 0)] if settings.adds_prefix else []),
            *(decoders.Replace(code, plain) for plain, code in reversed(escapes)),
        ]
    )
    names = [piece.text for piece in pieces if piece.kind in ("unknown", "separator", "control")]
    tokenizer.add_special_tokens(
        [AddedToken(name, special=True, normalized=False) for name in names]
    )
    tokenizer.add_tokens([AddedToken(name, normalized=False) for name in settings.whole_pieces])
    return tokenizer.to_str(pretty=True) + "\n"


def _merges(pieces: Sequence[Piece]) -> list[tuple[str, str]]:
    """Every pair of pieces that joins into a third, the pair to be merged first in front.

    sentencepiece merges whatever neighbours spell its best piece; the pairs are not in the model.
    """
    ids = {piece.text: token for token, piece in enumerate(pieces) if piece.kind == "text"}
    ranked = [
        (-pieces[token].score, ids[text[:cut]], ids[text[cut:]])
        for text, token in ids.items()
        for cut in range(1, len(text))
        if text[:cut] in ids and text[cut:] in ids
    ]
    return [(pieces[left].text, pieces[right].text) for _, left, right in sorted(ranked)]
