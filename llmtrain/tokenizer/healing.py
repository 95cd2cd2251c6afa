"""Token healing: drop the last tokens of a prompt and sample them again with its continuation.

In training text, the last token of a prompt such as "retur" is followed by "n" only rarely,
because "return" has a token of its own; the same holds for a space before a word. So the last
tokens are dropped, and the first sampled ids are restricted to those that begin with the dropped
text.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass

from llmtrain.tokenizer.escape import escape
from llmtrain.tokenizer.tokenizer import Tokenizer


@dataclass(frozen=True, slots=True)
class HealedPrompt:
    """The ids to continue from, and the dropped ids, which the first sampled ids must spell."""

    kept: tuple[int, ...]  # begins with the separator
    dropped: tuple[int, ...]
    spellings: tuple[bytes, ...]  # the UTF-8 of each id; b"" for control tokens
    text: str  # the prompt, decoded from its ids

    def allowed(self, sampled: Sequence[int]) -> list[int] | None:
        """Return the ids that may follow `sampled`; None if every id may.

        The first is the next dropped id. The others are the ids whose text begins with all of the
        remaining dropped text, so that the prompt is completed by its own tokens or by one that
        extends it.
        """
        if len(sampled) >= len(self.dropped) or tuple(sampled) != self.dropped[: len(sampled)]:
            return None
        rest = b"".join(self.spellings[token] for token in self.dropped[len(sampled) :])
        first = self.dropped[len(sampled)]
        longer = (token for token, text in enumerate(self.spellings) if text.startswith(rest))
        return [first, *(token for token in longer if token != first)]


def heal_prompt(tokenizer: Tokenizer, prompt: str) -> HealedPrompt:
    """Encode `prompt` without the last tokens that together are the prefix of a longer token."""
    ids = tokenizer.encode(prompt)
    spellings = tuple(tokenizer.spell(token) for token in range(tokenizer.vocab_size))
    count = _dropped(ids, spellings, escape(prompt) if tokenizer.kind.escaped else prompt)
    end = len(ids) - count
    kept = (tokenizer.separator_id, *ids[:end])
    return HealedPrompt(kept, tuple(ids[end:]), spellings, tokenizer.decode(ids))


def _dropped(ids: Sequence[int], spellings: Sequence[bytes], text: str) -> int:
    """Return how many of the last ids together spell a proper prefix of a token."""
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
