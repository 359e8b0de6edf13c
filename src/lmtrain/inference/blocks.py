"""A part of a long text that stands for all of it: blocks of one length, evenly spaced, the same ones each time.

    bound = 1,000,000 tokens, or a tenth of the tokens trained between two evaluations, where that is more

So evaluating costs little beside training, and a text of Brown's size is always read whole. The bound is a function of settings
and of numbers of tokens, never of measured time: a run that goes on evaluates as before.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

MIN_BOUND = 1_000_000
SHARE = 10  # a tenth of the tokens that are trained in between
FEWEST_BLOCKS = 16


def default_bound(tokens_between: int) -> int:
    """The most tokens of an evaluation during training, where `tokens_between` are trained between two of them."""
    return max(MIN_BOUND, tokens_between // SHARE)


def evenly_spaced(ids: NDArray[Any], most: int, num_streams: int) -> NDArray[Any]:
    """At most `most` of the `ids` [N], in blocks that begin at every N/k-th id; `ids` themselves where they are no more.

    k is a multiple of `num_streams`, so that streams of equal length hold whole blocks, and at least 16. Where a block does not
    begin a stream, the model reads it with the state of the block before: slightly pessimistic, by a few tokens per block.
    """
    assert min(most, num_streams) >= 1, "the settings allow no less"
    if len(ids) <= most:
        return ids
    num_blocks = min(most, num_streams * -(-FEWEST_BLOCKS // num_streams))
    length = most // num_blocks
    starts = np.arange(num_blocks) * len(ids) // num_blocks
    return np.concatenate([ids[start : start + length] for start in starts])
