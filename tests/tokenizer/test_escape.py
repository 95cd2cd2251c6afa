"""Escaping loses nothing and leaves no space mark."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmtrain.errors import DataError
from llmtrain.tokenizer.escape import ESCAPE, SPACE_MARK, escape, unescape

# Half of the characters are those that the escape is made of.
tricky = st.text(
    st.sampled_from([ESCAPE, SPACE_MARK, "0", "1", " "]) | st.characters(codec="utf-8")
)


@given(tricky)
def test_unescape_undoes_escape(text: str) -> None:
    assert unescape(escape(text)) == text


@given(tricky)
def test_no_space_mark_is_left(text: str) -> None:
    assert SPACE_MARK not in escape(text)


@given(tricky, tricky)
def test_escaping_the_parts_escapes_the_whole(left: str, right: str) -> None:
    assert escape(left + right) == escape(left) + escape(right)


@given(st.text(st.characters(codec="utf-8", exclude_characters=[ESCAPE, SPACE_MARK])))
def test_ordinary_text_is_left_alone(text: str) -> None:
    assert escape(text) == text


@pytest.mark.parametrize("text", ["ab\ud800", "ab\udfff!", "ab\ud83d\ude00"])
def test_lone_surrogates_are_refused_by_place(text: str) -> None:
    with pytest.raises(DataError, match=rf"U\+{ord(text[2]):04X} at character 2"):
        escape(text)
