import gzip
import io
import logging
import os
import re
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lmtrain.data import text
from lmtrain.data.files import STANDARD_INPUT, missing
from lmtrain.data.text import iter_blocks, iter_checked, iter_decoded, iter_text, scan, warned
from lmtrain.errors import DataError

fixed = settings(derandomize=True, deadline=None, database=None)
pieces = st.lists(st.sampled_from(["a", "é", "😀", "\r\n", "\r", "\n", "\ufeff", "\0", "\x85", "\u2028"])).map("".join)


@pytest.fixture
def file(tmp_path):
    def write(data, name="text.txt"):
        (tmp_path / name).write_bytes(data)
        return tmp_path / name

    return write


def read(path):
    return "".join(iter_text(path))


@fixed
@given(pieces, st.integers(1, 9))
def test_text_is_the_same_whatever_the_size_of_blocks(tmp_path_factory, content, block_bytes):
    path = tmp_path_factory.mktemp("text") / "text.txt"
    path.write_bytes(content.encode())
    expected = content.removeprefix("\ufeff").replace("\r\n", "\n")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(text, "BLOCK_BYTES", block_bytes)
        assert read(path) == expected
        facts = scan(path)
        assert (facts.num_chars, facts.num_bytes) == (len(expected), len(expected.encode()))
        assert [block.data for block in iter_blocks(path)] == [block.encode() for block in iter_text(path)]


def test_windows_line_ends_and_a_byte_order_mark_change_nothing(file):
    plain = scan(file("é\nb\n".encode()))
    windows = scan(file("\ufeffé\r\nb\r\n".encode(), "windows.txt"))
    assert plain.sha256 == windows.sha256


def test_only_the_first_byte_order_mark_is_dropped(file):
    assert read(file("\ufeff\ufeffa\ufeff".encode())) == "\ufeffa\ufeff"


@pytest.mark.parametrize("block_bytes", [1, 2, 3, 1 << 20])
@pytest.mark.parametrize(
    ("data", "said"),
    [
        (b"a\nb\r\nc\xff", "is not UTF-8: byte 0xFF at offset 6, in line 3."),
        (b"\xef\xbb\xbfa\n\xc3(", "is not UTF-8: byte 0xC3 at offset 5, in line 2."),
        (b"ab\xe2\x82", "is not UTF-8: byte 0xE2 at offset 2, in line 1."),
        (b"\xed\xa0\x80", "is not UTF-8: byte 0xED at offset 0, in line 1."),
    ],
)
def test_invalid_utf8_is_refused_with_its_place(file, monkeypatch, data, said, block_bytes):
    monkeypatch.setattr(text, "BLOCK_BYTES", block_bytes)
    path = file(data)
    with pytest.raises(DataError) as caught:
        read(path)
    assert f"{path} {said}" in str(caught.value)
    assert f"iconv -f LATIN1 -t UTF-8 {path} > text.txt" in str(caught.value)


@pytest.mark.parametrize(
    ("data", "said"),
    [
        ("a".encode("utf-16"), "is UTF-16, not plain text. Allowed is text in UTF-8. Type  iconv -f UTF-16"),
        (b"\xfe\xff\0a", "is UTF-16"),
        ("a".encode("utf-32"), "is UTF-32"),
        (b"\0\0\xfe\xff\0\0\0a", "is UTF-32"),
        (gzip.compress(b"text", mtime=0), "is gzip, not plain text. Allowed is text in UTF-8. Type  gzip -dc"),
        (b"PK\x03\x04rest", "is a zip archive"),
        (b"BZh91AY&SY", "is bzip2"),
        (b"\x28\xb5\x2f\xfd rest", "is zstandard"),
        (b"\xfd7zXZ\0rest", "is xz"),
        (
            b"a.txt".ljust(257, b"\0") + b"ustar\x0000" + bytes(300),
            "is a tar archive, not plain text. Allowed is text in UTF-8. Type  tar -xf",
        ),
        (
            ("to be or not to be\n" * 3).encode("utf-16-le"),
            "is UTF-16, not plain text. Allowed is text in UTF-8. Type  iconv -f UTF-16LE",
        ),
        (("to be or not to be\n" * 3).encode("utf-16-be"), "is UTF-16"),
    ],
)
def test_what_is_no_plain_text_is_recognised(file, data, said):
    with pytest.raises(DataError, match=re.escape(said)):
        read(file(data))


def test_printed_commands_can_be_typed(file):
    with pytest.raises(DataError, match=r"UTF-8 '[^']*my text\.txt' > text\.txt"):
        read(file(b"\xff", "my text.txt"))
    with pytest.raises(DataError, match=r"standard input is not UTF-8.* Type  iconv -f LATIN1 -t UTF-8 - > text\.txt"):
        list(iter_decoded(io.BytesIO(b"\xff"), STANDARD_INPUT))


def test_a_text_that_begins_like_an_archive_in_letters_is_text(file):
    assert read(file(b"BZh is a name. PK too.")) == "BZh is a name. PK too."


def test_control_characters_are_kept_and_counted_in_a_warning(file, caplog):
    path = file(b"a\0b\x1b\tc\f\n\0")
    assert read(path) == "a\0b\x1b\tc\f\n\0"
    warned(scan(path))
    assert caplog.messages == [
        f"{path} contains 3 control characters (NUL and the like), kept like any other character. Is it text?"
    ]


def test_lone_carriage_returns_are_kept_and_counted_in_a_warning(file, caplog):
    path = file(b"a\rb\r\nc\r")
    assert read(path) == "a\rb\nc\r"
    warned(scan(path))
    assert caplog.messages == [f"{path} contains 2 carriage returns without a line feed, where no line ends."]


def test_one_of_a_kind_is_counted_as_one(file, caplog):
    path = file(b"a\rb\0")
    warned(scan(path))
    assert caplog.messages == [
        f"{path} contains 1 control character (NUL and the like), kept like any other character. Is it text?",
        f"{path} contains 1 carriage return without a line feed, where no line ends. So all of it is one line. To end lines "
        rf"there, type  tr '\r' '\n' < {path} > lines.txt  and give the result.",
    ]


@pytest.mark.parametrize(
    ("typed", "meant"), [("klien.txt", "klein.txt"), ("text", "text.txt"), ("texd.txt", "text.txt"), ("nix.txt", None)]
)
def test_a_name_that_is_missing_is_taken_for_a_near_one_and_for_no_other(file, typed, meant):
    for name in ("klein.txt", "text.gz", "text.txt"):
        path = file(b"a", name)
    said = str(missing(path.with_name(typed)))
    assert f"Did you mean {path.with_name(meant)}?" in said if meant else "It holds klein.txt, text.gz, text.txt." in said


def test_ordinary_text_gives_no_warning(file, caplog):
    caplog.set_level(logging.WARNING)
    scan(file("tab\tform\ffeed\r\né\u2028\x85\n".encode()))
    assert caplog.messages == []


# ---- paths


def test_a_missing_path_says_where_it_was_looked_for_and_what_is_there(tmp_path, monkeypatch):
    (tmp_path / "books").mkdir()
    (tmp_path / "books" / "novel.txt").write_text("x")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(DataError) as caught:
        read(text.Path("books/old/poem.txt"))
    assert str(caught.value) == (
        f"There is no file or directory {tmp_path}/books/old/poem.txt. "
        f"The nearest directory that exists is {tmp_path}/books. It holds novel.txt. "
        f"Relative paths start at the current directory, {tmp_path}. Give a path that exists."
    )
    with pytest.raises(DataError, match=re.escape(f"Did you mean {tmp_path}/books/novel.txt?")):
        read(text.Path("books/novels.txt"))


def test_a_dangling_link_is_called_one(tmp_path):
    (tmp_path / "link.txt").symlink_to("gone.txt")
    with pytest.raises(DataError, match=re.escape(f"{tmp_path}/link.txt (a symbolic link to nothing).")) as refused:
        read(tmp_path / "link.txt")
    assert "Did you mean" not in str(refused.value)


def test_a_file_used_as_a_directory_is_missing(file):
    with pytest.raises(DataError, match="There is no file or directory"):
        read(file(b"x") / "y.txt")


def test_a_pipe_is_refused_without_waiting_for_it(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(DataError, match=re.escape("pipe is a pipe. Text is read from regular files")):
        read(tmp_path / "pipe")


def test_a_device_and_a_directory_are_refused(tmp_path):
    with pytest.raises(DataError, match=re.escape("/dev/null is a device.")):
        read(text.Path("/dev/null"))
    with pytest.raises(DataError, match="is a directory"):
        read(tmp_path)


def test_a_file_without_permission_says_so(file, monkeypatch):
    def refuse(*_):
        raise PermissionError(13, "Permission denied")

    path = file(b"x")
    monkeypatch.setattr(text.Path, "open", refuse)
    with pytest.raises(DataError, match=re.escape(f"{path} cannot be read: Permission denied.")) as caught:
        read(path)
    assert f"chmod u+r {path}" in caught.value.remedy


@pytest.mark.parametrize("name", ["a\0b", "x" * 5000])
def test_an_impossible_name_is_an_error_in_words(tmp_path, name):
    with pytest.raises(DataError, match=r"cannot be read|There is no file"):
        read(tmp_path / name)


def test_a_text_that_changes_between_two_readings_is_refused_whatever_its_size_and_time(file):
    path = file(b"a b c")
    facts, before = scan(path), path.stat()
    os.utime(path, ns=(1, 1))
    assert "".join(iter_checked(facts)) == "a b c", "the time alone tells nothing"
    path.write_bytes(b"a b d")
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    with pytest.raises(DataError, match="was changed while it was being read"):
        list(iter_checked(facts))


def test_what_is_no_text_gets_no_advice_on_encodings(tmp_path: Path) -> None:
    (tmp_path / "noise").write_bytes(b"ab\n" + bytes(range(256)) * 4)
    with pytest.raises(DataError, match="hardly text: it is full of control characters") as error:
        list(iter_text(tmp_path / "noise"))
    assert "iconv" not in str(error.value)
    (tmp_path / "latin").write_bytes("caf\xe9\n".encode("latin-1") * 100)
    with pytest.raises(DataError, match="Type  iconv -f LATIN1"):
        list(iter_text(tmp_path / "latin"))
