"""Text of others: what a terminal is shown of it, and that a shell reads a quoted word as it was, whatever a file is called."""

import os
import pwd
import subprocess
import unicodedata
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lmtrain.application import Sources, check_overrides, register_schemas
from lmtrain.application.composing import initialised
from lmtrain.application.overrides import as_meant, resumed_run
from lmtrain.settings.quoting import typed
from lmtrain.shell import OBEYED, expanded, num_columns, padded, printable, quoted_for_shell, shown

PIECES = [
    "${oc.env:HOME}", "${", "}", "\\", "'", '"', "\n", "\t", "$", "$(id)", "`id`", "{a,b}", "*", "~", "~root", "-", "/", "123",
    "1e5", "true", "null", "None", "nan", "inf", "1_0", ".", "..", "%", "%s", "\x1b[31m", "\x7f", "\x9b", "\u202e", "\u200b",
    "\u2028", "é", "ελ", "क", "\udce4", "\udcff", " ", ",", "=", "#", "!", ":", "@", "&", ";", "|", "[", "]", "(", ")", "a",
    "\\${", "\\\\${", "${a:${b}}",
]  # fmt: skip
ANY = st.one_of(st.sampled_from(PIECES), st.characters(exclude_characters="\0", exclude_categories=["Cs"]))
NAMES = st.lists(ANY, min_size=1, max_size=8).map("".join)
QUOTED = ("data.path", "data.cache_dir", "resume", "hydra.run.dir")


def read_by_the_shell(word: str, shell: str = "sh") -> str:
    """The one argument that a shell makes of `word`."""
    done = subprocess.run([shell, "-c", b"printf '%s\\0' " + os.fsencode(word)], capture_output=True, check=True)
    assert done.stdout.count(b"\0") == 1, "one word"
    return os.fsdecode(done.stdout[:-1])


def read_by_the_settings(argument: str) -> Path:
    """The path that a training takes from an argument of its command line."""
    register_schemas()
    (override,) = as_meant([argument])
    key = override.partition("=")[0]
    value: Any
    if key == "resume":
        value = resumed_run([override])
    elif key == "hydra.run.dir":
        with initialised(Sources()) as started:
            value = started.compose_config("config", [override], run_mode=None, with_log_configuration=False).hydra.run.dir
    else:
        value = check_overrides(["data=text", "data.path=x", override])["data"][key.partition(".")[2]]
    assert isinstance(value, str)
    return Path(os.path.abspath(Path(value) if key.startswith("hydra.") else expanded(value)))


def check_names(name: str) -> None:
    word = quoted_for_shell(name)
    assert read_by_the_shell(word) == name
    assert [
        c for c in word.removesuffix("'").rstrip("\n") if unicodedata.category(c) in OBEYED and c not in "\u200c\u200d"
    ] == []
    for key in QUOTED:
        argument = read_by_the_shell(typed(key, shown(name)))
        assert read_by_the_settings(argument) == Path(os.path.abspath(name)), (key, argument)


@settings(max_examples=10)
@given(NAMES)
def test_a_name_is_typed_so_that_shell_and_settings_read_it_as_it_is(name: str) -> None:
    check_names(name)


@pytest.mark.slow
@settings(max_examples=500, derandomize=False)
@given(NAMES)
def test_five_hundred_names_are_typed_so_that_shell_and_settings_read_them_as_they_are(name: str) -> None:
    check_names(name)


@given(NAMES)
def test_nothing_that_a_terminal_obeys_is_shown(text: str) -> None:
    shown_text = printable(text)
    assert not any(unicodedata.category(c) in OBEYED for c in shown_text if c not in "\n\t\u200c\u200d")
    assert printable(shown_text) == shown_text


def test_what_a_terminal_obeys_is_shown_as_escape_sequences() -> None:
    assert printable("a\x1b[31m\u202eb\udce4\r\n\tक\u200d") == "a\\x1b[31m\\u202eb\\udce4\\r\n\tक\u200d"
    assert printable("abcdef", 3) == "abc... (3 more characters)"


def test_a_home_that_is_not_known_makes_a_name_of_the_tilde(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    assert expanded("~/a") == tmp_path / "a"
    assert expanded("~nosuchuser/a") == Path("~nosuchuser/a")
    assert expanded("a/~") == Path("a/~")
    assert shown("~nosuchuser") == "./~nosuchuser"
    assert shown("-x") == "./-x"


@pytest.mark.parametrize(
    ("text", "columns"), [("cafe", 4), ("cafe\u0301", 4), ("日本", 4), ("क्षि", 3), ("\u0e01\u0e31", 1), ("", 0)]
)
def test_a_text_is_padded_to_columns_of_a_terminal(text: str, columns: int) -> None:
    assert num_columns(text) == columns
    assert padded(text, 6) == text + " " * (6 - columns)
    assert padded(text, 6, right=True) == " " * (6 - columns) + text
    assert padded(text, 0) == text


def test_an_empty_home_is_as_one_that_is_not_set(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("HOME")
    expected = expanded("~/x")
    monkeypatch.setenv("HOME", "")
    assert expanded("~/x") == expected
    assert expanded("~") == expected.parent
    assert expanded("x/~") == Path("x/~")
    monkeypatch.setattr(pwd, "getpwuid", {}.__getitem__)
    assert expanded("~/x") == Path("~/x")
