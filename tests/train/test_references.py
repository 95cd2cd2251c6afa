"""Reference log-probabilities: computed once, whole after a kill, and never another model's."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from llmtrain.data.batches.conversations import END
from llmtrain.data.batches.preferences import References, both_answers
from llmtrain.data.chat.marks import Marks
from llmtrain.model.decoder import Decoder
from llmtrain.profile.schema import ModelSection
from llmtrain.profile.shape import shape_of
from llmtrain.train import references as module
from llmtrain.train.references import (
    ReferenceModel,
    Work,
    ensure_references,
    read_references,
    reference_file,
)
from tests.tokens import Ids

MARKS, CONTEXT = Marks(300), 16


@pytest.fixture(scope="module")
def model() -> Decoder:
    section = ModelSection(
        vocab_size=300,
        hidden_size=16,
        intermediate_size=32,
        num_layers=2,
        num_heads=2,
        context=CONTEXT,
    )
    made = Decoder(shape_of(section))
    generator = torch.Generator().manual_seed(0)
    for parameter in made.parameters():
        parameter.data.normal_(0, 0.2, generator=generator)
    made.has_padding, made.separator_id = True, END
    made.compute_with(attention="blocks")
    return made


@pytest.fixture(scope="module")
def pairs() -> Ids:
    draw = np.random.default_rng(0)
    values = [MARKS.separator]
    for _ in range(20):
        for at in range(2):
            values += [MARKS.divider] * at
            ids = draw.integers(0, 300, size=int(draw.integers(2, 6))).tolist()
            values += MARKS.mark(ids, [False] + [True] * (len(ids) - 1))
        values.append(MARKS.separator)
    return Ids(np.array(values))


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_TOKENS_AT_ONCE", 2 * CONTEXT)


def ensure(
    path: Path | None, pairs: Ids, build: Callable[[], Decoder], work: Work | None = None
) -> References:
    reference = ReferenceModel(build, nullcontext)
    return ensure_references(path, pairs, MARKS, CONTEXT, reference, work or Work())


def never() -> Decoder:
    raise AssertionError("the model is not needed")


def test_they_are_the_models_log_probabilities(model: Decoder, pairs: Ids) -> None:
    found = ensure(None, pairs, lambda: model)
    start = int(found.starts[3])
    length = int((pairs.read(start, CONTEXT) == MARKS.separator).argmax())
    for answer, log_probability in zip(
        both_answers(pairs.read(start, length), MARKS), found.of(start), strict=True
    ):
        ids = torch.from_numpy(MARKS.ids(answer))
        logs = F.log_softmax(model.logits(ids[None])[0], dim=-1)
        expected = logs[:-1].gather(1, ids[1:, None]).sum().item()
        assert log_probability == pytest.approx(expected, rel=1e-5)


def test_a_second_time_they_are_read(model: Decoder, pairs: Ids, tmp_path: Path) -> None:
    path = reference_file(tmp_path, "train", "model", CONTEXT)
    assert read_references(path, pairs, MARKS, CONTEXT) is None
    first = ensure(path, pairs, lambda: model)
    for again in (ensure(path, pairs, never), read_references(path, pairs, MARKS, CONTEXT)):
        assert again is not None
        assert (again.starts == first.starts).all()
        assert (again.log_probabilities == first.log_probabilities).all()


def test_after_a_kill_the_rest_is_computed(model: Decoder, pairs: Ids, tmp_path: Path) -> None:
    whole = tmp_path / "whole.bin"
    ensure(whole, pairs, lambda: model)
    stops = 0

    def stop() -> None:
        nonlocal stops
        stops += 1
        if stops > 4:
            raise KeyboardInterrupt

    path = tmp_path / "parts.bin"
    with pytest.raises(KeyboardInterrupt):
        ensure(path, pairs, lambda: model, Work(stop))
    kept = path.read_bytes()
    assert 0 < len(kept) < whole.stat().st_size
    assert whole.read_bytes().startswith(kept)
    path.write_bytes(kept[:-3])  # as a kill within a write leaves it
    assert read_references(path, pairs, MARKS, CONTEXT) is None
    told: list[int] = []
    ensure(path, pairs, lambda: model, Work(on_progress=lambda done, total: told.append(done)))
    assert path.read_bytes() == whole.read_bytes()
    assert told[0] > 0
    assert len(told) < stops * 4


def test_damage_is_computed_again(model: Decoder, pairs: Ids, tmp_path: Path) -> None:
    path = tmp_path / "values.bin"
    ensure(path, pairs, lambda: model)
    good = path.read_bytes()
    for at in (3, len(good) // 2, len(good) - 1):
        path.write_bytes(good[:at] + bytes([good[at] ^ 1]) + good[at + 1 :])
        ensure(path, pairs, lambda: model)
        assert path.read_bytes() == good
    path.write_bytes(good + b"more")
    assert read_references(path, pairs, MARKS, CONTEXT) is None


def test_other_pairs_do_not_get_them(model: Decoder, pairs: Ids, tmp_path: Path) -> None:
    path = tmp_path / "values.bin"
    ensure(path, pairs, lambda: model)
    half = Ids(pairs.ids[: int(np.flatnonzero(pairs.ids == MARKS.separator)[9]) + 1])
    assert read_references(path, half, MARKS, CONTEXT) is None
