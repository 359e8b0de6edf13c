"""Text that is not ours, on its way to a terminal or into a command: what is shown, what is typed, and what `~` means.

File names, vocabularies, ARPA files and checkpoints hold text that somebody else chose. A terminal obeys some characters of
it, and a shell obeys others. So a message shows it as `printable` gives it, and a command to type holds it as
`quoted_for_shell` gives it.
"""

from __future__ import annotations

import os
import pwd
import shlex
import unicodedata
from pathlib import Path

MAX_MESSAGE = 20_000  # characters; the longest list of settings that are wrong is shorter
JOINERS = "\u200c\u200d"  # format characters that Persian, Hindi and many emoji cannot be written without
OBEYED = {"Cc", "Cf", "Cs", "Zl", "Zp"}
"""Unicode categories of what is not seen but obeyed: control and format characters (such as those that turn the direction of
text around), halves of characters (bytes of a name that is not UTF-8), separators of lines and paragraphs."""


def printable(text: str, most: int | None = None) -> str:
    r"""`text` with every character that a terminal obeys as an escape sequence such as \x1b; line ends and tabs stay.

    What is longer than `most` characters is cut.
    """
    if most is not None and len(text) > most:
        text = f"{text[:most]}... ({len(text) - most:,} more characters)"
    return text if text.isascii() and text.isprintable() else "".join(map(_printable, text))


def one_line(text: str) -> str:
    r"""`text` of others within a sentence of ours: as `printable`, with its line ends as \n, so that it forges no line."""
    return printable(text).replace("\n", "\\n")


def num_columns(text: str) -> int:
    """How many columns of a terminal a text takes: a wide character two, a combining or a format character none."""
    return len(text) if text.isascii() else sum(map(_num_columns, text))


def padded(text: str, width: int, *, right: bool = False) -> str:
    """`text` with the blanks that fill `width` columns behind it, or `right`: before it."""
    blanks = " " * (width - num_columns(text))
    return blanks + text if right else text + blanks


def _num_columns(character: str) -> int:
    is_drawn_over_others = unicodedata.category(character) in ("Mn", "Me", "Cf")
    return 0 if is_drawn_over_others else 2 if unicodedata.east_asian_width(character) in "WF" else 1


def _printable(character: str) -> str:
    if character in "\n\t" or not _is_obeyed(character):
        return character
    return character.encode("unicode_escape", "surrogatepass").decode("ascii")


def _is_obeyed(character: str) -> bool:
    return unicodedata.category(character) in OBEYED and character not in JOINERS


def quoted_for_shell(text: str) -> str:
    r"""One word of a command that any POSIX shell reads as `text`, in characters that a terminal shows as they are.

    Where `text` has others, the word lets `printf` make them from their bytes: "$(printf 'B\344r')".
    """
    if not any(map(_is_obeyed, text)):
        return shlex.quote(text)
    line_ends = text[len(text.rstrip("\n")) :]  # which $(...) takes away
    written = "".join(map(_for_printf, text[: len(text) - len(line_ends)]))
    return f"\"$(printf '{written}')\"" + (shlex.quote(line_ends) if line_ends else "")


def _for_printf(character: str) -> str:
    if _is_obeyed(character) or character in "-'\\%":
        return "".join(f"\\{byte:03o}" for byte in os.fsencode(character))
    return character


def expanded(path: str | Path) -> Path:
    """`path` with a leading `~` or `~user` replaced by that home, as a shell does it: where there is none, it is a name."""
    try:
        return at_home(path)
    except RuntimeError:
        return Path(path)


def at_home(path: str | Path) -> Path:
    """The same, but raises RuntimeError where there is no such home. An empty HOME is as one that is not set."""
    first, *rest = Path(path).parts or ("",)
    if first != "~" or os.environ.get("HOME") != "":
        return Path(path).expanduser()
    try:
        return Path(pwd.getpwuid(os.getuid()).pw_dir, *rest)
    except KeyError:
        raise RuntimeError("Could not determine home directory.") from None


def shown(path: str | Path) -> str:
    """`path` as short as it can be typed from here; neither `~` nor an option for whoever reads it."""
    relative = os.path.relpath(path)
    text = str(path) if relative.startswith("..") else relative
    return f"./{text}" if text.startswith(("~", "-")) else text
