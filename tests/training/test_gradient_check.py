"""Gradients that are checked and watched in training: wrong ones are found, right ones never, and training stays as it is."""

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import lmtrain
import lmtrain.config as config
from lmtrain.build import build_model
from lmtrain.data.batches import Position
from lmtrain.data.stream import Stream
from lmtrain.models.base import NeuralLanguageModel
from lmtrain.ops import activations, lstm
from lmtrain.training.averaging import LastWeights
from lmtrain.training.checkpoint import find_checkpoint, load_checkpoint
from lmtrain.training.gradient_check import ALLOWED, GradientError, _compare, check_gradients
from lmtrain.training.gradient_watch import watch_gradients
from lmtrain.training.learner import SequenceLearner
from lmtrain.training.schedule import Constant, Progress

Call = Callable[..., Any]
V, NOW = 11, Progress(step=0, epoch=0.0, fraction=0.0)
SMALL: dict[str, Any] = {"embed_size": 4, "hidden_size": 5}
DROPPED: dict[str, Any] = {"dropout": 0.3, "activation_penalty": 2.0, "temporal_penalty": 1.0}
MODELS: dict[str, config.NeuralConfig] = {
    "elman": config.RecurrentConfig(cell=config.Cell.elman, nonlinearity=config.Nonlinearity.relu, **SMALL, **DROPPED),
    "gru": config.RecurrentConfig(cell=config.Cell.gru, layer_norm=True, zoneout=0.2, weight_drop=0.3, **SMALL, **DROPPED),
    "lstm": config.RecurrentConfig(num_layers=2, state_policy=config.StatePolicy.line, **SMALL, **DROPPED),
    "window": config.WindowConfig(context=3, activation=config.Activation.relu, num_layers=2, **SMALL),
    "learnt": config.WindowConfig(context=2, activation=config.Activation.parametric_relu, layer_norm=True, **SMALL),
    "adaptive": config.RecurrentConfig(head=config.HeadName.adaptive, cutoffs=[3, 7], **SMALL),
    "sampled": config.RecurrentConfig(head=config.HeadName.sampled, num_samples=4, **SMALL),
    "tied": config.RecurrentConfig(embed_size=5, hidden_size=5, tie_weights=True, backend=config.Backend.native),
    "maxent": config.RecurrentConfig(maxent_order=3, maxent_table=64, **SMALL),
}


def learner_of(name: str, *, seed: int = 2, **rest: Any) -> SequenceLearner:
    model = build_model(MODELS[name], vocab_size=V, eos_id=0, seed=seed, sparse_embeddings=name == "sampled")
    assert isinstance(model, NeuralLanguageModel)
    return SequenceLearner(
        model=model, optimizer=torch.optim.SGD(model.named_parameters(), lr=0.5), schedule=Constant(), averaging=LastWeights(),
        generator=torch.Generator().manual_seed(1), learning_rate=0.5, overlap=2, l1=1e-3, **rest,
    )  # fmt: skip


def make_stream() -> Stream:
    ids = np.random.default_rng(4).integers(0, V, 3 * 43).astype(np.uint16)
    return Stream(ids, batch_size=3, chunk_length=6, eos_id=0, random_offset=False)


def everything_of(learner: SequenceLearner) -> dict[str, Tensor]:
    """All that a step depends on."""
    tensors = {f"{file}.{name}": tensor for file, tensors in learner.tensors().items() for name, tensor in tensors.items()}
    tensors = {name: tensor.to_dense().clone() for name, tensor in tensors.items()}
    gradients = {f"d {n}": p.grad.to_dense().clone() for n, p in learner.model.named_parameters() if p.grad is not None}
    return tensors | gradients | {"generator": learner.generator.get_state(), "global": torch.get_rng_state()}


@pytest.mark.parametrize("name", MODELS)
def test_right_gradients_pass_and_looking_at_them_changes_nothing(name: str) -> None:
    learner, stream, position = learner_of(name), make_stream(), Position()
    for step in range(3):
        batch = stream.batch(position)
        before, mode = everything_of(learner), learner.model.training
        checked = check_gradients(learner, batch, 3, step)
        numbers = watch_gradients(learner, batch)
        after = everything_of(learner)
        assert before.keys() == after.keys()
        assert [key for key in before if not torch.equal(before[key], after[key])] == []
        assert learner.model.training is mode
        assert checked.worst is not None
        assert 0 < checked.worst.error < ALLOWED / 10, checked
        assert checked.num_tensors == len([*learner.model.parameters()])
        assert all(tag.startswith("watch/") and math.isfinite(value) for tag, value in numbers.items())
        learner.step(batch, NOW)
        position = stream.next(position)


def test_kinks_raise_no_alarm() -> None:
    """Hundreds of slopes through ReLUs, at weights that are multiples of 1/4, so that many sums are exactly 0."""
    for seed in range(2):
        for name in ("window", "elman"):
            learner = learner_of(name, seed=seed)
            with torch.no_grad():
                for weight in learner.model.parameters():
                    weight.copy_((weight * 8).round() / 4)
            checked = check_gradients(learner, make_stream().batch(Position()), 20, seed)
            assert checked.worst is not None
            assert checked.worst.error < ALLOWED, checked


def test_steps_become_smaller_until_no_kink_is_between() -> None:
    def loss_at(shift: float) -> float:
        return shift + 5e-4 * (max(0.0, shift - 3e-5) - max(0.0, -shift - 3e-5))  # of slope 1 at 0, kinks on both sides

    assert _compare("weight", "entry [0]", 1.0, loss_at, 0.0).error < 1e-9
    assert _compare("weight", "entry [0]", 1.001, loss_at, 0.0).error > ALLOWED


WRONG: dict[str, tuple[str, str, Any]] = {
    "a factor": ("learnt", "layers.0.linear", lambda d: d * 1.001),
    "a lost gradient": ("lstm", "layers.0.weight_recurrent_ZH", torch.zeros_like),
    "one row": ("tied", "embedding.weight", lambda d: torch.cat([d[:1] * 0, d[1:]])),
    "a sign": ("gru", "layers.0.candidate_bias_H", torch.neg),
    "not a number": ("window", "head.bias_V", lambda d: d * math.nan),
}


@pytest.mark.parametrize("what", WRONG)
def test_a_wrong_gradient_is_found_and_named(what: str, monkeypatch: pytest.MonkeyPatch) -> None:
    name, tensor, change = WRONG[what]
    learner = learner_of(name)
    plain = torch.autograd.grad

    def wrong(loss: Tensor, weights: list[Tensor], **options: Any) -> list[Tensor | None]:
        made = list(plain(loss, weights, **options))
        names = [n for n, p in learner.model.named_parameters() if p.requires_grad]
        return [change(d) if d is not None and n.startswith(tensor) else d for n, d in zip(names, made, strict=True)]

    monkeypatch.setattr(torch.autograd, "grad", wrong)
    with pytest.raises(GradientError, match=rf"The gradient of {tensor}.* is wrong before step 8") as refused:
        check_gradients(learner, make_stream().batch(Position()), 3, 7).raise_if_wrong(7)
    assert refused.value.exit_code == 1


def test_a_wrong_function_of_ours_stops_the_training(place: Path, call: Call, monkeypatch: pytest.MonkeyPatch) -> None:
    plain = lstm.backward_lstm

    def wrong(*arguments: Any) -> tuple[Tensor, ...]:
        d_projected, d_h0, d_c0 = plain(*arguments)
        return d_projected * 1.01, d_h0, d_c0

    monkeypatch.setattr(lstm, "backward_lstm", wrong)
    ended = call("TRAIN", "trainer.check_gradients=2", "hydra.run.dir=wrong")
    assert ended.code == 1, ended.err
    assert "is wrong before step 1: the relative difference is 9.9e-03. Allowed is 0.0001." in ended.err
    assert "Traceback" not in ended.err


def test_frozen_vectors_are_left_out_and_a_loss_that_is_no_number_is_said() -> None:
    learner = learner_of("gru", frozen={"embedding.weight": 1.0})
    batch = make_stream().batch(Position())
    assert check_gradients(learner, batch, 2, 0).num_tensors == len([*learner.model.parameters()]) - 1
    with torch.no_grad():
        learner.model.embedding.weight.fill_(math.nan)
    checked = check_gradients(learner, batch, 2, 0)
    checked.raise_if_wrong(0)
    assert "not checked: the loss is not finite" in checked.format(0)


# ---- what is watched


def test_units_that_are_dead_or_saturated_are_counted() -> None:
    learner, batch = learner_of("window"), make_stream().batch(Position())
    with torch.no_grad():
        learner.model.layers[0].linear.bias[:2] = -100  # type: ignore[index,union-attr]
    numbers = watch_gradients(learner, batch)
    assert numbers["watch/hidden.0/dead"] >= 2 / 5
    assert set(numbers) == {"watch/hidden.0/dead", "watch/hidden.1/dead"}
    assert activations.ACTIVATIONS["relu"] is activations.relu, "what was put in its place is gone"


def test_gates_are_those_of_the_cell_also_where_a_chunk_is_run_in_two_parts() -> None:
    learner, stream = learner_of("lstm"), make_stream()
    with torch.no_grad():
        layer = learner.model.layers[1]  # type: ignore[index]
        layer.bias_Z[5:8], layer.bias_Z[8:10] = 100.0, -100.0  # the forget gates
    position = Position()
    for _ in range(2):
        learner.step(stream.batch(position), NOW)
        position = stream.next(position)
    numbers = watch_gradients(learner, stream.batch(position))
    assert numbers["watch/layer.1/forget_high"] == pytest.approx(3 / 5)
    assert numbers["watch/layer.1/forget_low"] == pytest.approx(2 / 5)
    assert {tag.split("/")[1] for tag in numbers} == {"gradient_by_lag", "layer.0", "layer.1"}
    assert [tag.split("/")[2] for tag in numbers if "lag" in tag] == ["0", "1", "2", "5"]
    assert numbers["watch/gradient_by_lag/0"] == 1


def test_the_gates_of_every_cell_are_right() -> None:
    """h made again from the gates that are recorded is the h of the cell."""
    from lmtrain.models.recurrent import GRULayer, RecurrentLayer
    from lmtrain.training.gradient_watch import recorded

    for name in ("gru", "elman"):
        model = learner_of(name).model.double().eval()
        cells = [module for module in model.modules() if isinstance(module, RecurrentLayer)]
        cells[0].zoneout, cells[0].backend = 0.0, "eager"
        state = model.initial_state(3)
        with torch.no_grad(), recorded(cells) as (gates, _):
            h_TBH, _ = model.activations(make_stream().batch(Position()).inputs_TB, state)
        values = {gate: y for gate, (_, y) in gates[0][0].items()}
        if isinstance(cells[0], GRULayer):
            previous_TBH = torch.cat([torch.zeros_like(h_TBH[:1]), h_TBH[:-1]])
            z, n = values["update"], values["candidate"]
            torch.testing.assert_close((1 - z) * n + z * previous_TBH, h_TBH)
        else:
            torch.testing.assert_close(values[""], h_TBH)


# ---- as it is typed

LOOKED = ("trainer.check_gradients=2", "trainer.watch_gradients=true")


def test_training_is_bit_for_bit_as_without_it_and_goes_on_so(place: Path, call: Call) -> None:
    drops = ("model.dropout=0.3", "trainer.evaluate_every=2", "schedule=constant")
    assert call("TRAIN", *drops, "hydra.run.dir=plain").code == 0
    looked = call("TRAIN", *drops, *LOOKED, "hydra.run.dir=looked")
    assert call("TRAIN", *drops, *LOOKED, "trainer.num_steps=3", "hydra.run.dir=parts").code == 0
    resumed = call("resume=parts", "trainer.num_steps=6", "trainer.check_gradients=1")
    assert (looked.code, resumed.code) == (0, 0)
    first, *others = (load_checkpoint(find_checkpoint(run, "last")) for run in ("plain", "looked", "parts"))
    for other in others:
        for file, tensors in first.tensors.items():
            assert [name for name, tensor in tensors.items() if not torch.equal(tensor, other.tensors[file][name])] == []
        assert first.documents["training"]["state"]["learner"] == other.documents["training"]["state"]["learner"]
    assert all(f"Gradients before step {step}: " in looked.out for step in (1, 3, 5, 7))
    records = [json.loads(line) for line in Path("looked/metrics.jsonl").read_text().splitlines()]
    evaluations = [record for record in records if any(tag.startswith("val/") for tag in record)]
    assert all("watch/layer.0/forget_low" in record for record in evaluations)
    plain = [json.loads(line) for line in Path("plain/metrics.jsonl").read_text().splitlines()]
    same = [{k: v for k, v in record.items() if not k.startswith(("watch/", "perf/"))} for record in records]
    assert same == [{k: v for k, v in record.items() if not k.startswith("perf/")} for record in plain]


def test_a_long_check_shows_how_far_it_is(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr("lmtrain.progress.QUIET_SECONDS", 0.0)
    checked = check_gradients(learner_of("tied"), make_stream().batch(Position()), 2, step=0)
    told = capsys.readouterr().err
    assert "Checking gradients: " in told
    assert f"of {checked.num_slopes} slopes at " in told, "as many as there are"
    assert f"done, {checked.num_slopes} slopes in " in told


def test_counting_has_no_gradients_to_check(place: Path, call: Call) -> None:
    ended = call("data=text", "data.path=text.txt", "model=ngram", "trainer.sample_tokens=0", *LOOKED, "hydra.run.dir=n")
    assert ended.code == 0
    for setting in ("trainer.check_gradients", "trainer.watch_gradients"):
        assert f"{setting} has no effect here: it needs a model that is trained by gradients" in ended.err


@pytest.mark.parametrize("objective", ["softmax", "logistic", "max_margin"])
def test_taggers_are_checked_and_watched(objective: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "data").mkdir()
    for name in ("train", "dev"):
        (tmp_path / "data" / f"{name}.txt").write_text("Ann I-PER\nsat O\nin O\nRome I-LOC\n\n" * 9, encoding="utf-8")
    run = lmtrain.train(
        "task=tag", "data.path=data", "model.embed_size=6", "model.hidden_sizes=[8]", f"model.objective={objective}",
        "model.activation=relu", "trainer.batch_size=7", "trainer.num_steps=4", "trainer.num_epochs=null",
        "trainer.num_threads=1", "trainer.check_gradients=3", "trainer.watch_gradients=true", "hydra.run.dir=run",
    )  # fmt: skip
    assert [tag for tag in run.metrics[-1] if tag.startswith("watch/")] == ["watch/hidden.0/dead"]
