"""`score --unit` and `score --html` print and draw how surprising every token, word or line is."""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from html import escape
from typing import TYPE_CHECKING, Any

from lmtrain.commands.options import new_path
from lmtrain.errors import SettingsError, unwritable
from lmtrain.files.unfinished import new_file
from lmtrain.shell import printable

if TYPE_CHECKING:
    from lmtrain.inference.surprise import Unit

LEVELS = 12  # shades of surprise
NATS_PER_LEVEL = 1.0


def add_surprise_options(parser: argparse.ArgumentParser) -> None:
    """Adds the options that say which units are shown, in which unit of information, and where they are drawn."""
    group = parser.add_argument_group("where the model is surprised")
    group.add_argument(
        "--unit", choices=("token", "word", "line"),
        help="a row for each: surprisal, entropy, rank, the three likeliest instead (for programs: the total goes to standard "
        "error)",
    )  # fmt: skip
    group.add_argument("--bits", action="store_true", help="surprisal and entropy of --unit in bits (default: nats)")
    group.add_argument("--html", metavar="FILE", help="a page with every token, or --unit, coloured by its surprisal")


def check_surprise_options(options: argparse.Namespace) -> None:
    """Raises SettingsError for options that exclude each other."""
    asked = "--unit" if options.unit else "--html" if options.html is not None else None
    if asked is None:
        if options.bits:
            raise SettingsError("--bits was given without --unit.", "It is about surprisal.", "Type --unit word as well.")
        return
    for option in ("nbest", "per_token", "batch_tokens", "dynamic", "cache"):
        if getattr(options, option):
            raise SettingsError(
                f"{asked} was given together with --{option.replace('_', '-')}.",
                "It looks at the distributions of the trained weights, one token after the other.",
                "Leave out one of them.",
            )
    if options.unit == "line" and options.html:
        raise SettingsError(
            "--html was given together with --unit line.", "The page colours tokens or words.", "Type --unit word."
        )


class Rows:
    """Writes units as rows under `header`, separated by tabs, or as JSON lines. With `key`, that of their line comes first."""

    def __init__(self, unit: str, *, bits: bool, keyed: bool) -> None:
        self._unit, self._scale, self._keyed = unit, math.log(2) if bits else 1.0, keyed

    def header(self) -> str:
        """Returns the names of the columns."""
        begins = ["key"] * self._keyed + ["line"]
        if self._unit == "line":
            return "\t".join([*begins, "surprisal", "entropy", "tokens", "unknown"])
        instead = [f"{name}{number}" for number in (1, 2, 3) for name in ("instead", "probability")]
        return "\t".join([*begins, "position", "text", "surprisal", "entropy", "rank", "tokens", "unknown", *instead])

    def row(self, found: Unit, key: str | None) -> str:
        """Returns one unit. If fewer than three others are possible, columns are empty."""
        from lmtrain.inference.evaluate import number_text

        numbers = [number_text(value / self._scale, 6) for value in (found.surprisal, found.entropy)]
        counts = [str(found.num_tokens), str(found.num_unk)]
        begins = [] if key is None else [key]
        if self._unit == "line":
            return "\t".join([*begins, str(found.line), *numbers, *counts])
        instead = [part for text, probability in found.instead for part in (_on_one_line(text), f"{probability:.6g}")]
        instead += [""] * (6 - len(instead))
        place = [str(found.line), str(found.position), _on_one_line(found.text)]
        return "\t".join([*begins, *place, *numbers, str(found.rank), *counts, *instead])

    def to_json(self, found: Unit, key: str | None) -> str:
        """Returns the same as a JSON object; null stands for an infinite surprisal."""
        surprisal, entropy = (
            value / self._scale if math.isfinite(value) else None for value in (found.surprisal, found.entropy)
        )
        values: dict[str, Any] = {} if key is None else {"key": key}
        values |= {"line": found.line, "position": found.position, "text": found.text, "surprisal": surprisal}
        values |= {"entropy": entropy, "rank": found.rank, "num_tokens": found.num_tokens, "num_unk": found.num_unk}
        values["instead"] = [alternative._asdict() for alternative in found.instead]
        if self._unit == "line":
            for name in ("position", "text", "rank", "instead"):
                del values[name]
        return json.dumps(values)


def _on_one_line(text: str) -> str:
    return text if text.isprintable() else text.encode("unicode_escape").decode()


# ---- the page

PAGE = """<!DOCTYPE html>
<html><head><meta charset="utf-8"><title>{title}</title><meta name="viewport" content="width=device-width">
<style>
body {{ font: 1rem/1.5 system-ui, sans-serif; max-width: 60rem; margin: 2rem auto; padding: 0 1rem }}
body {{ color: #111; background: #fff; color-scheme: light }}
h1 {{ font-size: 1.3rem; line-height: 1.3; margin: 0 0 .5rem; overflow-wrap: anywhere }}
p {{ color: #555; font-size: .9rem; margin: .5rem 0 }}
main {{ white-space: pre-wrap; overflow-wrap: anywhere; font-size: 1.1rem; line-height: 1.9 }}
main {{ border: solid #ddd; border-width: 1px 0; margin: 1rem 0; padding: 1rem 0 }}
i {{ color: #111; font-style: normal; border-radius: 3px; padding: .1em 0 }}
i:hover {{ outline: 1px solid #111 }}
u {{ text-decoration: underline dotted }}
{shades}
</style></head><body>
<h1>{title}</h1>
<p>Each {unit} is coloured by its surprisal in nats; unknown words are dotted. Point at one for its numbers and for what the
model expected instead.</p>
<p>{legend} nats or more</p>
<main>"""
END = """</main>
<p>{result}</p>
</body></html>
"""


@contextmanager
def page(path: str, title: str, unit: str, has_words: bool) -> Iterator[tuple[Callable[[Unit], None], Callable[[str], None]]]:
    """Opens an HTML file that appears whole or not at all; yields what draws the next unit, and what ends the page.

    `has_words` puts a space between two units of a line. Raises SettingsError if something is at `path` already, or if it
    cannot be made; ResourceError where the disk is full.
    """
    target = new_path(path, option="--html")
    try:
        with new_file(target) as file:

            def write(text: str) -> None:
                file.write(text.encode("utf-8", "backslashreplace"))

            shades = "\n".join(f".s{level} {{ background: {_shade(level)} }}" for level in range(LEVELS + 1))
            legend = " ".join(f'<i class="s{level}">&nbsp;{level * NATS_PER_LEVEL:g}&nbsp;</i>' for level in range(LEVELS + 1))
            write(PAGE.format(title=escape(printable(title)), unit=unit, shades=shades, legend=legend))
            yield lambda found: write(_drawn(found, has_words)), lambda result: write(END.format(result=_broken(result)))
            new_path(path, option="--html")  # somebody may have made it in the meantime
    except BrokenPipeError:  # the reader of standard output went away
        raise
    except OSError as error:
        raise unwritable(f"--html {path}", error) from error


def _shade(level: int) -> str:
    """Returns a colour from white to a red on which black can be read."""
    share = level / LEVELS
    return f"rgb({255 - int(15 * share)} {255 - int(145 * share)} {255 - int(165 * share)})"


def _drawn(found: Unit, has_words: bool) -> str:
    level = min(LEVELS, int(found.surprisal / NATS_PER_LEVEL)) if math.isfinite(found.surprisal) else LEVELS
    facts = f"{found.surprisal:.2f} nats, rank {found.rank:,}, entropy {found.entropy:.2f}"
    instead = [f"{_on_one_line(text)}  {100 * probability:.3g} %" for text, probability in found.instead]
    about = escape(printable("\n".join([facts, "instead:", *instead]))).replace("\n", "&#10;")
    text = "" if found.ends_line and found.num_tokens == 1 else found.text  # what ends a line is drawn, whatever its name
    shown = escape(printable(text)) + "\u23ce" * found.ends_line
    shown = f"<u>{shown}</u>" if found.num_unk else shown
    behind = "\n" if found.ends_line else " " if has_words else ""
    return f'<i class="s{level}" title="{about}">{shown}</i>{behind}'


def _broken(result: str) -> str:
    return escape(printable(result)).replace("\n", "<br>")
