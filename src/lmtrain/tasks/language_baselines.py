"""The language models with which a neural one is compared in the end: how frequent tokens are, and Kneser-Ney n-grams.

A perplexity by itself does not tell whether it is good: it depends on the text and its tokens. These are counted on the same
training text with the same tokens, in seconds, and forget at each line.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

import lmtrain.config as config
from lmtrain.inference.evaluate import Evaluation
from lmtrain.models.base import LanguageModel, NeuralLanguageModel
from lmtrain.models.ngram import NgramModel
from lmtrain.models.smoothing import without_warnings
from lmtrain.progress import watched
from lmtrain.tasks.base import SplitName
from lmtrain.tasks.baselines import THIS, Comparison
from lmtrain.training.score import Score

if TYPE_CHECKING:
    from lmtrain.tasks.language import Language

log = logging.getLogger("lmtrain")

COUNTED: dict[str, dict[str, Any]] = {
    "frequencies of tokens": {"order": 1, "smoothing": "add_k", "add_k": 1.0},
    "Kneser-Ney, order 5": {"order": 5},
}
"""The settings of their n-gram models, by name."""
MAX_TOKENS = 5_000_000
"""The most tokens of training that are counted unasked; so many take a few seconds."""


def compare(task: Language, model: LanguageModel, final: Score | None) -> Comparison | None:
    """Compares `model` with them by the perplexity of the final test; `final` is that of `model`, if it is known."""
    settings, train = task.settings, task.corpus.train.ids
    if settings.trainer.baselines is False or not isinstance(model, NeuralLanguageModel):
        return None
    if settings.trainer.baselines is None and len(train) > MAX_TOKENS:
        return None
    wants_test = settings.trainer.final_split is config.FinalSplit.test and task.has("test")
    split: SplitName = "test" if wants_test else "valid"
    own = final if isinstance(final, Evaluation) else task.final_score(model, split)
    values = {THIS: own.perplexity}
    try:
        for name, counted in COUNTED.items():
            values[name] = task.final_score(_count(task, **counted), split).perplexity
    except MemoryError:
        if settings.trainer.baselines:
            raise
        log.warning("The simplest models are left out: there is no memory left to count them (trainer.baselines=false: never).")
        return None
    return Comparison("perplexity", {name: {split: value} for name, value in values.items()}, is_share=False)


def _count(task: Language, **settings: Any) -> NgramModel:
    """Returns the n-gram model of the training text. That a small text has odd counts is of interest to model=ngram alone."""
    tokenizer, ids = task.corpus.tokenizer, task.corpus.train.ids
    model = NgramModel(vocab_size=tokenizer.vocab_size, eos_id=tokenizer.eos_id, **settings)
    with watched("Counting n-grams to compare with", len(ids), "tok") as advance, without_warnings():
        model.count(ids)
        model.finish()
        advance(len(ids))
    return model
