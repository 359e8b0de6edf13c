"""Where one model beats another on the same text: token by token where they share a vocabulary, else line by line.

    d_i = -log p_A(w_i | ...) + log p_B(w_i | ...)        above zero where B is better

Models of one vocabulary predict the same tokens, so every token has a difference, which is looked at by how often the token
occurs in training text, by its place in the line and in the sentence, by token, and in context. Models of other tokens predict
the same characters, as long as neither has an unknown word that is not spelt; then lines are what can be compared. So they are
of a forward and a backward model, whose tokens have other things before them; with one vocabulary they lack the same words.

The mean difference has an interval by the paired bootstrap (Efron and Tibshirani 1993; Koehn 2004): lines are drawn with
replacement, each with both models' nats and its number of tokens, and the ratio of the sums is taken anew.

    legend   N tokens · L lines
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lmtrain.data.tokenizer import Ids, Tokenizer
from lmtrain.data.vocabulary import utf8
from lmtrain.errors import DataError, SettingsError
from lmtrain.inference.batch import score_batches
from lmtrain.inference.evaluate import STATIC, check_numbers, iter_target_log_probs
from lmtrain.models.base import LanguageModel
from lmtrain.progress import watched
from lmtrain.shell import one_line

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

RESAMPLES = 1000
MAX_GROUPS = 20_000  # lines are drawn alone up to so many, else in blocks of neighbours
NUM_SHOWN = 20
CONTEXT = (8, 4)  # tokens before and behind one that is shown
SENTENCE_ENDS = tuple(".!?…。！？।॥؟")
PLACES = ((1, 1), (2, 2), (3, 3), (4, 5), (6, 10), (11, 20), (21, 50), (51, None))
TIMES = ((0, 0), (1, 1), (2, 4), (5, 9), (10, 99), (100, 999), (1000, 9999), (10_000, None))


@dataclass(frozen=True)
class Side:
    """One of the two models; `label` is how it is named to a person."""

    label: str
    model: LanguageModel
    tokenizer: Tokenizer


@dataclass(frozen=True)
class Row:
    """A group of tokens (or of characters): how many, and the mean nats of each under both models."""

    section: str
    group: str
    count: int
    nats_a: float
    nats_b: float

    @property
    def difference(self) -> float:
        return self.nats_a - self.nats_b


@dataclass(frozen=True)
class Occurrence:
    """A token in its context, or a line, with the nats that it costs under both models."""

    line: int
    text: str
    nats_a: float
    nats_b: float
    before: str = ""
    behind: str = ""

    @property
    def difference(self) -> float:
        return self.nats_a - self.nats_b


@dataclass(frozen=True)
class Comparison:
    """What there is to say of two models on one text; nats per `unit` ("token" or "character").

    interval        of the mean difference, 95 %; None where there are fewer than two lines
    better_b        share of the resampled texts on which B is better
    lines_a/b       in how many lines each of them is better
    impossible_a/b  tokens (lines) that have probability zero, which all numbers leave out, of either model
    """

    labels: tuple[str, str]
    unit: str
    total: Row
    interval: tuple[float, float] | None
    better_b: float
    num_lines: int
    lines_a: int
    lines_b: int
    impossible_a: int
    impossible_b: int
    rows: tuple[Row, ...] = ()
    shown: tuple[Occurrence, ...] = ()

    def format(self) -> str:
        """What `lmtrain compare` prints."""
        from lmtrain.inference.comparison_text import format_comparison  # which reads this class

        return format_comparison(self)

    def to_json(self) -> dict[str, Any]:
        """All of it, for programs; every entry with its difference."""
        document = asdict(self) | {"verdict": self.verdict, "total": _with_difference(self.total)}
        for name, entries in (("rows", self.rows), ("shown", self.shown)):
            document[name] = [_with_difference(entry) for entry in entries]
        return document

    @property
    def verdict(self) -> str:
        """Which is better, in words: only where zero lies outside the interval."""
        if self.interval is None or self.interval[0] <= 0 <= self.interval[1]:
            return "no difference that the text could show"
        return f"{'B' if self.total.difference > 0 else 'A'} is better"


def _with_difference(entry: Row | Occurrence) -> dict[str, Any]:
    return asdict(entry) | {"difference": entry.difference}


def same_tokens(a: Tokenizer, b: Tokenizer) -> bool:
    """Whether ids mean the same, so that tokens can be compared one by one."""
    return a.fingerprint() == b.fingerprint()


def same_but_for_direction(a: Tokenizer, b: Tokenizer) -> bool:
    """Whether both have the same tokens and the same unknown pieces, though one may read lines from their end."""
    alike = [{name: value for name, value in one.to_json().items() if name != "reverse"} for one in (a, b)]
    return alike[0] == alike[1]


def compare_tokens(
    a: Side, b: Side, ids: Ids, *, counts: Ints | None = None, counted_in: str = "", independent: bool = False, seed: int = 1,
    num_resamples: int = RESAMPLES, device: str = "cpu",
) -> Comparison:  # fmt: skip
    """Two models of one vocabulary on the tokens `ids` of a text.

    counts       how often each token occurs in training text, which `counted_in` names; None: that is not known
    independent  every line by itself
    """
    if not len(ids):
        raise DataError("The text is empty.", "At least one token is needed.", "Give a file or a split with some text.")
    nats_a, nats_b = (_token_nats(side, ids, independent, device) for side in (a, b))
    tokenizer = a.tokenizer
    possible = np.isfinite(nats_a) & np.isfinite(nats_b)
    line_N = _places(ids == tokenizer.eos_id)[1]
    kept_a, kept_b, ids_kept = nats_a[possible], nats_b[possible], ids[possible]
    _check_some_left(len(ids_kept))
    groups = list(_groups(ids, tokenizer, counts, counted_in))
    rows = [row for section, names, numbers in groups for row in _rows(section, names, numbers[possible], kept_a, kept_b)]
    rows += _by_token(ids_kept, kept_a, kept_b, tokenizer)
    difference = np.where(possible, nats_a, 0) - np.where(possible, nats_b, 0)
    shown = tuple(_in_context(place, ids, line_N, nats_a, nats_b, tokenizer) for place in _largest(difference))
    return _concluded(
        (a.label, b.label), "token", line_N[possible], kept_a, kept_b, np.ones(len(ids_kept)), seed, num_resamples,
        impossible=(int(np.isinf(nats_a).sum()), int(np.isinf(nats_b).sum())), rows=tuple(rows), shown=shown,
    )  # fmt: skip


def compare_lines(
    a: Side,
    b: Side,
    text: str,
    *,
    by_character: bool = True,
    independent: bool = False,
    seed: int = 1,
    num_resamples: int = RESAMPLES,
    device: str = "cpu",
) -> Comparison:
    """Two models of different tokens, or of opposite directions, on the lines of a text.

    Numbers are per character, and per byte; or per token of `a`, of whose tokens the text was made again.

    Raises SettingsError where they read it in different forms, DataError where one has unknown words that it does not spell and
    the other does not have, too.
    """
    if a.tokenizer.normalize != b.tokenizer.normalize:
        raise SettingsError(
            f"{a.label} reads text in the form {a.tokenizer.normalize}, {b.label} in the form {b.tokenizer.normalize}.",
            "Models are compared on the same characters.", "Train them with the same data.normalize and tokenizer.lowercase.",
        )  # fmt: skip
    if not text:
        raise DataError("The text is empty.", "At least one line is needed.", "Give a file or a split with some text.")
    lines = text.removesuffix("\n").split("\n")
    is_fair = same_but_for_direction(a.tokenizer, b.tokenizer)  # both lack the same words
    nats_a, nats_b = (_line_nats(side, lines, independent, device, may_lack=is_fair) for side in (a, b))
    read = [f"{a.tokenizer.as_read(line)}\n" for line in lines]
    sizes = np.array([len(line if by_character else a.tokenizer.encode(line)) for line in read], np.float64)
    possible = np.isfinite(nats_a) & np.isfinite(nats_b)
    _check_some_left(int(possible.sum()))
    difference = np.where(possible, nats_a, 0) - np.where(possible, nats_b, 0)
    shown = tuple(
        Occurrence(place + 1, lines[place], float(nats_a[place]), float(nats_b[place])) for place in _largest(difference)
    )
    per_line_a, per_line_b = nats_a[possible], nats_b[possible]
    unit, rows = "character" if by_character else "token", list[Row]()
    if by_character:
        num_bytes = sum(len(utf8(line)) for line, kept in zip(read, possible, strict=True) if kept)
        rows.append(Row("unit", "byte", num_bytes, float(per_line_a.sum() / num_bytes), float(per_line_b.sum() / num_bytes)))
    lengths = sizes[possible].astype(np.int64)
    names, numbers = _binned(lengths, ((1, 1), (2, 10), (11, 20), (21, 50), (51, 100), (101, 200), (201, None)))
    rows += _rows(f"{unit}s in the line", names, numbers, per_line_a, per_line_b, sizes[possible])
    return _concluded(
        (a.label, b.label), unit, np.arange(int(possible.sum())), per_line_a, per_line_b, sizes[possible], seed,
        num_resamples, impossible=(int(np.isinf(nats_a).sum()), int(np.isinf(nats_b).sum())), rows=tuple(rows), shown=shown,
    )  # fmt: skip


def _check_some_left(number: int) -> None:
    if not number:
        raise DataError(
            "Every token of the text has probability zero under one of the models.", "Some must be possible under both.",
            "Give another text, or models that are smoothed.",
        )  # fmt: skip


def unspelt(given: str) -> DataError:
    """Says that models of different tokens cannot be compared where one of them reads a text with unknown pieces."""
    return DataError(
        given, "Models of different tokens are compared on all characters.",
        "Train both with one vocabulary, tokenizer.vocabulary=RUN, or those of words with tokenizer.unknown=spelled.",
    )  # fmt: skip


# ---- what each model says


def _token_nats(side: Side, ids: Ids, independent: bool, device: str) -> Floats:
    eos_id = side.tokenizer.eos_id
    with watched(f"Scoring with {one_line(side.label)}", len(ids), "tok") as advance:
        if independent:
            lines = np.split(ids, np.flatnonzero(ids == eos_id) + 1)
            each = []
            for _, log_probs in score_batches(side.model, side.tokenizer, filter(len, lines), device=device):
                each.append(log_probs)
                advance(len(log_probs))
            return -np.concatenate(each)
        nats = np.empty(len(ids))
        for part in iter_target_log_probs(side.model, np.asarray(ids), eos_id=eos_id, device=device):
            check_numbers(part.log_probs, STATIC)
            nats[part.positions] = -part.log_probs
            advance(part.positions.size)
        return nats


def _line_nats(side: Side, lines: Sequence[str], independent: bool, device: str, *, may_lack: bool) -> Floats:
    """The nats of every line with its end; what spelling its unknown words costs is among them. DataError where they are not
    spelt, unless it `may_lack` some."""
    tokenizer, unk_id = side.tokenizer, side.tokenizer.unk_id
    each = [tokenizer.encode(f"{line}\n") for line in lines]
    for number, ids in enumerate(each, 1):
        if int((ids == tokenizer.eos_id).sum()) != 1:
            raise DataError(
                f"Line {number:,} of the text contains a token that stands for the end of a line.",
                "Lines are compared one by one.", "Take it out.",
            )  # fmt: skip
    num_unk = sum(int((ids == unk_id).sum()) for ids in each) if unk_id is not None and tokenizer.rare is None else 0
    if num_unk and not may_lack:
        raise unspelt(f"{side.label} reads {num_unk:,} pieces of the text as <unk> and does not spell them.")
    starts = np.cumsum([0, *map(len, each)])[:-1]
    nats: Floats = np.add.reduceat(_token_nats(side, np.concatenate(each), independent, device), starts)
    spelt = [tokenizer.spelling_of(tokenizer.as_read(line)) for line in lines]
    return nats + np.array(spelt) / 1e6


# ---- groups of tokens


def _places(ends: NDArray[np.bool_]) -> tuple[Ints, Ints]:
    """The place of every token in its stretch, from 1, and the number of the stretch, from 0; each ends with an end."""
    is_first = np.concatenate([[True], ends[:-1]])
    position = np.arange(len(ends))
    first = np.maximum.accumulate(np.where(is_first, position, 0))
    return position - first + 1, np.cumsum(is_first) - 1


def _groups(ids: Ids, tokenizer: Tokenizer, counts: Ints | None, counted_in: str) -> Iterator[tuple[str, list[str], Ints]]:
    """(section, names of its groups, the group of every token)."""
    ends_line = ids == tokenizer.eos_id
    if counts is not None:
        names, numbers = _binned(counts[ids], TIMES)
        if tokenizer.unk_id is not None:
            numbers = np.where(ids == tokenizer.unk_id, len(names), numbers)
        yield f"times in {counted_in}", [*names, "<unk>"], numbers
    yield "place in the line", *_binned(_places(ends_line)[0], PLACES)
    texts = [tokenizer.token_text(number).rstrip() for number in range(tokenizer.vocab_size)]
    ends_sentence = np.array([text.endswith(SENTENCE_ENDS) for text in texts])[ids] | ends_line
    yield "place in the sentence", *_binned(_places(ends_sentence)[0], PLACES)


def _binned(values: Ints, bins: Sequence[tuple[int, int | None]]) -> tuple[list[str], Ints]:
    """The names of the bins (first, last), and the bin of every value."""
    names = [f"{low:,}" if low == high else f"{low:,}+" if high is None else f"{low:,}-{high:,}" for low, high in bins]
    return names, np.searchsorted([low for low, _ in bins], values, side="right") - 1


def _rows(
    section: str, names: Sequence[str], numbers: Ints, nats_a: Floats, nats_b: Floats, sizes: Floats | None = None
) -> list[Row]:
    """A row for every group that has any."""
    counts, sums_a, sums_b = (
        np.bincount(numbers, weights, minlength=len(names)) for weights in (sizes, nats_a, nats_b)
    )  # fmt: skip
    found = zip(names, counts, sums_a, sums_b, strict=True)
    return [Row(section, name, int(count), float(a / count), float(b / count)) for name, count, a, b in found if count]


def _by_token(ids: Ids, nats_a: Floats, nats_b: Floats, tokenizer: Tokenizer) -> list[Row]:
    """The tokens by which the total differs most, those that favour B first."""
    counts, sums_a, sums_b = (np.bincount(ids, weights, minlength=tokenizer.vocab_size) for weights in (None, nats_a, nats_b))
    chosen = sorted(_largest(sums_a - sums_b), key=lambda token: sums_b[token] - sums_a[token])
    return [
        Row(
            "token",
            tokenizer.token_text(token),
            int(counts[token]),
            *(float(of[token] / counts[token]) for of in (sums_a, sums_b)),
        )
        for token in chosen
    ]


def _largest(difference: NDArray[Any]) -> list[int]:
    """Where the largest differences stand, the largest first; equal ones in their order. None that is zero."""
    order = np.argsort(-np.abs(difference), kind="stable")[:NUM_SHOWN]
    return [int(place) for place in order if difference[place]]


def _in_context(place: int, ids: Ids, line_N: Ints, nats_a: Floats, nats_b: Floats, tokenizer: Tokenizer) -> Occurrence:
    before, behind = (
        tokenizer.decode(part.tolist()).strip("\ufffd")
        for part in (ids[max(0, place - CONTEXT[0]) : place], ids[place + 1 : place + 1 + CONTEXT[1]])
    )
    space, shown = " " * tokenizer.kind.has_words, tokenizer.token_text(int(ids[place]))
    around = (f"{before}{space}" if before else "", f"{space}{behind}" if behind else "")
    return Occurrence(int(line_N[place]) + 1, shown, float(nats_a[place]), float(nats_b[place]), *around)


# ---- the whole


def _concluded(
    labels: tuple[str, str], unit: str, line_of: Ints, nats_a: Floats, nats_b: Floats, sizes: Floats, seed: int,
    num_resamples: int, *, impossible: tuple[int, int], rows: tuple[Row, ...], shown: tuple[Occurrence, ...],
) -> Comparison:  # fmt: skip
    """`line_of` numbers ascend; units in `sizes`."""
    _, line_of = np.unique(line_of, return_inverse=True)
    size_L, a_L, b_L = (np.bincount(line_of, weights).astype(np.float64) for weights in (sizes, nats_a, nats_b))
    total = Row("all", "all", int(sizes.sum()), float(a_L.sum() / sizes.sum()), float(b_L.sum() / sizes.sum()))
    interval, better_b = bootstrap(a_L - b_L, size_L, seed=seed, num_resamples=num_resamples)
    return Comparison(
        labels, unit, total, interval, better_b, len(size_L), int((a_L < b_L).sum()), int((b_L < a_L).sum()),
        *impossible, rows, shown,
    )  # fmt: skip


def bootstrap(
    difference_L: Floats, size_L: Floats, *, seed: int, num_resamples: int = RESAMPLES
) -> tuple[tuple[float, float] | None, float]:
    """The 95 % interval of sum(difference) / sum(size) over lines drawn with replacement, and the share above zero."""
    if len(difference_L) < 2:
        return None, float(difference_L.sum() > 0)
    block = -(-len(difference_L) // MAX_GROUPS)
    starts = np.arange(0, len(difference_L), block)
    difference_G, size_G = np.add.reduceat(difference_L, starts), np.add.reduceat(size_L, starts)
    random, means = np.random.default_rng(seed), np.empty(num_resamples)
    for number in range(num_resamples):
        drawn = random.integers(0, len(starts), len(starts))
        means[number] = difference_G[drawn].sum() / size_G[drawn].sum()
    low, high = np.quantile(means, (0.025, 0.975))
    return (float(low), float(high)), float((means > 0).mean())
