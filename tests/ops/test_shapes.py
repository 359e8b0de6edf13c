"""The words of `check_shape`."""

import doctest

import pytest
import torch

from lmtrain.ops import shapes
from lmtrain.ops.shapes import check_dtype, check_shape


def test_letters_are_bound_and_returned() -> None:
    assert check_shape("x", torch.zeros(3, 2, 20), "T B 4H") == {"T": 3, "B": 2, "H": 5}


def test_sizes_are_added_to_in_place() -> None:
    sizes = check_shape("h", torch.zeros(2, 5), "B H")
    check_shape("x", torch.zeros(3, 2, 20), "T B 4H", sizes)
    assert sizes == {"B": 2, "H": 5, "T": 3}


def test_a_wrong_size_says_who_said_the_right_one() -> None:
    sizes = check_shape("h0_BH", torch.zeros(20, 650), "B H")
    with pytest.raises(
        ValueError, match=r"^weight_ZH has shape \(2600, 640\); expected \(4H, H\) = \(2600, 650\), because h0_BH says H=650\.$"
    ):
        check_shape("weight_ZH", torch.zeros(2600, 640), "4H H", sizes)


def test_sizes_said_by_two_tensors_name_both() -> None:
    sizes = check_shape("h", torch.zeros(2, 5), "B H")
    check_shape("tokens", torch.zeros(3, 2), "T B", sizes)
    with pytest.raises(ValueError, match=r"because tokens says T=3 and h says B=2\.$"):
        check_shape("keep", torch.zeros(3, 1), "T B", sizes)


def test_a_refused_tensor_binds_nothing() -> None:
    sizes = check_shape("h", torch.zeros(2, 5), "B H")
    with pytest.raises(ValueError, match="has shape"):
        check_shape("x", torch.zeros(3, 9), "T B", sizes)
    assert sizes == {"B": 2, "H": 5}


def test_a_wrong_number_of_dimensions_is_said() -> None:
    with pytest.raises(ValueError, match=r"^x has shape \(3, 4\); expected 3 dimensions, \(T, B, 4H\)\.$"):
        check_shape("x", torch.zeros(3, 4), "T B 4H")


@pytest.mark.parametrize(("shape", "letters"), [((3, 4), "H H"), ((5,), "2H"), ((2, 3), "2 2")])
def test_a_shape_that_contradicts_itself_is_refused(shape: tuple[int, ...], letters: str) -> None:
    with pytest.raises(ValueError, match="expected"):
        check_shape("x", torch.zeros(shape), letters)


def test_a_size_of_zero_is_refused() -> None:
    with pytest.raises(ValueError, match=r"^x has shape \(0, 4\); every size of \(T, H\) must be at least 1\.$"):
        check_shape("x", torch.zeros(0, 4), "T H")


def test_a_type_that_is_not_allowed_is_named_with_those_that_are() -> None:
    check_dtype("x", torch.float32, torch.float32)
    with pytest.raises(ValueError, match=r"^x is int64; expected float32 or bfloat16\.$"):
        check_dtype("x", torch.int64, torch.float32, torch.bfloat16)


def test_the_example_of_the_docstring_runs() -> None:
    results = doctest.testmod(shapes)
    assert results.attempted > 0
    assert results.failed == 0
