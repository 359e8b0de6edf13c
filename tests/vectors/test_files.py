"""Files of vectors: every format comes back bit by bit, strange but valid files are read, damaged ones refused in words."""

import gzip
import logging
import re
import struct
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lmtrain.errors import DataError, SettingsError
from lmtrain.vectors.files import FORMATS, format_of
from lmtrain.vectors.table import Vectors

SHARED = Path(__file__).parents[3] / "shared" / "data" / "vectors"
needs_shared = pytest.mark.skipif(not SHARED.is_dir(), reason="the vectors of ../shared/data are not there")

WORDS = st.text(st.characters(exclude_categories=["Cs"], exclude_characters=" \t\n\r\0"), min_size=1, max_size=8)


def rows(*words: bytes, size: int = 2, end: bytes = b"") -> bytes:
    """Rows of word2vec's binary format with the numbers 0.5, 1.5, ..."""
    return b"".join(word + b" " + struct.pack(f"<{size}f", *(i + 0.5 for i in range(size))) + end for word in words)


def read(content: bytes, tmp_path: Path, format: str | None = None) -> Vectors:
    path = tmp_path / "given"
    path.write_bytes(content)
    return Vectors.load(path, format=format)


@pytest.mark.parametrize("format", FORMATS)
@given(words=st.lists(WORDS, min_size=1, max_size=6, unique=True), size=st.integers(1, 5), data=st.data())
def test_what_is_written_comes_back_bit_by_bit(
    format: str, words: list[str], size: int, data: st.DataObject, tmp_path_factory: pytest.TempPathFactory
) -> None:
    words[0] = words[0].lstrip("\ufeff") or "x"
    if len(set(words)) < len(words):
        return
    numbers = st.lists(st.floats(width=32, allow_nan=False, allow_infinity=False), min_size=size, max_size=size)
    vectors = Vectors(tuple(words), np.array([data.draw(numbers) for _ in words], np.float32))
    path = tmp_path_factory.getbasetemp() / "written"
    vectors.save(path, format=format)
    again = Vectors.load(path, format=format)  # named: a word may be such that the content tells another format
    assert again.words == vectors.words
    assert np.array_equal(again.matrix, vectors.matrix)


@pytest.mark.parametrize("format", FORMATS)
def test_the_content_tells_the_format_and_two_writings_are_the_same_bytes(format: str, tmp_path: Path) -> None:
    random = np.random.default_rng(1)
    vectors = Vectors(tuple(f"word{i}" for i in range(50)), random.normal(size=(50, 7)).astype(np.float32))
    for name in ("first", "second"):
        vectors.save(tmp_path / name, format=format)
    assert (tmp_path / "first").read_bytes() == (tmp_path / "second").read_bytes()
    (tmp_path / "packed").write_bytes(gzip.compress((tmp_path / "first").read_bytes()))
    for name in ("first", "packed"):
        again = Vectors.load(tmp_path / name)
        assert again.words == vectors.words
        assert np.array_equal(again.matrix, vectors.matrix)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"2 2\ncat 1 2\ndog 3 4\n", ("cat", "dog")),
        (b"cat 1 2\ndog 3 4", ("cat", "dog")),
        (b"2 2\r\ncat 1 2\r\ndog 3 4\r\n", ("cat", "dog")),
        (b"cat 1 2 \r\n\r\ndog  3\t4  \r\n", ("cat", "dog")),
        (b"\xef\xbb\xbf2 2\ncat 1 2\ndog 3 4\n", ("cat", "dog")),
        (b"\xef\xbb\xbfcat 1 2\ndog 3 4\n", ("cat", "dog")),
        (b"2 2\n\ncat 1 2 \n\n\ndog 3 4 \n\n", ("cat", "dog")),
        (b"cat\t1\t2\ndog\t3\t4\n", ("cat", "dog")),
        (b"cat 1 2\n. . . 3 4\n", ("cat", ". . .")),
        (b"new york 1 2\nat a@b.c 3 4\n", ("new york", "at a@b.c")),
        (b"1984 1 2\n7 3 4\n", ("1984", "7")),
        (b"nan 1 2\ninf 3 4\n", ("nan", "inf")),
        ("a\u00a0b 1 2\nc\u0085\u2028d 3 4\n".encode(), ("a\u00a0b", "c\u0085\u2028d")),
        (b"cat 1e0 +2.\ndog 3.0E+00 .4e1\n", ("cat", "dog")),
    ],
    ids=repr,
)
def test_strange_but_valid_texts_are_read(content: bytes, words: tuple[str, ...], tmp_path: Path) -> None:
    vectors = read(content, tmp_path)
    assert vectors.words == words
    assert vectors.matrix.tolist() == [[1, 2], [3, 4]]


@pytest.mark.parametrize("end", [b"", b"\n"])
@pytest.mark.parametrize("size", [1, 2, 50])
def test_words_with_blanks_in_the_binary_format_are_read(end: bytes, size: int, tmp_path: Path) -> None:
    words = [b"the", b"new york", b"of", "käse brot und".encode(), b"x y", b"end"]
    content = b"6 %d\n" % size + rows(*words, size=size, end=end)
    vectors = read(content, tmp_path, "word2vec-binary")
    assert [word.encode() for word in vectors.words] == words
    assert vectors.matrix.tolist() == [[i + 0.5 for i in range(size)]] * 6


def test_the_last_row_of_a_binary_file_may_end_with_a_line_end_or_not(tmp_path: Path) -> None:
    for content in (rows(b"a", b"b", end=b"\n"), rows(b"a", b"b", end=b"\n")[:-1], rows(b"a", b"b") + b"\n"):
        assert read(b"2 2\n" + content, tmp_path).words == ("a", "b")


BAD = {
    "header of more rows": (b"5 2\ncat 1 2\ndog 3 4\n", r"announces 5 words, and 2 are there.*put  2 2  into its first line"),
    "header of fewer rows": (b"1 2\ncat 1 2\ndog 3 4\n", r"announces 1 word, and 2 are there"),
    "binary of more rows": (b"1 2\n" + rows(b"a", b"b"), r"announces 1 word, and 2 are there"),
    "short row": (b"cat 1 2 3\ndog 3 4\n", r"Line 2 of .* has 2 numbers behind its word, instead of 3"),
    "long row": (b"cat 1 2\ndog 3 4 5\n", r"Line 2 of .* has 3 numbers behind its word, instead of 2"),
    "row of one": (b"cat 1 2\ndog 3\n", r"has 1 number behind its word.*Look at it with  sed -n 2p \S+  , and"),
    "short row with header": (b"2 3\ncat 1 2\ndog 3 4\n", r"Line 2 of .* has 2 numbers behind its word, instead of 3"),
    "NaN": (b"cat 1 2\ndog nan 4\n", r"The vector of 'dog' in line 2 of .* holds nan \(its number 1\)"),
    "infinite": (b"2 2\ncat 1 2\ndog 3 -inf\n", r"The vector of 'dog' in line 3 of .* holds -inf \(its number 2\)"),
    "beyond float32": (b"cat 1 1e39\n", r"The vector of 'cat' in line 1 of .* holds inf"),
    "binary NaN": (b"1 1\na " + struct.pack("<f", np.nan), r"The vector of 'a' in row 1 \(offset 4\) of .* holds nan"),
    "invalid UTF-8": (b"cat 1 2\nd\xffg 3 4\n", r"The word in line 2 of .* is not UTF-8: byte 0xFF at offset 9\."),
    "invalid UTF-8, binary": (b"2 2\n" + rows(b"a", b"d\xffg"), r"row 2 \(offset 14\) .* byte 0xFF at offset 15\."),
    "no number": (b"cat 1 2\ndog 3 x\n", r"Line 2 of .* has 'x' where a number is needed"),
    "underscore": (b"cat 1 2\ndog 3 1_0\n", r"Line 2 of .* has '1_0' where a number is needed"),
    "prose": (b"It was a dark night.\n", r"Line 1 of .* ends with 'night\.', which is no number\..*Allowed are files of word"),
    "only words": (b"cat\ndog\n", r"Line 1 of .* has no number behind its word"),
    "empty": (b"", r"holds no word"),
    "blank": (b"\n \n\r\n", r"holds no word"),
    "only a header": (b"0 5\n", r"holds no word"),
    "only a header that lies": (b"3 5\n", r"given holds no word\."),
    "size 0": (b"2 0\ncat\ndog\n", r"gives vectors of size 0"),
    "cut binary": (b"2 2\n" + rows(b"a", b"b")[:-3], r"ends within row 2 of 2: at offset 14 there are 7 bytes more"),
    "too long": (b"2 2\n" + rows(b"a", b"b") + b"\n1234", r"behind the last of its 2 rows: \d bytes at offset"),
    "cut within a word": (b"2 2\n" + rows(b"a") + b"bc", r"ends within row 2 of 2: at offset 14 there are 2 bytes more"),
    "UTF-16": ("cat 1 2\n".encode("utf-16"), r"is UTF-16, not plain text"),
    "zip of something else": (b"PK\x03\x04nothing", r"cannot be read as npz"),
    "damaged gzip": (gzip.compress(b"cat 1 2\n")[:-5], r"cannot be unpacked"),
    "a huge claim": (b"999999999999999 999999999\ncat 1 2\n", r"Line 2 of .* has 2 numbers .* instead of 999999999"),
    "a terminal's escape": (b"\x1b[31mcat 1 nan\n", r"'\\x1b\[31mcat'"),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD)
def test_bad_files_are_refused_in_one_paragraph(name: str, tmp_path: Path) -> None:
    content, words = BAD[name]
    with pytest.raises(DataError) as caught:
        read(content, tmp_path)
    assert re.search(words, str(caught.value)), str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_format_that_is_named_wrongly_is_said(tmp_path: Path) -> None:
    for format, words in {"npz": "is no npz: it begins with 'cat '", "word2vec": "does not begin with the two numbers"}.items():
        with pytest.raises(DataError, match=words):
            read(b"cat 1 2\n", tmp_path, format)


def test_what_is_no_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"There is no file or directory"):
        Vectors.load(tmp_path / "nowhere")
    with pytest.raises(DataError, match=r"is a directory\..*lmtrain\.load_vectors\('"):
        Vectors.load(tmp_path)
    (tmp_path / "file").touch()
    with pytest.raises(SettingsError, match="cannot be made: Not a directory"):
        Vectors(("a",), np.ones((1, 1), np.float32)).save(tmp_path / "file" / "directory")


@pytest.mark.parametrize("format", ["word2vec", "word2vec-binary", "glove"])
def test_a_file_is_packed_as_its_name_says(format: str, tmp_path: Path) -> None:
    vectors = Vectors(("a", "b"), np.arange(4, dtype=np.float32).reshape(2, 2))
    vectors.save(tmp_path / "new" / "file.gz", format=format)
    with gzip.open(tmp_path / "new" / "file.gz") as file:
        assert file.read(1)
    back = Vectors.load(tmp_path / "new" / "file.gz", format=format)
    assert (back.words, back.matrix.tolist()) == (vectors.words, vectors.matrix.tolist())


@pytest.mark.parametrize(
    ("name", "format"),
    [
        ("v.npz", "npz"), ("V.NPZ", "npz"), ("v.bin", "word2vec-binary"), ("v.bin.gz", "word2vec-binary"),
        ("v.bin.vec", "word2vec"), ("v.vec", "word2vec"), ("v.txt.xz", "word2vec"), ("npz", "word2vec"), (".bin", "word2vec"),
    ],
)  # fmt: skip
def test_the_name_says_the_format(name: str, format: str, tmp_path: Path) -> None:
    vectors = Vectors(("a", "b"), np.arange(4, dtype=np.float32).reshape(2, 2))
    vectors.save(tmp_path / name)
    assert format_of(name) == format
    assert Vectors.load(tmp_path / name, format=format).matrix.tolist() == vectors.matrix.tolist()


@pytest.mark.parametrize(
    ("arrays", "words"),
    [
        ({"a": np.ones(2)}, r"holds the arrays a\."),
        ({"words": np.array(["a"]), "matrix": np.ones((2, 2))}, r"words of shape \(1,\) .* a matrix of shape \(2, 2\)"),
        ({"words": np.array([1]), "matrix": np.ones((1, 2))}, r"words of shape"),
        ({"words": np.array(["a"]), "matrix": np.ones(1)}, r"a matrix of shape \(1,\)"),
        ({"words": np.array(["a"]), "matrix": np.full((1, 2), np.nan)}, r"'a' in row 1 .* holds nan"),
        ({"words": np.array(["a"], object), "matrix": np.ones((1, 2))}, r"cannot be read as npz"),
        ({"words": np.zeros(0, "U1"), "matrix": np.ones((0, 2))}, r"holds no word"),
    ],
)  # fmt: skip
def test_an_npz_of_something_else_is_refused(arrays: dict[str, np.ndarray], words: str, tmp_path: Path) -> None:
    np.savez(tmp_path / "other.npz", **arrays)  # type: ignore[arg-type]
    with pytest.raises(DataError) as caught:
        Vectors.load(tmp_path / "other.npz")
    assert re.search(words, str(caught.value)), str(caught.value)


def test_a_word_twice_counts_once_and_a_vector_of_zeros_is_said(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        vectors = read(b"cat 1 2\ncat 3 4\ndog 0 0\ncow -0 0\n", tmp_path)
    assert vectors.words == ("cat", "dog", "cow")
    assert vectors["cat"].tolist() == [1, 2]
    first, second = (record.getMessage() for record in caplog.records)
    assert "'cat' is there twice; the first one is taken" in first
    assert "2 vectors are zero" in second


@pytest.mark.parametrize("word", ["", "new york", "a\nb", "\ud800"])
@pytest.mark.parametrize("format", FORMATS)
def test_a_word_that_a_format_cannot_hold_is_refused_or_comes_back(word: str, format: str, tmp_path: Path) -> None:
    vectors, path = Vectors(("a", word), np.ones((2, 1), np.float32)), tmp_path / "written"
    if format == "npz" and word != "\ud800":
        vectors.save(path, format=format)
        assert Vectors.load(path).words == vectors.words
        return
    with pytest.raises(DataError, match=r"\(number 2\) cannot stand in a file of"):
        vectors.save(path, format=format)
    assert not path.exists()


@needs_shared
def test_the_files_of_others_are_read() -> None:
    glove, binary, russian = (
        Vectors.load(SHARED / name) for name in ("glove.6B.50d.5k.txt", "glove.6B.50d.tasks.bin", "crime-and-punishment.vec")
    )
    assert (glove.matrix.shape, binary.matrix.shape, russian.matrix.shape) == ((5000, 50), (9534, 50), (291, 5))
    assert russian.words[:3] == ("и", "в", "на")
    assert np.abs(glove["king"] - binary["king"]).max() < 6e-5


@pytest.mark.parametrize("format", FORMATS)
@given(data=st.data())
def test_a_damaged_file_is_read_or_refused_and_never_more(
    format: str, data: st.DataObject, tmp_path_factory: pytest.TempPathFactory
) -> None:
    path = tmp_path_factory.getbasetemp() / "damaged"
    Vectors(("cat", "dög", "sea"), np.array([[1, 2], [-3, 0.25], [1e-9, 7]], np.float32)).save(path, format=format)
    content = bytearray(path.read_bytes())
    for _ in range(data.draw(st.integers(1, 4))):
        place = data.draw(st.integers(0, len(content)))
        piece = data.draw(st.binary(max_size=4) | st.sampled_from([b"\n", b" ", b"nan", b"9999999999", b"\xef\xbb\xbf"]))
        content[place : place + data.draw(st.integers(0, 5))] = piece
    path.write_bytes(content)
    for named in (None, format):
        try:
            vectors = Vectors.load(path, format=named)
        except DataError as error:
            assert "\n" not in str(error)  # noqa: PT017 (only what is refused is to be a paragraph)
        else:
            assert np.isfinite(vectors.matrix).all()
            assert len(set(vectors.words)) == len(vectors) > 0
