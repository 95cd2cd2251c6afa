"""Model directories of others with tiny tokenizers that begin and end texts as theirs do."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tokenizers
from tokenizers import decoders, models, normalizers, pre_tokenizers, processors

from tests.pretrained import save_pretrained

_FEWEST_PIECES = 304
_LETTERS = sorted(pre_tokenizers.ByteLevel.alphabet())
_LLAMA_TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}<|start_header_id|>{{ message.role }}"
    "<|end_header_id|>\n\n{{ message.content }}<|eot_id|>{% endfor %}{% if add_generation_prompt %}"
    "<|start_header_id|>assistant<|end_header_id|>\n\n{% endif %}"
)
_QWEN_TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message.role }}\n{{ message.content }}<|im_end|>\n"
    "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


@dataclass(frozen=True)
class Style:
    """A tokenizer's file and what its directory says of texts."""

    form: str  # of the model
    library: tokenizers.Tokenizer
    config: dict[str, Any]
    stops: list[int]  # of generation_config.json
    bos: str | None
    eos: str
    adds_bos: bool
    more_stops: tuple[str, ...] = ()

    def save(self, directory: Path) -> Path:
        """Write a model of the form, with this tokenizer."""
        missing = _FEWEST_PIECES - self.library.get_vocab_size()
        _add(self.library, *(f"<|reserved_special_token_{n}|>" for n in range(missing)))
        save_pretrained(directory, self.form, vocab_size=self.library.get_vocab_size())
        for name in ("tokenizer.model", "tokenizer_kind.json"):
            (directory / name).unlink(missing_ok=True)
        self.library.save(str(directory / "tokenizer.json"))
        generation = {"eos_token_id": self.stops if len(self.stops) > 1 else self.stops[0]}
        (directory / "generation_config.json").write_text(json.dumps(generation))
        (directory / "tokenizer_config.json").write_text(json.dumps(self.config))
        return directory


def llama_3() -> Style:
    """The template of tokenizer.json adds bos; an answer ends with a token of its own."""
    library = _byte_level()
    _add(library, "<|begin_of_text|>", "<|end_of_text|>", "<|start_header_id|>")
    _add(library, "<|end_header_id|>", "<|eot_id|>")
    library.post_processor = processors.Sequence(
        [processors.ByteLevel(trim_offsets=False), _template(library, "<|begin_of_text|>")]
    )
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": "<|begin_of_text|>",
        "eos_token": "<|end_of_text|>",
        "chat_template": _LLAMA_TEMPLATE,
    }
    stops = [library.token_to_id(name) for name in ("<|end_of_text|>", "<|eot_id|>")]
    ends = ("<|begin_of_text|>", "<|end_of_text|>")
    return Style("llama", library, config, stops, *ends, True, ("<|eot_id|>",))


def qwen_3() -> Style:
    """No bos at all; texts end as answers do."""
    library = _byte_level()
    _add(library, "<|endoftext|>", "<|im_start|>", "<|im_end|>")
    library.post_processor = processors.ByteLevel(trim_offsets=False)
    config = {
        "tokenizer_class": "Qwen2Tokenizer",
        "add_bos_token": False,
        "bos_token": None,
        "eos_token": "<|im_end|>",
        "pad_token": "<|endoftext|>",
        "chat_template": _QWEN_TEMPLATE,
    }
    stops = [library.token_to_id(name) for name in ("<|im_end|>", "<|endoftext|>")]
    return Style("qwen3", library, config, stops, None, "<|im_end|>", False, ("<|endoftext|>",))


def mistral() -> Style:
    """A sentencepiece model as tokenizer.json; its config says that bos is added."""
    pieces = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), "▁"]
    pieces += [*"abcdefghijklmnopqrstuvwxyz", "▁a", "th"]
    vocabulary = {piece: token for token, piece in enumerate(pieces)}
    library = tokenizers.Tokenizer(
        models.BPE(vocabulary, [("▁", "a"), ("t", "h")], unk_token="<unk>", byte_fallback=True)
    )
    library.normalizer = normalizers.Sequence(
        [normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]
    )
    fuse = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    library.decoder = decoders.Sequence([*fuse, decoders.Strip(" ", 1, 0)])
    _add(library, "<unk>", "<s>", "</s>")
    library.post_processor = _template(library, "<s>")
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "add_bos_token": True,
        "add_eos_token": False,
        "bos_token": {"__type": "AddedToken", "content": "<s>"},
        "eos_token": {"__type": "AddedToken", "content": "</s>"},
        "unk_token": "<unk>",
    }
    return Style("mistral", library, config, [2], "<s>", "</s>", True)


STYLES = {"llama_3": llama_3, "qwen_3": qwen_3, "mistral": mistral}


def _byte_level() -> tokenizers.Tokenizer:
    vocabulary = {letter: token for token, letter in enumerate([*_LETTERS, "th"])}
    library = tokenizers.Tokenizer(models.BPE(vocabulary, [("t", "h")]))
    library.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    library.decoder = decoders.ByteLevel()
    return library


def _add(library: tokenizers.Tokenizer, *names: str) -> None:
    library.add_special_tokens([tokenizers.AddedToken(name, normalized=False) for name in names])


def _template(library: tokenizers.Tokenizer, bos: str) -> Any:
    special = [(bos, library.token_to_id(bos))]
    return processors.TemplateProcessing(
        single=f"{bos} $A", pair=f"{bos} $A {bos}:1 $B:1", special_tokens=special
    )
