"""`Vectors`: words with their vectors, whoever trained them, and what can be asked of them.

All comparisons are by the cosine of the angle between two vectors. A vector of zeros has no direction: its word stays in the
table and takes part in no comparison.

    legend   V words · E numbers of a vector · N words that are asked for
"""

from __future__ import annotations

import os
import unicodedata
from collections.abc import Container, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from lmtrain.arguments import checked
from lmtrain.errors import DataError
from lmtrain.quantity import counted
from lmtrain.shell import one_line

if TYPE_CHECKING:
    from lmtrain.vectors.analogies import Analogies
    from lmtrain.vectors.similarity import Similarity

Matrix = NDArray[np.float32]
Ranking = list[tuple[str, float]]
"""Words with what they scored, the best first."""

EPSILON = 1e-3  # added to the divisor of 3CosMul (Levy and Goldberg 2014)
METHODS = ("add", "mul")
AT_ONCE = 10_000  # rows of which cosines are computed together
ROUNDING = 1e-4  # more than a cosine in float32 is wrong by


@dataclass(frozen=True)
class Vectors:
    """Words with their vectors: row `i` of `matrix` [V, E] (float32) belongs to `words[i]`. Both may be given as lists.

    >>> vectors = Vectors(("king", "man", "woman", "queen"), np.float32([[1, 1], [0, 1], [0, -1], [1, -1]]))
    >>> vectors["king"].tolist(), "prince" in vectors, len(vectors)
    ([1.0, 1.0], False, 4)
    """

    words: tuple[str, ...]
    matrix: Matrix

    def __post_init__(self) -> None:
        matrix = self.matrix.detach().cpu().tolist() if hasattr(self.matrix, "detach") else self.matrix  # of PyTorch
        if isinstance(self.words, str) or np.iscomplexobj(matrix):
            raise TypeError("words are a list of strings, and a matrix holds real numbers")
        is_array = isinstance(matrix, np.ndarray) and np.issubdtype(matrix.dtype, np.floating)
        object.__setattr__(self, "words", tuple(self.words))
        object.__setattr__(self, "matrix", matrix if is_array else np.asarray(matrix, np.float32))
        if self.matrix.ndim != 2 or len(self.words) != len(self.matrix):
            raise ValueError(f"{len(self.words)} words were given with a matrix of shape {self.matrix.shape}; expected [V, E]")

    def __repr__(self) -> str:
        some = ", ".join(one_line(word[:20]) for word in self.words[:5]) + ", ..." * (len(self) > 5)
        return f"<lmtrain.Vectors {counted(len(self), 'word')} x {counted(self.matrix.shape[1], 'number')}: {some}>"

    @classmethod
    @checked
    def load(cls, path: str | os.PathLike[str], *, format: str | None = None) -> Vectors:
        """The vectors in a file: word2vec text or binary, GloVe text, or npz as `save` writes it; also packed (.gz).

        The content tells the format; `format` says it where that fails. Those of a run: `lmtrain.load(RUN).vectors`. Raises
        `lmtrain.DataError` for what is missing, damaged, or no file of vectors.

        >>> Vectors.load("animals.txt").words
        ('cat', 'dog', 'car')
        """
        from lmtrain.vectors.files import read_vectors

        return read_vectors(Path(path), format)

    @checked
    def save(self, path: str | os.PathLike[str], *, format: str | None = None) -> None:
        """Writes a file that appears whole or not at all, in the place of one that is there.

        `format` is "word2vec" (text), "word2vec-binary", "glove" or "npz"; None: npz for a name that ends in .npz,
        word2vec-binary for .bin, else word2vec. What is read again is the same, bit by bit. A file whose name ends in .gz, .bz2
        or .xz is packed, but for npz. Raises `lmtrain.DataError` for a word that the format cannot
        hold, such as one with a blank; npz holds every word.

        >>> Vectors(("cat", "dog"), np.float32([[1, 2], [3, 4]])).save("two.npz")
        >>> Vectors.load("two.npz")["dog"].tolist()
        [3.0, 4.0]
        """
        from lmtrain.vectors.files import format_of, write_vectors

        write_vectors(self, Path(path), format or format_of(os.fspath(path)))

    @cached_property
    def _rows(self) -> dict[str, int]:
        return {word: row for row, word in reversed([*enumerate(self.words)])}  # of a word that is there twice the first

    def __getitem__(self, word: str) -> Matrix:
        """The vector [E] of `word`; KeyError where there is none."""
        return self.matrix[self._rows[word]]

    def __contains__(self, word: object) -> bool:
        return word in self._rows

    def __len__(self) -> int:
        return len(self.words)

    @cached_property
    def _has_direction(self) -> NDArray[np.bool_]:
        """Whether each word has a vector other than zero."""
        return np.asarray(self.matrix.any(axis=1))

    @cached_property
    def unit(self) -> Matrix:
        """The vectors at length 1 [V, E]; those of zeros stay zeros."""
        lengths_V = np.linalg.norm(self.matrix.astype(np.float64), axis=1)
        return (self.matrix / np.where(lengths_V, lengths_V, 1)[:, None]).astype(np.float32)

    @cached_property
    def has_capitals(self) -> bool:
        """Whether any word is written with a capital; special tokens such as <UNK> do not count."""
        return any(word != word.lower() for word in self.words if not word.startswith("<"))

    def row(self, word: str) -> int | None:
        """Where `word` stands, or None where it is not there or its vector is zero: such a word cannot be compared."""
        if not isinstance(word, str):  # `checked` would take longer than the rest
            raise TypeError(f"Vectors.row() was given word={word!r:.60}; expected a string")
        row = self._rows.get(word)
        return None if row is None or not self.matrix[row].any() else row

    @checked
    def rows(self, words: Sequence[str]) -> list[int]:
        """Where each word stands. Raises `lmtrain.DataError` that names those which cannot be compared."""
        rows = [self.row(word) for word in words]
        missing = [word for word, row in zip(words, rows, strict=True) if row is None]
        if missing:
            raise self._unknown(missing)
        return [row for row in rows if row is not None]

    def _unknown(self, words: Sequence[str]) -> DataError:
        import difflib

        shown = ", ".join(one_line(repr(word[:60])) for word in dict.fromkeys(words))
        known = set(self.words)
        variants = [v for word in words for v in (word.lower(), word.capitalize(), word.upper()) if v in known and v != word]
        near = difflib.get_close_matches(words[0], self.words[:100_000], n=3)
        close = list(dict.fromkeys(word for word in [*variants, *near] if word not in words))
        other_forms = [said for word in words if (said := in_other_form(word, known))]
        kind = "have a vector of zeros" if all(word in self for word in words) else "are not among these words"
        return DataError(
            f"{shown} {kind if len(words) > 1 else kind.replace('have', 'has').replace('are', 'is')}.",
            f"Allowed are words with a vector other than zero, {int(self._has_direction.sum()):,} of {len(self.words):,}.",
            other_forms[0] if other_forms
            else f"Did you mean {', '.join(map(one_line, close[:3]))}?" if close else "Give another word, or larger vectors.",
        )  # fmt: skip

    @checked
    def similarity(self, first: str, second: str) -> float:
        """The cosine of two words, from -1 to 1. Raises `lmtrain.DataError` for a word that is not there.

        >>> animals = Vectors.load("animals.txt")
        >>> round(animals.similarity("cat", "dog"), 2), round(animals.similarity("cat", "car"), 2)
        (0.86, 0.05)
        """
        first_E, second_E = self.matrix[self.rows([first, second])]
        return float(cosines(first_E, second_E))

    @checked
    def neighbours(self, word: str | Matrix, number: int = 10) -> Ranking:
        """The `number` words of the largest cosine with `word` (itself left out) or with a vector [E], and their cosines.

        Raises `lmtrain.DataError` for a word that is not there and a vector of another size.

        >>> [word for word, _ in Vectors.load("animals.txt").neighbours("cat", 2)]
        ['dog', 'car']
        """
        if isinstance(word, str):
            (row,) = self.rows([word])
            return self._nearest(self.matrix[row], number, {row})
        given, size = word.detach().cpu().tolist() if hasattr(word, "detach") else word, self.matrix.shape[1]
        vector = np.asarray(given, np.float64)
        if vector.shape != (size,):
            raise DataError(
                f"A vector of shape {vector.shape} was given.",
                f"The vectors of these words have {counted(size, 'number')} each.",
                "Give a vector of this size.",
            )
        if not (vector.any() and np.isfinite(vector).all()):
            what = "numbers that are not finite" if vector.any() else "zeros"
            raise DataError(f"A vector of {what} was given.", "It has no direction and so no neighbours.", "Give another one.")
        return self._nearest(vector, number, set())

    @checked
    def analogy(self, a: str, b: str, c: str, number: int = 10, *, method: str = "add") -> Ranking:
        """a is to b as c is to ...: the `number` best words with their scores, a, b and c left out.

        method   "add": the cosine with b - a + c of vectors at length 1 (Mikolov et al. 2013). "mul": cos(d, b) cos(d, c) /
                 (cos(d, a) + 0.001) with every cosine moved to 0 .. 1 (3CosMul, Levy and Goldberg 2014)

        Raises `lmtrain.DataError` for a word that is not there.

        >>> royal = Vectors(("king", "man", "woman", "queen"), np.float32([[1, 1], [0, 1], [0, -1], [1, -1]]))
        >>> [word for word, _ in royal.analogy("man", "woman", "king")]
        ['queen']
        """
        check_method(method)
        rows = self.rows([a, b, c])
        return self._best(score_analogies(self.unit, np.array([rows]), method)[0], number, set(rows))

    @checked
    def evaluate_analogies(
        self, path: str | os.PathLike[str], *, method: str = "add", most_frequent: int | None = None, keep_case: bool = False
    ) -> Analogies:
        """The accuracy on a file of questions such as Google's questions-words.txt, by section, with its coverage.

        most_frequent   answers only with the first that many words, and asks only of them
        keep_case       looks words up as they are written; else in lower case where the vectors have no capitals

        Raises `lmtrain.DataError` for a file that holds no questions.

        >>> result = Vectors.load("animals.txt").evaluate_analogies("questions.txt")
        >>> result.total.accuracy, result.total.num_answered, result.total.num_questions
        (1.0, 1, 2)
        """
        from lmtrain.vectors.analogies import evaluate_analogies

        return evaluate_analogies(self, Path(path), method=method, most_frequent=most_frequent, keep_case=keep_case)

    @checked
    def evaluate_similarity(self, path: str | os.PathLike[str], *, keep_case: bool = False) -> Similarity:
        """The correlation of cosines with human judgements of pairs, such as WordSim-353 or SimLex-999, with its coverage.

        Raises `lmtrain.DataError` for a file that holds no pairs.

        >>> round(Vectors.load("animals.txt").evaluate_similarity("pairs.tsv").spearman, 4)
        1.0
        """
        from lmtrain.vectors.similarity import evaluate_similarity

        return evaluate_similarity(self, Path(path), keep_case=keep_case)

    @checked
    def most_frequent(self, number: int | None) -> Vectors:
        """The first `number` words, as files of vectors begin with the most frequent ones; None: all."""
        return self if number is None or number >= len(self) else Vectors(self.words[:number], self.matrix[:number])

    def _nearest(self, vector_E: NDArray[np.floating[Any]], number: int, left_out: set[int]) -> Ranking:
        """The words of the `number` largest cosines: found in float32, and ranked in float64."""
        scaled_E = np.float64(vector_E) / np.abs(vector_E).max()  # whose squares neither overflow nor vanish
        scores_V = (self.unit @ (scaled_E / np.linalg.norm(scaled_E)).astype(np.float32)).astype(np.float64)
        found = self._best(scores_V, number, left_out)
        close = np.flatnonzero(scores_V >= (found[-1][1] if found else 1) - ROUNDING)
        for start in range(0, len(close), AT_ONCE):
            rows = close[start : start + AT_ONCE]
            scores_V[rows] = cosines(self.matrix[rows], vector_E)
        return self._best(scores_V, number, left_out)

    def _best(self, scores_V: NDArray[np.floating[Any]], number: int, left_out: set[int]) -> Ranking:
        """The words of the `number` largest scores; of equal ones the first word first."""
        if number < 1:
            raise ValueError(f"number={number}; expected at least 1")
        allowed_V = self._has_direction.copy()
        allowed_V[list(left_out)] = False
        candidates = np.flatnonzero(allowed_V)
        order = candidates[np.argsort(-scores_V[candidates], kind="stable")[:number]]
        return [(self.words[row], float(scores_V[row])) for row in order]


def cosines(first: NDArray[Any], second: NDArray[Any]) -> NDArray[np.float64]:
    """The cosine of each two vectors, from -1 to 1 and in float64: [..., E], [..., E] -> [...]; of a vector of zeros 0.

    The same vectors have the same cosine whatever their order, and a vector has 1 with itself: sqrt(x x) is exact.

    >>> cosines(np.array([[3, 4], [1, 0]]), np.array([3, 4])).tolist()
    [1.0, 0.6]
    """
    first, second = (np.ldexp(of, -np.frexp(np.abs(of).max(-1, keepdims=True))[1]) for of in map(np.float64, (first, second)))
    squares = (first * first).sum(-1) * (second * second).sum(-1)  # of numbers below 1, so that none overflows
    return np.clip((first * second).sum(-1) / np.sqrt(np.where(squares, squares, 1)), -1, 1)


def ranking_to_json(ranking: Ranking, score: str = "cosine") -> list[dict[str, str | float]]:
    """As a list of dictionaries; `score` names what the words scored."""
    return [{"word": word, score: value} for word, value in ranking]


def in_other_form(word: str, words: Container[str]) -> str:
    """A sentence on the Unicode form in which a word is there that is not there as it is; empty where there is none."""
    for form, name in (("NFC", "composed"), ("NFD", "decomposed")):
        if (other := unicodedata.normalize(form, word)) != word and other in words:  # type: ignore[arg-type]
            return (
                f"{one_line(repr(word[:60]))} is there in another Unicode form, with {name} accents: "
                f"copy it from these words, or take unicodedata.normalize({form!r}, word) in Python."
            )
    return ""


def check_method(method: str) -> None:
    """Raises ValueError for what is no method of answering analogies."""
    if method not in METHODS:
        raise ValueError(f"method={method!r}; expected {' or '.join(map(repr, METHODS))}")


def score_analogies(unit_VE: Matrix, questions_N3: NDArray[np.int64], method: str) -> Matrix:
    """What every word scores as the answer to each question a, b, c (rows of `unit_VE`), [N, V]; none is left out yet."""
    a, b, c = questions_N3.T
    if method == "add":
        wanted_NE = unit_VE[b] - unit_VE[a] + unit_VE[c]
        lengths_N1 = np.linalg.norm(wanted_NE, axis=1, keepdims=True)
        return np.clip((wanted_NE / np.where(lengths_N1, lengths_N1, 1)) @ unit_VE.T, -1, 1)
    assert method == "mul", method
    rows, places = np.unique(questions_N3, return_inverse=True)
    cosines_RV = (1 + unit_VE[rows] @ unit_VE.T) / 2
    a, b, c = places.reshape(questions_N3.shape).T
    return cosines_RV[b] * cosines_RV[c] / (cosines_RV[a] + np.float32(EPSILON))
