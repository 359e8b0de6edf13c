"""Word vectors that a model starts from: those of a run, of a file that any program wrote, or of the training text itself.

`model.embeddings=svd` stands for the last of these. They are the truncated singular value decomposition of how often two tokens
of the training text are near each other (`vectors.svd`, with its defaults). Such vectors take seconds to make, and a model
that starts from them is as good after two epochs as another one is after three (see scripts/README.md).
"""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

import lmtrain.config as config
from lmtrain.data.tokenizer import Tokenizer
from lmtrain.errors import DataError, SettingsError
from lmtrain.progress import watched
from lmtrain.quantity import counted
from lmtrain.shell import one_line
from lmtrain.tasks.opening import load_vectors
from lmtrain.vectors.svd import train_svd
from lmtrain.vectors.table import Vectors
from lmtrain.vectors.text import as_text

log = logging.getLogger("lmtrain")


def vectors_of_text(ids: NDArray[Any], tokenizer: Tokenizer, *, like_VE: Tensor) -> Vectors:
    """Returns the vectors of the tokens of a text, as long as the rows of `like_VE` [V, E] and with the same mean square.

    <eos> and <unk> have none, nor has a token that no other one is near. The same text gives the same vectors on every run.
    Raises SettingsError if there are too few tokens for vectors of E numbers, ResourceError without SciPy.
    """
    text, size = as_text(ids, tokenizer), like_VE.shape[1]
    if size >= len(text.words):
        raise SettingsError(
            f"model.embeddings={config.FROM_TEXT} cannot make vectors of {size} numbers (model.embed_size) for "
            f"{len(text.words):,} tokens.",
            "Such vectors have fewer numbers than the training text has different tokens.",
            "Leave model.embeddings out, or make model.embed_size smaller.",
        )
    started = time.monotonic()
    try:
        with watched("Making vectors of the training text"):
            vectors = train_svd(text, size=size)
    except DataError as error:
        raise DataError(
            f"model.embeddings={config.FROM_TEXT} finds too little in the training text: {error.given}", error.allowed,
            "Leave model.embeddings out, or give a longer text.",
        ) from None  # fmt: skip
    log.info("The vectors to start from were made of the training text in %.0f s.", time.monotonic() - started)
    rows = np.flatnonzero(vectors.matrix.any(1))
    matrix = vectors.matrix[rows]
    matrix *= like_VE.square().mean().sqrt().item() / np.sqrt(np.square(matrix).mean())
    return Vectors(tuple(vectors.words[row] for row in rows), matrix)


def given_vectors(settings: config.EmbeddingsConfig, embed_size: int) -> Vectors | None:
    """Returns the vectors that `model.embeddings` names, of the size that the model takes; None if it names no run and no file.

    Raises SettingsError if they are of another size.
    """
    if settings.embeddings in ("", config.FROM_TEXT):
        return None
    vectors = load_vectors(settings.embeddings)
    size = vectors.matrix.shape[1]
    if size == embed_size:
        return vectors
    if settings.project_embeddings and size > embed_size and len(vectors) > embed_size:
        return Vectors(vectors.words, projected(vectors.matrix, embed_size))
    projection = f", or model.project_embeddings=true to project them onto {embed_size}" * (size > embed_size)
    raise SettingsError(
        f"The vectors of {one_line(settings.embeddings)} have {counted(size, 'number')} each, "
        f"and model.embed_size is {embed_size}.",
        "A model takes vectors of the size of its own.", f"Type model.embed_size={size}{projection}.",
    )  # fmt: skip


def projected(matrix_VE: np.ndarray, size: int) -> np.ndarray:
    """Projects the matrix on its first `size` principal axes, about its mean, which is added again. The sign of each axis is
    fixed."""
    wide_VE = matrix_VE.astype(np.float64)
    mean_E = wide_VE.mean(0)
    _, _, axes_EE = np.linalg.svd(wide_VE - mean_E, full_matrices=False)
    axes_ES = axes_EE[:size].T
    axes_ES *= np.sign(axes_ES[np.abs(axes_ES).argmax(0), np.arange(size)])
    return np.asarray((wide_VE - mean_E) @ axes_ES + mean_E @ axes_ES, np.float32)


def put_vectors(table_VE: Tensor, words: Sequence[str], vectors: Vectors) -> list[bool]:
    """Writes the vector of each word into its row of the table; says which words have one.

    A word that has none is looked up in lower case. If there is none either, its row stays as it was drawn.
    """
    rows = {word: row for row, word in reversed([*enumerate(vectors.words)])}
    found = [rows.get(word, rows.get(word.lower())) for word in words]
    places = [place for place, row in enumerate(found) if row is not None]
    chosen = torch.from_numpy(vectors.matrix[[row for row in found if row is not None]])
    with torch.no_grad():
        table_VE[torch.tensor(places, dtype=torch.long)] = chosen.to(table_VE)
    return [row is not None for row in found]


def say_coverage(name: str, has_vector: Sequence[bool], counts: np.ndarray) -> None:
    """Says how many words, and how much of the training text, have a vector."""
    share = counts[np.array(has_vector)].sum() / max(counts.sum(), 1)
    log.info(
        "Vectors of %s: %s of %s words of the vocabulary have one, %.2f %% of the training text; the others are drawn.",
        one_line(name), f"{sum(has_vector):,}", f"{len(has_vector):,}", 100 * share,
    )  # fmt: skip
