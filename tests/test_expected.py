"""What a checkpoint holds is compared value by value, with its type."""

from typing import Any

import pytest

from lmtrain.errors import UnfitError
from lmtrain.expected import compare


@pytest.mark.parametrize(
    ("expected", "given", "field"),
    [
        ([{"a": False}], [{"a": 0}], r"\[0\]\.a"), ([1], [1.0], r"\[0\]"), ([True], [1], r"\[0\]"),
        ([[1, "x"]], [[True, "x"]], r"\[0\]\[0\]"), ({"a": [{"b": [True]}]}, {"a": [{"b": [1]}]}, r"a\[0\]\.b\[0\]"),
        ({"a": 1}, {"a": 1, "b": 2}, "b"), ([1, 2], [1], "it"), ({"a": None}, {"a": False}, "a"),
    ],
)  # fmt: skip
def test_another_type_is_another_value(expected: Any, given: Any, field: str) -> None:
    compare(expected, expected)
    with pytest.raises(UnfitError) as refused:
        compare(expected, given)
    assert refused.match(field)
