"""Characters of a text: their normalisation, and how one types those that are not seen. Without NumPy.

    iter_normalized(blocks, "nfc")     the text in one Unicode normalisation form, though it comes in blocks cut anywhere
    iter_normalized(blocks, "lower")   the text in lower case; "nfc_lower" and so on: both
    character_of("U+00A0")             the no-break space

A normalised text can be cut anywhere and stays normalised (Unicode Standard Annex 15); one that is not yet is cut before an
ASCII character, which no form joins with what stands before it. What a capital becomes depends on its word (a sigma ends words
in another shape), so lower case is made of whole words.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable, Iterator

from lmtrain.choices import Normalization, names

FORMS = names(Normalization)[1:]  # but for "none"
WAYS = (*FORMS, "lower", *(f"{form}_lower" for form in FORMS))
LAST_ASCII = re.compile(r"[\x00-\x7f](?=[^\x00-\x7f]*\Z)")
LAST_BLANK = re.compile(r"[ \t-\r](?=[^ \t-\r]*\Z)")


def normalized(text: str, form: str) -> str:
    """`text` in the form "nfc", "nfd" or "nfkc", in lower case, or both; as it is with "none"."""
    if form == "none":
        return text
    assert form in WAYS, form
    unicode_form = form.removesuffix("lower").removesuffix("_")
    for lowers in (False, True) if form.endswith("lower") else (False,):
        text = text.lower() if lowers else text
        if unicode_form and not text.isascii():
            text = unicodedata.normalize(unicode_form.upper(), text)  # type: ignore[arg-type]
    return text


def iter_normalized(blocks: Iterable[str], form: str) -> Iterator[str]:
    """Yields the same of a text in blocks that are cut anywhere, also within a character and its accents."""
    if form == "none":
        yield from blocks
        return
    rest: list[str] = []
    last = LAST_BLANK if form.endswith("lower") else LAST_ASCII
    for block in blocks:
        end = found.start() if (found := last.search(block)) else 0
        if end:
            yield normalized("".join([*rest, block[:end]]), form)
            rest.clear()
        elif found and rest:
            yield normalized("".join(rest), form)
            rest.clear()
        rest.append(block[end:])
    if any(rest):
        yield normalized("".join(rest), form)


def character_of(typed: str) -> str:
    """Reads a character as one types it: itself, or by its number as U+00A0. Raises ValueError for anything else."""
    if re.fullmatch(r"[Uu]\+[0-9A-Fa-f]{4,6}", typed):
        code = int(typed[2:], 16)
        typed = chr(code) if code < 0x110000 else ""
    if len(typed) != 1 or "\ud800" <= typed <= "\udfff" or typed == "\n":
        raise ValueError("a character is itself, or its number such as U+00A0; a line's end is none that can be chosen")
    return typed


def spaced(text: str, separators: str) -> str:
    """`text` with a space for each of the `separators`."""
    for separator in separators:
        text = text.replace(separator, " ")
    return text
