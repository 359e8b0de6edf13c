"""The rules of `torch.func` for functions that are whole loops or losses, and not pointwise.

vmap   runs the function once for each element of the batch, which is right for every backend, and no faster than a loop
jvp    is refused, because no forward-mode derivative is written by hand; the reference has PyTorch's own
"""

from __future__ import annotations

from typing import Any, NoReturn

import torch
from torch import Tensor
from torch.autograd import Function


class Looped(Function):
    """A function that `torch.vmap` runs element by element."""

    @classmethod
    def vmap(cls, info: Any, in_dims: tuple[int | None, ...], *arguments: Any) -> tuple[Any, Any]:
        made = []
        for index in range(info.batch_size):
            element = [x.select(dim, index) if isinstance(dim, int) else x for x, dim in zip(arguments, in_dims, strict=True)]
            outputs = cls.apply(*element)
            made.append(outputs if isinstance(outputs, tuple) else (outputs,))
        stacked = tuple(None if parts[0] is None else torch.stack(parts) for parts in zip(*made, strict=True))
        dims = tuple(None if part is None else 0 for part in stacked)
        return (stacked, dims) if isinstance(outputs, tuple) else (stacked[0], dims[0])

    @classmethod
    def jvp(cls, ctx: Any, *d_inputs: Tensor | None) -> NoReturn:
        name = cls.__name__.removesuffix("Function")
        raise NotImplementedError(
            f"{name} has no forward-mode derivative (torch.func.jvp, jacfwd, hessian). "
            "Use torch.func.grad or jacrev, or its reference, which is plain PyTorch."
        )
