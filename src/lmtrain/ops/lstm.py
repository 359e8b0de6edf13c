"""Long short-term memory (Hochreiter and Schmidhuber 1997; forget gate: Gers et al. 2000), the cell of `torch.nn.LSTM`.

    i, f, g, o = s(a_i), s(a_f), tanh(a_g), s(a_o)         a = projected_t + R h_{t-1}        s the logistic function
    c_t = f c_{t-1} + i g        h_t = o tanh(c_t)         projected_t = W x_t + b

Backward. With d_h and d_c the gradients of h_t and c_t from above and from step t + 1, and y = tanh(c_t),

    d_c += d_h o (1 - y^2)
    d_a_i = d_c g i (1 - i)      d_a_f = d_c c_{t-1} f (1 - f)      d_a_g = d_c i (1 - g^2)      d_a_o = d_h y o (1 - o)
    d_c_{t-1} = d_c f            d_h_{t-1} = d_a R                  d_R = sum over t of d_a^T h_{t-1}      d_projected = d_a

All factors beside d_c and d_h are known before the backward loop starts, so the loop only multiplies.

State resets (keep) and zoneout (Krueger et al. 2017) act on the previous states p = keep h_{t-1}, q = keep c_{t-1} and on
the new ones, c~ = f q + i g and h~ = o tanh(c~):

    c = zone_c q + (1 - zone_c) c~       d_c~ = (1 - zone_c) d_c + (1 - zone_h) d_h o (1 - y^2)
    h = zone_h p + (1 - zone_h) h~       d_c_{t-1} = keep (zone_c d_c + f d_c~)      d_h_{t-1} = keep (zone_h d_h + d_a R)

Kept for the backward pass: i, f, g, o, c and the output h: 6H numbers per token, 24H bytes in float32, 14H in bfloat16
(gates and h bfloat16, c float32). tanh(c) is computed again.

    legend   T steps · B streams · H hidden · Z = 4H, gates i, f, g, o
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from lmtrain.ops.backends import kernels
from lmtrain.ops.recurrence import (
    Arguments,
    Norm,
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


def lstm(
    projected_TBZ: Tensor,
    h0_BH: Tensor,
    c0_BH: Tensor,
    weight_ZH: Tensor,
    *,
    keep_TB: Tensor | None = None,
    zoneout_TBH: Tensor | None = None,
    cell_zoneout_TBH: Tensor | None = None,
    norm_gain_Z: Tensor | None = None,
    backend: str = "auto",
) -> tuple[Tensor, Tensor, Tensor]:
    """Runs an LSTM layer over one chunk; returns states_TBH and the final h_BH and c_BH.

    projected_TBZ     input projections with bias, Z = 4H; one product for the whole chunk, made by the caller
    h0_BH, c0_BH      states carried from the previous chunk; gradients flow into both (detach to truncate)
    weight_ZH         recurrent weight, possibly already weight-dropped
    keep_TB           0 where the states before a step are forgotten, 1 elsewhere
    zoneout_TBH       weight of the previous h in the new one, in [0, 1]; expands to T, B, H (Krueger et al. 2017)
    cell_zoneout_TBH  likewise of the previous c
    norm_gain_Z       layer-normalises the recurrent product, gate by gate, with this gain (Ba et al. 2016)
    backend           see `lmtrain.ops.backends`

    Computes in projected's type. In bfloat16 the other tensors may be float32; cells and sums are float32, so c_BH is, and
    h_BH has h0's type. Raises ValueError for shapes, types and devices that do not fit, UserError for a backend that cannot
    serve the call.
    """
    given = Arguments("lstm", "projected_TBZ", projected_TBZ)
    h0 = given.factor("h0_BH", h0_BH, "B H")
    c0 = given.wide("c0_BH", c0_BH, "B H")
    projected = given.factor("projected_TBZ", projected_TBZ, "T B 4H")
    weight = given.factor("weight_ZH", weight_ZH, "4H H")
    keep = given.mask("keep_TB", keep_TB, "T B")
    zoneout = given.mask("zoneout_TBH", zoneout_TBH, "T B H")
    cell_zoneout = given.mask("cell_zoneout_TBH", cell_zoneout_TBH, "T B H")
    gain = given.gain("norm_gain_Z", norm_gain_Z, "4H")
    inputs = projected, h0, c0, weight, keep, zoneout, cell_zoneout, gain
    backend = given.choose(backend)
    with without_autocast(given.device):
        if backend == "reference":
            states_TBH, h_BH, c_BH = lstm_reference(*inputs)
        else:
            states_TBH, h_BH, c_BH, _, _ = call(LSTMFunction, *inputs, backend, given.needs_grad)
    return states_TBH, h_BH.to(h0_BH.dtype), c_BH


def lstm_reference(
    projected_TBZ: Tensor,
    h0_BH: Tensor,
    c0_BH: Tensor,
    weight_ZH: Tensor,
    keep_TB: Tensor | None,
    zoneout_TBH: Tensor | None,
    cell_zoneout_TBH: Tensor | None,
    norm_gain_Z: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor]:
    """The definition, in plain differentiable PyTorch: states_TBH and the final h_BH and c_BH."""
    h_BH, c_BH, states = h0_BH, c0_BH, []
    for t, projected_BZ in enumerate(projected_TBZ):
        h_BH, c_BH = kept(h_BH, keep_TB, t), kept(c_BH, keep_TB, t)
        a_i, a_f, a_g, a_o = (projected_BZ + recurrent_term(h_BH, weight_ZH, norm_gain_Z)).chunk(4, dim=-1)
        new_c_BH = torch.sigmoid(a_f) * c_BH + torch.sigmoid(a_i) * torch.tanh(a_g)
        new_h_BH = torch.sigmoid(a_o) * torch.tanh(new_c_BH)
        c_BH = zoned_out(new_c_BH, c_BH, cell_zoneout_TBH, t)
        h_BH = zoned_out(new_h_BH, h_BH, zoneout_TBH, t).to(projected_BZ.dtype)
        states.append(h_BH)
    return torch.stack(states), h_BH, c_BH


class LSTMFunction(Looped):
    """`lstm_reference` with a backward pass by hand. Last come the backend, and whether it will be needed."""

    @staticmethod
    def forward(*arguments: Any) -> tuple[Tensor | None, ...]:
        *inputs, backend, save = arguments
        states_TBH, c_BH, cells_TBH, gates_TBZ = kernels(backend, "lstm").forward_lstm(*inputs, save)
        return states_TBH, states_TBH[-1].clone(), c_BH, cells_TBH, gates_TBZ

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor | None, ...]) -> None:
        *tensors, ctx.backend, _ = inputs
        states_TBH, _, _, cells_TBH, gates_TBZ = output
        mark_saved(ctx, tensors, states_TBH, cells_TBH, gates_TBZ)

    @staticmethod
    def backward(ctx: Any, *d_outputs: Tensor | None) -> tuple[Tensor | None, ...]:
        *inputs, states_TBH, cells_TBH, gates_TBZ = ctx.saved_tensors
        if is_for_reference(d_outputs):
            return *reference_gradients(lstm_reference, inputs, ctx.needs_input_grad[:8], d_outputs[:3]), None, None
        _, h0_BH, c0_BH, weight_ZH, keep_TB, zoneout_TBH, cell_zoneout_TBH, norm_gain_Z = inputs
        d_states_TBH = upstream(d_outputs[0], d_outputs[1], states_TBH)
        d_c_BH = torch.zeros_like(c0_BH) if d_outputs[2] is None else d_outputs[2]
        previous_TBH = previous_states(h0_BH, states_TBH, keep_TB)
        norm = None if norm_gain_Z is None else Norm(previous_TBH, weight_ZH, norm_gain_Z)
        d_projected_TBZ, d_h0_BH, d_c0_BH = kernels(ctx.backend, "lstm").backward_lstm(
            d_states_TBH, d_c_BH, states_TBH, cells_TBH, gates_TBZ, h0_BH, c0_BH, weight_ZH, keep_TB, zoneout_TBH,
            cell_zoneout_TBH, norm,
        )  # fmt: skip
        d_weight_ZH, d_gain_Z = weight_gradients(d_projected_TBZ, previous_TBH, norm, ctx.needs_input_grad[3], ctx.backend)
        return d_projected_TBZ, d_h0_BH, d_c0_BH, d_weight_ZH, None, None, None, d_gain_Z, None, None


def forward_lstm(
    projected_TBZ: Tensor,
    h0_BH: Tensor,
    c0_BH: Tensor,
    weight_ZH: Tensor,
    keep_TB: Tensor | None,
    zoneout_TBH: Tensor | None,
    cell_zoneout_TBH: Tensor | None,
    norm_gain_Z: Tensor | None,
    save: bool,
) -> tuple[Tensor, Tensor, Tensor | None, Tensor | None]:
    """The kernel `forward_lstm` of the backend eager, as `lmtrain.ops.backends` describes it."""
    T, (B, H) = len(projected_TBZ), h0_BH.shape
    states_TBH = projected_TBZ.new_empty(T, B, H)
    cells_TBH = c0_BH.new_empty(T, B, H) if save else None
    gates_TBZ = c0_BH.new_empty(T if save else 1, B, 4 * H).expand(T, -1, -1)
    h_BH, c_BH = h0_BH, c0_BH
    for t in range(T):
        h_BH, c_BH = kept(h_BH, keep_TB, t), kept(c_BH, keep_TB, t)
        a_BZ = add_recurrent_term(projected_TBZ[t], h_BH, weight_ZH, norm_gain_Z, out=gates_TBZ[t])
        a_BZ[:, : 2 * H].sigmoid_(), a_BZ[:, 2 * H : 3 * H].tanh_(), a_BZ[:, 3 * H :].sigmoid_()
        i_BH, f_BH, g_BH, o_BH = a_BZ.unflatten(1, (4, H)).unbind(1)
        new_c_BH = (f_BH * c_BH).addcmul_(i_BH, g_BH)
        new_h_BH = new_c_BH.tanh().mul_(o_BH)
        c_BH = zoned_out(new_c_BH, c_BH, cell_zoneout_TBH, t)
        h_BH = states_TBH[t].copy_(zoned_out(new_h_BH, h_BH, zoneout_TBH, t))
        if cells_TBH is not None:
            cells_TBH[t] = c_BH
    return states_TBH, c_BH, cells_TBH, gates_TBZ.to(projected_TBZ.dtype) if save else None


def backward_lstm(
    d_states_TBH: Tensor,
    d_c_BH: Tensor,
    states_TBH: Tensor,
    cells_TBH: Tensor,
    gates_TBZ: Tensor,
    h0_BH: Tensor,
    c0_BH: Tensor,
    weight_ZH: Tensor,
    keep_TB: Tensor | None,
    zoneout_TBH: Tensor | None,
    cell_zoneout_TBH: Tensor | None,
    norm: Norm | None,
) -> tuple[Tensor, Tensor, Tensor]:
    """The kernel `backward_lstm` of the backend eager: local derivatives of all steps at once, then the chain."""
    H = h0_BH.shape[-1]
    i_TBH, f_TBH, g_TBH, o_TBH = gates_TBZ.to(cells_TBH.dtype).unflatten(-1, (4, H)).unbind(-2)
    previous_c_TBH = previous_states(c0_BH, cells_TBH, keep_TB)
    new_c_TBH = cells_TBH if cell_zoneout_TBH is None else torch.addcmul(f_TBH * previous_c_TBH, i_TBH, g_TBH)
    y_TBH = new_c_TBH.tanh()
    d_c_by_d_h_TBH = o_TBH * (1 - y_TBH.square())
    local_TB4H = torch.stack(
        [
            g_TBH * i_TBH * (1 - i_TBH),
            previous_c_TBH * f_TBH * (1 - f_TBH),
            i_TBH * (1 - g_TBH.square()),
            y_TBH * o_TBH * (1 - o_TBH),
        ],
        dim=2,
    )
    if zoneout_TBH is not None:
        d_c_by_d_h_TBH *= 1 - zoneout_TBH
        local_TB4H[:, :, 3] *= 1 - zoneout_TBH
    d_projected_TBZ = torch.empty_like(gates_TBZ)
    d_h_BH = torch.zeros_like(c0_BH)
    for t in reversed(range(len(states_TBH))):
        d_h_BH = d_h_BH + d_states_TBH[t]
        d_new_c_BH = d_c_BH if cell_zoneout_TBH is None else d_c_BH * (1 - cell_zoneout_TBH[t])
        d_new_c_BH = torch.addcmul(d_new_c_BH, d_h_BH, d_c_by_d_h_TBH[t])
        d_a_B4H = d_projected_TBZ[t].unflatten(-1, (4, H))
        torch.mul(local_TB4H[t, :, :3], d_new_c_BH[:, None], out=d_a_B4H[:, :3])
        torch.mul(local_TB4H[t, :, 3], d_h_BH, out=d_a_B4H[:, 3])
        d_c_BH = add_direct(d_new_c_BH * f_TBH[t], d_c_BH, cell_zoneout_TBH, t)
        d_h_BH = add_direct(backward_term(d_projected_TBZ[t], weight_ZH, norm, t), d_h_BH, zoneout_TBH, t)
        d_h_BH, d_c_BH = kept(d_h_BH, keep_TB, t), kept(d_c_BH, keep_TB, t)
    return d_projected_TBZ, d_h_BH.to(states_TBH.dtype), d_c_BH
