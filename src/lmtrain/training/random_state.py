"""Saves the states of random generators as hexadecimal text, so that a resumed run draws what the first one would have."""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Generator

from lmtrain.expected import Leaf, compare, shown

log = logging.getLogger("lmtrain")


def random_document(generators: Mapping[str, Generator]) -> dict[str, Any]:
    """Returns the states of `generators` by name, JSON-able."""
    return {
        name: {"device": generator.device.type, "state": generator.get_state().numpy().tobytes().hex()}
        for name, generator in generators.items()
    }


def expected_random(generators: Mapping[str, Generator]) -> dict[str, Any]:
    """Returns what `random_document` returns for such generators, on whatever device they were."""
    return {name: _State() for name in generators}


def load_random_document(document: Any, generators: Mapping[str, Generator]) -> None:
    """Puts `generators` into the states in `document`. Raises UnfitError if it is not one of these generators.

    A state of another kind of device cannot be taken over: the generator keeps its seed then, with a warning.
    """
    compare(expected_random(generators), document)
    for name, generator in generators.items():
        device, state = document[name]["device"], bytes.fromhex(document[name]["state"])
        if device != generator.device.type:
            log.warning(
                "The random generator %r was saved on %s and is on %s now: it starts again from its seed, so this run "
                "will differ from one that was not interrupted.", name, device, generator.device.type,
            )  # fmt: skip
            continue
        generator.set_state(torch.frombuffer(bytearray(state), dtype=torch.uint8))


class _State(Leaf):
    """The device and the state of one generator.

    PyTorch looks at the size of a state and at each of its indices, but not at what they mean together: from
    `left` = `next` = 624, a Mersenne twister reads 623 words beyond its table. So that is checked here.
    """

    def problem(self, value: Any) -> str:
        match value:
            case {"device": "cpu" | "cuda" as device, "state": str(text), **rest} if not rest:
                if len(text) > 4 * CPU.itemsize or not re.fullmatch(r"([0-9a-f]{2})+", text):
                    return f"has a state that is no hexadecimal text: {shown(text)}"
                return _cpu_problem(bytes.fromhex(text)) if device == "cpu" else _cuda_problem(bytes.fromhex(text))
        return f"is {shown(value)}"

    def __str__(self) -> str:
        return "a device, cpu or cuda, and the state of a generator on it as hexadecimal text"


CPU = np.dtype({
    "names": ["left", "seeded", "next", "words", "normal", "has_normal", "float_normal", "has_float_normal"],
    "formats": ["<i4", "<i4", "<u8", ("<u8", 624), ("<f8", 3), "<i4", "<f4", "u1"],
    "offsets": [8, 12, 16, 24, 5016, 5040, 5048, 5052],
    "itemsize": 5056,
})  # fmt: skip
"""PyTorch's state of a Mersenne twister (CPUGeneratorImplState): its seed, its place in its words, and the second one
of two normal deviates that were drawn at once."""


def _cpu_problem(state: bytes) -> str:
    if len(state) != CPU.itemsize:
        return f"has a state of {len(state)} bytes instead of {CPU.itemsize}"
    own = np.frombuffer(state, CPU)[0]
    left, after = int(own["left"]), int(own["next"])
    if (left, after) != (1, 0) and not (1 <= left <= 624 and left + after == 625):
        return f"has a state that is at word {after} with {left} left of 624"
    if own["seeded"] != 1 or (own["words"] >> 32).any():
        return "has a state that was never seeded, or words of more than 32 bits"
    is_told = own["has_normal"] in (0, 1) and own["has_float_normal"] in (0, 1)
    if not is_told or not np.isfinite([*own["normal"], own["float_normal"]]).all():
        return "has a state whose kept normal deviate is none"
    return ""


def _cuda_problem(state: bytes) -> str:
    """Says what is wrong with a state of Philox: its seed, and its offset, which PyTorch moves by fours."""
    if len(state) != 16:
        return f"has a state of {len(state)} bytes instead of 16"
    return "" if int.from_bytes(state[8:], "little") % 4 == 0 else "has a state whose offset is no multiple of 4"
