"""`python -m lmtrain` on machines that are not alike: all but the first draw other weights, and round their updates otherwise.

    python unlike.py key=value ...

What a process has learnt in the end it writes into `learnt-RANK.pt`.
"""

import os
import sys
from typing import Any

import torch

import lmtrain.tasks.language
from lmtrain.__main__ import main
from lmtrain.training.learner import GradientLearner

RANK = int(os.environ["RANK"])
build, update = lmtrain.tasks.language.build_model, GradientLearner._updated
learner: Any = None


def disturb(model: torch.nn.Module, share: float) -> None:
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(1 + share * RANK)


def other_build(*arguments: Any, **more: Any) -> Any:
    disturb(model := build(*arguments, **more), 9)
    return model


def other_update(own: GradientLearner, report: Any) -> Any:
    global learner
    learner, report = own, update(own, report)
    disturb(own.model, 1e-6)
    return report


if __name__ == "__main__":
    lmtrain.tasks.language.build_model, GradientLearner._updated = other_build, other_update  # type: ignore
    main(sys.argv[1:])
    learnt = learner.tensors()
    torch.save({f"{file}.{name}": tensor for file in learnt for name, tensor in learnt[file].items()}, f"learnt-{RANK}.pt")
