"""Continue a prompt with a model: token ids to text, with the prompt kept exactly."""

from __future__ import annotations

from collections.abc import Iterator

from llmtrain.model.decoder import Decoder
from llmtrain.model.generate import Sampling, generate_tokens
from llmtrain.tokenizer import Tokenizer
from llmtrain.tokenizer.healing import heal_prompt


def continue_prompt(
    model: Decoder, tokenizer: Tokenizer, prompt: str, sampling: Sampling, limit: int
) -> Iterator[str]:
    """Yield the text that each sampled token adds to `prompt`, up to a separator.

    It is in whole characters, and empty for a token inside a character or inside the end of the
    prompt, which is sampled again. At most `limit` tokens go beyond the prompt.
    """
    healed = heal_prompt(tokenizer, prompt)
    ids, shown, beyond = list(healed.kept), healed.text, 0
    sampled = generate_tokens(
        model,
        healed.kept,
        sampling,
        tokenizer.vocab_size,
        limit + len(healed.dropped),
        allowed=healed.allowed,
    )
    for token in sampled:
        if token == tokenizer.separator_id:
            break
        ids.append(token)
        beyond += tuple(ids[len(healed.kept) :]) != healed.dropped[: len(ids) - len(healed.kept)]
        text = tokenizer.decode(ids)
        is_whole = len(text) > len(shown) and not text.endswith("\ufffd")
        yield text[len(shown) :] if is_whole else ""
        shown = text if is_whole else shown
        if beyond >= limit:
            break
    yield tokenizer.decode(ids)[len(shown) :]
