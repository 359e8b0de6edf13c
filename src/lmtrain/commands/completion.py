"""`python -m lmtrain completion` makes the TAB key of bash offer commands, options, settings with their values, and runs.

    python -m lmtrain completion >> ~/.bashrc

It completes `lmtrain` and `python -m lmtrain`. Everything that it offers is accepted: the settings and their values come from
the classes that check them, the options from the commands themselves. Nothing heavy is imported.
"""

from __future__ import annotations

import contextlib
import dataclasses
import io
import re
import types
import typing
from collections.abc import Iterator
from enum import Enum
from importlib import import_module
from typing import Any

import lmtrain.config as config
from lmtrain.commands.help import iter_groups
from lmtrain.commands.options import Parser
from lmtrain.settings import quoting
from lmtrain.shell import expanded

SCRIPT = r"""
_lmtrain() {
    local line="${COMP_LINE:0:COMP_POINT}" word
    case "$line" in
        python*\ -m\ lmtrain\ *) ;;
        lmtrain\ *|*/lmtrain\ *) ;;
        *) return ;;
    esac
    local program="${COMP_WORDS[0]}"
    [[ "$line" == python* ]] && program="$program -m lmtrain"
    word="${line##*[[:space:]]}"
    local offered behind="${COMP_WORDS[COMP_CWORD]}"
    [[ "$behind" == "=" ]] && behind=""
    local begins="${word%"$behind"}"
    COMPREPLY=()
    while IFS= read -r offered; do
        COMPREPLY+=("${offered#"$begins"}")
    done < <($program completion --line "$line" 2>/dev/null)
    [[ "${COMPREPLY[*]}" == *[=/.] ]] && compopt -o nospace
}
complete -o default -F _lmtrain lmtrain python python3
"""


def main(arguments: list[str]) -> None:
    """Prints the script for bash; with `--line`, what the line may end with."""
    parser = Parser("completion", __doc__)
    parser.add_argument("--line", metavar="LINE", help="the command line as far as it is typed; used by the script")
    options = parser.parse_args(arguments)
    print(SCRIPT if options.line is None else "\n".join(offers(options.line)))


def offers(line: str) -> list[str]:
    """Returns the whole words that may complete `line`."""
    typed = re.split(r"\s+", re.sub(r"^\s*(python\S*\s+-m\s+lmtrain|\S*lmtrain)\s", "", line))
    *before, word = typed
    commands = import_module("lmtrain.__main__").COMMANDS  # by name, because it is above commands
    command = before[0] if before and before[0] in commands else None
    found: Iterator[str] | list[str]
    if command is None or command == "inspect":
        found = [*_settings(word), *([] if before else commands)]
        if command is not None:
            found = [*found, *_options(command)]
        elif word.startswith("-"):
            found = ["--help", "--version", "--multirun", "--cfg", "--info", "--resolve", "--hydra-help", "--config-dir"]
    elif word.startswith("-"):
        found = _options(command)
    elif before[-1].startswith("-") and (choices := _choices(command, before[-1])):
        found = choices
    elif command == "help":
        found = list(commands)
    elif command == "settings":
        found = list(config.GROUPS)
    else:
        found = _paths(word)
    return sorted({offer for offer in found if offer.startswith(word)})


def _help(command: str) -> str:
    """Returns the command's own help."""
    said = io.StringIO()
    with contextlib.suppress(SystemExit), contextlib.redirect_stdout(said):
        import_module("lmtrain.__main__")._dispatch([command, "--help"])
    return said.getvalue()


def _options(command: str) -> list[str]:
    usage = _help(command).partition("\n\n")[0]
    return ["--help", *re.findall(r"--[a-z][\w-]*", usage)]


def _choices(command: str, option: str) -> list[str]:
    """Returns the values of an option that has a few."""
    found = re.search(rf"{re.escape(option)} \{{([^}}]*)\}}", re.sub(r"\s+", " ", _help(command)))
    return found[1].split(",") if found else []


def _paths(word: str) -> list[str]:
    """Returns directories and files that begin with `word`. Runs and checkpoints are complete; others end with a slash."""
    head, slash, _ = word.rpartition("/")
    with contextlib.suppress(OSError):
        return [
            f"{head}{slash}{path.name}{'' if not path.is_dir() or (path / 'run.json').is_file() else '/'}"
            for path in expanded(head + slash or ".").iterdir()
            if not path.name.startswith(".") or word.rpartition("/")[2].startswith(".")
        ]
    return []


# ---- settings


def _settings(word: str) -> list[str]:
    """Returns settings as `name=`, or after `=` their values; of a list of values for a sweep, the last one is completed."""
    name, is_given, value = word.partition("=")
    groups = dict(iter_groups())
    if not is_given:
        dotted = [f"{key}=" for key in _hints()]
        return [
            *(f"{group}=" for group in groups),
            "resume=",
            *(dotted if "." in word else {f"{key.split('.')[0]}." for key in dotted}),
        ]
    begins, comma, last = value.rpartition(",")
    if name in groups:
        values = groups[name]
    elif name in quoting.PATHS:
        values = _paths(last)
    else:
        values = list(dict.fromkeys(text for hint in _hints().get(name, []) for text in _values(hint)))
    return [f"{name}={begins}{comma}{text}" for text in values]


def _hints() -> dict[str, list[Any]]:
    """Returns the types of every setting, whatever the kind of its group."""
    found: dict[str, list[Any]] = {}
    for group, hint in config.GROUPS.items():
        for kind in config.KINDS.get(hint, (hint,)):
            hints = typing.get_type_hints(kind)
            for field in dataclasses.fields(kind):
                if "only" not in field.metadata and field.name not in ("kind", "name", "cell"):
                    found.setdefault(f"{group}.{field.name}", []).append(hints[field.name])
    return found


def _values(hint: Any) -> list[str]:
    """Returns the values of a setting that has a few."""
    if isinstance(hint, types.UnionType):
        return [text for part in typing.get_args(hint) for text in _values(part)]
    if hint is type(None):
        return ["null"]
    if hint is bool:
        return ["true", "false"]
    return list(hint.__members__) if isinstance(hint, type) and issubclass(hint, Enum) else []
