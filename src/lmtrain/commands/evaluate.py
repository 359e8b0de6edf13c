"""`python -m lmtrain evaluate RUN [FILE]` computes the exact perplexity of a text, with the counts behind it.

Without a FILE the text is the test split that was saved with the model, so the corpus is not needed.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

from lmtrain.commands.contamination import look_for, name_parts
from lmtrain.commands.evaluate_examples import evaluate_examples
from lmtrain.commands.options import (
    JSON_NULLS,
    Parser,
    add_method_options,
    add_model_options,
    add_speed_options,
    choose_method,
    computing,
    is_read_once,
    open_model,
    parse,
    whole,
)
from lmtrain.errors import SettingsError, as_typed
from lmtrain.progress import watched
from lmtrain.shell import printable, quoted_for_shell

if TYPE_CHECKING:
    import argparse

    from lmtrain.data.encoded import EncodedText


@as_typed(num_streams="--streams ", split="--split ", text="--text ")
def main(arguments: list[str]) -> None:
    """Prints the evaluation."""
    parser = Parser("evaluate", __doc__, JSON_NULLS)
    add_model_options(parser)
    parser.add_argument("file", metavar="FILE", nargs="?", help="a text of your own instead")
    source = parser.add_mutually_exclusive_group()
    source.add_argument(
        "--split", choices=("test", "valid", "train"),
        help="saved with the model, but for train, which is read from where it was (default: test)",
    )  # fmt: skip
    source.add_argument("--text", metavar="FILE", help="the same")
    parser.add_argument("--streams", type=whole(1), default=1, help="more are faster and slightly pessimistic (default: 1)")
    parser.add_argument("--json", action="store_true", help="the evaluation as JSON; null stands for infinity, see below")
    add_speed_options(parser)
    add_method_options(parser)
    options = parse(parser, arguments)
    _choose_text(options)

    from lmtrain.data.corpus import encode_file
    from lmtrain.inference.evaluate import check_numbers, evaluate
    from lmtrain.saved import load_lines, saved_text
    from lmtrain.tasks.opening import task_at, text_field, training_corpus

    if task_at(options.run, options.checkpoint) != "language":
        evaluate_examples(options)
        return
    if options.text is not None:
        _refuse_pipe(options.run, options.text)
    trained = open_model(options)
    tokenizer = trained.tokenizer
    saved = load_lines(trained)
    text: EncodedText
    if options.text is not None or options.split == "train":
        if options.text is not None:
            text = split = encode_file(options.text, tokenizer, text_field(trained.path))
        else:
            text = split = training_corpus(trained.path).train
    else:
        text = saved_text(trained, options.split)
    with computing(options), watched("Evaluating", len(text.ids), "tok") as advance:
        method = choose_method(options, trained)
        result = evaluate(
            trained.model, text, tokenizer, num_streams=options.streams, method=method, device=options.device,
            progress=advance,
        )  # fmt: skip
    check_numbers(result.total_nats, method)
    if options.split == "train" and options.text is None:
        document = {"checkpoint": str(trained.path), "text": "train"} | result.to_json()
        print(json.dumps(document) if options.json else f"{printable(f'train of {trained.path}')}:\n{result.format()}")
        return
    name = options.text or f"the {options.split} text"
    others = [hashes for other, hashes in saved.held_out.items() if options.text or other != options.split]
    lines = split.lines if options.text else saved.held_out.get(options.split)
    finding = look_for(name, lines, name_parts(options.run, saved.train), others)
    if options.json:  # which says it in numbers
        shares = [overlap and overlap.share for _, overlap in finding.overlaps]
        document = {"checkpoint": str(trained.path), "text": options.text or options.split}
        print(json.dumps(document | result.to_json() | {"lines_in_training": shares}))
        return
    print(
        f"{printable(f'{options.text or options.split} of {trained.path}')}:\n{result.format()}\n{printable(finding.format())}"
    )
    finding.warn("the numbers are better than those of unseen text", "Give a FILE that it was not trained on.")


def _choose_text(options: argparse.Namespace) -> None:
    """Sets `text` to the FILE, however it was given, and `split`. Raises SettingsError where two texts were given."""
    other = f"--text {options.text}" if options.text is not None else options.split and f"--split {options.split}"
    if options.file is not None:
        if other:
            raise SettingsError(
                f"{options.file} was given together with {other}.", "Either says which text.", "Leave one of them out."
            )
        options.text = options.file
    options.split = options.split or "test"


def _refuse_pipe(run: str, text: str) -> None:
    if is_read_once(text):
        raise SettingsError(
            f"{'Standard input' if text == '-' else text} can be read once.",
            "A text is read more than once here: it is also looked for in the training text.",
            f"Type  python -m lmtrain score {quoted_for_shell(run)} {text}  for its perplexity.",
        )  # fmt: skip
