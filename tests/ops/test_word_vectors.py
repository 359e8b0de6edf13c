"""The losses of word vectors: gradients by hand against the definitions and central differences, on odd sizes."""

from collections.abc import Callable
from functools import partial

import pytest
import torch
from torch import Generator, Tensor
from torch.autograd import gradcheck, gradgradcheck
from torch.testing import assert_close

from lmtrain.ops.glove import glove_loss, glove_loss_reference
from lmtrain.ops.negative_sampling import negative_sampling, negative_sampling_reference

SIZES = [(1, 1, 1, 1, 1), (3, 2, 5, 1, 2), (17, 35, 3, 4, 5), (130, 257, 33, 10, 15)]


def predictions(N: int, V: int, E: int, C: int, K: int, generator: Generator) -> tuple[list[Tensor], list[Tensor]]:
    """Vectors, and ids: some contexts are missing, some noise words are the target, words occur more than once."""
    draw = partial(torch.randn, generator=generator, dtype=torch.float64)
    contexts_NC = torch.randint(V, (N, C), generator=generator)
    contexts_NC[:, 1:][torch.rand(N, C - 1, generator=generator) < 0.4] = -1
    targets_N, samples_NK = torch.randint(V, (N,), generator=generator), torch.randint(V, (N, K), generator=generator)
    samples_NK[::3, 0] = targets_N[::3]
    return [draw(V, E), draw(V, E)], [contexts_NC, targets_N, samples_NK]


def pairs(N: int, V: int, E: int, generator: Generator) -> tuple[list[Tensor], list[Tensor]]:
    """Vectors and biases; words, contexts and counts below and above x_max."""
    draw = partial(torch.randn, generator=generator, dtype=torch.float64)
    ids = [torch.randint(V, (N,), generator=generator) for _ in range(2)]
    return [draw(V, E), draw(V, E), draw(V), draw(V)], [
        *ids,
        200 * torch.rand(N, generator=generator, dtype=torch.float64) + 0.1,
    ]


def check(function: Callable[..., Tensor], reference: Callable[..., Tensor], leaves: list[Tensor], rest: list[Tensor]) -> None:
    """Loss and gradients against the definition in float64; the same in float32, as near as the definition's own."""
    exact: list[Tensor] = []
    for dtype in (torch.float64, torch.float32):
        inputs = [leaf.to(dtype).requires_grad_() for leaf in leaves]
        others = [x.to(dtype) if x.is_floating_point() else x for x in rest]
        made, own = (
            [total, *torch.autograd.grad(total / 2, inputs)] for total in (f(*inputs, *others) for f in (function, reference))
        )
        exact = exact or own
        for y, y_own, y_exact in zip(made, own, exact, strict=True):
            assert y.dtype == dtype
            scale = y_exact.abs().max()
            error, own_error = ((x.double() - y_exact).abs().max() / scale for x in (y, y_own))
            assert error <= max(1e-13 if dtype == torch.float64 else 2e-6, 2 * own_error)


@pytest.mark.parametrize(("N", "V", "E", "C", "K"), SIZES)
def test_negative_sampling_and_its_gradients_are_those_of_the_definition(
    N: int, V: int, E: int, C: int, K: int, generator: Generator
) -> None:
    check(negative_sampling, negative_sampling_reference, *predictions(N, V, E, C, K, generator))


@pytest.mark.parametrize(("N", "V", "E"), [size[:3] for size in SIZES])
def test_glove_and_its_gradients_are_those_of_the_definition(N: int, V: int, E: int, generator: Generator) -> None:
    reference = partial(glove_loss_reference, x_max=100.0, power=0.75)
    check(glove_loss, reference, *pairs(N, V, E, generator))


def test_derivatives_equal_central_differences(generator: Generator) -> None:
    for function, (leaves, rest) in (
        (negative_sampling, predictions(4, 5, 2, 3, 2, generator)),
        (partial(glove_loss, x_max=50.0, power=0.5), pairs(4, 3, 2, generator)),
    ):  # fmt: skip
        inputs = [leaf.requires_grad_() for leaf in leaves]
        assert gradcheck(lambda *xs, f=function, r=rest: f(*xs, *r), inputs)
        assert gradgradcheck(lambda *xs, f=function, r=rest: f(*xs, *r), inputs)


def test_the_loss_is_what_the_paper_says_for_one_pair() -> None:
    input_VE, output_VE = torch.tensor([[1.0, 2.0], [0.0, 0.0]]), torch.tensor([[0.5, 0.5], [1.0, -1.0]])
    total = negative_sampling(input_VE, output_VE, torch.tensor([[0]]), torch.tensor([0]), torch.tensor([[1, 1]]))
    sigmoid = lambda x: 1 / (1 + torch.tensor(-x).exp())  # noqa: E731
    assert_close(total, -sigmoid(1.5).log() - 2 * sigmoid(1.0).log())
    total = glove_loss(input_VE, output_VE, torch.zeros(2), torch.zeros(2), torch.tensor([0]), torch.tensor([1]),
                       torch.tensor([16.0]), x_max=100.0, power=0.5)  # fmt: skip
    assert_close(total, 0.4 * (-1 - torch.tensor(16.0).log()) ** 2)


def test_a_noise_word_that_is_the_target_counts_nothing(generator: Generator) -> None:
    (input_VE, output_VE), (contexts_NC, targets_N, _) = predictions(5, 7, 3, 2, 1, generator)
    without = negative_sampling_reference(input_VE, output_VE, contexts_NC, targets_N, targets_N[:, None])
    positive_N = torch.nn.functional.logsigmoid(
        torch.stack([input_VE[c[c >= 0]].mean(0) @ output_VE[t] for c, t in zip(contexts_NC, targets_N, strict=True)])
    )
    assert_close(without, -positive_N.sum())


def test_huge_scores_have_finite_losses_and_gradients() -> None:
    input_VE = torch.full((2, 1), 1e3, requires_grad=True)
    total = negative_sampling(input_VE, -input_VE.detach(), torch.tensor([[0]]), torch.tensor([0]), torch.tensor([[1]]))
    total.backward()
    assert_close(total.item(), 1e6)
    assert torch.isfinite(input_VE.grad).all()  # type: ignore[arg-type]


def test_shapes_and_types_that_do_not_fit_are_named(generator: Generator) -> None:
    leaves, rest = predictions(4, 6, 3, 2, 2, generator)
    with pytest.raises(ValueError, match=r"samples_NK has shape \(3, 2\)"):
        negative_sampling(*leaves, *rest[:2], rest[2][:3])
    with pytest.raises(ValueError, match="input_VE is bfloat16"):
        negative_sampling(leaves[0].bfloat16(), leaves[1].bfloat16(), *rest)
    leaves, rest = pairs(4, 6, 3, generator)
    with pytest.raises(ValueError, match=r"context_bias_V has shape \(5,\)"):
        glove_loss(*leaves[:3], leaves[3][:5], *rest)
