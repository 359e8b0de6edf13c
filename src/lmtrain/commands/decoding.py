"""`sample --beam`, constraints on what is written, and `--novelty`: what samples have copied from the training text."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from lmtrain.commands.options import finite, read_text, whole
from lmtrain.errors import DataError, SettingsError
from lmtrain.shell import one_line, printable
from lmtrain.terminal import for_terminal

if TYPE_CHECKING:
    from lmtrain.data.tokenizer import Tokenizer
    from lmtrain.inference.drawing import SampleSettings
    from lmtrain.saved import Trained

OF_DRAWING = ("temperature", "top_k", "top_p", "min_p", "seed")  # options that a beam does not read
OF_BEAM = ("beam", "num_samples", "max_tokens", "stop", "allow_unk", "no_repeat_ngram", "words", "novelty")
OF_WRITING = (*OF_DRAWING, *OF_BEAM)  # what --next does not read


def add_decoding_options(parser: argparse.ArgumentParser) -> None:
    """Adds options for beams, for what texts must not have, and for what they have in common with the training text."""
    group = parser.add_argument_group("decoding")
    group.add_argument(
        "--beam", type=int,
        help="the likeliest continuations, best first, with their scores; this many are kept at each length (--num-samples: so "
        "many are written)",
    )  # fmt: skip
    group.add_argument(
        "--length-power", type=finite, metavar="POWER",
        help="a beam's score is the log-probability divided by (number of tokens)^POWER (default: 1; 0: the probability)",
    )  # fmt: skip
    group.add_argument(
        "--no-repeat-ngram", type=int, metavar="N", help="no N tokens in a row occur twice, the prompt's counted"
    )
    group.add_argument(
        "--next", type=whole(1), metavar="N", help="instead of text, the N likeliest next tokens with their probabilities"
    )
    group.add_argument("--words", metavar="FILE", help='write only words of this list, one per line; "-": standard input')
    group.add_argument(
        "--novelty",
        metavar="RUN|TEXT",
        help="say afterwards how much is copied from the training text of a run, or from a file",
    )


def check_decoding_options(options: argparse.Namespace) -> None:
    """Raises SettingsError for options that exclude each other."""
    for name in OF_WRITING * (options.next is not None):
        if getattr(options, name) not in (None, []) and getattr(options, name) is not False:
            option = f"--{name.replace('_', '-')}"
            raise SettingsError(
                f"{option} was given together with --next.", "It writes no text: it only says what could come first.",
                "Leave out one of them.",
            )  # fmt: skip
    if options.precision == "int8" and (options.next, options.beam) != (None, None):
        raise SettingsError(
            f"--precision int8 was given together with {'--beam' if options.next is None else '--next'}.",
            "It computes in float32 or bfloat16.", "Type --precision bfloat16.",
        )  # fmt: skip
    if options.beam is None:
        if options.length_power is not None:
            raise SettingsError(
                "--length-power was given without --beam.", "It is about a beam's scores.", "Type --beam 8 as well."
            )
        return
    if options.length_power is not None and options.length_power < 0:
        raise SettingsError(
            f"--length-power is {options.length_power:g}.", "Allowed are numbers of at least 0.", "Leave it out (1)."
        )
    for name in OF_DRAWING:
        if getattr(options, name) is not None:
            option = f"--{name.replace('_', '-')}"
            raise SettingsError(
                f"{option} was given together with --beam.", "A beam takes the likeliest texts and draws none.",
                "Leave out one of them.",
            )  # fmt: skip


def read_words(options: argparse.Namespace) -> tuple[str, ...] | None:
    """Returns the words of `--words`. Raises DataError if there is none."""
    if options.words is None:
        return None
    data = "".join(read_text(options.words)).encode()  # bytes are split at the white space of `vocabulary` alone
    words = tuple(dict.fromkeys(word.decode() for word in data.split()))
    if not words:
        raise DataError(
            f"{one_line(options.words)} has no words.", "At least one is needed.", "Give a file with a word per line."
        )
    return words


def print_next(options: argparse.Namespace, trained: Trained, prompt: str) -> None:
    """A row for each of the likeliest tokens."""
    from lmtrain.inference.sample import next_tokens

    found = next_tokens(trained.model, trained.tokenizer, prompt, options.next, device=options.device)
    if not options.json:
        print("probability\ttoken")
    for text, probability in found:
        shown = text if text.isprintable() else text.encode("unicode_escape").decode()
        print(json.dumps({"text": text, "probability": probability}) if options.json else f"{probability:.6g}\t{shown}")


def print_beams(options: argparse.Namespace, trained: Trained, prompt: str, settings: SampleSettings) -> list[str]:
    """Prints a row for each of the best continuations, and returns them."""
    from lmtrain.inference.beam import beam_search

    found = beam_search(
        trained.model, trained.tokenizer, prompt, settings, beam=options.beam, num_best=options.num_samples,
        length_power=1.0 if options.length_power is None else options.length_power, device=options.device,
    )  # fmt: skip
    if not options.json:
        print("score\tlog_prob\ttokens\ttext")
    for best in found:
        if options.json:
            row = {"score": best.score, "log_prob": best.log_prob, "num_tokens": len(best.tokens), "text": best.text}
            print(json.dumps(row))
        else:
            numbers = f"{best.score:.6f}\t{best.log_prob:.6f}\t{len(best.tokens)}"
            print(f"{numbers}\t{for_terminal(one_line(best.text))}")
    return [best.text for best in found]


def print_novelty(texts: Sequence[str], tokenizer: Tokenizer, training: Any, *, as_json: bool) -> None:
    """Prints a line for each text to standard error; as JSON a last line."""
    from lmtrain.inference.novelty import novelty_of

    found = novelty_of(texts, tokenizer, training)
    if as_json:
        print(json.dumps({"novelty": [each.to_json() for each in found]}))
        return
    for number, each in enumerate(found):
        print(printable(f"{number}: {each.format()}"), file=sys.stderr)
