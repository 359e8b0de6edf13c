"""Trains and uses small language models, n-gram to LSTM, whose recurrences are written by hand.

    import lmtrain

    run = lmtrain.train("model=gru", "data=text", "data.path=my.txt", "trainer.max_seconds=60")
    lm = lmtrain.load("outputs/RUN")                    # or run.model
    lm.score(["Is this likely?", "Is this?"])
    lm.perplexity("file.txt").perplexity
    lm.sample("Return the", max_tokens=50)
    lm.next("Return the", top=5)
    lm.vectors.neighbours("return")                     # or lmtrain.load_vectors(RUN or FILE)
    lmtrain.nn.LSTM(200, 650)                           # in place of torch.nn.LSTM
    lmtrain.explain.explain("x * y + x", x=2, y=3)      # gradients one can see: .value, .gradients, .text(), .svg()

Importing it is quick: PyTorch is imported when something is first used.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lmtrain import explain as explain
    from lmtrain import nn as nn
    from lmtrain.errors import CheckpointError as CheckpointError
    from lmtrain.errors import DataError as DataError
    from lmtrain.errors import DivergedError as DivergedError
    from lmtrain.errors import ResourceError as ResourceError
    from lmtrain.errors import SettingsError as SettingsError
    from lmtrain.errors import UserError as UserError
    from lmtrain.run import Run as Run
    from lmtrain.run import train as train
    from lmtrain.tasks.classify_saved import Classified as Classified
    from lmtrain.tasks.classify_saved import Classifier as Classifier
    from lmtrain.tasks.opening import load_vectors as load_vectors
    from lmtrain.tasks.tag_saved import TaggedSentence as TaggedSentence
    from lmtrain.tasks.tag_saved import Tagger as Tagger
    from lmtrain.tasks.vectors_saved import TrainedVectors as TrainedVectors
    from lmtrain.trained import Model as Model
    from lmtrain.trained import TextScore as TextScore
    from lmtrain.trained import load as load
    from lmtrain.trained import mix as mix
    from lmtrain.vectors.table import Vectors as Vectors

__version__ = "0.1.0"

_HOMES = {
    **dict.fromkeys(("Model", "TextScore", "load", "mix"), "lmtrain.trained"),
    "Vectors": "lmtrain.vectors.table",
    "load_vectors": "lmtrain.tasks.opening",
    **dict.fromkeys(("Run", "train"), "lmtrain.run"),
    **dict.fromkeys(("Classified", "Classifier"), "lmtrain.tasks.classify_saved"),
    **dict.fromkeys(("TaggedSentence", "Tagger"), "lmtrain.tasks.tag_saved"),
    "TrainedVectors": "lmtrain.tasks.vectors_saved",
    **dict.fromkeys(
        ("CheckpointError", "DataError", "DivergedError", "ResourceError", "SettingsError", "UserError"), "lmtrain.errors"
    ),
}  # where each public name is defined

__all__ = ["__version__", "explain", "nn", *_HOMES]


def __getattr__(name: str) -> Any:
    """Imports a public name when it is first asked for (PEP 562)."""
    if name in ("explain", "nn"):
        return import_module(f"lmtrain.{name}")
    if name in _HOMES:
        return getattr(import_module(_HOMES[name]), name)
    raise AttributeError(f"module 'lmtrain' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
