"""What a value has to be is said with its limits, as people write numbers."""

from __future__ import annotations

import pytest

from llmtrain.errors import UsageError
from llmtrain.profile.limits import limits_of
from llmtrain.profile.load import load_profile
from llmtrain.profile.schema import Profile


@pytest.mark.parametrize(
    ("assignment", "message"),
    [
        ("optim.beta1=1", "optim.beta1: has to be at least 0 and below 1, not 1"),
        ("data.validation_fraction=-0.5", "has to be above 0 and below 1, not -0.5"),
        ("optim.learning_rate=1e308", "has to be above 0 and below 1e+30 or 'auto', not 1e+308"),
        ("model.context=0", "model.context: has to be at least 8, not 0"),
        ("model.context=2147483648", "has to be at least 8 and below 2147483648, not 2147483648"),
        ("data.tokenizer_reserve=1025", "has to be at least 0 and at most 1024, not 1025"),
        ("data.filters.max_repetition=1", "has to be at least 0 and below 1, not 1"),
        ("train.seed=18446744073709551616", "the integer is too large: 2**64 or more"),
        ("train.seed=9223372036854775808", "has to be at least 0 and below 9223372036854775808"),
    ],
)
def test_both_limits_of_a_number_are_said_with_its_value_and_origin(
    assignment: str, message: str
) -> None:
    with pytest.raises(UsageError) as raised:
        load_profile(environment={}, assignments=[assignment])
    assert message in raised.value.message
    assert raised.value.message.endswith(f"(--set {assignment})")


def test_what_is_no_number_has_no_limits() -> None:
    for place in ([], ["model"], ["model", "nosuch"], ["nosuch", "x"], ["data", "sources", "0"]):
        assert limits_of(Profile, place) == {}


def test_a_word_of_another_section_is_meant_only_if_it_is_that_word() -> None:
    for key, hint in (
        ("model.dropout", "llmtrain profiles schema"),
        ("optim.seed", "did you mean train.seed?"),
        ("model.contxt", "did you mean model.context?"),
    ):
        with pytest.raises(UsageError) as raised:
            load_profile(environment={}, assignments=[f"{key}=1"])
        assert raised.value.hint == hint
