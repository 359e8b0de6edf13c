"""The kinds of tokenizers as plain facts, so that nobody asks for their names, and what goes with each. Without NumPy.

char   a Unicode code point                byte   a byte of UTF-8
word   what is between whitespace          bpe, unigram   a piece of a word, learnt (`subword`); file   the same, from a file
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from lmtrain.errors import SettingsError


@dataclass(frozen=True, kw_only=True)
class Kind:
    """What a tokenizer of this kind does with any text.

    unit             what tokens are made of: characters or bytes
    is_unit          whether every token is exactly one of them
    cut_at           where a text may be cut into splits: after any character, after any whole character by its bytes, or
                     at line ends
    ends_last_line   whether a last line that does not end gets its "\\n", so that every line has its `<eos>`
    reads_eos        whether the literal `<eos>` in a text is the end of a line
    has_words        whether tokens are words, so that a text without whitespace has none that come again
    least_size       the smallest vocabulary that it can have
    usual_size       a size of a vocabulary that suits many texts
    needs_size       whether it must be told how large its vocabulary may be
    is_learnt        whether its vocabulary is learnt from the training text
    counts_pieces    whether what is rarer than `min_count` is left out of it
    prompt_length    how many tokens of a text are enough for a model to go on from
    sample_length    how many tokens show what it writes
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
    usual_size: int = 10000
    needs_size: bool = False
    is_learnt: bool = True
    counts_pieces: bool = True
    prompt_length: int = 60
    sample_length: int = 400

    def fits(self, num_tokens: int, num_chars: int, num_bytes: int) -> bool:
        """Tells whether a text of so many characters and bytes can have so many tokens."""
        num_units = num_chars if self.unit == "char" else num_bytes
        return num_tokens == num_units if self.is_unit else num_tokens <= num_units


CHAR = Kind(name="char", noun="character", unit="char", is_unit=True, cut_at="char")
BYTE = Kind(name="byte", noun="byte", unit="byte", is_unit=True, cut_at="byte", least_size=256, is_learnt=False)
WORD = Kind(
    name="word", noun="word", unit="char", is_unit=False, cut_at="line", ends_last_line=True, reads_eos=True, has_words=True,
    prompt_length=10, sample_length=100,
)  # fmt: skip
BPE = Kind(
    name="bpe", noun="subword", unit="byte", is_unit=False, cut_at="line", least_size=257, usual_size=8000, needs_size=True,
    prompt_length=15, sample_length=100,
)  # fmt: skip
UNIGRAM = replace(BPE, name="unigram", counts_pieces=False)
FILE = replace(BPE, name="file", needs_size=False, is_learnt=False, counts_pieces=False)

KINDS = {kind.name: kind for kind in (CHAR, BYTE, WORD, BPE, UNIGRAM, FILE)}


# ---- what goes with what (see `lmtrain.rules`)


def mistakes(
    kind: Kind, *, min_count: int = 1, vocab_size: int = 0, has_list: bool = False, of_words: Sequence[str] = ()
) -> Iterator[SettingsError]:
    """Tells whether a tokenizer of this kind can be had so.

    min_count, vocab_size   what bounds its vocabulary
    has_list                whether its vocabulary is given as a list of words
    of_words                the names of the arguments that were given and that only words have
    """
    given = f"min_count={min_count} and vocab_size={vocab_size}"
    is_bounded = min_count > 1 or vocab_size > 0
    if not kind.is_learnt and is_bounded:
        yield SettingsError(
            f"{given} cannot change the vocabulary of name={kind.name}, which is fixed.",
            "Allowed are min_count=1 and vocab_size=0.", "Leave both out.",
        )  # fmt: skip
    elif kind.is_learnt and (vocab_size or kind.needs_size) and vocab_size < kind.least_size:
        besides = "the 256 bytes" if kind.unit == "byte" else "the line's end and <unk>"
        allowed = f"Allowed is {'' if kind.needs_size else '0 (no limit) or '}at least {kind.least_size}."
        remedy = f"Type for example vocab_size={kind.usual_size}."
        yield SettingsError(f"vocab_size={vocab_size} leaves no token besides {besides}.", allowed, remedy)
    if kind.is_learnt and not kind.counts_pieces and min_count > 1:
        yield SettingsError(
            f"min_count={min_count} would be ignored by name={kind.name}.", "Its vocabulary is bounded by vocab_size alone.",
            "Leave it out.",
        )  # fmt: skip
    if not kind.has_words and of_words:
        yield SettingsError(
            f"{' and '.join(of_words)} {'were' if len(of_words) > 1 else 'was'} given with name={kind.name}.",
            "A list of words, separators and the spelling of unknown words are for name=word.",
            f"Leave {'them' if len(of_words) > 1 else 'it'} out, or type name=word.",
        )
    if has_list and is_bounded:
        yield SettingsError(f"{given} were given with a vocabulary.", "It says which words there are.", "Leave both out.")
