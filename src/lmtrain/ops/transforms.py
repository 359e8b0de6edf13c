"""What our `torch.autograd.Function`s have in common: how they are called, and for those that are whole loops or losses, and
not pointwise, the rules of `torch.func`.

vmap   runs the function once for each element of the batch, which is right for every backend, and no faster than a loop
jvp    is refused, because no forward-mode derivative is written by hand; the reference has PyTorch's own
"""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Any, NoReturn

import torch
from torch import Tensor
from torch._functorch.utils import unwrap_dead_wrappers
from torch.autograd import Function


def call(function: type[Function], *arguments: Any) -> Any:
    """`function.apply` without its search for default values of arguments, of which ours have none: it takes 19 of 23 µs.

    A method that does so could not be compiled.
    """
    if torch.compiler.is_compiling() or torch._C._are_functorch_transforms_active():
        return function.apply(*arguments)
    return super(Function, function).apply(*unwrap_dead_wrappers(arguments))  # type: ignore[misc]


def without_autocast(device: torch.device) -> AbstractContextManager[Any]:
    """A context in which no product is rounded. The device `meta`, which has shapes alone, has no autocast."""
    is_open = torch.amp.is_autocast_available(device.type) and torch.is_autocast_enabled(device.type)
    return torch.autocast(device.type, enabled=False) if is_open else nullcontext()


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
