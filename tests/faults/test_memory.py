"""Memory: estimated before it is taken, and what is said when it runs out."""

import re
import resource
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import lmtrain.config as config
import lmtrain.memory as memory
import lmtrain.tasks.language as language
from lmtrain.application import check_overrides, register_schemas
from lmtrain.build import build_corpus, build_learner, build_model, build_stream
from lmtrain.data.batches import Position
from lmtrain.errors import ResourceError, is_out_of_memory
from lmtrain.settings import reading
from lmtrain.training.checkpoint import find_checkpoint, verify_checkpoint
from lmtrain.training.learner import SequenceLearner
from lmtrain.training.schedule import Progress

Call = Callable[..., Any]
CPU = torch.device("cpu")
register_schemas()


def read(*overrides: str) -> config.Config:
    return reading.read_config(check_overrides(["data=text", "data.path=text.txt", "trainer.precision=float32", *overrides]))


MODELS = {
    "lstm, tied": ["model=lstm", "model.tie_weights=true", "model.hidden_size=24", "model.embed_size=24"],
    "gru of several sizes, sgd": ["model=gru", "model.hidden_sizes=[9,5]", "optimizer=sgd", "optimizer.momentum=0.9"],
    "elman, projection, ema": ["model=elman", "model.projection_size=3", "optimizer.averaging=ema"],
    "window, direct, rmsprop": ["model=window", "model.direct=true", "optimizer=rmsprop"],
    "lstm, sparse": ["model=lstm", "optimizer=sparse_adam", "model.layer_norm=true"],
    "lstm, hashed n-grams, adagrad": ["model=lstm", "model.maxent_order=3", "model.maxent_table=2048", "optimizer=adagrad"],
}


@pytest.mark.parametrize("name", MODELS)
def test_the_estimate_is_less_than_what_training_takes(name: str, place: Path) -> None:
    """All parameters, and no more copies of them than there are after a step: otherwise it would refuse what fits."""
    settings = read(*MODELS[name], "trainer.batch_size=4", "trainer.chunk_length=5", "data.cache_dir=cache")
    corpus = build_corpus(settings.data, settings.tokenizer)
    need = memory.estimate(settings, corpus.tokenizer.vocab_size)
    assert need is not None
    sparse = settings.optimizer.name is config.OptimizerName.sparse_adam
    model = build_model(settings.model, vocab_size=corpus.tokenizer.vocab_size, eos_id=0, sparse_embeddings=sparse)
    learner = build_learner(settings, model, corpus, CPU)
    assert isinstance(learner, SequenceLearner)
    learner.step(
        build_stream(settings.trainer, corpus, settings.model).batch(Position()),
        Progress(0, 0.0, 0.0),
    )
    parameters = list(learner.model.parameters())
    assert need.num_parameters == sum(p.numel() for p in parameters)
    numbers = sum(p.numel() for p in parameters) + sum(
        p.grad.numel() for p in parameters if p.grad is not None and not p.grad.is_sparse
    )
    numbers += sum(t.numel() for state in learner.optimizer.state.values() for t in state.values() if torch.is_tensor(t))
    numbers += sum(t.numel() for t in learner.averaging.tensors().values())
    assert 0.6 * 4 * numbers < need.weight_bytes <= 4 * numbers


def test_a_model_that_cannot_fit_is_refused_before_anything_is_allocated(
    place: Path, call: Call, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(memory, "device_bytes", lambda device: 200_000)
    monkeypatch.setattr(language, "build_model", None)  # what would take the memory
    ended = call("TRAIN", "model.hidden_size=200", "hydra.run.dir=large")
    assert ended.code == 6
    assert "vocabulary 16, embed_size 6, hidden 1 x 200, batch_size 4, chunk_length 10, adam" in ended.err
    remedies = re.search(r"Each of these would fit: (.*)\.\n", ended.err)
    assert remedies is not None
    for remedy in remedies[1].split("; "):
        asked = ["model.hidden_size=200", "model.embed_size=6", "trainer.batch_size=4", "trainer.chunk_length=10"]
        memory.check_memory(read(*asked, *remedy.split()), 16, CPU)
    assert not (place / "large").exists()


@pytest.mark.parametrize(
    ("given", "remedy"),
    [
        (
            ["task=tag", "model.hidden_sizes=[300]"],
            "Type a smaller model.embed_size or model.hidden_sizes, or let in fewer words",
        ),
        (["task=tag", "model=logistic", "model.context=100"], "Let in fewer words: tokenizer.vocab_size=50000"),
        (["task=classify", "model.embed_size=5000"], "Type a smaller model.embed_size, or let"),
        (["task=vectors", "model.embed_size=5000"], "Type a smaller model.embed_size"),
    ],
)
def test_so_are_taggers_classifiers_and_word_vectors(
    given: list[str], remedy: str, place: Path, call: Call, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("train", "valid"):
        (place / name).write_text("Ann I-PER\nsat O\n\n", encoding="utf-8")
    of_task = {"task=vectors": ["data.path=text.txt", "tokenizer.min_count=1"]}
    data = of_task.get(given[0], ["data.train=train", "data.valid=valid"])
    monkeypatch.setattr(memory, "device_bytes", lambda device: 50_000)
    ended = call(*given, *data, "hydra.run.dir=large")
    assert ended.code == 6, ended.err
    assert re.search(r"The [\d,]+ parameters of this \w+ model need at least [\d.]+ \w+ for weights", ended.err)
    assert remedy in ended.err
    assert not (place / "large").exists()


def test_the_way_out_depends_on_what_is_large(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "device_bytes", lambda device: 10_000_000)
    with pytest.raises(ResourceError, match=r"Each of these would fit: .*tokenizer\.vocab_size=\d+"):
        memory.check_memory(read("tokenizer=word", "model.embed_size=16", "model.hidden_size=16"), 1_000_000, CPU)
    with pytest.raises(ResourceError, match=r"Each of these would fit: .*trainer\.batch_size=\d+ trainer\.chunk_length=\d+"):
        memory.check_memory(read("trainer.batch_size=4000", "model.embed_size=16", "model.hidden_size=16"), 30, CPU)
    assert memory.check_memory(read("model=ngram"), 10_000_000, CPU) is None, "its tables grow with the text, not with settings"


ERRORS = {
    "python": MemoryError(),
    "cpu": RuntimeError("[enforce fail at alloc_cpu.cpp:117] err == 0. DefaultCPUAllocator: can't allocate memory: you tried"),
    "cuda": torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB."),
    "c++": RuntimeError("std::bad_alloc"),
}


@pytest.mark.parametrize("policy", ["carry", "line"])
def test_averages_of_many_tokens_are_refused_at_once_and_named(policy: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "memory_bytes", lambda: 16 << 30)
    averages = ["model=window", "model.num_averages=1000", "model.average_span=100000", f"model.state_policy={policy}"]
    with pytest.raises(ResourceError) as caught:
        memory.check_memory(read(*averages), 60, CPU)
    assert "1000 averages of 100000 tokens" in str(caught.value)
    fitting = re.search(r"would fit: (model\.num_averages=\d+ model\.average_span=\d+)", str(caught.value))
    assert fitting
    assert memory.check_memory(read(*averages, *fitting[1].split()), 60, CPU) is not None


@pytest.mark.parametrize(("error", "step"), [("python", 1), ("cpu", 5), ("cuda", 5), ("c++", 1), ("cpu", None)])
def test_running_out_of_memory_ends_with_6_and_says_what_would_fit(
    error: str, step: int | None, place: Path, call: Call, at_step: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: Any) -> None:
        raise ERRORS[error]

    if step is None:
        monkeypatch.setattr(language, "evaluate_split", fail)
    else:
        at_step({step: fail})
    ended = call("TRAIN", "trainer.save_every=2", "hydra.run.dir=large")
    assert ended.code == 6
    assert "Memory ran out: " in ended.err
    assert "hidden 1 x 8, batch_size 4, chunk_length 10" in ended.err
    assert (
        "model.embed_size=3 model.hidden_size=4; trainer.batch_size=2 trainer.chunk_length=5; tokenizer.vocab_size=8"
        in ended.err
    )
    assert "python -m lmtrain resume=large" in ended.err
    assert "Traceback" not in ended.err
    if step != 1:
        assert verify_checkpoint(find_checkpoint("large", "last")).step == (4 if step else 6)


def test_an_error_that_is_none_of_memory_is_not_called_one(place: Path, call: Call, at_step: Callable[..., None]) -> None:
    def fail(_: object) -> None:
        raise RuntimeError("mat1 and mat2 shapes cannot be multiplied")

    at_step({3: fail})
    with pytest.raises(RuntimeError, match="mat1 and mat2"):
        call("TRAIN", "hydra.run.dir=bug")


def test_what_pytorch_and_numpy_raise_is_recognised() -> None:
    with pytest.raises(RuntimeError) as by_torch:
        torch.empty(1 << 50, dtype=torch.uint8)
    with pytest.raises(MemoryError) as by_numpy:
        np.empty(1 << 50, np.uint8)
    assert is_out_of_memory(by_torch.value)
    assert is_out_of_memory(by_numpy.value)


def test_commands_that_use_a_model_say_it_too(place: Path, call: Call, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise ERRORS["cpu"]

    monkeypatch.setattr("lmtrain.saved.load_checkpoint", fail)
    ended = call("sample", "run")
    assert ended.code == 6
    assert "There is not enough memory: [enforce fail" in ended.err


def test_a_limit_on_memory_is_said_not_thrown(place: Path) -> None:
    """With a limit as of `ulimit -v`, a model beyond it is refused with the limit in the message."""

    def limited() -> None:
        resource.setrlimit(resource.RLIMIT_AS, (24_000_000_000, 24_000_000_000))

    arguments = ["data=text", "data.path=text.txt", "model.hidden_size=20000", "trainer.batch_size=4"]
    command = [sys.executable, "-m", "lmtrain", *arguments]
    result = subprocess.run(command, preexec_fn=limited, capture_output=True, text=True, timeout=60, check=False)
    assert result.returncode == 6, result.stderr
    assert "cpu has 24 GB" in result.stderr
    assert "Traceback" not in result.stderr
