from __future__ import annotations

import math

import pytest

from llmtrain.serve.json_text import encode_json


def test_any_text_is_one_line_of_utf_8() -> None:
    found = encode_json({"text": "a\nü\ud800"})
    assert found.decode() == r'{"text":"a\nü?"}'


@pytest.mark.parametrize("number", [math.nan, math.inf, -math.inf])
def test_numbers_that_json_lacks_are_refused(number: float) -> None:
    with pytest.raises(ValueError, match="not JSON compliant"):
        encode_json({"logprob": number})
