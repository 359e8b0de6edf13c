"""Word vectors by counting: the truncated singular value decomposition of a co-occurrence matrix.

    X_ij = sum over pairs of word i and word j within `window` of each other, in one line, of 1 / distance (or of 1)
    M    = X (raw), sqrt(X), log(1 + X), or PPMI: max(0, log(X_ij X / (X_i X_j)) - log shift), X_j raised to `smoothing`
    M   ~= U S V'                          the `size` largest singular values
    W    = U S^power                       the words' vectors

Positive pointwise mutual information, its shift and the smoothed context distribution are as in Levy, Goldberg and Dagan
(2015), who recommend power 0.5 and smoothing 0.75. Decompositions have no sign of their own: that of each column is such that
its largest number (the first of equally large ones) is positive. With a fixed start of the iteration the same text gives the
same vectors on every run.

SciPy does the work; it is not installed with lmtrain itself: pip install "lmtrain[vectors]".
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from lmtrain.errors import DataError, ResourceError, SettingsError
from lmtrain.quantity import counted
from lmtrain.vectors.table import Vectors
from lmtrain.vectors.text import Text

COUNTS = ("raw", "sqrt", "log", "ppmi")
WEIGHTINGS = ("harmonic", "flat")

BLOCK = 1 << 20  # ids whose pairs are counted at once
DENSE = 600  # words; a smaller matrix is decomposed whole, where the iteration would look for all of its vectors


def train_svd(
    text: Text,
    *,
    size: int = 100,
    counts: str = "ppmi",
    window: int = 5,
    weighting: str = "harmonic",
    smoothing: float = 0.75,
    shift: float = 1.0,
    power: float = 0.5,
) -> Vectors:
    """The vectors [V, size] of the words of `text`. See above for the arguments.

    Raises SettingsError for a size that is not smaller than the number of words, DataError for a text in which no two words
    stand together, ResourceError where SciPy is not installed.
    """
    _scipy_sparse()  # said before anything is counted
    if not 1 <= size < len(text.words):
        raise SettingsError(
            f"size={size} was given for {len(text.words):,} words.", f"Allowed are 1 to {len(text.words) - 1:,}.",
            f"Type for example size={max(1, min(100, len(text.words) // 2))}, or give a longer text.",
        )  # fmt: skip
    matrix = weigh(count_pairs(text, window=window, weighting=weighting), counts, smoothing=smoothing, shift=shift)
    if not matrix.nnz:
        raise DataError(
            f"No two of the {len(text.words):,} words stand together" + " more often than by chance" * (counts == "ppmi") + ".",
            f"Pairs are counted within {counted(window, 'word')} in one line.",
            text.remedy(f"Give a longer text, or type for example window={2 * window}."),
        )
    left_VE, singular_E = decompose(matrix, size)
    return Vectors(text.words, (left_VE * _raised(singular_E, power)).astype(np.float32))


def count_pairs(text: Text, *, window: int, weighting: str = "harmonic") -> Any:
    """X of above, a sparse matrix [V, V] (CSR, float64)."""
    if weighting not in WEIGHTINGS:
        raise ValueError(f"weighting={weighting!r}; expected one of {', '.join(WEIGHTINGS)}")
    sparse, shape = _scipy_sparse(), (len(text.words), len(text.words))
    lines, total = text.lines, sparse.csr_array(shape, dtype=np.float64)
    for start in range(0, len(text.ids), BLOCK):
        for distance in range(1, window + 1):
            left, right = text.ids[start : start + BLOCK], text.ids[start + distance : start + distance + BLOCK]
            if not len(right):
                break
            left = left[: len(right)]
            together = lines[start : start + len(left)] == lines[start + distance : start + distance + len(right)]
            together &= (left >= 0) & (right >= 0)
            weights = np.full(int(together.sum()), 1 / distance if weighting == "harmonic" else 1.0)
            total = total + sparse.coo_array((weights, (left[together], right[together])), shape).tocsr()
    return total + total.T.tocsr()


def weigh(counts: Any, how: str, *, smoothing: float = 0.75, shift: float = 1.0) -> Any:
    """M of above, of X: `how` is one of COUNTS."""
    if how not in COUNTS:
        raise ValueError(f"counts={how!r}; expected one of {', '.join(COUNTS)}")
    weighed = counts.tocsr(copy=True)
    if how == "sqrt":
        weighed.data = np.sqrt(weighed.data)
    elif how == "log":
        weighed.data = np.log1p(weighed.data)
    elif how == "ppmi":
        words, contexts = np.asarray(weighed.sum(1)).ravel(), np.asarray(weighed.sum(0)).ravel() ** smoothing
        pairs = weighed.tocoo()
        information = np.log(pairs.data * contexts.sum() / (words[pairs.row] * contexts[pairs.col])) - np.log(shift)
        pairs.data = np.maximum(information, 0)
        weighed = pairs.tocsr()
        weighed.eliminate_zeros()
    return weighed


def decompose(matrix: Any, size: int) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """U [V, size] and S [size] of a sparse matrix, the largest singular value first, signs as said above."""
    if matrix.shape[0] <= DENSE:
        left, singular, _ = np.linalg.svd(matrix.toarray(), full_matrices=False)
        left, singular = left[:, :size], singular[:size]
    else:
        from scipy.sparse.linalg import ArpackError, svds

        start = np.random.default_rng(1).normal(size=matrix.shape[0])
        try:
            left, singular, _ = svds(matrix, k=size, v0=start, return_singular_vectors="u")
        except ArpackError as error:
            raise DataError(
                f"The decomposition found no {size} singular values: {error}.",
                "A text with few pairs of words has fewer.", f"Give a longer text, or type size={max(1, size // 2)}.",
            ) from None  # fmt: skip
        order = np.argsort(-singular, kind="stable")
        left, singular = left[:, order], singular[order]
    sizes = np.abs(left)
    first = (sizes > 0.999 * sizes.max(0)).argmax(0)  # of equally large ones, which rounding would choose from
    signs = np.sign(left[first, np.arange(left.shape[1])])
    return left * np.where(signs, signs, 1), np.maximum(singular, 0)


def _raised(singular: NDArray[np.float64], power: float) -> NDArray[np.float64]:
    """S^power, and 0 where the matrix has no further dimension: what is found there is noise."""
    there = singular > singular[0] * 1e-10
    return np.where(there, np.where(there, singular, 1) ** power, 0)


def _scipy_sparse() -> Any:
    """The module; ResourceError where it is not installed."""
    try:
        from scipy import sparse
    except ImportError:
        raise ResourceError(
            "SciPy is not installed.", "Counted pairs of words (svd, glove) need it.",
            "Type  pip install scipy  , or install lmtrain with it:  pip install 'lmtrain[vectors]'.",
        ) from None  # fmt: skip
    return sparse
