"""Text sampled after a prompt begins with the prompt exactly, wherever the prompt ends."""

from pathlib import Path

import pytest
import torch

from llmtrain.generate.generator import TextGenerator
from llmtrain.generate.sampling import Sampling, Token
from llmtrain.generate.text import Piece, TextRequest, TextStream
from llmtrain.model.decoder import Decoder
from llmtrain.profile.schema import ModelSection
from llmtrain.profile.shape import shape_of
from llmtrain.tokenizer import Tokenizer
from llmtrain.tokenizer.healing import Spellings
from llmtrain.tokenizer.of_model import tokenizer_of_model
from tests.data.fixed import TOKENIZER
from tests.foreign import STYLES


@pytest.fixture(scope="module")
def model() -> Decoder:
    vocab_size = Tokenizer.load(TOKENIZER).vocab_size
    sizes = {"hidden_size": 16, "intermediate_size": 32, "num_layers": 1, "num_heads": 2}
    torch.manual_seed(0)
    return Decoder(shape_of(ModelSection(vocab_size=vocab_size, context=16, **sizes))).eval()


@pytest.mark.parametrize("prompt", ["", "def ", "def", "retur", "中é", "a\n    ", "▁ ▁"])
@pytest.mark.parametrize("limit", [1, 3, 20])
def test_a_seed_is_a_text_after_any_prompt(model: Decoder, prompt: str, limit: int) -> None:
    tokenizer = Tokenizer.load(TOKENIZER)
    generator = TextGenerator(model, tokenizer, "fp32")
    for sampling in (Sampling(0.0), Sampling(2.0, seed=3)):
        first, second = (
            [piece.text for piece in generator.generate(TextRequest(prompt, sampling, limit))]
            for _ in range(2)
        )
        assert first == second
        text = prompt + "".join(first)
        assert tokenizer.decode(tokenizer.encode(text)) == text


def stream_of(
    tokenizer: Tokenizer, text: str, *, stop: tuple[str, ...] = (), max_tokens: int = 1000
) -> tuple[list[Piece], TextStream]:
    """The pieces of a text as if a model had sampled it after an empty prompt."""
    request = TextRequest("", Sampling(), max_tokens, stop)
    stream = TextStream(request, tokenizer, Spellings(tokenizer))
    pieces = []
    for token in [*tokenizer.encode(text), tokenizer.separator_id]:
        stream.continuation.sampled.append(token)
        pieces.append(stream.push(Token(token)))
        if stream.finish is not None:
            break
    return pieces, stream


TEXT = "def f(x):\n    return x  # 中é 😀\n\n\nprint(f)\n"


@pytest.mark.parametrize(
    ("stop", "shown"),
    [
        ((), TEXT),
        (("zzz", "print(g)"), TEXT),
        (("return",), "def f(x):\n    "),
        (("\n\n\n", "\n\n"), "def f(x):\n    return x  # 中é 😀"),
        (("rin",), TEXT[: TEXT.index("rin")]),
        (("f)\n", "x", "中"), "def f("),
        (("def",), ""),
        (("\n" * 4, "\n" * 3 + "q"), TEXT),
    ],
)
def test_text_ends_before_a_stop_string(stop: tuple[str, ...], shown: str) -> None:
    pieces, stream = stream_of(Tokenizer.load(TOKENIZER), TEXT, stop=stop)
    assert "".join(piece.text for piece in pieces) == shown
    assert stream.finish == "stop"
    tokens = [token for piece in pieces for token in piece.tokens]
    spelled = b"".join(token.spelled for token in tokens).decode()
    assert spelled.startswith(shown)  # with all of the token that a stop string begins in


def test_what_may_become_a_stop_string_is_held_back() -> None:
    pieces, _ = stream_of(Tokenizer.load(TOKENIZER), "a\n\nb", stop=("\n\n\n",))
    shown = ""
    for piece in pieces[:-1]:
        shown += piece.text
        assert not shown.endswith("\n")
    assert shown + pieces[-1].text == "a\n\nb"


@pytest.mark.parametrize("limit", [1, 2, 7])
def test_text_ends_after_the_most_tokens(limit: int) -> None:
    tokenizer = Tokenizer.load(TOKENIZER)
    pieces, stream = stream_of(tokenizer, TEXT, max_tokens=limit, stop=("def f(x)zzz",))
    assert stream.finish == "length"
    assert stream.sampled_tokens == limit
    text = "".join(piece.text for piece in pieces)
    assert text == tokenizer.decode(tokenizer.encode(TEXT)[:limit])
    assert len([token for piece in pieces for token in piece.tokens]) == limit


def test_an_id_that_ends_texts_is_not_shown() -> None:
    tokenizer = Tokenizer.load(TOKENIZER)
    a, b = tokenizer.encode("a")[0], tokenizer.encode("b")[0]
    request = TextRequest((tokenizer.separator_id,), Sampling(), 9, ends=frozenset({b}))
    stream = TextStream(request, tokenizer, Spellings(tokenizer))
    stream.continuation.sampled.append(a)
    assert stream.push(Token(a)).text == "a"
    stream.continuation.sampled.append(b)
    assert stream.push(Token(b)) == Piece("", ())
    assert stream.finish == "stop"
    assert (stream.prompt_tokens, stream.sampled_tokens) == (1, 1)


@pytest.mark.parametrize("prompt", ["retur", "x = 1", "😀"])
def test_tokens_within_the_prompt_do_not_count(model: Decoder, prompt: str) -> None:
    tokenizer = Tokenizer.load(TOKENIZER)
    generator = TextGenerator(model, tokenizer, "fp32")
    stream = generator.prepare(TextRequest(prompt, Sampling(2.0, seed=1), 3, likeliest=1))
    generator.start(stream)
    pieces = []
    while stream.finish is None:
        pieces += [piece for _, piece in generator.step()]
    tokens = [token for piece in pieces for token in piece.tokens]
    assert stream.sampled_tokens == len(tokens) == 3 or stream.finish == "stop"
    assert all(token.token.logprob is not None for token in tokens)
    assert generator.free == 1


@pytest.mark.parametrize(
    ("style", "stop"),
    [
        ("llama_3", "<|end_of_text|>"),
        ("llama_3", "<|eot_id|>"),
        ("llama_3", "<|begin_of_text|>"),
        ("qwen_3", "<|im_end|>"),
        ("qwen_3", "<|endoftext|>"),
        ("mistral", "</s>"),
    ],
)
def test_a_text_of_another_model_ends_with_its_eos_and_turns(
    style: str, stop: str, tmp_path: Path
) -> None:
    tokenizer, _ = tokenizer_of_model(STYLES[style]().save(tmp_path))
    stream = TextStream(TextRequest("a", Sampling(), 9), tokenizer, Spellings(tokenizer))
    first, end = tokenizer.encode("b")[-1], tokenizer.controls()[stop]
    assert stream.push(Token(first)).text.strip() == "b"
    assert (stream.push(Token(end)).text, stream.finish) == ("", "stop")


@pytest.mark.parametrize("style", STYLES)
@pytest.mark.parametrize("prompt", ["", "t", "th", "a t"])
def test_a_prompt_without_bos_has_a_first_token(style: str, prompt: str, tmp_path: Path) -> None:
    """Although all of its tokens might be sampled again."""
    tokenizer, _ = tokenizer_of_model(STYLES[style]().save(tmp_path))
    stream = TextStream(TextRequest(prompt, Sampling(), 9), tokenizer, Spellings(tokenizer))
    assert stream.continuation.prompt
    assert stream.prompt_tokens == len(tokenizer.prompt_ids(tokenizer.encode(prompt)))
