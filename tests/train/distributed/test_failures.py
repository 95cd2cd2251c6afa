from __future__ import annotations

import pytest

from llmtrain import errors
from llmtrain.errors import LlmtrainError
from llmtrain.train.checkpoint.integrity import DamagedCheckpointError
from llmtrain.train.distributed.failures import (
    open_store,
    rank_environment,
    report_failure,
    reported_failure,
)

KINDS = [
    kind
    for kind in vars(errors).values()
    if isinstance(kind, type) and issubclass(kind, LlmtrainError)
]


def reported(error: LlmtrainError, monkeypatch: pytest.MonkeyPatch) -> LlmtrainError | None:
    """Report the error as rank 1; return what its launcher reads."""
    store, port = open_store()
    for name, value in rank_environment(1, 2, port).items():
        monkeypatch.setenv(name, value)
    assert report_failure(error)
    assert reported_failure(store, 0) is None
    return reported_failure(store, 1)


@pytest.mark.parametrize("kind", KINDS)
def test_a_failure_keeps_its_class_message_and_hint(
    kind: type[LlmtrainError], monkeypatch: pytest.MonkeyPatch
) -> None:
    found = reported(kind("what", hint="do"), monkeypatch)
    assert found is not None
    assert (type(found), found.message, found.hint) == (kind, "what", "do")


def test_a_class_defined_elsewhere_becomes_its_base_class(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    found = reported(DamagedCheckpointError("what"), monkeypatch)
    assert type(found) is LlmtrainError
