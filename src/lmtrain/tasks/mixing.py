"""Several saved language models as one: the weights of their mixture, fitted on the validation text of one of them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from lmtrain.data.encoded import EncodedText
from lmtrain.data.tokenizer import Tokenizer
from lmtrain.errors import DataError, SettingsError
from lmtrain.inference.evaluate import STATIC, check_numbers, iter_target_log_probs, usable_streams
from lmtrain.models.mixture import fit_weights
from lmtrain.progress import watched
from lmtrain.saved import Trained, check_mixture
from lmtrain.shell import one_line


@dataclass(frozen=True)
class Fitted:
    """Weights of M models, and what each said of the N tokens on which they were fitted."""

    weights: list[float]
    log_probs_MN: NDArray[np.float64]
    num_streams: int
    text: EncodedText
    tokenizer: Tokenizer

    def nats(self) -> float:
        """Returns what a token costs under the mixture."""
        with np.errstate(divide="ignore"):
            mixed_N = np.logaddexp.reduce(self.log_probs_MN + np.log(self.weights)[:, None])
        return -float(mixed_N.mean())

    def name_token(self, place: int) -> str:
        """Returns the token number `place` (from 0), as errors and notes name it."""
        return f"{self.tokenizer.token_text(int(self.text.ids[place]))!r}, token {place + 1:,} of the validation text,"


def fit_mixture(
    parts: Sequence[Trained],
    names: Sequence[str],
    *,
    num_streams: int = 16,
    on_part: Callable[[int, int], object] = lambda number, num_tokens: None,
    device: str = "cpu",
) -> Fitted:
    """Returns the weights under which the validation text, in `num_streams` streams, is likeliest.

    names    how a person would name each model
    on_part  is told the number of a model (from 0) before it scores so many tokens

    Raises SettingsError for models that cannot be mixed, DataError where none was saved with a validation text.
    """
    _check(parts, names)
    text = next((part.texts["valid"] for part in parts if "valid" in part.texts), None)
    if text is None:
        raise DataError(
            "None of these models was saved with a validation text.",
            "The weights of a mixture are fitted on one.",
            "Name a model that was trained here as well, or import the ARPA file again with --like RUN.",
        )
    tokenizer, num_streams = parts[0].tokenizer, usable_streams(len(text.ids), num_streams)
    log_probs_MN = np.empty((len(parts), len(text.ids)))
    for number, (part, log_probs_N) in enumerate(zip(parts, log_probs_MN, strict=True)):
        on_part(number, len(text.ids))
        scores = iter_target_log_probs(part.model, text.ids, eos_id=tokenizer.eos_id, num_streams=num_streams, device=device)
        with watched(f"Scoring with {one_line(names[number])}", len(text.ids), "tok") as advance:
            for scored in scores:
                check_numbers(scored.log_probs, STATIC)
                log_probs_N[scored.positions] = scored.log_probs
                advance(scored.positions.size)
    unweighted = Fitted([], log_probs_MN, num_streams, text, tokenizer)
    weights = fit_weights(torch.from_numpy(log_probs_MN), unweighted.name_token)
    return Fitted(weights, log_probs_MN, num_streams, text, tokenizer)


def _check(parts: Sequence[Trained], names: Sequence[str]) -> None:
    if len(parts) < 2:
        given = "One model was" if parts else "No models were"
        raise SettingsError(f"{given} given.", "A mixture needs at least two.", "Give another one.")
    first = parts[0]
    for name, part in zip(names, parts, strict=True):
        if part.tokenizer.reverse != first.tokenizer.reverse:
            raise SettingsError(
                f"{name} and {names[0]} read lines in opposite directions.",
                "Models are mixed token by token, and these predict a token from different sides of it.",
                "Combine them line by line:  python -m lmtrain score RUN FILE --independent --with RUN --other-weight fit",
            )
        if part.tokenizer.to_json() != first.tokenizer.to_json():
            raise SettingsError(
                f"{name} has another vocabulary ({part.tokenizer.vocab_size} tokens) than {names[0]} "
                f"({first.tokenizer.vocab_size}).",
                "Models are mixed token by token, so they must share one tokenizer.",
                "Train them on the same text with the same tokenizer; tokenizer.vocabulary=RUN takes the words of another run.",
            )
    check_mixture(parts)
