"""What the three recurrences share. Each has a file of its own: `elman`, `gru`, `lstm`.

Every cell adds a recurrent term to the input projection, multiplied by the previous state:

    a_t = projected_t + R h'_{t-1}        or, layer-normalised (Ba et al. 2016),   projected_t + gain * LN(R h'_{t-1})
    h'_{t-1} = keep_t h_{t-1}

so the gradients of R and of the gain are computed here for all cells and backends, from the gradients d_term_TBZ of that
term: one matrix product over all T x B rows, after the backward loop.

LN acts on each gate's block of H numbers: with mean m and variance v over the block, x = (u - m) / sqrt(v + 1e-5), and

    d_u = (d_x - mean(d_x) - x mean(d_x x)) / sqrt(v + 1e-5),     d_x = gain * d_term,     d_gain = sum of x * d_term.

The backward pass computes x again, with one product for all steps, since every h_{t-1} is known then. Nothing is kept for it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from lmtrain.ops.backends import Call, choose
from lmtrain.ops.native import products
from lmtrain.ops.shapes import Sizes, check_dtype, check_shape
from lmtrain.ops.transforms import follow, matmul, needs_grad

EPSILON = 1e-5


class Arguments:
    """Checks the arguments of one call, converts them to its types, and collects what a backend needs to know of them.

    The type of the projected inputs is that of the computation. If it is bfloat16, other tensors may be float32 too: factors of
    a product are rounded, all others become float32. Otherwise all tensors have that one type. Raises ValueError.
    """

    def __init__(self, cell: str, name: str, projected: Tensor) -> None:
        check_dtype(name, projected.dtype, torch.float32, torch.float64, torch.bfloat16)
        self.cell, self.projected_name, self.device = cell, name, projected.device
        self.compute_dtype, self.wide_dtype = projected.dtype, accumulate_dtype(projected.dtype)
        self.sizes = Sizes()
        self.options: set[str] = set()
        self.needs_grad = self.follows = False

    def factor(self, name: str, tensor: Tensor, letters: str) -> Tensor:
        """Returns a factor of products in the type of the computation."""
        self._check(name, tensor, letters)
        return tensor.to(self.compute_dtype)

    def wide(self, name: str, tensor: Tensor, letters: str) -> Tensor:
        """Returns a tensor that is only added or multiplied element by element, in the type of sums."""
        self._check(name, tensor, letters)
        return tensor.to(self.wide_dtype)

    def gain(self, name: str, tensor: Tensor | None, letters: str) -> Tensor | None:
        """Returns the gain of a layer normalisation, or None."""
        if tensor is None:
            return None
        self.options.add(name)
        return self.wide(name, tensor, letters)

    def mask(self, name: str, tensor: Tensor | None, letters: str) -> Tensor | None:
        """Returns a constant of any floating type that expands to the shape, or None."""
        if tensor is None:
            return None
        if tensor.requires_grad:
            raise ValueError(f"{name} requires grad; it is a constant here and would get none. Pass {name}.detach().")
        self._check_device(name, tensor)
        try:
            tensor = tensor.expand([self.sizes[letter] for letter in letters.split()])
        except RuntimeError:
            check_shape(name, tensor, letters, self.sizes)
            raise
        self.options.add(name)
        return tensor.to(self.wide_dtype)

    def choose(self, backend: str) -> str:
        """Returns the backend that computes this call."""
        options = frozenset(self.options)
        return choose(backend, Call(self.cell, self.device.type, self.compute_dtype, self.sizes, options, self.follows))

    def _check(self, name: str, tensor: Tensor, letters: str) -> None:
        check_shape(name, tensor, letters, self.sizes)
        if self.compute_dtype == torch.bfloat16:
            check_dtype(name, tensor.dtype, torch.bfloat16, torch.float32)
        else:
            check_dtype(name, tensor.dtype, self.compute_dtype)
        self._check_device(name, tensor)
        self.needs_grad |= needs_grad(tensor)
        self.follows |= follow(tensor)

    def _check_device(self, name: str, tensor: Tensor) -> None:
        if tensor.device != self.device:
            raise ValueError(f"{name} is on {tensor.device}; expected {self.device}, where {self.projected_name} is.")


def accumulate_dtype(dtype: torch.dtype) -> torch.dtype:
    """Returns the type of sums, cells and gates: float32 for bfloat16, otherwise the type itself."""
    return torch.float32 if dtype == torch.bfloat16 else dtype


def recurrent_term(h_BH: Tensor, weight_ZH: Tensor, norm_gain_Z: Tensor | None) -> Tensor:
    """Returns h R^T [B, Z] in the type of sums, layer-normalised if there is a gain; differentiable."""
    product_BZ = matmul(h_BH, weight_ZH.T)
    product_BZ = product_BZ.to(accumulate_dtype(product_BZ.dtype))
    if norm_gain_Z is None:
        return product_BZ
    return normalise(product_BZ, h_BH.shape[-1])[0] * norm_gain_Z


def add_recurrent_term(
    projected_BZ: Tensor, h_BH: Tensor, weight_ZH: Tensor, norm_gain_Z: Tensor | None, *, out: Tensor
) -> Tensor:
    """Writes projected + `recurrent_term` to `out`, which has the type of sums. For kernels: not differentiable."""
    if norm_gain_Z is None and out.dtype == h_BH.dtype:
        return torch.addmm(projected_BZ, h_BH, weight_ZH.T, out=out)
    return torch.add(projected_BZ, recurrent_term(h_BH, weight_ZH, norm_gain_Z), out=out)


def backward_term(d_term_BZ: Tensor, weight_ZH: Tensor, norm: Norm | None, step: int) -> Tensor:
    """Returns the gradient of h [B, H] in the type of sums, from that of `recurrent_term`."""
    d_product_BZ = d_term_BZ if norm is None else norm.backward(d_term_BZ, step)
    return matmul(d_product_BZ, weight_ZH).to(accumulate_dtype(d_term_BZ.dtype))


def add_direct(d_BH: Tensor, d_state_BH: Tensor, zoneout_TBH: Tensor | None, step: int) -> Tensor:
    """Adds, in place, the part of a state's gradient that zoneout passes directly to the previous state."""
    return d_BH if zoneout_TBH is None else d_BH.addcmul_(d_state_BH, zoneout_TBH[step])


def kept(state_BH: Tensor, keep_TB: Tensor | None, step: int) -> Tensor:
    """Returns the state (or its gradient) where it is kept for a step, and 0 where it is forgotten."""
    return state_BH if keep_TB is None else state_BH * keep_TB[step][:, None].to(state_BH.dtype)


def zoned_out(new_BH: Tensor, previous_BH: Tensor, zoneout_TBH: Tensor | None, step: int) -> Tensor:
    """Applies zoneout: mixes the new state with the previous one."""
    return new_BH if zoneout_TBH is None else torch.lerp(new_BH, previous_BH.to(new_BH.dtype), zoneout_TBH[step])


def normalise(product_BZ: Tensor, hidden_size: int) -> tuple[Tensor, Tensor]:
    """Gives blocks of `hidden_size` zero mean and unit variance: x [..., Z], and 1 / deviation [..., Z / H, 1]."""
    blocks_BGH = product_BZ.unflatten(-1, (-1, hidden_size))
    centred_BGH = blocks_BGH - blocks_BGH.mean(-1, keepdim=True)
    scale_BG1 = (centred_BGH.square().mean(-1, keepdim=True) + EPSILON).rsqrt()
    return (centred_BGH * scale_BG1).flatten(-2), scale_BG1


class Norm:
    """The layer normalisation in one backward pass: the results of `normalise` at every step, and the gradient through it."""

    def __init__(self, previous_TBH: Tensor, weight_ZH: Tensor, gain_Z: Tensor) -> None:
        self.gain_Z = gain_Z
        product_TBZ = matmul(previous_TBH.flatten(0, 1), weight_ZH.T).to(gain_Z.dtype)
        x_NZ, scale_NG1 = normalise(product_TBZ, weight_ZH.shape[-1])
        self.x_TBZ, self.scale_TBG1 = (y.unflatten(0, previous_TBH.shape[:2]) for y in (x_NZ, scale_NG1))

    def backward(self, d_term_BZ: Tensor, step: int | slice = slice(None)) -> Tensor:
        """Returns the gradient of the product h R^T from that of the normalised term, for one step or for all, in its type."""
        scale_BG1 = self.scale_TBG1[step]
        x_BGH, d_x_BGH = (y.unflatten(-1, (scale_BG1.shape[-2], -1)) for y in (self.x_TBZ[step], d_term_BZ * self.gain_Z))
        mean_BG1 = d_x_BGH.mean(-1, keepdim=True)
        along_BG1 = (d_x_BGH * x_BGH).mean(-1, keepdim=True)
        return ((d_x_BGH - mean_BG1 - x_BGH * along_BG1) * scale_BG1).flatten(-2).to(d_term_BZ.dtype)


def previous_states(h0_BH: Tensor, states_TBH: Tensor, keep_TB: Tensor | None) -> Tensor:
    """Returns the state before every step: h0, h_1, ... h_{T-1}, times keep."""
    previous_TBH = torch.cat([h0_BH[None], states_TBH[:-1]])
    return previous_TBH if keep_TB is None else previous_TBH.mul_(keep_TB[..., None])


def weight_gradients(
    d_term_TBZ: Tensor, previous_TBH: Tensor, norm: Norm | None, needs_weight: bool, backend: str = "eager"
) -> tuple[Tensor | None, Tensor | None]:
    """Returns the gradients of the recurrent weight [Z, H] (None if not needed) and of the gain [Z] (None without one)."""
    d_gain_Z = None if norm is None else (d_term_TBZ * norm.x_TBZ).sum((0, 1))
    if not needs_weight:
        return None, d_gain_Z
    d_product_TBZ = d_term_TBZ if norm is None else norm.backward(d_term_TBZ)
    d_product_NZ, previous_NH = d_product_TBZ.flatten(0, 1), previous_TBH.flatten(0, 1)
    if backend == "native":
        return products.matmul(d_product_NZ.T, previous_NH), d_gain_Z
    return matmul(d_product_NZ.T, previous_NH), d_gain_Z


def mark_saved(ctx: Any, inputs: Sequence[Tensor | None], *made: Tensor | None) -> None:
    """Saves for `backward` the inputs and what the forward pass `made`: the states first, no final states."""
    ctx.mark_non_differentiable(*(tensor for tensor in made[1:] if tensor is not None))
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(*inputs, *made)


def upstream(d_states_TBH: Tensor | None, d_h_BH: Tensor | None, states_TBH: Tensor) -> Tensor:
    """Returns the gradient of the states, with that of the final h added to the last one. Either may be None (undefined)."""
    if d_states_TBH is None:
        d_states_TBH = torch.zeros_like(states_TBH)
    elif d_h_BH is not None:
        d_states_TBH = d_states_TBH.clone()
    if d_h_BH is not None:
        d_states_TBH[-1] += d_h_BH
    return d_states_TBH


def reference_gradients(
    reference: Callable[..., tuple[Tensor, ...]],
    inputs: Sequence[Any],
    needs_input_grad: Sequence[bool],
    d_outputs: Sequence[Tensor | None],
) -> list[Tensor | None]:
    """Returns the reference's gradients: what a backward pass returns if it `is_for_reference`. They are differentiable where
    grad mode is on.

    It works on aliases, because an input that is passed twice, or depends on another, must not collect the other's gradient.
    """
    is_differentiable = torch.is_grad_enabled()
    with torch.enable_grad():
        aliases = [
            (x.view_as(x) if is_differentiable else x.detach().requires_grad_(needed)) if isinstance(x, Tensor) else x
            for x, needed in zip(inputs, needs_input_grad, strict=True)
        ]
        wanted = [alias for alias, needed in zip(aliases, needs_input_grad, strict=True) if needed]
        defined = [(y, d_y) for y, d_y in zip(reference(*aliases), d_outputs, strict=True) if d_y is not None]
    outputs, upstreams = zip(*defined, strict=True)
    gradients = iter(torch.autograd.grad(outputs, wanted, upstreams, create_graph=is_differentiable, allow_unused=True))
    return [next(gradients) if needed else None for needed in needs_input_grad]
