"""A text as token ids, with its sizes: what a model is judged by, whether it was just read or a checkpoint carries it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from numpy.typing import NDArray


@dataclass(frozen=True)
class EncodedText:
    """A text as ids, and its size in every other unit to which the cost of predicting it is related."""

    ids: NDArray[Any]  # [N], uint16 or int32; of a corpus a read-only memory map
    num_chars: int
    num_bytes: int  # of UTF-8
    spelling_micronats: int = 0  # what the spelling of its unknown words costs, where they are spelt
