"""The same vocabulary in the form that Hugging Face reads, with the same ids for every text."""

from __future__ import annotations

import json
from collections.abc import Sequence

import tokenizers
from tokenizers import AddedToken, Regex, decoders, models, normalizers, pre_tokenizers

from llmtrain.tokenizer.escape import REPLACEMENTS, SPACE_MARK
from llmtrain.tokenizer.piece import SEPARATOR, UNKNOWN, Piece

# A word with the spaces before it: no piece goes on into the next.
_WORD = f"{SPACE_MARK}+[^{SPACE_MARK}]*|[^{SPACE_MARK}]+"
_NO_TEXT_SCORE = -1e4  # so low that a name in a text is spelt in any other way


def bpe_json(pieces: Sequence[Piece]) -> str:
    """tokenizer.json of pieces that are merged in the order of their scores."""
    model = models.BPE(
        {piece.text: token for token, piece in enumerate(pieces)},
        _merges(pieces),
        unk_token=UNKNOWN,
        fuse_unk=True,
        byte_fallback=True,
    )
    return _around(tokenizers.Tokenizer(model), pieces)


def unigram_json(pieces: Sequence[Piece]) -> str:
    """tokenizer.json of pieces of which the likeliest are chosen, word by word.

    The pieces have to have one for each character that the name of another piece is spelt in.
    """
    scores = [
        (piece.text, piece.score if piece.kind == "text" else _NO_TEXT_SCORE) for piece in pieces
    ]
    unknown = next(token for token, piece in enumerate(pieces) if piece.kind == "unknown")
    tokenizer = tokenizers.Tokenizer(models.Unigram(scores, unk_id=unknown, byte_fallback=True))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(_WORD), "isolated")
    return _around(tokenizer, pieces)


def tokenizer_config(
    model_max_length: int | None, separator: str = SEPARATOR, unknown: str | None = UNKNOWN
) -> str:
    """Contents of tokenizer_config.json; no limit is named where there is none."""
    config: dict[str, object] = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": separator,
        "eos_token": separator,
        **({} if unknown is None else {"unk_token": unknown}),
        "clean_up_tokenization_spaces": False,
        "split_special_tokens": True,  # the name of a token in a text is text
        "model_input_names": ["input_ids", "attention_mask"],
    }
    if model_max_length is not None:
        config["model_max_length"] = model_max_length
    return json.dumps(config, indent=2) + "\n"


def _around(tokenizer: tokenizers.Tokenizer, pieces: Sequence[Piece]) -> str:
    """tokenizer.json, the same for the same pieces: escapes, and names that no text becomes."""
    tokenizer.normalizer = normalizers.Sequence(
        [normalizers.Replace(plain, code) for plain, code in (*REPLACEMENTS, (" ", SPACE_MARK))]
    )
    # A code may be spread over several tokens: only the fused text can be unescaped.
    tokenizer.decoder = decoders.Sequence(
        [
            decoders.Replace(SPACE_MARK, " "),
            decoders.ByteFallback(),
            decoders.Fuse(),
            *(decoders.Replace(code, plain) for plain, code in reversed(REPLACEMENTS)),
        ]
    )
    names = [piece.text for piece in pieces if piece.kind in ("unknown", "separator", "control")]
    tokenizer.add_special_tokens(
        [AddedToken(name, special=True, normalized=False) for name in names]
    )
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
