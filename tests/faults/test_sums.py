"""Sums with an infinite part, and means over nothing: no result is ever `nan`, and what is infinite says why."""

import itertools
import json
import math
import random
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NoReturn

import pytest
import torch

import lmtrain.saved

Call = Callable[..., Any]

CLOSED = r"""
\data\
ngram 1=4
ngram 2=2

\1-grams:
-99	<s>	-0.30103
-0.60206	</s>
-0.60206	ba	-0.1760913
-0.60206	ku	-0.1760913

\2-grams:
-0.2218487	<s> ba
-0.30103	ba ku

\end\
"""
NOTHING = CLOSED.replace("-0.60206", "-99").replace("-0.2218487", "-99").replace("-0.30103\tba", "-99\tba")
ENDLESS = CLOSED.replace("-0.60206\t</s>", "-99\t</s>").replace("-0.1760913", "-99")
TEXTS = {
    "closed": "ba ku\nku ba zz\n", "unknown": "zz zz", "newline": "\n", "blank": "  ", "empty": "", "one": "ba",
    "long": "ku " * 99,
}  # fmt: skip
TEMPERATURES = ("1", "1e-300", "1e-45", "5e-324", "1e-38", "1e-7", "0.5", "3", "1e38", "1e300", "1.7e308")
ADAPTING = (
    (), ("--cache", "3"), ("--cache", "3", "--cache-theta", "1e300"), ("--cache", "3", "--cache-theta", "0"),
    ("--cache", "1", "--cache-weight", "0"), ("--dynamic", "sgd"), ("--dynamic", "sgd", "--dynamic-rate", "1e30"),
    ("--dynamic", "sgd", "--dynamic-rate", "1e300"),
    ("--dynamic", "sgd", "--cache", "2", "--cache-theta", "1e30"),
)  # fmt: skip
WAYS = ((), ("--json",))


@pytest.fixture
def models(place: Path, call: Call) -> list[str]:
    """Models that give probability zero to some tokens, to most and to all, and `run`, which gives none."""
    for name, text in TEXTS.items():
        (place / f"{name}.txt").write_text(text, encoding="utf-8")
    for name, arpa in (("closed", CLOSED), ("nothing", NOTHING), ("endless", ENDLESS)):
        (place / f"{name}.arpa").write_text(arpa, encoding="utf-8")
        assert call("arpa", f"{name}.arpa", "--output", name).code == 0
    settings = ["data=text", "data.path=text.txt", "model=ngram", "model.order=2", "model.smoothing=maximum_likelihood"]
    assert call(*settings, "trainer.num_threads=1", "hydra.run.dir=likely").code == 0
    assert call("mix", "likely", "run", "--output", "mixed").code == 0
    return ["closed", "nothing", "endless", "likely", "mixed", "run"]


def refuse(constant: str) -> NoReturn:
    raise AssertionError(f"{constant} in JSON")


def check(ended: Any, as_json: bool) -> None:
    """A result without nan, whose infinities are explained, or a paragraph."""
    assert "Traceback" not in ended.err
    assert "nan" not in ended.out, ended.out
    if ended.code:
        assert ended.code in (2, 3, 5), ended.err
        assert ended.err.startswith("lmtrain: ") or "\nlmtrain: " in ended.err
        return
    if as_json:
        last = [json.loads(line, parse_constant=refuse) for line in ended.out.splitlines()][-1]
        bill = last.get("total", last)
        assert (bill["total_nats"] is None) == (bill["nats_per_token"] is None) == (bill["num_impossible"] > 0)
        assert (bill["first_impossible"] is None) == (bill["num_impossible"] == 0)
        assert bill["known_nats"] is not None or bill["num_impossible"] > 0
    else:
        assert ("inf" in ended.out) == ("has probability zero" in ended.out or "have probability zero" in ended.out), ended.out


def commands(models: list[str]) -> Iterator[tuple[str, ...]]:
    kinds = (("evaluate", "--text"), ("score",), ("score", "--per-token"), ("score", "--independent"))
    for (name, *options), model, text, temperature, adapting, way in itertools.product(
        kinds, models, TEXTS, TEMPERATURES, ADAPTING, WAYS
    ):
        if adapting and model not in ("run", "mixed"):
            continue  # only neural models can adapt
        place = [*options, f"{text}.txt"] if name == "evaluate" else [f"{text}.txt", *options]
        yield (name, model, *place, "--temperature", temperature, *adapting, *way)


def samples(models: list[str]) -> Iterator[tuple[str, ...]]:
    ways = (("--allow-unk",), (), ("--top-p", "0.5"), ("--min-p", "0.1", "--allow-unk"))
    for model, temperature, way in itertools.product(models, ("0", *TEMPERATURES), ways):
        yield ("sample", model, "--json", "--max-tokens", "3", "--temperature", temperature, *way)


def test_samples_are_written_without_infinities(models: list[str], call: Call) -> None:
    for command in random.Random(3).sample([*samples(models)], 60):
        ended = call(*command)
        assert ended.code in (0, 2, 4), ended.err
        assert "Traceback" not in ended.err
        for line in ended.out.splitlines():
            json.loads(line, parse_constant=refuse)
    ended = call("sample", "nothing", "--allow-unk", "--temperature", "0")
    assert ended.code == 4
    assert "gives probability zero to every token that could come next" in ended.err


def check_some(models: list[str], call: Call, number: int, seed: int) -> None:
    for command in random.Random(seed).sample([*commands(models)], number):
        check(call(*command), "--json" in command)


def test_no_command_prints_nan_whatever_the_model_the_text_and_the_temperature(models: list[str], call: Call) -> None:
    check_some(models, call, 120, seed=1)
    for temperature in TEMPERATURES:
        check(call("evaluate", "run", "--temperature", temperature), as_json=False)
        check(call("score", "closed", "closed.txt", "--temperature", temperature, "--json"), as_json=True)


@pytest.mark.slow
def test_no_command_prints_nan_in_two_thousand_more(models: list[str], call: Call) -> None:
    check_some(models, call, 2000, seed=2)


def test_an_impossible_word_makes_only_those_sums_infinite_that_it_belongs_to(models: list[str], call: Call) -> None:
    log10 = [-0.2218487 - 0.30103 - 0.1760913 - 0.60206, -0.30103 - 0.60206 - 0.1760913 - 0.60206 - 0.60206]
    known = -math.log(10) * sum(log10)
    for command in (("evaluate", "closed", "--text", "closed.txt"), ("score", "closed", "closed.txt")):
        printed = call(*command).out
        assert "perplexity inf · 3.96 without <unk> · inf nats per token" in printed
        assert "1 token has probability zero: '<unk>', token 6 of the text" in printed
        last = json.loads(call(*command, "--json").out.splitlines()[-1], parse_constant=refuse)
        bill = last.get("total", last)
        assert bill["known_nats"] == pytest.approx(known, rel=1e-12)
        assert bill["known_nats"] == pytest.approx(8.253229, rel=1e-6)
        assert bill["perplexity_without_unk"] == pytest.approx(math.exp(known / 6), rel=1e-12)
        assert (bill["total_nats"], bill["perplexity"], bill["unk_nats"]) == (None, None, None)
        assert (bill["num_impossible"], bill["first_impossible"], bill["first_impossible_at"]) == (1, "<unk>", 6)


def test_a_text_of_unknown_words_has_no_perplexity_without_them(models: list[str], call: Call) -> None:
    (Path("one unknown.txt")).write_text("zz", encoding="utf-8")
    assert call("evaluate", "closed", "--text", "one unknown.txt").out.count("without <unk>") == 1  # its <eos> is known
    assert call("evaluate", "run", "--text", "one unknown.txt").out.count("without <unk>") == 0  # a text of characters


def test_evaluate_and_score_say_the_same_of_the_smallest_texts(models: list[str], place: Path, call: Call) -> None:
    contents = ("\n", "\n\n", " ", "  \n", "ba", "ba\n", "\ufeff\n", "\r\n", "\r", "", "\ufeff")
    for model, content in itertools.product(("closed", "run"), contents):
        (place / "small.txt").write_text(content, encoding="utf-8", newline="")
        evaluated = call("evaluate", model, "--text", "small.txt", "--json")
        scored = call("score", model, "small.txt", "--json")
        assert evaluated.code == scored.code == (0 if content.strip("\ufeff") else 3), (content, evaluated.err)
        if not scored.code:
            bill = json.loads(evaluated.out)
            del bill["checkpoint"], bill["text"], bill["lines_in_training"]
            assert bill == json.loads(scored.out.splitlines()[-1])["total"], content


@pytest.mark.parametrize("command", [("evaluate", "run"), ("score", "run", "text.txt"), ("mix", "run", "run", "--output", "m")])
def test_weights_that_are_not_numbers_end_in_a_paragraph_and_print_no_result(
    command: tuple[str, ...], place: Path, call: Call, monkeypatch: pytest.MonkeyPatch
) -> None:
    load_trained = lmtrain.saved.load_trained

    def broken(*arguments: Any, **options: Any) -> Any:
        trained = load_trained(*arguments, **options)
        with torch.no_grad():
            trained.model.embedding.weight.fill_(math.nan)  # type: ignore[attr-defined]
        return trained

    monkeypatch.setattr(lmtrain.saved, "load_trained", broken)
    ended = call(*command)
    assert (ended.code, ended.out) == (4, "")
    assert "its probabilities are not numbers. A perplexity needs a model whose training did not diverge." in ended.err
    if command[0] != "mix":
        ended = call(*command, "--dynamic", "sgd")
        assert (ended.code, ended.out) == (5, "")
        assert re.search(r"diverged under dynamic evaluation .* Type a smaller --dynamic-rate\.", ended.err)


def test_a_training_whose_validation_is_impossible_writes_no_nan_and_says_which_token(place: Path, call: Call) -> None:
    lines = (place / "text.txt").read_text(encoding="utf-8")
    (place / "odd.txt").write_text(lines + "the xylophone qu\n" * 9, encoding="utf-8")
    ended = call(
        "data=text", "data.path=odd.txt", "model=ngram", "model.order=3", "model.smoothing=maximum_likelihood",
        "trainer.num_threads=1", "hydra.run.dir=odd",
    )  # fmt: skip
    assert ended.code == 0, ended.err
    assert "probability zero; the first is " in ended.out
    run = place / "odd"
    for path in (run / "metrics.jsonl", run / "run.json"):
        for line in path.read_text(encoding="utf-8").splitlines() if path.suffix == ".jsonl" else [path.read_text()]:
            json.loads(line, parse_constant=refuse)
    final = json.loads((run / "run.json").read_text(encoding="utf-8"))["sessions"][-1]["final"]
    assert (final["total_nats"], final["num_impossible"] > 0) == (None, True)
    log = (run / "lmtrain.log").read_text(encoding="utf-8")
    assert "nan" not in ended.out + log
    assert not [tag for tag, value in tensorboard_scalars(run) if math.isnan(value)]


def tensorboard_scalars(run: Path) -> list[tuple[str, float]]:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    from lmtrain.training.run_record import find_curves

    events = EventAccumulator(str(find_curves(run / "tensorboard")))
    events.Reload()
    return [(tag, event.value) for tag in events.Tags()["scalars"] for event in events.Scalars(tag)]


def test_mixing_says_which_token_is_impossible_and_refuses_what_is_impossible_in_every_part(place: Path, call: Call) -> None:
    settings = ["data=text", "data.path=odd.txt", "model=ngram", "model.smoothing=maximum_likelihood", "trainer.num_threads=1"]
    text = (place / "text.txt").read_text(encoding="utf-8")
    (place / "odd.txt").write_text(text[: len(text) * 9 // 10] + "zz\n" + text[len(text) * 9 // 10 :], encoding="utf-8")
    for name, order in (("a", 2), ("b", 3)):
        assert call(*settings, f"model.order={order}", f"hydra.run.dir={name}").code == 0
    ended = call("mix", "a", "b", "--output", "mixed")
    assert ended.code == 3
    assert "of the validation text, has probability zero in every model." in ended.err
    assert call(*settings[:3], "model.smoothing=add_k", "hydra.run.dir=c", "trainer.num_threads=1").code == 0
    ended = call("mix", "a", "c", "--output", "mixed")
    assert ended.code == 0, ended.err
    assert "validation perplexity alone inf ('" in ended.out
    assert "mixture: validation perplexity inf" not in ended.out
    assert "nan" not in ended.out
