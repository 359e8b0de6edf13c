"""The output layer and its loss in one function: the sum over n of -log softmax(features_n W^T + b)[target_n], in nats.

With logits z_nv and p = softmax(z), the gradient of the sum is known as soon as a row's logits are:

    d_z = p - onehot(target)      d_features = d_z W      d_W = d_z^T features      d_b = sum over n of d_z

so the forward pass takes the rows in chunks, makes the gradients of each chunk while its logits are in cache, and forgets
them: N x V numbers are never kept (the idea is Liger Kernel's, arXiv 2410.10989). The backward pass only multiplies by the
upstream gradient, in place: the gradients are spent by it, and a second backward pass makes them again. The native kernel makes
those of the mean over the rows, which costs it nothing; where the mean is asked for, nothing is left to multiply.

Products in the compute type; softmax, sums and gradients in float32 (float64 for float64); the sum of losses in float64.

    legend   N rows (tokens) · V vocabulary · D features       S compute type · A accumulating type, as in lmtrain.ops.backends

The kernel of a backend, called without gradients:

    forward_linear_cross_entropy(features_ND S, weight_VD S or A, bias_V A | None, targets_N int64, max_bytes, wanted)
        -> total A, d_features_ND A | None, d_weight_VD A | None, d_bias_V A | None

That of native has one argument more, `items`: its gradients are those of total / items. `wanted` are three truth values: which
gradients will be asked for. Working memory beyond results and a copy of the weight in type S stays below max_bytes, but one
row is always taken.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from lmtrain.ops.backends import Call, choose, kernels, why_not
from lmtrain.ops.recurrence import accumulate_dtype, reference_gradients
from lmtrain.ops.shapes import check_dtype, check_shape
from lmtrain.ops.transforms import Looped, call, follow, is_followed, is_for_reference, matmul, needs_grad, without_autocast

Wanted = tuple[bool, bool, bool]

MAX_BYTES = {"cuda": 1 << 30}
CACHED_ROWS = 256  # rows per chunk on a CPU: logits of a 17k vocabulary then stay in the last-level cache


def linear_cross_entropy(
    features_ND: Tensor,
    weight_VD: Tensor,
    bias_V: Tensor | None,
    targets_N: Tensor,
    *,
    compute_dtype: torch.dtype | None = None,
    max_bytes: int | None = None,
    backend: str = "auto",
) -> Tensor:
    """Total cross entropy of the targets in nats: a scalar, float32 (float64 where the computation is float64).

    features_ND    what the body of the model hands to the output layer
    weight_VD      output weight, possibly tied to the embedding; gradients are added up by autograd
    bias_V         or None
    targets_N      int64 token ids
    compute_dtype  type of the products: bfloat16, float32 or float64; default is that of the features
    max_bytes      bound on working memory, whatever N and V are; default 64 MB, on a GPU 1 GB: there, few chunks are fast
    backend        see `lmtrain.ops.backends`

    Raises ValueError for shapes and types that do not fit, IndexError for a target outside the vocabulary (on a CPU; a GPU
    reports it itself, later), UserError for a backend that cannot serve the call.
    """
    sizes = check_shape("features_ND", features_ND, "N D")
    check_shape("weight_VD", weight_VD, "V D", sizes)
    check_shape("targets_N", targets_N, "N", sizes)
    check_dtype("targets_N", targets_N.dtype, torch.int64)
    if bias_V is not None:
        check_shape("bias_V", bias_V, "V", sizes)
    dtype = compute_dtype or features_ND.dtype
    check_dtype("the computation", dtype, torch.float32, torch.float64, torch.bfloat16)
    follows = follow(features_ND, weight_VD, bias_V, targets_N)
    backend = choose(backend, Call("linear_cross_entropy", features_ND.device.type, dtype, sizes, follows=follows))
    with without_autocast(features_ND.device):
        if backend == "reference":
            _check_targets(targets_N, sizes["V"])
            return linear_cross_entropy_reference(features_ND, weight_VD, bias_V, targets_N, dtype)
        inputs = features_ND, weight_VD, bias_V
        wanted = tuple(x is not None and needs_grad(x) for x in inputs)
        max_bytes = MAX_BYTES.get(features_ND.device.type, 64 << 20) if max_bytes is None else max_bytes
        total, *_ = call(LinearCrossEntropyFunction, *inputs, targets_N, dtype, max_bytes, backend, wanted)
        return total


@torch.no_grad()
def linear_nats(
    features_ND: Tensor,
    weight_VD: Tensor,
    bias_V: Tensor | None,
    targets_N: Tensor,
    *,
    compute_dtype: torch.dtype | None = None,
    max_bytes: int | None = None,
) -> Tensor:
    """What each target adds to that total, [N], without gradients; arguments, types and errors are the same."""
    sizes = check_shape("targets_N", targets_N, "N", check_shape("features_ND", features_ND, "N D"))
    check_shape("weight_VD", weight_VD, "V D", sizes)
    if bias_V is not None:
        check_shape("bias_V", bias_V, "V", sizes)
    dtype, device = compute_dtype or features_ND.dtype, features_ND.device.type
    features_ND, wide_dtype = features_ND.to(dtype), accumulate_dtype(dtype)
    bias_V = None if bias_V is None else bias_V.to(wide_dtype)
    max_bytes = MAX_BYTES.get(device, 64 << 20) if max_bytes is None else max_bytes
    _check_targets(targets_N, sizes["V"])
    with without_autocast(features_ND.device):
        follows = follow(features_ND, weight_VD, bias_V, targets_N)
        if why_not("native", Call("linear_nats", device, dtype, sizes, follows=follows)) is None:
            made: Tensor = kernels("native", "linear_nats").forward_linear_nats(
                features_ND,
                weight_VD if weight_VD.dtype == torch.float32 else weight_VD.to(dtype),
                bias_V,
                targets_N,
                max_bytes,
            )
            return made
        weight_VD, parts = weight_VD.to(dtype), []
        for rows in _chunks(features_ND, sizes["V"], max_bytes):
            logits_RV = matmul(features_ND[rows], weight_VD.T).to(wide_dtype)
            if bias_V is not None:
                logits_RV += bias_V
            parts.append(logits_RV.logsumexp(1) - logits_RV.gather(1, targets_N[rows, None])[:, 0])
    return torch.cat(parts)


def linear_cross_entropy_reference(
    features_ND: Tensor, weight_VD: Tensor, bias_V: Tensor | None, targets_N: Tensor, compute_dtype: torch.dtype
) -> Tensor:
    """The definition, in plain differentiable PyTorch."""
    logits_NV = matmul(features_ND.to(compute_dtype), weight_VD.to(compute_dtype).T)
    logits_NV = logits_NV.to(accumulate_dtype(compute_dtype))
    if bias_V is not None:
        logits_NV = logits_NV + bias_V
    return cross_entropy(logits_NV, targets_N, reduction="sum")


class LinearCrossEntropyFunction(Looped):
    """`linear_cross_entropy_reference` with gradients made in the forward pass."""

    @staticmethod
    def forward(*arguments: Any) -> tuple[Tensor | None, ...]:
        return _run(*arguments)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor | None, ...]) -> None:
        *tensors, ctx.compute_dtype, ctx.max_bytes, ctx.backend, ctx.wanted = inputs
        _, *ctx.unspent = output
        ctx.mark_non_differentiable(*(gradient for gradient in ctx.unspent if gradient is not None))
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(*tensors)

    @staticmethod
    def backward(ctx: Any, *d_outputs: Tensor | None) -> tuple[Tensor | None, ...]:
        inputs, d_total = ctx.saved_tensors, d_outputs[0]
        if d_total is None:
            return (None,) * 8
        if is_for_reference(d_outputs):
            arguments = (*inputs, ctx.compute_dtype)
            needed = ctx.needs_input_grad[:5]
            return *reference_gradients(_reference_tuple, arguments, needed, (d_total,)), None, None, None
        gradients, ctx.unspent = ctx.unspent, None
        if gradients is None:
            arguments = (*inputs, ctx.compute_dtype, ctx.max_bytes, ctx.backend, ctx.wanted)
            _, *gradients = _run(*arguments)
        scaled = times_upstream(gradients, d_total, items_of(ctx.backend, len(inputs[0])))
        typed = (None if g is None else g.to(x.dtype) for g, x in zip(scaled, inputs, strict=False))
        return *typed, None, None, None, None, None


def forward_linear_cross_entropy(
    features_ND: Tensor, weight_VD: Tensor, bias_V: Tensor | None, targets_N: Tensor, max_bytes: int, wanted: Wanted
) -> tuple[Tensor, Tensor | None, Tensor | None, Tensor | None]:
    """The kernel of the backend eager: chunks of rows, six passes over their logits."""
    compute_dtype, wide_dtype = features_ND.dtype, accumulate_dtype(features_ND.dtype)
    weight_VD = weight_VD.to(compute_dtype)
    V = len(weight_VD)
    needs_features, needs_weight, needs_bias = wanted
    d_features_ND = torch.empty_like(features_ND, dtype=wide_dtype) if needs_features else None
    d_weight_VD = torch.zeros_like(weight_VD, dtype=wide_dtype) if needs_weight else None
    d_bias_V = torch.zeros(V, dtype=wide_dtype, device=weight_VD.device) if needs_bias else None
    total = torch.zeros((), dtype=torch.float64, device=features_ND.device)
    for rows in _chunks(features_ND, V, max_bytes):
        p_RV = matmul(features_ND[rows], weight_VD.T).to(wide_dtype)
        if bias_V is not None:
            p_RV += bias_V
        targets_R1 = targets_N[rows, None]
        target_logits_R1 = p_RV.gather(1, targets_R1)
        largest_R1 = p_RV.amax(1, keepdim=True)
        sums_R1 = p_RV.sub_(largest_R1).exp_().sum(1, keepdim=True)
        total += (sums_R1.log() + largest_R1 - target_logits_R1).sum(dtype=torch.float64)
        if not any(wanted):
            continue
        d_logits_RV = p_RV.div_(sums_R1).scatter_add_(1, targets_R1, p_RV.new_full(targets_R1.shape, -1.0))
        if d_bias_V is not None:
            d_bias_V += d_logits_RV.sum(0)
        d_logits_RV = d_logits_RV.to(compute_dtype)
        if d_features_ND is not None:
            d_features_ND[rows] = matmul(d_logits_RV, weight_VD)
        if d_weight_VD is not None:
            _add_product(d_weight_VD, d_logits_RV.T, features_ND[rows])
    return total.to(wide_dtype), d_features_ND, d_weight_VD, d_bias_V


def _run(
    features_ND: Tensor,
    weight_VD: Tensor,
    bias_V: Tensor | None,
    targets_N: Tensor,
    compute_dtype: torch.dtype,
    max_bytes: int,
    backend: str,
    wanted: Wanted,
) -> tuple[Tensor | None, ...]:
    """Brings the inputs to the kernel's types and calls it."""
    _check_targets(targets_N, len(weight_VD))
    wide_dtype = accumulate_dtype(compute_dtype)
    weight_VD = weight_VD.to(compute_dtype if weight_VD.dtype != wide_dtype else wide_dtype)
    bias_V = None if bias_V is None else bias_V.to(wide_dtype)
    kernel = kernels(backend, "linear_cross_entropy").forward_linear_cross_entropy
    items = items_of(backend, len(features_ND))
    made: tuple[Tensor | None, ...] = kernel(
        features_ND.to(compute_dtype), weight_VD, bias_V, targets_N, max_bytes, wanted, **{"items": items} if items > 1 else {}
    )
    return made


def items_of(backend: str, num_rows: int) -> int:
    """Over how many rows the gradients of this backend's kernel are means; 1 where they are those of the total."""
    return num_rows if backend == "native" else 1


def times_upstream(gradients: Iterable[Tensor | None], d_total: Tensor, items: int) -> Iterator[Tensor | None]:
    """Multiplies, in place, gradients of total / items by what makes them those of d_total * total."""
    factor = d_total * items if items > 1 else d_total
    is_mean = items > 1 and bool(d_total == torch.ones_like(d_total) / items)
    return (g if g is None or is_mean else g.mul_(factor) for g in gradients)


def _reference_tuple(*arguments: Any) -> tuple[Tensor]:
    return (linear_cross_entropy_reference(*arguments),)


def _check_targets(targets_N: Tensor, vocab_size: int) -> None:
    if targets_N.device.type != "cpu" or is_followed() or follow(targets_N):
        return
    least, most = (int(bound) for bound in targets_N.aminmax())
    if least < 0 or most >= vocab_size:
        raise IndexError(
            f"targets_N holds {least if least < 0 else most}; with V={vocab_size} they lie in 0 to {vocab_size - 1}."
        )


def _chunks(features_ND: Tensor, vocab_size: int, max_bytes: int) -> list[slice]:
    """Rows at a time, so that logits in both types fit into max_bytes, and on a CPU into its cache."""
    wide = features_ND.dtype != torch.bfloat16
    bytes_per_row = vocab_size * (2 * features_ND.element_size() if wide else 8)
    rows = max(1, max_bytes // bytes_per_row)
    if features_ND.device.type == "cpu":
        rows = min(rows, CACHED_ROWS)
    return [slice(first, first + rows) for first in range(0, len(features_ND), rows)]


def _add_product(sum_VD: Tensor, left_VR: Tensor, right_RD: Tensor) -> None:
    """sum += left @ right; where the types differ the product is rounded once to the narrower one before it is added."""
    if sum_VD.dtype == left_VR.dtype:
        sum_VD.addmm_(left_VR, right_RD)
    else:
        sum_VD += matmul(left_VR, right_RD)
