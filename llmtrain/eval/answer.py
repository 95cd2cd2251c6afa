"""Answer within a conversation: from the ids of its prompt to the text of the answer."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence

from llmtrain.model.decoder import Decoder
from llmtrain.model.generate import Sampling, generate_tokens
from llmtrain.tokenizer import Tokenizer


def answer_prompt(
    model: Decoder,
    tokenizer: Tokenizer,
    prompt: Sequence[int],
    stop_ids: Collection[int],
    sampling: Sampling,
    limit: int,
) -> Iterator[str]:
    """Yield the text that each sampled token adds to the answer, up to one of `stop_ids`.

    `prompt` is of `ChatTemplate.encode` with the generation prompt. The text is in whole
    characters; a token inside a character adds none. At most `limit` tokens are sampled.
    """
    ids, shown = list[int](), ""
    for token in generate_tokens(model, prompt, sampling, tokenizer.vocab_size, limit):
        if token in stop_ids:
            break
        ids.append(token)
        text = tokenizer.decode(ids)
        is_whole = not text.endswith("\ufffd")
        yield text[len(shown) :] if is_whole else ""
        shown = text if is_whole else shown
    yield tokenizer.decode(ids)[len(shown) :]
