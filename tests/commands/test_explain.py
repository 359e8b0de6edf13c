"""`explain` and what `verify` shows besides its table, as they are typed."""

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest

from lmtrain.explain.through_time import FRESH, format_norms, fresh_norms

Call = Callable[..., Any]
EXAMPLE = ("explain", "(x + y) * max(y, z)", "x=1", "y=2", "z=0")


def test_the_example_is_explained(call: Call) -> None:
    ended = call(*EXAMPLE)
    assert ended.code == 0
    assert "f = 6\ndf/dx = 2\ndf/dy = 5\ndf/dz = 0\n" in ended.out
    assert "to y   local 1(y > z) = 1   downstream 3" in ended.out


def test_json_holds_value_gradients_and_nodes(call: Call) -> None:
    made = json.loads(call(*EXAMPLE, "--json").out)
    assert (made["value"], made["gradients"]) == (6, {"x": 2, "y": 5, "z": 0})
    nodes = {node["name"]: node for node in made["nodes"]}
    assert nodes["b"]["locals"] == [1, 0]
    assert nodes["b"]["downstream"] == [3, 0]
    assert (nodes["b"]["upstream"], nodes["b"]["rule"]) == (3, "max routes")


def test_a_drawing_is_written_whole_and_overwrites_nothing(call: Call, tmp_path: Path) -> None:
    file = tmp_path / "a graph.svg"
    assert call(*EXAMPLE, "--svg", str(file)).code == 0
    ElementTree.parse(file)
    before = file.read_bytes()
    again = call(*EXAMPLE, "--svg", str(file))
    assert (again.code, again.out) == (2, "")
    assert "is there already" in again.err
    assert file.read_bytes() == before
    below = call(*EXAMPLE, "--svg", str(file / "graph.svg"))
    assert (below.code, below.out) == (2, "")
    assert "graph.svg, which is no directory" in below.err
    assert [path.name for path in tmp_path.iterdir()] == ["a graph.svg"]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ((), "No expression was given"), (("x +", "x=1"), r"ends too early\.\n  x \+\n     \^\n"),
        (("x", "--svg", ""), "--svg is empty"), (("x", "--svg", "-"), "--svg is -"),
        (("x", "x=1", "--json", "--jacobian"), "--jacobian was given with --json"), (("x", "x=1", "--nudge", "nan"), "--nudge"),
        (("x", "x=1", "--element", "y"), "names no entry"), (("x", "x=1", "--elemnt", "x"), "Did you mean --element"),
        (("x", "y"), '"y" gives no value'), (("--x", "x=1"), "cannot be used"), (("softmax", "C=x"), "from 2 to 40"),
        (("lstms",), "Did you mean  explain lstm  "), (("LSTM", "hidden=3"), "Did you mean  explain lstm  "),
        (("sotfmax", "C=3", "y=1"), "Lessons are chain"), (("widow", "activation=tanh"), "explain window"),
        (("q", "x=1"), "q has no value"),
        (("exp(x)\x1b[2J", "x=1"), r"\\x1b"), (("+".join(["x"] * 300), "x=1", "--svg", "no.svg"), "A drawing holds 150"),
    ],
)  # fmt: skip
def test_a_mistake_is_one_paragraph_and_exit_code_2(
    arguments: tuple[str, ...], said: str, call: Call, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    ended = call("explain", *arguments)
    assert (ended.code, ended.out) == (2, "")
    assert re.search(said, ended.err), ended.err
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("expression", ["-x * 2", "-x", "-(x)", "---x", "-2 ** x"])
def test_an_expression_may_begin_with_a_minus(expression: str, call: Call) -> None:
    assert call("explain", expression, "x=1", "--nudge", "-0.01").code == 0


def test_every_option_has_its_section(call: Call) -> None:
    out = call("explain", "u @ sigmoid(W @ x + b)", "W=[[1,2],[3,4]]", "x=[1,0]", "b=[0,1]", "u=[1,1]", "--jacobian",
               "--element", "W[2,1]", "--nudge", "0.01", "--count").out  # fmt: skip
    for section in ("Jacobians", "The scalar derivation for W[2,1]", "Nudged by 0.01", "forward and backward together"):
        assert section in out


# ---- verify


def test_a_fresh_lstm_keeps_gradients_longer_the_larger_its_forget_bias_and_a_gru_loses_them_before_elman() -> None:
    norms = fresh_norms(35, hidden_size=50, num_streams=4)
    assert list(norms) == list(FRESH)
    at_35 = {name: values[35] for name, values in norms.items()}
    for values in norms.values():
        assert len(values) == 36
        assert values[0] == pytest.approx(1)
    assert at_35["LSTM, forget bias 0"] < 0.01 * at_35["LSTM, forget bias 1"]
    assert at_35["LSTM, forget bias 1"] < 0.5 * at_35["LSTM, forget bias 3"]
    assert at_35["GRU"] < 0.01 * at_35["Elman"]
    assert len(format_norms(norms).splitlines()) == 12


def test_by_h_alone_an_lstm_seems_to_lose_what_it_carries_in_c_and_large_inputs_saturate_elman(call: Call) -> None:
    small = {"hidden_size": 50, "num_streams": 4}
    for inputs in ("small", "normal"):
        whole, alone = (fresh_norms(35, **small, inputs=inputs, by_h_alone=is_alone) for is_alone in (False, True))
        assert list(alone) == [name for name in whole if name.startswith("LSTM")]
        assert all(alone[name][35] < 0.7 * whole[name][35] for name in alone)
        assert all(alone[name][0] == pytest.approx(1) for name in alone), "J_t reads h_t alone"
    assert whole["Elman"][35] < 0.5 * whole["GRU"][35], "with small inputs it is the other way round"
    ended = call("verify", "--through-time", "--inputs", "normal", "--lags", "2")
    assert "inputs standard normal." in ended.out
    assert ended.out.count("lag k") == 2
    ended = call("verify", "--through-time", "run", "--inputs", "normal")
    assert ended.code == 2
    assert "--inputs was given with a run" in ended.err


def test_gradients_through_time_of_a_run_are_shown_and_drawn(place: Path, call: Call) -> None:
    ended = call("verify", "--through-time", "run", "--lags", "5", "--svg", "norms.svg")
    assert ended.code == 0, ended.err
    assert re.search(r"(?m)^    5  +\d\.\de-\d\d  +\d\.\de-\d\d$", ended.out), ended.out
    ElementTree.parse(place / "norms.svg")
    assert call("verify", "--through-time", "run", "--svg", "norms.svg").code == 2


def test_a_run_whose_text_is_shorter_than_the_lags_is_refused(place: Path, call: Call) -> None:
    ended = call("verify", "--through-time", "run", "--lags", "1000")
    assert ended.code == 3
    assert "1000 lags need 1031" in ended.err


def test_a_model_without_such_a_state_is_refused(place: Path, call: Call) -> None:
    assert call("TRAIN", "model=window", "model.context=2", "hydra.run.dir=window").code == 0
    ended = call("verify", "--through-time", "window", "--lags", "3")
    assert ended.code == 2
    assert "no state that a gradient flows through" in ended.err


def test_what_goes_with_through_time_is_refused_without_it(call: Call) -> None:
    for arguments in (("--svg", "x.svg"), ("--lags", "3"), ("--inputs", "small"), ("--speed", "--svg", "x.svg")):
        ended = call("verify", *arguments)
        assert ended.code == 2
        assert "without --through-time" in ended.err
    assert call("verify", "--speed", "--through-time").code == 2


def test_one_product_is_faster_than_a_loop_and_the_same(call: Call) -> None:
    out = call("verify", "--speed").out
    assert "Both give the same scores: yes" in out
    assert re.search(r"one matrix product .* times as fast", out)
