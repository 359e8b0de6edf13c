"""The Elman recurrence (Elman 1990, Finding structure in time), the cell of `torch.nn.RNN`.

    h_t = f(a_t)        a_t = projected_t + R h_{t-1}        projected_t = W x_t + b        f = tanh, relu, sigmoid, or x

Backward. With d_h the gradient of h_t from above and from step t + 1, and f' written by its own value,

    d_a = d_h f'(a)     tanh: 1 - h^2     sigmoid: h (1 - h)     relu: h > 0     identity: 1
    d_h_{t-1} = d_a R   d_R = sum over t of d_a^T h_{t-1}        d_projected = d_a

State resets (keep) and zoneout act on the previous state p = keep h_{t-1} and on the candidate h~ = f(a):

    h = zone p + (1 - zone) h~       d_h~ = (1 - zone) d_h       d_h_{t-1} = keep (zone d_h + d_a R)

Kept for the backward pass: h, which is the output anyway; with zoneout also h~. H numbers per token, 4H bytes in float32.

    legend   T steps · B streams · H hidden
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from lmtrain.ops.backends import kernels
from lmtrain.ops.recurrence import (
    Arguments,
    Norm,
    accumulate_dtype,
    add_direct,
    add_recurrent_term,
    backward_term,
    kept,
    mark_saved,
    previous_states,
    recurrent_term,
    reference_gradients,
    upstream,
    weight_gradients,
    zoned_out,
)
from lmtrain.ops.transforms import Looped, call, is_for_reference, without_autocast

NONLINEARITIES: dict[str, Callable[[Tensor], Tensor]] = {
    "tanh": torch.tanh, "relu": torch.relu, "sigmoid": torch.sigmoid, "identity": lambda a: a,
}  # fmt: skip
IN_PLACE: dict[str, Callable[[Tensor], Tensor]] = {
    "tanh": torch.tanh_, "relu": torch.relu_, "sigmoid": torch.sigmoid_, "identity": lambda a: a,
}  # fmt: skip

# f'(a) from h = f(a)
DERIVATIVES: dict[str, Callable[[Tensor], Tensor]] = {
    "tanh": lambda h: 1 - h.square(),
    "relu": lambda h: (h > 0).to(h.dtype),
    "sigmoid": lambda h: h * (1 - h),
    "identity": torch.ones_like,
}


def elman(
    projected_TBH: Tensor,
    h0_BH: Tensor,
    weight_HH: Tensor,
    *,
    nonlinearity: str = "tanh",
    keep_TB: Tensor | None = None,
    zoneout_TBH: Tensor | None = None,
    norm_gain_H: Tensor | None = None,
    backend: str = "auto",
) -> tuple[Tensor, Tensor]:
    """Runs an Elman layer over one chunk; returns states_TBH and the final h_BH.

    projected_TBH  input projections with bias; one product for the whole chunk, made by the caller
    h0_BH          state carried from the previous chunk; gradients flow into it (detach to truncate)
    weight_HH      recurrent weight, possibly already weight-dropped
    nonlinearity   tanh, relu, sigmoid or identity
    keep_TB        0 where the state before a step is forgotten, 1 elsewhere
    zoneout_TBH    weight of the previous state in the new one, in [0, 1]; expands to T, B, H (Krueger et al. 2017)
    norm_gain_H    layer-normalises the recurrent product, with this gain (Ba et al. 2016)
    backend        see `lmtrain.ops.backends`

    Computes in projected's type. In bfloat16 the other tensors may be float32; sums are float32, h_BH has h0's type.
    Raises ValueError for shapes, types and devices that do not fit, UserError for a backend that cannot serve the call.
    """
    if nonlinearity not in NONLINEARITIES:
        raise ValueError(f'nonlinearity is "{nonlinearity}"; expected {", ".join(NONLINEARITIES)}.')
    given = Arguments("elman", "projected_TBH", projected_TBH)
    h0 = given.factor("h0_BH", h0_BH, "B H")
    projected = given.factor("projected_TBH", projected_TBH, "T B H")
    weight = given.factor("weight_HH", weight_HH, "H H")
    keep = given.mask("keep_TB", keep_TB, "T B")
    zoneout = given.mask("zoneout_TBH", zoneout_TBH, "T B H")
    gain = given.gain("norm_gain_H", norm_gain_H, "H")
    inputs = projected, h0, weight, keep, zoneout, gain, nonlinearity
    backend = given.choose(backend)
    with without_autocast(given.device):
        if backend == "reference":
            states_TBH, h_BH = elman_reference(*inputs)
        else:
            states_TBH, h_BH, _ = call(ElmanFunction, *inputs, backend, given.needs_grad)
    return states_TBH, h_BH.to(h0_BH.dtype)


def elman_reference(
    projected_TBH: Tensor,
    h0_BH: Tensor,
    weight_HH: Tensor,
    keep_TB: Tensor | None,
    zoneout_TBH: Tensor | None,
    norm_gain_H: Tensor | None,
    nonlinearity: str,
) -> tuple[Tensor, Tensor]:
    """The definition, in plain differentiable PyTorch: states_TBH and the final h_BH."""
    h_BH, states = h0_BH, []
    for t, projected_BH in enumerate(projected_TBH):
        h_BH = kept(h_BH, keep_TB, t)
        new_h_BH = NONLINEARITIES[nonlinearity](projected_BH + recurrent_term(h_BH, weight_HH, norm_gain_H))
        h_BH = zoned_out(new_h_BH, h_BH, zoneout_TBH, t).to(projected_BH.dtype)
        states.append(h_BH)
    return torch.stack(states), h_BH


class ElmanFunction(Looped):
    """`elman_reference` with a backward pass by hand. Last come the backend, and whether it will be needed."""

    @staticmethod
    def forward(*arguments: Any) -> tuple[Tensor | None, ...]:
        *inputs, backend, save = arguments
        states_TBH, candidates_TBH = kernels(backend, "elman").forward_elman(*inputs, save)
        return states_TBH, states_TBH[-1].clone(), candidates_TBH

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor | None, ...]) -> None:
        *tensors, ctx.nonlinearity, ctx.backend, _ = inputs
        states_TBH, _, candidates_TBH = output
        mark_saved(ctx, tensors, states_TBH, candidates_TBH)

    @staticmethod
    def backward(ctx: Any, *d_outputs: Tensor | None) -> tuple[Tensor | None, ...]:
        *inputs, states_TBH, candidates_TBH = ctx.saved_tensors
        if is_for_reference(d_outputs):
            arguments = (*inputs, ctx.nonlinearity)
            return *reference_gradients(elman_reference, arguments, ctx.needs_input_grad[:7], d_outputs[:2]), None, None
        _, h0_BH, weight_HH, keep_TB, zoneout_TBH, norm_gain_H = inputs
        d_states_TBH = upstream(d_outputs[0], d_outputs[1], states_TBH)
        previous_TBH = previous_states(h0_BH, states_TBH, keep_TB)
        norm = None if norm_gain_H is None else Norm(previous_TBH, weight_HH, norm_gain_H)
        d_projected_TBH, d_h0_BH = kernels(ctx.backend, "elman").backward_elman(
            d_states_TBH, states_TBH, candidates_TBH, h0_BH, weight_HH, keep_TB, zoneout_TBH, norm, ctx.nonlinearity
        )
        d_weight_HH, d_gain_H = weight_gradients(d_projected_TBH, previous_TBH, norm, ctx.needs_input_grad[2], ctx.backend)
        return d_projected_TBH, d_h0_BH, d_weight_HH, None, None, d_gain_H, None, None, None


def forward_elman(
    projected_TBH: Tensor,
    h0_BH: Tensor,
    weight_HH: Tensor,
    keep_TB: Tensor | None,
    zoneout_TBH: Tensor | None,
    norm_gain_H: Tensor | None,
    nonlinearity: str,
    save: bool,
) -> tuple[Tensor, Tensor | None]:
    """The kernel `forward_elman` of the backend eager, as `lmtrain.ops.backends` describes it."""
    activate = IN_PLACE[nonlinearity]
    wide_dtype = accumulate_dtype(projected_TBH.dtype)
    states_TBH = torch.empty_like(projected_TBH, memory_format=torch.contiguous_format)
    candidates_TBH = torch.empty_like(states_TBH) if save and zoneout_TBH is not None else None
    a_BH = torch.empty_like(h0_BH, dtype=wide_dtype)
    h_BH = h0_BH
    for t in range(len(projected_TBH)):
        h_BH = kept(h_BH, keep_TB, t)
        new_h_BH = activate(add_recurrent_term(projected_TBH[t], h_BH, weight_HH, norm_gain_H, out=a_BH))
        if candidates_TBH is not None:
            candidates_TBH[t] = new_h_BH
        h_BH = states_TBH[t].copy_(zoned_out(new_h_BH, h_BH, zoneout_TBH, t))
    return states_TBH, candidates_TBH


def backward_elman(
    d_states_TBH: Tensor,
    states_TBH: Tensor,
    candidates_TBH: Tensor | None,
    h0_BH: Tensor,
    weight_HH: Tensor,
    keep_TB: Tensor | None,
    zoneout_TBH: Tensor | None,
    norm: Norm | None,
    nonlinearity: str,
) -> tuple[Tensor, Tensor]:
    """The kernel `backward_elman` of the backend eager: local derivatives of all steps at once, then the chain."""
    new_states_TBH = states_TBH if candidates_TBH is None else candidates_TBH
    local_TBH = DERIVATIVES[nonlinearity](new_states_TBH.to(accumulate_dtype(states_TBH.dtype)))
    if zoneout_TBH is not None:
        local_TBH *= 1 - zoneout_TBH
    d_projected_TBH = torch.empty_like(states_TBH)
    d_h_BH = torch.zeros_like(local_TBH[0])
    for t in reversed(range(len(states_TBH))):
        d_h_BH = d_h_BH + d_states_TBH[t]
        d_a_BH = torch.mul(d_h_BH, local_TBH[t], out=d_projected_TBH[t])
        d_h_BH = add_direct(backward_term(d_a_BH, weight_HH, norm, t), d_h_BH, zoneout_TBH, t)
        d_h_BH = kept(d_h_BH, keep_TB, t)
    return d_projected_TBH, d_h_BH.to(states_TBH.dtype)
