"""`export --format onnx`: what onnxruntime computes, against the model."""

import json
import sys
from collections.abc import Callable
from pathlib import Path
from random import Random
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

import lmtrain
from lmtrain.models.mixture import Mixture

onnx = pytest.importorskip("onnx", reason="the package onnx is not installed")
pytest.importorskip("onnxruntime", reason="the package onnxruntime is not installed")

from lmtrain.export.onnx_files import Step, session  # noqa: E402

LINES = ["the cat sat on a mat", "", "and then ran away", "the the the"]


def networks(made: SimpleNamespace) -> dict[str, Any]:
    every = {name: lm for name, lm in made.every_kind().items() if "ngram" not in name and "mixture" not in name}
    parts = [every[name].network for name in ("lstm line", "window deep", "elman")]
    every["mixture"] = made.opened(Mixture([Mixture(parts[:2], [0.25, 0.75]), parts[2], parts[0]], [0.6, 0.4, 0.0]))
    return every


def test_every_network_gives_the_same_numbers_in_onnxruntime(made: SimpleNamespace, tmp_path: Path) -> None:
    compare(networks(made), tmp_path)


@pytest.mark.parametrize(("seed", "count"), [(1, 8), *(pytest.param(seed, 60, marks=pytest.mark.slow) for seed in range(2, 8))])
def test_settings_drawn_at_random_give_the_same_numbers_in_onnxruntime(
    seed: int, count: int, made: SimpleNamespace, tmp_path: Path
) -> None:
    random = Random(seed)
    drawn = (made.drawn(random, ngrams=False) for _ in range(count))
    compare({f"{number}: {settings}": made.opened(network) for number, (network, settings) in enumerate(drawn)}, tmp_path)


def compare(models: dict[str, Any], tmp_path: Path) -> None:
    """Exports each, and compares both graphs with it, on tokens at random and texts of several lengths."""
    random = np.random.default_rng(1)
    for number, (name, lm) in enumerate(models.items()):
        directory = tmp_path / str(number)
        measured = lm.export(directory, format="onnx").measured
        assert len(measured) == 2, name
        facts = json.loads((directory / "config.json").read_text(encoding="utf-8"))["onnx"]
        eos, size = lm.tokenizer.eos_id, lm.tokenizer.vocab_size
        tokens_TB = random.integers(0, size, (12, 3))
        tokens_TB[4:6, 1], tokens_TB[0] = eos, eos  # an empty line, and how texts begin
        step = Step(directory / "step.onnx", facts, 3)
        found = np.stack([step.read(tokens_B) for tokens_B in tokens_TB])
        with torch.no_grad():
            expected = lm.network.eval().log_probs(torch.from_numpy(tokens_TB), lm.network.initial_state(3))[0]
        np.testing.assert_allclose(found, expected.numpy(), atol=1e-5, err_msg=name)
        lengths = np.array([0, 3, 7, 11])
        rows = random.integers(0, size, (4, 11))
        inputs = {"tokens": rows, "lengths": lengths}
        nats, token_nats = session(directory / "sequence.onnx").run(["nats", "token_nats"], inputs)
        with torch.no_grad():
            read = torch.from_numpy(np.concatenate([np.full((1, 4), eos), rows.T[:-1]]))
            ours = -lm.network.target_log_probs(read, torch.from_numpy(rows.T), lm.network.initial_state(4))[0].T.numpy()
        ours = np.where(np.arange(11) < lengths[:, None], ours, 0)
        np.testing.assert_allclose(token_nats, ours, atol=1e-5, err_msg=name)
        np.testing.assert_allclose(nats, ours.sum(1), atol=1e-4, err_msg=name)


@pytest.mark.parametrize("settings", [
    {"cell": "lstm", "hidden_size": 64, "tie_weights": True}, {"cell": "gru", "layer_norm": True, "head": "adaptive",
     "cutoffs": [5]},
])  # fmt: skip
def test_int8_is_small_near_and_measured(settings: dict[str, Any], made: SimpleNamespace, tmp_path: Path) -> None:
    lm = made.opened(made.model({"kind": "recurrent", "embed_size": 64, "hidden_size": 64, "init_range": 0.2, **settings}))
    written = lm.export(tmp_path / "out", format="onnx", quantize="int8")
    assert written.measured[-1].startswith("int8 costs ")
    assert written.measured[-1] in (tmp_path / "out" / "card.md").read_text(encoding="utf-8")
    sizes = {path.name: path.stat().st_size for path in (tmp_path / "out").iterdir()}
    assert sizes["step.int8.onnx"] < 0.45 * sizes["step.onnx"]
    facts = json.loads((tmp_path / "out" / "config.json").read_text(encoding="utf-8"))["onnx"]
    ids = [lm.tokenizer.eos_id, *lm.tokenizer.encode(made.TEXT)]
    rows = {kind: Step(tmp_path / "out" / files[0], facts, 2) for kind, files in facts["files"].items()}
    for token in ids:
        exact, near = (rows[kind].read(np.array([token, token])) for kind in ("float32", "int8"))
        assert 0 < np.abs(near - exact).max() < 0.05
    tokens = {"tokens": np.array([ids]), "lengths": np.array([len(ids)])}
    both = [session(tmp_path / "out" / files[1]).run(["nats"], tokens)[0] for files in facts["files"].values()]
    np.testing.assert_allclose(both[0], both[1], rtol=0.01)


def test_no_sum_of_integers_overflows(made: SimpleNamespace, tmp_path: Path) -> None:
    """Rows of one magnitude are quantised exactly, and so are equal features: whatever differs would be overflow."""
    lm = made.opened(
        made.model({"kind": "window", "context": 1, "activation": "identity", "embed_size": 512, "hidden_size": 512})
    )
    signs = torch.where(torch.arange(lm.tokenizer.vocab_size) % 2 == 0, 1.0, -1.0)[:, None]
    with torch.no_grad():
        for name, weight in lm.network.named_parameters():
            weight.fill_(0 if "bias" in name else 1 / 512)
        lm.network.embedding.weight.fill_(1.0)
        lm.network.head.weight_VE.mul_(signs)
    lm.export(tmp_path / "out", format="onnx", quantize="int8")
    facts = json.loads((tmp_path / "out" / "config.json").read_text(encoding="utf-8"))["onnx"]
    exact, near = (Step(tmp_path / "out" / files[0], facts, 5).read(np.arange(5)) for files in facts["files"].values())
    assert exact.max() - exact.min() == pytest.approx(2)
    np.testing.assert_allclose(near, exact, atol=0.02)


def test_large_weights_go_to_a_file_of_their_own(
    made: SimpleNamespace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("lmtrain.export.onnx_files.MAX_EMBEDDED", 1 << 10)
    lm = made.opened(made.model({"kind": "recurrent", "hidden_size": 32}))
    files = lm.export(tmp_path / "out", format="onnx").files
    assert {"step.onnx", "step.onnx.weights", "sequence.onnx.weights"} <= set(files)


def test_what_cannot_become_a_graph_is_said(
    made: SimpleNamespace, place: Path, call: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(lmtrain.SettingsError, match=r"holds n-grams.*format=torch.*lmtrain arpa RUN"):
        made.opened(made.counts(order=2)).export("out", format="onnx")
    with pytest.raises(lmtrain.SettingsError, match=r"quantize=int8 was given with format=torch"):
        lmtrain.load("run").export("out", quantize="int8")
    lm = lmtrain.load("run")
    lm._trained.texts.clear()
    with pytest.raises(lmtrain.DataError, match="No text was saved"):
        lm.export("out", format="onnx", quantize="int8")
    assert lm.export("out", format="onnx").measured == ()
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    ended = call("export", "run", "--format", "onnx", "--output", "none")
    assert (ended.code, "pip install onnx onnxruntime" in ended.err, "--format onnx needs" in ended.err) == (2, True, True)
    assert not Path("none").exists()
