"""Columns before the text of a line: taken off wherever blocks are cut, given back line by line."""

import pytest

from lmtrain.errors import DataError
from lmtrain.inference.keyed import LONGEST, KeyedLines

PLAIN = "u1\t-3.5\tthe cat\nu1\t1e3\t\nu2\t0\ta\tb  c \nü 3\t-0\tno end"
KALDI = "u-1 the cat\nu-2\nu-3   \tspaces  within \nu-4 \nu-5 \t no end"


def parse(text: str, cut: int, columns: tuple[str, ...], style: str) -> tuple[str, list[tuple[dict[str, str], str]]]:
    blocks = [text[start : start + cut] for start in range(0, len(text), cut)]
    lines = KeyedLines(blocks, columns, style, keep_text=True)
    shown = "".join(lines)
    return shown, [lines.take() for _ in range(shown.count("\n"))]


@pytest.mark.parametrize("cut", [1, 2, 3, 5, 7, 1000])
def test_plain_columns_end_with_a_tab(cut: int) -> None:
    shown, taken = parse(PLAIN, cut, ("id", "score"), "plain")
    assert shown == "the cat\n\na\tb  c \nno end\n"
    assert [tuple(columns.values()) for columns, _ in taken] == [("u1", "-3.5"), ("u1", "1e3"), ("u2", "0"), ("ü 3", "-0")]
    assert [text for _, text in taken] == ["the cat", "", "a\tb  c ", "no end"]


@pytest.mark.parametrize("cut", [1, 2, 3, 5, 7, 1000])
def test_kaldi_columns_end_with_spaces_and_the_text_may_be_missing(cut: int) -> None:
    shown, taken = parse(KALDI, cut, ("id",), "kaldi")
    assert [columns["id"] for columns, _ in taken] == ["u-1", "u-2", "u-3", "u-4", "u-5"]
    assert [text for _, text in taken] == ["the cat", "", "spaces  within ", "", "no end"]
    assert shown == "the cat\n\nspaces  within \n\nno end\n"


def test_columns_may_be_skipped_and_nothing_is_read_of_nothing() -> None:
    assert parse("a\tx\ty\t1.5\ttext\n", 4, ("id", "_", "_", "score"), "plain")[1][0].columns["score"] == "1.5"
    assert parse("", 1, ("id",), "plain") == ("", [])


def test_a_long_line_passes_in_its_blocks() -> None:
    blocks = ["id\t", *["x" * 1000] * 1000, "\n"]
    assert max(map(len, KeyedLines(blocks, ("id",), "plain"))) == 1000


def test_only_remedies_that_help_are_named() -> None:
    for text, columns, style, remedy in (
        ("a\n", ("id",), "plain", "Mend the line, or type --format kaldi where columns end with a space."),
        (" a\n", ("id",), "kaldi", "Mend the line."),
        ("a\n", ("id", "score"), "kaldi", "Mend the line, or give the names of other columns, for example --columns id,text."),
    ):
        with pytest.raises(DataError) as refused:
            parse(text, 4, columns, style)
        assert str(refused.value).endswith(remedy)


@pytest.mark.parametrize("cut", [1, 4, 1000])
@pytest.mark.parametrize(
    ("text", "columns", "style", "message"),
    [
        ("a\tb\nc\n", ("id",), "plain", "Line 2 has no column 'id': 'c'"),
        ("a\t1\tb\nc\t2\n", ("id", "score"), "plain", "Line 2 has no column 'score': 'c.t2'"),
        ("a\t1\tb\n\n", ("id", "score"), "plain", "Line 2 has no column 'id': ''"),
        ("\t1\tb\n", ("id", "score"), "plain", "Line 1 has no column 'id'"),
        (" a b\n", ("id",), "kaldi", "Line 1 has no column 'id'"),
        ("a\n", ("id", "score"), "kaldi", "Line 1 has no column 'id'"),
        ("a\tb\tc\n", ("id", "score"), "plain", "The score in line 1 is 'b'.*Type --columns id,text"),
        ("a\tnan\tc\n", ("id", "score"), "plain", "The score in line 1 is 'nan'"),
        ("a\tinf\tc", ("id", "score"), "plain", "The score in line 1 is 'inf'"),
        ("x" * (LONGEST + 10_000), ("id",), "plain", "Line 1 has no column 'id': 'xxx"),
    ],
)
def test_a_line_without_its_columns_is_refused_with_its_number(
    text: str, columns: tuple[str, ...], style: str, message: str, cut: int
) -> None:
    with pytest.raises(DataError, match=message):
        parse(text, cut if len(text) < LONGEST else 5000, columns, style)
