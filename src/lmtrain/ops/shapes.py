"""Shapes written in letters, and checked where a tensor is used.

>>> sizes = check_shape("h0_BH", torch.zeros(20, 650), "B H")
>>> check_shape("weight_ZH", torch.zeros(2600, 640), "4H H", sizes)
Traceback (most recent call last):
ValueError: weight_ZH has shape (2600, 640); expected (4H, H) = (2600, 650), because h0_BH says H=650.
"""

from __future__ import annotations

import re
from functools import cache

import torch
from torch import Tensor


class Sizes(dict[str, int]):
    """Sizes by letter, and which tensor gave each of them first."""

    def __init__(self, sizes: dict[str, int] | None = None) -> None:
        super().__init__(sizes or {})
        self.said_by: dict[str, str] = {}


def check_shape(name: str, tensor: Tensor, letters: str, sizes: Sizes | None = None) -> Sizes:
    """Compares a tensor's shape with letters such as "T B 4H", and returns the sizes with those of new letters added.

    A dimension is a letter, a letter times an integer, or an integer. `sizes` has the sizes of earlier tensors and is extended
    in place. Raises ValueError with the name, the shape, and what was expected because of which tensor. A size of 0 is refused.
    """
    sizes = Sizes() if sizes is None else sizes
    pattern = _parse(letters)
    shape = tuple(tensor.shape)
    if shape == tuple([factor * sizes.get(letter, 0) for factor, letter in pattern]) and 0 not in shape:
        return sizes
    if len(shape) != len(pattern):
        raise ValueError(f"{_given(name, shape)} expected {len(pattern)} dimensions, {_expected(letters, pattern, sizes)}.")
    if 0 in shape:
        raise ValueError(f"{_given(name, shape)} every size of {_expected(letters, pattern, Sizes())} must be at least 1.")
    found: dict[str, int] = {}
    for size, (factor, letter) in zip(shape, pattern, strict=True):
        unit = (sizes.get(letter) or found.setdefault(letter, size // factor)) if letter else 1
        if factor * unit != size:
            raise ValueError(f"{_given(name, shape)} expected {_expected(letters, pattern, sizes)}.")
    sizes.update(found)
    sizes.said_by.update(dict.fromkeys(found, name))
    return sizes


def check_dtype(name: str, dtype: torch.dtype, *allowed: torch.dtype) -> None:
    """Raises ValueError unless the type is one of these."""
    if dtype not in allowed:
        names = " or ".join(str(each).removeprefix("torch.") for each in allowed)
        raise ValueError(f"{name} is {str(dtype).removeprefix('torch.')}; expected {names}.")


@cache
def _parse(letters: str) -> tuple[tuple[int, str], ...]:
    """From "T B 4H" to ((1, "T"), (1, "B"), (4, "H"))."""
    matches = [re.fullmatch(r"(\d*)([A-Z]?)", dimension) for dimension in letters.split()]
    assert all(matches), letters
    return tuple((int(match[1] or 1), match[2]) for match in matches if match)


def _given(name: str, shape: tuple[int, ...]) -> str:
    return f"{name} has shape {shape};"


def _expected(letters: str, pattern: tuple[tuple[int, str], ...], sizes: Sizes) -> str:
    """(4H, H) = (2600, 650), because h0_BH says H=650"""
    known = [letter for letter in dict.fromkeys(letter for _, letter in pattern) if letter in sizes]
    text = _tuple(letters.split())
    if not known:
        return text
    values = [str(factor * sizes.get(letter, 1)) if letter in (*known, "") else f"{factor if factor > 1 else ''}{letter}"
              for factor, letter in pattern]  # fmt: skip
    by: dict[str, list[str]] = {}
    for letter in known:
        by.setdefault(sizes.said_by.get(letter, "the caller"), []).append(f"{letter}={sizes[letter]}")
    reasons = " and ".join(f"{who} says {', '.join(what)}" for who, what in by.items())
    return f"{text} = {_tuple(values)}, because {reasons}"


def _tuple(parts: list[str]) -> str:
    return f"({', '.join(parts)}{',' if len(parts) == 1 else ''})"
