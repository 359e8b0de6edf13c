"""The numbers of the words of a text, many at a time.

A dict says what number each word has. Looking one up takes longer than reading it, so the words that are up to SHORT bytes long
are looked up by arrays first. Their bytes are two whole numbers, with zeros behind a word's end, so that two words are the same
where both numbers are:

    "words"  ->  first = 0x00000073_64726f77, second = 0    ->  slot = hash(first, second)  ->  the number in that slot, if the
                                                                slot holds this very word; else the dict says it

A slot belongs to the first word that comes to it. What the arrays do not hold, longer words and texts with zero bytes go to the
dict, and so does a text of a few words. The arrays grow with the words that they hold.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from lmtrain.data.vocabulary import EOS, split_words

SHORT = 16  # bytes
FEW = 1 << 12  # bytes of a text that is looked up word by word
MIN_BITS, MAX_BITS = 4, 20  # there are 2 to this power of slots, of 20 bytes each

NEWLINE, SPACE, TAB = ord("\n"), ord(" "), ord("\t")
NUM_OTHERS = 4  # whitespace besides the space is a tab and the four bytes behind it
LOW_BYTES = np.array([(1 << 8 * size) - 1 for size in range(9)], np.uint64)  # masks of a number's first bytes
FACTORS = np.array([0x9E3779B97F4A7C15, 0xC2B2AE3D27D4EB4F, 0xD6E8FEB86659FD93], np.uint64)  # odd

Numbers = NDArray[np.int32]
Places = NDArray[np.int64]
Keys = NDArray[np.uint64]


class WordLookup:
    """The numbers that `numbers` gives to words in UTF-8; it has one for `<eos>`, and its `__missing__` serves all others."""

    def __init__(self, numbers: Mapping[bytes, int]) -> None:
        self._numbers = numbers
        self._clear(MIN_BITS)

    def _clear(self, bits: int) -> None:
        self._bits, self._num_held = bits, 0
        self._first, self._second = (np.zeros(1 << bits, np.uint64) for _ in range(2))  # of the word in each slot
        self._found = np.full(1 << bits, -1, np.int32)  # its number; -1: the slot is free

    def of(self, data: bytes) -> Numbers:
        """Returns the numbers of the words of a text in UTF-8 and of its line ends, as `split_words` gives them."""
        if len(data) <= FEW or b"\0" in data:
            return self._by_dict(split_words(data))
        text = np.frombuffer(data, np.uint8)
        is_blank = (text == SPACE) | (text - np.uint8(TAB) <= NUM_OTHERS)
        is_start, is_end = ~is_blank, is_blank.copy()
        is_start[1:] &= is_blank[:-1]
        is_end[1:] &= ~is_blank[:-1]
        is_end[0] = False
        places = np.flatnonzero(is_start | (text == NEWLINE))
        is_word = text[places] != NEWLINE
        starts, ends = places[is_word], np.flatnonzero(is_end)
        if len(ends) < len(starts):
            ends = np.append(ends, len(data))
        found = np.full(len(places), self._numbers[EOS.encode()], np.int32)
        found[is_word] = self._of_words(data, starts, ends)
        return found

    def _by_dict(self, words: list[bytes]) -> Numbers:
        return np.fromiter(map(self._numbers.__getitem__, words), np.int32, len(words))

    def _of_words(self, data: bytes, starts: Places, ends: Places) -> Numbers:
        """Returns the numbers of the words at these places."""
        lengths = ends - starts
        at = np.ndarray((len(data) + 8,), "<u8", data + bytes(SHORT), strides=(1,))  # eight bytes from each place on
        first = at[starts] & LOW_BYTES[np.minimum(lengths, 8)]
        second = at[np.minimum(starts + 8, len(data))] & LOW_BYTES[np.clip(lengths - 8, 0, 8)]
        slots = self._slots(first, second)
        found = self._found[slots]
        is_short = lengths <= SHORT
        is_known = (found >= 0) & (self._first[slots] == first) & (self._second[slots] == second) & is_short
        missed = np.flatnonzero(~is_known)
        spans = zip(starts[missed].tolist(), ends[missed].tolist(), strict=True)
        found[missed] = self._by_dict([data[start:end] for start, end in spans])
        short = missed[is_short[missed]]
        self._hold(first[short], second[short], found[short])
        return found

    def _slots(self, first: Keys, second: Keys) -> Places:
        mixed = first * FACTORS[0] + second * FACTORS[1]
        return ((mixed ^ (mixed >> np.uint64(32))) * FACTORS[2] >> np.uint64(64 - self._bits)).astype(np.int64)

    def _hold(self, first: Keys, second: Keys, found: Numbers) -> None:
        """Puts words into the slots that are free, and makes room where few are."""
        bits = min((4 * (self._num_held + len(np.unique(found)))).bit_length(), MAX_BITS)
        if bits > self._bits:
            used = np.flatnonzero(self._found >= 0)
            first, second = np.append(self._first[used], first), np.append(self._second[used], second)
            found = np.append(self._found[used], found)
            self._clear(bits)
        slots = self._slots(first, second)
        free = np.flatnonzero(self._found[slots] < 0)
        taken, which = np.unique(slots[free], return_index=True)
        chosen = free[which]
        self._first[taken], self._second[taken], self._found[taken] = first[chosen], second[chosen], found[chosen]
        self._num_held += len(taken)
