import contextlib
import os

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lmtrain.files import strict_json
from lmtrain.files.strict_json import MAX_DEPTH, parse_json, to_json

PLAIN = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=10,
)


@given(PLAIN)
def test_what_is_written_is_read_back_exactly(document):
    try:
        data = to_json(document)
    except UnicodeEncodeError:  # half of a surrogate pair has no UTF-8
        return
    assert parse_json(data) == document


@given(st.binary(max_size=200) | st.text(alphabet='[]{}",:0123456789eE+-.tfnNIy\\u ', max_size=60).map(str.encode))
def test_any_bytes_are_a_document_or_a_value_error(data):
    with contextlib.suppress(ValueError):
        parse_json(data)


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"", "not JSON"),
        (b"{", "not JSON"),
        (b'{"a": 1, "a": 2}', "key 'a' is given twice"),
        (b'[{"b": {"x": 1, "y": 2, "x": 3}}]', "key 'x' is given twice"),
        (b"[NaN]", "NaN is not a number"),
        (b"[-Infinity]", "-Infinity is not a number"),
        (b"[1e999]", "1e999 is too large"),
        (b'["\xff"]', "byte 2 is not UTF-8"),
        (b"[" * 100 + b"]" * 100, f"deeper than {MAX_DEPTH} levels"),
        (b"[" * 1_000_000, f"deeper than {MAX_DEPTH} levels"),
        (b"1" * 10_000, "4300 digits"),
        (b"\xef\xbb\xbf{}", "not JSON"),
    ],
)
def test_what_is_not_plain_json_is_refused_in_words(data, words):
    with pytest.raises(ValueError, match=words):
        parse_json(data)


def test_too_many_bytes_are_refused_before_any_is_parsed(monkeypatch):
    monkeypatch.setattr(strict_json, "MAX_BYTES", 10)
    monkeypatch.setattr(strict_json.json, "loads", lambda *_, **__: pytest.fail("parsed"))
    with pytest.raises(ValueError, match="it has 11 bytes of JSON, more than 10"):
        parse_json(b"[1,2,3,4,5]")


@pytest.mark.parametrize("number", [float("nan"), float("inf")])
def test_a_number_that_json_does_not_have_is_not_written(number):
    with pytest.raises(ValueError, match="not JSON compliant"):
        to_json({"loss": number})


def test_what_could_not_be_read_back_is_not_written(monkeypatch):
    deep = []
    for _ in range(MAX_DEPTH):
        deep = [deep]
    with pytest.raises(ValueError, match="nested deeper"):
        to_json(deep)
    monkeypatch.setattr(strict_json, "MAX_BYTES", 10)
    with pytest.raises(ValueError, match="more than the 10 that would be read back"):
        to_json("a" * 10)


def test_a_name_that_is_not_utf8_reads_back_as_it_was_written() -> None:
    name = os.fsdecode(b"B\xe4r\\")
    assert parse_json(to_json({name: [name, "ä"]})) == {name: [name, "ä"]}
    assert to_json(name) == b'"B\\udce4r\\\\"\n'
