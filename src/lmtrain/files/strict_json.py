"""Strict JSON: what is written here is plain, and nothing else is read back.

It refuses too many bytes (before a single one is parsed), deep nesting, a key given twice, NaN and infinities (also as
1e999), and text that is not UTF-8. Parsing yields dict, list, str, int, float, bool and None; it names and calls nothing.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from typing import Any, NoReturn

MAX_BYTES = 32 << 20
MAX_DEPTH = 32


def to_json(document: Any) -> bytes:
    """Returns `document` as the bytes that `parse_json` reads back. Raises ValueError for NaN, infinities, or more than is read
    back."""
    _check_depth(document)
    text = json.dumps(document, ensure_ascii=False, allow_nan=False, indent=1) + "\n"
    data = text.encode(errors="backslashreplace")  # \udce4, as JSON escapes it, for the byte 0xE4 in the name of a file
    if len(data) > MAX_BYTES:
        raise ValueError(f"a JSON document of {len(data)} bytes is more than the {MAX_BYTES} that would be read back")
    return data


def parse_json(data: bytes, parse_int: Callable[[str], int] | None = None) -> Any:
    """Returns the document in `data`; ValueError says in words why there is none.

    `parse_int` makes a number of the digits of each whole number, and may refuse them with a ValueError.
    """
    if len(data) > MAX_BYTES:
        raise ValueError(f"it has {len(data)} bytes of JSON, more than {MAX_BYTES}")
    try:
        document = json.loads(
            data.decode(),
            object_pairs_hook=_without_duplicates,
            parse_constant=_refuse,
            parse_float=_finite,
            parse_int=parse_int,
        )
    except RecursionError:
        raise ValueError(f"it is nested deeper than {MAX_DEPTH} levels") from None
    except UnicodeDecodeError as error:
        raise ValueError(f"byte {error.start} is not UTF-8") from None
    except json.JSONDecodeError as error:
        raise ValueError(f"it is not JSON: {error}") from None
    _check_depth(document)
    return document


def _without_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    members = dict(pairs)
    if len(members) < len(pairs):
        seen: set[str] = set()
        twice = next(key for key, _ in pairs if key in seen or seen.add(key))  # type: ignore[func-returns-value]
        raise ValueError(f"key {twice[:80]!r} is given twice")
    return members


def _refuse(constant: str) -> NoReturn:
    raise ValueError(f"{constant} is not a number of JSON")


def _finite(digits: str) -> float:
    number = float(digits)
    if math.isinf(number):
        raise ValueError(f"{digits[:80]} is too large for a number")
    return number


def _check_depth(document: Any) -> None:
    layer = [document]
    for _ in range(MAX_DEPTH):
        layer = [
            child
            for node in layer
            if isinstance(node, (dict, list, tuple))
            for child in (node.values() if isinstance(node, dict) else node)
        ]
        if not layer:
            return
    raise ValueError(f"it is nested deeper than {MAX_DEPTH} levels")
