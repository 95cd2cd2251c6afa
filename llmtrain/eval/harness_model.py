"""A model as lm-evaluation-harness asks it: log-likelihoods of continuations, and greedy text.

Texts are split into tokens as the harness' own `hf` model does, so that both score alike.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from functools import cached_property
from itertools import takewhile
from typing import Any

import torch
from lm_eval.api.instance import Instance
from lm_eval.api.model import TemplateLM
from lm_eval.utils import get_rolling_token_windows, make_disjoint_window
from torch.nn import functional as F

from llmtrain.choice import Precision
from llmtrain.generate.generator import TextGenerator
from llmtrain.generate.sampling import Sampling
from llmtrain.generate.text import TextRequest
from llmtrain.model.decoder import Decoder
from llmtrain.ops.eager import eagerly
from llmtrain.tokenizer import Tokenizer

_BATCH_TOKENS = 8192
_GENERATED_TOKENS = 256  # if a task does not say
Ids = list[int]


class HarnessModel(TemplateLM):  # type: ignore[misc]  # the harness is not typed
    """Answers the harness' requests. `check_stop` may raise between batches."""

    def __init__(
        self,
        model: Decoder,
        tokenizer: Tokenizer,
        precision: Precision,
        autocast: Callable[[], AbstractContextManager[object]],
        check_stop: Callable[[], None],
    ) -> None:
        super().__init__()
        self._model, self._tokens, self._precision = model, tokenizer, precision
        self._autocast, self._check_stop = autocast, check_stop

    @property
    def eot_token_id(self) -> int:
        """The separator, which also stands before a continuation without a context."""
        return self._tokens.separator_id

    def tok_encode(
        self, string: str, add_special_tokens: bool | None = None, **_: Any
    ) -> list[int]:
        """Return the ids of a text, without separators."""
        return self._tokens.encode(string)

    def loglikelihood_rolling(
        self, requests: Sequence[Instance], disable_tqdm: bool = False
    ) -> list[float]:
        """Return the log-likelihood of whole texts, each token predicted once."""
        found = []
        for request in requests:
            windows = get_rolling_token_windows(
                token_list=self.tok_encode(request.args[0]),
                prefix_token=self.prefix_token_id,
                max_seq_len=self._model.shape.context,
                context_len=1,
            )
            pairs = [make_disjoint_window(window) for window in windows]
            found.append(sum(score for score, _ in self._scores(pairs)))
        return found

    def generate_until(self, requests: Sequence[Instance], disable_tqdm: bool = False) -> list[str]:
        """Return the likeliest continuation of each context, up to a text that ends it."""
        return [self._continued(*request.args) for request in requests]

    def _loglikelihood_tokens(
        self, requests: Sequence[tuple[Any, Ids, Ids]], **_: Any
    ) -> list[tuple[float, bool]]:
        scores = self._scores([(context, continuation) for _, context, continuation in requests])
        for number, ((context, text), ids, continuation) in enumerate(requests):
            if not continuation:
                scores[number] = self._merged_score(context + text, ids)
        return scores

    def _merged_score(self, text: str, context: Ids) -> tuple[float, bool]:
        """Score a continuation that shares a token with the end of its context.

        Its likelihood is that of the whole text over that of the context, which other choices of
        the same question are scored by too: from where the tokens of both begin to differ.
        """
        whole = self.tok_encode(text)
        pairs = zip(whole, context, strict=False)
        same = len(list(takewhile(lambda pair: pair[0] == pair[1], pairs)))
        before = whole[:same] or [self.prefix_token_id]
        (both, is_likeliest), (alone, _) = self._scores(
            [(before, whole[same:]), (before, context[same:])]
        )
        return both - alone, is_likeliest

    def _scores(self, pairs: Sequence[tuple[Ids, Ids]]) -> list[tuple[float, bool]]:
        """Return each continuation's log-likelihood, and whether it is the likeliest one.

        What is longer than the model's context loses its beginning.
        """
        longest = self._model.shape.context + 1
        rows = [((a + b)[-longest:], min(len(b), longest - 1)) for a, b in pairs]
        order = sorted(range(len(rows)), key=lambda row: -len(rows[row][0]))
        scores: dict[int, tuple[float, bool]] = {}
        start = 0
        while start < len(order):
            size = max(1, _BATCH_TOKENS // len(rows[order[start]][0]))
            batch = order[start : start + size]
            self._check_stop()
            scores.update(zip(batch, self._batch_scores([rows[n] for n in batch]), strict=True))
            start += size
        return [scores[row] for row in range(len(rows))]

    @torch.no_grad()
    def _batch_scores(self, rows: Sequence[tuple[Ids, int]]) -> list[tuple[float, bool]]:
        """Score the last tokens of each row; shorter rows are filled up behind their end."""
        model, device = self._model, self._model.head_weight.device
        length = len(rows[0][0]) - 1
        inputs = torch.zeros(len(rows), length, dtype=torch.long)
        for row, (ids, _) in enumerate(rows):
            inputs[row, : len(ids) - 1] = torch.tensor(ids[:-1])
        found = []
        with eagerly(), self._autocast():
            hidden_btc = model.model(inputs.to(device))
            for row, (ids, scored) in enumerate(rows):
                targets = torch.tensor(ids[len(ids) - scored :], device=device)
                hidden_tc = hidden_btc[row, len(ids) - 1 - scored : len(ids) - 1]
                logits = F.linear(hidden_tc, model.head_weight)[:, : self._tokens.vocab_size]
                log_probabilities = logits.float().log_softmax(-1)
                total = log_probabilities.gather(1, targets[:, None]).sum().item()
                found.append((total, bool((logits.argmax(-1) == targets).all())))
        return found

    def _continued(self, context: str, options: dict[str, Any]) -> str:
        until = options.get("until") or []
        ends = [until] if isinstance(until, str) else list(until)
        limit = int(options.get("max_gen_toks", _GENERATED_TOKENS))
        request = TextRequest(
            prompt=tuple(self.tok_encode(context) or [self.prefix_token_id]),
            sampling=Sampling(temperature=0.0),
            max_tokens=limit,
            stop=tuple(end for end in ends if end),
        )
        text = ""
        for piece in self._generator.generate(request):
            self._check_stop()
            text += piece.text
        return text

    @cached_property
    def _generator(self) -> TextGenerator:
        return TextGenerator(self._model, self._tokens, self._precision)
