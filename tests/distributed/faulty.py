"""`python -m lmtrain`, but that something happens to one of the processes at a moment of a run.

    python faulty.py RANK:MOMENT:WHAT key=value ...

MOMENT  open (the run directory), tokenise, step (the fourth), evaluate, sample, save
WHAT    memory, disk, bug, nan (in a step: its loss is not a number), a signal's name, or "nothing": it waits there for long

A file `reached` appears in the working directory of the process that has come so far.
"""

import os
import resource
import signal
import sys
import time
from pathlib import Path
from typing import Any

import torch

import lmtrain.commands.saver
import lmtrain.commands.train
import lmtrain.tasks.language
import lmtrain.training.learner
from lmtrain.__main__ import main

PLACES: dict[str, tuple[Any, str]] = {
    "open": (lmtrain.commands.train, "opened"),
    "tokenise": (lmtrain.commands.train, "open_task"),
    "step": (lmtrain.training.learner.GradientLearner, "_backward"),
    "evaluate": (lmtrain.tasks.language, "evaluate"),
    "sample": (lmtrain.tasks.language, "sample_text"),
    "save": (lmtrain.commands.saver, "save_checkpoint"),
}


def happen(what: str) -> None:
    if what == "memory":
        torch.empty(1 << 50)
    elif what == "disk":
        resource.setrlimit(resource.RLIMIT_FSIZE, (64, 64))
    elif what == "bug":
        raise ValueError("a bug of ours")
    elif what == "nothing":
        time.sleep(100)
    else:
        os.kill(os.getpid(), getattr(signal, what))


def prepare(fault: str) -> None:
    rank, moment, what = fault.split(":")
    if os.environ["RANK"] != rank:
        return
    place, name = PLACES[moment]
    whole, calls = getattr(place, name), 0

    def until(*arguments: Any, **more: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == (4 if moment == "step" else 1):
            Path("reached").touch()
            if what == "nan":
                learner, loss, *rest = arguments
                return whole(learner, loss * float("nan"), *rest, **more)
            happen(what)
        return whole(*arguments, **more)

    setattr(place, name, until)


if __name__ == "__main__":
    prepare(sys.argv[1])
    main(sys.argv[2:])
