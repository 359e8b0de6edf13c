"""Drawing a token: the native kernel against the definition, and what neither may draw."""

import math

import pytest
import torch
from torch import Tensor

from lmtrain.ops import native
from lmtrain.ops.backends import Call, why_not
from lmtrain.ops.draw import draw_token, reference_draw

SIZES = [1, 2, 15, 17, 255, 256, 257, 1000, 5003]
UNIFORMS = [0.0, 1e-9, 0.1, 0.25, 0.5, 0.77, 0.9999, 1 - 2**-53]


def native_draw(log_probs_V: Tensor, uniform: float, temperature: float = 1.0, excluded: int | None = None) -> int:
    if reason := why_not("native", Call("draw", "cpu", torch.float32, {})):
        pytest.skip(reason)
    return native.forward_draw()(log_probs_V[None], [uniform], temperature, excluded)[0]


def cumulated(log_probs_V: Tensor, temperature: float, excluded: int | None) -> Tensor:
    log_probs_V = log_probs_V.double() / temperature
    if excluded is not None:
        log_probs_V[excluded] = -math.inf
    return log_probs_V.softmax(-1).cumsum(-1)


@pytest.mark.parametrize("isa", ["native", "avx2", pytest.param("portable", marks=pytest.mark.slow)])
@pytest.mark.parametrize("size", SIZES)
def test_both_pick_the_token_where_the_cumulated_probability_passes_the_number(
    size: int, isa: str, generator: torch.Generator, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LMTRAIN_NATIVE_ISA", isa)
    log_probs_V = (3 * torch.randn(size, generator=generator)).log_softmax(-1)
    for temperature, excluded in [(1.0, None), (0.7, None), (2.0, 0), (1.0, size // 2)]:
        if size == 1 and excluded is not None:
            continue
        edges_V = cumulated(log_probs_V, temperature, excluded)
        for uniform in [*UNIFORMS, *torch.rand(50, generator=generator, dtype=torch.float64).tolist()]:
            for draw in (native_draw, reference_draw):
                token = draw(log_probs_V, uniform, temperature, excluded)
                below = edges_V[token - 1].item() if token else 0.0
                assert below - 1e-6 <= uniform <= edges_V[token].item() + 1e-6
                assert token != excluded


def test_a_token_of_probability_zero_is_never_drawn() -> None:
    log_probs_V = torch.tensor([-math.inf, math.log(0.5), -math.inf, math.log(0.5), -math.inf])
    for draw in (native_draw, reference_draw):
        assert {draw(log_probs_V, uniform) for uniform in UNIFORMS} == {1, 3}
        assert {draw(log_probs_V, uniform, 1.0, 3) for uniform in UNIFORMS} == {1}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_tiny_temperatures_take_the_likeliest_and_huge_ones_any(dtype: torch.dtype) -> None:
    log_probs_V = torch.tensor([0.3, 0.4, 0.0, 0.3], dtype=dtype).log()
    for temperature in (5e-324, 1e-300, 1e-12):
        assert {draw_token(log_probs_V, uniform, temperature=temperature) for uniform in UNIFORMS} == {1}
    assert [draw_token(log_probs_V, u, temperature=1e308) for u in (0.1, 0.5, 0.9)] == [0, 1, 3]


def test_what_is_left_is_drawn_however_unlikely_it_was() -> None:
    log_probs_V = torch.tensor([0.0, -500.0, -500.0])
    assert [draw_token(log_probs_V, uniform, excluded=0) for uniform in (0.4, 0.6)] == [1, 2]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_no_probability_at_all_and_what_is_no_number_are_refused(dtype: torch.dtype) -> None:
    impossible = torch.full((300,), -math.inf, dtype=dtype)
    no_number = torch.zeros(300, dtype=dtype)
    no_number[17] = math.nan
    for log_probs_V in (impossible, no_number, torch.full((3,), math.nan, dtype=dtype)):
        with pytest.raises(ValueError, match="no token has a probability"):
            draw_token(log_probs_V, 0.5)
    with pytest.raises(ValueError, match="no token has a probability"):
        draw_token(torch.tensor([-math.inf, 0.0], dtype=dtype), 0.5, excluded=1)
