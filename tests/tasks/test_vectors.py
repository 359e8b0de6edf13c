"""Trained word vectors: they learn, go on bit for bit, come back from the disk, are shown in the projector, and refuse what is
no use."""

import json
import random
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tensorboard.plugins.projector.projector_config_pb2 import ProjectorConfig

import lmtrain
from lmtrain.__main__ import main
from lmtrain.data.batches import Position, Shuffled
from lmtrain.data.characters import iter_normalized, normalized
from lmtrain.data.tokenizer import learn_tokenizer
from lmtrain.errors import CheckpointError, DataError, SettingsError
from lmtrain.models.word_vectors import GloveVectors
from lmtrain.tasks.vectors_model import PAIRS, judge
from lmtrain.training.run_record import find_curves
from lmtrain.vectors.batches import pair_batches, window_batches
from lmtrain.vectors.svd import count_pairs
from lmtrain.vectors.text import BREAK, GAP, Text, as_text

Call = Callable[..., Any]

TINY = [
    "data.path=data", "model.embed_size=6", "model.window=2", "trainer.batch_size=16", "trainer.num_epochs=3",
    "trainer.num_threads=1", "tokenizer.min_count=2", "optimizer.learning_rate=0.05", "hydra.run.dir=run",
]  # fmt: skip
METHODS = {
    "skipgram": ["task=vectors", "model.subsample=0"],
    "cbow": ["task=vectors", "model=cbow", "model.num_negatives=2"],
    "exact": ["task=vectors", "model=cbow", "model.num_negatives=0", "model.subsample=0"],
    "glove": ["experiment=glove", "optimizer.averaging=ema", "schedule=linear"],
}


def model_of(method: str) -> str:
    return "cbow" if method == "exact" else method


def text(seed: int, num_lines: int) -> str:
    """Lines about animals and lines about places: words of one kind stand together."""
    chance, lines = random.Random(seed), []
    for _ in range(num_lines):
        kind = chance.choice([["cat", "dog", "Mouse", "horse"], ["Rome", "Oslo", "Paris", "London"]])
        lines.append(" ".join([*chance.choices(kind, k=6), f"once{chance.random()}"]))
    return "\n".join(lines) + "\n"


def write_data(place: Path) -> None:
    (place / "data").mkdir()
    for number, name in enumerate(("train", "valid", "test")):
        (place / "data" / f"{name}.txt").write_text(text(number, (60, 20, 20)[number]), encoding="utf-8")


@pytest.fixture
def data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    write_data(tmp_path)
    return tmp_path


@pytest.fixture(scope="module")
def place_of_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with data and a trained `run`, which no test changes."""
    place = tmp_path_factory.mktemp("trained")
    write_data(place)
    with pytest.MonkeyPatch.context() as patched:
        patched.chdir(place)
        lmtrain.train("task=vectors", *TINY)
    return place


@pytest.fixture
def trained(place_of_run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(place_of_run)


@pytest.mark.parametrize("method", [pytest.param(name, marks=[pytest.mark.slow] * (name == "cbow")) for name in METHODS])
def test_vectors_are_learnt_go_on_bit_for_bit_and_come_back(method: str, data: Path, same: Callable[[str, str], bool]) -> None:
    given = [*METHODS[method], *TINY]
    whole = lmtrain.train(*given, "schedule=constant")
    lmtrain.train(*given, "schedule=constant", "hydra.run.dir=parts", "trainer.num_steps=7", "trainer.log_every=3")
    lmtrain.train("resume=parts", "trainer.num_steps=1000")
    assert same("run", "parts")
    value = "error_per_pair" if method == "glove" else "nats_per_prediction"
    judged = [record[f"val/{value}"] for record in whole.metrics if f"val/{value}" in record]
    assert whole.best is not None
    assert len(judged) == 3
    assert whole.best.value == min(judged) < judged[0]
    trained = lmtrain.load("run")
    assert trained.evaluate("valid").value == whole.best.value, "what is drawn is drawn once for all"
    assert trained.splits == ["valid", "test"]
    session = json.loads(Path("run/run.json").read_text())["sessions"][-1]
    assert session["final"][value] == trained.evaluate().value
    with pytest.raises(lmtrain.DataError, match=r"No x split was saved with .* Saved are: valid, test\."):
        trained.evaluate("x")
    words = {"cat", "dog", "Mouse", "horse", "Rome", "Oslo", "Paris", "London"}
    assert set(trained.vectors.words) == words, "neither ends of lines nor what is unknown has a vector"
    assert trained.vectors.matrix.shape == (8, 6)
    assert repr(trained).startswith(f"<lmtrain.TrainedVectors {model_of(method)}, 8 words of 6 numbers, ")
    assert np.array_equal(lmtrain.load_vectors("run").matrix, trained.vectors.matrix)
    if method == "glove":
        assert torch.equal(torch.from_numpy(trained.vectors.matrix), trained.network.word_VE + trained.network.context_VE)
    near = [word for word, _ in trained.vectors.neighbours("cat", 3)]
    assert set(near) == {"dog", "Mouse", "horse"}
    words, matrix = projected("parts")
    last = lmtrain.load_vectors("parts", checkpoint="last")
    assert tuple(words) == last.words
    assert np.abs(matrix - last.matrix).max() <= 1e-3 * np.abs(last.matrix).max()


def test_commands_measure_write_and_judge_such_a_run(trained: None, call: Call) -> None:
    saved = json.loads(call("evaluate", "run", "--json").out)
    assert {**json.loads(call("evaluate", "run", "--text", "data/test.txt", "--json").out), "text": "test"} == saved
    assert "nats per prediction" in call("evaluate", "run", "--split", "valid").out
    assert call("evaluate", "run", "--split", "train").code == 0
    assert call("vectors", "export", "run", "--output", "run.vec").code == 0
    assert lmtrain.load_vectors("run.vec").words == lmtrain.load_vectors("run").words
    assert call("vectors", "neighbours", "run", "cat").code == 0
    for command in (["sample", "run"], ["score", "run", "data/test.txt"], ["mix", "run", "run", "--output", "mixed"]):
        ended = call(*command)
        assert ended.code == 4
        assert "task=vectors" in ended.err
    ended = call("predict", "run", "data/test.txt")
    assert (ended.code, "neither a tagger" in ended.err) == (4, True)


def test_vectors_train_is_that_training_and_writes_its_vectors(
    data: Path, call: Call, same: Callable[[str, str], bool]
) -> None:
    lmtrain.train("task=vectors", "model=cbow", *TINY[:3], "tokenizer.min_count=2", "tokenizer.lowercase=true",
                  "trainer.num_epochs=2", "trainer.seed=7", "model.num_negatives=3", "hydra.run.dir=typed")  # fmt: skip
    options = ["--size", "6", "--window", "2", "--min-count", "2", "--lowercase", "--epochs", "2", "--seed", "7"]
    ended = call("vectors", "train", "data", "--method", "cbow", *options, "--output", "a ü.vec", "--run", "a ü=run",
                 "--set", "model.num_negatives=3")  # fmt: skip
    assert ended.code == 0, ended.err
    assert "Saved in a ü.vec: 8 words, 6 numbers each." in ended.out
    written = lmtrain.load_vectors("a ü.vec")
    assert np.array_equal(written.matrix, lmtrain.load("typed", checkpoint="last").vectors.matrix)
    assert same("typed", "a ü=run")
    assert "mouse" in written
    ended = call("vectors", "train", "data", "--method", "skipgram", "--counts", "raw", "--output", "b.vec")
    assert (ended.code, "--counts would do nothing for --method skipgram" in ended.err) == (2, True)
    ended = call("vectors", "train", "data", "--method", "svd", "--epochs", "3", "--seed", "1", "--output", "b.vec")
    assert (ended.code, "--epochs and --seed would do nothing" in ended.err) == (2, True)
    ended = call("vectors", "train", "nowhere", "--method", "skipgram", "--output", "b.vec")
    assert ended.code == 3
    assert not Path("b.vec").exists()


def test_the_task_is_chosen_by_the_model(data: Path, call: Call) -> None:
    assert call("model=skipgram", "data=text", *TINY, "tokenizer=word", "--cfg", "job").code == 0
    with pytest.raises(SettingsError, match=r"task=vectors reads words\. Type tokenizer=word"):
        lmtrain.train("task=vectors", *TINY, "tokenizer=char")
    with pytest.raises(SettingsError, match="precision=bfloat16 is for language models"):
        lmtrain.train("task=vectors", *TINY, "trainer.precision=bfloat16")
    with pytest.raises(SettingsError, match="model=glove is no model for data=columns, which is for task=tag"):
        lmtrain.train("task=tag", "model=glove", "data.path=data")


def test_settings_that_vectors_do_not_read_are_named(data: Path, call: Call) -> None:
    said = call("task=vectors", *TINY, "trainer.chunk_length=9", "--cfg", "job").err
    assert "trainer.chunk_length has no effect here: it needs a language model." in said
    said = call("task=tag", "data.path=data", "tokenizer.lowercase=true", "--cfg", "job").err
    assert "tokenizer.lowercase has no effect here: it needs a running text; here type model.lowercase=true." in said


def test_texts_without_neighbours_and_without_frequent_words_are_refused(
    data: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (data / "data" / "valid.txt").write_text("cat\ndog\nnobody knows\n", encoding="utf-8")
    with pytest.raises(DataError, match="In the validation text no two words of the vocabulary stand together"):
        lmtrain.train("task=vectors", *TINY)
    assert not Path("run").exists()
    with pytest.raises(DataError, match="no word that is there 1000 times or more"):
        lmtrain.train("task=vectors", *TINY, "tokenizer.min_count=1000")
    for method in ("skipgram", "svd"):
        with pytest.raises(SystemExit) as ended:
            main(["vectors", "train", "data", "--method", method, "--min-count", "1000", "--output", "o.vec"])
        assert ended.value.code == 3
        said = capsys.readouterr().err
        assert re.search(r"1000 times.*Give a longer text, or .* --min-count 1\.$", said.splitlines()[-1])
        assert "min_count" not in said
    (data / "data" / "valid.txt").write_text(text(5, 9), encoding="utf-8")
    (data / "data" / "test.txt").write_text("cat\ndog\n", encoding="utf-8")
    run = lmtrain.train("task=vectors", *TINY)
    assert json.loads((run.path / "run.json").read_text())["sessions"][-1]["final_split"] == "validation"


def test_a_checkpoint_that_does_not_fit_together_is_refused(trained: None, monkeypatch: pytest.MonkeyPatch) -> None:
    read = lmtrain.tasks.restoring.load_checkpoint  # type: ignore[attr-defined]
    for name, tensor in (
        ("train_counts", torch.ones(7, dtype=torch.int64)),
        ("valid", torch.tensor([1, 99], dtype=torch.int32)),
    ):

        def forged(*given: Any, name: str = name, tensor: torch.Tensor = tensor) -> Any:
            checkpoint = read(*given)
            checkpoint.tensors["texts"][name] = tensor
            return checkpoint

        monkeypatch.setattr("lmtrain.tasks.restoring.load_checkpoint", forged)
        with pytest.raises(CheckpointError, match=f"texts.safetensors: {name}"):
            lmtrain.load("run")
        monkeypatch.setattr("lmtrain.tasks.restoring.load_checkpoint", read)


def test_counts_of_a_shorter_text_are_compared_as_if_it_were_as_long() -> None:
    ids = np.random.default_rng(1).integers(9, size=300).astype(np.int32)
    one = Text(tuple("abcdefghi"), ids, np.bincount(ids))
    pairs = count_pairs(one, window=2)
    network = GloveVectors(9, 4, torch.Generator().manual_seed(1), x_max=3)
    network.word_bias_V.data.fill_(2.0)
    plain = judge(network, pair_batches(pairs, batch_size=7), PAIRS, "cpu")
    network.word_bias_V.data += np.log(5)
    assert judge(network, pair_batches(pairs, batch_size=10, scale=5), PAIRS, "cpu").value == pytest.approx(plain.value)
    assert plain.num_items == pairs.nnz


def test_ids_of_tokens_become_words_gaps_and_breaks() -> None:
    tokenizer = learn_tokenizer("word", ["b a b\na b c\n"], min_count=2)
    found = as_text(tokenizer.encode("a c\nb"), tokenizer)
    assert found.words == ("b", "a")
    assert found.ids.tolist() == [1, GAP, BREAK, 0]
    assert found.counts.tolist() == [1, 1]


def test_how_many_predictions_lie_before_a_position_is_bounded() -> None:
    ids = np.random.default_rng(1).integers(9, size=100).astype(np.int32)
    for method in ("skipgram", "cbow"):
        batches: Shuffled = window_batches(
            Text(tuple("abcdefghi"), ids, np.bincount(ids)), method, batch_size=8, window=3, subsample=0.01
        )
        position, num_items = Position(0, 0), 0
        for _ in range(30):
            num_items += batches.batch(position).num_items
            position = batches.next(position)
            assert num_items in batches.done_before(position)[1]


# ---- vectors of other tasks, and the projector


def projected(run: str) -> tuple[list[str], np.ndarray]:
    from google.protobuf import text_format

    directory = find_curves(Path(run) / "tensorboard")
    assert directory is not None
    config = text_format.Parse((directory / "projector_config.pbtxt").read_text(), ProjectorConfig())
    (embedding,) = config.embeddings
    words = (directory / embedding.metadata_path).read_text(encoding="utf-8").split("\n")[:-1]
    return words, np.loadtxt(directory / embedding.tensor_path, delimiter="\t", ndmin=2)


def test_the_projector_shows_the_first_words_of_any_task_and_can_be_left_out(
    data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("lmtrain.training.board.PROJECTED", 5)
    common = ["trainer.num_steps=2", "model.embed_size=3", "trainer.num_threads=1"]
    lmtrain.train("data=text", "data.path=data", "tokenizer=char", "hydra.run.dir=chars", *common, "trainer.chunk_length=5",
                  "trainer.batch_size=2", "model.hidden_size=4", "trainer.sample_tokens=0")  # fmt: skip
    words, matrix = projected("chars")
    assert (len(words), matrix.shape) == (5, (5, 3))
    assert "' '" in words, "what cannot be seen is written as Python writes it"
    lmtrain.train("task=vectors", *TINY, "trainer.projector=false", "hydra.run.dir=without", "trainer.num_epochs=1")
    assert not list(Path("without/tensorboard").rglob("projector_config.pbtxt"))


def test_taggers_have_vectors_and_logistic_regression_has_none(data: Path, call: Call) -> None:
    for name in ("train", "valid"):
        (data / f"{name}.tags").write_text("Ann PER\nsat O\n\nin O\nRome LOC\n\n" * 3, encoding="utf-8")
    common = ["task=tag", "data.train=train.tags", "data.valid=valid.tags", "trainer.num_epochs=1"]
    tagger = lmtrain.train(*common, "hydra.run.dir=tagger", "model.embed_size=4").model
    assert {"ann", "sat", "in", "rome"} < set(tagger.vectors.words)
    assert np.array_equal(lmtrain.load_vectors("tagger").matrix, tagger.model.network.tables[0].detach().numpy())
    assert projected("tagger")[0] == list(tagger.vectors.words)
    assert call("vectors", "neighbours", "tagger", "rome").code == 0
    regression = lmtrain.train(*common, "model=logistic", "hydra.run.dir=regression").model
    with pytest.raises(CheckpointError, match="has no word vectors"):
        assert regression.vectors
    with pytest.raises(CheckpointError, match="has no word vectors"):
        lmtrain.load_vectors("regression")
    lmtrain.train(*common, "hydra.run.dir=again", "model.embed_size=4", "model.embeddings=tagger")
    assert "have one, 100.00 % of the training text" in Path("again/lmtrain.log").read_text(encoding="utf-8")


def test_classifiers_have_vectors_and_show_them(data: Path) -> None:
    for name in ("train", "valid"):
        (data / f"{name}.texts").write_text("good a fine day\nbad rain\n" * 3, encoding="utf-8")
    classifier = lmtrain.train("task=classify", "data.train=train.texts", "data.valid=valid.texts", "trainer.num_epochs=1",
                               "hydra.run.dir=classifier", "model.embed_size=4").model  # fmt: skip
    assert {"a", "fine", "day", "rain"} < set(classifier.vectors.words)
    assert projected("classifier")[0] == list(classifier.vectors.words) == list(lmtrain.load_vectors("classifier").words)


# ---- lower case


def test_a_text_is_read_in_lower_case_however_it_is_cut() -> None:
    whole = "ΟΔΥΣΣΕΥΣ saw ΜΙΑΣ-Α Dz İstanbul É\u0301E "
    for form in ("lower", "nfc_lower", "nfkc_lower"):
        wanted = normalized(whole, form)
        assert wanted == normalized(wanted, form)
        for size in range(1, len(whole)):
            blocks = [whole[start : start + size] for start in range(0, len(whole), size)]
            assert "".join(iter_normalized(blocks, form)) == wanted
    assert normalized("ΟΔΥΣΣΕΥΣ \U0001d400", "nfkc_lower") == "οδυσσευς a"


def test_a_lower_case_run_reads_everything_in_lower_case(data: Path, call: Call) -> None:
    lmtrain.train("data=text", *TINY[:2], "tokenizer=word", "tokenizer.lowercase=true", "tokenizer.min_count=2",
                  "hydra.run.dir=lower", "trainer.num_steps=2", "model.hidden_size=4", "trainer.sample_tokens=0",
                  "trainer.batch_size=4", "trainer.chunk_length=5")  # fmt: skip
    model = lmtrain.load("lower")
    assert model.tokenizer.encode("ROME Mouse").tolist() == model.tokenizer.encode("rome mouse").tolist()
    assert "mouse" in model.vectors
    assert "Mouse" not in model.vectors
    (upper,), (lower,) = model.score("CAT DOG"), model.score("cat dog")
    assert upper == lower
