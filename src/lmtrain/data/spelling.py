"""What unknown words cost when they are spelt: an n-gram over their bytes, so that models of words pay for every character.

    P(word) = p(b1 | start) p(b2 | b1) ... p(end | ...)  /  (1 - probability of all words that need no spelling)

    p(b | c) = (count(c b) + types(c) p(b | c')) / (count(c) + types(c))        c' is c without its first byte

with contexts of up to ORDER - 1 bytes, below them all symbols alike, and no end before the first byte (Witten and Bell 1991).
It is learnt from the words of the training text that its vocabulary lacks. The probabilities of all strings of bytes that are
spelt sum to one.

A cost is rounded up to a millionth of a nat: sums are whole numbers then, the same however a text is cut, and none is too low.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping

ORDER = 5
MAX_WORDS = 50_000  # from which spelling is learnt: the most frequent of those that are unknown ...
MAX_CHARS = 1 << 20  # ... of at most so many characters together
MAX_COSTS = 1 << 20  # that are remembered
END = 256
NUM_SYMBOLS = 251  # the bytes that are no blanks, and the end
START = b" " * (ORDER - 1)  # no word has blanks


def choose_words(counts: Mapping[str, int]) -> dict[str, int]:
    """Returns the words to learn spelling from, of all that are unknown: the most frequent ones, as many as are kept."""
    chosen: dict[str, int] = {}
    num_chars = 0
    for word in sorted(counts, key=lambda word: (-counts[word], word))[:MAX_WORDS]:
        num_chars += len(word)
        if num_chars <= MAX_CHARS:
            chosen[word] = counts[word]
    return chosen


class Spelling:
    """Learnt from words with their counts; the words of `known` are never spelt."""

    def __init__(self, words: Mapping[str, int], known: Iterable[bytes]) -> None:
        self._counts: dict[bytes, dict[int, int]] = {}
        self._totals: dict[bytes, int] = {}
        self._costs: dict[bytes, int] = {}
        for word, count in words.items():
            self._add(word.encode(), count)
        self._log_unknown = math.log1p(-min(math.fsum(math.exp(-self._nats(word)) for word in known), 1 - 1e-9))

    @property
    def nats_per_word(self) -> float:
        """Returns what every word costs besides minus the logarithms of its symbols' probabilities (below 0: it is
        refunded)."""
        return math.log1p(-self._probability(START, END)) + self._log_unknown

    def micronats(self, word: bytes) -> int:
        """Returns what the spelling of an unknown word costs, in millionths of a nat."""
        cost = self._costs.get(word)
        if cost is None:
            if len(self._costs) >= MAX_COSTS:
                self._costs.clear()
            cost = self._costs[word] = math.ceil((self._nats(word) + self._log_unknown) * 1e6)
        return cost

    def _add(self, word: bytes, count: int) -> None:
        padded = START + word
        for place, symbol in enumerate([*word, END], len(START)):
            for length in range(ORDER):
                context = padded[place - length : place]
                symbols = self._counts.setdefault(context, {})
                symbols[symbol] = symbols.get(symbol, 0) + count
                self._totals[context] = self._totals.get(context, 0) + count

    def _nats(self, word: bytes) -> float:
        padded = START + word
        nats = math.log1p(-self._probability(START, END))
        for place, symbol in enumerate([*word, END], len(START)):
            nats -= math.log(self._probability(padded[place - len(START) : place], symbol))
        return nats

    def _probability(self, context: bytes, symbol: int) -> float:
        probability = 1 / NUM_SYMBOLS
        for length in range(len(context) + 1):
            seen = self._counts.get(context[len(context) - length :])
            if seen is None:
                break
            total = self._totals[context[len(context) - length :]]
            probability = (seen.get(symbol, 0) + len(seen) * probability) / (total + len(seen))
        return probability
