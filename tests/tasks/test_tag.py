"""Taggers: they learn, go on bit for bit, are judged as CoNLL does, come back from the disk, and refuse what is no use."""

import io
import json
import math
import pydoc
import random
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import lmtrain
from lmtrain.__main__ import main
from lmtrain.application import read_settings
from lmtrain.data.columns import Scheme, Sentence, entities, read_columns
from lmtrain.tasks.choose import open_task
from lmtrain.tasks.tag_score import average_precision_of, best_threshold, score_tags
from lmtrain.training.checkpoint import find_checkpoint, load_checkpoint

TINY = [
    "task=tag", "data.path=data", "model.embed_size=6", "model.hidden_sizes=[8]", "trainer.batch_size=7",
    "trainer.num_epochs=4", "trainer.num_threads=1", "tokenizer.min_count=1", "optimizer.learning_rate=0.02",
]  # fmt: skip
OBJECTIVES = {
    "softmax": [],
    "logistic": ["model.objective=logistic"],
    "max_margin": ["model.objective=max_margin"],
    "one class": ["model.objective=max_margin", "model.target_class=LOC", "model.corrupt=word"],
    "logistic regression": ["model=logistic"],
    "no hidden layer": ["model.hidden_sizes=[]", "model.affixes=2", "model.context=0", "model.lowercase=true"],
    "gated": ["model.activation=swiglu", "model.dropout=0.3", "optimizer.averaging=ema", "model.shape_features=false"],
}


def text(seed: int, num_sentences: int, mark: str = "I") -> str:
    """Sentences in which a name after `in` is a place and one that says something is a person."""
    chance, blocks = random.Random(seed), []
    for _ in range(num_sentences):
        person, place = chance.choice(["Ann", "Bob", "Eve Ray"]), chance.choice(["Rome", "Oslo", "New York"])
        words = [(word, f"{mark if i == 0 else 'I'}-PER") for i, word in enumerate(person.split())]
        words += [(chance.choice(["sat", "slept"]), "O"), ("in", "O")]
        words += [(word, f"{mark if i == 0 else 'I'}-LOC") for i, word in enumerate(place.split())]
        blocks.append("".join(f"{word} {tag}\n" for word, tag in words))
    return "\n".join(blocks)


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "data").mkdir()
    for number, name in enumerate(("train", "dev", "test")):
        (tmp_path / "data" / f"{name}.txt").write_text(text(number, (40, 12, 12)[number]), encoding="utf-8")
    return tmp_path


def last(run: str) -> Any:
    return load_checkpoint(find_checkpoint(run, "last"))


INTERRUPTED = ("softmax", "gated")  # in the ordinary suite; it learns with all


@pytest.mark.parametrize(
    ("name", "is_interrupted"),
    [(name, name in INTERRUPTED) for name in OBJECTIVES]
    + [pytest.param(name, True, marks=pytest.mark.slow) for name in OBJECTIVES if name not in INTERRUPTED],
)
def test_a_tagger_learns_resumes_bit_for_bit_and_comes_back(
    name: str, is_interrupted: bool, place: Path, same: Callable[[str, str], bool]
) -> None:
    features = OBJECTIVES[name]
    given = [o for o in TINY if not (name == "logistic regression" and o.startswith(("model.embed", "model.hidden")))]
    whole = lmtrain.train(*given, *features, "hydra.run.dir=whole")
    if is_interrupted:
        lmtrain.train(*given, *features, "hydra.run.dir=parts", "trainer.num_steps=13", "schedule=constant")
        lmtrain.train(*given, *features, "hydra.run.dir=plain", "schedule=constant")
        lmtrain.train("resume=parts", "trainer.num_steps=1000")
        assert same("parts", "plain")
    assert whole.best is not None
    assert whole.best.value > 0.9, "it is easy"
    tagger = lmtrain.load("whole")
    assert tagger.evaluate("valid").value == whole.best.value
    documents = load_checkpoint(find_checkpoint("whole", "best")).documents
    assert documents["training"]["state"]["best_value"] == whole.best.value
    judged = "average_precision" if name == "one class" else "entity_f1"
    assert whole.metrics[-1][f"val/{judged}"] <= whole.best.value
    run = json.loads(Path("whole/run.json").read_text())["sessions"][-1]
    assert run[f"best_{judged}"] == whole.best.value
    assert run["final"]["num_tokens"] == read_columns(Path("data/test.txt")).num_tokens
    assert run["final_split"] == "test"


def test_without_a_test_split_the_last_one_is_judged_and_another_is_refused_in_words(place: Path) -> None:
    (place / "data" / "test.txt").unlink()
    tagger = lmtrain.train(*TINY, "trainer.num_epochs=1", "hydra.run.dir=run").model
    assert tagger.evaluate() == tagger.evaluate("valid")
    assert tagger.evaluate_training().num_tokens > tagger.evaluate().num_tokens
    for expected in (KeyError, lmtrain.DataError):
        with pytest.raises(expected, match=r"^No dev split .* Saved are: valid\. Type  evaluate\('valid'\), or evaluate_file"):
            tagger.evaluate("dev")
    with pytest.raises(lmtrain.DataError, match=r"Type  evaluate_training\(\)"):
        tagger.evaluate("train")


def test_the_help_of_a_tagger_names_what_it_gives() -> None:
    assert "entities" in pydoc.render_doc(lmtrain.Tagger)


@pytest.mark.parametrize("mark", ["B", "I"])
def test_predictions_are_written_as_the_data_are(mark: str, place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for number, name in enumerate(("train", "dev", "test")):
        (place / "data" / f"{name}.txt").write_text(text(number, 30, mark), encoding="utf-8")
    lmtrain.train(*TINY, "model.objective=logistic", "hydra.run.dir=run")
    capsys.readouterr()
    (place / "file").write_text("Ann\tX\nsat\nin\nNew\nYork\n\n\nBob\n", encoding="utf-8")
    main(["predict", "run", "file"])
    expected = f"Ann\tX\t{mark}-PER\nsat\tO\nin\tO\nNew\t{mark}-LOC\nYork\tI-LOC\n\n\nBob\t{mark}-PER\n"
    assert capsys.readouterr().out == expected
    main(["predict", "run", "file", "--json", "--probabilities"])
    first, *_ = map(json.loads, capsys.readouterr().out.splitlines())
    assert first["entities"] == [["Ann", "PER"], ["New York", "LOC"]]
    assert all(0.5 < probability <= 1 for probability in first["probabilities"])
    (place / "one").write_text("Ann sat in Rome\n", encoding="utf-8")
    main(["predict", "run", "one"])
    assert "type --sentences" in capsys.readouterr().err
    (place / "sentences").write_text("Ann sat in New York\n\nBob slept", encoding="utf-8")
    main(["predict", "run", "sentences", "--sentences"])
    assert capsys.readouterr().out.splitlines()[0] == f"Ann/{mark}-PER sat/O in/O New/{mark}-LOC York/I-LOC"


@pytest.fixture
def run(place: Path, capsys: pytest.CaptureFixture[str]) -> Callable[..., str]:
    """Trains a tagger on three columns, of which the second holds the token, between tabs or between spaces."""

    def train(separator: str = "\t", join: str = "_") -> str:
        for number, name in enumerate(("train", "dev", "test")):
            lines = text(number, (40, 12, 12)[number]).splitlines()
            rows = [f"1 {line}".split(" ") if line else [] for line in lines]
            written = "".join(separator.join([row[0], row[1], row[-1]] if row else []) + "\n" for row in rows)
            (place / "data" / f"{name}.txt").write_text(written.replace("Oslo", f"San{join}Juan"), encoding="utf-8")
        lmtrain.train(*TINY, "data.token_column=2", "trainer.baselines=false", "hydra.run.dir=run")
        capsys.readouterr()
        return "run"

    return train


@pytest.mark.parametrize(("separator", "join"), [("\t", " "), (" ", "_")])
def test_predict_reads_and_writes_columns_as_training_does(
    separator: str, join: str, run: Callable[..., str], capsys: pytest.CaptureFixture[str]
) -> None:
    run(separator, join)
    test = Path("data/test.txt").read_text(encoding="utf-8")
    assert f"1{separator}San{join}Juan{separator}I-LOC" in test, "the token of the test"
    main(["predict", "run", "data/test.txt"])
    lines = capsys.readouterr().out.splitlines()
    assert [line.rpartition(separator)[0] for line in lines] == test.splitlines()
    Path("predicted").write_text("\n".join(lines), encoding="utf-8")
    right, ours = read_columns(Path("data/test.txt"), token_column=2), read_columns(Path("predicted"), token_column=2)
    assert [s.tokens for s in right.sentences] == [s.tokens for s in ours.sentences]
    assert [s.tags for s in ours.sentences] == [
        tagged.tags for tagged in lmtrain.load("run").tag(s.tokens for s in right.sentences)
    ]
    assert lmtrain.load("run").evaluate_file("predicted").value == 1


def test_predict_reads_words_alone_and_the_column_that_is_typed_and_refuses_what_lacks_it(
    run: Callable[..., str], capsys: pytest.CaptureFixture[str]
) -> None:
    run()
    Path("words").write_text("Ann\nsat\n\nBob\n", encoding="utf-8")
    main(["predict", "run", "words"])
    assert [line.split("\t")[0] for line in capsys.readouterr().out.splitlines()] == ["Ann", "sat", "", "Bob"]
    Path("lines").write_text("Ann sat\n\n", encoding="utf-8")
    main(["predict", "run", "lines", "--sentences", "--probabilities"])
    assert re.fullmatch(r"Ann/\S+/[01]\.\d{6} sat/\S+/[01]\.\d{6}\n\n", capsys.readouterr().out)
    Path("gaps").write_text("1\tNew York\t\n2\tsat\tX\n\t\t\n3\tBob\t\t\n", encoding="utf-8")
    main(["predict", "run", "gaps"])
    assert [line.split("\t")[:-1] for line in capsys.readouterr().out.splitlines()] == [
        ["1", "New York", ""], ["2", "sat", "X"], ["", ""], ["3", "Bob", "", ""]
    ]  # fmt: skip
    Path("spaced").write_text("New York\t\nsat\t\n", encoding="utf-8")
    main(["predict", "run", "spaced", "--json", "--token-column", "1"])
    assert json.loads(capsys.readouterr().out)["tokens"] == ["New York", "sat"]
    Path("first").write_text("Ann X\nsat X\n", encoding="utf-8")
    main(["predict", "run", "first", "--json", "--token-column", "1"])
    assert json.loads(capsys.readouterr().out)["tokens"] == ["Ann", "sat"]
    Path("short").write_text("1\tAnn\n2\n", encoding="utf-8")
    Path("mixed").write_text("Ann\nNew York\n", encoding="utf-8")
    for file, options, code, problem in (
        ("short", [], 3, "Line 2 of short has no token in column 2: '2'."),
        ("mixed", [], 3, "Line 2 of mixed has 2 columns, and the first has one: 'New"),
        ("words", ["--token-column", "2"], 3, "Line 1 of words has no token in column 2: 'Ann'."),
        ("words", ["--token-column", "1", "--sentences"], 2, "--token-column 1 was given together with --sentences."),
    ):
        with pytest.raises(SystemExit) as ended:
            main(["predict", "run", file, *options])
        assert ended.value.code == code
        assert problem in capsys.readouterr().err


def test_comments_of_conll_u_are_skipped_and_written_as_they_are(
    run: Callable[..., str], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    run()
    comment, sentence = "# sent_id = 1\n# text = Ann sat\n", "1\tAnn\tI-PER\n2\tsat\tO\n"
    given = f"# a licence\n\n{comment}{sentence}\n# newdoc\n\n{comment}{sentence}"
    Path("file").write_text(given, encoding="utf-8")
    for name in ("file", "-"):
        monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(given.encode())))
        main(["predict", "run", name])
        lines = capsys.readouterr().out.splitlines()
        assert [line.rpartition("\t")[0] if "\t" in line else line for line in lines] == given.splitlines()
    assert lmtrain.load("run").evaluate_file("file").num_tokens == 4


def test_predict_says_that_a_file_is_empty_and_reads_other_encodings(
    place: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    lmtrain.train(*TINY, "hydra.run.dir=run", "trainer.num_epochs=1", "trainer.baselines=false")
    capsys.readouterr()
    for options in ([], ["--sentences"], ["--json"]):
        Path("empty").write_bytes(b"")
        main(["predict", "run", "empty", *options])
        assert capsys.readouterr() == ("", "lmtrain: empty is empty: there is nothing to predict.\n")
    Path("blanks").write_text("\n\nAnn\nsat\n\n\n\nPisa\n\n\n", encoding="utf-8")
    for name in ("blanks", "-"):
        monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(Path("blanks").read_bytes())))
        main(["predict", "run", name, "--json"])
        assert [json.loads(row)["tokens"] for row in capsys.readouterr().out.splitlines()] == [["Ann", "sat"], ["Pisa"]]
    Path("latin").write_bytes("Zoë\r\nsat\r\n".encode("latin-1"))
    main(["predict", "run", "latin", "--encoding", "latin-1"])
    assert [line.split("\t")[0] for line in capsys.readouterr().out.splitlines()] == ["Zoë", "sat"]


def test_python_tags_texts_and_lists_of_tokens_alike(place: Path) -> None:
    tagger = lmtrain.train(*TINY, "hydra.run.dir=run").model
    assert repr(tagger).startswith("<lmtrain.Tagger tagger, 3 outputs, vocabulary ")
    one, two = tagger.tag(["Ann sat in New York", ["Bob", "slept", "in", "Oslo"]])
    assert one.entities == [("Ann", "PER"), ("New York", "LOC")]
    assert two.tags == ("I-PER", "O", "O", "I-LOC")
    assert tagger.tag("Bob slept in Oslo") == [two], "a string is one sentence"
    assert tagger.tag([]) == []
    assert tagger.tag([[]])[0].tags == ()
    assert tagger.settings["model"]["kind"] == "tagger"
    assert tagger.splits == ["valid", "test"]


def test_evaluate_reads_saved_splits_files_and_the_training_text(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    lmtrain.train(*TINY, "hydra.run.dir=run")
    capsys.readouterr()
    main(["evaluate", "run", "--json"])
    saved = json.loads(capsys.readouterr().out)
    main(["evaluate", "run", "--json", "--text", "data/test.txt"])
    assert {**json.loads(capsys.readouterr().out), "text": "test"} == saved
    main(["evaluate", "run", "--split", "train", "--json"])
    assert json.loads(capsys.readouterr().out)["num_tokens"] == read_columns(Path("data/train.txt")).num_tokens
    with pytest.raises(SystemExit) as ended:
        main(["evaluate", "run", "--streams", "2"])
    assert ended.value.code == 2
    for command in ("sample", "score", "mix"):
        with pytest.raises(SystemExit) as ended:
            main(
                [command, "run", *(["data/test.txt"] if command == "score" else ["run", "--output", "x"] * (command == "mix"))]
            )
        assert ended.value.code == 4
        assert "task=tag" in capsys.readouterr().err


def test_the_final_split_may_stay_unseen(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    lmtrain.train(*TINY, "hydra.run.dir=none", "trainer.final_split=none")
    assert "of the best model" not in capsys.readouterr().out
    lmtrain.train(*TINY, "hydra.run.dir=valid", "trainer.final_split=valid")
    assert "Validation of the best model" in capsys.readouterr().out
    (place / "data" / "test.txt").unlink()
    lmtrain.train(*TINY, "hydra.run.dir=without")
    assert "Validation (there is no test split) of the best model" in capsys.readouterr().out


def test_a_model_that_is_no_better_than_the_simplest_says_so(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    lmtrain.train(*TINY, "hydra.run.dir=run", "optimizer.learning_rate=1e-9", "trainer.num_epochs=1")
    assert "On valid this model is no better than each word's most frequent tag and logistic" in capsys.readouterr().out


def refused(*arguments: str) -> Callable[[], str]:
    def call() -> str:
        with pytest.raises(lmtrain.UserError) as error:
            lmtrain.train(*TINY, *arguments, "hydra.run.dir=run")
        assert not Path("run").exists()
        return str(error.value)

    return call


def test_what_does_not_go_together_is_refused(place: Path) -> None:
    assert "model=lstm is no model for data=columns" in refused("model=lstm")()
    assert "Type tokenizer=word" in refused("tokenizer=char")()
    assert "is for model.objective=logistic|max_margin" in refused("model.target_class=LOC")()
    assert (
        "is no class of the training data. Their classes are" in refused("model.objective=logistic", "model.target_class=X")()
    )
    assert "not both" in refused("data.train=data/train.txt")()
    assert "needs both data.train=FILE and data.valid=FILE" in refused("data.path=''", "data.train=data/train.txt")()
    assert "is unknown" in refused("data.encoding=klingon")()
    assert "computes in float32" in refused("trainer.precision=bfloat16")()
    (place / "data" / "dev.txt").write_text("Ann B-ORG\n", encoding="utf-8")
    assert "data/dev.txt has the tag B-ORG" in refused("data.strict_tags=true")()
    lmtrain.train(*TINY, "hydra.run.dir=lenient")
    assert "tags that train lacks, and that count as missed: B-ORG" in Path("lenient/lmtrain.log").read_text()
    assert "the token and the tag stand in two columns" in refused("data.token_column=-1")()
    assert "the token and the tag stand in two columns" in refused("data.tag_column=0")()
    assert "data/dev.txt is one file. A training needs one part to learn from" in refused("data.path=data/dev.txt")()


@pytest.mark.parametrize("tag", ["O", "I-PER"])
@pytest.mark.parametrize("objective", ["softmax", "logistic", "max_margin"])
def test_data_with_nothing_to_tell_apart_are_refused(tag: str, objective: str, place: Path) -> None:
    (place / "data" / "train.txt").write_text(f"Ann {tag}\n", encoding="utf-8")
    what = "has one tag" if objective == "softmax" else "is of one class"
    cls = tag if objective == "softmax" else tag.removeprefix("I-")
    for target in [[]] if objective == "softmax" else [[], ["model.target_class=LOC"]]:
        said = refused(f"model.objective={objective}", *target)()
        assert f"Every token of the training data {what}, {cls}. There is something to learn" in said


def append(name: str, lines: str) -> None:
    path = Path("data") / f"{name}.txt"
    path.write_text(f"{path.read_text(encoding='utf-8')}\n{lines}", encoding="utf-8")


def test_one_odd_tag_is_said_and_changes_no_other(place: Path, call: Callable[..., Any]) -> None:
    for number, name in enumerate(("train", "dev", "test")):
        (place / "data" / f"{name}.txt").write_text(text(number, 30, "B"), encoding="utf-8")
    append("train", "Bob O\nnull I-PER\n\nextra extra\n")
    ended = call(*TINY, "model.objective=logistic", "hydra.run.dir=run", "trainer.baselines=false")
    assert "tags are written as BIO\n" in ended.err + ended.out
    said = (
        r"2 of \d+ tags of entities in train are not written as BIO, as this model writes tags\. The first is I-PER of 'null',"
    )
    assert re.search(said, Path("run/lmtrain.log").read_text())
    assert lmtrain.load("run").tag("Ann sat in New York")[0].tags == ("B-PER", "O", "O", "B-LOC", "I-LOC")


def test_a_run_goes_on_to_write_tags_as_it_began(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as earlier:
        earlier.setattr("lmtrain.tasks.tag.scheme_of", lambda sentences: Scheme("BIO", True, True, False))
        lmtrain.train(*TINY, "model.objective=logistic", "hydra.run.dir=run", "trainer.baselines=false")
    lmtrain.train("resume=run", "trainer.num_epochs=6")
    assert last("run").documents["model"]["scheme"]["name"] == "BIO"


def test_a_split_without_entities_gets_no_verdict(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (place / "data" / "test.txt").write_text("she O\nsat O\n", encoding="utf-8")
    lmtrain.train(*TINY, "hydra.run.dir=run", "trainer.num_epochs=1")
    assert "test has nothing to be found, so its score is 0 for any model." in Path("run/lmtrain.log").read_text()
    printed = capsys.readouterr().out
    assert "On test there is nothing to be found, so it does not tell how good a model is." in printed
    assert "On test this model" not in printed


@pytest.mark.parametrize(
    ("rows", "said"),
    [
        ("Ann B_PER\nsat o\n", "No tag is O, which marks words outside of entities. B_PER looks like B-PER, o looks like O;"),
        ("Ann B_PER\nsat O\n", "B_PER looks like B-PER; as they are written, these are classes of their own."),
        ("Ann S_X\nsat VBD\n", ""),
    ],
)  # fmt: skip
def test_tags_that_look_like_others_are_remarked(rows: str, said: str, place: Path) -> None:
    Path("rows").write_text(rows, encoding="utf-8")
    task = open_task(read_settings([*TINY, "data.path=''", "data.train=rows", "data.valid=rows"]), torch.device("cpu"))
    advice = "\n".join(task.iter_advice())
    assert said in advice
    assert ("looks like" in advice) == bool(said)


def test_predict_asks_about_lines_that_differ_in_their_columns(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    lmtrain.train(*TINY, "hydra.run.dir=run", "trainer.num_epochs=1", "trainer.baselines=false")
    capsys.readouterr()
    for name, lines, said in (
        ("more", "Ann saw Rome .\nBob went to Rome .\nAnn\n", "Line 2 of more has 5 columns, and line 1 has 4 columns. Only"),
        ("fewer", "Ann saw Rome\nBob\n", "Line 2 of fewer has 1 column, and line 1 has 3 columns. Only one word"),
        ("later", "Ann saw\n\nBob went to Rome .\n", "Line 3 of later has 5 columns, and line 1 has 2 columns."),
        ("conll", "-DOCSTART- -X- O O\n\nEU NNP B-NP B-ORG\nrejects VBZ B-VP O\n\nPeter NNP B-NP B-PER\n", ""),
        ("words", "Ann\nsat\n\nBob\n", ""),
        ("tabs", "# a b c\nAnn\tX\n# d e\nsat\nNew York\tX\tY\n", ""),
    ):
        Path(name).write_text(lines, encoding="utf-8")
        main(["predict", "run", name])
        printed = capsys.readouterr()
        assert printed.err.count("\n") == bool(said)
        assert said in printed.err
        words = [line for line in printed.out.splitlines() if line and line[0] not in "#-"]
        assert len({line.rindex("\t") > line.rfind(" ") if "\t" in line else False for line in words}) == 1, "one separator"
        main(["predict", "run", name, "--token-column", "1"])
        assert capsys.readouterr().err == ""


def test_predict_cuts_sentences_as_training_data_are_cut(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tagger = lmtrain.train(*TINY, "hydra.run.dir=run", "trainer.num_epochs=1", "trainer.baselines=false").model
    assert tagger.tag("10\u00a0km in\u3000x\n")[0].tokens == ("10\u00a0km", "in\u3000x")
    Path("lines").write_text("10\u00a0km in\u2028x\n", encoding="utf-8")
    capsys.readouterr()
    main(["predict", "run", "lines", "--sentences", "--json"])
    assert json.loads(capsys.readouterr().out)["tokens"] == ["10\u00a0km", "in\u2028x"]


def test_predict_names_the_option_for_encodings_and_refuses_probabilities_that_are_none(
    place: Path, call: Callable[..., Any]
) -> None:
    lmtrain.train(*TINY, "model.objective=max_margin", "hydra.run.dir=run", "trainer.num_epochs=1", "trainer.baselines=false")
    Path("latin").write_bytes("Zoë\n".encode("latin-1"))
    ended = call("predict", "run", "latin")
    assert (ended.code, "Type --encoding latin-1" in ended.err, "iconv" in ended.err) == (3, True, False)
    ended = call("predict", "run", "latin", "--encoding", "latin-1", "--probabilities")
    assert (ended.code, ended.out) == (2, "")
    assert "The scores of max-margin are no probabilities" in ended.err


def test_a_changed_text_is_refused_on_resume(place: Path) -> None:
    lmtrain.train(*TINY, "hydra.run.dir=run")
    (place / "data" / "train.txt").write_text(text(7, 40), encoding="utf-8")
    with pytest.raises(lmtrain.CheckpointError, match="The text has changed"):
        lmtrain.train("resume=run", "trainer.num_epochs=6")


def test_a_tagger_that_diverges_is_no_best_model(place: Path) -> None:
    with pytest.raises(lmtrain.DivergedError):
        lmtrain.train(*TINY, "hydra.run.dir=run", "model.activation=relu", "optimizer=sgd", "optimizer.learning_rate=1000",
                      "trainer.clip_norm=0", "model.init_range=10")  # fmt: skip


def test_the_command_line_shows_what_a_tagger_has(place: Path, call: Callable[..., Any]) -> None:
    ended = call(*TINY, "hydra.run.dir=run", "trainer.num_epochs=1")
    check_shown(ended.out, ended.err)


@pytest.mark.slow
def test_it_starts_from_the_command_line_alone(place: Path) -> None:
    result = subprocess.run(
        [sys.executable, "-m", "lmtrain", *TINY, "hydra.run.dir=run", "trainer.num_epochs=1"],
        capture_output=True, text=True, timeout=120, check=True,
    )  # fmt: skip
    check_shown(result.stdout, result.stderr)


def check_shown(out: str, err: str) -> None:
    assert "loss=" in err
    assert "ppl=" not in err
    assert "python -m lmtrain predict run FILE" in out
    assert "each word's most frequent tag" in out
    assert "logistic regression (words, shapes, affixes)" in out


# ---- scores


@given(st.lists(st.tuples(st.integers(0, 5), st.booleans()), min_size=1, max_size=12))
def test_average_precision_and_threshold_by_their_definitions(items: list[tuple[int, bool]]) -> None:
    scores, there = np.array([float(score) for score, _ in items]), np.array([is_there for _, is_there in items])
    cuts = sorted(set(scores.tolist()), reverse=True)
    total, before = 0.0, 0.0
    f1 = {}
    for cut in cuts:
        found, right = scores >= cut, (scores >= cut) & there
        recall = right.sum() / max(there.sum(), 1)
        total += (recall - before) * right.sum() / found.sum()
        before = recall
        f1[cut] = 2 * right.sum() / (found.sum() + there.sum())
    assert average_precision_of(scores, there) == pytest.approx(total)
    threshold = best_threshold(scores, there)
    found = scores > threshold
    if there.any():
        assert 2 * (found & there).sum() / (found.sum() + there.sum()) == pytest.approx(max(f1.values()))
    else:
        assert not found.any()


@given(
    st.lists(st.tuples(st.sampled_from(["O", "I-A", "B-A", "I-B"]), st.sampled_from(["O", "I-A", "B-A", "I-B"])), min_size=1)
)
def test_entity_f1_counts_whole_entities(pairs: list[tuple[str, str]]) -> None:
    gold, guess = zip(*pairs, strict=True)
    tokens = tuple(f"w{i}" for i in range(len(gold)))
    score = score_tags([Sentence(tokens, gold, 1)], [guess], known_entities=set(), known_tags=set(gold), judged_by="entity_f1")
    there, found = set(entities(gold)), set(entities(guess))
    expected = 2 * len(there & found) / (len(there) + len(found)) if there & found else 0.0
    assert math.isclose(score.value, expected)
    assert score.accuracy == sum(a == b for a, b in pairs) / len(pairs)
    assert sum(score.confusion.values()) == len(pairs)
    assert score.unseen.num_there == len(there)
    assert json.dumps(score.to_json())
    assert "all classes" in score.format()
