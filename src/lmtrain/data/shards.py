"""Whether the shards of a text are of one kind: one in another language, or of code among prose, makes splits that differ.

The measure is the Jensen-Shannon divergence (Lin 1991) between the pairs of characters of a shard and those of all others, in
bits: 0 where both have the same shares, 1 where they have none in common. Short texts differ by chance, so what as many
characters out of all shards show is taken off. Parts of one corpus then differ by 0.00 to 0.05 bits, prose of another century
by 0.12, and other languages, code and tables by 0.2 and more.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Sequence
from functools import cache
from itertools import islice, pairwise

from lmtrain.data.text import TextFacts, iter_text
from lmtrain.errors import DataError
from lmtrain.shell import one_line

OTHER_KIND = 0.14  # bits more than chance
NEARLY_ALL = 0.95  # of the text
MAX_SHARDS = 128  # that are looked at
SAMPLE = 1 << 14  # characters of a shard that are looked at, ...
STRETCH = 1 << 9  # ... in stretches of so many
LEAST = 1 << 11  # characters of a shard; shorter ones say little
SHOWN = 3  # shards that are named

Pairs = Counter[tuple[str, str]]


def iter_shard_advice(shards: Sequence[TextFacts]) -> Iterator[str]:
    """Yields what is to be known of the shards of a text that is cut in its order; nothing where they are alike."""
    if len(shards) < 2:
        return
    odd = sorted(_different(shards), key=lambda found: -round(found[1], 3))
    if odd:
        names = [one_line(shard.path.name) for shard, _ in odd]
        more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
        yield (
            f"{', '.join(names[:SHOWN])}{more} differ{'s' * (len(names) == 1)} in kind from the other shards (up to "
            f"{odd[0][1]:.2f} bits per pair of characters; shards of one kind differ by less than {OTHER_KIND}): another "
            "language, or no prose. The text is cut in its order, so the splits are not alike. Type data.split=shuffled_lines, "
            "or data.split=shuffled_documents where blank lines or records separate documents; or leave such shards out."
        )
    largest, total = max(shards, key=lambda shard: shard.num_bytes), sum(shard.num_bytes for shard in shards)
    if largest.num_bytes >= NEARLY_ALL * total:
        yield (
            f"{one_line(largest.path.name)} holds {largest.num_bytes / total:.0%} of the text, so the other shards say little "
            "beside it, and where they come last they are all of the test. Type data.split=shuffled_lines, which deals them "
            "out, or give that shard alone: data.path=FILE."
        )


def _different(shards: Sequence[TextFacts]) -> Iterator[tuple[TextFacts, float]]:
    """Yields the shards that are of another kind than the others together, and by how many bits."""
    step = -(-len(shards) // MAX_SHARDS)
    samples = {shard: sample for shard in [*shards[:-1:step], shards[-1]] if len(sample := _sample(shard)) >= LEAST}
    pairs = {shard: Counter(pairwise(sample)) for shard, sample in samples.items()}
    everything = Pairs()
    for own in pairs.values():
        everything.update(own)
    together = "".join(samples.values())

    @cache
    def by_chance(length: int) -> float:
        """Returns the divergence of a text of this length, drawn from all shards in stretches, from the rest of them."""
        drawn = Counter(pairwise(_spread(together, length)))
        return divergence(drawn, everything - drawn)

    for shard, own in pairs.items():
        others = everything - own
        if (num_others := others.total()) < LEAST:
            continue
        length = min(len(samples[shard]), num_others)
        found = divergence(own, others) - by_chance(1 << length.bit_length() - 1)
        if found > OTHER_KIND:
            yield shard, found


def _sample(shard: TextFacts) -> str:
    """Returns stretches from the first block of a shard."""
    try:
        return _spread("".join(islice(iter_text(shard.path, shard.field), 1)), SAMPLE)
    except DataError:
        return ""  # it is gone, though its tokens are in the cache


def _spread(text: str, length: int) -> str:
    """Returns so many characters of a text, in stretches that are evenly spaced; all of a shorter one."""
    if len(text) <= length:
        return text
    num = -(-length // STRETCH)
    return "".join(text[(start := place * len(text) // num) : start + length // num] for place in range(num))


def divergence(first: Pairs, second: Pairs) -> float:
    """Returns the Jensen-Shannon divergence between the shares of two counts, in bits."""
    total, other_total = first.total(), second.total()
    bits = 0.0
    for pair in first.keys() | second.keys():
        share, other = first[pair] / total, second[pair] / other_total
        mean = (share + other) / 2
        bits += (share * math.log2(share / mean) if share else 0.0) + (other * math.log2(other / mean) if other else 0.0)
    return bits / 2
