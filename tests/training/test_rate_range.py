import json
import math
import xml.etree.ElementTree as ElementTree
from collections.abc import Callable
from pathlib import Path
from random import Random

import pytest

from lmtrain.training.rate_range import Curve, draw_svg, read_curve, smooth, suggest

# Falls until 0.01, steepest around 0.001, then rises.
CURVE = [(10 ** (-5 + i / 10), 5 - 2 / (1 + math.exp(-(i - 20) / 3)) + max(0, i - 30) * 0.4) for i in range(45)]


def curve(loss: Callable[[float], float], num_points: int, seed: int) -> Curve:
    """A curve of rates from 1e-5 to 1 with the noise of batches; `loss` is a function of the share of the run."""
    random = Random(seed)
    shares = [i / (num_points - 1) for i in range(num_points)]
    return [(10 ** (-5 + 5 * share), loss(share) + random.gauss(0, 0.1)) for share in shares]


def explosion(share: float) -> float:
    return max(0.0, share - 0.9) * 60


def test_the_suggested_rates_are_where_the_loss_falls_fastest_and_where_it_is_lowest() -> None:
    assert (rates := suggest(CURVE)) is not None
    assert 5e-4 < rates[0] < 2e-3  # the true place is 1e-3
    assert 5e-3 < rates[1] < 2e-2


@pytest.mark.parametrize("num_points", [20, 60, 140, 300])
def test_the_noise_of_batches_is_no_fall(num_points: int) -> None:
    for loss in (lambda share: 3.0, lambda share: 3 + explosion(share)):
        assert sum(suggest(curve(loss, num_points, seed)) is not None for seed in range(50)) <= 1


@pytest.mark.parametrize("num_points", [10, 50, 300])
def test_batches_each_of_which_is_like_the_one_before_are_no_fall(num_points: int) -> None:
    found = 0
    for seed in range(200):
        points, alike = curve(lambda share: 3.0, num_points, seed), 0.0
        for index, (rate, nats) in enumerate(points):
            alike = 0.7 * alike + nats - 3
            points[index] = rate, 3 + alike
        found += suggest(points) is not None
    assert found <= 6


def test_of_a_test_that_began_again_the_longest_part_counts(tmp_path: Path) -> None:
    again = [*CURVE[:30], *CURVE, *CURVE[5:25]]
    assert suggest(again) == suggest(CURVE) is not None
    records = [{"optim/learning_rate": rate, "train/nats_per_token": nats} for rate, nats in again]
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    assert read_curve(tmp_path / "metrics.jsonl") == CURVE
    assert suggest([(0.1, 5 - index) for index in range(30)]) is None, "one rate"
    assert suggest([]) is None


@pytest.mark.parametrize("num_points", [60, 140, 300])
def test_a_dip_before_the_explosion_is_found_in_noise(num_points: int) -> None:
    for seed in range(50):
        found = suggest(curve(lambda x: 3 - 1 / (1 + math.exp(-30 * (x - 0.5))) + explosion(x), num_points, seed))
        assert found is not None
        assert 10**-2.5 / 2 < found[0] < 10**-2.5 * 2
        assert 10**-2 < found[1] < 10**-0.4


@pytest.mark.parametrize("num_points", [10, 20, 60, 140, 300])
def test_a_loss_that_falls_to_the_end_is_lowest_there(num_points: int) -> None:
    for seed in range(50):
        found = suggest(curve(lambda share: 6 - 4 * share, num_points, seed))
        assert found is not None
        assert found[0] <= found[1] > 0.1


def test_smoothing_keeps_a_constant_and_a_straight_line() -> None:
    assert smooth([(1.0, 3.0), (2.0, 3.0), (4.0, 3.0)]) == [(1.0, 3.0), (2.0, 3.0), (4.0, 3.0)]
    line = [(2.0**i, float(i)) for i in range(60)]
    assert smooth(line)[3:-3] == line[3:-3], "a window has as many points on both sides"
    assert smooth(line)[0] == (1.0, 1.5), "where there are none, it is shorter"


def test_the_drawing_is_xml_with_both_lines_inside_the_frame() -> None:
    root = ElementTree.fromstring(draw_svg(CURVE))
    lines = root.findall("{http://www.w3.org/2000/svg}polyline")
    assert len(lines) == 2
    for line in lines:
        points = [tuple(map(float, point.split(","))) for point in line.attrib["points"].split()]
        assert len(points) == len(CURVE)
        assert all(60 <= x <= 660 and 60 <= y <= 360 for x, y in points)


def test_records_without_a_rate_are_passed_over(tmp_path) -> None:
    records = [
        {"step": 1, "optim/learning_rate": 0.1, "train/nats_per_token": 2.0},
        {"step": 1, "val/perplexity": 3.0},
        {"step": 2, "optim/learning_rate": 0.2, "train/nats_per_token": None},
    ]
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    assert read_curve(tmp_path / "metrics.jsonl") == [(0.1, 2.0)]
