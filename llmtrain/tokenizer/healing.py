"""Prompts that end inside a token: back off to a boundary, and sample what was dropped again.

A prompt that ends in "retur" or in a space has a last token that training shows only where the
text does not continue with "n" or with a word. Its last tokens are dropped and sampled again, from
those that begin with the dropped text.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass

from llmtrain.tokenizer.escape import escape
from llmtrain.tokenizer.tokenizer import Tokenizer


@dataclass(frozen=True, slots=True)
class HealedPrompt:
    """The ids to continue, and the dropped ones, which the first sampled ids have to spell."""

    kept: tuple[int, ...]  # begins with the separator
    dropped: tuple[int, ...]
    spellings: tuple[bytes, ...]  # in UTF-8, of each id; b"" for control tokens
    text: str  # the prompt, as the tokenizer decodes it

    def allowed(self, sampled: Sequence[int]) -> list[int] | None:
        """Return the ids that may follow `sampled`; None where every id may.

        They are the ones that begin with all of the rest of the dropped text, and the dropped id
        itself, so that the prompt is spelled either as it was or by a token that goes beyond it.
        """
        if len(sampled) >= len(self.dropped) or tuple(sampled) != self.dropped[: len(sampled)]:
            return None
        rest = b"".join(self.spellings[token] for token in self.dropped[len(sampled) :])
        longer = (token for token, text in enumerate(self.spellings) if text.startswith(rest))
        return sorted({*longer, self.dropped[len(sampled)]})


def heal_prompt(tokenizer: Tokenizer, prompt: str) -> HealedPrompt:
    """Drop the tokens at the end of `prompt` whose text is the beginning of a longer token."""
    ids = tokenizer.encode(prompt)
    spellings = tuple(tokenizer.spell(token) for token in range(tokenizer.vocab_size))
    count = _dropped(ids, spellings, escape(prompt) if tokenizer.kind.escaped else prompt)
    end = len(ids) - count
    kept = (tokenizer.separator_id, *ids[:end])
    return HealedPrompt(kept, tuple(ids[end:]), spellings, tokenizer.decode(ids))


def _dropped(ids: Sequence[int], spellings: Sequence[bytes], text: str) -> int:
    """Return how many of the last ids together are the beginning of a longer token."""
    ordered = sorted(spellings)
    longest = max(map(len, ordered), default=0)
    end = b" " + text.encode()  # some tokenizers put a space before each text
    count, suffix = 0, b""
    for number, token in enumerate(reversed(ids), start=1):
        suffix = spellings[token] + suffix
        if not spellings[token] or len(suffix) >= longest or not end.endswith(suffix):
            break
        if _has_longer(suffix, ordered):
            count = number
    return count


def _has_longer(text: bytes, ordered: Sequence[bytes]) -> bool:
    place = bisect_left(ordered, text + b"\x00")
    return place < len(ordered) and ordered[place].startswith(text)
