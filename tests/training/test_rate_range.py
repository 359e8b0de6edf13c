import json
import math
import xml.etree.ElementTree as ElementTree

from lmtrain.training.rate_range import draw_svg, read_curve, smooth, suggest

# Falls until 0.01, steepest around 0.001, then rises.
CURVE = [(10 ** (-5 + i / 10), 5 - 2 / (1 + math.exp(-(i - 20) / 3)) + max(0, i - 30) * 0.4) for i in range(45)]


def test_the_suggested_rates_are_where_the_loss_falls_fastest_and_where_it_is_lowest() -> None:
    steepest, lowest = suggest(CURVE)
    assert 5e-4 < steepest < 5e-3  # the true place is 1e-3; smoothing looks a little behind
    assert 5e-3 < lowest < 5e-2


def test_smoothing_keeps_a_constant_and_the_first_value() -> None:
    assert [round(nats, 12) for _, nats in smooth([(1.0, 3.0), (2.0, 3.0), (4.0, 3.0)])] == [3.0, 3.0, 3.0]
    assert smooth(CURVE)[0][1] == CURVE[0][1]


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
