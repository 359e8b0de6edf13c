"""An expression as it was typed, and the caret under the place where it is wrong."""

from __future__ import annotations

from dataclasses import dataclass

from lmtrain.errors import UserError
from lmtrain.shell import num_columns, one_line

AROUND = 40  # characters that are shown on either side of the caret


class ExpressionError(UserError):
    """An expression, or a value for one of its names, that cannot be explained."""

    def __init__(self, given: str, allowed: str, remedy: str) -> None:
        super().__init__(given, allowed, remedy)
        self.args = (str(self).replace("^\n ", "^\n"),)  # the line behind the caret begins at the margin


@dataclass(frozen=True)
class Source:
    """The text of an expression."""

    text: str

    def error(self, given: str, allowed: str, remedy: str, position: int) -> ExpressionError:
        """A mistake at a place of the text, which is shown with a caret under it."""
        return ExpressionError(f"{given}\n{self.pointed_at(position)}\n", allowed.strip(), remedy)

    def pointed_at(self, position: int) -> str:
        """The text around a place, and on a line of its own a caret under that."""
        start, end = max(0, position - AROUND), position + AROUND
        before = ("..." if start else "") + one_line(self.text[start:position])
        behind = one_line(self.text[position:end]) + ("..." if end < len(self.text) else "")
        return f"  {before}{behind}\n  {' ' * num_columns(before)}^"
