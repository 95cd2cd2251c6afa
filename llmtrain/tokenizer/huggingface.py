"""Export of a vocabulary as tokenizer.json and tokenizer_config.json, with unchanged ids."""

from __future__ import annotations

import json
from collections.abc import Sequence

import tokenizers
from tokenizers import AddedToken, Regex, decoders, models, normalizers, pre_tokenizers

from llmtrain.tokenizer.escape import REPLACEMENTS, SPACE_MARK
from llmtrain.tokenizer.piece import Piece, merges_of
from llmtrain.tokenizer.structure import Settings

# A word with the spaces before it; no piece crosses into the next word.
_WORD = f"{SPACE_MARK}+[^{SPACE_MARK}]*|[^{SPACE_MARK}]+"
_EXTRA_SPACES = ((Regex(r"\A +| +\z"), ""), (Regex(" {2,}"), " "))
_PADDINGS = ("<pad>", "<|pad|>", "[PAD]", "<|finetune_right_pad_id|>")
_NO_TEXT_SCORE = -1e4  # so low that a token name in a text is always split into other pieces


# Of llmtrain's own tokenizers, whose text is escaped and otherwise unchanged.
_OWN = Settings(adds_dummy_prefix=False, removes_extra_spaces=False)


def bpe_json(pieces: Sequence[Piece], settings: Settings = _OWN, *, escaped: bool = True) -> str:
    """Return the tokenizer.json of a BPE vocabulary whose merges are ordered by score."""
    model = models.BPE(
        {piece.text: token for token, piece in enumerate(pieces)},
        _merges(pieces),
        unk_token=next((piece.text for piece in pieces if piece.kind == "unknown"), None),
        fuse_unk=True,
        byte_fallback=True,
    )
    return _around(tokenizers.Tokenizer(model), pieces, settings, escaped=escaped)


def unigram_json(
    pieces: Sequence[Piece], settings: Settings = _OWN, *, escaped: bool = True
) -> str:
    """Return the tokenizer.json of a unigram vocabulary, segmented word by word.

    Each character in the name of a byte or special token must be a piece itself.
    """
    scores = [
        (piece.text, piece.score if piece.kind == "text" else _NO_TEXT_SCORE) for piece in pieces
    ]
    unknown = next(token for token, piece in enumerate(pieces) if piece.kind == "unknown")
    tokenizer = tokenizers.Tokenizer(models.Unigram(scores, unk_id=unknown, byte_fallback=True))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(_WORD), "isolated")
    return _around(tokenizer, pieces, settings, escaped=escaped)


def tokenizer_config(
    pieces: Sequence[Piece], model_max_length: int | None, *, adds_prefix: bool | None
) -> str:
    """Return the contents of tokenizer_config.json.

    `model_max_length` is in tokens; `adds_prefix` is whether a space is put before each text; each
    is left out if None. The padding token is one that text never encodes to, and the separator
    only if there is no other, because fine-tuning ignores the loss at padding tokens.
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
        "split_special_tokens": True,  # a special token's name in a text is encoded as text
        "model_input_names": ["input_ids", "attention_mask"],
    }
    if adds_prefix is not None:
        config["add_prefix_space"] = adds_prefix  # for llama.cpp's converter
    if model_max_length is not None:
        config["model_max_length"] = model_max_length
    return json.dumps(config, indent=2) + "\n"


def _around(
    tokenizer: tokenizers.Tokenizer, pieces: Sequence[Piece], settings: Settings, *, escaped: bool
) -> str:
    """Return the tokenizer.json of `tokenizer` with normalizer, decoder and special tokens added.

    The output is deterministic.
    """
    escapes = REPLACEMENTS if escaped else ()
    trims = _EXTRA_SPACES if settings.removes_extra_spaces else ()
    replacements = (*escapes, *trims, (" ", SPACE_MARK))
    prefix = [normalizers.Prepend(SPACE_MARK)] if settings.adds_dummy_prefix else []
    tokenizer.normalizer = normalizers.Sequence(
        [*(normalizers.Replace(old, new) for old, new in replacements), *prefix]
    )
    # An escape code may span several tokens, so only the fused text can be unescaped.
    tokenizer.decoder = decoders.Sequence(
        [
            decoders.Replace(SPACE_MARK, " "),
            decoders.ByteFallback(),
            decoders.Fuse(),
            *([decoders.Strip(" ", 1, 0)] if settings.adds_dummy_prefix else []),
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
    """Return the merges of a sentencepiece model, which stores none.

    It merges any neighbours that spell the piece with the highest score.
    """
    texts = {piece.text: token for token, piece in enumerate(pieces) if piece.kind == "text"}
    return merges_of({text: -pieces[token].score for text, token in texts.items()}, texts)
