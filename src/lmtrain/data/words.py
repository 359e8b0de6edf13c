"""How many words a text has, told by its token ids, so that models of any tokens are compared per word.

A word is what stands between whitespace (`vocabulary`), and the end of a line counts as one, as it does where words are tokens:
there the number of words is that of the tokens. Blanks alone are none. A character that the model does not know counts as part
of a word.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from lmtrain.data.vocabulary import WHITESPACE

AT_ONCE = 1 << 20  # ids


class WordCounter:
    """Counts the words of texts whose tokens write these bytes; `backward`: the tokens of a line come from its end."""

    def __init__(self, tokens: Sequence[bytes], *, backward: bool = False) -> None:
        blanks = WHITESPACE.encode()
        self._words = np.array([len(token.replace(b"\n", b" . ").split()) for token in tokens], np.int64)
        self._begins = np.array([token[:1] not in blanks for token in tokens])  # with a part of a word
        self._ends = np.array([token[-1:] not in blanks for token in tokens])
        if backward:
            self._begins, self._ends = self._ends, self._begins

    def count(self, ids: NDArray[np.integer], before: int) -> int:
        """Returns the words that begin in `ids`, which follow the token `before`."""
        total = 0
        for start in range(0, len(ids), AT_ONCE):
            part = np.concatenate([[before if start == 0 else ids[start - 1]], ids[start : start + AT_ONCE]]).astype(np.int64)
            continued = self._ends[part[:-1]] & self._begins[part[1:]]
            total += int(self._words[part[1:]].sum()) - int(continued.sum())
        return total
