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
format knows models that forget at every line's end, and no others. A word of the text that is spelt as one of the two marks
gets a backslash: `\<s>`, `\</s>`. -99 stands for a probability of zero, as in SRILM.

Programs differ in how they write it, and all of this is read: anything before \data\, blank lines anywhere, tabs or blanks,
\r\n, a byte order mark, `ngram  1 =  4`, -inf for zero, 0 for the probability of `<s>` (KenLM), a weight of 0 in the highest
order, a logarithm just above 0 (IRSTLM), `<UNK>` for `<unk>` or neither, n-grams whose context is not listed (SRILM), `<s>` and
`</s>` where no line can have them, and files packed by gzip, bzip2 or xz.

What is read was written by others: every line is bounded in length, every number is checked, and memory is taken only for
lines that are there. All errors are DataErrors that name the line. What is not a distribution is read with a warning.
"""

from __future__ import annotations

import codecs
import logging
import math
import re
import shlex
from array import array
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import BinaryIO, NoReturn

import numpy as np
from numpy.typing import NDArray

from lmtrain.data.files import listing
from lmtrain.data.packed import open_unpacked, packing, read_to_end
from lmtrain.data.text import check_beginning
from lmtrain.data.vocabulary import EOS, MAX_TYPES, MAX_WORD, UNK
from lmtrain.errors import DataError, ResourceError, SettingsError
from lmtrain.files.unfinished import new_file
from lmtrain.models.backoff import BackoffTable
from lmtrain.models.base import StatePolicy
from lmtrain.models.ngram import NgramModel
from lmtrain.progress import watched
from lmtrain.rules import MAX_ORDER

log = logging.getLogger("lmtrain")

LOG_ZERO = -99.0  # log10; this or less is a probability of zero
LOG_10 = math.log(10)
MAX_LINE_BYTES = 1 << 16  # besides the words
MAX_ABOVE_ONE = 1e-3  # log10; a rounded probability of one
MAX_OFF_ONE = 0.01  # by which the probabilities behind a context may miss one, as logarithms with few digits do
MAX_SUMMED = 1 << 22  # probabilities that are summed, for each order, to see whether they do

MARK = re.compile(r"\\*</?s>")  # what must be told from the marks of a line, with the backslashes that do it
NUMBER = re.compile(rb"[+-]?(?:(?:\d+\.?\d*|\.\d+)(?:e[+-]?\d+)?|inf(?:inity)?)", re.IGNORECASE)
RELATIVES = (  # what other files of n-gram models begin with, what they are, what to type
    (
        rb"mmap lm http://kheafield\.com", "a binary model of KenLM",
        "Give the ARPA file that it was built from, as  lmplz -o 3 < text.txt > model.arpa  writes.",
    ),
    (rb"SRILM_BINARY_NGRAM", "a binary model of SRILM", "Type  ngram -lm {path} -write-lm model.arpa  and give model.arpa."),
    (rb"\s*iARPA\b", "an intermediate file of IRSTLM (iARPA)", "Type  compile-lm {path} --text=yes model.arpa  and give it."),
    (
        rb"\s*qARPA\b", "a quantised model of IRSTLM (qARPA)",
        "Give the model before  quantize-lm,  as  compile-lm model.iarpa.gz --text=yes model.arpa  writes it.",
    ),
    (rb"Q?blmt", "a binary model of IRSTLM", "Type  compile-lm {path} --text=yes model.arpa  and give model.arpa."),
)  # fmt: skip


# ---- writing


def write_arpa(model: NgramModel, tokens: Sequence[str], path: str | Path) -> None:
    """Writes `model`, whose tokens read `tokens` (by id), so that the file appears complete or not at all.

    It is packed where its name ends in .gz, .bz2 or .xz. Ten digits are written, so log-probabilities come back to a
    relative 1e-9. Raises SettingsError for a model that does not forget at every line's end and for a name in .zst, DataError
    for a token that ARPA cannot hold, ResourceError where the file cannot be written.
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
    try:
        number = sum(listed(model))
        with (
            new_file(path) as file,
            packing(file, path.name) as packed,
            watched("Writing n-grams", number, "n-grams") as advance,
        ):
            for line in _iter_lines(model, tokens):
                packed.write(line.encode())
                advance(1)
    except OSError as error:
        raise ResourceError(
            f"{path} cannot be written: {error.strerror}.",
            "Allowed is a file in a directory that you may write in.",
            "Give another path.",
        ) from error


def listed(model: NgramModel) -> list[int]:
    """How many n-grams of each order a file lists: also `<s>`, which shares its number with `</s>` here."""
    return [len(keys) + (order == 1) for order, keys in enumerate(model.table.keys, 1)]


def _check_tokens(tokens: Sequence[str], eos_id: int) -> None:
    """Raises DataError for a token that would not come back as it is."""
    seen = {EOS}
    for number, token in enumerate(tokens):
        if number == eos_id:
            continue
        text = token.encode("utf-8", "replace")
        if token in seen or text.split() != [text] or text.decode() != token:
            raise DataError(
                f"The token {token!r} (id {number}) cannot stand in an ARPA file.",
                f"Allowed are distinct texts without spaces, other than {EOS}.",
                "Write the model of a word tokenizer, or give other texts for its tokens.",
            )
        seen.add(token)


def _iter_lines(model: NgramModel, tokens: Sequence[str]) -> Iterator[str]:
    table = model.table
    as_context = [*map(escaped, tokens)]
    as_last = [*as_context]
    as_context[model.eos_id], as_last[model.eos_id] = "<s>", "</s>"
    yield "\\data\\\n"
    for order, number in enumerate(listed(model), 1):
        yield f"ngram {order}={number}\n"
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


def escaped(token: str) -> str:
    """A word as a file has it: `<s>` and `</s>`, which mark lines there, get a backslash, and one more where they have some."""
    return f"\\{token}" if MARK.fullmatch(token) else token


def _unescaped(token: str) -> str:
    return token[1:] if token.startswith("\\") and MARK.fullmatch(token) else token


def _format(nats: NDArray[np.float64]) -> list[str]:
    """As log10, with ten digits; zero as "0"."""
    log10 = np.maximum(nats / LOG_10, LOG_ZERO) + 0.0  # -0.0 + 0.0 is 0.0
    return [f"{value:.10g}" for value in log10.tolist()]


# ---- reading


def read_arpa(path: str | Path, tokens: Sequence[str] | None = None) -> tuple[NgramModel, list[str]]:
    """The model in an ARPA file, and its tokens by id: `tokens`, which must be those of the file, or else in its order.

    A file without `<unk>` (SRILM's of a closed vocabulary) gives it the probability zero; where `tokens` have no `<unk>`, that
    of the file is left out. Raises DataError naming the line.
    """
    path = Path(path)
    with open_unpacked(path) as (file, packer):
        beginning = file.read(64)
        check_beginning(path, beginning)
        _check_relatives(path, beginning)
        file.seek(len(codecs.BOM_UTF8) if beginning.startswith(codecs.BOM_UTF8) else 0)
        model = _read(_Lines(file, path, packer), tokens)
        if packer:
            read_to_end(file)
        return model


def _check_relatives(path: Path, beginning: bytes) -> None:
    for magic, kind, remedy in RELATIVES:
        if re.match(magic, beginning):
            raise DataError(f"{path} is {kind}.", "Allowed are ARPA files.", remedy.format(path=shlex.quote(str(path))))


def _read(lines: _Lines, wanted: Sequence[str] | None) -> tuple[NgramModel, list[str]]:
    numbers = _read_numbers(lines)
    tokens, table = _read_unigrams(lines, numbers, has_unk=wanted is None or UNK in wanted)
    if wanted is not None:
        tokens, table = _reordered(tokens, table, wanted, lines.path)
    eos_id = tokens.index(EOS)
    inner = {escaped(token).encode(): number for number, token in enumerate(tokens) if number != eos_id}
    if UNK in tokens:
        inner.setdefault(b"<UNK>", inner[UNK.encode()])
    lines.words_bytes = len(numbers) * max(map(len, inner))
    for order in range(2, len(numbers) + 1):
        _read_order(lines, order, numbers, table, inner, eos_id)
    lines.section(b"\\end\\", numbers)
    _warn_of_sums(table, tokens, eos_id, lines.path)
    return NgramModel.from_table(table, eos_id=eos_id), tokens


def _reordered(tokens: Sequence[str], table: BackoffTable, wanted: Sequence[str], path: Path) -> tuple[list[str], BackoffTable]:
    """A table of order 1 with its words in another order, and without `<unk>` where that is not wanted."""
    missing, unwanted = sorted({*wanted} - {*tokens}), sorted({*tokens} - {*wanted, UNK})
    if missing or unwanted:
        raise DataError(
            f"{path} has another vocabulary: it lacks {listing(missing)}, and has besides {listing(unwanted)}.",
            f"Allowed are exactly the {len(wanted):,} words of the model whose vocabulary is to be taken.",
            "Estimate the file from the training text of that model, with the same words left out.",
        )
    place = {token: number for number, token in enumerate(tokens)}
    places = [place[token] for token in wanted]
    log_probs, log_rests = ([row[places] for row in rows] for rows in (table.log_probs, table.log_rests))
    return [*wanted], BackoffTable(len(wanted), [np.arange(len(wanted))], log_probs, log_rests)


class _Lines:
    """The lines of a file, one by one, each bounded, with the number of the last one for error messages."""

    def __init__(self, file: BinaryIO, path: Path, packer: str | None) -> None:
        self.file, self.path, self.packer, self.number = file, path, packer, 0
        self.size = path.stat().st_size if packer is None else None
        self.warned: set[str] = set()
        self._held: bytes | None = None
        self.words_bytes = 4 * MAX_WORD  # of the words of a line: one of the longest, until it is known how long they are

    def next(self) -> bytes:
        most = MAX_LINE_BYTES + self.words_bytes
        line = self.file.readline(most + 1)
        self.number += 1
        if not line:
            self.refuse(
                "is missing", "An ARPA file ends with \\end\\; this one ends too early.", f"It was cut off: {self._again()}."
            )
        if len(line) > most:
            self.refuse("is too long", f"A line may have {most} bytes.")
        return line

    def next_filled(self) -> bytes:
        """The next line that is not blank, without the blanks around it."""
        line, self._held = self._held, None
        while not line:
            line = self.next().strip()
        return line

    def hold(self, line: bytes) -> None:
        """Gives `line` back; it comes again as the next one."""
        self._held = line

    def section(self, header: bytes, numbers: list[int], order: int = 0) -> None:
        """Reads a header. Where more n-grams stand before it than were announced for the order above, says how many."""
        line = self.next_filled()
        if line.rstrip(b": \t") == header.rstrip(b":"):
            return
        order = order or len(numbers) + 1
        if not line.startswith(b"\\") and order > 1:
            number, listed = self.number, numbers[order - 2]
            while not line.startswith(b"\\"):
                line, listed = self.next_filled(), listed + 1
            self.wrong_number(order - 1, numbers[order - 2], listed, number)
        if header == b"\\end\\":
            self.refuse("is not the end of the file", "After the last order comes \\end\\.")
        self.refuse("cannot be read", f"Here stands '{header.decode()}'.")

    def wrong_number(self, order: int, announced: int, listed: int, number: int | None = None) -> NoReturn:
        mend = self.piped(f"sed 's/^ngram *{order} *=.*/ngram {order}={listed}/'")
        self.refuse(
            f"shows that {listed:,} {order}-grams are listed, where the head announces {announced:,}",
            "Both must be the same, since lines may have been lost.",
            f"Type  {mend} > mended.arpa  if all are there, and give mended.arpa; else {self._again()}.",
            number,
        )

    def refuse(self, problem: str, allowed: str, remedy: str | None = None, number: int | None = None) -> NoReturn:
        number = number or self.number
        see = f"Type  {self.piped(f'sed -n {number}p')}  to see it; {self._again()}."
        raise DataError(f"Line {number} of {self.path} {problem}.", allowed, remedy or see)

    def warn(self, problem: str) -> None:
        """Says once what was done about a kind of line."""
        if problem not in self.warned:
            self.warned.add(problem)
            log.warning("%s, line %d: %s", self.path, self.number, problem)

    def piped(self, command: str) -> str:
        """`command` on the text of this file, as one types it."""
        path = shlex.quote(str(self.path))
        return f"{self.packer} -dc {path} | {command}" if self.packer else f"{command} {path}"

    def _again(self) -> str:
        return "copy the file again, or write it again, for example with  lmplz -o 3 < text.txt > model.arpa"


def _read_numbers(lines: _Lines) -> list[int]:
    """How many n-grams of each order the head of the file announces; the file must be large enough for them."""
    while (line := lines.file.readline(MAX_LINE_BYTES)).strip() != b"\\data\\":
        lines.number += 1
        if not line:
            raise DataError(
                f"{lines.path} is no ARPA file: none of its lines is \\data\\.",
                "Allowed are n-gram models as text, as KenLM, SRILM, MITLM, IRSTLM and lmtrain write them.",
                "Give such a file; for example  lmplz -o 3 < text.txt > model.arpa  writes one.",
            )
    lines.number += 1
    numbers: list[int] = []
    room = lines.size
    while not (line := lines.next_filled()).startswith(b"\\"):
        order = len(numbers) + 1
        found = re.fullmatch(rb"ngram\s+(\d{1,4})\s*=\s*(\d{1,18})", line)
        if not found or int(found[1]) != order:
            lines.refuse("cannot be read", f"Here stands 'ngram {order}=NUMBER'; orders go from 1 to at most {MAX_ORDER}.")
        if order > MAX_ORDER:
            lines.refuse(
                f"announces n-grams of order {order}", f"Orders go from 1 to at most {MAX_ORDER}.",
                f"Type  ngram -order {MAX_ORDER} -lm {shlex.quote(str(lines.path))} -write-lm lower.arpa  (SRILM) and give it.",
            )  # fmt: skip
        numbers.append(int(found[2]))
        if room is not None:
            room -= numbers[-1] * (2 * order + 2)  # the shortest line: a digit, a tab, letters with blanks between, a newline
            if room < 0:
                lines.refuse("announces too many n-grams", f"The whole file has {lines.size} bytes.")
    if not numbers:
        lines.refuse("cannot be read", "Here stands 'ngram 1=NUMBER'.")
    lines.hold(line)
    if numbers[0] > MAX_TYPES + 3:  # <s>, </s> and <unk>
        raise DataError(
            f"{lines.path} lists {numbers[0]:,} words.",
            f"A model has at most {MAX_TYPES:,}, besides <s>, </s> and <unk>.",
            "Prune the vocabulary with the program that made the file.",
        )
    return numbers


def _read_unigrams(lines: _Lines, numbers: list[int], *, has_unk: bool) -> tuple[list[str], BackoffTable]:
    """The tokens by id, and a table of order 1; `has_unk`: with `<unk>`, whether it is listed or not."""
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
            rename = lines.piped(f"sed 's/{EOS}/<end>/g'")
            lines.refuse(
                f"lists {EOS}", "The end of a line is written <s> and </s>.",
                f"Type  {rename} > renamed.arpa  if it is another word, and give renamed.arpa.",
            )  # fmt: skip
        token = _unescaped(_decode(lines, word))
        if len(token) > MAX_WORD:
            lines.refuse("has too long a word", f"A word has at most {MAX_WORD:,} characters.")
        if token in tokens:
            lines.refuse("repeats a word", "Every word is listed once.")
        tokens[token] = len(tokens)
        log_probs.append(log_prob)
        log_rests.append(log_rest)
    if len(marks) < 2:
        lines.refuse(
            "ends the 1-grams without <s> or </s>", "Both must be listed.",
            "Write the file again from lines with both, for example with  lmplz -o 3 < text.txt > model.arpa  or"
            "  ngram-count -text text.txt -lm model.arpa  (without -no-sos and -no-eos).",
        )  # fmt: skip
    if UNK not in tokens and "<UNK>" in tokens:
        tokens = {UNK if token == "<UNK>" else token: number for token, number in tokens.items()}
    if UNK not in tokens and has_unk:
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
    words, log_probs, log_rests, found_at = array("q"), array("d"), array("d"), array("q")
    for log_prob, row, log_rest in _iter_rows(lines, order, numbers):
        try:
            words.extend([ids[word] for ids, word in zip(words_of, row, strict=True)])
        except KeyError as error:
            if error.args[0] in (b"<s>", b"</s>"):
                lines.warn("<s> can only come first, and </s> last; n-grams that have them elsewhere are left out.")
                continue
            lines.refuse(
                f"has the word {error.args[0].decode('utf-8', 'replace')!r} at a place where it cannot be",
                "Allowed are the words of the 1-grams.",
            )
        log_probs.append(log_prob)
        log_rests.append(log_rest)
        found_at.append(lines.number)
    words_NK = np.array(words, np.int64).reshape(-1, order)
    if (_places(table, words_NK[:, :-1]) < 0).any():
        _list_contexts(table, words_NK[:, :-1])
    keys_N = _places(table, words_NK[:, :-1]) * table.vocab_size + words_NK[:, -1]
    sorted_N = np.argsort(keys_N, kind="stable")
    keys_N = keys_N[sorted_N]
    repeats_N = np.flatnonzero(keys_N[1:] == keys_N[:-1])
    if len(repeats_N):
        lines.refuse("repeats an n-gram", "Every n-gram is listed once.", number=found_at[int(sorted_N[repeats_N[0] + 1])])
    table.keys.append(keys_N)
    table.log_probs.append(np.array(log_probs)[sorted_N])
    if order < len(numbers):
        table.log_rests.append(np.array(log_rests)[sorted_N])


def _places(table: BackoffTable, words_NK: NDArray[np.int64]) -> NDArray[np.int64]:
    """Where the table lists n-grams [N, K]; -1 where it does not."""
    place_N = words_NK[:, 0]
    for length in range(2, words_NK.shape[1] + 1):
        place_N = table.find(length, place_N, words_NK[:, length - 1])
    return place_N


def _list_contexts(table: BackoffTable, words_NK: NDArray[np.int64]) -> None:
    """Lists the n-grams [N, K] and their beginnings, where they are not listed yet, so that longer ones can go on from them.

    They get the probability that backing off gives them and a back-off weight of 1, so no probability changes, but for one: a
    back-off weight above 1 can make that "probability" larger than 1, in files that are no distributions, and it becomes 1.
    """
    for length in range(2, words_NK.shape[1] + 1):
        new_RK = np.unique(words_NK[_places(table, words_NK[:, :length]) < 0, :length], axis=0)
        tokens_PR, history_P1 = new_RK.T[:-1], np.arange(1, length)[:, None]
        contexts = [place_PR[-1] for place_PR in table.find_contexts(tokens_PR, np.broadcast_to(history_P1, tokens_PR.shape))]
        log_probs_R = np.minimum(table.target_log_probs(contexts, new_RK[:, -1]), 0)
        old_keys = table.keys[length - 1]
        keys = np.concatenate([old_keys, _places(table, new_RK[:, :-1]) * table.vocab_size + new_RK[:, -1]])
        sorted_N = np.argsort(keys)
        table.keys[length - 1] = keys[sorted_N]
        table.log_probs[length - 1] = np.concatenate([table.log_probs[length - 1], log_probs_R])[sorted_N]
        table.log_rests[length - 1] = np.concatenate([table.log_rests[length - 1], np.zeros(len(new_RK))])[sorted_N]
        if length < table.order:  # the order above says where its contexts are listed: elsewhere now
            contexts_N, words_N = np.divmod(table.keys[length], table.vocab_size)
            moved_N = np.searchsorted(table.keys[length - 1], old_keys[contexts_N])
            table.keys[length] = moved_N * table.vocab_size + words_N


def _iter_rows(lines: _Lines, order: int, numbers: list[int]) -> Iterator[tuple[float, list[bytes], float]]:
    """log-probability, words, and log of the back-off weight (both in nats) of every n-gram of one order."""
    with watched(f"Reading n-grams of order {order}", numbers[order - 1], "n-grams") as advance:
        for row in _iter_checked(lines, order, numbers):
            yield row
            advance(1)


def _iter_checked(lines: _Lines, order: int, numbers: list[int]) -> Iterator[tuple[float, list[bytes], float]]:
    lines.section(b"\\%d-grams:" % order, numbers, order)
    for listed in range(numbers[order - 1]):
        line = lines.next_filled()
        if line.startswith(b"\\"):
            lines.wrong_number(order, numbers[order - 1], listed)
        fields = line.split()
        if not order + 1 <= len(fields) <= order + 2:
            lines.refuse(
                f"has {len(fields)} fields",
                f"Here stand a log-probability, {order} words and, below the highest order only, a back-off weight.",
            )
        log_prob = _nats(lines, fields[0])
        if log_prob > 0 and fields[1 : order + 1] != [b"<s>"]:  # of which KenLM and others write anything
            if log_prob > MAX_ABOVE_ONE * LOG_10:
                lines.refuse("has a probability above one", "Log-probabilities are at most 0.")
            lines.warn("a probability just above one is read as one.")
        log_rest = _nats(lines, fields[-1]) if len(fields) == order + 2 else 0.0
        if log_rest > -LOG_ZERO * LOG_10:
            lines.refuse("has a back-off weight that is too large", f"Allowed is at most {-LOG_ZERO:g}.")
        if log_rest and order == len(numbers):
            lines.refuse(f"has a back-off weight in the highest order, {order}", "There it can only be 0 or left out.")
        yield min(log_prob, 0.0), fields[1 : order + 1], log_rest


def _nats(lines: _Lines, field: bytes) -> float:
    """A log10 as natural logarithm; -inf for LOG_ZERO and less."""
    if not NUMBER.fullmatch(field):
        lines.refuse(
            f"has {field[:40].decode('utf-8', 'replace')!r} where a number is needed",
            "Allowed is a number such as -1.5 or -1e-05, with a point.",
        )
    value = float(field) * LOG_10
    return value if value > LOG_ZERO * LOG_10 else -math.inf


def _decode(lines: _Lines, word: bytes) -> str:
    try:
        return word.decode()
    except UnicodeDecodeError:
        convert = f"iconv -f LATIN1 -t UTF-8 {shlex.quote(str(lines.path))}"
        if lines.packer:
            convert = lines.piped("iconv -f LATIN1 -t UTF-8")
        lines.refuse(
            "is not UTF-8 text", "Words are UTF-8.",
            f"Type  {convert} > utf8.arpa  (or the encoding that it has) and give utf8.arpa.",
        )  # fmt: skip


# ---- whether it is a distribution


def _warn_of_sums(table: BackoffTable, tokens: Sequence[str], eos_id: int, path: Path) -> None:
    """Warns where probabilities do not sum to one: those of the 1-grams, and those behind some contexts of every length."""
    worst, worst_words = 1.0, list[int]()
    num_wrong = num_seen = 0
    for words_RK in _iter_contexts(table):
        with np.errstate(over="ignore"):
            sums_R = np.exp(_distributions(table, words_RK)).sum(1)
        far_R = np.abs(sums_R - 1)
        num_seen, num_wrong = num_seen + len(sums_R), num_wrong + int((far_R > MAX_OFF_ONE).sum())
        place = int(far_R.argmax()) if len(far_R) else None
        if place is not None and far_R[place] > max(abs(worst - 1), MAX_OFF_ONE):
            worst, worst_words = float(sums_R[place]), words_RK[place].tolist()
    if num_wrong:
        context = " ".join("<s>" if word == eos_id else tokens[word] for word in worst_words)
        where = f"behind {context!r}" if context else "of the 1-grams"
        log.warning(
            "%s is no distribution: the probabilities %s sum to %.6g (%d of %d contexts looked at do not sum to 1). Where a "
            "sum is above 1, perplexities are too low to be compared; what is missing below 1 is given to no word.",
            path, where, worst, num_wrong, num_seen,
        )  # fmt: skip


def _iter_contexts(table: BackoffTable) -> Iterator[NDArray[np.int64]]:
    """The words [R, K] of contexts of K = 0, 1, ... words; all of them, or evenly chosen ones where those are many."""
    yield np.empty((1, 0), np.int64)
    most = max(1, MAX_SUMMED // table.vocab_size)
    for length in range(1, table.order):
        number = len(table.keys[length - 1])
        place_R = np.unique(np.linspace(0, number - 1, min(most, number)).astype(np.int64))
        words = []
        for order in range(length, 0, -1):
            place_R, word_R = np.divmod(table.keys[order - 1][place_R], table.vocab_size)
            words.append(word_R)
        yield np.stack(words[::-1], 1)


def _distributions(table: BackoffTable, words_RK: NDArray[np.int64]) -> NDArray[np.float64]:
    """Log-probabilities [R, V] of every word behind each of R contexts."""
    num_contexts, length = words_RK.shape
    if not length:
        return table.distributions([], num_contexts)
    history_P1 = np.arange(1, length + 1)[:, None]
    contexts = table.find_contexts(words_RK.T, np.broadcast_to(history_P1, (length, num_contexts)))
    return table.distributions([place_PR[-1] for place_PR in contexts], num_contexts)
