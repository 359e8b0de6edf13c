"""Settings as one types them: quoted for the shell, and for Hydra."""

from __future__ import annotations

import json
import re

from lmtrain.shell import quoted_for_shell

PATHS = ("resume", "start_from", "data.path", "data.train", "data.valid", "data.test", "data.cache_dir", "model.embeddings",
         "tokenizer.path", "tokenizer.vocabulary", "hydra.run.dir", "hydra.sweep.dir")  # fmt: skip
"""The settings that name a file or a directory."""


def typed(key: str, value: object) -> str:
    """`key=value` as one types it into a shell, quoted for the shell and for the settings where that is needed."""
    return quoted_for_shell(f"{key}={as_override(value)}")


def as_override(value: object) -> str:
    """A value as Hydra reads it; text is quoted where it would be read as something else."""
    if isinstance(value, list | tuple):
        return f"[{','.join(map(as_override, value))}]"
    if isinstance(value, int | float | None):
        return written(value)
    text = str(value)
    is_plain = re.fullmatch(r"(\.{0,2}/)*[a-z_][\w./-]*", text, re.ASCII | re.IGNORECASE) and text.lower() not in NOT_TEXT
    return text if is_plain else quoted(text)


NOT_TEXT = ("null", "true", "false", "inf", "nan")
"""Words that are read as something else than text where they are not quoted."""


def written(value: object) -> str:
    """A value as settings write it, and not as Python does: null, true, [1,2]. Text stays as it is."""
    if isinstance(value, list | tuple):
        return f"[{','.join(map(written, value))}]"
    return json.dumps(value) if isinstance(value, bool | None) else str(value)


def quoted(text: str) -> str:
    """A value that is text as Hydra reads it, whatever the text holds.

    Hydra halves backslashes before a quotation mark, and OmegaConf then those before `${`, which otherwise refers to a value.
    """
    return in_quotation_marks(escaped(text))


def escaped(text: str) -> str:
    """`text` in which OmegaConf finds nothing to replace."""
    return re.sub(r"(\\*)\$\{", r"\1\1\\${", text)


def in_quotation_marks(text: str) -> str:
    """A value as Hydra reads it, in which `${...}` refers to a value."""
    return '"' + re.sub(r'(\\*)("|$)', lambda found: 2 * found[1] + ('\\"' if found[2] else ""), text) + '"'
