"""Sentences in columns: what is read, which entities tags mean, and what is refused with its line."""

import random
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lmtrain.data.columns import (
    Entity,
    Sentence,
    entities,
    intended,
    iter_misfits,
    iter_rows,
    parse_columns,
    read_columns,
    scheme_of,
    split_tag,
    split_words,
)
from lmtrain.data.examples import find_splits, read_lines
from lmtrain.errors import DataError


def parsed(text: str, **columns: int) -> list[tuple[tuple[str, ...], tuple[str, ...], int]]:
    return [tuple(sentence) for sentence in parse_columns(text.split("\n"), "file", **columns)]  # type: ignore[misc]


@pytest.mark.parametrize(
    "text",
    ["a X\nb O\n\nc O", "a X\nb O\n \t \nc O\n", "a\tX\nb\tO\n\t\nc\tO\n", "-DOCSTART- O\n\na X\nb O\n-DOCSTART-\nc O",
     "a  NN  X\nb\u00a0 NN O\n\nc . O".replace("\u00a0", ""), "\n\n\na X\nb O\n\n\nc O\n\n"],
)  # fmt: skip
def test_sentences_end_at_lines_of_white_space(text: str) -> None:
    assert [(tokens, tags) for tokens, tags, _ in parsed(text)] == [(("a", "b"), ("X", "O")), (("c",), ("O",))]


def test_other_spaces_belong_to_tokens_and_tabs_let_blanks_into_them() -> None:
    assert parsed("a\u00a0b O") == [(("a\u00a0b",), ("O",), 1)]
    assert parsed("New York\tI-LOC\n\nx y\tO") == [(("New York",), ("I-LOC",), 1), (("x y",), ("O",), 3)]


def test_columns_are_counted_from_both_ends() -> None:
    assert parsed("1 a NN X\n2 b NN O", token_column=2) == [(("a", "b"), ("X", "O"), 1)]
    assert parsed("X a\nO b", token_column=-1, tag_column=1) == [(("a", "b"), ("X", "O"), 1)]


@pytest.mark.parametrize(("text", "line"), [("a X\nb\n", 2), ("a\tX\n\nb\t\n", 3), ("a X\n\n\nword", 4)])
def test_a_line_without_a_tag_is_refused_with_its_number(text: str, line: int) -> None:
    with pytest.raises(DataError, match=rf"Line {line} of file has one column only: "):
        parsed(text)


def test_a_line_with_blanks_among_lines_with_tabs_is_refused_with_both_numbers() -> None:
    with pytest.raises(DataError, match=r"(?s)Line 1 of file has no tab: 'a X'.*as line 3 does"):
        parsed("a X\n\nb\tO\n")


def test_a_column_that_is_not_there_is_refused() -> None:
    for columns in ({"token_column": 4}, {"tag_column": 0}, {"tag_column": -4}):
        with pytest.raises(DataError, match=r"data\.token_column=1"):
            parsed("a b O", **{"token_column": 1, **columns})
    with pytest.raises(
        DataError, match=r"Line 1 of x has one column only.*Mend the line, or separate them by a tab or a space\.$"
    ):
        parse_columns(["word"], "x", has_choice=False)


def test_a_column_that_is_both_the_first_and_the_last_is_refused() -> None:
    with pytest.raises(DataError, match=r"Line 2 of file has 2 columns, so that column 2 is column -1: 'c O'\."):
        parsed("1 a O\nc O", token_column=2)
    with pytest.raises(DataError, match=r"Line 1 of file has no token in column 0: "):
        parsed("a O", token_column=0)


def test_lines_with_another_number_of_columns_than_most_get_one_warning(caplog: pytest.LogCaptureFixture) -> None:
    parsed("a NN O\n\nNew York NN B-LOC\nb NN O\nc O\n\nd NN O")
    (warning,) = caplog.messages
    assert warning.startswith(
        "2 of 5 lines of file have another number of columns than the usual 3. The first is line 3, with 4: 'N"
    )
    caplog.clear()
    parsed("-DOCSTART- X\n\na\tNN\tO\t\n# text = a b\n\n# b\nb\tNN\tO\n")
    assert not caplog.messages, "comments, documents and tabs at the end of a line are no columns"
    parsed("a B-LOC\nb O note\nc O\n", tag_column=2)
    assert not caplog.messages, "where both are counted from the beginning, what stands behind them changes nothing"


def test_words_of_a_text_are_cut_as_columns_are() -> None:
    assert split_words(" 10\u00a0km\tof\u3000x\r\n\u2028 ") == ["10\u00a0km", "of\u3000x", "\u2028"]
    assert split_words(" \n") == []


def test_comments_are_no_tokens_where_tabs_separate_columns() -> None:
    conll_u = "# a licence\n\n# sent_id = 1\n# text = a b\na\tX\n# within\n#b\tO\n\n# newdoc\n\nc\tO\n# end"
    assert parsed(conll_u) == [(("a", "#b"), ("X", "O"), 5), (("c",), ("O",), 11)]
    assert parsed("# O\n#b O\n\n# X") == [(("#", "#b"), ("O", "O"), 1), (("#",), ("X",), 4)], "tokens, between spaces"
    assert parsed("#sent_id=1\n#\na\tX") == [(("a",), ("X",), 3)], "as CoNLL-U says, no space has to follow"
    with pytest.raises(DataError, match=r"Line 1 of file has one column only: '#hashtag'"):
        parsed("#hashtag\na X")


def test_tabs_at_the_beginning_of_a_line_are_columns_and_those_at_its_end_are_none() -> None:
    assert parsed("a\tX\t\nb\tO\t \t") == [(("a", "b"), ("X", "O"), 1)]
    assert parsed("\ta O\t") == [(("a",), ("O",), 1)], "only spaces separate columns"
    with pytest.raises(DataError, match="Line 1 of file has no token"):
        parsed("\tNN\tO")


def test_only_comments_wait_for_the_line_that_says_what_they_are() -> None:
    lines = iter(["", "# a", "", "b\tO", "#c d"])
    rows = iter_rows(lines)
    assert next(rows).ends_sentence
    assert [next(rows).fields, next(lines)] == [(), "#c d"], "no line is read before it is needed"
    assert next(iter_rows(iter(["#", "#b c"]))).fields == ("#",), "a word is answered at once"
    assert [row.fields for row in rows] == [(), ("b", "O")]


def test_a_file_whose_tokens_all_hold_blanks_gets_a_warning(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    for name, lines in (("odd", "The O\tO\nend O\tO\n"), ("fine", "New York\tO\nend\tO\n")):
        (tmp_path / name).write_text(lines, encoding="utf-8")
        read_columns(tmp_path / name)
    (warning,) = caplog.messages
    assert "odd holds a blank, as 'The O' does" in warning


def test_files_of_another_encoding_and_without_sentences_are_refused(tmp_path: Path) -> None:
    (tmp_path / "latin").write_bytes("é O\n".encode("latin-1"))
    with pytest.raises(DataError, match=r"(?s)byte 0xe9 at offset 0 \(line 1\).*data\.encoding=latin-1"):
        read_columns(tmp_path / "latin")
    assert read_columns(tmp_path / "latin", encoding="latin-1").sentences[0].tokens == ("é",)
    (tmp_path / "empty").write_text("\n \n-DOCSTART- O\n", encoding="utf-8")
    with pytest.raises(DataError, match="holds no sentence"):
        read_columns(tmp_path / "empty")
    (tmp_path / "windows").write_bytes(b"\xef\xbb\xbfa X\r\nb O\r\n\r\nc O\r\n")
    assert [sentence.tokens for sentence in read_columns(tmp_path / "windows").sentences] == [("a", "b"), ("c",)]


# What conlleval counts as entities (Tjong Kim Sang 2002), each as start:end:class.
@pytest.mark.parametrize(
    ("tags", "expected"),
    [
        ("O I-A I-A O", "1:3:A"), ("B-A I-A B-A", "0:2:A 2:3:A"), ("I-A I-B", "0:1:A 1:2:B"), ("O O", ""),
        ("B-A O I-A", "0:1:A 2:3:A"), ("I-A B-A I-B", "0:1:A 1:2:A 2:3:B"), ("S-A E-A", "0:1:A 1:2:A"),
        ("B-A I-A E-A S-A", "0:3:A 3:4:A"), ("A A O B", "0:2:A 3:4:B"), ("B-A L-A U-B", "0:2:A 2:3:B"),
        ("I-A-B O B-", "0:1:A-B 2:3:B-"), ("", ""),
    ],
)  # fmt: skip
def test_entities_are_those_of_conlleval(tags: str, expected: str) -> None:
    assert " ".join(f"{start}:{end}:{cls}" for start, end, cls in entities(tags.split())) == expected


SCHEMES = {
    "IO": ["I-A I-A O I-B"], "BIO": ["B-A I-A O B-B", "B-A B-A"], "IOB1": ["I-A I-A O I-B", "I-A B-A"],
    "IOBES": ["B-A E-A O S-B"], "classes": ["A A O B"],
}  # fmt: skip


@pytest.mark.parametrize("name", SCHEMES)
def test_the_scheme_is_recognised(name: str) -> None:
    sentences = [Sentence(tuple("x" * len(tags.split())), tuple(tags.split()), 1) for tags in SCHEMES[name]]
    assert scheme_of(sentences).name.startswith(name)


def test_a_few_slips_do_not_change_the_scheme() -> None:
    for name, tags in SCHEMES.items():
        sentences = [Sentence(tuple("x" * len(each.split())), tuple(each.split()), 1) for each in tags * 20]
        scheme = scheme_of(sentences)
        assert not list(iter_misfits(sentences, scheme))
        slips = [Sentence(("x", "y"), ("O", tag), 7) for tag in ("I-A", "B-A", "S-A", "A")]
        assert scheme_of([*sentences, *slips]) == scheme
        wrong = [(sentence.tags[place], sentence.line) for sentence, place in iter_misfits(slips, scheme)]
        right = {"IO": "I-A", "IOB1": "I-A", "BIO": "B-A", "IOBES": "S-A", "classes": "A"}[name]
        assert wrong == [(tag, 7) for tag in ("I-A", "B-A", "S-A", "A") if tag != right]


@pytest.mark.parametrize("name", SCHEMES)
def test_the_scheme_of_random_entities_is_recognised_behind_slips(name: str) -> None:
    is_plain, chance = name in ("IO", "classes"), random.Random(name)
    scheme = scheme_of([Sentence(tuple("x" * len(tags.split())), tuple(tags.split()), 1) for tags in SCHEMES[name]])
    for _ in range(20):
        sentences = []
        for _ in range(60):
            tags: list[str] = []
            for _ in range(chance.randint(2, 6)):
                cls, length = chance.choice("OAB"), chance.randint(1, 3)
                is_behind = bool(tags) and cls != "O" and split_tag(tags[-1]).cls == cls
                tags += ["O"] * (is_behind and is_plain)
                marks = [scheme.mark(i == 0, i == length - 1, is_behind) for i in range(length)]
                tags += [cls if cls == "O" or not mark else f"{mark}-{cls}" for mark in marks]
            slipped = [chance.choice(["O", "A", "B-A", "I-A", "E-A", "S-A"]) if chance.random() < 0.03 else tag for tag in tags]
            sentences.append(Sentence(tuple("x" * len(tags)), tuple(slipped), 1))
        assert scheme_of(sentences) == scheme


@pytest.mark.parametrize(
    ("tag", "meant"), [("o", "O"), ("B_ORG", "B-ORG"), ("i-PER", "I-PER"), ("B-b-x", "B-b-x"), ("e-mail", "e-mail")]
)
def test_a_tag_that_looks_like_another_is_told(tag: str, meant: str) -> None:
    assert intended(tag) == meant


@given(st.lists(st.sampled_from(["O", "A", "B"]), max_size=12), st.sampled_from(sorted(SCHEMES)))
def test_tags_made_of_classes_mean_what_the_classes_mean(classes: list[str], name: str) -> None:
    sentences = [Sentence(tuple("x" * len(tags.split())), tuple(tags.split()), 1) for tags in SCHEMES[name]]
    tags = scheme_of(sentences).tags(classes)
    assert [split_tag(tag).cls for tag in tags] == classes
    assert entities(tags) == entities(classes) == [Entity(*entity) for entity in entities(classes)]


def test_a_directory_says_which_file_is_which_or_is_asked_to(tmp_path: Path) -> None:
    for name in ("wnut17TRAIN.conll", "emerging.dev.conll", "emerging.test.annotated", "README.train.md", ".train.swp"):
        (tmp_path / name).write_text("a O\n", encoding="utf-8")
    found = find_splits(str(tmp_path), {})
    assert {split: path.name for split, path in found.items()} == {
        "train": "wnut17TRAIN.conll", "valid": "emerging.dev.conll", "test": "emerging.test.annotated",
    }  # fmt: skip
    (tmp_path / "valid.txt").write_text("a O\n", encoding="utf-8")
    with pytest.raises(DataError, match=r"does not say which file is valid; .*data\.valid=FILE"):
        find_splits(str(tmp_path), {})
    assert set(find_splits("", {"train": "a", "valid": "b", "test": ""})) == {"train", "valid"}
    with pytest.raises(DataError, match=r"valid\.txt is one file\. .* Type data\.train=FILE data\.valid=FILE, and"):
        find_splits(str(tmp_path / "valid.txt"), {})


def test_a_file_whose_lines_end_in_carriage_returns_alone_gets_a_warning(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "mac").write_bytes(b"a O\rb O\r")
    assert len(read_lines(tmp_path / "mac")[0]) == 1
    assert "mac contains 2 carriage returns without a line feed, where no line ends. So all of it is one line." in caplog.text
    caplog.clear()
    (tmp_path / "windows").write_bytes(b"a O\r\nb O\r\n")
    assert read_lines(tmp_path / "windows")[0] == ["a O", "b O"]
    assert not caplog.messages


def test_entities_that_end_by_e_also_where_they_are_one_token_are_no_slips() -> None:
    """IOE2."""
    sentences = parse_columns(["a I-X", "b E-X", "c E-Y", "d O", "", "e E-X", "f I-Y", "g E-Y", ""], "file")
    assert not list(iter_misfits(sentences, scheme_of(sentences)))


def test_what_is_no_file_of_tags_is_answered_as_what_is_no_text(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for path, words in ((".", "is a directory"), ("-", "Standard input is not read here"), ("none", "There is no file")):
        with pytest.raises(DataError, match=words):
            read_columns(Path(path))


def test_json_lines_are_refused_with_the_command_that_converts_them(tmp_path: Path) -> None:
    (tmp_path / "train.jsonl").write_text('{"tokens": ["a"], "tags": ["O"]}\n')
    with pytest.raises(
        DataError, match=r"train\.jsonl holds JSON lines: .* stand on a line of their own\. Type  jq -r .*transpose"
    ):
        read_columns(tmp_path / "train.jsonl")


def test_numbers_of_tokens_that_are_read_as_the_tokens_get_a_warning(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (file := tmp_path / "x.conllu").write_text("# text = It rains\n1\tIt\tit\tPRON\n2\train\train\tVERB\n3\t7\t7\tNUM\n")
    read_columns(file)
    assert "Nearly all tokens of" in caplog.text
    assert "type data.token_column=2." in caplog.text
    caplog.clear()
    read_columns(file, token_column=2)
    file.write_text("1980 B-DATE\n1990 B-DATE\n")
    read_columns(file)
    assert not caplog.records, "numbers that are the words, and no column beside them"
