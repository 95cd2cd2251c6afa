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

    kept: tuple[int, ...]  # begins with what begins prompts
    dropped: tuple[int, ...]
    text: str  # the prompt, decoded from its ids
    spellings: Spellings

    def allowed(self, sampled: Sequence[int]) -> list[int] | None:
        """Return the ids that may follow `sampled`; None if every id may.

        The first is the next dropped id. The others are the ids whose text begins with all of the
        remaining dropped text, so that the prompt is completed by its own tokens or by one that
        extends it.
        """
        if len(sampled) >= len(self.dropped) or tuple(sampled) != self.dropped[: len(sampled)]:
            return None
        rest = b"".join(self.spellings.of[token] for token in self.dropped[len(sampled) :])
        first = self.dropped[len(sampled)]
        return [first, *(token for token in self.spellings.beginning(rest) if token != first)]


class Spellings:
    """The UTF-8 of each id of a vocabulary, b"" for control tokens, in order of their bytes too."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self.of = tuple(tokenizer.spell(token) for token in range(tokenizer.vocab_size))
        self._ids = sorted(range(len(self.of)), key=self.of.__getitem__)
        self._ordered = [self.of[token] for token in self._ids]
        self.longest = max(map(len, self.of), default=0)

    def beginning(self, text: bytes) -> list[int]:
        """Return the ids whose text begins with `text`, in order."""
        place = start = bisect_left(self._ordered, text)
        while place < len(self._ordered) and self._ordered[place].startswith(text):
            place += 1
        return sorted(self._ids[start:place])

    def has_longer(self, text: bytes) -> bool:
        """Return whether the text of an id begins with `text` and goes on."""
        place = bisect_left(self._ordered, text + b"\x00")
        return place < len(self._ordered) and self._ordered[place].startswith(text)


def heal_prompt(tokenizer: Tokenizer, prompt: str, spellings: Spellings) -> HealedPrompt:
    """Encode `prompt` without the last tokens that together are the prefix of a longer token."""
    ids = tokenizer.encode(prompt)
    count = _dropped(ids, spellings, escape(prompt) if tokenizer.kind.escaped else prompt)
    end = len(ids) - count
    if end == 0 and ids and not tokenizer.adds_bos:
        end = 1  # a sequence has a first token
    kept = tokenizer.prompt_ids(ids[:end])
    return HealedPrompt(kept, tuple(ids[end:]), tokenizer.decode(ids), spellings)


def _dropped(ids: Sequence[int], spellings: Spellings, text: str) -> int:
    """Return how many of the last ids together spell a proper prefix of a token."""
    end = b" " + text.encode()  # some tokenizers put a space before each text
    count, suffix = 0, b""
    for number, token in enumerate(reversed(ids), start=1):
        spelled = spellings.of[token]
        suffix = spelled + suffix
        if not spelled or len(suffix) >= spellings.longest or not end.endswith(suffix):
            break
        if spellings.has_longer(suffix):
            count = number
    return count
