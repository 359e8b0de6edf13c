"""What our `torch.autograd.Function`s have in common: how they are called, in which precision, and for those that are whole
loops or losses, and not pointwise, the rules of `torch.func`.

vmap   runs the function once for each element of the batch, which is right for every backend, and no faster than a loop
jvp    is refused, because no forward-mode derivative is written by hand; the reference has PyTorch's own
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import cache
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


FOLLOWED = "PyTorch follows each operation, as it does to trace or to count them, and does not see what a kernel does"


def is_followed() -> bool:
    """Whether all operations have to be PyTorch's: a trace is made, tensors have shapes alone, or operations are counted."""
    if torch.compiler.is_compiling():
        return False  # what is compiled calls our kernels from outside
    return torch._C._len_torch_dispatch_stack() > 0 or torch._C._get_tracing_state() is not None


def follow(*tensors: Tensor | None) -> bool:
    """Whether one of them is of a class that does operations itself, such as a fake tensor: then they have to be PyTorch's."""
    return any(x is not None and type(x).__torch_dispatch__ is not Tensor.__torch_dispatch__ for x in tensors)


def lies_here(x: Tensor) -> bool:
    """Whether its numbers lie in this machine's memory, in rows, for C++ to read. A fake tensor only says so."""
    return x.is_cpu and x.layout is torch.strided and not follow(x)


class Products(torch.autocast):
    """An autocast that forgets the copies of weights which it has made when it begins and ends.

    PyTorch keeps them until the outermost autocast ends, and it does not see that a weight has changed since.
    """

    def __enter__(self) -> Any:
        torch.clear_autocast_cache()
        return super().__enter__()

    def __exit__(self, *raised: Any) -> Any:
        torch.clear_autocast_cache()
        return super().__exit__(*raised)


def multiply(function: Callable[..., Tensor], *factors: Tensor) -> Tensor:
    """`function(*factors)`, such as `torch.einsum`, in the type that an open autocast asks for; differentiable if it is.

    Where PyTorch multiplies bfloat16 in plain loops, factors are rounded, multiplied in float32, and the result is rounded:
    the same but for the order of sums, and up to fifty times as fast.
    """
    if not are_in_plain_loops(*factors):
        return function(*factors)
    with without_autocast(torch.device("cpu")):
        return function(*(x.to(torch.bfloat16).float() for x in factors)).to(torch.bfloat16)


def matmul(a: Tensor, b_KN: Tensor, bias_N: Tensor | None = None) -> Tensor:
    """The same for a @ b + bias, a [..., K]. The backward pass needs the factors alone, and may run under an autocast."""
    if not are_in_plain_loops(a, b_KN):
        return a @ b_KN if bias_N is None else a @ b_KN + bias_N
    with without_autocast(torch.device("cpu")):
        rounded = (None if x is None else x.to(torch.bfloat16) for x in (a if a.dim() > 1 else a[None], b_KN, bias_N))
        product: Tensor = call(MatmulFunction, *rounded)
        return product if a.dim() > 1 else product[0]


class MatmulFunction(Function):
    """a @ b + bias in float32 or wider, rounded once:  d_a = d b^T,  d_b = a^T d,  d_bias = sum of d over rows."""

    generate_vmap_rule = True

    @staticmethod
    def forward(a: Tensor, b_KN: Tensor, bias_N: Tensor | None) -> Tensor:
        product = _widened(a) @ _widened(b_KN)
        return (product if bias_N is None else product.add_(bias_N)).to(a.dtype)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        ctx.save_for_backward(*inputs[:2])
        ctx.save_for_forward(*inputs[:2])
        ctx.has_bias = inputs[2] is not None

    @staticmethod
    def backward(ctx: Any, *d_outputs: Tensor) -> tuple[Tensor | None, ...]:
        (a, b_KN), (d,), needed = ctx.saved_tensors, d_outputs, ctx.needs_input_grad
        return (
            matmul(d, b_KN.mT) if needed[0] else None,
            matmul(_rows(a).mT, _rows(d)) if needed[1] else None,
            _rows(d).sum(0) if ctx.has_bias and needed[2] else None,
        )

    @staticmethod
    def jvp(ctx: Any, *d_inputs: Tensor | None) -> Tensor:
        (a, b_KN), (d_a, d_b_KN, d_bias_N) = ctx.saved_tensors, d_inputs
        parts = [matmul(d_a, b_KN)] if d_a is not None else []
        parts += [matmul(a, d_b_KN)] if d_b_KN is not None else []
        return sum(parts, start=torch.zeros((), dtype=a.dtype) if d_bias_N is None else d_bias_N)


def _rows(x: Tensor) -> Tensor:
    return x.reshape(-1, x.shape[-1])


def _widened(x: Tensor) -> Tensor:
    return x.float() if x.dtype == torch.bfloat16 else x


def are_in_plain_loops(*factors: Tensor) -> bool:
    """Whether PyTorch would multiply them in plain loops: in bfloat16, on a CPU that is older than AVX-512."""
    if not factors[0].is_cpu or torch.compiler.is_compiling():
        return False
    autocast = torch.is_autocast_enabled("cpu") and torch.get_autocast_dtype("cpu") == torch.bfloat16
    allowed = (torch.bfloat16, torch.float32) if autocast else (torch.bfloat16,)
    return all(x.dtype in allowed for x in factors) and multiplies_bfloat16_in_plain_loops()


@cache
def multiplies_bfloat16_in_plain_loops() -> bool:
    """Whether PyTorch has nothing better for products of bfloat16 on this CPU: oneDNN has, from AVX-512 on."""
    return not (torch.backends.mkldnn.is_available() and torch.ops.mkldnn._is_mkldnn_bf16_supported())


def needs_grad(x: Tensor) -> bool:
    """Whether there may be a backward pass to it. Within `torch.func` a tensor does not say what the one within it needs."""
    return torch.is_grad_enabled() and (x.requires_grad or torch._C._are_functorch_transforms_active())


def is_for_reference(d_outputs: Sequence[Tensor | None]) -> bool:
    """Whether a backward pass is that of the reference: it will be differentiated again (`create_graph=True`), or goes through
    a batch of upstream gradients at once (`is_grads_batched=True`, `jacobian(vectorize=True)`)."""
    return torch.is_grad_enabled() or any(d is not None and is_batched(d) for d in d_outputs)


def is_batched(x: Tensor) -> bool:
    """Whether a tensor stands for a batch of such, of which only PyTorch knows where they lie."""
    return torch._C._functorch.is_batchedtensor(x) or torch._C._functorch.is_legacy_batchedtensor(x)


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
            'Use torch.func.grad or jacrev, or backend="reference" where that can be given: it is plain PyTorch.'
        )
