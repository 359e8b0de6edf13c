"""How much memory a run needs at the very least, before any of it is taken; and what to say when there is not enough.

    weights      parameters x 4 bytes x (weights + gradient + what the optimiser and an average keep of each)
    activations  batch_size x chunk_length x what the layers keep of a token for the backward pass

Parameters are counted on a model without storage (PyTorch's device `meta`), so the count is exact whatever the model. All
else is a lower bound: a run is refused only where it could not fit into an empty machine.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple, cast

import torch
from torch import nn

import lmtrain.config as config
from lmtrain.build import build_model
from lmtrain.data.kinds import KINDS
from lmtrain.errors import ResourceError
from lmtrain.machine import memory_bytes
from lmtrain.models.recurrent import CELLS
from lmtrain.settings import quoting

FLOAT_BYTES = 4
MOMENTS = {
    config.OptimizerName.sgd: 0, config.OptimizerName.adagrad: 1, config.OptimizerName.rmsprop: 1,
    config.OptimizerName.adam: 2, config.OptimizerName.adamw: 2, config.OptimizerName.sparse_adam: 2,
}  # fmt: skip
"""Numbers that each optimiser keeps of a parameter; one more with momentum (sgd, rmsprop)."""


@dataclass(frozen=True)
class Need:
    """The least that a run needs."""

    num_parameters: int
    weight_bytes: int  # weights, gradients, moments, averages
    chunk_bytes: int  # activations of one step

    @property
    def total_bytes(self) -> int:
        return self.weight_bytes + self.chunk_bytes


def estimate(settings: config.Config, vocab_size: int) -> Need | None:
    """What the run of `settings` needs at least; None for n-grams, whose tables grow with the text."""
    model, optimizer = settings.model, settings.optimizer
    if not isinstance(model, config.NeuralConfig):
        return None
    num_parameters = count_parameters(lambda: cast(nn.Module, build_model(model, vocab_size=vocab_size, eos_id=0)))
    return Need(num_parameters, _weight_bytes(num_parameters, optimizer), _chunk_bytes(model, settings.trainer))


def _weight_bytes(num_parameters: int, optimizer: config.OptimizerConfig) -> int:
    """What weights take with their gradients, and with what an optimiser and an average keep of each."""
    copies = 2 + MOMENTS[optimizer.name] + (optimizer.momentum > 0) + (optimizer.averaging is not config.Averaging.none)
    if optimizer.name is config.OptimizerName.sparse_adam:
        copies -= 1  # its gradients have only the rows of the chunk
    return FLOAT_BYTES * copies * num_parameters


def check_memory(settings: config.Config, vocab_size: int, device: torch.device) -> Need | None:
    """What the run needs at least. Raises ResourceError, with settings that would fit, where the machine has less."""
    need = estimate(settings, vocab_size)
    if need is None or need.total_bytes <= device_bytes(device):
        return need
    remedies = [text for knob in _knobs(settings) if (text := _first_that_fits(knob, settings, vocab_size, device))]
    raise ResourceError(
        f"{_asked_for(settings, vocab_size)}: these {need.num_parameters:,} parameters need at least "
        f"{gigabytes(need.total_bytes)} ({gigabytes(need.weight_bytes)} for weights, gradients and the optimiser, "
        f"{gigabytes(need.chunk_bytes)} for a chunk).",
        f"{device} has {gigabytes(device_bytes(device))}.",
        f"Each of these would fit: {'; '.join(remedies)}." if remedies else "Make several of these sizes much smaller.",
    )


def check_weights(settings: config.Config, num_parameters: int, device: torch.device) -> None:
    """Raises ResourceError where so many weights, with what is kept of each in training, do not fit into the machine.

    For models whose batches take little beside their tables of words.
    """
    needed, available = _weight_bytes(num_parameters, settings.optimizer), device_bytes(device)
    if needed <= available:
        return
    large = [f"model.{name}" for name in ("embed_size", "hidden_sizes", "hidden_size") if getattr(settings.model, name, None)]
    large += ["model.ngrams"] * (getattr(settings.model, "ngrams", 1) > 1)
    raise ResourceError(
        f"The {num_parameters:,} parameters of this {config.model_name(settings.model)} model need at least "
        f"{gigabytes(needed)} for weights, gradients and the optimiser.",
        f"{device} has {gigabytes(available)}.",
        (f"Type a smaller {' or '.join(large)}, or let" if large else "Let") + " in fewer words: tokenizer.vocab_size=50000.",
    )  # fmt: skip


def count_parameters(build: Callable[[], nn.Module]) -> int:
    """How many parameters a network has, without any storage for it."""
    with torch.device("meta"):
        return sum(parameter.numel() for parameter in build().parameters())


def out_of_memory(settings: config.Config, vocab_size: int, error: BaseException, run: str) -> ResourceError:
    """What to say when memory ran out in the midst of `run`: what was asked for, and how to ask for less."""
    words = str(error).partition("\n")[0] or "Python could get no more"
    remedies = "; ".join(knob(settings, vocab_size, 1).override for knob in _knobs(settings))
    streams, again = max(1, settings.trainer.evaluation_streams // 2), quoting.typed("resume", run)
    return ResourceError(
        f"Memory ran out: {words}.",
        f"Asked for was {_asked_for(settings, vocab_size)}. The checkpoints of the run are as they were.",
        f"Start a smaller one: {remedies or 'model.order=3'}; or free memory and type  python -m lmtrain {again}  "
        f"(if it ran out during validation, with trainer.evaluation_streams={streams}).",
    )


def gigabytes(num_bytes: int) -> str:
    return f"{num_bytes / 1e9:,.3g} GB" if num_bytes < 1e12 else f"{num_bytes / 1e9:,.0f} GB"


def _asked_for(settings: config.Config, vocab_size: int) -> str:
    model, trainer = settings.model, settings.trainer
    sizes = [f"vocabulary {vocab_size:,}"]
    if isinstance(model, config.NeuralConfig):
        hidden = getattr(model, "hidden_sizes", None) or f"{model.num_layers} x {model.hidden_size}"
        if averages := getattr(model, "num_averages", 0):
            sizes.append(f"{averages} averages of {getattr(model, 'average_span')} tokens")
        sizes += [f"embed_size {model.embed_size}", f"hidden {hidden}", f"batch_size {trainer.batch_size}",
                  f"chunk_length {trainer.chunk_length}", settings.optimizer.name.name]  # fmt: skip
    return f"{config.model_name(model)} model with {', '.join(sizes)}"


def device_bytes(device: torch.device) -> int:
    """The memory of `device`, used or not."""
    return int(torch.cuda.get_device_properties(device).total_memory) if device.type == "cuda" else memory_bytes()


def _chunk_bytes(model: config.NeuralConfig, trainer: config.TrainerConfig) -> int:
    """The least that is kept of a chunk for the backward pass."""
    T, tokens = trainer.chunk_length, trainer.batch_size * trainer.chunk_length
    averages, span = getattr(model, "num_averages", 0), getattr(model, "average_span", 0)
    if model.state_policy is config.StatePolicy.carry:
        averaged = 6 * averages * T * (span + T - 1)  # the band matrix, in float32 and in bfloat16 or with its gradient
    else:
        averaged = FLOAT_BYTES * tokens * span * model.embed_size  # every token that an average sees, for every step
    return tokens * _token_bytes(model) + averaged * (averages > 0)


def _token_bytes(model: config.NeuralConfig) -> int:
    """The least that is kept of a token for the backward pass: two bytes per number, as in bfloat16."""
    cell = getattr(model, "cell", None)  # a window model has none
    gates = CELLS[cell.name].num_gates if cell else 1
    sizes = getattr(model, "hidden_sizes", None) or [model.hidden_size] * model.num_layers
    seen = getattr(model, "context", 1) + getattr(model, "num_averages", 0)  # embeddings that enter the first layer
    return 2 * (seen * model.embed_size + gates * sum(sizes))


# ---- what would fit


class Smaller(NamedTuple):
    """Settings (and the vocabulary they lead to) that need less, and what to type for them."""

    settings: config.Config
    vocab_size: int
    override: str


Knob = Callable[[config.Config, int, int], Smaller]  # the last argument: how many times something is halved


def _first_that_fits(knob: Knob, settings: config.Config, vocab_size: int, device: torch.device) -> str | None:
    for power in range(1, 21):
        smaller = knob(settings, vocab_size, power)
        need = estimate(smaller.settings, smaller.vocab_size)
        assert need is not None
        if need.total_bytes <= device_bytes(device) / 2:  # half: all that the lower bound leaves out needs room too
            return smaller.override
    return None


def _knobs(settings: config.Config) -> list[Knob]:
    if not isinstance(settings.model, config.NeuralConfig):
        return []
    averages = [_fewer_averages] if getattr(settings.model, "num_averages", 0) else []
    return [
        *averages,
        _smaller_layers,
        _fewer_steps,
        *([_smaller_vocabulary] if KINDS[settings.tokenizer.name.name].is_learnt and not settings.tokenizer.vocabulary else []),
    ]


def _fewer_averages(settings: config.Config, vocab_size: int, power: int) -> Smaller:
    changes = {name: max(1, getattr(settings.model, name) >> power) for name in ("num_averages", "average_span")}
    override = " ".join(f"model.{name}={value}" for name, value in changes.items())
    return Smaller(dataclasses.replace(settings, model=dataclasses.replace(settings.model, **changes)), vocab_size, override)


def _smaller_layers(settings: config.Config, vocab_size: int, power: int) -> Smaller:
    model = settings.model
    sizes = getattr(model, "hidden_sizes", None)
    changes: dict[str, Any] = {"embed_size": max(1, getattr(model, "embed_size") >> power)}
    changes |= {"hidden_sizes": [max(1, size >> power) for size in sizes]} if sizes else {}
    changes |= {} if sizes else {"hidden_size": max(1, getattr(model, "hidden_size") >> power)}
    override = " ".join(f"model.{name}={value}".replace(" ", "") for name, value in changes.items())
    return Smaller(dataclasses.replace(settings, model=dataclasses.replace(model, **changes)), vocab_size, override)


def _fewer_steps(settings: config.Config, vocab_size: int, power: int) -> Smaller:
    changes = {name: max(1, getattr(settings.trainer, name) >> power) for name in ("batch_size", "chunk_length")}
    override = " ".join(f"trainer.{name}={value}" for name, value in changes.items())
    trainer = dataclasses.replace(settings.trainer, **changes)
    return Smaller(dataclasses.replace(settings, trainer=trainer), vocab_size, override)


def _smaller_vocabulary(settings: config.Config, vocab_size: int, power: int) -> Smaller:
    size = max(KINDS[settings.tokenizer.name.name].least_size, vocab_size >> power)
    return Smaller(settings, size, f"tokenizer.vocab_size={size}")
