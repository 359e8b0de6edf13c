"""Compares two saved language models on one text: finds the text, and counts its tokens in training text."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Literal

import numpy as np

from lmtrain.data.tokenizer import Ids, Tokenizer
from lmtrain.data.vocabulary import utf8
from lmtrain.errors import DataError, UserError
from lmtrain.inference.comparison import (
    Comparison,
    Ints,
    Side,
    compare_lines,
    compare_tokens,
    same_but_for_direction,
    same_tokens,
    unspelt,
)
from lmtrain.inference.score import CountedText
from lmtrain.saved import Trained
from lmtrain.tasks.opening import training_corpus

SplitName = Literal["test", "valid"]


def compare_saved(
    a: Trained, b: Trained, blocks: Iterable[str] | None = None, *, labels: tuple[str, str], split: SplitName = "test",
    independent: bool = False, seed: int = 1, device: str = "cpu",
) -> Comparison:  # fmt: skip
    """Compares `a` and `b` on a text in blocks cut anywhere; without one, on the `split` that was saved with one of them.

    Raises DataError if there is no such text, and what `compare_tokens` and `compare_lines` raise.
    """
    side_a, side_b = (Side(label, one.model, one.tokenizer) for label, one in zip(labels, (a, b), strict=True))
    if same_tokens(a.tokenizer, b.tokenizer):
        ids = _saved_ids((a, b), split) if blocks is None else _encoded(blocks, a.tokenizer)
        counts, counted_in = _counts(a, labels[0])
        return compare_tokens(
            side_a, side_b, ids, counts=counts, counted_in=counted_in, independent=independent, seed=seed, device=device
        )  # fmt: skip
    text, by_character = _saved_text(a, b, split, labels) if blocks is None else ("".join(blocks), True)
    return compare_lines(
        side_a, side_b, text, by_character=by_character, independent=independent, seed=seed, device=device
    )  # fmt: skip


def _encoded(blocks: Iterable[str], tokenizer: Tokenizer) -> Ids:
    text = CountedText(blocks, tokenizer)
    return np.concatenate([np.empty(0, np.int32), *(ids for ids, _ in tokenizer.encode_spelt(text))])


def _saved_ids(both: tuple[Trained, Trained], split: SplitName) -> Ids:
    for one in both:
        if split in one.texts:
            return one.texts[split].ids
    raise _no_text(both, split)


def _no_text(both: tuple[Trained, Trained], split: SplitName) -> DataError:
    other = "valid" if split == "test" else "test"
    there = any(other in one.texts for one in both)
    return DataError(
        f"No {split} text was saved with either model.", "A text is needed to compare them.",
        f"Choose the split {other}, or give a file." if there else "Give a file.",
    )  # fmt: skip


def _saved_text(a: Trained, b: Trained, split: SplitName, labels: tuple[str, str]) -> tuple[str, bool]:
    """Returns `saved_lines` of either, and whether its characters are to be counted.

    They are not where two models read the same tokens in opposite directions, and these do not tell the text as it was: unknown
    words are <unk> there, and several blanks are one. Raises DataError where the spelling of such words would count, too.
    """
    there = [one.texts[split] for one in (a, b) if split in one.texts]
    text = saved_lines(a, b, split, labels)
    lacks = any((saved.ids == one.tokenizer.unk_id).any() for one in (a, b) if (saved := one.texts.get(split)) is not None)
    for each in () if lacks else (text, saved_lines(b, a, split)):
        if (len(each), len(utf8(each))) in [(saved.num_chars, saved.num_bytes) for saved in there]:
            return each, True
    if not same_but_for_direction(a.tokenizer, b.tokenizer):
        return text, True
    if lacks and a.tokenizer.rare is not None:
        raise DataError(
            f"The {split} text that was saved has unknown words, which are <unk> there; how they are spelt is not known.",
            "Models of opposite directions that spell are compared on the text itself.", "Give a file.",
        )  # fmt: skip
    return text, False


def saved_lines(a: Trained, b: Trained, split: SplitName, labels: tuple[str, str] | None = None) -> str:
    """Returns a text that was saved with one of two models which read different tokens, or lines in opposite directions.

    Where the tokens are different, its model must know every piece of it. Raises DataError if there is none.
    """
    is_alike = same_but_for_direction(a.tokenizer, b.tokenizer)
    for one in (a, b):
        if split in one.texts and (is_alike or not (one.texts[split].ids == one.tokenizer.unk_id).any()):
            return one.tokenizer.decode(one.texts[split].ids.tolist())
    there = [one for one in (a, b) if split in one.texts]
    if not there:
        raise _no_text((a, b), split)
    if all(one.tokenizer.rare is None for one in there):  # so a text of its own would not help
        sizes = (
            f"{label} has a vocabulary of {one.tokenizer.vocab_size:,} ({one.tokenizer.name})"
            for label, one in zip(labels or (str(a.path), str(b.path)), (a, b), strict=True)
        )
        raise unspelt(f"{', and '.join(sizes)}. What is saved of the {split} text has unknown pieces, which are not spelt.")
    raise DataError(
        f"Neither model was saved with a {split} text of which every piece is in its vocabulary.",
        "Models of different tokens are compared on the text itself.", "Give a file.",
    )  # fmt: skip


def _counts(trained: Trained, label: str) -> tuple[Ints | None, str]:
    """Says how often each token occurs in the training text of a model, or in what is kept of it."""
    size = trained.tokenizer.vocab_size
    try:
        return training_corpus(trained.path).train.counts(size), f"the training text of {label}"
    except UserError:
        pass
    if "train_start" not in trained.texts:
        return None, ""
    ids = trained.texts["train_start"].ids
    return np.bincount(ids, minlength=size), f"the first {len(ids):,} tokens of the training text of {label}"
