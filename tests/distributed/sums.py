"""One process of several that sum gradients of every kind, in random steps, early or not. Loaded by test_sums.py.

Every process knows what every other one has, so each compares the sums with its own. The bits, those of early sums first, are
written into `sums-RANK.pt`.
"""

import random
from contextlib import nullcontext

import torch
from torch import nn

from lmtrain.distributed import group as module
from lmtrain.distributed.launch import joined

STEPS = 25
SHAPES = {"large": (9, 3), "larger": (5, 8), "tail": (7, 4), "never": (6, 6), "table": (12, 4), "small": (3,), "bias": (2,)}


def gradient(name: str, rank: int, step: int) -> torch.Tensor | None:
    """What process `rank` has of a gradient at a step; random numbers, or None."""
    chance = random.Random(f"{name} {rank} {step}")
    if name == "never" or (name in ("tail", "bias") and chance.random() < 0.6) or (name == "larger" and step == 0):
        return None
    values = torch.randn(*SHAPES[name], generator=torch.Generator().manual_seed(chance.getrandbits(32)))
    if name == "table":
        values[chance.sample(range(len(values)), 7)] = 0
    return values


def loss_of(parameters: dict[str, nn.Parameter], rank: int, step: int) -> torch.Tensor:
    total = parameters["small"].sum() * 0
    for name, parameter in parameters.items():
        values = gradient(name, rank, step)
        if values is None:
            continue
        if name == "table":
            rows = values.abs().sum(1).nonzero()[:, 0]
            total = total + (nn.functional.embedding(rows, parameter, sparse=True) * values[rows]).sum()
        else:
            total = total + (parameter * values).sum()
    return total


def sums_of(group: module.Group, early: bool) -> list[torch.Tensor]:
    """All gradients of all steps, summed; compared with what they should be."""
    sums = []
    parameters = {name: nn.Parameter(torch.zeros(*shape)) for name, shape in SHAPES.items()}
    for step in range(STEPS):
        parameters["large"].requires_grad_(step not in range(10, 15))  # frozen, and learnt again
        for parameter in parameters.values():
            parameter.grad = None
        loss = loss_of(parameters, group.rank, step)
        with group.early_sums() if early else nullcontext():
            loss.backward()
        (total,) = group.sum_gradients(parameters.values(), torch.tensor(group.rank + 1.0))
        assert total == group.size * (group.size + 1) / 2
        for name, parameter in parameters.items():
            parts = [gradient(name, rank, step) for rank in range(group.size)]
            there = [part for part in parts if part is not None]
            grad = parameter.grad
            if not there or not parameter.requires_grad:
                assert grad is None, (step, name)
                continue
            assert grad is not None, (step, name)
            assert grad.is_sparse == (name == "table"), (step, name)
            torch.testing.assert_close(grad.to_dense(), torch.stack(there).sum(0), rtol=1e-5, atol=1e-6)
            sums.append(grad.to_dense())
    return sums


if __name__ == "__main__":
    module.LARGE = 20
    with joined() as group:
        early, late = sums_of(group, True), sums_of(group, False)
    torch.save([early, late], f"sums-{group.rank}.pt")
