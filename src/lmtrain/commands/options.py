"""The options and helpers of all commands that use a trained model: naming it, opening it, reading text."""

from __future__ import annotations

import argparse
import difflib
import inspect
import io
import logging
import math
import os
import re
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from io import BufferedIOBase
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn, cast

from lmtrain.errors import as_typed
from lmtrain.shell import quoted_for_shell
from lmtrain.targets import new_directory as new_directory
from lmtrain.targets import new_path as new_path

if TYPE_CHECKING:
    from lmtrain.inference.evaluate import Method
    from lmtrain.saved import Trained

OWNERS = {"dynamic": "sgd", "cache": "2000"}
"""Options that have options of their own, `--dynamic-rate` and so on; and what one types behind them."""


JSON_NULLS = (
    "In JSON, null stands for infinity: of a sum or a mean where num_impossible, the number of tokens that have probability "
    "zero, is above 0 (first_impossible is the first of them, and first_impossible_at its place in the text, counted from "
    "1), and of a perplexity that is too large for a number, from 710 nats per token on. The log_prob of a line or a token "
    "is null where its probability is zero. Null also stands for a mean over nothing, and for what a mixture over lines "
    "(score --with) does not tell."
)


MODELS = {"AFTER", "BEFORE", "RUN", "RUN_A", "RUN_B", "RUN|FILE"}
PATHS = MODELS | {"DIR", "DIRECTORY", "FILE", "PAIRS", "QUESTIONS", "RUN|TEXT", "SOURCE", "SPACE", "TARGET", "TEXT"}
"""How the help of commands calls a path, and one of a model."""


class Parser(argparse.ArgumentParser):
    """Parses the arguments of one command. It raises a SettingsError for wrong ones, a paragraph like any other.

    behind   the option for which an argument too many was probably meant: `sample RUN "Once upon"`
    """

    def __init__(self, command: str, description: str | None, epilog: str | None = None, *, behind: str | None = None) -> None:
        super().__init__(
            prog=f"python -m lmtrain {command}", description=description and inspect.cleandoc(description), epilog=epilog,
            allow_abbrev=False, formatter_class=_Formatter,
        )  # fmt: skip
        self._behind = behind
        self._typed: list[str] = []

    def parse_args(self, args: Any = None, namespace: Any = None) -> Any:
        """Returns the options. What may be left out may also be typed behind options: `compare A B --json FILE`."""
        self._typed = list(sys.argv[1:] if args is None else args)
        options, surplus = self.parse_known_args(args, namespace)
        if surplus and not any(map(_is_option, surplus)):
            options, surplus = self.parse_known_intermixed_args(args, namespace)
        if surplus:
            self._refuse(next(filter(_is_option, surplus), surplus[0]))
        self._check_paths(options)
        return options

    def _check_paths(self, options: argparse.Namespace) -> None:
        """Raises SettingsError for an empty path, which would be the current directory, and for what cannot have an effect."""
        from lmtrain.errors import SettingsError

        chosen, models, from_standard_input = getattr(options, "checkpoint", None), list[str](), list[str]()
        for action in self._actions:
            given = getattr(options, action.dest, None)
            for path in given if isinstance(given, list) else [given]:
                name = next(iter(action.option_strings), action.metavar)
                if action.metavar in PATHS and path == "" != action.const:
                    raise SettingsError(f"{name} is empty.", "It must be a path.", f"See  {self.prog} --help.")
                if action.metavar in PATHS and path == "-":
                    from_standard_input.append(str(name))
                if action.metavar in MODELS and path:
                    models.append(path)
        if len(from_standard_input) > 1:
            raise SettingsError(
                f"{' and '.join(from_standard_input)} are both -.", "Standard input can be read once.",
                "Write one of the texts to a file, and name that file.",
            )  # fmt: skip
        if chosen and models and all(_names_another(chosen, path) for path in models):
            raise SettingsError(
                f"--checkpoint {chosen} was given together with {' and '.join(models)}.",
                "Such a path says itself which checkpoint.", "Leave out --checkpoint, or give the directory of the run.",
            )  # fmt: skip
        if hasattr(options, "checkpoint") and chosen is None:
            options.checkpoint = "best"

    def _refuse(self, argument: str) -> NoReturn:
        from lmtrain.errors import SettingsError

        takes = " ".join(map(_shown, self._get_positional_actions())) or "nothing"
        typed, see = quoted_for_shell(argument), f"See  {self.prog} --help."
        if _is_option(argument):
            options = [name for name in self._option_string_actions if name.startswith("--")]
            raise SettingsError(
                f"{typed} cannot be used by  {self.prog}.",
                f"It takes {takes}; its options are {', '.join(options)}.",
                _as_file([argument]) or _did_you_mean(argument.partition("=")[0], options) or see,
            )
        remedy = f"Did you mean  {self._behind} {typed}?" if self._behind else "Leave it out."
        raise SettingsError(f"{typed} is one argument too many for  {self.prog}.", f"It takes {takes}.", f"{remedy} {see}")

    def error(self, message: str) -> NoReturn:
        from lmtrain.errors import SettingsError

        see = f"See  {self.prog} --help"
        found = re.search(r"invalid choice: '(.*)' \(choose from (.*)\)", message, re.DOTALL)
        remedy = found and _did_you_mean(found[1], re.findall(r"[\w-]+", found[2]))
        file = _as_file(self._typed) if "arguments are required" in message else None
        raise SettingsError(f"{message[0].upper()}{message[1:]}.", "", file or remedy or see)


def _as_file(arguments: Iterable[str]) -> str | None:
    """Says how the first of the arguments that is taken for an option, and is the name of a file, is typed."""
    name = next((argument for argument in arguments if argument.startswith("-") and os.path.isfile(argument)), None)
    return name and f"What begins with - is an option. For the file of this name, type {quoted_for_shell(f'./{name}')}"


def _names_another(chosen: str, path: str) -> bool:
    """Whether a path is that of a checkpoint of a run, itself or by `best` or `last`, and of another one than `chosen`."""
    from lmtrain.shell import expanded

    found = expanded(path).absolute()
    if found.parent.name != "checkpoints":
        return False
    if found.name in ("best", "last"):
        return found.is_file() and found.name != chosen
    try:
        return (found / "manifest.json").is_file() and (found.parent / chosen).read_text("utf-8").strip() != found.name
    except (OSError, ValueError):
        return True


class _Formatter(argparse.HelpFormatter):
    """Names values by the last word of their option: `--dynamic-rate RATE`. A paragraph with indented lines stays as it is."""

    def _fill_text(self, text: str, width: int, indent: str) -> str:
        fill = super()._fill_text
        paragraphs = text.strip("\n").split("\n\n")
        return "\n\n".join(each if "\n " in f"\n{each}" else fill(each, width, indent) for each in paragraphs)

    def _get_default_metavar_for_optional(self, action: argparse.Action) -> str:
        return action.dest.rpartition("_")[2].upper()


def _is_option(argument: str) -> bool:
    return argument.startswith("-") and argument != "-"


def _shown(action: argparse.Action) -> str:
    """Returns an argument nearly as the usage shows it: [FILE] for one that may be left out, RUN... for one or more."""
    name = f"{action.metavar or action.dest}"
    return f"[{name}]" if action.nargs in ("?", "*") else f"{name}..." if action.nargs == "+" else name


def _did_you_mean(word: str, allowed: list[str]) -> str | None:
    close = difflib.get_close_matches(word, allowed, n=1)
    return f"Did you mean {close[0]}?" if close else None


def add_model_options(parser: argparse.ArgumentParser) -> None:
    """Adds RUN, and the option for its checkpoint."""
    parser.add_argument("run", metavar="RUN", help="a run directory, a checkpoint directory or a mixture")
    parser.add_argument("--checkpoint", choices=("best", "last"), help="of a run directory (default: best)")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu", help="(default: cpu)")


def parse(parser: argparse.ArgumentParser, arguments: list[str]) -> argparse.Namespace:
    """Returns the options. Raises SettingsError for one that needs another, such as `--cache-theta` without `--cache`.

    From here on warnings are printed to standard error, and begin as errors do.
    """
    from lmtrain.errors import SettingsError, check_address_space

    options = parser.parse_args(arguments)
    check_address_space()  # before torch is imported
    logging.basicConfig(level=logging.WARNING, format="lmtrain: %(message)s", stream=sys.stderr)
    for owner, example in OWNERS.items():
        given = [name for name, value in vars(options).items() if name.startswith(f"{owner}_") and value is not None]
        if given and getattr(options, owner) is None:
            shown = ", ".join(f"--{name.replace('_', '-')}" for name in given)
            raise SettingsError(
                f"{shown} was given without --{owner}.",
                f"It says how --{owner} is done, and without it would do nothing.",
                f"Type --{owner} {example} as well, or leave it out.",
            )
    return options


def open_model(options: argparse.Namespace) -> Trained:
    """Returns the language model that the options name."""
    from lmtrain.saved import load_trained

    _check_device(options)
    return _announced(load_trained(options.run, prefer=options.checkpoint, device=options.device))


def open_any(options: argparse.Namespace) -> Any:
    """Returns the model of any task that the options name."""
    from lmtrain.tasks.opening import open_saved

    _check_device(options)
    return _announced(open_saved(options.run, prefer=options.checkpoint, device=options.device))


def _announced(saved: Any) -> Any:
    """Returns the same, and says so if the model is a backward one."""
    if getattr(getattr(saved, "tokenizer", None), "reverse", False):
        logging.getLogger("lmtrain").warning(
            "This is a backward model: it reads each line from its last token to its first, and predicts each token from those "
            "behind it."
        )
    return saved


def _check_device(options: argparse.Namespace) -> None:
    import torch

    from lmtrain.errors import SettingsError

    if options.device == "cuda" and not torch.cuda.is_available():
        raise SettingsError("--device cuda was given, but PyTorch finds no CUDA device.", "Allowed is cpu.", "Leave it out.")


def whole(least: int, most: int = 1 << 31) -> Callable[[str], int]:
    """Is the `type=` of an option that takes whole numbers from `least` to `most`."""

    def parse(text: str) -> int:
        if not text.isascii() or not text.isdigit() or len(text) > 20 or not least <= int(text) <= most:
            raise argparse.ArgumentTypeError(f"{text[:40]!r} is not a whole number from {least} to {most}")
        return int(text)

    return parse


def finite(text: str) -> float:
    """Is the `type=` of an option that takes any finite number."""
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise argparse.ArgumentTypeError(f"{text[:40]!r} is not a finite number")
    return value


def unescaped(text: str) -> str:
    r"""Is the `type=` of an option that takes text in which \n, \t and \\ stand for a line's end, a tab and a backslash."""
    meanings = {r"\n": "\n", r"\t": "\t", r"\\": "\\"}
    pieces = re.findall(r"\\.?|[^\\]+", text, re.DOTALL)
    for piece in pieces:
        if piece.startswith("\\") and piece not in meanings:
            raise argparse.ArgumentTypeError(rf"{piece!s} means nothing; allowed are \n, \t and \\ (for one backslash)")
    return "".join(meanings.get(piece, piece) for piece in pieces)


def add_speed_options(parser: argparse.ArgumentParser, *others: str) -> None:
    """Adds the precision and the number of threads, which `computing` applies."""
    parser.add_argument(
        "--precision", choices=("float32", "bfloat16", *others), default="float32", help="of products (default: %(default)s)"
    )
    parser.add_argument("--threads", type=whole(1, 1024), help="of PyTorch and the native kernels (default: as many as cores)")


@contextmanager
def computing(options: argparse.Namespace) -> Iterator[None]:
    """Makes the model compute as the options say."""
    import torch

    from lmtrain.ops.transforms import Products

    if options.threads is not None:
        torch.set_num_threads(options.threads)
    with Products(options.device, torch.bfloat16, enabled=options.precision == "bfloat16"):
        yield


def field_of(options: argparse.Namespace, file: str | None) -> str:
    """Returns the field of the records in `file` that is their text: the one on which the model was trained."""
    from lmtrain.data.text import IS_JSONL
    from lmtrain.tasks.opening import text_field
    from lmtrain.training.checkpoint import read_named

    return read_named(options.run, options.checkpoint, text_field) if file and IS_JSONL.search(file) else "text"


def read_text(path: str, *, at_once: bool = False, field: str = "text") -> Iterator[str]:
    """Yields a text in blocks; "-" is standard input. Of a .jsonl it reads what its records have as `field`.

    A file is read to its end first, so that it is refused before anything is done with it. A pipe that has a name, such as
    /dev/stdin or what a shell makes of <(command), is read once, as standard input is. With `at_once`, a block of a pipe is
    whatever has arrived. Raises DataError for what is not UTF-8 text.
    """
    from lmtrain.data.files import STANDARD_INPUT
    from lmtrain.data.text import iter_decoded, iter_text, scan, warned
    from lmtrain.errors import DataError
    from lmtrain.shell import expanded

    if path == "-":
        if sys.stdin is None:
            raise DataError(
                "Standard input is closed.", '"-" means the text that is piped into this command.', "Pipe one, or give a file."
            )
        return iter_decoded(cast(BufferedIOBase, sys.stdin.buffer), STANDARD_INPUT, at_once=at_once)
    if is_read_once(path):
        return _iter_pipe(expanded(path), at_once)
    return iter_text(warned(scan(expanded(path), field)).path, field)


def is_read_once(path: str) -> bool:
    """Tells whether a text is standard input ("-") or another pipe."""
    from lmtrain.data.files import is_pipe
    from lmtrain.shell import expanded

    return path == "-" or is_pipe(expanded(path))


def _iter_pipe(path: Path, at_once: bool) -> Iterator[str]:
    from lmtrain.data.files import unreadable
    from lmtrain.data.text import iter_decoded

    try:
        with path.open("rb") as file:
            yield from iter_decoded(file, path, at_once=at_once)
    except OSError as error:
        raise unreadable(path, error) from None


def iter_lines(path: str) -> Iterator[str]:
    """Yields the lines of a text without their ends; those of standard input ("-") as soon as they come."""
    from lmtrain.data.files import STANDARD_INPUT
    from lmtrain.data.text import iter_decoded

    if path == "-" and sys.stdin is not None:
        blocks: Iterator[str] = (text for line in sys.stdin.buffer for text in iter_decoded(io.BytesIO(line), STANDARD_INPUT))
    else:
        blocks = read_text(path)
    held = ""
    for block in blocks:
        *whole, held = (held + block).split("\n")
        yield from whole
    if held:
        yield held


def add_method_options(parser: argparse.ArgumentParser) -> None:
    """Adds the options for the method: fixed weights, or adaptation while reading."""
    group = parser.add_argument_group("adapting while reading (reported by name, never as the static number)")
    group.add_argument("--temperature", type=float, default=1.0, help="divides the log-probabilities (default: 1)")
    group.add_argument(
        "--dynamic",
        choices=("sgd", "rms"),
        help="dynamic evaluation (Krause et al. 2018); rms: of a single network, not of a mixture of several",
    )
    group.add_argument("--dynamic-rate", type=float, help="its learning rate (default: sgd 0.1, rms 0.0001)")
    group.add_argument("--dynamic-decay", type=float, help="its pull to the trained weights (default: 0.002)")
    group.add_argument("--dynamic-segment", type=whole(1), help="tokens between two of its updates (default: 20)")
    group.add_argument(
        "--cache", type=whole(1), metavar="WINDOW", help="continuous cache (Grave et al. 2017) of so many tokens"
    )
    group.add_argument("--cache-theta", type=float, help="its sharpness (default: 0.66)")
    group.add_argument("--cache-weight", type=float, help="its weight (default: 0.13)")


@as_typed(
    temperature="--temperature ", window="--cache ", theta="--cache-theta ", weight="--cache-weight ", rate="--dynamic-rate ",
    decay="--dynamic-decay ", segment_length="--dynamic-segment ",
)  # fmt: skip
def choose_method(options: argparse.Namespace, trained: Trained) -> Method:
    """Returns the method that the options name. `rms` takes its statistics from the start of the training text."""
    from lmtrain.errors import SettingsError
    from lmtrain.inference.dynamic import Adaptive, Cache, Dynamic, gradient_rms, neural_models
    from lmtrain.inference.evaluate import Static

    if not options.dynamic and options.cache is None:
        return Static(options.temperature)
    cache = dynamic = None
    if options.cache is not None:
        cache = Cache(window=options.cache, **_given(theta=options.cache_theta, weight=options.cache_weight))
    if options.dynamic:
        rms = None
        if options.dynamic == "rms":
            adapting = neural_models(trained.model)
            if len(adapting) != 1:
                raise SettingsError(
                    f"--dynamic rms was given {len(adapting)} neural models.",
                    "It needs the gradient statistics of exactly one.", "Type --dynamic sgd.",
                )  # fmt: skip
            ids = trained.texts["train_start"].ids
            rms = gradient_rms(adapting[0], ids, eos_id=trained.tokenizer.eos_id, device=options.device)
        usual = {"rate": {"sgd": 0.1, "rms": 1e-4}[options.dynamic], "decay": 0.002}
        chosen = _given(rate=options.dynamic_rate, decay=options.dynamic_decay, segment_length=options.dynamic_segment)
        dynamic = Dynamic(**usual | chosen, rms=rms)
    return Adaptive(dynamic=dynamic, cache=cache, temperature=options.temperature)


def _given(**values: Any) -> dict[str, Any]:
    """Returns those that were typed; the others keep their defaults."""
    return {name: value for name, value in values.items() if value is not None}
