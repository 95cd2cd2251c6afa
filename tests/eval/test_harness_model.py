"""The harness' questions, answered as the model would: checked one token at a time."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from types import SimpleNamespace
from typing import Any, ClassVar

import pytest
import torch

pytest.importorskip("lm_eval")

from llmtrain.eval.harness_model import HarnessModel
from llmtrain.model.decoder import Decoder
from llmtrain.profile.schema import ModelSection
from llmtrain.profile.shape import shape_of
from llmtrain.tokenizer import Tokenizer
from tests.data.fixed import TOKENIZER

CONTEXT = 16


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer.load(TOKENIZER)


@pytest.fixture(scope="module")
def model(tokenizer: Tokenizer) -> Decoder:
    section = ModelSection(
        vocab_size=tokenizer.vocab_size,
        hidden_size=16,
        intermediate_size=32,
        num_layers=1,
        num_heads=2,
        context=CONTEXT,
    )
    torch.manual_seed(0)
    model = Decoder(shape_of(section)).double()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(std=0.3)
    return model.eval()


@pytest.fixture(scope="module")
def harness(model: Decoder, tokenizer: Tokenizer) -> HarnessModel:
    return HarnessModel(model, tokenizer, "fp32", nullcontext, lambda: None)


def requests(*arguments: tuple[Any, ...]) -> list[Any]:
    return [SimpleNamespace(args=each) for each in arguments]


def one_by_one(model: Decoder, ids: Sequence[int], scored: int) -> tuple[float, bool]:
    total, greedy = 0.0, True
    with torch.no_grad():
        for at in range(len(ids) - scored, len(ids)):
            given = torch.tensor([ids[:at]])
            scores = model.logits(given)[0, -1].log_softmax(-1)
            total += scores[ids[at]].item()
            greedy = greedy and int(scores.argmax()) == ids[at]
    return total, greedy


def test_continuations_of_any_length_are_scored(
    harness: HarnessModel, model: Decoder, tokenizer: Tokenizer
) -> None:
    pairs = [("def ", "f(x)"), ("a", " = b"), ("return ", "x + 1"), ("", "import")]
    found = harness.loglikelihood(requests(*pairs), disable_tqdm=True)
    for (context, continuation), (score, greedy) in zip(pairs, found, strict=True):
        whole = tokenizer.encode(context + continuation)
        given = tokenizer.encode(context.rstrip())
        ids = [*([] if context else [tokenizer.separator_id]), *whole]
        expected = one_by_one(model, ids, len(ids) - max(1, len(given)))
        assert score == pytest.approx(expected[0], rel=1e-5)
        assert greedy == expected[1]


def test_a_choice_that_shares_a_token_with_its_context_is_not_free(
    model: Decoder, tokenizer: Tokenizer
) -> None:
    class Merging:
        """One token for "()", which is not the beginning of that of "(" and another."""

        separator_id, vocab_size = 0, tokenizer.vocab_size
        ids: ClassVar = {"(": [5], "()": [6], "(]": [5, 7]}

        def encode(self, text: str) -> list[int]:
            return [3, *self.ids[text[1:]]]

    merging: Any = Merging()
    found = HarnessModel(model, merging, "fp32", nullcontext, lambda: None).loglikelihood(
        requests(("f(", ")"), ("f(", "]")), disable_tqdm=True
    )
    one, two = (one_by_one(model, [3, *ids], len(ids))[0] for ids in ([6], [5, 7]))
    given = one_by_one(model, [3, 5], 1)[0]
    assert [score for score, _ in found] == pytest.approx([one - given, two - given], rel=1e-5)


def test_a_context_that_is_too_long_loses_its_beginning(
    harness: HarnessModel, model: Decoder, tokenizer: Tokenizer
) -> None:
    context, continuation = "word " * 50 + "x", " = 1"
    ((score, _),) = harness.loglikelihood(requests((context, continuation)), disable_tqdm=True)
    whole = tokenizer.encode(context + continuation)
    scored = len(whole) - len(tokenizer.encode(context))
    assert score == pytest.approx(one_by_one(model, whole[-CONTEXT - 1 :], scored)[0], rel=1e-5)


def test_a_whole_text_is_predicted_token_by_token(
    harness: HarnessModel, model: Decoder, tokenizer: Tokenizer
) -> None:
    text = "def f(x):\n    return x\n" * 3
    ids = [tokenizer.separator_id, *tokenizer.encode(text)]
    assert len(ids) > 2 * CONTEXT
    (found,) = harness.loglikelihood_rolling(requests((text,)), disable_tqdm=True)
    expected = 0.0
    for start in range(0, len(ids) - 1, CONTEXT):  # windows that do not overlap
        window = ids[start : start + CONTEXT + 1]
        if len(window) == CONTEXT + 1 or start == 0:
            expected += one_by_one(model, window, len(window) - 1)[0]
        else:  # the last one gets a whole context
            expected += one_by_one(model, ids[-CONTEXT - 1 :], len(window) - 1)[0]
    assert found == pytest.approx(expected, rel=1e-5)


def test_text_is_generated_up_to_its_end(harness: HarnessModel) -> None:
    (whole,) = harness.generate_until(requests(("def ", {"max_gen_toks": 20})))
    assert whole
    end = whole[len(whole) // 2]
    (cut,) = harness.generate_until(requests(("def ", {"until": [end], "max_gen_toks": 20})))
    assert cut == whole.split(end)[0]


def test_order_of_requests_does_not_matter(harness: HarnessModel) -> None:
    pairs = [("ab " * n, "cd") for n in (1, 9, 3, 5)]
    forward = harness.loglikelihood(requests(*pairs), disable_tqdm=True)
    backward = harness.loglikelihood(requests(*reversed(pairs)), disable_tqdm=True)
    assert [s for s, _ in forward] == pytest.approx([s for s, _ in reversed(backward)], rel=1e-6)
