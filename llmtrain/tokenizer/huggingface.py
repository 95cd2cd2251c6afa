"""The same vocabulary in the form that Hugging Face reads, with the same ids for every text."""

from __future__ import annotations

import json
from collections.abc import Sequence

import tokenizers
from tokenizers import AddedToken, decoders, models, normalizers

from llmtrain.tokenizer.escape import REPLACEMENTS, SPACE_MARK
from llmtrain.tokenizer.piece import SEPARATOR, UNKNOWN, Piece


def tokenizer_json(pieces: Sequence[Piece]) -> str:
    """Contents of tokenizer.json, the same for the same pieces."""
    model = models.BPE(
        {piece.text: token for token, piece in enumerate(pieces)},
        _merges(pieces),
        unk_token=UNKNOWN,
        fuse_unk=True,
        byte_fallback=True,
    )
    tokenizer = tokenizers.Tokenizer(model)
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
    tokenizer.add_special_tokens(
        [AddedToken(name, special=True, normalized=False) for name in (UNKNOWN, SEPARATOR)]
    )
    return tokenizer.to_str(pretty=True) + "\n"


def tokenizer_config(model_max_length: int | None) -> str:
    """Contents of tokenizer_config.json; no limit is named where there is none."""
    config: dict[str, object] = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": SEPARATOR,
        "eos_token": SEPARATOR,
        "unk_token": UNKNOWN,
        "clean_up_tokenization_spaces": False,
        "split_special_tokens": True,  # the name of a token in a text is text
        "model_input_names": ["input_ids", "attention_mask"],
    }
    if model_max_length is not None:
        config["model_max_length"] = model_max_length
    return json.dumps(config, indent=2) + "\n"


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
