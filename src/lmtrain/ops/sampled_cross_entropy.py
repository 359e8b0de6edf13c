"""Cross entropy, in nats, of a softmax whose normaliser is estimated from samples that all rows share (Jean et al. 2015).

    s_nk = features_n w_k + b_k - log pi_k   for the distinct samples k, -inf where k is the row's target y_n
    s_n0 = features_n w_y + b_y              the target
    loss = sum over n of log(sum over j of exp s_nj) - s_n0

pi_k is the probability that k is among the samples: see `lmtrain.models.heads.SampledSoftmax`. With p = softmax(s), the
gradient of s is known in the forward pass already: p - 1 for the target, p elsewhere. So all gradients are computed there:

    d_features_n = (p_n0 - 1) w_y + sum over k of p_nk w_k      d_w_k = sum over n of p_nk features_n, and for k = y_n also
    d_b          = sums of d_s                                      (p_n0 - 1) features_n

Only the rows of samples and targets have gradients. A sparse gradient has these R = K + N rows, in which words may repeat; a
dense one adds them to a matrix of zeros. The backward pass multiplies by the upstream gradient in place, so a second backward
pass computes the gradients again.

Products with the samples are in the compute type; logits of targets, softmax, sums and gradients are in float32 (float64 for
float64).

    legend   N rows (tokens) · K samples · V vocabulary · D features · J = K + 1, the target first · R = K + N
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import embedding, pad

from lmtrain.ops.backends import Call, choose, kernels
from lmtrain.ops.linear_cross_entropy import items_of, times_upstream
from lmtrain.ops.lookup import sparse_rows
from lmtrain.ops.recurrence import accumulate_dtype, reference_gradients
from lmtrain.ops.shapes import check_dtype, check_shape
from lmtrain.ops.transforms import Looped, call, follow, is_for_reference, matmul, without_autocast

# Samples are filled up to a multiple of this number, with logits of -inf. The number of distinct samples changes from step to
# step, and oneDNN would compile its products again for every size.
PADDED_TO = 64


def sampled_cross_entropy(
    features_ND: Tensor,
    weight_VD: Tensor,
    bias_V: Tensor,
    targets_N: Tensor,
    samples_K: Tensor,
    log_expected_K: Tensor,
    *,
    compute_dtype: torch.dtype | None = None,
    sparse: bool = False,
    backend: str = "auto",
) -> Tensor:
    """Total estimated cross entropy of the targets in nats: a scalar, float32 (float64 where the computation is float64).

    features_ND     what the body of the model hands to the output layer
    weight_VD       output weight, possibly tied to the embedding
    bias_V          output bias
    targets_N       int64 token ids
    samples_K       distinct token ids, ascending, int64; at least one
    log_expected_K  log of the probability that each is among the samples
    compute_dtype   type of the products: bfloat16, float32 or float64; default is that of the features
    sparse          whether the weight's gradient is sparse, with the rows that were used
    backend         see `lmtrain.ops.backends`

    Raises ValueError for shapes and types that do not fit, IndexError for ids outside the vocabulary (on a CPU), UserError for
    a backend that cannot serve the call.
    """
    sizes = check_shape("features_ND", features_ND, "N D")
    check_shape("weight_VD", weight_VD, "V D", sizes)
    check_shape("bias_V", bias_V, "V", sizes)
    check_shape("targets_N", targets_N, "N", sizes)
    check_shape("samples_K", samples_K, "K", sizes)
    check_shape("log_expected_K", log_expected_K, "K", sizes)
    check_dtype("targets_N", targets_N.dtype, torch.int64)
    check_dtype("samples_K", samples_K.dtype, torch.int64)
    dtype = compute_dtype or features_ND.dtype
    check_dtype("the computation", dtype, torch.float32, torch.float64, torch.bfloat16)
    follows = follow(features_ND, weight_VD, bias_V, targets_N, samples_K, log_expected_K)
    backend = choose(backend, Call("sampled_cross_entropy", features_ND.device.type, dtype, sizes, follows=follows))
    inputs = features_ND, weight_VD, bias_V, targets_N, samples_K, log_expected_K, dtype
    with without_autocast(features_ND.device):
        if backend == "reference":
            return sampled_cross_entropy_reference(*inputs, sparse)
        total, *_ = call(SampledCrossEntropyFunction, *inputs, backend, sparse)
    return total


def sampled_cross_entropy_reference(
    features_ND: Tensor,
    weight_VD: Tensor,
    bias_V: Tensor,
    targets_N: Tensor,
    samples_K: Tensor,
    log_expected_K: Tensor,
    compute_dtype: torch.dtype,
    sparse: bool = False,
) -> Tensor:
    """The definition, in plain differentiable PyTorch."""
    wide_dtype = accumulate_dtype(compute_dtype)
    features_ND = features_ND.to(compute_dtype)
    sample_KD, target_ND = (embedding(rows, weight_VD, sparse=sparse) for rows in (samples_K, targets_N))
    logits_NK = matmul(features_ND, sample_KD.to(compute_dtype).T).to(wide_dtype)
    logits_NK = logits_NK + (bias_V[samples_K] - log_expected_K).to(wide_dtype)
    logits_NK = logits_NK.masked_fill(samples_K == targets_N[:, None], -math.inf)
    logits_N = (features_ND.to(wide_dtype) * target_ND.to(wide_dtype)).sum(-1) + bias_V[targets_N].to(wide_dtype)
    return (torch.cat([logits_N[:, None], logits_NK], dim=1).logsumexp(1) - logits_N).sum()


class SampledCrossEntropyFunction(Looped):
    """`sampled_cross_entropy_reference` with gradients computed in the forward pass; the backend comes before `sparse`."""

    @staticmethod
    def forward(*arguments_and_sparse: Any) -> tuple[Tensor, ...]:
        *arguments, _ = arguments_and_sparse
        return _run(*arguments)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        *tensors, ctx.compute_dtype, ctx.backend, ctx.sparse = inputs
        _, *ctx.unspent = output
        ctx.mark_non_differentiable(*ctx.unspent)
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(*tensors)

    @staticmethod
    def backward(ctx: Any, *d_outputs: Tensor | None) -> tuple[Tensor | None, ...]:
        inputs, d_total = ctx.saved_tensors, d_outputs[0]
        if d_total is None:
            return (None,) * 9
        if is_for_reference(d_outputs):
            arguments = (*inputs, ctx.compute_dtype)
            needed = (*ctx.needs_input_grad[:6], False)
            return *reference_gradients(_reference_tuple, arguments, needed, (d_total,)), None, None
        gradients, ctx.unspent = ctx.unspent, None
        if gradients is None:
            run_arguments = (*inputs, ctx.compute_dtype, ctx.backend)
            _, *gradients = _run(*run_arguments)
        features_ND, weight_VD, bias_V, targets_N, samples_K, _ = inputs
        scaled = times_upstream(gradients, d_total, items_of(ctx.backend, len(features_ND)))
        d_features_ND, d_rows_RD, d_bias_R = (gradient for gradient in scaled if gradient is not None)
        rows_R = torch.cat([samples_K, targets_N])
        d_weight_VD = _scattered(rows_R, d_rows_RD.to(weight_VD.dtype), weight_VD, ctx.sparse)
        d_bias_V = _scattered(rows_R, d_bias_R.to(bias_V.dtype), bias_V, sparse=False)
        return d_features_ND.to(features_ND.dtype), d_weight_VD, d_bias_V, *[None] * 6


def _run(
    features_ND: Tensor,
    weight_VD: Tensor,
    bias_V: Tensor,
    targets_N: Tensor,
    samples_K: Tensor,
    log_expected_K: Tensor,
    compute_dtype: torch.dtype,
    backend: str,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Returns the total, d_features_ND, and the gradients of the rows of samples and targets: weight [R, D] and bias [R].

    Gradients are those of the total / `items_of`, of which a kernel that makes such is told.
    """
    kernel = kernels(backend, "sampled_cross_entropy").forward_sampled_cross_entropy
    items = items_of(backend, len(targets_N))
    if backend == "native":  # which reads rows of the weight where they lie
        weight_VD, bias_V, log_expected_K = (x.float() for x in (weight_VD, bias_V, log_expected_K))
    made: tuple[Tensor, Tensor, Tensor, Tensor] = kernel(
        features_ND.to(compute_dtype), weight_VD, bias_V, targets_N, samples_K, log_expected_K,
        **{"items": items} if items > 1 else {},
    )  # fmt: skip
    return made


def forward_sampled_cross_entropy(
    features_ND: Tensor, weight_VD: Tensor, bias_V: Tensor, targets_N: Tensor, samples_K: Tensor, log_expected_K: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The kernel of the backend eager: the total, d_features_ND, and the gradients of the rows of samples and targets, weight
    [R, D] and bias [R], all in the type of sums. The features have the type of products."""
    compute_dtype, wide_dtype, num_samples = features_ND.dtype, accumulate_dtype(features_ND.dtype), len(samples_K)
    wide_ND = features_ND.to(wide_dtype)
    sample_KD, target_ND = (weight_VD.index_select(0, rows).to(wide_dtype) for rows in (samples_K, targets_N))
    own_N = torch.linalg.vecdot(wide_ND, target_ND) + bias_V[targets_N].to(wide_dtype)
    added_K = (bias_V[samples_K] - log_expected_K).to(wide_dtype)
    padding = -num_samples % PADDED_TO
    sample_KD = pad(sample_KD.to(compute_dtype), (0, 0, 0, padding))
    logits_NJ = own_N.new_empty(len(own_N), 1 + len(sample_KD))
    logits_NJ[:, 0] = own_N
    product_NK = matmul(features_ND, sample_KD.T)
    torch.add(product_NK, pad(added_K, (0, padding), value=-math.inf), out=logits_NJ[:, 1:])
    place_N = torch.searchsorted(samples_K, targets_N).clamp_(max=num_samples - 1)  # bisection looks at N numbers, not at N x K
    place_N1, is_left_out_N1 = place_N[:, None] + 1, (samples_K[place_N] == targets_N)[:, None]
    logits_NJ.scatter_(1, place_N1, logits_NJ.gather(1, place_N1).masked_fill_(is_left_out_N1, -math.inf))
    log_p_NJ = logits_NJ.log_softmax(1)
    total = -log_p_NJ[:, 0].sum(dtype=torch.float64).to(wide_dtype)
    d_logits_NJ = log_p_NJ.exp_()
    d_own_N = d_logits_NJ[:, 0].sub_(1)
    d_logits_NK = d_logits_NJ[:, 1:].to(compute_dtype)
    d_features_ND = matmul(d_logits_NK, sample_KD).to(wide_dtype)
    d_rows_RD = wide_ND.new_empty(num_samples + len(targets_N), wide_ND.shape[1])
    d_rows_RD[:num_samples] = matmul(d_logits_NK.T, features_ND)[:num_samples]
    torch.mul(wide_ND, d_own_N[:, None], out=d_rows_RD[num_samples:])
    d_bias_R = torch.cat([d_logits_NJ[:, 1 : num_samples + 1].sum(0), d_own_N])
    return total, d_features_ND.addcmul_(d_own_N[:, None], target_ND), d_rows_RD, d_bias_R


def _scattered(rows_R: Tensor, values: Tensor, like: Tensor, sparse: bool) -> Tensor:
    """Returns a tensor of the shape of `like` with these rows, and zeros elsewhere. Rows that occur twice are added."""
    if sparse:
        return sparse_rows(rows_R, values, like.shape)
    return torch.zeros_like(like).index_add_(0, rows_R, values)


def _reference_tuple(*arguments: Any) -> tuple[Tensor]:
    return (sampled_cross_entropy_reference(*arguments),)
