"""Lines side by side say of every token what one stream says, by every family; whatever their lengths, however they come."""

from typing import Any

import numpy as np
import pytest
import torch

import lmtrain.config as config
from lmtrain.build import build_model
from lmtrain.data.tokenizer import CharTokenizer, WordTokenizer
from lmtrain.inference import described
from lmtrain.inference.evaluate import Static, tempered
from lmtrain.inference.surprise import Unit, score_units
from lmtrain.models.base import LanguageModel, NeuralLanguageModel, StatePolicy
from lmtrain.models.mixture import Mixture

V = 12
WORDS = WordTokenizer(["<eos>", *(f"w{number}" for number in range(V - 2)), "<unk>"])
SMALL = {"embed_size": 5, "hidden_size": 6}
MODELS: dict[str, config.LanguageConfig] = {
    "lstm": config.RecurrentConfig(num_layers=2, **SMALL),
    "gru": config.RecurrentConfig(cell=config.Cell.gru, maxent_order=3, maxent_table=1024, **SMALL),
    "window": config.WindowConfig(context=3, num_averages=1, average_span=4, **SMALL),
    "ngram": config.NgramConfig(order=3),
}


def make(kind: str) -> LanguageModel:
    if kind == "mixture":
        return Mixture([make("lstm"), make("ngram")], [0.5, 0.5])
    model = build_model(MODELS[kind], vocab_size=V, eos_id=0, seed=1)
    if isinstance(model, NeuralLanguageModel):
        with torch.no_grad():
            for number, parameter in enumerate(model.parameters()):
                drawn = torch.randn(parameter.shape, generator=torch.Generator().manual_seed(number))
                parameter.add_(drawn * 0.5)
        model.eval()
    else:
        model.count(np.random.RandomState(0).randint(0, V, 400))  # type: ignore[attr-defined]
    model.forget_at(StatePolicy.line)
    return model


def text_of(lengths: list[int]) -> str:
    random = np.random.RandomState(3)
    return "\n".join(" ".join(f"w{random.randint(V - 1)}" for _ in range(length)) for length in lengths)


def units_of(model: LanguageModel, text: str, unit: Any, cut: int, **options: Any) -> tuple[list[Unit], Any]:
    units: list[Unit] = []
    blocks = [text[start : start + cut] for start in range(0, len(text), cut)]
    return units, score_units(model, WORDS, blocks, unit, units.append, **options)


@pytest.mark.parametrize(("kind", "unit"), [*((kind, "token") for kind in [*MODELS, "mixture"]), ("lstm", "line")])
def test_lines_side_by_side_are_those_of_one_stream(kind: str, unit: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(described, "ROWS", 16)
    monkeypatch.setattr(described, "WINDOW", 40)
    model = make(kind)
    lengths = [3, 0, 7, 1, 90, 2, 5, 0, 0, 11, 4, 41, 6, *range(1, 12)]
    for text in (text_of(lengths), text_of(lengths) + "\n", text_of([100]), "\n\n", "w1 <eos> w2\nw3"):
        for cut, options in ((1000, {}), (7, {}), (11, {"at_once": True}), (1000, {"method": Static(0.5)})):
            side, bill = units_of(model, text, unit, cut, **options)
            alone, expected = units_of(model, text, unit, cut, side_by_side=False, **options)
            assert [(u.line, u.position, u.text, u.rank) for u in side] == [(u.line, u.position, u.text, u.rank) for u in alone]
            for name in ("surprisal", "entropy"):
                np.testing.assert_allclose([getattr(u, name) for u in side], [getattr(u, name) for u in alone], rtol=2e-5)
            for one, other in zip(side, alone, strict=True):
                assert [a.probability for a in one.instead] == pytest.approx([a.probability for a in other.instead], rel=2e-5)
            assert bill.total_nats == pytest.approx(expected.total_nats, rel=1e-5)
            assert (bill.num_tokens, bill.num_eos) == (expected.num_tokens, expected.num_eos)


def test_what_is_impossible_adds_nothing_to_an_entropy() -> None:
    log_probs_NV = torch.tensor([[0.5, 0.5, 0.0], [1.0, 0.0, 0.0]]).log()
    said = described.describe(log_probs_NV, torch.tensor([2, 0]), 1.0, True)
    assert said.entropies.tolist() == pytest.approx([np.log(2), 0.0])
    assert said.log_probs.tolist() == [-np.inf, 0.0]
    assert said.ranks.tolist() == [3, 1]


@pytest.mark.parametrize("temperature", [1e-320, 1e-3, 0.7, 2.0, 1e300])
def test_a_temperature_is_that_of_evaluation_also_where_everything_is_impossible(temperature: float) -> None:
    log_probs_NV = torch.tensor([[0.5, 0.3, 0.2], [0.0, 0.0, 0.0], [0.7, 0.3, 0.0]]).log()
    for targets in ([0, 0, 0], [1, 1, 1], [2, 2, 2]):
        said = described.describe(log_probs_NV, torch.tensor(targets), temperature, True)
        expected = tempered(log_probs_NV, torch.tensor(targets), temperature).numpy()
        np.testing.assert_allclose(said.log_probs, expected, rtol=1e-6, atol=1e-12)
        assert not np.isnan(said.entropies).any()
        assert said.log_probs[1] == -np.inf


def test_a_model_that_carries_its_state_is_read_as_one_stream() -> None:
    model = make("lstm")
    model.forget_at(StatePolicy.carry)
    text = text_of([4, 5, 6])
    side, _ = units_of(model, text, "token", 1000)
    alone, _ = units_of(model, text, "token", 1000, side_by_side=False)
    assert [u.surprisal for u in side] == [u.surprisal for u in alone]


def test_a_line_without_an_end_of_characters_is_read_to_its_last() -> None:
    tokenizer = CharTokenizer(["\n", *"abcdefghij", "<unk>"])
    model, units = make("lstm"), list[Unit]()
    bill = score_units(model, tokenizer, ["ab\nc\nde"], "token", units.append)
    assert [u.text for u in units] == ["a", "b", "\n", "c", "\n", "d", "e"]
    assert bill.num_tokens == 7
