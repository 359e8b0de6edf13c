"""Several processes, started as torchrun does, train what one process trains; they fail, stop and start again together."""

import json
import os
import resource
import runpy
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

HERE = runpy.run_path(str(Path(__file__).with_name("starting.py")))
SMALL, start, ended, train, tensors = (HERE[name] for name in ("SMALL", "start", "ended", "train", "tensors"))
environment, losses = HERE["environment"], HERE["losses"]


def assert_same_run(one: str, other: str) -> None:
    torch.testing.assert_close(losses(other), losses(one), rtol=1e-5, atol=0)
    torch.testing.assert_close(tensors(other), tensors(one), rtol=1e-3, atol=2e-5)


def test_two_processes_train_what_one_does(call: Callable[..., Any]) -> None:
    """Five streams: two and three; with dropout, an overlapping backward pass, and what is carried from chunk to chunk."""
    assert call(*SMALL, "trainer.num_threads=1", "hydra.run.dir=one", "trainer.backward_length=15").code == 0
    train(2, "two", "trainer.backward_length=15")
    assert_same_run("one", "two")
    assert len(tensors("two")["training.state.previous"]) == 5


@pytest.mark.slow
@pytest.mark.parametrize("size", [2, 3])
@pytest.mark.parametrize(
    "more",
    [
        ["model=window"],
        ["model=elman", "model.zoneout=0.2"],
        ["model=gru", "model.locked_dropout=true", "model.weight_drop=0.2", "model.activation_penalty=1"],
        ["model=lstm", "model.embedding_dropout=0.2", "model.temporal_penalty=1", "optimizer.l1=0.0001"],
        ["model=lstm", "tokenizer=word", "model.head=sampled", "model.num_samples=7"],
        ["model=lstm", "tokenizer=word", "model.head=adaptive", "model.cutoffs=[5,50]", "trainer.random_chunk_length=true"],
        ["model=gru", "tokenizer=word", "trainer.batch_size=7", "trainer.chunk_length=2"],  # sparse gradients
        ["model=lstm", "model.hidden_size=520"],  # a gradient whose sum begins within the backward pass
    ],
    ids=lambda more: more[0] + more[-1],
)
def test_every_family_is_the_same_in_any_number_of_processes(size: int, more: list[str]) -> None:
    train(1, "one", *more)
    train(size, "several", *more)
    assert_same_run("one", "several")


@pytest.mark.slow
def test_a_run_resumes_bit_for_bit_with_as_many_processes_and_nearly_with_others() -> None:
    train(2, "whole")
    train(2, "half", "trainer.num_steps=6", "schedule=constant")
    train(2, "straight", "schedule=constant")
    for size, name in ((2, "half2"), (1, "half1"), (3, "half3")):
        subprocess.run(["cp", "-r", "half", name], check=True)
        codes, said = ended(start(size, [f"resume={name}", "trainer.num_steps=12"]))
        assert codes == [0] * size, said
    torch.testing.assert_close(tensors("half2"), tensors("straight"), rtol=0, atol=0)
    for name in ("half1", "half3"):
        torch.testing.assert_close(tensors(name), tensors("straight"), rtol=1e-3, atol=2e-5)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("more", "words", "code"),
    [
        (["model=ngram"], "counted in one pass", 2),
        (["trainer.batch_size=1"], "less than the number of processes", 2),
        (["trainer.distributed=none"], "trainer.distributed=none", 2),
        (["modle=lstm"], "modle", 2),
        (["data.path=nothing.txt"], "nothing.txt", 3),
        (["optimizer=sgd", "optimizer.learning_rate=1000", "trainer.clip_norm=0", "model=elman",
          "model.nonlinearity=relu"], "not finite", 5),
    ],
)  # fmt: skip
def test_a_mistake_is_said_once_and_ends_all(more: list[str], words: str, code: int) -> None:
    small = [word for word in SMALL if more != ["model=ngram"] or word.startswith("data")]
    codes, said = ended(start(2, [*small, "hydra.run.dir=run", *more]))
    assert codes == [code, code], said
    assert "".join(said).count("lmtrain: ") == 1
    assert words in "".join(said)
    assert "Traceback" not in "".join(said)
    (written,) = Path().glob("error?.json")  # torchrun's summary gives the reason too
    reason = json.loads(written.read_text())["message"]
    assert words in reason["message"]
    assert "py_callstack" not in reason["extraInfo"]  # of which torchrun would show nothing but that


@pytest.mark.slow
def test_a_full_disk_of_the_first_process_ends_all_with_its_words() -> None:
    train(1, "fills_the_cache")

    def limit() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (9_000, 9_000))

    codes, said = ended(start(2, [*SMALL, "hydra.run.dir=run", "model.hidden_size=64"], limit))
    assert codes == [6, 6], said
    assert said[0].count("lmtrain: ") == 1
    assert "cannot be saved" in said[0]
    assert said[1] == ""
    assert "Traceback" not in said[0]


def _wait_for(path: Path) -> None:
    end = time.monotonic() + 40
    while not path.exists():
        assert time.monotonic() < end
        time.sleep(0.02)


@pytest.mark.slow
@pytest.mark.parametrize("victim", [0, 1])
def test_a_signal_to_one_process_saves_and_ends_all(victim: int) -> None:
    processes = start(2, [*SMALL, "hydra.run.dir=run", "trainer.num_steps=1000000"])
    _wait_for(Path("run/checkpoints/last"))
    processes[victim].send_signal(signal.SIGTERM)
    codes, said = ended(processes)
    assert codes == [143, 143], said
    assert "everything is saved" in said[0]


@pytest.mark.slow
@pytest.mark.parametrize("victim", [0, 1])
def test_a_process_that_is_killed_ends_the_others_with_one_message(victim: int) -> None:
    processes = start(3, [*SMALL, "hydra.run.dir=run", "trainer.num_steps=1000000"])
    _wait_for(Path("run/checkpoints/last"))
    processes[victim].kill()
    began = time.monotonic()
    codes, said = ended(processes)
    assert time.monotonic() - began < 30
    assert [code for rank, code in enumerate(codes) if rank != victim] == [6, 6]
    if victim:  # with the first process the store goes, so that others cannot agree on who speaks
        assert "".join(said).count("lmtrain: ") == 1
    assert f"Process {victim} of 3 that train together is gone" in "".join(said)
    assert "Traceback" not in "".join(said)


@pytest.mark.slow
def test_torchrun_starts_a_killed_process_again_and_the_run_ends_with_the_same_bits() -> None:
    train(2, "straight", "trainer.num_steps=400", "trainer.evaluate_every=50")
    command = [
        sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", "--max-restarts=2",
        "-m", "lmtrain", *SMALL, "trainer.num_steps=400", "trainer.evaluate_every=50",
    ]  # fmt: skip
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=environment())
    end = time.monotonic() + 40
    while not (found := [*Path("outputs").glob("*/checkpoints/last")]):
        assert time.monotonic() < end
        time.sleep(0.01)
    (pid,) = [n for n in _children(process.pid) if b"RANK=1" in Path(f"/proc/{n}/environ").read_bytes().split(b"\0")]
    os.kill(pid, signal.SIGKILL)
    _, said = process.communicate(timeout=90)
    assert process.returncode == 0, said
    (run,) = Path("outputs").iterdir()
    assert found[0].parents[1] == run
    assert len(json.loads((run / "run.json").read_text())["sessions"]) == 2
    torch.testing.assert_close(tensors(str(run)), tensors("straight"), rtol=0, atol=0)


def _children(pid: int) -> list[int]:
    return [int(n) for n in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


@pytest.mark.slow
@pytest.mark.parametrize("size", [2, 3])
@pytest.mark.parametrize("policy", ["carry", "line"])
def test_a_large_validation_is_dealt_out_and_stays_the_number_that_it_is(size: int, policy: str) -> None:
    Path("text.txt").write_text(Path("text.txt").read_text() * 32)
    more = ("data.valid_fraction=0.6", f"model.state_policy={policy}", "trainer.evaluation_streams=5")
    train(1, "one", *more)
    train(size, "several", *more)
    torch.testing.assert_close(losses("several"), losses("one"), rtol=1e-5, atol=0)
    sessions = [json.loads(Path(run, "run.json").read_text())["sessions"][-1] for run in ("one", "several")]
    assert [session["num_evaluating_processes"] for session in sessions] == [1, size]
    assert sessions[1]["results"]["evaluation"]["num_tokens"] >= 100_000


@pytest.mark.slow
def test_only_the_first_process_draws_bars() -> None:
    """Also where all of them evaluate for long."""
    Path("text.txt").write_text(Path("text.txt").read_text() * 800)
    more = ("data.valid_fraction=0.9", "trainer.num_steps=2", "trainer.evaluation_streams=2", "trainer.evaluation_tokens=0")
    codes, said = ended(start(2, [*SMALL, "hydra.run.dir=run", *more]))
    assert codes == [0, 0]
    assert "Evaluating: done" in said[0]
    assert said[1] == ""


@pytest.mark.parametrize(("rank", "speaks"), [("0", True), ("1", False)])
def test_of_a_command_that_torchrun_starts_the_first_process_speaks(
    rank: str, speaks: bool, call: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", rank)
    done = call("settings", "trainer")
    assert (done.code, bool(done.out)) == (0, speaks)


def test_a_search_by_torchrun_is_refused(call: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    done = call("search", "space.yaml")
    assert done.code == 2
    assert "Start the search without torchrun" in done.err
