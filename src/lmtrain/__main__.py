"""`python -m lmtrain` and the console script `lmtrain`: tells commands from settings, and errors from bugs.

The first argument tells: a Hydra override never is a bare word, a command always is. Nothing heavy is imported here.
"""

from __future__ import annotations

import difflib
import os
import sys
from importlib import import_module

from lmtrain import __version__
from lmtrain.errors import ResourceError, UserError, current_directory, is_out_of_memory
from lmtrain.terminal import PARENT, end_in_order, end_process, end_with, prepare_streams

COMMANDS = {
    "sample": "write text",
    "score": "log-probability of every line of a text",
    "rescore": "best of n-best lists that were scored",
    "evaluate": "exact perplexity with its counts; the score of a tagger or classifier",
    "compare": "where one model beats another, and how sure that is",
    "predict": "tags sentences, or labels texts",
    "mix": "interpolate models, weights fitted on validation",
    "arpa": "n-gram models to and from ARPA files",
    "export": "files that need nothing of lmtrain: a script for PyTorch alone, safetensors, ONNX",
    "runs": "the table of runs: best first, means over seeds",
    "report": "runs side by side on one HTML page",
    "search": "looks for the best settings, with Optuna",
    "inspect": "what data look like before anything is learnt from them",
    "explain": "gradients one can see: an expression, a cell or a lecture's example, gate by gate",
    "vectors": "word vectors: measure, look at, write, train",
    "verify": "check every hand-written gradient on this machine",
    "completion": "what the TAB key offers in bash",
    "settings": "every setting with its meaning",
    "help": "this overview",
}


def main(arguments: list[str] | None = None) -> None:
    """Runs one command; a user's mistake is one paragraph and an exit code, without a traceback."""
    arguments = sys.argv[1:] if arguments is None else arguments
    prepare_streams()
    os.environ.pop("OMP_DYNAMIC", None)  # with fewer threads than they asked for PyTorch's products of bfloat16 are wrong
    try:
        try:
            with end_in_order():
                if parent := os.environ.pop(PARENT, ""):
                    end_with(int(parent))
                _dispatch(arguments)
        except SystemExit as ended:
            if ended.code:
                raise
        print(end="", flush=True)  # here, where it can be said that it cannot be written
    except UserError as error:
        end_process(error)
    except BrokenPipeError:
        pass  # the reader went away (`| head`)
    except Exception as error:
        if not is_out_of_memory(error):
            raise
        end_process(
            ResourceError(
                f"There is not enough memory: {str(error).partition(chr(10))[0] or 'Python could get no more'}.",
                "",
                "Close other programs, or give less at a time: fewer --streams, a smaller --cache, a smaller model.",
            )
        )
    except KeyboardInterrupt:
        print("lmtrain: interrupted.", file=sys.stderr)
        raise SystemExit(130) from None
    finally:
        try:
            print(end="", flush=True)
        except (OSError, UserError):  # what is still buffered has nowhere to go
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _dispatch(arguments: list[str]) -> None:
    first = arguments[0] if arguments else ""
    if not first.isidentifier() and {"--help", "-h"} & set(arguments):
        first = "help"
    if first == "--version":
        print(f"lmtrain {__version__}")
        return
    if first != "help":
        current_directory()  # paths start there, and libraries that are loaded ask for it
    if arguments[:1] == ["help"] and len(arguments) > 1 and arguments[1] != "help":
        _dispatch([arguments[1], "--help"])
    elif first.isidentifier():
        if first not in COMMANDS:
            raise UserError(
                f"{first!r} is neither a command nor a setting.",
                f"Commands are {', '.join(COMMANDS)}; settings are written key=value.",
                _remedy(first),
            )
        if _is_led():
            return
        if first == "inspect":  # it takes settings, as training does
            _inspect(arguments[1:])
        else:
            import_module(f"lmtrain.commands.{first}").main(arguments[1:])
    else:
        from lmtrain.application import run

        run(arguments)


def _is_led() -> bool:
    """Whether torchrun started this process beside a first one, which alone does what a command is for."""
    return os.environ.get("WORLD_SIZE", "1") not in ("", "1") and os.environ.get("RANK", "0") not in ("", "0")


def _inspect(arguments: list[str]) -> None:
    from lmtrain.commands.inspect import read_options, show

    options = read_options(arguments)  # --help needs no Hydra
    from lmtrain.application import read_settings

    show(read_settings(options.overrides), options)


def _remedy(word: str) -> str:
    if word == "train":
        return "Training needs no command:  python -m lmtrain key=value ..."
    close = difflib.get_close_matches(word, COMMANDS, n=1)
    return f"Did you mean  python -m lmtrain {close[0]}?" if close else "See  python -m lmtrain --help."


if __name__ == "__main__":
    main()
