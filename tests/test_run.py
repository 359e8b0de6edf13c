"""`lmtrain.train`: a training from Python is that of the command line, and leaves the process as it was."""

import errno
import io
import logging
import os
import random
import runpy
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import lmtrain
from lmtrain.errors import CheckpointError, SettingsError
from lmtrain.inference.dynamic import Adaptive, Dynamic
from lmtrain.training.learner import GradientLearner, StepReport
from lmtrain.training.schedule import Progress

SMALL = [
    "data=text", "data.path=text.txt", "model.embed_size=6", "model.hidden_size=8", "trainer.batch_size=4",
    "trainer.chunk_length=10", "trainer.num_steps=6", "trainer.max_seconds=null", "trainer.log_every=2",
    "trainer.sample_tokens=5", "trainer.num_threads=1", "trainer.precision=float32",
]  # fmt: skip


def test_a_run_from_python_is_that_of_the_command_line(place: Path, assert_same_run: Callable[[Path, Path], None]) -> None:
    run = lmtrain.train(*SMALL, "trainer.save_every=2", "hydra.run.dir=mine")
    assert run.path == place / "mine"
    assert_same_run(run.path, place / "run")
    assert run.best is not None
    assert run.best.nats_per_token == pytest.approx(run.model.perplexity("text.txt").nats_per_token, rel=0.2)
    assert [record["step"] for record in run.metrics] == [2, 4, 6, 6]
    assert {"settings.json", "run.json", "lmtrain.log", ".hydra"} <= {entry.name for entry in run.path.iterdir()}
    assert "validation" in (run.path / "lmtrain.log").read_text(encoding="utf-8")
    further = lmtrain.train(f"resume={run.path}", "trainer.num_steps=8")
    assert further.path == run.path
    assert further.metrics[-1]["step"] == 8


@pytest.fixture
def assert_same_run() -> Callable[[Path, Path], None]:
    def check(ours: Path, theirs: Path) -> None:
        first, second = (lmtrain.load(path, checkpoint="last").network for path in (ours, theirs))
        assert isinstance(first, torch.nn.Module)
        assert isinstance(second, torch.nn.Module)
        weights = second.state_dict()
        assert all(tensor.equal(weights[name]) for name, tensor in first.state_dict().items())

    return check


def state_of_the_process() -> list[Any]:
    logger = logging.getLogger("lmtrain")
    return [
        [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1)],
        random.getstate(), repr(np.random.get_state()), torch.get_rng_state().tolist(), torch.get_num_threads(), os.getcwd(),
        float(torch.tensor(1e-320, dtype=torch.float64) * 1), logging.raiseExceptions, logger.level, list(logger.handlers),
        threading.excepthook, list(sys.argv), torch.are_deterministic_algorithms_enabled(),
    ]  # fmt: skip


def test_the_process_is_afterwards_as_it_was(place: Path) -> None:
    torch.set_flush_denormal(False)
    before = state_of_the_process()
    lmtrain.train(*SMALL, "hydra.run.dir=mine", "trainer.num_threads=2", "hydra.job.chdir=true")
    assert state_of_the_process() == before
    with pytest.raises(SettingsError):
        lmtrain.train(*SMALL, "model.hidden_size=-1")
    assert state_of_the_process() == before


@contextmanager
def default(setter: Callable[[Any], None], value: Any, usual: Any) -> Iterator[None]:
    setter(value)
    try:
        yield
    finally:
        setter(usual)


SURROUNDINGS: dict[str, Callable[[], AbstractContextManager[Any]]] = {
    "autocast": lambda: torch.autocast("cpu", torch.bfloat16),
    "an autocast that is closed": lambda: torch.autocast("cpu", enabled=False),
    "no_grad": torch.no_grad,
    "inference_mode": torch.inference_mode,
    "float64": lambda: default(torch.set_default_dtype, torch.float64, torch.float32),
    "bfloat16": lambda: default(torch.set_default_dtype, torch.bfloat16, torch.float32),
    "another device": lambda: default(torch.set_default_device, "meta", None),
    "another device as a context": lambda: torch.device("meta"),
}


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
@pytest.mark.parametrize("around", SURROUNDINGS)
def test_what_the_caller_has_set_in_pytorch_changes_nothing(
    around: str, precision: str, place: Path, assert_same_run: Callable[[Path, Path], None]
) -> None:
    settings = [*SMALL, f"trainer.precision={precision}", "trainer.clip_norm=1", "optimizer.learning_rate=0.1"]
    text, adaptive = "to be or not to be\n" * 9, Adaptive(dynamic=Dynamic(rate=0.5, segment_length=5))

    def numbers(run: lmtrain.Run) -> list[Any]:
        lm = lmtrain.load(run.path)
        return [
            run.best, lm.score(text, precision=precision), lm.sample("to", max_tokens=9, precision=precision), lm.next("be"),
            lm.perplexity([text], method=adaptive, precision=precision), lm.log_probs("to be").tolist(),
            lm.beam("to", max_tokens=5),
        ]  # fmt: skip

    usual = lmtrain.train(*settings, "hydra.run.dir=usual")
    expected = numbers(usual)
    with SURROUNDINGS[around]():
        run = lmtrain.train(*settings, "hydra.run.dir=within")
        found = numbers(run)
    assert_same_run(run.path, usual.path)
    assert found == expected


def test_mistakes_are_errors_of_ours_and_leave_nothing(place: Path) -> None:
    for settings, words in [
        (["model.hiden_size=3"], "did you mean model.hidden_size"), (["-m", "model=gru"], "no options of the command line"),
        (["model=gru,lstm"], "gives several values"), (["data.path=nosuch.txt"], "nosuch.txt"),
    ]:  # fmt: skip
        with pytest.raises(lmtrain.UserError, match=words):
            lmtrain.train(*SMALL, "hydra.run.dir=bad", *settings)
        assert not Path("bad").exists()
    with pytest.raises(CheckpointError, match="is not a run directory"):
        lmtrain.train("resume=nosuch")


def test_it_runs_in_a_thread(place: Path) -> None:
    runs: list[lmtrain.Run] = []
    thread = threading.Thread(target=lambda: runs.append(lmtrain.train(*SMALL, "hydra.run.dir=mine")))
    thread.start()
    thread.join()
    assert runs[0].best is not None


def test_a_second_one_beside_the_first_is_refused(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """They would share the log, the random states, Hydra's state and the working directory."""
    step, refused = GradientLearner.step, []

    def beside(self: GradientLearner, chunk: Any, progress: Progress) -> StepReport:
        if progress.step == 2:
            with pytest.raises(SettingsError, match="A training is going on in this process"):
                lmtrain.train(*SMALL, "hydra.run.dir=other")
            refused.append(progress.step)
        return step(self, chunk, progress)

    monkeypatch.setattr(GradientLearner, "step", beside)
    assert lmtrain.train(*SMALL, "hydra.run.dir=mine").best is not None
    assert refused == [2]
    assert not Path("other").exists()
    with pytest.raises(SettingsError):
        lmtrain.train("nosuch=1")
    assert lmtrain.train("resume=mine", "trainer.num_steps=7").best is not None  # what is refused keeps nobody out


@pytest.mark.parametrize("name", ["stdout", "stderr"])
def test_it_trains_where_there_are_no_standard_streams(name: str, place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, name, None)
    assert lmtrain.train(*SMALL, "hydra.run.dir=mine").best is not None
    assert getattr(sys, name) is None


def test_output_that_cannot_be_written_is_not_blamed_on_the_run(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Gone(io.StringIO):
        def write(self, text: str) -> int:
            raise BrokenPipeError(errno.EPIPE, "Broken pipe")

    monkeypatch.setattr(sys, "stdout", Gone())
    with pytest.raises(BrokenPipeError):
        lmtrain.train(*SMALL, "hydra.run.dir=mine")


def test_ctrl_c_saves_and_is_raised(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    step = GradientLearner.step

    def interrupted(self: GradientLearner, chunk: Any, progress: Progress) -> StepReport:
        if progress.step == 2:
            os.kill(os.getpid(), signal.SIGINT)
        return step(self, chunk, progress)

    monkeypatch.setattr(GradientLearner, "step", interrupted)
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with pytest.raises(KeyboardInterrupt):
            lmtrain.train(*SMALL, "hydra.run.dir=mine")
        assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    finally:
        signal.signal(signal.SIGINT, before)
    assert lmtrain.load("mine", checkpoint="last").step == 3


def test_it_runs_within_another_hydra_program(
    place: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "argv", ["program.py"])
    Path("other").mkdir()
    Path("other/config.yaml").write_text("x: 1\nname: ${hydra:job.name}\n", encoding="utf-8")
    Path("program.py").write_text(
        "import hydra, lmtrain\nfrom hydra.core.hydra_config import HydraConfig\n"
        "@hydra.main(version_base='1.2', config_path='other', config_name='config')\ndef main(settings):\n"
        "    before = HydraConfig.get().runtime.output_dir\n"
        f"    run = lmtrain.train(*{SMALL!r}, 'hydra.run.dir=mine')\n"
        "    assert HydraConfig.get().runtime.output_dir == before\n"
        "    assert hydra.version.VersionBase.instance().getbase().minor == 2\n"
        "    print('done', settings.name, run.best.nats_per_token > 0)\nmain()\n",
        encoding="utf-8",
    )
    runpy.run_path("program.py", run_name="__main__")
    assert "done program True" in capsys.readouterr().out


def test_ten_lines_train_score_sample_and_compare_two_models(place: Path) -> None:
    """As the README shows it."""
    program = f"""
import lmtrain
common = {[*SMALL, "tokenizer=word"]!r}
lstm = lmtrain.train(*common, "model=lstm", "hydra.run.dir=a").model
counts = lmtrain.train("data=text", "data.path=text.txt", "tokenizer=word", "model=ngram", "hydra.run.dir=b").model
for lm in (lstm, counts):
    print(lm, lm.perplexity("text.txt").perplexity, lm.next("the cat", top=2))
    better, worse = lm.score(["the cat sat", "sat the cat"])
    print(better.log_prob, worse.log_prob, lm.sample("the", max_tokens=5, num_samples=2))
"""
    ended = subprocess.run([sys.executable, "-W", "error", "-c", program], capture_output=True, text=True, timeout=120)
    assert ended.returncode == 0, ended.stderr
    assert ended.stdout.count("<lmtrain.Model ") == 2


def test_the_python_of_the_readme_runs(place: Path) -> None:
    readme = (Path(__file__).parents[1] / "README.md").read_text(encoding="utf-8")
    program = readme.split("## From Python\n")[1].split("```python\n")[1].split("```")[0]
    assert "trainer.max_seconds=60" in program
    lines = (place / "text.txt").read_text(encoding="utf-8").splitlines()
    (place / "my.txt").write_text("\n".join(line + " Return the list." for line in 4 * lines) + "\n", encoding="utf-8")
    quick = program.replace('"trainer.max_seconds=60"', '"trainer.max_seconds=1", "trainer.num_threads=1"')
    exec(compile(quick, "README.md", "exec"), {})
