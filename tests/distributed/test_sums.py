"""Gradients of several processes become their sum, whichever a process has or lacks, the same bits in all of them."""

import runpy
from pathlib import Path

import pytest
import torch

HERE = runpy.run_path(str(Path(__file__).with_name("starting.py")))
start, ended = HERE["start"], HERE["ended"]


@pytest.mark.parametrize("size", [2, pytest.param(3, marks=pytest.mark.slow)])
def test_sums_that_begin_within_the_backward_pass_have_the_same_bits(size: int) -> None:
    """Dense and sparse, missing here and there, missing everywhere, frozen for a while: a resumed run begins without them."""
    codes, said = ended(start(size, [], script="sums.py"))
    assert codes == [0] * size, said
    (early, late), *others = (torch.load(f"sums-{rank}.pt") for rank in range(size))
    assert len(early) > 100
    torch.testing.assert_close(early, late, rtol=0, atol=0)
    for other in others:
        torch.testing.assert_close(other, [early, late], rtol=0, atol=0)
