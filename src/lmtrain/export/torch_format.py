"""The script that goes with plain weights: `script.py`, without the parts that a model does not need.

A block of the script begins with a comment `-- only KIND` and ends where the next comment of that sort stands. It is kept where
KIND is one of the kinds that occur in the model or its tokenizer (of several kinds, all must). Blocks may stand within blocks;
`-- end` closes one. What is written for our own tools (`noqa` and `fmt`) is left out.
"""

from __future__ import annotations

import re
from collections.abc import Collection
from pathlib import Path

MARK = re.compile(r"( *)# -- (only ([\w ]+)|end)\n")


def script_for(kinds: Collection[str]) -> str:
    """The text of `model.py` for a model in which these kinds occur."""
    kept: list[str] = []
    open_blocks: list[tuple[int, bool]] = []  # how far its mark is indented, and whether it is kept
    for line in (Path(__file__).parent / "script.py").read_text(encoding="utf-8").splitlines(keepends=True):
        if mark := MARK.fullmatch(line):
            indent = len(mark[1])
            while open_blocks and open_blocks[-1][0] >= indent:
                open_blocks.pop()
            if mark[3]:
                open_blocks.append((indent, set(mark[3].split()) <= {*kinds}))
        elif all(is_kept for _, is_kept in open_blocks):
            kept.append(line)
    script = re.sub(r"  # (noqa|fmt): .*", "", "".join(kept))
    return re.sub(r"\n{4,}", "\n\n\n", script)
