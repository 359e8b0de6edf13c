"""Gated recurrent unit (Cho et al. 2014), in the form of `torch.nn.GRU` and cuDNN.

    r, z = s(a_r), s(a_z)         a = projected_t + R h_{t-1} for r and z        s the logistic function
    q    = R_n h_{t-1} + b_hn
    n    = tanh(projected_n + r q)
    h_t  = (1 - z) n + z h_{t-1}        projected_t = W x_t + b, where b holds both biases of r and z, but b_in alone of n

The bias b_hn stands apart because the reset gate multiplies it.

Backward. With d_h the gradient of h_t from above and from step t + 1,

    d_a_n = d_h (1 - z) (1 - n^2)       d_q   = d_a_n r
    d_a_z = d_h (h_{t-1} - n) z (1 - z)     d_a_r = d_a_n q r (1 - r)
    d_h_{t-1} = d_h z + (d_a_r, d_a_z, d_q) R      d_R = sum over t of (d_a_r, d_a_z, d_q)^T h_{t-1}      d_b_hn = sum of d_q
    d_projected = (d_a_r, d_a_z, d_a_n)

All factors beside d_h are known before the backward loop starts, so the loop only multiplies.

State resets (keep) and zoneout (Krueger et al. 2017) act on the previous state p = keep h_{t-1} and on h~ = (1 - z) n + z p:

    h = zone p + (1 - zone) h~       d_h~ = (1 - zone) d_h       d_h_{t-1} = keep (zone d_h + z d_h~ + (...) R)

Kept for the backward pass: r, z, n, q and the output h: 5H numbers per token, 20H bytes in float32.

    legend   T steps · B streams · H hidden · Z = 3H, gates r, z, n · Y = 4H: r, z, n, q
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from lmtrain.ops.backends import kernels
from lmtrain.ops.recurrence import (
    Arguments,
    Norm,
    accumulate_dtype,
    add_direct,
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


def gru(
    projected_TBZ: Tensor,
    h0_BH: Tensor,
    weight_ZH: Tensor,
    candidate_bias_H: Tensor,
    *,
    keep_TB: Tensor | None = None,
    zoneout_TBH: Tensor | None = None,
    norm_gain_Z: Tensor | None = None,
    backend: str = "auto",
) -> tuple[Tensor, Tensor]:
    """Runs a GRU layer over one chunk; returns states_TBH and the final h_BH.

    projected_TBZ     input projections, Z = 3H, with the biases b_ir + b_hr, b_iz + b_hz, b_in; made by the caller
    h0_BH             state carried from the previous chunk; gradients flow into it (detach to truncate)
    weight_ZH         recurrent weight, possibly already weight-dropped
    candidate_bias_H  b_hn, the recurrent bias of the candidate, within the reset product
    keep_TB           0 where the state before a step is forgotten, 1 elsewhere
    zoneout_TBH       weight of the previous state in the new one, in [0, 1]; expands to T, B, H (Krueger et al. 2017)
    norm_gain_Z       layer-normalises the recurrent product, gate by gate, with this gain (Ba et al. 2016)
    backend           see `lmtrain.ops.backends`

    Computes in projected's type. In bfloat16 the other tensors may be float32; sums are float32, h_BH has h0's type.
    Raises ValueError for shapes, types and devices that do not fit, UserError for a backend that cannot serve the call.
    """
    given = Arguments("gru", "projected_TBZ", projected_TBZ)
    h0 = given.factor("h0_BH", h0_BH, "B H")
    projected = given.factor("projected_TBZ", projected_TBZ, "T B 3H")
    weight = given.factor("weight_ZH", weight_ZH, "3H H")
    bias = given.wide("candidate_bias_H", candidate_bias_H, "H")
    keep = given.mask("keep_TB", keep_TB, "T B")
    zoneout = given.mask("zoneout_TBH", zoneout_TBH, "T B H")
    gain = given.gain("norm_gain_Z", norm_gain_Z, "3H")
    inputs = projected, h0, weight, bias, keep, zoneout, gain
    backend = given.choose(backend)
    with without_autocast(given.device):
        if backend == "reference":
            states_TBH, h_BH = gru_reference(*inputs)
        else:
            states_TBH, h_BH, _ = call(GRUFunction, *inputs, backend, given.needs_grad)
    return states_TBH, h_BH.to(h0_BH.dtype)


def gru_reference(
    projected_TBZ: Tensor,
    h0_BH: Tensor,
    weight_ZH: Tensor,
    candidate_bias_H: Tensor,
    keep_TB: Tensor | None,
    zoneout_TBH: Tensor | None,
    norm_gain_Z: Tensor | None,
) -> tuple[Tensor, Tensor]:
    """The definition, in plain differentiable PyTorch: states_TBH and the final h_BH."""
    h_BH, states = h0_BH, []
    for t, projected_BZ in enumerate(projected_TBZ):
        h_BH = kept(h_BH, keep_TB, t)
        term_r, term_z, term_n = recurrent_term(h_BH, weight_ZH, norm_gain_Z).chunk(3, dim=-1)
        projected_r, projected_z, projected_n = projected_BZ.chunk(3, dim=-1)
        r_BH, z_BH = torch.sigmoid(projected_r + term_r), torch.sigmoid(projected_z + term_z)
        n_BH = torch.tanh(projected_n + r_BH * (term_n + candidate_bias_H))
        new_h_BH = (1 - z_BH) * n_BH + z_BH * h_BH
        h_BH = zoned_out(new_h_BH, h_BH, zoneout_TBH, t).to(projected_BZ.dtype)
        states.append(h_BH)
    return torch.stack(states), h_BH


class GRUFunction(Looped):
    """`gru_reference` with a backward pass by hand. Last come the backend, and whether it will be needed."""

    @staticmethod
    def forward(*arguments: Any) -> tuple[Tensor | None, ...]:
        *inputs, backend, save = arguments
        states_TBH, gates_TBY = kernels(backend, "gru").forward_gru(*inputs, save)
        return states_TBH, states_TBH[-1].clone(), gates_TBY

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor | None, ...]) -> None:
        *tensors, ctx.backend, _ = inputs
        states_TBH, _, gates_TBY = output
        mark_saved(ctx, tensors, states_TBH, gates_TBY)

    @staticmethod
    def backward(ctx: Any, *d_outputs: Tensor | None) -> tuple[Tensor | None, ...]:
        *inputs, states_TBH, gates_TBY = ctx.saved_tensors
        if is_for_reference(d_outputs):
            return *reference_gradients(gru_reference, inputs, ctx.needs_input_grad[:7], d_outputs[:2]), None, None
        _, h0_BH, weight_ZH, candidate_bias_H, keep_TB, zoneout_TBH, norm_gain_Z = inputs
        d_states_TBH = upstream(d_outputs[0], d_outputs[1], states_TBH)
        previous_TBH = previous_states(h0_BH, states_TBH, keep_TB)
        norm = None if norm_gain_Z is None else Norm(previous_TBH, weight_ZH, norm_gain_Z)
        d_projected_TBZ, d_term_TBZ, d_h0_BH = kernels(ctx.backend, "gru").backward_gru(
            d_states_TBH, states_TBH, gates_TBY, h0_BH, weight_ZH, keep_TB, zoneout_TBH, norm
        )
        d_weight_ZH, d_gain_Z = weight_gradients(d_term_TBZ, previous_TBH, norm, ctx.needs_input_grad[2], ctx.backend)
        d_bias_H = d_term_TBZ[..., -len(candidate_bias_H) :].sum((0, 1), dtype=candidate_bias_H.dtype)
        return d_projected_TBZ, d_h0_BH, d_weight_ZH, d_bias_H, None, None, d_gain_Z, None, None


def forward_gru(
    projected_TBZ: Tensor,
    h0_BH: Tensor,
    weight_ZH: Tensor,
    candidate_bias_H: Tensor,
    keep_TB: Tensor | None,
    zoneout_TBH: Tensor | None,
    norm_gain_Z: Tensor | None,
    save: bool,
) -> tuple[Tensor, Tensor | None]:
    """The kernel `forward_gru` of the backend eager, as `lmtrain.ops.backends` describes it."""
    T, (B, H) = len(projected_TBZ), h0_BH.shape
    states_TBH = projected_TBZ.new_empty(T, B, H)
    gates_TBY = candidate_bias_H.new_empty(T if save else 1, B, 4 * H).expand(T, -1, -1)
    h_BH = h0_BH
    for t in range(T):
        h_BH = kept(h_BH, keep_TB, t)
        term_BZ = recurrent_term(h_BH, weight_ZH, norm_gain_Z)
        rz, n_BH, q_BH = gates_TBY[t].split([2 * H, H, H], dim=-1)
        torch.add(projected_TBZ[t, :, : 2 * H], term_BZ[:, : 2 * H], out=rz).sigmoid_()
        torch.add(term_BZ[:, 2 * H :], candidate_bias_H, out=q_BH)
        torch.addcmul(projected_TBZ[t, :, 2 * H :].to(q_BH.dtype), rz[:, :H], q_BH, out=n_BH).tanh_()
        new_h_BH = torch.lerp(n_BH, h_BH.to(n_BH.dtype), rz[:, H:])
        h_BH = states_TBH[t].copy_(zoned_out(new_h_BH, h_BH, zoneout_TBH, t))
    return states_TBH, gates_TBY.to(projected_TBZ.dtype) if save else None


def backward_gru(
    d_states_TBH: Tensor,
    states_TBH: Tensor,
    gates_TBY: Tensor,
    h0_BH: Tensor,
    weight_ZH: Tensor,
    keep_TB: Tensor | None,
    zoneout_TBH: Tensor | None,
    norm: Norm | None,
) -> tuple[Tensor, Tensor, Tensor]:
    """The kernel `backward_gru` of the backend eager: local derivatives of all steps at once, then the chain."""
    H = h0_BH.shape[-1]
    wide_dtype = accumulate_dtype(states_TBH.dtype)
    r_TBH, z_TBH, n_TBH, q_TBH = gates_TBY.to(wide_dtype).unflatten(-1, (4, H)).unbind(-2)
    previous_TBH = previous_states(h0_BH, states_TBH, keep_TB)
    direct_TBH, new_TBH = z_TBH, 1 - z_TBH
    if zoneout_TBH is not None:
        direct_TBH = torch.lerp(z_TBH, torch.ones_like(z_TBH), zoneout_TBH)
        new_TBH = new_TBH * (1 - zoneout_TBH)
    by_n_TBH = new_TBH * (1 - n_TBH.square())
    by_q_TBH = by_n_TBH * r_TBH
    local_TB3H = torch.stack(
        [by_q_TBH * q_TBH * (1 - r_TBH), (previous_TBH - n_TBH) * z_TBH * new_TBH, by_n_TBH],
        dim=2,
    )
    d_projected_TBZ, d_term_TBZ = (states_TBH.new_empty(*states_TBH.shape[:2], 3 * H) for _ in range(2))
    d_h_BH = torch.zeros_like(h0_BH, dtype=wide_dtype)
    for t in reversed(range(len(states_TBH))):
        d_h_BH = d_h_BH + d_states_TBH[t]
        torch.mul(local_TB3H[t], d_h_BH[:, None], out=d_projected_TBZ[t].unflatten(-1, (3, H)))
        d_term_TBZ[t, :, : 2 * H] = d_projected_TBZ[t, :, : 2 * H]
        torch.mul(by_q_TBH[t], d_h_BH, out=d_term_TBZ[t, :, 2 * H :])
        d_h_BH = add_direct(backward_term(d_term_TBZ[t], weight_ZH, norm, t), d_h_BH, direct_TBH, t)
        d_h_BH = kept(d_h_BH, keep_TB, t)
    return d_projected_TBZ, d_term_TBZ, d_h_BH.to(states_TBH.dtype)
