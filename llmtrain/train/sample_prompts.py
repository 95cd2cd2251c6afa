"""The prompts of the samples during training."""

from __future__ import annotations

from llmtrain.data.shards.token_stream import TokenStream
from llmtrain.profile.schema import DataSection, Profile
from llmtrain.tokenizer import Tokenizer

_CODE_PROMPTS = ("def", "import")
_READ_TOKENS = 256
_LONGEST_CHARACTERS = 40


def sample_prompts(
    profile: Profile, tokenizer: Tokenizer, validation: TokenStream
) -> tuple[str, ...]:
    """Return the profile's prompts, or ones that suit the text where they are `auto`."""
    if profile.eval.prompts != "auto":
        return profile.eval.prompts
    if profile.data.sources == DataSection().sources:
        return _CODE_PROMPTS
    tokens = validation.read(0, min(_READ_TOKENS, validation.num_tokens))
    return (first_words(tokenizer.decode(tokens.tolist())),)


def first_words(text: str) -> str:
    """Return the beginning of the first line of `text`, cut at a space, or a long word."""
    line = next((line.strip() for line in text.splitlines() if line.strip()), "")
    if len(line) <= _LONGEST_CHARACTERS:
        return line.removesuffix("\ufffd")
    beginning = line[: _LONGEST_CHARACTERS + 1]
    words = beginning.rpartition(" ")[0].rstrip()
    return words or beginning[:_LONGEST_CHARACTERS].rstrip("\ufffd")
