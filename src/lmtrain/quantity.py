"""A count as a sentence has it, with its noun in the singular or the plural."""

from __future__ import annotations


def counted(number: float, noun: str, form: str = ",") -> str:
    """The number, written in `form`, and the noun, with an s where the number does not read 1.

    >>> counted(1, "step"), counted(2000, "step"), counted(1.0004, "epoch", ".3g")
    ('1 step', '2,000 steps', '1 epoch')
    """
    text = format(number, form)
    return f"{text} {noun}{'s' * (text != '1')}"
