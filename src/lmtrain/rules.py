"""What goes with what, said once: for settings, which report every mistake, and for arguments, which report the first.

A rule yields a SettingsError for each mistake that it finds, in the names of Python's arguments. A constructor raises the
first of them (`errors.refuse`); `settings.conflicts` says them all, with the names of settings in the place of arguments.
Nothing heavy is imported here. The rules of tokenizers are in `data.kinds`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from itertools import pairwise
from math import inf

from lmtrain.choices import OptimizerName, Smoothing, names
from lmtrain.errors import SettingsError

# ---- optimisers


@dataclass(frozen=True, kw_only=True)
class OptimizerOptions:
    """What some optimisers read and others do not, at its defaults."""

    momentum: float = 0.0
    nesterov: bool = False
    beta1: float = 0.9
    beta2: float = 0.999
    alpha: float = 0.99
    epsilon: float = 1e-8


OPTIONS = {
    "sgd": ("momentum", "nesterov"),
    "adagrad": ("epsilon",),
    "rmsprop": ("momentum", "alpha", "epsilon"),
    "adam": ("beta1", "beta2", "epsilon"),
    "adamw": ("beta1", "beta2", "epsilon"),
    "sparse_adam": ("beta1", "beta2", "epsilon"),
}
"""Which options each optimiser reads; another one that is not at its default is refused."""

LARGEST_RATE = {"rmsprop": 1.0, "adam": 1.0, "adamw": 1.0, "sparse_adam": 1.0, "adagrad": 10.0}
"""Optimisers that divide each gradient by its own size move every weight by about the rate, so larger ones are refused."""


def of_optimizer(
    name: str, learning_rate: float, options: OptimizerOptions, *, weight_decay: float = 0.0, l1: float = 0.0,
    tie_weights: bool = False,
) -> Iterator[SettingsError]:  # fmt: skip
    """Whether an optimiser exists, reads the options that it is given, and can do with the rate and the penalties."""
    if name not in OPTIONS:
        yield SettingsError(
            f"name={name} does not exist.", f"Allowed are {', '.join(names(OptimizerName))}.", "Type name=adam."
        )
        return
    if learning_rate > (largest := LARGEST_RATE.get(name, inf)):
        yield SettingsError(
            f"learning_rate={learning_rate:g} is too large for {name}.",
            f"It divides each gradient by its own size, so a step moves every weight by about the rate; allowed is at most "
            f"{largest:g}, and only sgd takes such rates.",
            f"Type learning_rate={0.1 if name == 'adagrad' else 0.003:g}.",
        )
    for option, value in asdict(options).items():
        if option not in OPTIONS[name] and value != getattr(OptimizerOptions, option):
            readers = [other for other, read in OPTIONS.items() if option in read]
            yield SettingsError(
                f"{option}={value} would be ignored by {name}.",
                f"It is read by {', '.join(readers)}; {name} reads {', '.join(OPTIONS[name])}.",
                f"Leave it out, or type name={readers[0]}.",
            )
    if options.nesterov and not options.momentum and name == "sgd":
        yield SettingsError(
            "nesterov=True was given without momentum.",
            "Nesterov's method looks ahead along the momentum, which must be above 0.",
            "Type momentum=0.9.",
        )
    everywhere = {"weight_decay": weight_decay, "l1": l1, "tie_weights": tie_weights}
    if name == "sparse_adam" and any(everywhere.values()):
        yield SettingsError(
            f"name=sparse_adam was given with {', '.join(f'{key}={value}' for key, value in everywhere.items() if value)}.",
            "That changes every row of the embedding at every step; sparse_adam touches only the rows of the chunk.",
            "Leave it out, or type name=adam.",
        )


# ---- models

MAX_ORDER = 10  # of an n-gram model
MAX_TABLE_SIZE = 1 << 24  # of hashed n-grams: a bucket must be exact as a float32


def of_counts(order: int, smoothing: str, add_k: float, prune: Sequence[int]) -> Iterator[SettingsError]:
    """Whether an n-gram model can be estimated so."""
    if not 1 <= order <= MAX_ORDER:
        yield SettingsError(f"order={order} was given.", f"Allowed is 1 to {MAX_ORDER}.", "Type order=5, the usual order.")
    if smoothing not in names(Smoothing):
        allowed = ", ".join(names(Smoothing))
        yield SettingsError(f"smoothing={smoothing} was given.", f"Allowed are {allowed}.", "Type smoothing=kneser_ney.")
    if not 0 < add_k < inf:
        yield SettingsError(f"add_k={add_k} was given.", "Allowed is a finite number above 0.", "Type add_k=0.1.")
    if prune and smoothing != Smoothing.kneser_ney.name:
        yield SettingsError(
            f"{_listed(prune)} was given with smoothing={smoothing}.", "Pruning needs smoothing=kneser_ney.",
            "Type prune=[], or smoothing=kneser_ney.",
        )  # fmt: skip
    yield from of_pruning(prune, order)


def of_pruning(prune: Sequence[int], order: int) -> Iterator[SettingsError]:
    """Whether contexts of the n-grams that stay would stay, too."""
    given = f"{_listed(prune)} was given{f' with order={order}' * (len(prune) > order)}."
    for fits, allowed in (
        (all(number >= 0 for number in prune), "Allowed are numbers of at least 0."),
        (not prune or prune[0] == 0, "The first number is 0, since no word is left out."),
        (all(low <= high for low, high in pairwise(prune)), "Allowed are numbers that do not fall from order to order."),
        (len(prune) <= order, "Allowed is at most one number for each order."),
    ):
        if not fits:
            yield SettingsError(given, allowed, "Type for example prune=[0,0,1], or prune=[] to leave nothing out.")


def _listed(prune: Sequence[int]) -> str:
    return f"prune=[{','.join(map(str, prune))}]"


def of_hashed_ngrams(order: int, *, has_full_softmax: bool = True, is_penalised: bool = False) -> Iterator[SettingsError]:
    """Whether hashed n-grams up to `order` can stand beside a model, by its output layer and its penalties on activations."""
    if order < 2:
        yield SettingsError(
            f"order={order} was given for hashed n-grams.", "Allowed is at least 2; 1 would be the output bias again.",
            "Type for example order=3, or leave it out.",
        )  # fmt: skip
    if not has_full_softmax:
        yield SettingsError(
            f"order={order} was given for hashed n-grams.", "They need a full softmax.", "Type head=full, or leave them out."
        )
    if is_penalised:
        yield SettingsError(
            f"order={order} was given for hashed n-grams.",
            "They go without penalties on activations.",
            "Type activation_penalty=0 and temporal_penalty=0.",
        )
