"""Every public function of `import lmtrain` refuses an argument of a wrong type in one sentence that names it."""

import inspect
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

import lmtrain
from lmtrain import arguments
from lmtrain.arguments import checked


class Nothing:
    """An object that no function can take."""

    def __repr__(self) -> str:
        return "NOTHING"


def public(owner: Any) -> Iterator[tuple[str, Callable[..., Any]]]:
    """The public methods of an object or a class, by their names."""
    for name, _ in inspect.getmembers(owner if inspect.isclass(owner) else type(owner), callable):
        if not name.startswith("_"):
            yield name, getattr(owner, name)


@pytest.fixture
def things(place: Path, call: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """Something of every public class, and the functions."""
    words = ["the", "cat", "sat", "on", "mat", "a"]
    vectors = lmtrain.Vectors(tuple(words), np.eye(6, dtype=np.float32))
    (place / "tags").mkdir()
    (place / "labels").mkdir()
    for name in ("train", "valid", "test"):
        (place / "tags" / f"{name}.txt").write_text("the O\ncat B-X\n\na O\nmat O\n\n" * 8, encoding="utf-8")
        (place / "labels" / f"{name}.tsv").write_text("good\tthe cat\nbad\ta mat\n" * 8, encoding="utf-8")
    few = ["trainer.num_steps=2", "trainer.max_seconds=null", "trainer.num_epochs=null", "trainer.num_threads=1"]
    for name, settings in {
        "tagger": ["task=tag", "data.path=tags"],
        "classifier": ["task=classify", "data.path=labels"],
        "skipgram": ["task=vectors", "model=skipgram", "data=text", "data.path=text.txt", "tokenizer.min_count=1"],
    }.items():
        ended = call(*settings, *few, f"hydra.run.dir={name}")
        assert ended.code == 0, ended.err
    opened = {name: lmtrain.load(name) for name in ("run", "tagger", "classifier", "skipgram")}
    assert {type(one) for one in opened.values()} == {
        lmtrain.Model, lmtrain.Tagger, lmtrain.Classifier, lmtrain.TrainedVectors
    }  # fmt: skip
    return {**opened, "vectors": vectors, "Vectors": lmtrain.Vectors, "lmtrain": lmtrain}


NEEDED: dict[str, Any] = {
    "texts": ["the"], "text": "the", "other": None, "lists": {}, "directory": "new", "training": "text.txt", "path": "nowhere",
    "word": "the", "words": ["the"], "first": "the", "second": "cat", "a": "the", "b": "cat", "c": "sat", "number": 1,
    "sentences": "the", "settings": "a=b", "models": [], "split": "test",
}  # fmt: skip
"""What else is given where an argument is wrong; nothing of it is looked at before."""


def test_every_public_function_refuses_a_wrong_type_and_names_the_argument(things: dict[str, Any]) -> None:
    tried = []
    for owner, thing in things.items():
        functions = (
            [(name, getattr(lmtrain, name)) for name in ("load", "load_vectors", "mix", "train")]
            if owner == "lmtrain"
            else [pair for pair in public(thing) if not (owner == "Vectors" and pair[0] != "load")]
        )
        for name, function in functions:
            parameters = inspect.signature(function).parameters
            for wrong, parameter in parameters.items():
                if parameter.kind is inspect.Parameter.VAR_KEYWORD or parameter.annotation in (Any, "Any"):
                    continue
                given = {
                    other: things["run"] if other == "other" else NEEDED[other]
                    for other, one in parameters.items()
                    if other != wrong and one.default is inspect.Parameter.empty and one.kind is not one.VAR_POSITIONAL
                    and one.kind is not one.VAR_KEYWORD
                }  # fmt: skip
                positional = [Nothing()] if parameter.kind is inspect.Parameter.VAR_POSITIONAL else []
                with pytest.raises(TypeError) as error:
                    function(*positional, **given | ({} if positional else {wrong: Nothing()}))
                assert re.fullmatch(rf"[\w.]+\(\) was given {wrong}=NOTHING; expected .+", str(error.value)), f"{owner}.{name}"
                tried.append(f"{owner}.{name} {wrong}")
    assert len(tried) > 90, tried


@pytest.mark.parametrize(
    ("ask", "said"),
    [
        (lambda lm: lm.score([3]), r"Model.score() was given texts=[3]; expected a string or several, each a string"),
        (lambda lm: lm.score(one for one in ["the", 3]), "Model.score() was given a piece of texts=3; expected a string"),
        (lambda lm: lm.score(b"the"), "Model.score() was given texts=b'the'; expected a string or several, each a string"),
        (lambda lm: lm.sample(top_k=2.5), "Model.sample() was given top_k=2.5; expected a whole number or None"),
        (lambda lm: lm.sample(temperature=True), "Model.sample() was given temperature=True; expected a number"),
        (lambda lm: lm.perplexity(3), "Model.perplexity() was given text=3; expected a string, a path, several, each a string"),
        (lambda lm: lm.perplexity(split=3), "was given split=3; expected 'test' or 'valid' or 'train' or None"),
        (lambda lm: lm.sample(words="the"), "words='the'; expected a list of strings or None, such as ['the']"),
        (lambda lm: lm.beam(words="the"), "words='the'; expected a list of strings or None, such as ['the']"),
        (
            lambda lm: lmtrain.mix("run", "mixed"),
            "expected several, each a lmtrain.Model, a string or a path, such as ['run']",
        ),
        (
            lambda lm: lm.rescore({"u": [("the", "x")]}),
            "was given lists={'u': [('the', 'x')]}; expected a mapping from a string",
        ),
        (lambda lm: lmtrain.train(3), "train() was given settings=3; expected a string"),
        (lambda lm: lmtrain.load(None), "load() was given path=None; expected a string or a path"),
        (lambda lm: lm.score(), "missing 1 required positional argument: 'texts'"),
        (lambda lm: lm.score("the", perr_token=True), "unexpected keyword argument 'perr_token'"),
    ],
    ids=range(15),
)
def test_what_is_given_and_what_is_expected_is_said(ask: Callable[[Any], Any], said: str, place: Path) -> None:
    with pytest.raises(TypeError) as error:
        ask(lmtrain.load("run"))
    assert said in str(error.value)


def test_what_is_like_the_type_is_taken(place: Path) -> None:
    lm = lmtrain.load("run")
    texts = ["the cat", "a mat"]
    expected = [one.log_prob for one in lm.score(texts)]
    for like in (tuple(texts), iter(texts), np.array(texts), dict.fromkeys(texts).keys()):
        assert [one.log_prob for one in lm.score(like)] == expected
    assert lm.sample(max_tokens=np.int64(5), temperature=np.float32(1), seed=3) == lm.sample(
        max_tokens=5, temperature=1, seed=3
    )
    with open("text.txt", encoding="utf-8") as file:
        in_blocks = lm.perplexity(file)
    assert in_blocks.perplexity == pytest.approx(lm.perplexity(Path("text.txt")).perplexity)
    assert lm.score.__doc__
    assert "unknown_cost" in inspect.signature(lm.score).parameters


def test_a_type_that_only_a_type_checker_knows_is_not_looked_at() -> None:
    @checked
    def taken(number: "NoSuchType", text: str = "") -> object:  # noqa: F821
        return number

    assert taken(3) == 3
    with pytest.raises(TypeError, match=r"taken\(\) was given text=3; expected a string"):
        taken(3, text=3)  # type: ignore[arg-type]


def test_what_explains_and_what_stands_for_torch_refuse_wrong_types_too() -> None:
    explained = lmtrain.explain.explain("x * y", x=1, y=2)
    for ask, name in (
        (lambda: lmtrain.explain.explain(3), "expression=3"),  # type: ignore[arg-type]
        (lambda: lmtrain.explain.explain("x", 3), "values=3"),  # type: ignore[arg-type]
        (lambda: lmtrain.explain.parse(3), "expression=3"),  # type: ignore[arg-type]
        (lambda: explained.text(element=3), "element=3"),  # type: ignore[arg-type]
        (lambda: lmtrain.nn.LSTM("3", 4), "size"),
        (lambda: lmtrain.nn.LSTM(3, 4, weight_drop="x"), "weight_drop should be of type float, got: str"),
        (lambda: lmtrain.nn.LSTM(3, 4, zoneout="x"), "zoneout should be of type float, got: str"),
        (lambda: lmtrain.nn.GRU(3, 4, layer_norm="x"), "layer_norm should be of type bool, got: str"),
        (lambda: lmtrain.nn.RNN(3, 4)("x"), "RNN: input should be a tensor, got str"),
        (lambda: lmtrain.nn.LSTM(3, 4)(np.zeros((2, 1, 3))), "LSTM: input should be a tensor, got ndarray"),
    ):
        with pytest.raises(TypeError, match=re.escape(name)):
            ask()
    with pytest.raises(lmtrain.UserError, match="neither a number nor made of numbers"):
        lmtrain.explain.explain("x", x=Nothing())


def test_a_name_of_a_type_stands_for_that_type() -> None:
    """NumPy's NDArray is a TypeAliasType since its version 2.5."""
    alias = SimpleNamespace(__value__=str | np.ndarray[Any, Any])
    assert arguments._matches("x", alias)
    assert arguments._matches(np.zeros(3), alias)
    assert not arguments._matches(object(), alias)
    assert arguments._said(alias) == "a string or an array of numbers"


def test_what_is_expected_is_said_without_ambiguity() -> None:
    @checked
    def tag(sentences: str | Iterable[str | Sequence[str]]) -> None:
        pass

    with pytest.raises(TypeError, match=r"sentences=None; expected a string or several, each a string or a list of strings$"):
        tag(None)  # type: ignore[arg-type]


def test_an_empty_path_is_refused_by_the_name_of_its_argument() -> None:
    @checked
    def look_at(path: str | Path, name: str = "") -> None:
        pass

    with pytest.raises(lmtrain.SettingsError, match=r"^path is empty\. .*Give one: path=PATH\.$"):
        look_at("")
    look_at("there", name="")
