"""Numbers that go wrong in training: each policy, and that a model which is not finite never becomes `last` or `best`."""

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import lmtrain.tasks.language as language
from lmtrain.errors import DivergedError
from lmtrain.inference.evaluate import Evaluation
from lmtrain.saved import load_trained
from lmtrain.training.checkpoint import find_checkpoint, load_checkpoint
from lmtrain.training.finite import MAX_ROLLBACKS, MAX_SKIPPED, Nonfinite, nonfinite_names
from lmtrain.training.learner import SequenceLearner
from lmtrain.training.state import Trouble

Call = Callable[..., Any]
OFTEN = ["trainer.num_steps=10", "trainer.log_every=1", "trainer.save_every=2", "trainer.evaluate_every=1000"]


def poison(learner: SequenceLearner) -> None:
    """The embedding, for good."""
    with torch.no_grad():
        learner.model.embedding.weight.fill_(math.nan)


def spoil(learner: SequenceLearner) -> None:
    """The loss and the state of the next step, and of no other."""
    original = learner.model.training_loss

    def once(*arguments: Any, **options: Any) -> tuple[Tensor, Tensor, tuple[Tensor, ...]]:
        del learner.model.training_loss
        nats, penalty, state = original(*arguments, **options)
        return nats * math.nan, penalty, tuple(tensor * math.nan for tensor in state)

    learner.model.training_loss = once  # type: ignore[method-assign]


def test_stopping_keeps_the_state_and_the_chunk_and_ends_with_5(place: Path, call: Call, at_step: Callable[..., None]) -> None:
    at_step({5: poison})
    ended = call("TRAIN", *OFTEN, "hydra.run.dir=bad")
    assert ended.code == 5
    assert "The loss (nan) or the norm of its gradient (nan) is not finite at step 5 (epoch 0, batch 4)." in ended.err
    assert "bad/crash/checkpoints/step-00000005. Type  python -m lmtrain resume=bad  with a smaller optimizer." in ended.err
    assert "a smaller trainer.clip_norm, or trainer.on_nonfinite=rollback." in ended.err
    crash = load_checkpoint(find_checkpoint("bad/crash", "last"))
    assert crash.documents["batch"] == {"epoch": 0, "index": 4}
    assert crash.tensors["batch"]["inputs_TB"].shape == (10, 4)
    assert crash.tensors["batch"]["targets_TB"][:-1].equal(crash.tensors["batch"]["inputs_TB"][1:])
    assert nonfinite_names(crash.tensors["model"]) == ["embedding.weight"]
    last = load_checkpoint(find_checkpoint("bad", "last"))
    assert last.step == 4
    assert nonfinite_names(last.tensors["model"]) == []
    at_step({})
    assert call("resume=bad").code == 0, "the run itself is as it was"


def test_a_crash_that_cannot_be_saved_is_still_a_divergence(
    place: Path, call: Call, at_step: Callable[..., None], file_limit: Callable[[int | None], None]
) -> None:
    def both(learner: SequenceLearner) -> None:
        poison(learner)
        file_limit(1)

    at_step({5: both})
    ended = call("TRAIN", *OFTEN, "hydra.run.dir=bad")
    file_limit(None)  # before pytest itself writes
    assert ended.code == 5
    assert "The crash itself could not be saved" in ended.err


def test_skipping_leaves_out_the_chunk_and_nothing_else(place: Path, call: Call, at_step: Callable[..., None]) -> None:
    kept: list[dict[str, Tensor]] = []

    def look(learner: SequenceLearner) -> None:
        kept.append({name: t.clone() for name, t in learner.model.state_dict().items()})
        kept[-1] |= {str(number): t.clone() for number, t in enumerate(learner.state)}

    def look_and_spoil(learner: SequenceLearner) -> None:
        look(learner)
        spoil(learner)

    at_step({5: look_and_spoil, 6: look})
    assert call("TRAIN", *OFTEN, "hydra.run.dir=skipped", "trainer.on_nonfinite=skip").code == 0
    assert (place / "skipped" / "lmtrain.log").read_text().count("This batch is skipped.") == 1
    before, after = kept
    assert [name for name in before if not before[name].equal(after[name])] == []
    records = (place / "skipped" / "metrics.jsonl").read_text()
    assert "NaN" not in records
    assert len(records.splitlines()) == 11


def test_skipping_ends_where_no_chunk_can_be_taken(place: Path, call: Call, at_step: Callable[..., None]) -> None:
    at_step({5: poison})
    settings = [*OFTEN, "trainer.on_nonfinite=skip", "trainer.save_every=1000", "trainer.num_steps=200"]
    ended = call("TRAIN", *settings, "hydra.run.dir=bad")
    assert ended.code == 5
    assert f"{MAX_SKIPPED} steps in a row were skipped" in ended.err


def test_rolling_back_halves_the_rate_and_finishes(place: Path, call: Call, at_step: Callable[..., None]) -> None:
    spoilt: list[int] = []

    def once(learner: SequenceLearner) -> None:
        if not spoilt:
            spoilt.append(1)
            spoil(learner)

    at_step({8: once})
    settings = [*OFTEN, "trainer.on_nonfinite=rollback", "model.dropout=0.3"]
    assert call("TRAIN", *settings, "hydra.run.dir=back").code == 0
    assert "Going back to step 6, from where the learning rate is multiplied by 0.5" in Path("back/lmtrain.log").read_text()
    steps = [record["step"] for record in records(place / "back")]
    assert steps == [*range(1, 11), 10], "every step once"
    rates = {
        record["step"]: record["optim/learning_rate"] for record in records(place / "back") if "optim/learning_rate" in record
    }
    assert rates[6] > 1.7 * rates[7], "half the rate, and a little less by the schedule"
    spoilt.clear()
    assert call("TRAIN", *settings, "hydra.run.dir=cut", "trainer.num_steps=9", "schedule=constant").code == 0
    assert call("resume=cut", "trainer.num_steps=10").code == 0
    spoilt.clear()
    assert call("TRAIN", *settings, "hydra.run.dir=whole", "schedule=constant").code == 0
    assert find_state("cut")["learner"] == find_state("whole")["learner"], "the halved rate is part of what is resumed"
    assert find_state("cut")["learner"]["rate_scale"] == 0.5


def records(run: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def find_state(run: str) -> dict[str, Any]:
    state: dict[str, Any] = load_checkpoint(find_checkpoint(run, "last")).documents["training"]["state"]
    return state


def test_a_rate_that_is_much_too_high_is_brought_down_by_halving(place: Path, call: Call) -> None:
    wild = [
        "model=elman", "model.nonlinearity=relu", "model.init=uniform", "model.init_range=0.3", "optimizer=sgd",
        "optimizer.learning_rate=30", "trainer.clip_norm=0", "trainer.save_every=10", "trainer.num_steps=30",
    ]  # fmt: skip
    ended = call("TRAIN", *wild, "hydra.run.dir=wild")
    assert ended.code == 5
    assert "trainer.clip_norm=0.25 (0 does not clip)" in ended.err
    assert call("TRAIN", *wild, "hydra.run.dir=tamed", "trainer.on_nonfinite=rollback").code == 0
    assert find_state("tamed")["step"] == 30
    assert find_state("tamed")["learner"]["rate_scale"] < 1


@pytest.mark.parametrize("epsilon", ["0", "1e-50"])
def test_a_division_of_0_by_0_is_named_as_the_cause(epsilon: str, place: Path, call: Call) -> None:
    """A character that has not been read yet has had no gradient."""
    ended = call("TRAIN", f"optimizer.epsilon={epsilon}", "hydra.run.dir=zero")
    assert ended.code == 5
    assert "makes adam divide 0 by 0 where a weight has had no gradient yet" in ended.err
    assert "learning_rate" not in ended.err
    remedy = ended.err.rpartition("Type  python -m lmtrain ")[2].split()
    assert call(*remedy).code == 0


def test_rolling_back_goes_to_the_best_where_the_newest_does_not_help_and_ends_after_ten_times(tmp_path: Path) -> None:
    class Learner:
        rate_scale = 1.0

    class State:
        step = 7
        trouble = Trouble()
        learner = Learner()

    asked: list[str] = []
    state: Any = State()

    def load(state: Any, which: str) -> None:
        asked.append(which)
        state.step = 6

    nonfinite = Nonfinite("rollback", save_crash=lambda *_: tmp_path, load=load)
    for _ in range(MAX_ROLLBACKS):
        state.step = 7
        nonfinite(state, "The loss is not finite.", None)
    state.step = 7
    with pytest.raises(DivergedError, match=r"Going back was tried 10 times"):
        nonfinite(state, "The loss is not finite.", None)
    assert asked == ["last", *["best"] * (MAX_ROLLBACKS - 1)]
    assert state.learner.rate_scale == 2.0**-MAX_ROLLBACKS


@pytest.mark.parametrize("policy", ["stop", "skip", "rollback"])
def test_a_validation_that_is_not_a_number_is_divergence(
    policy: str, place: Path, call: Call, monkeypatch: pytest.MonkeyPatch
) -> None:
    evaluate, num_calls = language.evaluate_split, 0

    def spoilt(*arguments: Any) -> Evaluation:
        nonlocal num_calls
        num_calls += 1
        return evaluate(*arguments) if num_calls != 2 else Evaluation(math.nan, 1, 0, 0, 0.0, 1, 1, 1, "carry")

    monkeypatch.setattr(language, "evaluate_split", spoilt)
    settings = [*OFTEN, "trainer.evaluate_every=2", f"trainer.on_nonfinite={policy}"]
    ended = call("TRAIN", *settings, "hydra.run.dir=bad")
    if policy == "rollback":
        assert ended.code == 0
        assert "Validation at step 4 is not a number. Going back to step 2" in Path("bad/lmtrain.log").read_text()
        assert find_state("bad")["step"] == 10
    else:
        assert ended.code == 5
        assert "Validation at step 4 is not a number." in ended.err
        assert (place / "bad" / "checkpoints" / "best").read_text() == "step-00000002\n"


@pytest.mark.parametrize(("step", "last"), [(3, 2), (9, 8), (10, 8)])
def test_a_model_that_is_not_finite_is_never_saved(
    step: int, last: int, place: Path, call: Call, at_step: Callable[..., None]
) -> None:
    """A weight that no loss feels: the embedding of `<unk>`, which the text does not hold."""

    def hide(learner: SequenceLearner) -> None:
        with torch.no_grad():
            learner.model.embedding.weight[unk_id()] = math.inf

    at_step({step: hide})
    ended = call("TRAIN", *OFTEN, "hydra.run.dir=bad")
    assert ended.code == 5
    assert f"The model is not finite at step {step + step % 2}: embedding.weight." in ended.err
    assert load_checkpoint(find_checkpoint("bad", "last")).step == last


def unk_id() -> int:
    unk = load_trained("run").tokenizer.unk_id
    assert unk is not None
    return unk


def test_probabilities_of_zero_in_a_counted_model_are_no_divergence(place: Path, call: Call) -> None:
    counted = ["model=ngram", "model.smoothing=maximum_likelihood", "tokenizer=word", "trainer.sample_tokens=5"]
    assert call("data=text", "data.path=text.txt", *counted, "hydra.run.dir=counted").code == 0
    assert (place / "counted" / "checkpoints" / "last").exists()


def test_moments_that_are_not_finite_are_not_saved(place: Path, call: Call, at_step: Callable[..., None]) -> None:
    """A gradient of 1e20 is finite, its square is not: what could not be read back must not be written either."""

    def overflow(learner: SequenceLearner) -> None:
        learner.optimizer.state[learner.model.embedding.weight]["exp_avg_sq"][0, 0] = math.inf

    at_step({5: overflow})
    ended = call("TRAIN", *OFTEN, "hydra.run.dir=bad")
    assert ended.code == 5
    assert "The model is not finite at step 6: optimizer.embedding.weight.exp_avg_sq." in ended.err
    assert load_checkpoint(find_checkpoint("bad", "last")).step == 4
    at_step({})
    assert call("resume=bad").code == 0
