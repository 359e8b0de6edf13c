"""Which files a text consists of, and in which order they are read.

    FILE                      one text, to be cut into splits
    DIRECTORY                 train, valid and test, each a file (train.txt) or a directory of shards (train/*.txt) ...
                              ... or shards that are one text together, to be cut into splits
    part-*.txt                the files that fit, as one text;  several paths, one per line: the same

A shard ends in .txt, .tokens or .jsonl, which may be packed (.gz, .bz2, .xz, .zst). Shards are read in the order of their
names, where numbers count as numbers: part-2 comes before part-10. Paths on several lines are read as they are listed.
"""

from __future__ import annotations

import glob
import re
from pathlib import Path

from lmtrain.data.files import listing, missing, unreadable
from lmtrain.errors import DataError
from lmtrain.shell import expanded, printable

NAMES = ("train", "valid", "test")
ENDINGS = (".txt", ".tokens", ".jsonl")
PACKERS = ("", ".gz", ".bz2", ".xz", ".zst")
SUFFIXES = tuple(ending + packer for packer in PACKERS for ending in ENDINGS)
RECORDS = tuple(f".jsonl{packer}" for packer in PACKERS)

Sources = list[list[Path]]  # the files of one text, or those of train, valid and test


def find_sources(path: str | Path) -> Sources:
    """Returns the files at `path`: one list where they have to be cut into splits, else three. Raises DataError if none are
    there."""
    if not str(path).strip():
        raise DataError("No text was given.", "data=text needs a file or a directory.", "Type data.path=PATH.")
    given = [line.strip() for line in str(path).split("\n") if line.strip()]
    if len(given) > 1:
        return [_different([file for line in given for file in _files_of(line)])]
    place = expanded(given[0] if "\n" in str(path) else path)
    if place.is_dir():
        return _sources_in(place)
    return [_files_of(str(place))]


def has_splits(path: str) -> bool:
    """Tells whether `path` has train, valid and test of its own; also of a directory in which no text can be found."""
    try:
        return len(find_sources(path)) > 1
    except DataError:
        return expanded(path).is_dir()


def has_records(path: str) -> bool:
    """Tells whether any file at `path` holds records whose text is in a field; also where no text can be found."""
    try:
        return any(file.name.endswith(RECORDS) for files in find_sources(path) for file in files)
    except DataError:
        return True


def sort_key(path: Path) -> tuple[list[tuple[int, int, str]], str]:
    """Orders names so that the numbers in them count as numbers."""
    parts = re.findall(r"[0-9]+|[^0-9]+", path.name)
    return [(0, int(part), "") if part[0] in "0123456789" else (1, 0, part) for part in parts], path.name


def _files_of(given: str) -> list[Path]:
    """One file as it is named, the shards of a directory, or the files that fit a pattern."""
    path = expanded(given)
    if path.is_dir():
        if found := _shards(path):
            return found
        raise DataError(
            f"The directory {path} holds no text; it holds {listing(_entries(path))}.",
            f"Texts end in {', '.join(ENDINGS)}, packed or not.",
            "Rename the files, or list them one by one.",
        )
    if path.exists() or path.is_symlink() or not glob.has_magic(given):
        return [path]  # reading it says what is wrong with it, if anything is
    found = sorted(
        (Path(name) for name in glob.glob(str(path), recursive=True)), key=lambda file: (str(file.parent), sort_key(file))
    )
    if files := [file for file in found if not file.is_dir()]:
        return files
    raise DataError(
        f"No file fits the pattern {printable(given)}.",
        "In a pattern, * stands for any characters of a name, ? for one and [ab] for a or b; ** for any directories.",
        "Type  ls  with the same pattern to see what is there, and quote it where your shell asks for that.",
    )


def _different(files: list[Path]) -> list[Path]:
    seen: set[Path] = set()
    for file in files:
        if (resolved := file.absolute()) in seen:
            raise DataError(f"{file} is listed twice.", "Each file of a text is read once.", "Leave one of the two out.")
        seen.add(resolved)
    return files


def _entries(path: Path) -> list[str]:
    try:
        return sorted(entry.name for entry in path.iterdir())
    except (OSError, ValueError) as error:
        if isinstance(error, FileNotFoundError):
            raise missing(path) from None
        raise unreadable(path, error) from None


def _shards(path: Path) -> list[Path]:
    """Returns the texts in a directory; hidden files and others are left out."""
    named = [path / name for name in _entries(path) if name.endswith(SUFFIXES) and not name.startswith(".")]
    return sorted((file for file in named if not file.is_dir()), key=sort_key)


def left_out(path: str | Path, sources: Sources) -> list[str]:
    """Returns the names of packed files in the directory at `path`, or in one of its own, that are no shards by their names."""
    place = expanded(path) if "\n" not in str(path) else None
    places = {file.parent for split in sources for file in split} if place is not None and place.is_dir() else set()
    names = sorted(entry for directory in places for entry in _entries(directory) if not entry.startswith("."))
    return [name for name in names if name.endswith(PACKERS[1:]) and not name.endswith(SUFFIXES)]


def _sources_in(path: Path) -> Sources:
    names = _entries(path)
    found = [[path / (name + suffix) for suffix in ("", *SUFFIXES) if name + suffix in names] for name in NAMES]
    found = [[entry for entry in entries if entry.suffix or entry.is_dir()] for entries in found]
    if all(len(entries) == 1 for entries in found):
        return [_files_of(str(entries[0])) if entries[0].is_dir() else entries for entries in found]
    is_run = {"settings.json", "checkpoints"} <= set(names)  # whose metrics.jsonl is no text
    if not any(found) and not is_run and (shards := _shards(path)):
        return [shards]
    raise _wrong_directory(path, names, found)


def _wrong_directory(path: Path, names: list[str], found: Sources) -> DataError:
    lacking = [name for name, files in zip(NAMES, found, strict=True) if not files]
    twice = [file.name for files in found if len(files) > 1 for file in files]
    problems = [f"lacks {', '.join(lacking)}"] * bool(lacking) + [f"has both {' and '.join(twice)}"] * bool(twice)
    removal = "Remove all but one of each" if twice else ""
    renaming = "Rename the files (for example to train.txt, valid.txt, test.txt)" if lacking else ""
    remedy = ". ".join(filter(None, (removal, renaming)))
    return DataError(
        f"The directory {path} {' and '.join(problems)}; it holds {listing(names)}.",
        "Allowed is a directory with one file each for train, valid and test, ending in .txt or .tokens.",
        f"{remedy}, or give a single file: data.path=FILE.",
    )
