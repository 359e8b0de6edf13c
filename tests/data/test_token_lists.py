"""Which words a saved vocabulary can have."""

from __future__ import annotations

from hypothesis import example, given
from hypothesis import strategies as st

from lmtrain.data.token_lists import _is_piece
from lmtrain.data.vocabulary import MAX_WORD, WHITESPACE


@given(
    st.text(st.characters(exclude_categories=()), max_size=6)
    | st.text("a é\n\v\x1c\x85\u2028\ud7ff\ud800\udfff\ue000", max_size=4)
)
@example("")
@example("a\n")
@example("\udfff")
@example("\ue000")
def test_a_word_is_what_holds_no_blank_and_no_half_of_a_surrogate_pair(token: str) -> None:
    plain = bool(token) and not any(char in WHITESPACE or "\ud800" <= char <= "\udfff" for char in token)
    assert _is_piece(token, "word") == plain


def test_a_word_has_a_greatest_length() -> None:
    assert _is_piece("a" * 2 * MAX_WORD, "word")
    assert not _is_piece("a" * (2 * MAX_WORD + 1), "word")
