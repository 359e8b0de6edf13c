"""Classifiers: they learn, go on bit for bit, stand beside baselines, come back from the disk, and refuse what is no use."""

import io
import json
import math
import random
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import lmtrain
from lmtrain.__main__ import main
from lmtrain.data.vocabulary import WHITESPACE
from lmtrain.tasks.classify_score import ClassifyScore, mcnemar, worst_errors
from lmtrain.training.checkpoint import find_checkpoint, load_checkpoint

Same = Callable[[str, str], bool]

TRAINER = ["trainer.batch_size=7", "trainer.num_threads=1", "optimizer.learning_rate=0.1", "trainer.num_epochs=4"]
GIVEN = ["task=classify", "data.path=data", *TRAINER]
SMALL = ["model.embed_size=6"]
MODELS = {
    "nbow": SMALL,
    "dan": [*SMALL, "model.hidden_sizes=[8,5]", "model.dropout=0.2", "model.activation=gelu", "optimizer.averaging=ema"],
    "lower": [*SMALL, "model.lowercase=true", "optimizer=sparse_adam", "optimizer.learning_rate=0.1"],
    "lstm": ["model=encoder", *SMALL, "model.hidden_size=5", "model.pooling=mean", "model.dropout=0.2"],
    "gru": ["model=encoder", *SMALL, "model.hidden_size=5", "model.cell=gru", "model.pooling=last"],
    "elman": ["model=encoder", *SMALL, "model.hidden_size=5", "model.cell=elman", "model.num_layers=2"],
    "logistic": ["model=logistic"],
    "bigrams": ["model=logistic", "model.ngrams=3"],
    "naive bayes": ["model=naive_bayes"],
}
INTERRUPTED = ("dan", "lstm", "bigrams")  # in the ordinary suite; it learns with all


def text(seed: int, num_texts: int, separator: str = " ") -> str:
    """Texts that a word tells good or bad from each other, among words that do not."""
    chance, lines = random.Random(seed), []
    for number in range(num_texts):
        words = [chance.choice(["The", "film", "is", "plot", "a"]) for _ in range(chance.randint(1, 6))]
        label = "pos" if number % 3 else "neg"
        words.insert(0, chance.choice(["good", "fine"] if number % 3 else ["bad", "dull"]))
        lines.append(f"{label}{separator}{' '.join(words)}\n")
    return "".join(lines)


def write_data(where: Path) -> None:
    (where / "data").mkdir()
    for number, name in enumerate(("train", "dev", "test")):
        (where / "data" / f"{name}.txt").write_text(text(number, (40, 13, 12)[number]), encoding="utf-8")


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    write_data(tmp_path)
    return tmp_path


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with the data and the small run `run`."""
    where = tmp_path_factory.mktemp("small")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(where)
        write_data(where)
        lmtrain.train(*GIVEN, *SMALL, "hydra.run.dir=run")
    return where


@pytest.fixture
def trained(small: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of it as the working directory."""
    shutil.copytree(small, tmp_path / "here")
    monkeypatch.chdir(tmp_path / "here")
    return tmp_path / "here"


def last(run: str) -> Any:
    return load_checkpoint(find_checkpoint(run, "last"))


@pytest.mark.parametrize(
    ("name", "is_interrupted"),
    [(name, name in INTERRUPTED) for name in MODELS]
    + [pytest.param(name, True, marks=pytest.mark.slow) for name in MODELS if name not in (*INTERRUPTED, "naive bayes")],
)
def test_a_classifier_learns_resumes_bit_for_bit_and_comes_back(
    name: str, is_interrupted: bool, place: Path, same: Same
) -> None:
    given, cut = [*GIVEN, *MODELS[name], "schedule=constant"], "trainer.num_steps=13"
    whole = lmtrain.train(*given, "hydra.run.dir=whole")
    if is_interrupted:
        lmtrain.train(*given, "hydra.run.dir=parts", cut)
        lmtrain.train("resume=parts", "trainer.num_steps=1000")
        assert same("parts", "whole")
    assert whole.best is not None
    assert whole.best.value > 0.9, "it is easy"
    classifier = lmtrain.load("whole")
    assert isinstance(classifier, lmtrain.Classifier)
    assert classifier.evaluate("valid").value == whole.best.value
    assert max(record.get("val/accuracy", 0) for record in whole.metrics) == whole.best.value
    run = json.loads(Path("whole/run.json").read_text())["sessions"][-1]
    assert run["best_accuracy"] == whole.best.value
    assert run["final"] == json.loads(json.dumps(classifier.evaluate("test").to_json()))
    assert run["final_split"] == "test"


def test_what_is_counted_has_no_gradients_to_check_or_watch(place: Path) -> None:
    given = [*GIVEN, "model=naive_bayes", "trainer.check_gradients=2", "trainer.watch_gradients=true"]
    assert lmtrain.train(*given, "hydra.run.dir=counted").best is not None


@pytest.mark.parametrize("model", [SMALL, ["model=naive_bayes"]], ids=["trained", "counted"])
def test_a_run_that_a_signal_stopped_goes_on_exactly(
    model: list[str], place: Path, same: Same, monkeypatch: pytest.MonkeyPatch
) -> None:
    given = [*GIVEN, *model, "trainer.save_every=2"]
    lmtrain.train(*given, "hydra.run.dir=whole")
    from lmtrain.tasks.classify import Classify

    original, calls = Classify._batch, []

    def stopping(self: Classify, *arguments: Any) -> Any:
        calls.append(0)
        if len(calls) == 4:
            raise KeyboardInterrupt
        return original(self, *arguments)

    with monkeypatch.context() as patch:
        patch.setattr(Classify, "_batch", stopping)
        with pytest.raises(KeyboardInterrupt):
            lmtrain.train(*given, "hydra.run.dir=parts")
    assert last("parts").step == 2
    lmtrain.train("resume=parts")
    assert same("parts", "whole")


def test_the_most_frequent_class_is_the_baseline_of_all(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = lmtrain.train(*GIVEN, "model=frequent", "hydra.run.dir=run")
    assert run.model.classify("anything")[0].label == "pos"
    assert run.best is not None
    assert run.best.value == pytest.approx(8 / 13)
    shown = capsys.readouterr().out
    assert "On valid this model is no better than naive Bayes and logistic regression (words, bigrams)." in shown
    assert "most frequent class" not in shown, "it is not compared with itself"


def test_the_table_has_train_valid_and_test_and_naive_bayes_stands_beside(
    place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    lmtrain.train(*GIVEN, *SMALL, "hydra.run.dir=run")
    shown = capsys.readouterr().out
    table = shown[shown.index("accuracy, %") :].splitlines()
    assert table[0].split()[2:] == ["train", "valid", "test"]
    names = ["this model", "most frequent class", "naive Bayes", "logistic regression (words, bigrams)"]
    assert [line.strip().rsplit(maxsplit=3)[0] for line in table[1:5]] == names
    assert "Against naive Bayes on test: only this model is right on" in shown
    assert "Against logistic regression on test: only this model is right on" in shown
    compared = json.loads(Path("run/run.json").read_text())["sessions"][-1]["compared"]
    assert list(compared["shares"]) == names
    assert f"{100 * compared['shares'][names[3]]['test']:.2f}" == table[4].split()[-1]
    assert "(McNemar's test, exact)" in shown
    lmtrain.train(*GIVEN, *SMALL, "hydra.run.dir=unseen", "trainer.final_split=none")
    assert "accuracy, %" not in capsys.readouterr().out
    lmtrain.train(*GIVEN, *SMALL, "hydra.run.dir=valid", "trainer.final_split=valid")
    shown = capsys.readouterr().out
    assert "on test" not in shown, "a test split stays unseen until it is asked for"


def test_python_classifies_texts_with_probabilities(trained: Path) -> None:
    classifier = lmtrain.load("run")
    assert repr(classifier).startswith("<lmtrain.Classifier averaging, 2 labels, vocabulary ")
    one, two, empty = classifier.classify(["a good film", "dull dull", ""])
    assert (one.label, two.label) == ("pos", "neg")
    assert one.probabilities["pos"] == one.probability > 0.5
    assert sum(empty.probabilities.values()) == pytest.approx(1)
    (alone,) = classifier.classify("a good film")
    assert (alone.label, alone.probability) == (one.label, pytest.approx(one.probability, rel=1e-5))
    assert classifier.classify([]) == []
    assert classifier.classify(["a\ngood film"]) == [alone], "a line's end is white space"
    assert classifier.settings["model"]["kind"] == "averaging"
    assert classifier.splits == ["valid", "test"]
    assert classifier.evaluate().num_texts == 12, "the test split, where there is one"
    assert classifier.evaluate("valid", "test").num_texts == 25
    assert classifier.evaluate_training().num_texts == 40
    with pytest.raises(lmtrain.DataError, match="No dev split was saved"):
        classifier.evaluate("valid", "dev")
    assert classifier.vectors.matrix.shape == (len(classifier.vectors.words), 6)


def test_predict_answers_a_file_and_standard_input_line_by_line(
    trained: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    classifier = lmtrain.load("run")
    lines = ["a good film", "", "bad\x85bad dull", "\u65e5\u672c"]
    Path("file").write_text("\n".join(lines), encoding="utf-8")
    capsys.readouterr()
    main(["predict", "run", "file"])
    expected = [
        (found.label, f"{found.probability:.6f}", line) for line, found in zip(lines, classifier.classify(lines), strict=True)
    ]
    assert [tuple(line.split("\t")) for line in capsys.readouterr().out.split("\n")[:-1]] == expected
    stdin = io.TextIOWrapper(io.BytesIO(Path("file").read_bytes()))
    monkeypatch.setattr(sys, "stdin", stdin)
    main(["predict", "run", "-", "--probabilities", "--json"])
    documents = [json.loads(line) for line in capsys.readouterr().out.split("\n")[:-1]]
    assert [(d["label"], d["text"]) for d in documents] == [(label, line) for label, _, line in expected]
    assert all(set(d["probabilities"]) == {"neg", "pos"} for d in documents)
    main(["predict", "run", "file", "--probabilities"])
    assert capsys.readouterr().out.startswith(f"pos\t{expected[0][1]}\tneg=0.")
    Path("record").write_text('{"text": "a good film"}\n', encoding="utf-8")
    main(["predict", "run", "record"])
    answered = capsys.readouterr()
    assert answered.out.endswith('\t{"text": "a good film"}\n')
    assert "lmtrain: record holds JSON lines" in answered.err
    for options in (["--sentences"], ["--token-column", "1"]):
        with pytest.raises(SystemExit) as ended:
            main(["predict", "run", "file", *options])
        assert ended.value.code == 2
        assert f"{options[0]} is for taggers" in capsys.readouterr().err


def test_predict_reads_the_encoding_of_the_run_or_that_which_is_typed(
    place: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("train", "dev", "test"):
        file = place / "data" / f"{name}.txt"
        file.write_bytes(file.read_text(encoding="utf-8").replace("film", "café").encode("latin-1"))
    lmtrain.train(*GIVEN, *SMALL, "data.encoding=latin-1", "hydra.run.dir=run")
    (place / "latin").write_bytes("good café\n\nbad".encode("latin-1"))
    (place / "unicode").write_bytes("good café\n\nbad".encode())
    capsys.readouterr()
    main(["predict", "run", "latin"])
    ended = capsys.readouterr()
    assert "latin is read as latin-1, as the data of the run are" in ended.err
    assert "\tgood café\n" in ended.out
    main(["predict", "run", "unicode", "--encoding", "UTF8"])
    assert capsys.readouterr() == (ended.out, "")
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(Path("latin").read_bytes())))
    main(["predict", "run", "-", "--encoding", "iso-8859-1"])
    assert capsys.readouterr() == (ended.out, "")
    (place / "empty").write_bytes(b"")
    main(["predict", "run", "empty", "--encoding", "utf-8"])
    assert capsys.readouterr() == ("", "lmtrain: empty is empty: there is nothing to predict.\n")
    for encoding, problem in (("klingon", "--encoding klingon is unknown"), ("ascii", "Type --encoding latin-1 for an older")):
        with pytest.raises(SystemExit):
            main(["predict", "run", "latin", "--encoding", encoding])
        assert problem in capsys.readouterr().err


def test_evaluate_advises_on_the_encoding_of_a_file_what_it_can_do(trained: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Path("latin").write_bytes("pos café\n".encode("latin-1"))
    with pytest.raises(SystemExit):
        main(["evaluate", "run", "--text", "latin"])
    printed = capsys.readouterr().err
    assert "iconv -f LATIN1 -t UTF-8 latin > converted.txt" in printed
    assert "data.encoding" not in printed


def test_evaluate_needs_no_corpus_but_for_train(trained: Path, capsys: pytest.CaptureFixture[str]) -> None:
    test_file = (trained / "data" / "test.txt").read_bytes()
    capsys.readouterr()
    main(["evaluate", "run", "--split", "train", "--json"])
    document = json.loads(capsys.readouterr().out)
    assert document["num_texts"] == 40
    assert set(document["baselines"]) == {"most frequent class", "naive Bayes"}
    for file in (trained / "data").iterdir():
        file.unlink()
    main(["evaluate", "run", "--json"])
    saved = json.loads(capsys.readouterr().out)
    assert saved["num_texts"] == 12
    assert saved["baselines"]["naive Bayes"]["mcnemar"]["p"] <= 1
    Path("mine").write_bytes(test_file)
    main(["evaluate", "run", "--text", "mine", "--json"])
    own = json.loads(capsys.readouterr().out)
    assert {name: own[name] for name in ("accuracy", "confusion")} == {n: saved[n] for n in ("accuracy", "confusion")}
    main(["evaluate", "run"])
    assert "naive Bayes: accuracy" in capsys.readouterr().out
    Path("mine").write_text("other a film\npos good\n", encoding="utf-8")
    with pytest.raises(lmtrain.DataError, match=r"mine has labels that the training split lacks: 'other' \(1 of 2 texts\)"):
        lmtrain.load("run").evaluate_file("mine")
    (trained / "data" / "train.txt").write_text(text(9, 40), encoding="utf-8")
    (trained / "data" / "dev.txt").write_text(text(1, 13), encoding="utf-8")
    with pytest.raises(SystemExit) as ended:
        main(["evaluate", "run", "--split", "train"])
    assert ended.value.code == 4
    assert "The texts have changed since" in capsys.readouterr().err


def test_folds_are_cut_from_one_file(place: Path) -> None:
    (place / "all").write_text(text(3, 30), encoding="utf-8")
    given = ["task=classify", "data.path=all", "data.folds=5", *TRAINER, "model=naive_bayes"]
    tested = [lmtrain.train(*given, f"data.fold={fold}", f"hydra.run.dir=run{fold}").model for fold in (1, 5)]
    assert [model.evaluate("test").num_texts for model in tested] == [6, 6]
    for expected in (ValueError, lmtrain.CheckpointError):
        with pytest.raises(expected, match=r"has no word vectors\. Networks over words have them"):
            _ = tested[0].vectors
    assert tested[0].evaluate("valid").num_texts == 6
    with pytest.raises(lmtrain.DataError, match=r"all is one file\..*Type data\.folds=10"):
        lmtrain.train("task=classify", "data.path=all", "hydra.run.dir=refused")


def test_given_vectors_start_a_classifier_and_may_stay_frozen(place: Path) -> None:
    words = {"good": "1 0", "bad": "0 1", "unseen": "2 2"}
    (place / "vectors.txt").write_text("".join(f"{word} {vector}\n" for word, vector in words.items()), encoding="utf-8")
    given = [*GIVEN, "model.embed_size=2", "model.embeddings=vectors.txt", "model.freeze_embeddings=null"]
    vectors = lmtrain.train(*given, "hydra.run.dir=run").model.vectors
    assert vectors["good"].tolist() == [1, 0]
    assert vectors["unseen"].tolist() == [2, 2], "a word that has a vector is known, though training lacks it"
    assert vectors["<unk>"].tolist() == [0, 0], "a word that has none, and that training lacks, says nothing"
    assert "Vectors of vectors.txt: 3 of" in Path("run/lmtrain.log").read_text()


def refused(*arguments: str) -> Callable[[], str]:
    def call() -> str:
        with pytest.raises(lmtrain.UserError) as error:
            lmtrain.train(*GIVEN, *arguments, "hydra.run.dir=run")
        assert not Path("run").exists() or not any(Path("run/checkpoints").glob("step*"))
        return str(error.value)

    return call


def test_what_does_not_go_together_is_refused(place: Path) -> None:
    assert "model=lstm is no model for data=labelled" in refused("model=lstm")()
    assert "Type tokenizer=word" in refused("tokenizer=char")()
    assert "tokenizer.unknown is for running texts" in refused("tokenizer.unknown=spelled")()
    assert "data.folds=2 data.fold=1: one fold tests" in refused("data.folds=2")()
    assert "data.folds=5 data.fold=6: one fold tests" in refused("data.folds=5", "data.fold=6")()
    (place / "data" / "dev.txt").write_text("pos good\nso-so a film\n", encoding="utf-8")
    assert "valid has labels that the training split lacks: 'so-so' (1 of 2 texts)" in refused()()
    (place / "data" / "dev.txt").write_bytes(b"pos caf\xe9\nneg bad\n")
    assert "data/dev.txt is not utf-8: byte 0xe9 at offset 7 (line 1)" in refused()()
    (place / "data" / "dev.txt").write_text("pos good\nneg\n", encoding="utf-8")
    assert "Line 2 of data/dev.txt has one column only: 'neg'" in refused()()
    (place / "data" / "train.txt").write_text("pos good\npos fine\n", encoding="utf-8")
    (place / "data" / "dev.txt").write_text("pos good\n", encoding="utf-8")
    assert "All texts of the training split have the label 'pos'" in refused()()


def test_empty_texts_spoil_nothing_and_are_counted(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with (place / "data" / "dev.txt").open("a") as file:
        file.write("pos \nneg \n")
    for number, model in enumerate((SMALL, MODELS["gru"])):
        run = lmtrain.train(*GIVEN, *model, f"hydra.run.dir=run{number}", "trainer.final_split=valid")
        assert run.best is not None
        assert math.isfinite(run.best.value)
        assert "15 texts, 2 of them without a word" in capsys.readouterr().out
        assert "2 of 15 texts of valid have no word." in Path(f"run{number}/lmtrain.log").read_text()


def test_a_changed_text_is_refused_on_resume_and_other_settings_are_not_mixed_in(trained: Path) -> None:
    with pytest.raises(lmtrain.SettingsError, match=r"model.lowercase is false in this run"):
        lmtrain.train("resume=run", "model.lowercase=true")
    (trained / "data" / "train.txt").write_text(text(7, 40), encoding="utf-8")
    with pytest.raises(lmtrain.CheckpointError, match="The text has changed"):
        lmtrain.train("resume=run", "trainer.num_epochs=6")


def test_other_commands_say_what_the_run_is(trained: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for arguments in (["sample", "run"], ["score", "run", "data/test.txt"], ["mix", "run", "run", "--output", "x"]):
        with pytest.raises(SystemExit) as ended:
            main(arguments)
        assert ended.value.code == 4
        assert "task=classify" in capsys.readouterr().err


# ---- scores


def scored(targets: list[int], probabilities: list[list[float]], **more: Any) -> ClassifyScore:
    labels = tuple(f"c{number}" for number in range(len(probabilities[0])))
    return ClassifyScore(labels, np.array(targets), np.array(probabilities), **more)


def test_numbers_are_those_of_their_definitions() -> None:
    score = scored([0, 0, 1, 1, 2], [[0.9, 0.1, 0], [0.2, 0.7, 0.1], [0.1, 0.8, 0.1], [0.3, 0.6, 0.1], [0.5, 0.25, 0.25]])
    assert score.accuracy == 3 / 5
    assert score.confusion.tolist() == [[1, 1, 0], [0, 2, 0], [1, 0, 0]]
    f1 = {"c0": 2 * 0.5 * 0.5 / 1, "c1": 2 * (2 / 3) * 1 / (5 / 3), "c2": 0}
    assert {label: counts.f1 for label, counts in score.classes.items()} == pytest.approx(f1)
    assert score.macro_f1 == pytest.approx(sum(f1.values()) / 3)
    assert score.nats_per_text == pytest.approx(-math.log(0.9 * 0.2 * 0.8 * 0.6 * 0.25) / 5)
    found = {tenth: b for tenth, b in enumerate(score.calibration) if b is not None}
    assert {tenth: b.num_texts for tenth, b in found.items()} == {5: 1, 6: 1, 7: 1, 8: 1, 9: 1}
    assert score.calibration_error == pytest.approx((0.1 + 0.7 + 0.2 + 0.4 + 0.5) / 5)
    assert list(worst_errors(score, ["a", "b\x1b", "c", "d", " e "])) == [
        "0.7000  c0 taken for c1  b\\x1b", "0.5000  c2 taken for c0  e",
    ]  # fmt: skip
    assert json.loads(json.dumps(score.to_json()))["classes"]["c1"]["recall"] == 1


def test_probabilities_that_are_no_numbers_are_no_accuracy() -> None:
    score = scored([0, 1], [[math.nan, math.nan], [0.5, 0.5]])
    assert math.isnan(score.value)
    assert score.to_json()["value"] is None
    assert score.format()


@given(st.lists(st.tuples(st.booleans(), st.booleans()), min_size=1, max_size=40))
def test_mcnemar_is_an_exact_binomial_test(pairs: list[tuple[bool, bool]]) -> None:
    first, second = (np.array(column) for column in zip(*pairs, strict=True))
    b, c, p = mcnemar(first, second)
    assert (b, c) == (sum(x and not y for x, y in pairs), sum(y and not x for x, y in pairs))
    tail = sum(math.comb(b + c, i) for i in range(min(b, c) + 1)) / 2 ** (b + c)
    assert p == pytest.approx(min(1, 2 * tail))


@pytest.mark.parametrize(
    ("ours", "theirs", "said"),
    [
        (
            "1",
            "0",
            "better 0.00 %, but the difference proves nothing; this model alone is right on 1 text, the other alone on 0 ",
        ),
        ("0", "1", "better 100.00 %, but the difference proves nothing; this model alone is right on 0 texts, the other"),
        ("1", "1", "better 100.00 %, so this model is no better; this model alone is right on 0 texts, the other"),
        (
            "1" * 6,
            "0" * 6,
            "better 0.00 %, so this model is better; this model alone is right on 6 texts, the other alone on 0 ",
        ),
        ("0" * 6, "1" * 6, "better 100.00 %, so this model is no better; this model alone is right on 0 texts, the other"),
    ],
)
def test_a_difference_that_may_be_chance_proves_nothing(ours: str, theirs: str, said: str) -> None:
    right = {"0": 1, "1": 0}
    probabilities = [[float(digit), 1 - float(digit)] for digit in ours]
    score = scored([0] * len(ours), probabilities, baselines={"other": np.array([right[digit] for digit in theirs])})
    assert score.compared_with("other").startswith(said.replace("better ", "other: accuracy ", 1))


def test_mcnemar_of_many_texts_overflows_nowhere() -> None:
    first, second = np.arange(200_000) % 2 == 0, np.arange(200_000) % 2 == 1
    assert mcnemar(first, second).p == pytest.approx(1)
    assert mcnemar(np.ones(100_000, bool), np.zeros(100_000, bool)).p == 0


def test_many_classes_are_shown_by_their_mistakes() -> None:
    targets = [number % 14 for number in range(28)]
    score = scored(targets, [[float(number == (target + (target == 3)) % 14) for number in range(14)] for target in targets])
    assert "c3 taken for c4: 2" in score.format()
    assert not set(WHITESPACE[2:]) & set(score.format().replace("\n", ""))
