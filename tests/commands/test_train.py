"""Training as a user runs it: what is written, exact resuming after any stop, and every kind of model through one code."""

import ctypes
import json
import os
import re
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

import lmtrain.tasks.language as language
from lmtrain.__main__ import main
from lmtrain.commands import training
from lmtrain.commands.summary import _limit
from lmtrain.ops.native import build
from lmtrain.tasks.language import prompt_option
from lmtrain.training.board import Board
from lmtrain.training.session import Session

TINY = [
    "model.embed_size=6", "model.hidden_size=8", "trainer.batch_size=4", "trainer.chunk_length=10", "trainer.num_steps=24",
    "trainer.max_seconds=null", "trainer.log_every=4", "trainer.sample_tokens=20", "trainer.num_threads=1",
]  # fmt: skip
COUNTED = ["trainer.log_every=4", "trainer.sample_tokens=20", "trainer.num_threads=1"]


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A directory of one's own with a small text in it."""
    words = ["the", "cat", "sat", "on", "a", "mat", "and", "then", "ran", "away"]
    lines = [" ".join(words[(i * j + i) % 10] for j in range(1, 8)) for i in range(1, 90)]
    (tmp_path / "text.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["lmtrain"])
    threads = torch.get_num_threads()
    yield tmp_path
    torch.set_num_threads(threads)
    torch.set_flush_denormal(False)


def train(run: str, *settings: str) -> Path:
    main(["data=text", "data.path=text.txt", f"hydra.run.dir={run}", *settings])
    return Path(run)


def final_tensors(run: Path) -> dict[str, torch.Tensor]:
    directory = run / "checkpoints" / (run / "checkpoints" / "last").read_text().strip()
    return {
        f"{name}/{key}": tensor
        for name in ("model", "training")
        for key, tensor in load_file(directory / f"{name}.safetensors").items()
    }


def losses(run: Path) -> list[tuple[int, str, float]]:
    """Everything logged but the speed."""
    records = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [(r["step"], key, value) for r in records for key, value in r.items() if not key.startswith("perf/")]


def assert_same_end(ours: Path, theirs: Path) -> None:
    expected, got = final_tensors(theirs), final_tensors(ours)
    assert expected.keys() == got.keys()
    for name, tensor in expected.items():
        assert torch.equal(tensor, got[name]), f"{name} differs"
    assert losses(ours) == losses(theirs)


@pytest.mark.parametrize(
    "model",
    [
        ["model=lstm", "tokenizer=char"],
        ["model=gru", "tokenizer=byte"],
        ["model=elman", "tokenizer=word"],
        ["model=window", "tokenizer=word"],
        ["model=ngram", "tokenizer=word"],
    ],
    ids=lambda settings: settings[0],
)
def test_every_model_trains_evaluates_scores_and_samples(
    model: list[str], place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = train("run", *model, *(COUNTED if "ngram" in model[0] else TINY))
    shown = capsys.readouterr().out
    assert "perplexity" in shown
    assert shown.index("continued at temperature") < shown.index("Test of the best model"), "a long sample would hide it"
    (sample,) = [shlex.split(line)[3:] for line in shown.splitlines() if line.startswith("  python -m lmtrain sample")]
    assert sample[:-1] == ["sample", "run", "--prompt"]
    assert {path.name for path in run.iterdir()} >= {"settings.json", "run.json", "metrics.jsonl", "checkpoints", "tensorboard"}

    main(["evaluate", "run", "--json"])
    bill = json.loads(capsys.readouterr().out)
    assert bill["num_streams"] == 1
    (place / "test.txt").write_text(test_split(place), encoding="utf-8")
    main(["score", "run", "test.txt", "--json"])
    total = json.loads(capsys.readouterr().out.splitlines()[-1])["total"]
    assert total["total_nats"] == bill["total_nats"], "evaluate and score must agree to the last digit"
    assert total["num_tokens"] == bill["num_tokens"]

    os.rename(run / "checkpoints" / (run / "checkpoints" / "best").read_text().strip(), place / "moved")
    (place / "text.txt").unlink()
    main(["sample", "moved", *sample[2:], "--strict", "--max-tokens", "1"])
    assert capsys.readouterr().out.startswith(sample[-1])
    main(["sample", "moved", "--prompt", "the", "--max-tokens", "9", "--seed", "4"])
    first = capsys.readouterr().out
    main(["sample", "moved", "--prompt", "the", "--max-tokens", "9", "--seed", "4"])
    assert capsys.readouterr().out == first
    assert first.startswith("the")
    main(["evaluate", "moved", "--json"])
    assert json.loads(capsys.readouterr().out)["total_nats"] == bill["total_nats"]


def test_a_mixture_is_a_model_like_any_other_and_needs_none_of_its_parts(
    place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    train("neural", "model=gru", "tokenizer=word", *TINY, "model.dropout=0.3")
    train("counts", "model=ngram", "model.order=3", "tokenizer=word", *COUNTED)
    main(["mix", "neural", "counts", "--output", "mixture"])
    assert "validation perplexity alone" in capsys.readouterr().out
    bills = {}
    for run in ("neural", "counts", "mixture"):
        main(["evaluate", run, "--split", "valid", "--json"])
        bills[run] = json.loads(capsys.readouterr().out)
    assert bills["mixture"]["total_nats"] <= min(bills["neural"]["total_nats"], bills["counts"]["total_nats"]) * 1.001
    for run in ("neural", "counts"):
        os.rename(run, f"gone-{run}")
    main(["evaluate", "mixture", "--dynamic", "sgd", "--cache", "50", "--json"])
    assert json.loads(capsys.readouterr().out)["method"].startswith("dynamic evaluation")
    main(["score", "mixture", "text.txt"])
    assert "perplexity" in capsys.readouterr().out
    main(["sample", "mixture", "--prompt", "the cat", "--max-tokens", "5"])
    assert capsys.readouterr().out.startswith("the cat")


def test_split(place: Path) -> str:
    """The text of the test split, read back from the ids that were saved with the model."""
    from lmtrain.saved import load_trained

    trained = load_trained(place / "run")
    return trained.tokenizer.decode(trained.texts["test"].ids)


test_split.__test__ = False  # type: ignore[attr-defined]


def test_kernels_are_compiled_before_the_time_of_training_begins(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert build.why_no_library() is None
    library, happened = build.library(), []

    def load(_: str) -> ctypes.CDLL:
        happened.append("compiled")
        return library

    def made(*parts: Any, **options: Any) -> Session:
        happened.append("began")
        return Session(*parts, **options)

    monkeypatch.setattr(build, "_libraries", {})
    monkeypatch.setattr(build, "_load", load)
    monkeypatch.setattr(training, "Session", made)
    train("whole", *TINY)
    assert happened == ["compiled", "began"]


FEATURES = {
    "lstm, dropout": ["model=lstm", "model.dropout=0.3", "model.num_layers=2"],
    "gru, locked dropout, plateau": ["model=gru", "model.dropout=0.3", "model.locked_dropout=true", "schedule=plateau"],
    "elman, weight drop, ema": ["model=elman", "model.weight_drop=0.3", "optimizer.averaging=ema", "optimizer.ema_decay=0.9"],
    "window, sgd, one cycle": [
        "model=window", "model.dropout=0.2", "optimizer=sgd", "optimizer.learning_rate=1", "schedule=one_cycle",
    ],
    "lstm, sampled softmax": ["model=lstm", "model.head=sampled", "model.num_samples=5"],
    "gru, nt-asgd": ["model=gru", "optimizer.averaging=nt_asgd", "optimizer.patience=1", "trainer.evaluate_every=3"],
    "elman, overlap": ["model=elman", "trainer.backward_length=14"],
    "lstm, random lengths": ["model=lstm", "trainer.random_chunk_length=true", "model.zoneout=0.2"],
}  # fmt: skip


QUICK = [("lstm, dropout", 17)]  # more in one process: tests/faults/test_resume.py
STOPS = [(features, stop_at) for features in FEATURES for stop_at in (1, 9, 16, 17, 23)]


@pytest.mark.parametrize(
    ("features", "stop_at"),
    [*QUICK, *(pytest.param(*stop, marks=pytest.mark.slow) for stop in STOPS if stop not in QUICK)],
)
def test_a_resumed_run_ends_bit_for_bit_like_the_uninterrupted_one(features: str, stop_at: int, place: Path) -> None:
    """The epoch has 16 steps or so: stops lie at its start, in its middle, and behind its end."""
    settings = [*TINY, *FEATURES[features]]
    whole = train("whole", *settings)
    cut(Path("stopped"), stop_at, settings)
    main(["resume=stopped"])
    assert_same_end(Path("stopped"), whole)


def cut(run: Path, step: int, settings: list[str]) -> None:
    """Trains into `run` in a process that is killed (no signal handler, no cleaning up) as soon as `step` is saved."""
    code = (
        "import os, sys\n"
        "from lmtrain.commands.saver import Saver\n"
        "save = Saver.__call__\n"
        "def save_and_die(self, state, is_best):\n"
        "    save(self, state, is_best)\n"
        f"    if state.step == {step}: os.kill(os.getpid(), 9)\n"
        "Saver.__call__ = save_and_die\n"
        "from lmtrain.__main__ import main\n"
        "main(sys.argv[1:])\n"
    )
    arguments = ["data=text", "data.path=text.txt", f"hydra.run.dir={run}", *settings, "trainer.save_every=1"]
    result = subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True, timeout=120, check=False)
    assert result.returncode == -9, result.stderr


@pytest.mark.parametrize(
    ("number", "code"), [(signal.SIGINT, 130), pytest.param(signal.SIGTERM, 143, marks=pytest.mark.slow)]
)  # fmt: skip
def test_a_signal_saves_prints_how_to_resume_and_loses_nothing(number: int, code: int, place: Path) -> None:
    settings = [
        *TINY,
        "schedule=constant",
        "trainer.num_steps=1000000",
        "trainer.log_every=1",
        "trainer.evaluate_every=1000000",
    ]
    process = subprocess.Popen(
        [sys.executable, "-m", "lmtrain", "data=text", "data.path=text.txt", "hydra.run.dir=run", *settings],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        preexec_fn=lambda: signal.signal(number, signal.SIG_DFL),  # a shell ignores SIGINT for what it runs in the background
    )  # fmt: skip
    metrics = Path("run/metrics.jsonl")
    deadline = time.monotonic() + 60
    while not (metrics.exists() and metrics.stat().st_size > 500):
        assert time.monotonic() < deadline
        assert process.poll() is None, process.communicate()[1]
        time.sleep(0.05)
    process.send_signal(number)
    _, shown = process.communicate(timeout=60)
    assert process.returncode == code, shown
    assert "python -m lmtrain resume=run" in shown
    assert "Traceback" not in shown
    last = Path("run/checkpoints/last").read_text().strip()
    stopped_at = int(last.split("-")[1])
    main(["resume=run", f"trainer.num_steps={stopped_at + 3}"])
    whole = train("whole", *settings[:-3], f"trainer.num_steps={stopped_at + 3}", *settings[-2:])
    assert final_tensors(Path("run"))["model/head.bias_V"].equal(final_tensors(whole)["model/head.bias_V"])


def refused(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str]:
    with pytest.raises(SystemExit) as exit_:
        main(list(arguments))
    assert isinstance(exit_.value.code, int)
    return exit_.value.code, capsys.readouterr().err


def test_a_range_test_draws_its_curve_even_when_it_diverges(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    train("run", *TINY, "optimizer=sgd", "schedule=range_test", "schedule.low=0.01", "schedule.high=1e12",
          "trainer.num_steps=60", "trainer.log_every=1", "trainer.clip_norm=0",
          "model=elman", "model.nonlinearity=relu")  # fmt: skip
    assert "no learning rate can be read from the loss, which falls no more than batches differ" in capsys.readouterr().out
    assert Path("run/range_test.svg").read_text().startswith("<svg")


def test_a_range_test_names_two_rates_where_the_loss_falls(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    train("run", *TINY, "schedule=range_test", "trainer.num_steps=120", "trainer.log_every=1")
    found = re.search(r"falls fastest at a learning rate of (\S+) and is lowest at (\S+) \(", capsys.readouterr().out)
    assert found is not None
    assert 0.001 < float(found[1]) < float(found[2]) < 1


def test_no_steps_at_all_still_gives_a_model(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    train("run", *TINY, "trainer.num_steps=0")
    assert "perplexity" in capsys.readouterr().out


def test_a_run_that_has_ended_says_by_what_and_how_to_go_on(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    train('"my run"', *TINY)
    command = shlex.split(capsys.readouterr().out.splitlines()[-1])
    assert command == ["python", "-m", "lmtrain", 'resume="my run"', "trainer.num_steps=48"]
    checkpoints = sorted(path.name for path in Path("my run/checkpoints").iterdir())
    main(["resume=my run"])
    shown = capsys.readouterr().out
    assert "Nothing is left to train: Training ended at trainer.num_steps=24." in shown
    assert sorted(path.name for path in Path("my run/checkpoints").iterdir()) == checkpoints
    main(command[3:])
    assert losses(Path("my run"))[-1][0] == 48


@pytest.mark.parametrize(
    ("text", "option"),
    [
        (" = Robert Boulter = \n", ' --prompt "Robert Boulter"'),
        ('"don\'t" $(rm) `x` it is what it is', ' --prompt "it is what"'),
        ("été où\nça", ' --prompt "été où"'),
        ("!! ...\n", ""),
    ],
)
def test_the_prompt_to_type_is_of_whole_words_that_a_shell_leaves_alone(text: str, option: str) -> None:
    assert prompt_option(text) == option


def test_limits_are_printed_as_they_can_be_typed() -> None:
    assert _limit("num_steps", 2_469_134.0) == "trainer.num_steps=2469134"
    assert _limit("num_epochs", 0.5) == "trainer.num_epochs=0.5"


def test_a_changed_text_is_refused_on_resume(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    train("run", *TINY)
    (place / "text.txt").write_text((place / "text.txt").read_text() + "one more line\n")
    code, message = refused(capsys, "resume=run", "trainer.num_steps=30")
    assert code == 4
    assert "The text has changed" in message


def test_settings_that_make_another_model_are_refused_on_resume(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    train("run", *TINY)
    before = final_tensors(Path("run"))
    code, message = refused(capsys, "resume=run", "model.hidden_size=9", "trainer.seed=2")
    assert code == 2
    assert "model.hidden_size is 8 in this run and cannot become 9" in message
    assert "trainer.seed is 1 in this run and cannot become 2" in message
    assert all(torch.equal(tensor, before[name]) for name, tensor in final_tensors(Path("run")).items())


def test_too_little_text_says_how_much_is_needed(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (place / "text.txt").write_text("a b c d e f g\n" * 10)
    code, message = refused(capsys, "data=text", "data.path=text.txt", *TINY, "trainer.batch_size=50")
    assert code == 3
    assert "50 x" in message or "550" in message


def test_a_gpu_that_is_absent_is_said_before_anything_is_written(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    if torch.cuda.is_available():
        pytest.skip("there is a GPU")
    code, message = refused(capsys, "data=text", "data.path=text.txt", "trainer.device=cuda", "hydra.run.dir=run")
    assert code == 2
    assert "trainer.device=auto" in message
    assert not Path("run/settings.json").exists()


def test_a_run_directory_without_a_checkpoint_says_so(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (place / "empty").mkdir()
    for arguments in (["resume=empty"], ["sample", "empty"], ["evaluate", "empty"], ["score", "empty", "text.txt"]):
        code, message = refused(capsys, *arguments)
        assert code == 4, arguments
        assert "empty" in message


def test_a_diverging_run_stops_with_its_own_exit_code_and_keeps_its_checkpoint(
    place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    train("run", *TINY)
    capsys.readouterr()
    code, message = refused(
        capsys, "data=text", "data.path=text.txt", *TINY, "hydra.run.dir=run2", "optimizer=sgd",
        "optimizer.learning_rate=1000", "trainer.clip_norm=0", "model.init_range=10", "model=elman",
        "model.nonlinearity=relu", "model.init=uniform", "trainer.num_steps=200",
    )  # fmt: skip
    assert code == 5
    assert "is not finite at step" in message
    assert "Traceback" not in message


@pytest.mark.parametrize(
    ("name", "train_text", "valid_text", "prompt"),
    [
        ("char", "abc \n" * 40, "ab#" + "abc " * 40, "abc " * 15),
        ("word", "a b c\n" * 40, "a # b c\na " + "# " + "c b a\n" * 20, "c b a\nc b a\nc b"),  # 10 tokens, two of them <eos>
        ("word", "a b c\n" * 40, "# # # a b # c\n", "a b"),
        ("word", "a b c\n" * 40, "# # #", "\n"),
        ("byte", "abc\n" * 40, "a" + "ß" * 40, "a" + "ß" * 29),  # the 60th byte is half a character
    ],
)
def test_the_prompt_of_samples_is_a_stretch_that_the_model_reads_as_it_is_shown(
    name: str, train_text: str, valid_text: str, prompt: str, tmp_path: Path
) -> None:
    from lmtrain.data.corpus import load_corpus
    from lmtrain.tasks.language import prompt_of

    for split, text in (("train", train_text), ("valid", valid_text), ("test", train_text)):
        (tmp_path / f"{split}.txt").write_text(text, encoding="utf-8")
    corpus = load_corpus(tmp_path, tokenizer=name, cache_dir=tmp_path / "cache")
    assert prompt_of(corpus) == prompt
    ids = corpus.tokenizer.encode(prompt)
    assert corpus.tokenizer.unk_id not in ids


def test_a_model_that_expects_only_unknown_words_still_trains_and_shows_a_sample(
    place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    train("rare", "model=ngram", "model.smoothing=maximum_likelihood", "tokenizer=word", "tokenizer.min_count=1000", *COUNTED)
    assert "<unk> <unk>" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("settings", "most"),
    [(["tokenizer=char"], 400), (["tokenizer=byte"], 400), (["tokenizer=word"], 100),
     (["tokenizer=bpe", "tokenizer.vocab_size=270"], 100), (["tokenizer=word", "trainer.sample_tokens=7"], 7),
     (["tokenizer=word", "trainer.sample_tokens=0"], None)],
    ids=str,
)  # fmt: skip
def test_a_sample_is_as_long_as_suits_its_tokens_and_fills_no_screen(
    settings: list[str], most: int | None, place: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    lengths, recorded = [], []

    def written(*arguments: object, **options: object) -> str:
        lengths.append(arguments[3].max_tokens)
        return "\n\nfirst\n\n \n\nsecond\nthird" + "\n\n\nmore" * 100

    monkeypatch.setattr(language, "sample_text", written)
    monkeypatch.setattr(Board, "add_text", lambda board, tag, text, step: tag == "sample" and recorded.append(text))
    train("run", "model=ngram", "trainer.log_every=4", "trainer.num_threads=1", *settings)
    assert set(lengths) == ({most} if most else set())
    if not most:
        return
    shown = capsys.readouterr().out.partition("continued at temperature 0.5:\n")[2].partition("\nTest of")[0].splitlines()
    assert (len(shown), shown[-1]) == (12, "    ...")
    stripped = [line.strip() for line in shown]
    assert {"first", "second"} <= set(stripped)
    assert ("", "") not in pairwise(stripped)
    for text in recorded:
        assert "\n\nfirst\n\nsecond\nthird\n\nmore" in text
        assert text.count("more") == 100
    assert recorded
