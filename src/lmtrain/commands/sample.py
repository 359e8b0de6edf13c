"""`python -m lmtrain sample RUN` writes text. Only text is printed to standard output, as soon as it is certain."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING

from lmtrain.commands.decoding import (
    add_decoding_options,
    check_decoding_options,
    print_beams,
    print_next,
    print_novelty,
    read_words,
)
from lmtrain.commands.options import (
    Parser,
    add_model_options,
    add_speed_options,
    computing,
    field_of,
    open_model,
    parse,
    read_text,
    unescaped,
    whole,
)
from lmtrain.errors import DataError, as_typed
from lmtrain.terminal import for_terminal

if TYPE_CHECKING:
    from lmtrain.inference.sample import Draw


@as_typed(
    temperature="--temperature ", top_k="--top-k ", top_p="--top-p ", min_p="--min-p ", max_tokens="--max-tokens ",
    num_samples="--num-samples ", stop="--stop ", allow_unk="--allow-unk", no_repeat_ngram="--no-repeat-ngram ",
    beam="--beam ", num_best="--num-samples ", length_power="--length-power ", precision="--precision ",
    training="--novelty ",
)  # fmt: skip
def main(arguments: list[str]) -> None:
    """Reads a prompt, draws continuations, prints them."""
    parser = Parser("sample", __doc__, behind="--prompt")
    add_model_options(parser)
    source = parser.add_mutually_exclusive_group()
    source.add_argument("--prompt", help="text to go on from (default: the start of a line)")
    source.add_argument("--prompt-file", metavar="FILE", help='the same from a file; "-": standard input')
    parser.add_argument("--max-tokens", type=int, help="length of a sample in tokens (default: 200)")
    parser.add_argument("--temperature", type=float, help="0: always the likeliest token (default: 0.8)")
    parser.add_argument("--top-k", type=int, help="draw only from the K likeliest tokens")
    parser.add_argument("--top-p", type=float, help="draw only from the likeliest tokens that make up P")
    parser.add_argument("--min-p", type=float, help="draw only tokens at least P times as likely as the likeliest")
    parser.add_argument("--num-samples", type=int, help="drawn side by side, with seeds N, N + 1, ... (default: 1)")
    parser.add_argument("--seed", type=whole(0, 2**32 - 1), metavar="N", help="the same seed gives the same text (default: 1)")
    parser.add_argument(
        "--stop", action="append", default=[], type=unescaped,
        help=r"end before this text, in which \n is a line's end, \t a tab, \\ a backslash; may be given several times",
    )  # fmt: skip
    parser.add_argument("--allow-unk", action="store_true", help="may also draw <unk>")
    add_decoding_options(parser)
    add_speed_options(parser, "int8")
    parser.add_argument("--strict", action="store_true", help="refuse a prompt that holds unknown text")
    parser.add_argument("--json", action="store_true", help="a JSON line per token: text, nats, rank, entropy")
    options = parse(parser, arguments)

    from lmtrain.data.text import with_line_ends
    from lmtrain.inference.drawing import SampleSettings
    from lmtrain.inference.sample import sample
    from lmtrain.tasks.opening import text_field, training_ids

    check_decoding_options(options)
    settings = SampleSettings(
        temperature=0.8 if options.temperature is None else options.temperature, top_k=options.top_k, top_p=options.top_p,
        min_p=options.min_p, max_tokens=200 if options.max_tokens is None else options.max_tokens, stop=tuple(options.stop),
        allow_unk=options.allow_unk, no_repeat_ngram=options.no_repeat_ngram, words=read_words(options),
        statistics=options.json,
    )  # fmt: skip
    prompt = "".join(with_line_ends([options.prompt or ""]))
    if options.prompt_file is not None:
        prompt = "".join(read_text(options.prompt_file, field=field_of(options, options.prompt_file)))
    trained = open_model(options)
    unknown = trained.tokenizer.unknown_pieces(prompt) if options.strict else []
    if unknown:
        raise DataError(
            f"The prompt contains {', '.join(map(repr, unknown[:10]))}, unknown to this model.",
            "With --strict it may hold known text only.",
            "Leave --strict out to have it read as <unk>.",
        )
    training = None if options.novelty is None else training_ids(options.novelty, trained.tokenizer, text_field(trained.path))
    with computing(options):
        if options.next is not None:
            print_next(options, trained, prompt)
            return
        if options.beam is not None:
            written = print_beams(options, trained, prompt, settings)
        else:
            texts = sample(
                trained.model, trained.tokenizer, prompt, settings, seed=1 if options.seed is None else options.seed,
                num_samples=1 if options.num_samples is None else options.num_samples, device=options.device,
                int8=options.precision == "int8",
            )  # fmt: skip
            kept = None if training is None else list[str]()
            _print_samples(texts, prompt, options.json, trained.tokenizer.reverse, kept)
            written = kept or []
    if training is not None:
        print_novelty(written, trained.tokenizer, training, as_json=options.json)


def _print_samples(texts: Iterator[Iterator[Draw]], prompt: str, as_json: bool, backward: bool, kept: list[str] | None) -> None:
    """Prints every token as soon as `sample` gives it: as text after the prompt, or as a line of JSON.

    What a `backward` model draws is before the prompt on its line. What was drawn is appended to the list `kept`.
    """
    above, _, line = prompt.rpartition("\n") if backward else (prompt, "", "")
    before, behind = (above + "\n" * ("\n" in prompt), line) if backward else (prompt, "")
    for number, draws in enumerate(texts):
        if not as_json:
            sys.stdout.write(("\n---\n" if number else "") + for_terminal(before))
        parts = []
        for draw in draws:
            if kept is not None:
                parts.append(draw.text)
            if as_json:
                print(json.dumps({"sample": number} | draw._asdict()))
            else:
                sys.stdout.write(for_terminal(draw.text))
                sys.stdout.flush()
        if kept is not None:
            kept.append("".join(parts))
        if not as_json:
            sys.stdout.write(for_terminal(behind))
    if not as_json:
        sys.stdout.write("\n")
