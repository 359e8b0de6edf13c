"""A tokenizer for a text that it was not learnt from: what the text adds to its vocabulary, after all that it has.

tokens   <eos> the <unk> cat          ids 0 to 3 mean what they meant
text     the dog sat, the dog ran     dog, ran and sat follow them, the most frequent first, equal ones by name
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from lmtrain.data.characters import spaced
from lmtrain.data.tokenizer import CharTokenizer, Tokenizer, WordTokenizer
from lmtrain.data.vocabulary import count_chars, count_words, learn_tokens
from lmtrain.errors import DataError

SHOWN = 5  # new tokens that a refusal names


def grown_tokenizer(
    tokenizer: Tokenizer, blocks: Iterable[str], *, add: bool | None, min_count: int = 1, vocab_size: int = 0
) -> Tokenizer:
    """Returns the tokenizer for a text, given in blocks cut anywhere, that may hold tokens which `tokenizer` does not know.

    add          True: those seen at least `min_count` times get ids behind the others; False: they stay `<unk>`, and the text
                 is not read; None: they are refused (DataError says how many there are)
    vocab_size   bounds the whole vocabulary; 0: no bound

    Nothing is unknown to tokenizers of bytes and subwords, so they stay as they are.
    """
    if add is False or tokenizer.unk_id is None:
        return tokenizer
    counts = _count(tokenizer, tokenizer.read(blocks))
    known = set(tokenizer.tokens)
    eos = tokenizer.tokens[tokenizer.eos_id]
    learnt = learn_tokens(counts, eos=eos, min_count=min_count, vocab_size=0)
    new = [token for token in learnt if token not in known]
    if add is None:
        if new:
            raise _refused(tokenizer, new, counts)
        return tokenizer
    if vocab_size:
        new = new[: max(0, vocab_size - len(tokenizer.tokens))]
    if not new:
        return tokenizer
    grown: Tokenizer
    if isinstance(tokenizer, WordTokenizer):
        grown = WordTokenizer([*tokenizer.tokens, *new], tokenizer.separators)
        if tokenizer.rare is not None:
            rare = {word: count for word, count in tokenizer.rare.items() if word not in {*new}}
            grown.rare = rare or tokenizer.rare
    else:
        grown = CharTokenizer([*tokenizer.tokens, *new])
    grown.normalize, grown.reverse = tokenizer.normalize, tokenizer.reverse
    return grown


def _count(tokenizer: Tokenizer, blocks: Iterable[str]) -> dict[str, int]:
    if tokenizer.kind.has_words:
        return count_words(spaced(block, tokenizer.separators) for block in blocks)
    return count_chars(blocks)


def _refused(tokenizer: Tokenizer, new: list[str], counts: Mapping[str, int]) -> DataError:
    noun = tokenizer.kind.noun + "s" * (len(new) != 1)
    listed = ", ".join(map(repr, new[:SHOWN])) + (f" and {len(new) - SHOWN:,} more" if len(new) > SHOWN else "")
    share = sum(counts[token] for token in new) / max(1, sum(counts.values()))
    return DataError(
        f"The training text has {len(new):,} {noun} that the model to start from does not know, {share:.2%} of the text: "
        f"{listed:.300}.",
        "They can be added to its vocabulary, or be read as <unk>.",
        "Type start_from_new_tokens=true to add them, or start_from_new_tokens=false to have them read as <unk>.",
    )
