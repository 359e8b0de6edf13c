r"""Texts with labels. A line per text has the label, then a tab or a space, then the text.

    1 the film is a delight        A label may have spaces in it if most lines of the file have a tab; else it ends at the
    0\tnot a film for anybody      first space or tab. Only "\n" ends a line. Blank lines are left out.

A file whose first line names the columns label and text, among others or not, is read by these names. Commas or tabs separate
its columns; between commas a text may stand in quotation marks, which mean nothing between tabs:

    label,text
    1,"the film is a delight, and long"

A text is empty if its line ends after the separator. A line without any separator is refused.
"""

from __future__ import annotations

import csv
import hashlib
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

from lmtrain.data.examples import read_lines, refuse_records
from lmtrain.data.vocabulary import WHITESPACE
from lmtrain.errors import DataError
from lmtrain.quantity import counted
from lmtrain.shell import one_line, quoted_for_shell

MAX_HEADER = 10_000  # characters of the first line
OTHER_SEPARATORS = {";": "semicolons", "|": "vertical bars"}

Splits = Mapping[str, "Labelled"]


@dataclass(frozen=True)
class Labelled:
    """Texts with their labels, in the order of the file."""

    labels: tuple[str, ...]
    texts: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.texts)

    @property
    def num_empty(self) -> int:
        """Returns how many texts have no word."""
        return sum(map(is_empty, self.texts))

    def pick(self, numbers: Sequence[int]) -> Labelled:
        """Returns the texts of these numbers."""
        return Labelled(tuple(self.labels[i] for i in numbers), tuple(self.texts[i] for i in numbers))


def is_empty(text: str) -> bool:
    """Tells whether a text has no word."""
    return not text.strip(WHITESPACE)


def read_labelled(path: Path, encoding: str = "utf-8", *, typed: str | None = "data.encoding=") -> Labelled:
    """Returns the texts of a file; `typed` as in `read_lines`. Raises DataError, with the line, for what is no label with a
    text, and for a file without any."""
    labelled = parse_labelled(read_lines(path, encoding, typed=typed)[0], str(path))
    if not len(labelled):
        raise DataError(
            f"{one_line(str(path))} holds no text.",
            "Each line has a label, a tab or a space, and a text.",
            "Give another file.",
        )
    return labelled


def parse_labelled(lines: Sequence[str], name: str) -> Labelled:
    """Returns the texts in the lines of the file `name`."""
    first = next((line for line in lines if not is_empty(line)), "")
    refuse_records(first, name, "Here a file has a label, a tab or a space, and a text per line.", "[.label, .text] | @tsv")
    first = first[:MAX_HEADER]
    if _names_columns(header := first.split("\t")):
        rows = ((number, line.split("\t")) for number, line in enumerate(lines, 1) if not is_empty(line))
        return _read_table(rows, header, name, "\t")
    if _names_columns(header := _split_row(first, ",")):
        return _read_table(_iter_comma_rows(lines, name), header, name, ",")
    for separator, separators in OTHER_SEPARATORS.items():
        if _names_columns(_split_row(first, separator)):
            convert = f"import csv, sys; csv.writer(sys.stdout).writerows(csv.reader(sys.stdin, delimiter={separator!r}))"
            file = quoted_for_shell(name)
            raise DataError(
                f"The columns of {one_line(name)} are separated by {separators}: it begins with {one_line(first[:80])!r}.",
                "Columns with names are separated by commas or by tabs.",
                f"Type  python -c {quoted_for_shell(convert)} < {file} > commas.csv  and give the result.",
            )
    if Path(name).suffix.lower() == ".csv" and (len(header) > 1 or (";" in first.split(" ", 1)[0] and "\t" not in first)):
        raise DataError(
            f"{one_line(name)} begins with {one_line(first[:80])!r}.",
            "A file of comma-separated values begins with the names of its columns, and label and text are among them.",
            "Name these columns label and text; or write a label, a tab and a text per line, in a file whose name has no .csv.",
        )
    filled = [(number, line) for number, line in enumerate(lines, 1) if not is_empty(line)]
    has_tabs = 2 * sum("\t" in line for _, line in filled) > len(filled)
    pairs = [_split(line, name, number, has_tabs) for number, line in filled]
    return Labelled(tuple(label for label, _ in pairs), tuple(text for _, text in pairs))


def _names_columns(fields: Sequence[str]) -> bool:
    return len(fields) > 1 and {"label", "text"} <= set(map(_column_name, fields))


def _column_name(field: str) -> str:
    return field.strip(WHITESPACE).lower()


def _split_row(line: str, separator: str) -> list[str]:
    """Returns the fields of a line; none if it is no line of separated values: a carriage return is within it."""
    try:
        return next(csv.reader([line], delimiter=separator), [])
    except csv.Error:
        return []


def _iter_comma_rows(lines: Sequence[str], name: str) -> Iterator[tuple[int, list[str]]]:
    """Yields the fields of comma-separated values, by the line where they begin; a line's end within quotation marks becomes
    a space."""
    reader = csv.reader((f"{line}\n" for line in lines), strict=True)
    begins = 1
    try:
        for fields in reader:
            if len(fields) > 1 or not is_empty("".join(fields)):
                yield begins, [field.replace("\n", " ") for field in fields]
            begins = reader.line_num + 1
    except csv.Error as error:
        goes_on = f" with those up to line {reader.line_num:,}" if reader.line_num > begins else ""
        raise DataError(
            f"Line {begins:,} of {one_line(name)}{goes_on} cannot be read: {error}.",
            "Comma-separated values have quotation marks in pairs, doubled within a text; one that is left open goes on to the "
            "next.",
            "Mend the line, or give another file.",
        ) from None


def _read_table(rows: Iterator[tuple[int, list[str]]], header: Sequence[str], name: str, separator: str) -> Labelled:
    """Returns the texts in the rows of a file whose first row, `header`, names its columns."""
    names = [_column_name(field) for field in header]
    for column in ("label", "text"):
        if names.count(column) > 1:
            raise DataError(
                f"{one_line(name)} has {names.count(column)} columns of the name {column}: {', '.join(map(one_line, names))}.",
                "One column is the label and one is the text.",
                "Give the others another name, or remove them.",
            )
    label, text = names.index("label"), names.index("text")
    pairs: list[tuple[str, str]] = []
    for number, fields in islice(rows, 1, None):
        if len(fields) != len(names) or not fields[label].strip(WHITESPACE):
            what = f"has {len(fields)} fields" if len(fields) != len(names) else "has no label"
            within = "a text with commas stands in quotation marks" if separator == "," else "a text has no tabs in it"
            raise DataError(
                f"Line {number:,} of {one_line(name)} {what}: {one_line(separator.join(fields)[:80])!r}.",
                f"Each line has {len(names)} ({', '.join(map(one_line, names))}); {within}.",
                "Mend the line, or give another file.",
            )
        pairs.append((fields[label].strip(WHITESPACE), fields[text]))
    return Labelled(tuple(label for label, _ in pairs), tuple(text for _, text in pairs))


def _split(line: str, name: str, number: int, has_tabs: bool) -> tuple[str, str]:
    """Label and text of a line."""
    places = [place for place in (line.find("\t"), line.find(" ")) if place >= 0]
    end = line.find("\t") if has_tabs and "\t" in line else min(places, default=-1)
    label = line[: max(end, 0)].strip(WHITESPACE)
    if label:
        return label, line[end + 1 :]
    what = "begins with the separator: it has no label" if places else "has one column only"
    raise DataError(
        f"Line {number:,} of {one_line(name)} {what}: {one_line(line[:80])!r}.",
        "Each line has a label, then a tab or a space, then the text.",
        "Mend the line, or give another file.",
    )


def cut_folds(splits: Splits, num_folds: int, fold: int) -> dict[str, Labelled]:
    """Returns all texts together in train, valid and test for cross-validation: fold number `fold` (from 1) is the test.

    The texts of each label are dealt out to the folds in turn, in their order, so that labels are as frequent in each. The fold
    behind the test (behind the last one the first) validates.
    """
    together = Labelled(
        tuple(label for split in splits.values() for label in split.labels),
        tuple(text for split in splits.values() for text in split.texts),
    )
    seen: Counter[str] = Counter()
    parts: dict[str, list[int]] = {"train": [], "valid": [], "test": []}
    for number, label in enumerate(together.labels):
        turn = seen[label] % num_folds
        seen[label] += 1
        parts["test" if turn == fold - 1 else "valid" if turn == fold % num_folds else "train"].append(number)
    for name, numbers in parts.items():
        if not numbers:
            raise DataError(
                f"Of {len(together):,} texts in {num_folds} folds, {name} gets none with data.fold={fold}.",
                "Each label deals its texts out to the folds in turn.",
                "Give more texts, or type a smaller data.folds.",
            )
    return {name: together.pick(numbers) for name, numbers in parts.items()}


def labels_of(splits: Splits) -> tuple[str, ...]:
    """Returns the labels of the training split, in order. Raises DataError if another split has others, or one cannot be
    learnt."""
    train = splits["train"]
    found = sorted(set(train.labels))
    if len(found) < 2:
        raise DataError(
            f"All texts of the training split have the label {one_line(found[0])!r}.",
            "There is something to learn where there are two labels or more.",
            "Give other files, or say with data.folds that they are to be cut anew.",
        )
    filled = {label for label, text in zip(train.labels, train.texts, strict=True) if not is_empty(text)}
    if lacking := [label for label in found if label not in filled]:
        raise DataError(
            f"No training text of the label {one_line(lacking[0])!r} has a word in it.",
            "Each label needs a text to be learnt from.",
            "Give it one, or take the lines of this label out.",
        )
    for name, split in splits.items():
        check_labels(split, found, name)
    return tuple(found)


def check_labels(split: Labelled, known: Sequence[str], name: str) -> None:
    """Raises DataError if a label is none of those in training."""
    unknown = sorted(set(split.labels) - set(known))
    if unknown:
        some = ", ".join(repr(one_line(label)) for label in unknown[:5]) + ", ..." * (len(unknown) > 5)
        labels = ", ".join(one_line(label) for label in known[:20]) + ", ..." * (len(known) > 20)
        count = sum(label in unknown for label in split.labels)
        raise DataError(
            f"{one_line(name)} has labels that the training split lacks: {some} ({count:,} of {counted(len(split), 'text')}).",
            f"The labels of the training split are {labels}.",
            "Mend these lines or take them out; a label ends at the first tab or space of its line.",
        )


def fingerprint(splits: Splits) -> str:
    """SHA-256 over the labels and texts of all splits."""
    digest = hashlib.sha256()
    for name, split in splits.items():
        digest.update(f"{name} {len(split)}\n".encode())
        for label, text in zip(split.labels, split.texts, strict=True):
            digest.update(f"{label}\t{text}\n".encode("utf-8", "surrogatepass"))
    return digest.hexdigest()


def describe(splits: Splits, labels: Sequence[str]) -> list[str]:
    """Says how many texts each split has, and how they are labelled, as lines."""
    counts = {name: Counter(split.labels) for name, split in splits.items()}
    lines = [f"{'split':<6}{'texts':>10}{'empty':>8}  texts by label"]
    for name, split in splits.items():
        shares = ", ".join(f"{one_line(label)} {counts[name][label] / len(split):.1%}" for label in labels[:12])
        lines.append(f"{name:<6}{len(split):>10,}{split.num_empty:>8,}  {shares}{', ...' * (len(labels) > 12)}")
    return lines


def iter_advice(splits: Splits) -> Iterator[str]:
    """Yields what looks wrong: texts that are in training, too, and texts without a word."""
    train = set(splits["train"].texts)
    for name, split in splits.items():
        if split.num_empty:
            have = "has" if split.num_empty == 1 else "have"
            yield (
                f"{split.num_empty:,} of {counted(len(split), 'text')} of {name} {have} no word. A model sees "
                "nothing of such texts, so it says the same of each."
            )
        if name != "train" and (shared := sum(text in train for text in split.texts if not is_empty(text))):
            are = "is" if shared == 1 else "are"
            yield f"{shared:,} of {counted(len(split), 'text')} of {name} {are} in train: scores on them say too much."
