"""The look-up with a backward pass of its own, against PyTorch's."""

import pytest
import torch
from torch.autograd import gradcheck, gradgradcheck
from torch.nn.functional import embedding
from torch.testing import assert_close

from lmtrain.ops.lookup import lookup


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize(("T", "B", "V", "Z"), [(1, 1, 1, 1), (3, 2, 1, 5), (2, 17, 35, 3), (35, 3, 7, 130)])
def test_rows_and_their_gradient_are_those_of_an_embedding(
    T: int, B: int, V: int, Z: int, dtype: torch.dtype, generator: torch.Generator
) -> None:
    table_VZ = torch.randn(V, Z, generator=generator, dtype=dtype, requires_grad=True)
    ids_TB = torch.randint(V, (T, B), generator=generator)
    d_TBZ = torch.randn(T, B, Z, generator=generator, dtype=dtype)
    y_TBZ = lookup(table_VZ, ids_TB)
    expected_TBZ = embedding(ids_TB, table_VZ)
    assert torch.equal(y_TBZ, expected_TBZ)
    for made, expected in zip(*(torch.autograd.grad(y, table_VZ, d_TBZ) for y in (y_TBZ, expected_TBZ)), strict=True):
        tolerance = 1e-12 if dtype is torch.float64 else 1e-5
        assert_close(made, expected, rtol=tolerance, atol=tolerance)


def test_derivatives_equal_central_differences(generator: torch.Generator) -> None:
    table_VZ = torch.randn(4, 2, generator=generator, dtype=torch.float64, requires_grad=True)
    ids_TB = torch.randint(4, (3, 2), generator=generator)
    assert gradcheck(lambda table: lookup(table, ids_TB), (table_VZ,))
    assert gradgradcheck(lambda table: lookup(table, ids_TB).square(), (table_VZ,))


def test_bfloat16_gradients_of_a_row_taken_a_thousand_times_are_rounded_once(generator: torch.Generator) -> None:
    table_VZ = torch.zeros(2, 3, dtype=torch.bfloat16, requires_grad=True)
    d_TBZ = torch.rand(1000, 1, 3, generator=generator).bfloat16()
    lookup(table_VZ, torch.ones(1000, 1, dtype=torch.long)).backward(d_TBZ)
    assert_close(table_VZ.grad[1].double(), d_TBZ.double().sum((0, 1)), rtol=2**-8, atol=0)
    assert not table_VZ.grad[0].any()


def test_an_id_outside_the_table_is_refused() -> None:
    with pytest.raises(IndexError):
        lookup(torch.zeros(2, 3), torch.tensor([[2]]))
