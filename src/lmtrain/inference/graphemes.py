"""What a reader takes for one character: where two code points must not be parted.

The rules of Unicode Standard Annex 29 (extended grapheme clusters), as far as Python's own tables tell: marks and joiners stay
with what they modify, conjuncts stay whole, Hangul letters make syllables, flags and emoji sequences stay together.
"""

from __future__ import annotations

import unicodedata

JOINER = "\u200d"
VIRAMA = 9  # the combining class of signs that join consonants


def belong_together(before: str, following: str) -> bool:
    """Whether the last character of `before`, from where a cluster begins, and the first of `following` are of one cluster."""
    if not before or not following:
        return bool(before or following)
    last, first = before[-1], following[0]
    if last in "\r\n" or first in "\r\n":
        return last + first == "\r\n"
    category = unicodedata.category(first)
    if category in ("Mn", "Mc", "Me") or first in (JOINER, "\u200c") or "\U0001f3fb" <= first <= "\U0001f3ff":
        return unicodedata.category(last) not in ("Cc", "Zl", "Zp")
    if last == JOINER:
        return _virama_in(before) or unicodedata.category(first) == "So"
    if _is_virama(last) and category == "Lo":
        return True
    if _is_flag(last) and _is_flag(first):
        return len(before) % 2 == 1 and all(map(_is_flag, before))
    return _hangul(last) in _BEFORE.get(_hangul(first), "")


def _is_virama(character: str) -> bool:
    return unicodedata.combining(character) == VIRAMA


def _virama_in(text: str) -> bool:
    return any(map(_is_virama, text[-3:]))


def _is_flag(character: str) -> bool:
    return "\U0001f1e6" <= character <= "\U0001f1ff"


_BEFORE = {"L": "L", "V": "LVv", "T": "VTvt", "v": "L", "t": "L"}
"""Hangul: which kinds may stand before a kind. v and t are whole syllables without and with a last consonant."""


def _hangul(character: str) -> str:
    code = ord(character)
    if 0xAC00 <= code <= 0xD7A3:
        return "t" if (code - 0xAC00) % 28 else "v"
    return "L" if 0x1100 <= code <= 0x115F else "V" if 0x1160 <= code <= 0x11A7 else "T" if 0x11A8 <= code <= 0x11FF else "-"
