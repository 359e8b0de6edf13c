"""The doors to Python: arguments of a wrong type are refused, in one TypeError that names the argument and what is expected.
Whatever the caller has set in PyTorch stays outside (`lmtrain.surroundings`).

`checked` reads the types from the annotations, so they stand once. Only what a caller types is checked: what the package calls
itself has a type checker. Values of the right type and no meaning are refused by those who know their meaning.
"""

from __future__ import annotations

import functools
import inspect
import os
import types
import typing
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence, Sized
from numbers import Integral, Real
from typing import Any, Literal, ParamSpec, TypeVar

from lmtrain.errors import SettingsError
from lmtrain.surroundings import as_in_a_new_process

P = ParamSpec("P")
R = TypeVar("R")
C = TypeVar("C", bound=type)

PLAIN: dict[Any, tuple[Callable[[Any], bool], str]] = {
    str: (lambda value: isinstance(value, str), "a string"),
    bool: (lambda value: isinstance(value, bool) or type(value).__name__ == "bool_", "True or False"),
    int: (lambda value: isinstance(value, Integral) and not isinstance(value, bool), "a whole number"),
    float: (lambda value: isinstance(value, Real) and not isinstance(value, bool), "a number"),
    type(None): (lambda value: value is None, "None"),
    os.PathLike: (lambda value: isinstance(value, os.PathLike), "a path"),
}
"""How values of plain types are told, and what they are called."""


def checked(function: Callable[P, R]) -> Callable[P, R]:
    """Returns a function that does the same, as in a new process, and raises TypeError for an argument that its annotation does
    not allow.

    >>> @checked
    ... def doubled(number: int) -> int:
    ...     return 2 * number
    >>> doubled("2")
    Traceback (most recent call last):
    TypeError: doubled() was given number='2'; expected a whole number
    """
    signature = inspect.signature(function)
    hints: dict[str, Any] = {}

    @functools.wraps(function)
    def call(*arguments: P.args, **options: P.kwargs) -> R:
        try:
            bound = signature.bind(*arguments, **options)
        except TypeError:
            return function(*arguments, **options)  # Python's own words for arguments that there are not
        if not hints:
            hints.update(_hints(function))
        for name, value in bound.arguments.items():
            kind = signature.parameters[name].kind
            if kind is inspect.Parameter.VAR_KEYWORD or name not in hints:
                continue
            many = kind is inspect.Parameter.VAR_POSITIONAL
            fitted = [_fitted(one, hints[name], name, function.__qualname__) for one in (value if many else [value])]
            bound.arguments[name] = tuple(fitted) if many else fitted[0]
        with as_in_a_new_process():
            return function(*bound.args, **bound.kwargs)

    return call


def checked_methods(cls: C) -> C:
    """Makes every public method of a class a `checked` one."""
    for name, member in list(vars(cls).items()):
        if not name.startswith("_") and inspect.isfunction(member):
            setattr(cls, name, checked(member))
        elif not name.startswith("_") and isinstance(member, classmethod):
            setattr(cls, name, classmethod(checked(member.__func__)))
    return cls


def _hints(function: Callable[..., Any]) -> dict[str, Any]:
    """The types of a function's parameters; without those that only a type checker can find."""
    found: dict[str, Any] = {}
    for name, hint in function.__annotations__.items():
        one = types.SimpleNamespace(__annotations__={name: hint})
        try:
            found |= typing.get_type_hints(one, globalns=getattr(function, "__globals__", {}))
        except NameError:
            continue
    found.pop("return", None)
    return found


def _fitted(value: Any, hint: Any, name: str, function: str) -> Any:
    """Returns `value` if it is as the hint says. What can only be seen piece by piece is looked at when it is read."""
    parts = [part for part in _parts(hint) if _matches(value, part)]
    if not parts:
        raise _wrong(value, hint, name, function)
    if isinstance(value, str) and not value and any(_is_path(part) for part in _parts(hint)):
        raise SettingsError(f"{name} is empty.", "It must be the path of a file or a directory.", f"Give one: {name}=PATH.")
    for part in parts:
        if typing.get_origin(part) is Iterable and not isinstance(value, str | bytes | Sized):
            return _Pieces(value, typing.get_args(part)[0], name, function)
    return value


def _wrong(value: Any, hint: Any, name: str, function: str) -> TypeError:
    shown = repr(value)
    shown = shown if len(shown) <= 60 else f"{shown[:57]}..."
    example = f", such as [{shown}]" if isinstance(value, str) and any(_matches([value], part) for part in _parts(hint)) else ""
    return TypeError(f"{function}() was given {name}={shown}; expected {_said(hint)}{example}")


class _Pieces:
    """What yields the pieces of something that can be iterated over, each of its type."""

    def __init__(self, pieces: Iterable[Any], hint: Any, name: str, function: str) -> None:
        self._pieces, self._hint, self._name, self._function = pieces, hint, name, function

    def __iter__(self) -> Iterator[Any]:
        for piece in self._pieces:
            if not _matches(piece, self._hint):
                raise _wrong(piece, self._hint, f"a piece of {self._name}", self._function)
            yield piece


def _parts(hint: Any) -> tuple[Any, ...]:
    hint = _named(hint)
    return typing.get_args(hint) if isinstance(hint, types.UnionType) or typing.get_origin(hint) is typing.Union else (hint,)


def _is_path(hint: Any) -> bool:
    kind = typing.get_origin(hint) or hint
    return isinstance(kind, type) and issubclass(kind, os.PathLike)


def _named(hint: Any) -> Any:
    """What the name of a type stands for: NumPy's NDArray is such a name, a TypeAliasType, since its version 2.5."""
    return getattr(typing.get_origin(hint) or hint, "__value__", hint)


def _matches(value: Any, hint: Any) -> bool:
    hint = _named(hint)
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if len(parts := _parts(hint)) > 1:
        return any(_matches(value, part) for part in parts)
    if (plain := PLAIN.get(origin or hint)) is not None:
        return plain[0](value)
    if origin is Literal:  # which of them, is somebody else's to say
        return any(_matches(value, type(one)) for one in arguments)
    if origin is tuple:
        return isinstance(value, tuple | list) and len(value) == len(arguments) and all(map(_matches, value, arguments))
    if origin is Mapping:
        return isinstance(value, Mapping) and all(
            _matches(key, arguments[0]) and _matches(one, arguments[1]) for key, one in value.items()
        )
    if origin in (Iterable, Sequence):
        if isinstance(value, bytes | Mapping) or not isinstance(value, Iterable):
            return False
        if not isinstance(value, Sized):
            return origin is Iterable
        return not isinstance(value, str) and all(_matches(one, arguments[0]) for one in value)  # a string is not its letters
    kind = origin or hint
    if getattr(kind, "__name__", "") == "ndarray":  # or what NumPy makes one of
        return isinstance(value, Sized) and not isinstance(value, str | bytes)
    try:
        return not isinstance(kind, type) or isinstance(value, kind)
    except TypeError:  # a protocol, which says nothing while a program runs
        return True


def _said(hint: Any) -> str:
    """What a hint allows, in words."""
    hint = _named(hint)
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if len(parts := _parts(hint)) > 1:
        *first, last = dict.fromkeys(map(_said, parts))
        return f"{', '.join(first)} or {last}" if first else last
    if (plain := PLAIN.get(origin or hint)) is not None:
        return plain[1]
    if origin is Literal:
        return " or ".join(map(repr, arguments))
    if origin is tuple:
        return f"a pair of {' and '.join(map(_said, arguments))}"
    if origin is Mapping:
        return f"a mapping from {_said(arguments[0])} to {_said(arguments[1])}"
    if origin in (Iterable, Sequence):
        return "a list of strings" if (origin, *arguments) == (Sequence, str) else f"several, each {_said(arguments[0])}"
    kind = origin or hint
    if getattr(kind, "__name__", "") == "ndarray":
        return "an array of numbers"
    return f"a {kind.__module__.partition('.')[0]}.{kind.__name__}"
