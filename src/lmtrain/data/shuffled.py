"""A text whose lines or documents are in random order, cut into splits, for texts whose order carries the distribution.

A sorted list of words, for example, has its test words from the end of the alphabet. `shuffled` writes train.txt, valid.txt and
test.txt into the cache, from where they are read like any other text. A document is a record of a .jsonl, or else what blank
lines separate; no line or document is cut.

Memory holds one bucket: each unit goes to a bucket that is drawn for it, and each bucket is then shuffled. So every order is
equally likely.
"""

from __future__ import annotations

import hashlib
import json
import random
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from fractions import Fraction
from pathlib import Path
from typing import BinaryIO, Literal

from lmtrain.data.cache import new_file
from lmtrain.data.sources import NAMES, Sources
from lmtrain.data.text import IS_JSONL, TextFacts, iter_checked, iter_records
from lmtrain.errors import DataError, ResourceError
from lmtrain.progress import watched

Units = Literal["shuffled_lines", "shuffled_documents"]

FORMAT = 1
BUCKET_BYTES = 1 << 24
MAX_BUCKETS = 512  # files that are open at a time


def shuffled(facts: Sequence[TextFacts], units: Units, seed: int, fractions: Sequence[str], cache_dir: Path) -> Sources:
    """Returns the files of the splits of one text, written if they are not there."""
    recipe = [FORMAT, units, seed, list(fractions), [[fact.sha256, bool(IS_JSONL.search(fact.path.name))] for fact in facts]]
    name = hashlib.sha256(json.dumps(recipe).encode()).hexdigest()[:32]
    directory = cache_dir / f"shuffled-{name}"
    valid, test = map(Fraction, fractions)
    names = NAMES if test else NAMES[:2]
    if not _is_whole(directory, names):
        _write(directory, facts, units, random.Random(f"{units} {seed}"), (1 - valid - test, 1 - test), names)
    return [[directory / f"{split}.txt"] for split in names]


def iter_units(facts: TextFacts, units: Units) -> Iterator[str]:
    """Yields the lines or documents of a file, each with the line end, or the blank line, behind it."""
    if units == "shuffled_documents" and IS_JSONL.search(facts.path.name):
        yield from (text if text.endswith("\n") else text + "\n" for text in iter_records(facts.path, facts.field))
        return
    document: list[str] = []
    for line in _lines(facts):
        if units == "shuffled_lines":
            yield line
        elif line.strip():
            document.append(line)
        elif document:
            yield "".join([*document, "\n"])
            document.clear()
    if document:
        yield "".join([*document, "\n"])


def _lines(facts: TextFacts) -> Iterator[str]:
    rest: list[str] = []
    for block in iter_checked(facts, "Shuffling"):
        lines = block.split("\n")
        rest.append(lines[0])
        if len(lines) > 1:
            yield "".join(rest) + "\n"
            yield from (line + "\n" for line in lines[1:-1])
            rest = [lines[-1]]
    if last := "".join(rest):
        yield last + "\n"


def _write(
    directory: Path, facts: Sequence[TextFacts], units: Units, drawn: random.Random, shares: Sequence[Fraction],
    names: Sequence[str],
) -> None:  # fmt: skip
    num_buckets = max(1, min(MAX_BUCKETS, -(-sum(fact.num_bytes for fact in facts) // BUCKET_BYTES)))
    sizes = [0] * num_buckets
    checksums: dict[str, str] = {}
    num_units = 0
    try:
        directory.parent.mkdir(parents=True, exist_ok=True)
        with ExitStack() as stack:
            files = [stack.enter_context(tempfile.TemporaryFile(dir=directory.parent)) for _ in range(num_buckets)]
            for fact in facts:
                for unit in iter_units(fact, units):
                    bucket = drawn.randrange(num_buckets)
                    data = unit.encode()
                    files[bucket].write(len(data).to_bytes(8, "little") + data)
                    sizes[bucket] += len(data)
                    num_units += 1
            if num_units < len(names):
                noun = units.removeprefix("shuffled_")
                raise DataError(
                    f"The text has {num_units} of the {noun} that data.split={units} deals out to {len(names)} splits.",
                    f"Each split needs at least one of the {noun}."
                    + " Blank lines separate documents." * (noun == "documents"),
                    "Give more text, or type data.split=contiguous.",
                )
            shuffled_units = _shuffled(files, drawn, sum(sizes))
            _deal(directory, shuffled_units, [int(sum(sizes) * share) for share in shares], num_units, names, checksums)
        with new_file(directory / "sha256.json") as file:
            file.write(json.dumps(checksums).encode())
    except OSError as error:
        raise ResourceError(
            f"{directory} cannot be written: {error.strerror or error}.", "A shuffled text needs its size twice in the cache.",
            "Type data.cache_dir=DIRECTORY with one that has room.",
        ) from None  # fmt: skip


def _shuffled(files: Sequence[BinaryIO], drawn: random.Random, size: int) -> Iterator[bytes]:
    with watched("Writing the shuffled text", size, "B") as advance:
        for file in files:
            file.seek(0)
            found = []
            while head := file.read(8):
                found.append(file.read(int.from_bytes(head, "little")))
            drawn.shuffle(found)
            for unit in found:
                yield unit
                advance(len(unit))


def _deal(
    directory: Path,
    units: Iterator[bytes],
    ends: Sequence[int],
    num_units: int,
    names: Sequence[str],
    checksums: dict[str, str],
) -> None:
    """Writes the units to the splits in turn, each to its share of the bytes and with at least one of them."""
    place = done = 0
    for number, name in enumerate(names):
        digest, is_last = hashlib.sha256(), number == len(names) - 1
        with new_file(directory / f"{name}.txt") as file:
            first = True
            while (
                done < num_units
                and (is_last or first or place < ends[number])
                and (first or num_units - done > len(names) - 1 - number)
            ):
                unit = next(units)
                file.write(unit)
                digest.update(unit)
                place, done, first = place + len(unit), done + 1, False
        checksums[f"{name}.txt"] = digest.hexdigest()


def _is_whole(directory: Path, names: Sequence[str]) -> bool:
    """Tells whether all files are there and have their checksums."""
    try:
        checksums = json.loads((directory / "sha256.json").read_bytes())
        for name in names:
            with open(directory / f"{name}.txt", "rb") as file:
                if hashlib.file_digest(file, "sha256").hexdigest() != checksums[f"{name}.txt"]:
                    return False
    except (OSError, ValueError, KeyError, TypeError):
        return False
    return True
