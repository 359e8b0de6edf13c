r"""ARPA files: the exchange format of n-gram models, as KenLM, SRILM and others read and write it.

    \data\
    ngram 1=4                              how many n-grams of each order follow
    ngram 2=3

    \1-grams:
    -99	<s>	-0.30103               log10 p(w | h), the words h w, and log10 of the back-off weight of hw
    -0.60206	</s>                       no weight where it is 1
    ...
    \end\

`<s>` and `</s>` are one token here, `<eos>`: the start of the line that it opens, the end of the line that it closes. So the
format knows models that forget at every line's end, and no others. -99 stands for a probability of zero, as in SRILM.

What is read was written by others: every line is bounded in length, every number is checked, and memory is taken only for
lines that are there. All errors are DataErrors that name the line.
"""

from __future__ import annotations

import codecs
import logging
import math
import os
from array import array
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO, NoReturn

import numpy as np
from numpy.typing import NDArray

from lmtrain.data.text import check_beginning, check_file, listing, unreadable
from lmtrain.data.vocabulary import EOS, UNK
from lmtrain.errors import DataError, ResourceError, SettingsError
from lmtrain.models.backoff import BackoffTable
from lmtrain.models.base import StatePolicy
from lmtrain.models.ngram import MAX_ORDER, NgramModel

log = logging.getLogger("lmtrain")

LOG_ZERO = -99.0  # log10; this or less is a probability of zero
LOG_10 = math.log(10)
MAX_LINE_BYTES = 1 << 16


# ---- writing


def write_arpa(model: NgramModel, tokens: Sequence[str], path: str | Path) -> None:
    """Writes `model`, whose tokens read `tokens` (by id), so that the file appears complete or not at all.

    Ten digits are written, so log-probabilities come back to a relative 1e-9. Raises SettingsError for a model that
    does not forget at every line's end, DataError for a token that ARPA cannot hold, ResourceError where the file cannot
    be written.
    """
    if model.state_policy is not StatePolicy.line:
        raise SettingsError(
            f"This model has model.state_policy={model.state_policy.name}.",
            "An ARPA file can only hold a model that forgets at every line's end.",
            "Train with model.state_policy=line.",
        )
    assert len(tokens) == model.vocab_size
    _check_tokens(tokens, model.eos_id)
    path = Path(path)
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        with open(partial, "w", encoding="utf-8", newline="\n") as file:
            file.writelines(_iter_lines(model, tokens))
            file.flush()
            os.fsync(file.fileno())
        os.replace(partial, path)
    except OSError as error:
        raise ResourceError(
            f"{path} cannot be written: {error.strerror}.",
            "Allowed is a file in a directory that exists.",
            "Give another path.",
        ) from error
    finally:
        partial.unlink(missing_ok=True)


def _check_tokens(tokens: Sequence[str], eos_id: int) -> None:
    """Raises DataError for a token that would not come back as it is."""
    seen = {"<s>", "</s>", EOS}
    for number, token in enumerate(tokens):
        if number == eos_id:
            continue
        text = token.encode("utf-8", "replace")
        if token in seen or text.split() != [text] or text.decode() != token:
            raise DataError(
                f"The token {token!r} (id {number}) cannot stand in an ARPA file.",
                f"Allowed are distinct texts without blanks, other than <s>, </s> and {EOS}.",
                "Write the model of a word tokenizer, or give other texts for its tokens.",
            )
        seen.add(token)


def _iter_lines(model: NgramModel, tokens: Sequence[str]) -> Iterator[str]:
    table = model.table
    as_context = [*tokens]
    as_last = [*tokens]
    as_context[model.eos_id], as_last[model.eos_id] = "<s>", "</s>"
    yield "\\data\\\n"
    for order, keys in enumerate(table.keys, 1):
        yield f"ngram {order}={len(keys) + (order == 1)}\n"
    contexts = [""]
    for order in range(1, table.order + 1):
        yield f"\n\\{order}-grams:\n"
        places, words = np.divmod(table.keys[order - 1], table.vocab_size)
        texts = [f"{contexts[place]}{as_last[word]}" for place, word in zip(places.tolist(), words.tolist(), strict=True)]
        log_probs = _format(table.log_probs[order - 1])
        rests = [""] * len(texts)
        if order < table.order:
            rests = ["" if rest == "0" else f"\t{rest}" for rest in _format(table.log_rests[order - 1])]
        for place, (log_prob, text, rest) in enumerate(zip(log_probs, texts, rests, strict=True)):
            if order == 1 and place == model.eos_id:
                yield f"{LOG_ZERO:g}\t<s>{rest}\n"
                rest = ""
            yield f"{log_prob}\t{text}{rest}\n"
        contexts = [f"{text} " for text in (as_context if order == 1 else texts)]
    yield "\n\\end\\\n"


def _format(nats: NDArray[np.float64]) -> list[str]:
    """As log10, with ten digits; zero as "0"."""
    log10 = np.maximum(nats / LOG_10, LOG_ZERO) + 0.0  # -0.0 + 0.0 is 0.0
    return [f"{value:.10g}" for value in log10.tolist()]


# ---- reading


def read_arpa(path: str | Path, tokens: Sequence[str] | None = None) -> tuple[NgramModel, list[str]]:
    """The model in an ARPA file, and its tokens by id: `tokens`, which must be those of the file, or else in its order.

    As in KenLM, the n-gram in front of every longer one's last word must be listed. A file without `<unk>` (SRILM's of a
    closed vocabulary) gives it the probability zero. Raises DataError naming the line.
    """
    path = Path(path)
    check_file(path)
    try:
        with open(path, "rb") as file:
            beginning = file.read(8)
            check_beginning(path, beginning)
            file.seek(len(codecs.BOM_UTF8) if beginning.startswith(codecs.BOM_UTF8) else 0)
            return _read(_Lines(file, path), tokens)
    except OSError as error:
        raise unreadable(path, error) from None


def _read(lines: _Lines, wanted: Sequence[str] | None) -> tuple[NgramModel, list[str]]:
    numbers = _read_numbers(lines)
    tokens, table = _read_unigrams(lines, numbers)
    if wanted is not None:
        tokens, table = _reordered(tokens, table, wanted, lines.path)
    eos_id = tokens.index(EOS)
    inner = {token.encode(): number for number, token in enumerate(tokens) if number != eos_id}
    for order in range(2, len(numbers) + 1):
        _read_order(lines, order, numbers, table, inner, eos_id)
    if lines.next_filled() != b"\\end\\":
        lines.refuse("is not the end of the file", "After the last order comes \\end\\.")
    return NgramModel.from_table(table, eos_id=eos_id), tokens


def _reordered(tokens: Sequence[str], table: BackoffTable, wanted: Sequence[str], path: Path) -> tuple[list[str], BackoffTable]:
    """A table of order 1 with its words in another order."""
    missing, unwanted = sorted({*wanted} - {*tokens}), sorted({*tokens} - {*wanted})
    if missing or unwanted:
        raise DataError(
            f"{path} has another vocabulary: it lacks {listing(missing)}, and has besides {listing(unwanted)}.",
            f"Allowed are exactly the {len(wanted):,} words of the model whose vocabulary is to be taken.",
            "Estimate the file from the training text of that model, with the same words left out.",
        )
    place = {token: number for number, token in enumerate(tokens)}
    places = [place[token] for token in wanted]
    log_probs, log_rests = ([row[places] for row in rows] for rows in (table.log_probs, table.log_rests))
    return [*wanted], BackoffTable(table.vocab_size, table.keys, log_probs, log_rests)


class _Lines:
    """The lines of a file, one by one, each bounded, with the number of the last one for error messages."""

    def __init__(self, file: IO[bytes], path: Path) -> None:
        self.file, self.path, self.number, self.size = file, path, 0, os.fstat(file.fileno()).st_size

    def next(self) -> bytes:
        line = self.file.readline(MAX_LINE_BYTES + 1)
        self.number += 1
        if not line:
            self.refuse("is missing", "An ARPA file ends with \\end\\; this one ends too early.")
        if len(line) > MAX_LINE_BYTES:
            self.refuse("is too long", f"A line may have {MAX_LINE_BYTES} bytes.")
        return line

    def next_filled(self) -> bytes:
        """The next line that is not blank, without the blanks around it."""
        while not (line := self.next().strip()):
            pass
        return line

    def refuse(self, problem: str, allowed: str, number: int | None = None) -> NoReturn:
        raise DataError(
            f"Line {number or self.number} of {self.path} {problem}.", allowed, "Write the ARPA file again with its program."
        )


def _read_numbers(lines: _Lines) -> list[int]:
    """How many n-grams of each order the head of the file announces; the file must be large enough for them."""
    while (line := lines.file.readline(MAX_LINE_BYTES)).strip() != b"\\data\\":
        lines.number += 1
        if not line:
            raise DataError(
                f"{lines.path} is no ARPA file: none of its lines is \\data\\.",
                "Allowed are n-gram models as text, as KenLM, SRILM and lmtrain write them.",
                "Give such a file; a binary model of KenLM is written as text by the program that made it.",
            )
    lines.number += 1
    numbers: list[int] = []
    room = lines.size
    while line := lines.next().strip():
        order = len(numbers) + 1
        start, _, number = line.replace(b" ", b"").partition(b"=")
        if start != b"ngram%d" % order or not number.isdigit() or len(number) > 18 or order > MAX_ORDER:
            lines.refuse("cannot be read", f"Here stands 'ngram {order}=NUMBER'; orders go from 1 to at most {MAX_ORDER}.")
        numbers.append(int(number))
        room -= numbers[-1] * (2 * order + 2)  # the shortest line: a digit, a tab, letters with blanks between, a newline
        if room < 0:
            lines.refuse("announces too many n-grams", f"The whole file has {lines.size} bytes.")
    if not numbers:
        lines.refuse("cannot be read", "Here stands 'ngram 1=NUMBER'.")
    return numbers


def _read_unigrams(lines: _Lines, numbers: list[int]) -> tuple[list[str], BackoffTable]:
    """The tokens by id, and a table of order 1."""
    rows = _iter_rows(lines, 1, numbers)
    tokens: dict[str, int] = {}
    log_probs, log_rests = array("d"), array("d")
    marks: dict[bytes, tuple[float, float]] = {}
    for log_prob, (word,), log_rest in rows:
        if word in (b"<s>", b"</s>"):
            if word in marks:
                lines.refuse("repeats a word", "Every word is listed once.")
            marks[word] = log_prob, log_rest
            if len(marks) == 2:
                continue
            word = EOS.encode()
        elif word == EOS.encode():
            lines.refuse(f"lists {EOS}", "The end of a line is written <s> and </s>.")
        token = _decode(lines, word)
        if token in tokens:
            lines.refuse("repeats a word", "Every word is listed once.")
        tokens[token] = len(tokens)
        log_probs.append(log_prob)
        log_rests.append(log_rest)
    if len(marks) < 2:
        lines.refuse("ends the 1-grams without <s> or </s>", "Both must be listed.")
    if UNK not in tokens:
        log.warning("%s lists no %s: words that it does not know have the probability zero.", lines.path, UNK)
        tokens[UNK] = len(tokens)
        log_probs.append(-math.inf)
        log_rests.append(0.0)
    eos_id = tokens[EOS]
    log_probs[eos_id], log_rests[eos_id] = marks[b"</s>"][0], marks[b"<s>"][1]
    table = BackoffTable(len(tokens), [np.arange(len(tokens))], [np.array(log_probs)], [])
    if len(numbers) > 1:
        table.log_rests.append(np.array(log_rests))
    return [*tokens], table


def _read_order(
    lines: _Lines, order: int, numbers: list[int], table: BackoffTable, inner: Mapping[bytes, int], eos_id: int
) -> None:
    """Adds the n-grams of one order to the table of those below it."""
    first, last = {**inner, b"<s>": eos_id}, {**inner, b"</s>": eos_id}
    words_of = [first, *[inner] * (order - 2), last]
    words, log_probs, log_rests = array("q"), array("d"), array("d")
    for log_prob, row, log_rest in _iter_rows(lines, order, numbers):
        try:
            words.extend([ids[word] for ids, word in zip(words_of, row, strict=True)])
        except KeyError as error:
            lines.refuse(
                f"has the word {error.args[0].decode('utf-8', 'replace')!r} at a place where it cannot be",
                "Allowed are the words of the 1-grams; <s> only comes first, </s> only last.",
            )
        log_probs.append(log_prob)
        log_rests.append(log_rest)
    first_number = lines.number - numbers[order - 1] + 1
    words_NK = np.array(words, np.int64).reshape(-1, order)
    context_N = words_NK[:, 0]
    for length in range(2, order):
        context_N = table.find(length, context_N, words_NK[:, length - 1])
    if (context_N < 0).any():
        number = first_number + int(np.argmax(context_N < 0))
        lines.refuse(f"lists an n-gram whose first {order - 1} words are not listed", "They must be an n-gram too.", number)
    keys_N = context_N * table.vocab_size + words_NK[:, -1]
    sorted_N = np.argsort(keys_N, kind="stable")
    keys_N = keys_N[sorted_N]
    repeats_N = np.flatnonzero(keys_N[1:] == keys_N[:-1])
    if len(repeats_N):
        lines.refuse("repeats an n-gram", "Every n-gram is listed once.", first_number + int(sorted_N[repeats_N[0] + 1]))
    table.keys.append(keys_N)
    table.log_probs.append(np.array(log_probs)[sorted_N])
    if order < len(numbers):
        table.log_rests.append(np.array(log_rests)[sorted_N])


def _iter_rows(lines: _Lines, order: int, numbers: list[int]) -> Iterator[tuple[float, list[bytes], float]]:
    """log-probability, words, and log of the back-off weight (both in nats) of every n-gram of one order."""
    if lines.next_filled() != b"\\%d-grams:" % order:
        lines.refuse("cannot be read", f"Here stands '\\{order}-grams:'.")
    most = order + 1 + (order < len(numbers))
    for _ in range(numbers[order - 1]):
        fields = lines.next().split()
        if not order + 1 <= len(fields) <= most:
            lines.refuse(
                f"has {len(fields)} fields",
                f"Here stand a log-probability, {order} words and, below the highest order only, a back-off weight.",
            )
        log_prob = _nats(lines, fields[0])
        if log_prob > 0:
            lines.refuse("has a probability above one", "Log-probabilities are at most 0.")
        log_rest = _nats(lines, fields[-1]) if len(fields) == order + 2 else 0.0
        if log_rest > -LOG_ZERO * LOG_10:
            lines.refuse("has an absurd back-off weight", f"Allowed is at most {-LOG_ZERO:g}.")
        yield log_prob, fields[1 : order + 1], log_rest


def _nats(lines: _Lines, field: bytes) -> float:
    """A log10 as natural logarithm; -inf for LOG_ZERO and less."""
    try:
        value = float(field) * LOG_10
    except ValueError:
        value = math.nan
    if math.isnan(value):
        lines.refuse(
            f"has {field[:40].decode('utf-8', 'replace')!r} where a number is needed", "Allowed is a number such as -1.5."
        )
    return value if value > LOG_ZERO * LOG_10 else -math.inf


def _decode(lines: _Lines, word: bytes) -> str:
    try:
        return word.decode()
    except UnicodeDecodeError:
        lines.refuse("is not UTF-8 text", "Words are UTF-8.")
