"""What a saved value must be: described as the run that reads it would have written it, and compared in one place.

    expected = {"step": Whole(most=100), "best": Number(null=True), "losses": Each(Number(), most=3)}
    compare(expected, document)               UnfitError: step is -1. Allowed is a whole number from 0 to 100.
    compare({"weight": Like((2, 3))}, tensors)    UnfitError: weight has shape () instead of (2, 3). ...

A dict stands for exactly its keys, a list for as many values, and whatever is no description for itself. Hashes tell damage,
not malice, so nothing that is read from a checkpoint reaches a kernel, an index or a loop before it has been compared. A
description is made from what the reader has itself: its settings, its model, its text.
"""

from __future__ import annotations

import math
import re
import reprlib
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from lmtrain.errors import UnfitError

MAX_COUNT = 1 << 53  # of whatever is counted: exact as a float, and more than any run comes to
LARGEST = 1e100  # of numbers: more than any sum of a diverging run, and safe to square
MIN_NATS = -1e-6  # of a token, on average: probabilities are at most one, but for rounding


class Leaf:
    """The description of one value; `str` of it says what is allowed."""

    def problem(self, value: Any) -> str:
        """What is wrong with `value`, the rest of a sentence; nothing where it fits."""
        raise NotImplementedError


@dataclass(frozen=True)
class Whole(Leaf):
    """A whole number from `least` to `most`, or null."""

    least: int = 0
    most: int = MAX_COUNT
    null: bool = False

    def problem(self, value: Any) -> str:
        fits = (type(value) is int and self.least <= value <= self.most) or (value is None and self.null)
        return "" if fits else f"is {shown(value)}"

    def __str__(self) -> str:
        return f"a whole number from {self.least} to {self.most}{' or null' * self.null}"


@dataclass(frozen=True)
class Number(Leaf):
    """A number from `least` to `most`, or null."""

    least: float = -LARGEST
    most: float = LARGEST
    null: bool = False

    def problem(self, value: Any) -> str:
        fits = (type(value) in (int, float) and self.least <= value <= self.most) or (value is None and self.null)
        return "" if fits else f"is {shown(value)}"

    def __str__(self) -> str:
        return f"a number from {self.least:g} to {self.most:g}{' or null' * self.null}"


@dataclass(frozen=True)
class Exactly(Leaf):
    """This very value; a float may be written as a whole number."""

    value: Any

    def problem(self, value: Any) -> str:
        is_number = isinstance(self.value, float) and type(value) in (int, float)
        return "" if value == self.value and (is_number or type(value) is type(self.value)) else f"is {shown(value)}"

    def __str__(self) -> str:
        return shown(self.value)


@dataclass(frozen=True)
class Anything(Leaf):
    """What is compared elsewhere."""

    def problem(self, value: Any) -> str:
        return ""

    def __str__(self) -> str:
        return "an object"


@dataclass(frozen=True)
class Flag(Leaf):
    """true or false."""

    def problem(self, value: Any) -> str:
        return "" if isinstance(value, bool) else f"is {shown(value)}"

    def __str__(self) -> str:
        return "true or false"


@dataclass(frozen=True)
class Each(Leaf):
    """A list of `least` to `most` values that all fit one description."""

    item: Leaf
    least: int = 0
    most: int = MAX_COUNT

    def problem(self, value: Any) -> str:
        if not isinstance(value, list):
            return f"is {shown(value)}"
        return "" if self.least <= len(value) <= self.most else f"has {len(value)} values"

    def __str__(self) -> str:
        return f"a list of {self.least} to {self.most} values, each {self.item}"


@dataclass(frozen=True)
class Like(Leaf):
    """A tensor of this shape (a range allows several lengths) and type, whose numbers lie between `least` and `most`.

    By default they are finite, since no infinity lies within the default bounds and a NaN lies within none.
    """

    shape: tuple[int | range, ...]
    dtype: torch.dtype = torch.float32
    least: float = -sys.float_info.max
    most: float = sys.float_info.max
    whole: bool = False

    @staticmethod
    def of(tensor: Tensor, least: float = -sys.float_info.max, most: float = sys.float_info.max) -> Like:
        """The description of whatever has the shape and the type of `tensor`."""
        return Like(tuple(tensor.shape), tensor.dtype, least, most)

    def problem(self, value: Tensor) -> str:
        if not self._has_shape(value.shape):
            return f"has shape {tuple(value.shape)} instead of {self._shape_in_words()}"
        if value.dtype is not self.dtype:
            return f"is of type {value.dtype} instead of {self.dtype}"
        if not value.numel() or self._holds(*value.aminmax(), value):
            return ""
        wide = value.double() if value.is_floating_point() else value  # bounds that are infinite as a float32 are not so here
        wrong = ~((wide >= self.least) & (wide <= self.most))
        if self.whole:
            wrong |= value != value.floor()
        place = wrong.nonzero()[0].tolist()
        return f"holds {value[tuple(place)].item()}{f' at {place}' if place else ''}"

    def _has_shape(self, shape: torch.Size) -> bool:
        return len(shape) == len(self.shape) and all(
            size in allowed if isinstance(allowed, range) else size == allowed
            for size, allowed in zip(shape, self.shape, strict=True)
        )

    def _holds(self, low: Tensor, high: Tensor, value: Tensor) -> bool:
        inside = self.least <= low.item() and high.item() <= self.most  # both NaN where one of them is
        return inside and not (self.whole and bool((value != value.floor()).any()))

    def _shape_in_words(self) -> str:
        sizes = [
            f"{n.start}..{n.stop - 1 if n.stop < ANY_LENGTH.stop else ''}" if isinstance(n, range) else f"{n}"
            for n in self.shape
        ]
        return f"({', '.join(sizes)}{',' * (len(sizes) == 1)})"

    def __str__(self) -> str:
        kind = "whole numbers" if self.whole or not self.dtype.is_floating_point else "finite numbers"
        bounds = [
            f"{word} {bound:g}"
            for word, bound in (("at least", self.least), ("at most", self.most))
            if abs(bound) < sys.float_info.max
        ]
        return f"{self.dtype} {self._shape_in_words()} of {' '.join([kind, ' and '.join(bounds)]).strip()}"


ANY_LENGTH = range(1 << 62)


def compare(expected: Any, given: Any, field: str = "") -> None:
    """UnfitError naming the first field of `given` (called `field`) that is not as `expected` describes it."""
    if isinstance(expected, Mapping):
        _compare_names(expected, given, field)
        for name, description in expected.items():
            compare(description, given[name], joined(field, name))
        return
    leaf = expected if isinstance(expected, Leaf) else Exactly(expected)
    items: list[Any] = []
    if isinstance(expected, list):
        agree(isinstance(given, list), field or "it", f"is {shown(given)}", "a list")
        agree(len(given) == len(expected), field or "it", f"has {len(given)} values", f"a list of {len(expected)}")
        items = expected
    elif problem := leaf.problem(given):
        raise UnfitError(field or "it", problem, str(leaf))
    elif isinstance(leaf, Each):
        items = [leaf.item] * len(given)
    for number, (description, item) in enumerate(zip(items, given if items else [], strict=True)):
        if repr(description) != repr(item):  # the usual case is cheap in long lists; == holds of False and 0
            compare(description, item, f"{field}[{number}]")


def _compare_names(expected: Mapping[str, Any], given: Any, field: str) -> None:
    names = ", ".join([*expected][:8]) + (f" and {len(expected) - 8} more" if len(expected) > 8 else "")
    if not isinstance(given, Mapping):
        raise UnfitError(field or "it", f"is {shown(given)}", f"an object with {names or 'nothing in it'}")
    for name, description in expected.items():
        if name not in given:
            what = "an object" if isinstance(description, Mapping) else shown(description)
            raise UnfitError(joined(field, name), "is missing", str(description) if isinstance(description, Leaf) else what)
    for name in given:
        if name not in expected:
            raise UnfitError(joined(field, name), "is not known here", f"only {names}" if names else "nothing")


def agree(condition: bool, field: str, problem: str, range: str) -> None:
    """UnfitError unless `condition`: for what one value says about another."""
    if not condition:
        raise UnfitError(field, problem, range)


@contextmanager
def within(place: str) -> Iterator[None]:
    """Within it, fields are named behind `place`, such as "training.json: "."""
    try:
        yield
    except UnfitError as error:
        raise UnfitError(place + error.field, error.problem, error.range) from error


def joined(field: str, name: object) -> str:
    """`field.name`; a name that we would not write is shown as text, without what a terminal might obey."""
    plain = isinstance(name, str) and re.fullmatch(r"[\w.-]{1,100}", name, re.ASCII)
    return f"{field}{'.' * bool(field)}{name if plain else f'{name!r:.100}'}"


def shown(value: object) -> str:
    """A value in a few characters, as Python writes it."""
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    return reprlib.repr(value)
