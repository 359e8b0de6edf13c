"""A run that a signal interrupts, and that is resumed, is the undisturbed one bit for bit, whatever the moment of the signal.

The ordinary suite tries every thing that the loop does once; `pytest -m slow` tries every moment of every training here.
"""

import itertools
import os
import random
import runpy
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from lmtrain.training.checkpoint import find_checkpoint, load_checkpoint
from lmtrain.training.learner import SequenceLearner, StepReport

Moments = runpy.run_path(str(Path(__file__).with_name("moments.py")))["Moments"]
Call = Callable[..., Any]
COMMON = ["tokenizer=word", "trainer.batch_size=4", "trainer.chunk_length=16", "trainer.log_every=2", "trainer.num_steps=13",
          "trainer.sample_tokens=3"]  # fmt: skip
TRAININGS = {
    "plateau": [*COMMON, "model=gru", "schedule=plateau", "optimizer=sgd", "optimizer.learning_rate=8",
                "trainer.evaluate_every=3", "trainer.save_every=4", "model.dropout=0.2"],
    "nt_asgd": [*COMMON, "model=lstm", "optimizer=sgd", "optimizer.learning_rate=6", "optimizer.averaging=nt_asgd",
                "optimizer.patience=1", "trainer.evaluate_every=2", "trainer.backward_length=40"],
    "every epoch": [*COMMON, "model=window", "optimizer.averaging=ema", "schedule=plateau", "trainer.chunk_length=40",
                    "optimizer.learning_rate=0.9", "trainer.random_chunk_length=true"],
    "rollback": [*COMMON, "model=elman", "trainer.on_nonfinite=rollback", "trainer.evaluate_every=4", "trainer.save_every=3"],
    "patience": [*COMMON, "model=gru", "optimizer=sgd", "optimizer.learning_rate=8", "trainer.evaluate_every=2",
                 "trainer.patience=2", "trainer.save_every=3"],
    "skip": [*COMMON, "model=lstm", "trainer.on_nonfinite=skip", "trainer.evaluate_every=13", "trainer.save_every=5"],
}  # fmt: skip
QUICK = ("nt_asgd", "rollback")
SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)


@pytest.fixture(autouse=True)
def _spoilt_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    """Steps whose loss is not finite: one that half the learning rate mends, one that takes more, two that nothing mends."""
    spoilt_above = {5: 0.6, 8: 0.2, 9: 0.0, 10: 0.0}
    learn = SequenceLearner._learn_chunk

    def spoilt(self: SequenceLearner, *arguments: Any) -> StepReport:
        number = vars(self)["number"]
        policy = vars(self).get("policy")
        above = spoilt_above.get(number, 1.0)
        if policy and self.rate_scale > above and not (policy == "rollback" and above == 0.0):
            return StepReport(num_items=arguments[1].numel(), loss=float("nan"))  # as many as a step without it
        return learn(self, *arguments)

    step = SequenceLearner.step

    def counted(self: SequenceLearner, chunk: Any, progress: Any) -> StepReport:
        vars(self)["number"] = progress.step + 1
        return step(self, chunk, progress)

    monkeypatch.setattr(SequenceLearner, "step", counted)
    monkeypatch.setattr(SequenceLearner, "_learn_chunk", spoilt)


@pytest.fixture
def train(call: Call, monkeypatch: pytest.MonkeyPatch) -> Callable[..., tuple[int, list[str]]]:
    """Trains `name` in a directory, or goes on there, with signals at moments; the exit code and the moments that came."""
    import lmtrain.tasks.language as language

    build = language.build_learner

    def run(name: str, directory: str, signals: dict[int, int] | None = None, resume: bool = False) -> tuple[int, list[str]]:
        policy = name if name in ("rollback", "skip") else None

        def with_policy(*arguments: Any) -> Any:
            learner = build(*arguments)
            vars(learner)["policy"] = policy
            return learner

        monkeypatch.setattr(language, "build_learner", with_policy)
        actions = {at: (lambda number=number: os.kill(os.getpid(), number)) for at, number in (signals or {}).items()}
        with Moments(actions) as moments:
            ended = call(*([f"resume={directory}"] if resume else ["TRAIN", *TRAININGS[name], f"hydra.run.dir={directory}"]))
        assert "Traceback" not in ended.err
        return ended.code, moments.names

    return run


def decided(run: Path) -> dict[str, Any]:
    """Everything that training has come to but the time it took, and the step of the best checkpoint."""
    last, best = (load_checkpoint(find_checkpoint(run, which)) for which in ("last", "best"))
    state = last.documents["training"]["state"]
    return {**state, "elapsed_seconds": None, "evaluation_seconds": None, "step of best": best.step}


@pytest.fixture
def check(
    train: Callable[..., tuple[int, list[str]]], assert_same_end: Callable[[Path, Path], None]
) -> Callable[[str, dict[int, int]], None]:
    """Interrupts `name` as it is told, resumes it until it ends, and compares it with the undisturbed run `whole`."""

    def run(name: str, signals: dict[int, int]) -> None:
        directory = f"cut-{'-'.join(f'{at}-{number}' for at, number in signals.items())}"
        code, _ = train(name, directory, signals)
        stopped = code in (128 + signal.SIGTERM, 128 + signal.SIGINT)
        assert stopped or code == 0
        if stopped:
            assert train(name, directory, resume=True)[0] == 0
        assert_same_end(Path(directory), Path("whole"))
        assert decided(Path(directory)) == decided(Path("whole"))

    return run


@pytest.mark.parametrize("name", [*QUICK, *(pytest.param(n, marks=pytest.mark.slow) for n in TRAININGS if n not in QUICK)])
def test_a_signal_at_a_moment_of_every_kind_changes_nothing(
    name: str, place: Path, train: Callable[..., Any], check: Callable[..., None]
) -> None:
    """In the last step before an evaluation, and at a moment of every fifth kind; the trainings here take turns."""
    code, moments = train(name, "whole")
    assert code == 0
    turn = list(TRAININGS).index(name)
    kinds = list(dict.fromkeys(moments))[turn :: len(TRAININGS)]
    evaluations = [at for at, kind in enumerate(moments) if kind == "before _evaluate" and moments[at - 1].startswith("behind")]
    chance = random.Random(name)
    chosen = {chance.choice([at for at, other in enumerate(moments) if other == kind]) for kind in kinds}
    check(name, {max(at for at in range(evaluations[0]) if moments[at] == "before step"): signal.SIGTERM})
    for number, at in enumerate(sorted(chosen)):
        check(name, {at: SIGNALS[(number + turn) % 3]})


PASSES = itertools.product(("evaluate", "sample_text"), ("plateau", "every epoch"), ("first", "last", "in a resumed run"))


@pytest.mark.parametrize(
    ("part", "name", "when"),
    [pytest.param(*each, marks=[pytest.mark.slow] if number % 4 else []) for number, each in enumerate(PASSES)],
)
def test_a_signal_within_an_evaluation_breaks_it_off_and_changes_nothing(
    part: str, name: str, when: str, place: Path, train: Callable[..., Any], monkeypatch: pytest.MonkeyPatch,
    assert_same_end: Callable[[Path, Path], None],
) -> None:  # fmt: skip
    """A pass that is told to end does no more: neither the rest of it, nor a step."""
    import lmtrain.tasks.language as language

    assert train(name, "whole")[0] == 0
    original = getattr(language, part)
    passes = {part: 0}

    def disturbed(*arguments: Any, progress: Callable[[int], object], **options: Any) -> Any:
        passes[part] += 1
        told = []

        def signalled(number: int) -> None:
            if passes[part] in chosen:
                assert not told, "it went on"
                told.append(number)
                os.kill(os.getpid(), signal.SIGINT)
            progress(number)

        return original(*arguments, progress=signalled, **options)

    chosen: set[int] = set()
    monkeypatch.setattr(language, part, disturbed)
    assert train(name, "again")[0] == 0
    number = passes[part] - 1  # of validations; behind them comes the test
    chosen, passes[part] = {number if when == "last" else 1}, 0
    assert train(name, "cut")[0] == 130
    if when == "in a resumed run" and part == "evaluate":  # what it owes comes first, and is interrupted again
        passes[part] = 0
        code, moments = train(name, "cut", resume=True)
        assert (code, "before step" in moments) == (130, False)
    chosen = set()
    assert train(name, "cut", resume=True)[0] == 0
    assert_same_end(Path("cut"), Path("whole"))
    assert decided(Path("cut")) == decided(Path("whole"))


@pytest.mark.slow
@pytest.mark.parametrize("number", SIGNALS)
@pytest.mark.parametrize("name", TRAININGS)
def test_a_signal_at_any_moment_changes_nothing(
    name: str, number: int, place: Path, train: Callable[..., Any], check: Callable[..., None]
) -> None:
    _, moments = train(name, "whole")
    for at in range(len(moments)):
        check(name, {at: number})


@pytest.mark.slow
@pytest.mark.parametrize("name", TRAININGS)
def test_a_wish_to_save_before_a_wish_to_stop_changes_nothing(
    name: str, place: Path, train: Callable[..., Any], check: Callable[..., None]
) -> None:
    """A checkpoint that a signal asked for is none that training goes back to."""
    _, moments = train(name, "whole")
    chance = random.Random(1)
    for first, second in {tuple(sorted(chance.sample(range(len(moments)), 2))) for _ in range(60)}:
        check(name, {first: signal.SIGUSR1, second: signal.SIGTERM})


def test_the_trainings_go_where_an_interruption_could_lead_them_astray(place: Path, train: Callable[..., Any]) -> None:
    """They cut the rate, start to average, go back to the last checkpoint and to the best, and leave chunks out."""
    for name in TRAININGS:
        assert train(name, name)[0] == 0
    learners = {name: load_checkpoint(find_checkpoint(name, "last")).documents["training"]["state"] for name in TRAININGS}
    assert learners["plateau"]["learner"]["schedule"]["cuts"] > 0
    assert learners["nt_asgd"]["learner"]["averaging"]["started"]
    assert learners["every epoch"]["learner"]["schedule"]["best"] is not None
    log = Path("rollback/lmtrain.log").read_text(encoding="utf-8")
    assert log.count("Going back to step") == 3, log
    assert learners["rollback"]["learner"]["rate_scale"] == 0.125
    stale = learners["patience"]
    assert (stale["num_stale"], stale["evaluated_step"] - stale["best_step"]) == (2, 4)
    assert 4 < stale["step"] < 13
    assert Path("skip/lmtrain.log").read_text(encoding="utf-8").count("This batch is skipped.") == 4
