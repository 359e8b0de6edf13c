"""Files of labelled texts: where the label ends, what a line is, what is refused, and folds."""

import json
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lmtrain.data.labelled import (
    Labelled,
    cut_folds,
    fingerprint,
    iter_advice,
    labels_of,
    parse_labelled,
    read_labelled,
)
from lmtrain.errors import DataError


def read(path: Path, data: bytes, encoding: str = "utf-8") -> list[tuple[str, str]]:
    path.write_bytes(data)
    labelled = read_labelled(path, encoding)
    return list(zip(labelled.labels, labelled.texts, strict=True))


@pytest.mark.parametrize(
    ("lines", "expected"),
    [
        ("1 a good film\n0 a bad film\n", [("1", "a good film"), ("0", "a bad film")]),
        ("pos\ta good film\nneg\ta bad film", [("pos", "a good film"), ("neg", "a bad film")]),
        ("very good\ta film\nnot good\tanother\n", [("very good", "a film"), ("not good", "another")]),
        ("1 one\ttwo\n0 three\n1 four\n", [("1", "one\ttwo"), ("0", "three"), ("1", "four")]),
        ("pos\tgood\nneg bad one\n", [("pos", "good"), ("neg", "bad one")]),
        ("1 x\r\n0 y\r\n", [("1", "x"), ("0", "y")]),
        ("1  two spaces\n0 \n1\t\n", [("1", " two spaces"), ("0", ""), ("1", "")]),
        ("\n1 x\n \t \n0 y\n\n\n", [("1", "x"), ("0", "y")]),
        ("\ufeff1 x\n0 y", [("1", "x"), ("0", "y")]),
        ("é ü\u2028ß\n日 本 語", [("é", "ü\u2028ß"), ("日", "本 語")]),
    ],
)
def test_a_label_ends_at_the_first_space_or_tab_or_at_the_tab_where_most_lines_have_one(
    lines: str, expected: list[tuple[str, str]], tmp_path: Path
) -> None:
    assert read(tmp_path / "x", lines.encode()) == expected


def test_lines_end_at_line_feeds_only(tmp_path: Path) -> None:
    """The data set MR holds bytes 0x85, which Python takes for a line's end once it is decoded."""
    assert read(tmp_path / "x", b"1 one\x85two\x0b\x1c three\n0 four\n", "latin-1") == [
        ("1", "one\x85two\x0b\x1c three"),
        ("0", "four"),
    ]


@pytest.mark.parametrize("encoding", ["utf-16-le", "utf-16-be", "utf-16"])
def test_text_of_two_bytes_is_read_where_that_is_said(encoding: str, tmp_path: Path) -> None:
    lines = "pos\ta good film of its kind\nneg\ta bad one\n"
    assert read(tmp_path / "x", lines.encode(encoding), encoding) == [("pos", "a good film of its kind"), ("neg", "a bad one")]


@pytest.mark.parametrize("line", ["pos\ta good film; I liked it", "pos a good film; I liked it"])
def test_a_semicolon_within_a_text_separates_nothing(line: str) -> None:
    assert parse_labelled([line], "x.csv").texts == ("a good film; I liked it",)


def test_another_encoding_is_refused_with_the_line_to_type(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"line 2.*Type data\.encoding=latin-1"):
        read(tmp_path / "x", b"1 a\n0 caf\xe9\n")


def test_comma_separated_values_are_read_by_the_names_of_their_columns() -> None:
    lines = ["id,Text,label", '1,"a, b",good', "", '2,"says ""no""', 'twice",so so', "3,,bad"]
    found = parse_labelled(lines, "x")
    assert found.labels == ("good", "so so", "bad")
    assert found.texts == ("a, b", 'says "no" twice', "")
    assert parse_labelled(["label, text", "1,x"], "x").texts == ("x",)
    assert parse_labelled(["1 x\ry, z"], "x").texts == ("x\ry, z",), "a carriage return ends no line"
    assert parse_labelled(["a,b c", "1 x"], "x").labels == ("a,b", "1"), "without such names it is a label and a text"


@pytest.mark.parametrize("header", ["label\ttext", "Label\t Text"])
def test_columns_between_tabs_are_read_by_their_names_too(header: str) -> None:
    lines = [header, '1\t"so, so" it is', "", "not good\t"]
    assert parse_labelled(lines, "x") == Labelled(("1", "not good"), ('"so, so" it is', ""))
    assert parse_labelled(["id\ttext\tlabel", "7\ta film\tgood"], "x") == Labelled(("good",), ("a film",))
    assert parse_labelled(["label\tof texts", "1\tx"], "x").labels == ("label", "1"), "without such names it is a text"


@pytest.mark.parametrize(
    ("lines", "problem"),
    [
        (
            ["label\ttext", "1\tx\ty"],
            r"Line 2 of x\.csv has 3 fields: .*Each line has 2 \(label, text\); a text has no tabs in it",
        ),
        (["text\tlabel", "", "x\t"], r"Line 3 of x\.csv has no label"),
        (["review,sentiment", "x,1"], r"x\.csv begins with 'review,sentiment'\..* label and text are among them"),
        (["label,text", "1,x,y"], r"Line 2 of x\.csv has 3 fields: '1,x,y'\. Each line has 2 \(label, text\)"),
        (["label,text", "1,x", ","], r"Line 3 of x\.csv has no label"),
        (["label,text", '1,"x'], r"Line 2 of x\.csv cannot be read: unexpected end of data"),
        (["label,text", '1,"x" y'], r"Line 2 of x\.csv cannot be read"),
        (["label,text", "1,x", '1,"open', "1,y"], r"Line 3 of x\.csv with those up to line 4 cannot be read: unexpected end"),
        (["label,text", '1,"so', 'it goes",on', "1,y"], r"Line 2 of x\.csv has 3 fields"),
        (["label,text,Text", "1,x,y"], r"x\.csv has 2 columns of the name text: label, text, text\..* Give the others another"),
        (["label\ttext\tlabel", "1\tx\ty"], r"x\.csv has 2 columns of the name label"),
        (
            ["label;text", "1;x"],
            r"of x\.csv are separated by semicolons: .* by commas or by tabs\. Type  python -c '.*' < x\.csv",
        ),
        (["id|label|text", "1|1|x"], r"of x\.csv are separated by vertical bars"),
        (["review;sentiment", "x;1"], r"x\.csv begins with 'review;sentiment'\. .* label and text are among them"),
    ],
)
def test_comma_separated_values_that_do_not_fit_are_refused(lines: list[str], problem: str) -> None:
    with pytest.raises(DataError, match=problem):
        parse_labelled(lines, "x.csv")


def test_the_command_for_semicolons_writes_a_table_that_is_read(tmp_path: Path) -> None:
    (file := tmp_path / "it's.csv").write_text('label;text\n1;"so, so; it is"\n')
    with pytest.raises(DataError) as refused:
        read_labelled(file)
    command = (
        refused.value.remedy.removeprefix("Type  ").removesuffix("  and give the result.").replace("python", sys.executable)
    )
    subprocess.run(command, shell=True, check=True, cwd=tmp_path)
    assert read_labelled(tmp_path / "commas.csv").texts == ("so, so; it is",)


@pytest.mark.parametrize(
    ("line", "problem"),
    [
        (
            '{"label": "1", "text": "x"}',
            r"x holds JSON lines: .* data=text alone\. .* Type  jq -r '\[\.label, \.text\] \| @tsv' FILE",
        ),
        (json.dumps({"text": "x" * 20_000}), "x holds JSON lines"),
    ],
)
def test_json_lines_are_refused_with_the_command_that_converts_them(line: str, problem: str) -> None:
    with pytest.raises(DataError, match=problem):
        parse_labelled(["", line], "x")
    assert parse_labelled(["{} x", '{"a": y'], "x").labels == ("{}", '{"a":'), "what begins like a record may be a label"


def test_what_is_no_text_in_any_encoding_gets_no_advice_on_encodings(tmp_path: Path) -> None:
    (tmp_path / "noise").write_bytes(bytes(range(256)) * 4)
    for encoding in ("utf-8", "utf-16"):
        with pytest.raises(DataError, match="hardly text in any encoding") as error:
            read_labelled(tmp_path / "noise", encoding)
        assert "latin-1" not in str(error.value)


@pytest.mark.parametrize(
    ("lines", "problem"),
    [
        (["1 a", "0"], r"Line 2 of x has one column only: '0'"),
        (["1 a", "\ttext"], r"Line 2 of x begins with the separator: it has no label"),
        (["1 a", " text"], r"Line 2 of x begins with the separator"),
        (["1 a", "word\x1b[31m"], r"Line 2 of x has one column only: 'word\\\\x1b\[31m'"),
    ],
)
def test_a_line_without_a_label_or_without_a_text_is_refused_by_its_number(lines: list[str], problem: str) -> None:
    with pytest.raises(DataError, match=problem):
        parse_labelled(lines, "x")


@pytest.mark.parametrize("data", [b"", b"\n\n", b"  \t\n"])
def test_a_file_without_a_text_is_refused(data: bytes, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="holds no text"):
        read(tmp_path / "x", data)


def labelled(*pairs: str) -> Labelled:
    return parse_labelled(pairs, "x")


def test_a_label_that_training_lacks_is_refused_by_name_and_number() -> None:
    splits = {"train": labelled("0 a", "1 b"), "valid": labelled("0 a", "2 b", "7 c", "2 d")}
    with pytest.raises(DataError, match=r"valid has labels that the training split lacks: '2', '7' \(3 of 4 texts\)"):
        labels_of(splits)


def test_a_label_whose_texts_have_no_word_and_a_single_label_are_refused() -> None:
    with pytest.raises(DataError, match="No training text of the label '1' has a word"):
        labels_of({"train": labelled("0 a", "1 ", "1  ")})
    with pytest.raises(DataError, match="All texts of the training split have the label '0'"):
        labels_of({"train": labelled("0 a", "0 b")})


def test_empty_texts_and_texts_that_training_has_are_said() -> None:
    splits = {"train": labelled("0 a", "1 b", "1 "), "valid": labelled("0 a", "1 ", "0 c")}
    assert labels_of(splits) == ("0", "1")
    advice = " ".join(iter_advice(splits))
    assert "1 of 3 texts of train has no word." in advice
    assert "1 of 3 texts of valid is in train" in advice, "an empty text is none of them"


@given(st.lists(st.sampled_from("ab"), min_size=12, max_size=60), st.integers(3, 6))
def test_folds_test_every_text_once_and_share_the_labels(labels: list[str], num_folds: int) -> None:
    whole = Labelled(("a",) * 6 + ("b",) * 6 + tuple(labels), tuple(map(str, range(12 + len(labels)))))
    tested: list[str] = []
    for fold in range(1, num_folds + 1):
        parts = cut_folds({"train": whole.pick(range(5)), "valid": whole.pick(range(5, len(whole)))}, num_folds, fold)
        assert sorted(text for part in parts.values() for text in part.texts) == sorted(whole.texts)
        tested += parts["test"].texts
        following = cut_folds({"train": whole}, num_folds, fold % num_folds + 1)
        assert parts["valid"].texts == following["test"].texts
        for label, count in Counter(whole.labels).items():
            assert abs(Counter(parts["test"].labels)[label] - count / num_folds) < 1
    assert sorted(tested) == sorted(whole.texts)


def test_more_folds_than_texts_of_any_label_are_refused() -> None:
    with pytest.raises(DataError, match=r"in 5 folds, valid gets none with data\.fold=2"):
        cut_folds({"train": labelled("0 a", "0 b", "1 c", "1 d")}, 5, 2)


def test_the_fingerprint_tells_texts_labels_and_splits_apart_but_no_line_ends(tmp_path: Path) -> None:
    variants = [
        {"train": labelled("0 a", "1 b")}, {"train": labelled("1 a", "0 b")}, {"train": labelled("0 a", "1 c")},
        {"train": labelled("0 a"), "valid": labelled("1 b")}, {"train": labelled("1 b", "0 a")},
    ]  # fmt: skip
    assert len(set(map(fingerprint, variants))) == len(variants)
    (tmp_path / "x").write_bytes(b"0 a\r\n\r\n1 b\r\n")
    assert fingerprint({"train": read_labelled(tmp_path / "x")}) == fingerprint(variants[0])
