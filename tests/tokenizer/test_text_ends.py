"""Texts begin and end as by the tokenizers of others, in ids, in training data, and in exports."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from tokenizers import processors
from transformers import AutoTokenizer

from llmtrain.data.document import Document
from llmtrain.data.shards.encode import cut_into_parts, encode_parts
from llmtrain.data.split import SplitPart
from llmtrain.errors import DataError
from llmtrain.tokenizer import ImportOptions, Tokenizer, import_tokenizer
from llmtrain.tokenizer.chat_template import ChatTemplate, stop_ids_of
from llmtrain.tokenizer.encode_processes import encode_in_this_process
from llmtrain.tokenizer.of_model import tokenizer_of_model, with_reserved_pieces
from tests.foreign import STYLES, Style

TEXTS = ("", "a", "the theory", " two\n lines", "naïve 中 <s></s><|end_of_text|>")
QUESTION = [{"role": "user", "content": "a th"}]


@pytest.fixture(params=STYLES, scope="module")
def style(request: pytest.FixtureRequest) -> Style:
    make: Callable[[], Style] = STYLES[request.param]
    return make()


@pytest.fixture(scope="module")
def directory(style: Style, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return style.save(tmp_path_factory.mktemp("model"))


def name_of(tokenizer: Tokenizer, token: int | None) -> str | None:
    return None if token is None else tokenizer.piece(token)


def test_the_directory_says_what_begins_and_ends_texts(style: Style, directory: Path) -> None:
    tokenizer, warnings = tokenizer_of_model(directory)
    assert name_of(tokenizer, tokenizer.bos_id) == style.bos
    assert name_of(tokenizer, tokenizer.eos_id) == style.eos
    assert tokenizer.adds_bos == style.adds_bos
    assert {tokenizer.piece(token) for token in tokenizer.stop_ids} == {
        style.eos,
        *style.more_stops,
    }
    assert not any("left out" in each for each in warnings)


def test_prompts_have_the_ids_of_transformers_also_when_saved_again(
    directory: Path, tmp_path: Path
) -> None:
    tokenizer, _ = tokenizer_of_model(directory)
    tokenizer.save(tmp_path)
    loaded = Tokenizer.load(tmp_path)
    assert loaded.fingerprint == tokenizer.fingerprint
    assert loaded.kind == tokenizer.kind
    first, second = (AutoTokenizer.from_pretrained(each) for each in (directory, tmp_path))
    assert (first.bos_token, first.eos_token) == (second.bos_token, second.eos_token)
    for theirs in (first, second):
        theirs.split_special_tokens = True
        for text in TEXTS[1:]:
            assert theirs(text)["input_ids"] == list(loaded.prompt_ids(loaded.encode(text)))


def test_answers_are_asked_for_and_end_as_by_the_template(
    style: Style, directory: Path, tmp_path: Path
) -> None:
    if "chat_template" not in style.config:
        pytest.skip("it has no chat template")
    tokenizer, _ = tokenizer_of_model(directory)
    tokenizer.save(tmp_path)
    expected = AutoTokenizer.from_pretrained(directory).apply_chat_template(
        QUESTION, add_generation_prompt=True, return_dict=False
    )
    for each in (tokenizer, Tokenizer.load(tmp_path)):
        template = ChatTemplate.of(each)
        assert template.encode(QUESTION, add_generation_prompt=True) == expected
        assert stop_ids_of(each) >= set(style.stops)


def test_documents_begin_with_the_separator_and_end_with_eos(directory: Path) -> None:
    tokenizer, _ = tokenizer_of_model(directory)
    texts = ["a th\n" * 9, "the"]
    pieces = [SplitPart("train", Document(text, "")) for text in texts]
    encoded = encode_parts(
        cut_into_parts(pieces, 10),  # bytes: the first is cut into several parts
        lambda batches: encode_in_this_process(tokenizer, batches),
        tokenizer,
        10,
    )
    batches = list(encoded)
    assert len(batches) > 2
    ids = [token for batch in batches for token in batch.ids.tolist()]
    assert len(ids) == sum(int(batch.counts.sum()) for batch in batches)
    end = [] if tokenizer.end_id is None else [tokenizer.eos_id]
    assert ids.count(tokenizer.separator_id) == 2
    assert ids[0] == tokenizer.separator_id
    assert ids[-len(end) - 1 :] == [*tokenizer.encode("the")[-1:], *end]
    assert tokenizer.adds_bos == (ids.count(tokenizer.eos_id) == 2 and bool(end))
    assert tokenizer.decode(ids).replace(" ", "") == "".join(texts).replace(" ", "")


def test_a_new_model_keeps_a_bos_that_the_template_adds(style: Style, directory: Path) -> None:
    """Of a tokenizer that adds none, the separator begins and ends texts, as of llmtrain's."""
    tokenizer = import_tokenizer(directory, ImportOptions(allow_lossy=True)).tokenizer
    assert tokenizer.adds_bos
    assert name_of(tokenizer, tokenizer.eos_id) == style.eos
    assert name_of(tokenizer, tokenizer.bos_id) == (style.bos if style.adds_bos else style.eos)
    named = ImportOptions(separator=style.eos, allow_lossy=True)
    tokenizer = import_tokenizer(directory, named).tokenizer
    assert (tokenizer.bos_id, tokenizer.end_id) == (tokenizer.eos_id, None)


def test_config_decides_against_the_template(style: Style, tmp_path: Path) -> None:
    """As in transformers; what the file itself would add is taken out of it."""
    if style.bos is None:
        pytest.skip("it has no bos")
    style.save(tmp_path / "model")
    config = style.config | {"add_bos_token": False}
    (tmp_path / "model" / "tokenizer_config.json").write_text(json.dumps(config))
    tokenizer, warnings = tokenizer_of_model(tmp_path / "model")
    assert not tokenizer.adds_bos
    assert name_of(tokenizer, tokenizer.bos_id) == style.bos
    assert name_of(tokenizer, tokenizer.separator_id) == style.eos
    assert any("left out" in each for each in warnings)
    tokenizer.save(tmp_path / "saved")
    theirs = AutoTokenizer.from_pretrained(tmp_path / "saved")
    assert theirs("the")["input_ids"] == tokenizer.encode("the")


def test_an_eos_that_the_template_adds_ends_documents_alone(tmp_path: Path) -> None:
    style = STYLES["mistral"]()
    special = [("<s>", 1), ("</s>", 2)]
    style.library.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", special_tokens=special
    )
    style.save(tmp_path / "model")
    tokenizer, warnings = tokenizer_of_model(tmp_path / "model")
    assert (tokenizer.adds_bos, tokenizer.end_id) == (True, 2)
    assert any("</s>" in each for each in warnings)


def test_one_token_for_both_begins_prompts_unless_none_is_added(tmp_path: Path) -> None:
    style = STYLES["qwen_3"]()
    one = {"bos_token": "<|im_end|>", "eos_token": "<|im_end|>"}
    for added, begins in ((None, True), (False, False)):
        config = one if added is None else {**one, "add_bos_token": added}
        directory = style.save(tmp_path / str(added))
        (directory / "tokenizer_config.json").write_text(json.dumps(config))
        tokenizer, _ = tokenizer_of_model(directory)
        assert tokenizer.bos_id == tokenizer.eos_id == tokenizer.separator_id
        assert (tokenizer.adds_bos, tokenizer.end_id) == (begins, None)


def test_reserved_pieces_and_an_empty_prompt(directory: Path) -> None:
    tokenizer, _ = tokenizer_of_model(directory)
    more = with_reserved_pieces(tokenizer, 3)
    assert more.kind == tokenizer.kind
    assert more.prompt_ids([]) == (tokenizer.separator_id,)


@pytest.mark.parametrize(
    "ends",
    [
        {"bos_id": 1, "eos_id": 10**6, "adds_bos": True, "stop_ids": []},
        {"bos_id": None, "eos_id": 2, "adds_bos": True, "stop_ids": []},
        {"bos_id": 2, "eos_id": 1, "adds_bos": True, "stop_ids": []},
        {"bos_id": 1, "eos_id": 2, "adds_bos": True, "stop_ids": ["2"]},
        {"bos_id": 1, "eos_id": 2, "adds_bos": 1, "stop_ids": []},
        {},
    ],
)
def test_damaged_ends_are_told(ends: dict[str, object], tmp_path: Path) -> None:
    STYLES["mistral"]().save(tmp_path / "model")
    tokenizer_of_model(tmp_path / "model")[0].save(tmp_path / "saved")
    file = tmp_path / "saved" / "tokenizer_kind.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"ends": ends}))
    with pytest.raises(DataError):
        Tokenizer.load(tmp_path / "saved")
