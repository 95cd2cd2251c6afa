"""The loss of conversations: that of each alone, of answers only, on whatever window they are."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from llmtrain.data.batches.conversations import END, ConversationReader, pack_conversations
from llmtrain.data.chat.marks import Marks
from llmtrain.data.chat.rows import conversation_text
from llmtrain.engine.evaluate_chat import MemoryTokens
from llmtrain.model.decoder import Decoder
from llmtrain.prepare.chat import ChatEncoder, encoder_of
from llmtrain.profile.schema import DataSection, ModelSection
from llmtrain.profile.shape import shape_of
from llmtrain.tokenizer import Tokenizer
from llmtrain.tokenizer.chat_template import ChatTemplate, with_chat_template
from llmtrain.train.validation import answers_size
from tests.data.fixed import TOKENIZER

CONTEXT = 128
ROWS = [
    {"prompt": "a b", "completion": "the answer"},
    {"prompt": "what?", "completion": "nothing"},
    {"prompt": "and", "completion": ""},
]


@pytest.fixture(scope="module")
def encoder() -> ChatEncoder:
    return ChatEncoder(with_chat_template(Tokenizer.load(TOKENIZER)))


@pytest.fixture(scope="module")
def model(encoder: ChatEncoder) -> Decoder:
    section = ModelSection(
        vocab_size=encoder.template.tokenizer.vocab_size,
        hidden_size=32,
        intermediate_size=64,
        num_layers=2,
        num_heads=2,
        context=CONTEXT,
    )
    made = Decoder(shape_of(section))
    generator = torch.Generator().manual_seed(0)
    for parameter in made.parameters():
        parameter.data.normal_(0, 0.2, generator=generator)
    made.has_padding, made.separator_id = True, END
    return made


def stream(encoder: ChatEncoder, rows: list[dict[str, str]]) -> MemoryTokens:
    values = [encoder.separator_id]
    for row in rows:
        values += [*encoder.encode_text(conversation_text(row, "")), encoder.separator_id]
    return MemoryTokens(np.array(values))


def loss(model: Decoder, encoder: ChatEncoder, rows: list[dict[str, str]]) -> float:
    tokens = stream(encoder, rows)
    packed = pack_conversations(tokens, encoder.marks, CONTEXT)
    reader = ConversationReader(tokens, packed, encoder.marks, CONTEXT, seed=0)
    assert reader.num_windows == 1
    inputs, targets = map(torch.from_numpy, reader.read(0, 1))
    with torch.no_grad():
        return float(model(inputs, targets))


def by_hand(model: Decoder, encoder: ChatEncoder, row: dict[str, str]) -> float:
    """The loss of the assistant's tokens of one conversation, from its logits."""
    example = encoder.template.encode_example(
        [
            {"role": "user", "content": row["prompt"]},
            {"role": "assistant", "content": row["completion"]},
        ]
    )
    ids = torch.tensor([example.ids])
    with torch.no_grad():
        likely = model.logits(ids)[0].log_softmax(-1)
    spoken = [at for at, mine in enumerate(example.is_assistant) if mine]
    return -sum(float(likely[at - 1, example.ids[at]]) for at in spoken)


def test_the_loss_is_that_of_each_conversation_alone(model: Decoder, encoder: ChatEncoder) -> None:
    expected = sum(by_hand(model, encoder, row) for row in ROWS)
    assert loss(model, encoder, ROWS) == pytest.approx(expected, rel=1e-5)
    assert loss(model, encoder, ROWS[::-1]) == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("fault", ["no document mask", "no padding", "all tokens"])
def test_a_planted_fault_of_the_mask_shows(
    model: Decoder, encoder: ChatEncoder, fault: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = sum(by_hand(model, encoder, row) for row in ROWS)
    if fault == "no document mask":
        monkeypatch.setattr(model, "separator_id", None)
    elif fault == "no padding":
        monkeypatch.setattr(model, "has_padding", False)
    else:
        monkeypatch.setattr(Marks, "is_assistant", lambda self, values: values < self.separator)
    try:
        found = loss(model, encoder, ROWS)
    except (IndexError, RuntimeError):
        return
    assert found != pytest.approx(expected, rel=1e-4)


def test_answers_are_measured_as_they_are_spelled(encoder: ChatEncoder) -> None:
    tokens = stream(encoder, ROWS)
    counted, text_bytes = answers_size(tokens, encoder.marks, encoder.template.tokenizer)
    spoken = [
        ChatTemplate.of(encoder.template.tokenizer).encode_example(
            [{"role": "user", "content": "a"}, {"role": "assistant", "content": row["completion"]}]
        )
        for row in ROWS
    ]
    assert counted == sum(sum(each.is_assistant) for each in spoken)
    assert text_bytes == sum(len(row["completion"].encode()) for row in ROWS)


def test_the_encoder_depends_on_the_template(encoder: ChatEncoder) -> None:
    tokenizer = encoder.template.tokenizer
    assert encoder_of(DataSection(), tokenizer) is tokenizer
    again = encoder_of(DataSection(rows="chat"), tokenizer)
    assert again.fingerprint == encoder.fingerprint
    assert tokenizer.chat is not None
    other = type(tokenizer.chat)(tokenizer.chat.template + " ", tokenizer.chat.special_tokens)
    changed = encoder_of(DataSection(rows="chat"), tokenizer.with_chat(other))
    assert changed.fingerprint != encoder.fingerprint
    text = conversation_text(ROWS[0], "")
    assert "the answer" in encoder.decode(encoder.encode_text(text))
