"""What the kinds of tokenizers are, so that nobody asks for their names: plain facts, without NumPy.

char   a Unicode code point                byte   a byte of UTF-8
word   what stands between whitespace      bpe, unigram   a piece of a word, learnt (`subword`); file   the same, from a file
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal


@dataclass(frozen=True, kw_only=True)
class Kind:
    """What a tokenizer of this kind does with any text.

    unit             what tokens are made of: characters or bytes
    is_unit          whether every token is exactly one of them
    cut_at           where a text may be cut into splits: behind any character, behind any whole character by its bytes, or
                     at line ends
    ends_last_line   whether a last line that does not end gets its "\\n", so that every line has its `<eos>`
    reads_eos        whether the literal `<eos>` in a text is the end of a line
    has_words        whether tokens are words, so that a text without whitespace has none that come again
    least_size       the smallest vocabulary that it can have
    is_learnt        whether its vocabulary is learnt from the training text
    counts_pieces    whether what is rarer than `min_count` is left out of it
    chunk_length     how many tokens are usual in a chunk of truncated backpropagation
    prompt_length    how many tokens of a text are enough for a model to go on from
    """

    name: str
    noun: str
    unit: Literal["char", "byte"]
    is_unit: bool
    cut_at: Literal["char", "byte", "line"]
    ends_last_line: bool = False
    reads_eos: bool = False
    has_words: bool = False
    least_size: int = 3
    is_learnt: bool = True
    counts_pieces: bool = True
    chunk_length: int = 64
    prompt_length: int = 60

    def fits(self, num_tokens: int, num_chars: int, num_bytes: int) -> bool:
        """Whether a text of so many characters and bytes can have so many tokens."""
        num_units = num_chars if self.unit == "char" else num_bytes
        return num_tokens == num_units if self.is_unit else num_tokens <= num_units


CHAR = Kind(name="char", noun="character", unit="char", is_unit=True, cut_at="char")
BYTE = Kind(name="byte", noun="byte", unit="byte", is_unit=True, cut_at="byte", least_size=256, is_learnt=False)
WORD = Kind(
    name="word", noun="word", unit="char", is_unit=False, cut_at="line", ends_last_line=True, reads_eos=True, has_words=True,
    chunk_length=35, prompt_length=10,
)  # fmt: skip
BPE = Kind(
    name="bpe", noun="subword", unit="byte", is_unit=False, cut_at="line", least_size=257, chunk_length=35, prompt_length=15
)
UNIGRAM = replace(BPE, name="unigram", counts_pieces=False)
FILE = replace(BPE, name="file", is_learnt=False, counts_pieces=False)

KINDS = {kind.name: kind for kind in (CHAR, BYTE, WORD, BPE, UNIGRAM, FILE)}
