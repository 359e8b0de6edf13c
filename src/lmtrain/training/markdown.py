"""Writes plain text as Markdown, in which TensorBoard shows texts, and reads it back."""

from __future__ import annotations

import html
import re


def wrapped(text: str) -> str:
    """Returns plain text as Markdown that shows it as it is, line by line, and wraps long lines; `unwrapped` is its inverse."""
    lines = []
    for line in text.split("\n"):
        words = line.lstrip(" ")
        marked = re.sub(r"([\\`*_{}\[\]()#+\-.!])", r"\\\1", html.escape(words, quote=False))
        marked = marked.replace("~", "&#126;").replace("=", "&#61;")  # of fences, and below headings
        lines.append("&nbsp;" * (len(line) - len(words)) + marked.replace("  ", " &nbsp;"))
    return "  \n".join(lines)


def unwrapped(markdown: str) -> str:
    """Returns the plain text that `wrapped` was given."""
    return re.sub(r"\\(.)", r"\1", html.unescape(markdown.replace("&nbsp;", " ").replace("  \n", "\n")))
