"""Estimates how much of one text is in another, from hashes of lines that are few enough to be kept with a run.

Lines are compared by their words, separated by single spaces. Blank lines are left out. A line shorter than SHORT bytes says
too little alone (`}`, "Yes."), so it is joined with the lines that follow until there are SHORT bytes. A line that is longer
than LONG bytes is cut at places that its own characters determine (content-defined chunking, Muthitacharoen et al. 2001). So
texts without line ends can be compared too, wherever they were cut.

Of each text, the MAX_HASHES smallest distinct hashes are kept (a bottom-k sketch, Broder 1997). They are a random sample of the
lines. Every text samples the same lines, so two samples can be compared.

A hash is a polynomial over the bytes b, mod 2^64 (Karp and Rabin 1987), so that those of all lines are differences of one sum:

    P_i = sum over j < i of T[b_j] r^j        hash of b_s ... b_(e-1) = mix((P_e - P_s) r^-s)
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

MAX_HASHES = 1 << 18  # hashes that are kept per text, 2 MB
SHORT = 32
LONG = 1024
MAX_PIECE = 4096  # bytes: a long line is cut here if its characters do not say where
CUT_BITS = 7  # a long line is cut after one byte in 2^7
AT_A_TIME = 1 << 16  # bytes; their sums fit into a processor's cache
FRESH = 1 << 12  # at least so many hashes are collected before they are sorted

STARTS, ENDS = (b"<s>", b"<bos>", b"<sos>"), (b"</s>", b"<eos>")  # marks of a line
NEWLINE, SPACE = ord("\n"), ord(" ")
SPACED = bytes(SPACE if byte in b"\t\v\f\r" else byte for byte in range(256))
WINDOW = np.array([2654435761, 2246822519, 3266489917, 668265263, 374761393, 3432918353, 461845907, 1274126177], np.uint32)

Hashes = NDArray[np.int64]  # ascending, none twice, none negative
Bytes = NDArray[np.uint8]
Places = NDArray[np.int64]


def _mix(numbers: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """Mixes numbers so that every bit depends on all bits (the finaliser of SplitMix64)."""
    numbers = (numbers ^ (numbers >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    numbers = (numbers ^ (numbers >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return numbers ^ (numbers >> np.uint64(31))


RATIO = 0x9E3779B97F4A7C15  # odd, so that it has an inverse mod 2^64
TABLE = _mix(np.arange(1, 257, dtype=np.uint64))


def _powers(base: int, length: int) -> NDArray[np.uint64]:
    """Returns base^0, base^1, ... mod 2^64."""
    factors = np.full(length, base % (1 << 64), np.uint64)
    factors[0] = 1
    return np.multiply.accumulate(factors)


class LineHashes:
    """Collects the hashes of a text that arrives in blocks, which may be cut anywhere."""

    def __init__(self) -> None:
        self.num_filled = 0  # lines that are not blank
        self._num_starts = self._num_ends = 0  # of these, how many begin, and how many end, with a mark
        self._rest = b""  # what is not yet hashed: it begins a line, or a piece of a long line
        self._rest_is_long = False
        self._powers = self._inverse = np.empty(0, np.uint64)
        self._sums = np.empty(0, np.uint64)
        self._fresh: list[Hashes] = []
        self._num_fresh = 0
        self._kept: Hashes = np.empty(0, np.int64)

    @property
    def num_marked(self) -> int:
        """Returns the number of lines that are marked, as by <s> ... </s>."""
        return max(self._num_starts, self._num_ends)

    def add(self, block: bytes) -> None:
        """Adds the next block of the text, in UTF-8."""
        for start in range(0, len(block), AT_A_TIME):
            self._add(block[start : start + AT_A_TIME])

    def finish(self) -> Hashes:
        """Returns the hashes, once all blocks have been added."""
        self._add(b"\n")
        self._rest = b""
        self._sort()
        return self._kept

    def _add(self, data: bytes) -> None:
        num_counted = self._rest.count(b"\n")
        text = _tidy(self._rest + data, begins_line=not self._rest_is_long)
        line_ends = np.flatnonzero(text == NEWLINE)
        line_starts = np.append(0, line_ends + 1)
        self._count_marks(text, line_starts[num_counted:-1], line_ends[num_counted:])
        lengths = np.append(line_ends, len(text)) - line_starts
        is_long = lengths > LONG
        is_long[0] |= self._rest_is_long
        cuts = [np.empty(0, np.int64)]
        for line in np.flatnonzero(is_long):
            cuts.append(line_starts[line] + _cuts(text[line_starts[line] : line_starts[line] + lengths[line]]))
        starts, ends = np.sort(np.concatenate([line_starts, *cuts])), np.sort(np.concatenate([line_ends, *cuts]))
        last = np.searchsorted(ends, starts[:-1] + SHORT)  # the piece that completes SHORT bytes; starts[-1] has no end yet
        num_done = int(np.searchsorted(last, len(ends)))
        self._hash(text, starts[:num_done], ends[last[:num_done]])
        self._rest = text[starts[num_done] :].tobytes()
        self._rest_is_long = bool(is_long[np.searchsorted(line_starts, starts[num_done], side="right") - 1])

    def _count_marks(self, text: Bytes, starts: Places, ends: Places) -> None:
        data = text.tobytes()
        self.num_filled += len(starts)
        self._num_starts += sum(data.startswith(STARTS, start) for start in starts[text[starts] == STARTS[0][0]])
        self._num_ends += sum(data.endswith(ENDS, 0, end) for end in ends[text[ends - 1] == ENDS[0][-1]])

    def _hash(self, text: Bytes, starts: Places, ends: Places) -> None:
        if len(self._powers) < len(text):
            self._powers, self._inverse = _powers(RATIO, len(text)), _powers(pow(RATIO, -1, 1 << 64), len(text))
            self._sums = np.zeros(len(text) + 1, np.uint64)
        sums = self._sums[: len(text) + 1]  # of which the first stays 0
        np.take(TABLE, text, out=sums[1:], mode="clip")
        sums[1:] *= self._powers[: len(text)]
        np.cumsum(sums[1:], out=sums[1:])
        hashes = _mix((sums[ends] - sums[starts]) * self._inverse[starts]) >> np.uint64(1)
        if len(self._kept) >= MAX_HASHES:
            hashes = hashes[hashes < np.uint64(self._kept[-1])]
        self._fresh.append(hashes.astype(np.int64))
        self._num_fresh += len(hashes)
        if self._num_fresh >= max(FRESH, len(self._kept)):
            self._sort()

    def _sort(self) -> None:
        self._kept = merged([self._kept, *self._fresh])
        self._fresh.clear()
        self._num_fresh = 0


def _tidy(data: bytes, *, begins_line: bool) -> Bytes:
    """Returns the text without blank lines, with single spaces between words.

    So of each run of blanks one byte is left: a line's end where the run has any, else a space; none where it begins a line.
    The next block decides about a space at the end.
    """
    text = np.frombuffer(data.translate(SPACED), np.uint8)
    is_end = text == NEWLINE
    is_blank = (text == SPACE) | is_end
    goes_on = np.zeros(len(text), bool)
    np.logical_and(is_blank[1:], is_blank[:-1], out=goes_on[1:])
    goes_on[:1] |= is_blank[:1] & begins_line
    if not goes_on.any():
        return text
    runs = np.flatnonzero(is_blank & ~goes_on)
    ends = np.unique(np.searchsorted(runs, np.flatnonzero(is_end), side="right") - 1)
    text = text.copy()
    text[runs[ends[ends >= 0]]] = NEWLINE
    return text[~goes_on]


def _cuts(line: Bytes) -> Places:
    """Where a long line is cut. Each cut depends only on the few bytes before it; none is at the end, which may move."""
    mixed = np.zeros(len(line), np.uint32)
    for back, factor in enumerate(WINDOW):
        mixed[back:] += line[: max(0, len(line) - back)] * factor
    cuts, start = list[int](), 0
    for place in [*(np.flatnonzero(mixed >> (32 - CUT_BITS) == 0) + 1).tolist(), len(line)]:
        while place - start > MAX_PIECE:
            start += MAX_PIECE
            cuts.append(start)
        if place - start >= len(WINDOW) and place < len(line):
            start = place
            cuts.append(start)
    return np.array(cuts, np.int64)


def merged(samples: list[Hashes]) -> Hashes:
    """Returns the hashes of the texts of these `samples` together."""
    hashes = np.sort(np.concatenate([np.empty(0, np.int64), *samples]))
    is_new = np.ones(len(hashes), bool)
    np.not_equal(hashes[1:], hashes[:-1], out=is_new[1:])
    return hashes[is_new][:MAX_HASHES]


class Overlap(NamedTuple):
    """How many distinct lines of one text were looked for in another, and how many were found."""

    num_compared: int
    num_found: int

    @property
    def share(self) -> float:
        return self.num_found / self.num_compared if self.num_compared else 0.0


def find_overlap(lines: Hashes, others: Hashes) -> Overlap:
    """Counts how many of `lines` are among `others`, where each may be a sample."""
    limit = min(int(hashes[-1]) if len(hashes) >= MAX_HASHES else np.iinfo(np.int64).max for hashes in (lines, others))
    compared = lines[lines <= limit]
    return Overlap(len(compared), int(np.isin(compared, others, assume_unique=True).sum()))
