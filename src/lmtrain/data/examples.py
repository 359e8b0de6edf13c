"""Files of examples with their answers: finds the file of each split, and reads lines in the encoding that was given."""

from __future__ import annotations

import codecs
import hashlib
import json
import logging
import re
from pathlib import Path

from lmtrain.data.files import listing, unreadable
from lmtrain.data.text import BEGINNING, check_beginning, is_binary, note_on_returns
from lmtrain.errors import DataError
from lmtrain.shell import expanded, one_line, quoted_for_shell

log = logging.getLogger("lmtrain")

NAMES = {"train": "train", "valid": "valid|dev", "test": "test"}
"""What the name of a split's file contains, in any case."""


def find_splits(path: str, files: dict[str, str], *, or_else: str = "") -> dict[str, Path]:
    """Returns the file of each split: those that `files` names, or the one in the directory `path` whose name says which it is.

    There may be no test split. Raises DataError if a split is missing or where several files could be it, and for a path of
    one file; `or_else` is what else can be done with that.
    """
    if not path:
        return {split: expanded(file) for split, file in files.items() if file}
    directory = expanded(path)
    try:
        if directory.is_file():
            raise DataError(
                f"{one_line(path)} is one file.",
                "A training needs one part to learn from and another to validate on.",
                f"Type {or_else}data.train=FILE data.valid=FILE, and data.test=FILE where there is one.",
            )
        names = sorted(entry.name for entry in directory.iterdir() if entry.is_file() and not entry.name.startswith("."))
    except (OSError, ValueError) as error:
        raise unreadable(directory, error) from None
    found = {
        split: [name for name in names if re.search(pattern, name, re.IGNORECASE) and not name.upper().startswith("README")]
        for split, pattern in NAMES.items()
    }
    unclear = [split for split, matches in found.items() if len(matches) > 1 or (not matches and split != "test")]
    if unclear:
        raise DataError(
            f"The directory {one_line(str(directory))} does not say which file is {' and which is '.join(unclear)}; it holds "
            f"{listing(names)}.",
            "Exactly one name has train in it, one valid or dev, and at most one test.",
            "Name the files instead: data.train=FILE data.valid=FILE data.test=FILE.",
        )
    return {split: directory / matches[0] for split, matches in found.items() if matches}


def read_lines(path: Path, encoding: str = "utf-8", *, typed: str | None = "data.encoding=") -> tuple[list[str], str]:
    r"""Returns the lines of a file, without their ends, and the SHA-256 of its bytes. Only "\n" (or "\r\n") ends a line.

    `typed` is what a user types before the encoding; None where the encoding is that of the data of a run.

    Raises DataError for a file that cannot be read, or that is of another encoding.
    """
    try:
        with open(path, "rb") as file:
            data = file.read()
    except (OSError, ValueError) as error:
        raise unreadable(path, error) from error
    check_beginning(path, data[:BEGINNING], encoding)
    digest = hashlib.sha256(data).hexdigest()
    try:
        text = data.removeprefix(codecs.BOM_UTF8).decode(encoding) if is_utf8(encoding) else data.decode(encoding)
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        place = f"byte 0x{data[error.start]:02x} at offset {error.start:,} (line {line:,})"
        found = f"{one_line(str(path))} is not {encoding}: {place}."
        if is_binary(data):
            raise DataError(
                found, "This is hardly text in any encoding: it is full of control characters.", "Give a text file."
            ) from None
        if typed is None:
            convert = f"iconv -f LATIN1 -t {codecs.lookup(encoding).name.upper()} {quoted_for_shell(str(path))}"
            raise DataError(
                found,
                f"A file is read as the data were that the run learnt from: as {encoding}.",
                f"Type  {convert} > converted.txt  (or the encoding that it has) and give the result.",
            ) from None
        raise DataError(
            found,
            f"The encoding of the files is what {typed.strip(' =')} says, utf-8 by default.",
            f"Type {typed}latin-1 for an older Western European text, or convert the files to UTF-8.",
        ) from None
    lines = [line.removesuffix("\r") for line in text.removesuffix("\n").split("\n")] if text else []
    if num_returns := text.count("\r") - text.count("\r\n"):
        log.warning("%s", note_on_returns(path, num_returns, has_lines="\n" in text))
    return lines, digest


def refuse_records(line: str, name: str, allowed: str, chosen: str) -> None:
    """Raises DataError where the first line of a file is a record of JSON lines. `allowed` says what is read instead, and
    `chosen` is what jq takes to write it."""
    try:
        record = json.loads(line) if line.lstrip().startswith("{") else None
    except (ValueError, RecursionError):
        return
    if record:
        file = quoted_for_shell(name) if Path(name).is_file() else "FILE"
        raise DataError(
            f"{one_line(name)} holds JSON lines: it begins with {one_line(line[:80])!r}.",
            f"JSON lines are read by data=text alone. {allowed}",
            f"Type  jq -r {quoted_for_shell(chosen)} {file} > converted.txt  (with your names) and give the result.",
        )


def is_utf8(encoding: str) -> bool:
    """Tells whether an encoding is UTF-8, by whatever name. Raises LookupError for one that is unknown."""
    return codecs.lookup(encoding).name == "utf-8"
