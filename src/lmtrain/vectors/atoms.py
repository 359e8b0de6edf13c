"""Atoms of discourse: a dictionary of directions such that every word's vector is a sum of a few of them (Arora et al. 2018).

    v_w ~= sum over at most `sparsity` atoms a of c_wa D_a,     |D_a| = 1

found in turns: orthogonal matching pursuit (Pati et al. 1993) chooses the atoms of each word, one after the other, that which
agrees most with what is left, and then all coefficients anew by least squares; the method of optimal directions (Engan et al.
1999) then solves for the dictionary with these coefficients. An atom that no word uses becomes the direction of the word that
is represented worst. The senses of a word are its atoms; an atom is shown by the words nearest to it. Vectors are at length 1.

    legend   V words · E numbers of a vector · A atoms · S atoms of a word
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lmtrain.errors import DataError, SettingsError
from lmtrain.shell import one_line
from lmtrain.vectors.table import Ranking, Vectors, ranking_to_json

BLOCK_NUMBERS = 1 << 23  # products of words and atoms that are computed at once
RIDGE = 1e-6

Rows = NDArray[np.float32]


@dataclass(frozen=True)
class Atom:
    """One atom of a word."""

    number: int
    coefficient: float
    neighbours: Ranking


@dataclass(frozen=True)
class Atoms:
    """A dictionary [A, E], and of each word the atoms it uses [V, S] with their coefficients (0 where it needs fewer)."""

    vectors: Vectors
    dictionary: Rows
    chosen: NDArray[np.int64]
    coefficients: Rows

    @property
    def explained(self) -> float:
        """The share of the vectors' squared length that the atoms hold."""
        return 1 - float(((self.vectors.unit - self.represented()) ** 2).sum() / (self.vectors.unit**2).sum())

    def represented(self) -> Rows:
        """What the atoms make of every word's vector, [V, E]."""
        total = np.zeros_like(self.vectors.unit)
        for place in range(self.chosen.shape[1]):
            total += self.coefficients[:, place, None] * self.dictionary[self.chosen[:, place]]
        return total

    def of(self, word: str, num_neighbours: int = 10) -> list[Atom]:
        """The atoms of a word, those with the largest coefficients first. Raises DataError for a word that is not there."""
        (row,) = self.vectors.rows([word])
        order = np.argsort(-np.abs(self.coefficients[row]), kind="stable")
        return [
            Atom(int(self.chosen[row, place]), float(self.coefficients[row, place]),
                 self.vectors.neighbours(self.dictionary[self.chosen[row, place]], num_neighbours))
            for place in order if self.coefficients[row, place]
        ]  # fmt: skip

    def format(self, word: str) -> str:
        """A line for each atom of a word."""
        lines = [
            f"{one_line(word)}: its atoms of {len(self.dictionary):,}, of which at most {self.chosen.shape[1]} make a word; "
            f"they hold {self.explained:.1%} of all vectors"
        ]
        for atom in self.of(word):
            lines.append(f"  {atom.coefficient:+.3f}  " + ", ".join(one_line(near) for near, _ in atom.neighbours))
        return "\n".join(lines)

    def to_json(self, word: str) -> dict[str, Any]:
        """The atoms of a word as a dictionary."""
        return {
            "word": word, "num_atoms": len(self.dictionary), "sparsity": self.chosen.shape[1], "explained": self.explained,
            "atoms": [
                {"number": a.number, "coefficient": a.coefficient, "neighbours": ranking_to_json(a.neighbours)}
                for a in self.of(word)
            ],
        }  # fmt: skip


def learn_atoms(vectors: Vectors, *, number: int = 500, sparsity: int | None = None, rounds: int = 15, seed: int = 1) -> Atoms:
    """The dictionary of `number` atoms for all words. Raises SettingsError where there are not more words than atoms.

    `sparsity` is at most the number of atoms and the size of a vector; None is 5, or that limit where it is below 5.
    """
    usable = np.flatnonzero(vectors.matrix.any(axis=1))
    if not 1 <= number < len(usable):
        raise SettingsError(
            f"number={number} was given for {len(usable):,} words with a vector.", f"Allowed are 1 to {len(usable) - 1:,}.",
            f"Type for example number={max(1, min(500, len(usable) // 4))}.",
        )  # fmt: skip
    limit = min(number, vectors.matrix.shape[1])
    sparsity = min(5, limit) if sparsity is None else sparsity
    if not 1 <= sparsity <= limit:
        raise SettingsError(
            f"sparsity={sparsity} was given for {number} atoms of {vectors.matrix.shape[1]} numbers.",
            f"Allowed are 1 to {limit}.", "Type for example sparsity=1.",
        )  # fmt: skip
    if not np.isfinite(vectors.matrix).all():
        raise DataError("A vector holds a number that is not finite.", "Every number must be finite.", "Give other vectors.")
    unit = vectors.unit
    dictionary = unit[np.random.default_rng(seed).choice(usable, number, replace=False)]
    for _ in range(rounds):
        chosen, coefficients = pursue(unit, dictionary, sparsity)
        dictionary = _solve_dictionary(unit, dictionary, chosen, coefficients)
    return Atoms(vectors, dictionary, *pursue(unit, dictionary, sparsity))


def pursue(unit_VE: Rows, dictionary_AE: Rows, sparsity: int) -> tuple[NDArray[np.int64], Rows]:
    """Orthogonal matching pursuit of every row: the atoms chosen [V, S], no one twice, and their coefficients [V, S]."""
    chosen = np.zeros((len(unit_VE), sparsity), np.int64)
    coefficients = np.zeros((len(unit_VE), sparsity), np.float32)
    size = max(1, BLOCK_NUMBERS // len(dictionary_AE))
    for start in range(0, len(unit_VE), size):
        rows = slice(start, start + size)
        chosen[rows], coefficients[rows] = _pursue_block(unit_VE[rows], dictionary_AE, sparsity)
    return chosen, coefficients


def _pursue_block(unit_NE: Rows, dictionary_AE: Rows, sparsity: int) -> tuple[NDArray[np.int64], Rows]:
    every, left = np.arange(len(unit_NE)), unit_NE
    chosen = np.zeros((len(unit_NE), 0), np.int64)
    free = np.ones((len(unit_NE), len(dictionary_AE)), bool)
    weights: NDArray[Any] = np.zeros((len(unit_NE), 0))
    for _ in range(sparsity):
        best = np.where(free, np.abs(left @ dictionary_AE.T), -1).argmax(axis=1)
        free[every, best] = False
        chosen = np.concatenate([chosen, best[:, None]], axis=1)
        atoms = dictionary_AE[chosen].astype(np.float64)  # [N, s, E]
        gram = atoms @ atoms.transpose(0, 2, 1) + RIDGE * np.eye(chosen.shape[1])
        weights = np.linalg.solve(gram, (atoms @ unit_NE[:, :, None].astype(np.float64)))[:, :, 0]
        left = (unit_NE - (weights[:, None] @ atoms)[:, 0]).astype(np.float32)
    weights[~unit_NE.any(axis=1)] = 0
    return chosen, weights.astype(np.float32)


def _solve_dictionary(unit_VE: Rows, dictionary_AE: Rows, chosen: NDArray[np.int64], coefficients: Rows) -> Rows:
    """The dictionary of the least squared error with these coefficients, its atoms at length 1."""
    codes_VA = np.zeros((len(unit_VE), len(dictionary_AE)))
    np.put_along_axis(codes_VA, chosen, coefficients.astype(np.float64), axis=1)
    gram = codes_VA.T @ codes_VA + RIDGE * np.eye(len(dictionary_AE))
    solved = np.linalg.solve(gram, codes_VA.T @ unit_VE)
    lengths = np.linalg.norm(solved, axis=1)
    idle = np.flatnonzero((np.abs(codes_VA).sum(axis=0) == 0) | (lengths < 1e-9))
    errors = np.linalg.norm(unit_VE - codes_VA @ solved, axis=1)
    worst = np.argsort(-errors, kind="stable")[: len(idle)]
    solved[idle], lengths[idle] = unit_VE[worst], 1
    return (solved / lengths[:, None]).astype(np.float32)
