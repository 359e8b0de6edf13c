"""Shows how far training is: on a terminal a bar, elsewhere, as in a notebook or a file, a line now and then."""

from __future__ import annotations

import math
import os
import sys
import time
from collections.abc import Sequence

from tqdm import tqdm
from tqdm.contrib.logging import logging_redirect_tqdm

from lmtrain.inference.evaluate import number_text, perplexity_text
from lmtrain.training.learner import StepReport
from lmtrain.training.score import TOKENS, Wording

BAR_SECONDS = 0.2  # between two states of a bar
FIRST_LINES_SECONDS = 2.0  # between the first line, which knows no speed, and the second
LINE_SECONDS = 10.0  # between others
AROUND = len("100%,  ||") + 1  # a bar of one letter


class Bar:
    """Shows a bar from 0 to 100 % that begins at `fraction`, or lines instead."""

    def __init__(self, wording: Wording, fraction: float) -> None:
        self._wording = wording
        self._is_terminal = sys.stderr.isatty()
        self._bar = tqdm(
            total=100.0, initial=round(100 * fraction, 1), disable=not self._is_terminal, dynamic_ncols=True,
            bar_format="{percentage:3.0f}%{postfix} |{bar}|",
        )  # fmt: skip
        self._redirect = logging_redirect_tqdm()
        self._next_at = 0.0
        self._is_first = True

    def begin(self) -> None:
        """Keeps lines of the log from breaking the bar from now on."""
        if self._is_terminal:
            self._redirect.__enter__()

    def end(self) -> None:
        """Ends the bar; later output is written below it."""
        if self._is_terminal and not self._bar.disable:
            self._bar.close()
            self._redirect.__exit__(None, None, None)

    def show(self, step: int, report: StepReport, rate: float, fraction: float, left: float) -> None:
        """Shows the bar after a step, if some time has passed since the last one. `left` is in seconds; infinite if unknown."""
        if (now := time.monotonic()) < self._next_at:
            return
        words = self._words(step, report, rate, left)
        if self._is_terminal:
            self._next_at = now + BAR_SECONDS
            self._bar.set_postfix_str(" ".join(_fitting(words, _columns())), refresh=False)
            self._bar.n = round(100 * fraction, 1)
            self._bar.refresh()  # `update` would wait until there is more of the bar
        else:
            self._next_at = now + (FIRST_LINES_SECONDS if self._is_first else LINE_SECONDS)
            print(f"{100 * fraction:3.0f}% {' '.join(words)}", file=sys.stderr, flush=True)
        self._is_first = False

    def _words(self, step: int, report: StepReport, rate: float, left: float) -> list[str]:
        """Returns the words beside the bar. What matters most comes first."""
        words = []
        is_known = report.loss is not None and report.is_finite
        if is_known:
            assert report.loss is not None
            mean_loss = report.loss / report.num_items
            words.append(f"loss={number_text(mean_loss, 3)}")
        if math.isfinite(left):
            words.append(f"left={clock(left)}")
        if is_known and self._wording is TOKENS:
            words.append(f"ppl={perplexity_text(mean_loss)}")
        words.append(f"step={step}")
        if rate:
            words.append(f"{self._wording.items}/s={rate:,.0f}")
        if is_known:
            words.append(f"lr={report.learning_rate:.2g}")
        return words


def _fitting(words: Sequence[str], columns: int) -> list[str]:
    """Returns as many of `words` as a line with a bar has room for, at least the first."""
    fitting = list(words[:1])
    for word in words[1:]:
        if len(" ".join([*fitting, word])) + AROUND > columns:
            break
        fitting.append(word)
    return fitting


def _columns() -> int:
    try:
        return os.get_terminal_size(sys.stderr.fileno()).columns or 80
    except (OSError, ValueError):
        return 80


def clock(seconds: float) -> str:
    """Returns hours, minutes and seconds: `1:02:03`, `2:03`."""
    minutes, rest = divmod(math.ceil(seconds), 60)
    return f"{minutes}:{rest:02d}" if minutes < 60 else f"{minutes // 60}:{minutes % 60:02d}:{rest:02d}"
