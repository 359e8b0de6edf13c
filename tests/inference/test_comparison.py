"""Two models on one text: sums, groups, intervals, contexts; and what cannot be compared."""

import json
import math
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import lmtrain
from lmtrain.data.encoded import EncodedText
from lmtrain.data.tokenizer import learn_tokenizer
from lmtrain.inference.comparison import Comparison, Side, bootstrap, compare_lines, compare_tokens, same_tokens
from lmtrain.inference.comparison_text import tsv
from lmtrain.inference.evaluate import evaluate
from lmtrain.models.base import StatePolicy
from lmtrain.models.ngram import NgramModel

TRAIN = "the cat sat on a mat . a dog ran ! then\nthe dog sat\na cat ran away\n" * 3
TEXT = "the cat ran . a dog sat\n\nthe dog ran away then a zebra\na cat sat\nthe mat\n"


def side(name: str, tokenizer: Any, **settings: Any) -> Side:
    model = NgramModel(vocab_size=tokenizer.vocab_size, eos_id=tokenizer.eos_id, **settings)
    model.count(tokenizer.encode(TRAIN))
    return Side(name, model, tokenizer)


WORDS = learn_tokenizer("word", [TRAIN])
A, B = side("a", WORDS, order=1), side("b", WORDS, order=3, smoothing="add_k")
IDS = WORDS.encode(TEXT)


def sections(found: Comparison) -> dict[str, list[Any]]:
    return {name: [row for row in found.rows if row.section == name] for name in {row.section for row in found.rows}}


def nats(one: Side, ids: Any) -> float:
    return evaluate(one.model, EncodedText(ids, 1, 1), WORDS).total_nats


@pytest.mark.parametrize("policy", [StatePolicy.carry, StatePolicy.line])
def test_every_group_adds_up_to_what_evaluate_says(policy: StatePolicy) -> None:
    a, b = (side("a", WORDS, order=2, state_policy=policy), B)
    counts = np.bincount(WORDS.encode(TRAIN), minlength=WORDS.vocab_size)
    found = compare_tokens(a, b, IDS, counts=counts, counted_in="the training text")
    assert found.total.nats_a * len(IDS) == pytest.approx(nats(a, IDS))
    assert found.total.nats_b * len(IDS) == pytest.approx(nats(b, IDS))
    groups = sections(found)
    assert set(groups) == {"times in the training text", "place in the line", "place in the sentence", "token"}
    for rows in groups.values():
        assert sum(row.count for row in rows) == len(IDS)
        for name in ("nats_a", "nats_b"):
            assert sum(row.count * getattr(row, name) for row in rows) == pytest.approx(getattr(found.total, name) * len(IDS))
    times = {row.group: row.count for row in groups["times in the training text"]}
    assert times["<unk>"] == 1
    assert sum(times.values()) - 1 == sum(1 for token in IDS if token != WORDS.unk_id)
    lines = {row.group: row.count for row in groups["place in the line"]}
    assert (lines["1"], lines["2"], lines["6-10"]) == (5, 4, 6)  # the empty line has its end alone
    assert {row.group: row.count for row in groups["place in the sentence"]}["1"] == 6
    assert (found.num_lines, found.lines_a + found.lines_b <= 5) == (5, True)


def test_what_differs_most_is_shown_in_its_context() -> None:
    found = compare_tokens(A, B, IDS)
    assert "times" not in " ".join(sections(found))
    differences = [abs(one.difference) for one in found.shown]
    assert differences == sorted(differences, reverse=True)
    assert len(differences) == 20
    zebra = next(one for one in found.shown if one.text == "<unk>")
    assert (zebra.line, zebra.before, zebra.behind) == (3, "\n\nthe dog ran away then a ", " \na cat sat")
    text = found.format()
    assert "then a [<unk>] \\na cat sat" in text
    assert text.count("\n") < 60
    reverse = compare_tokens(B, A, IDS)
    assert reverse.total.difference == pytest.approx(-found.total.difference)
    assert reverse.better_b == pytest.approx(1 - found.better_b)


def test_a_model_is_as_good_as_itself() -> None:
    found = compare_tokens(A, A, IDS)
    assert (found.total.difference, found.interval, found.shown, found.lines_a, found.lines_b) == (0, (0, 0), (), 0, 0)
    assert found.verdict == "no difference that the text could show"


def test_the_interval_is_that_of_resampled_lines() -> None:
    random = np.random.default_rng(5)
    sizes = random.integers(1, 30, 400).astype(float)
    difference = random.normal(0.1, 0.5, 400) * sizes
    interval, better = bootstrap(difference, sizes, seed=1, num_resamples=2000)
    assert interval is not None
    mean = difference.sum() / sizes.sum()
    residuals = difference - mean * sizes  # the delta method for a ratio of means
    error = math.sqrt((residuals**2).sum()) / sizes.sum()
    assert interval == pytest.approx((mean - 1.96 * error, mean + 1.96 * error), abs=0.15 * error)
    assert better > 0.99
    assert bootstrap(difference, sizes, seed=1, num_resamples=2000)[0] == interval
    assert bootstrap(difference[:1], sizes[:1], seed=1) == (None, float(difference[0] > 0))


def test_many_lines_are_drawn_in_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lmtrain.inference.comparison.MAX_GROUPS", 7)
    interval, _ = bootstrap(np.ones(50), np.full(50, 2.0), seed=1, num_resamples=20)
    assert interval == (0.5, 0.5)


def test_independent_lines_are_those_of_score() -> None:
    a = side("a", WORDS, order=3, state_policy=StatePolicy.carry)
    together, apart = compare_tokens(a, B, IDS), compare_tokens(a, B, IDS, independent=True)
    assert together.total.nats_a != apart.total.nats_a
    lines = [line + "\n" for line in TEXT.splitlines()]
    assert apart.total.nats_a * len(IDS) == pytest.approx(sum(nats(a, WORDS.encode(line)) for line in lines))


def test_tokens_of_probability_zero_are_left_out_and_counted() -> None:
    impossible = side("ml", WORDS, order=2, smoothing="maximum_likelihood")
    found = compare_tokens(A, impossible, IDS)
    assert found.impossible_a == 0 < found.impossible_b
    assert found.total.count == len(IDS) - found.impossible_b
    assert math.isfinite(found.total.nats_b)
    assert "Tokens of probability zero are left out" in found.format()
    assert json.loads(json.dumps(found.to_json(), allow_nan=False))["impossible_b"] == found.impossible_b
    certain = WORDS.encode("zebra zebra")
    with pytest.raises(lmtrain.DataError, match="Every token of the text has probability zero"):
        compare_tokens(A, impossible, certain)


def test_models_of_different_tokens_are_compared_by_line() -> None:
    text = "the cat ran\n\nthe dog sat on a mat\na dog ran away\r\n"
    spelled = learn_tokenizer("word", [TRAIN], min_count=4, spelled=True)
    chars = learn_tokenizer("char", [TRAIN + "\r"])
    word, char = side("word", spelled, order=2), side("char", chars, order=4)
    assert not same_tokens(spelled, chars)
    found = compare_lines(word, char, text)
    assert (found.unit, found.total.count, found.num_lines) == ("character", len(text), 4)
    ids = chars.encode(text)
    assert found.total.nats_b * len(text) == pytest.approx(nats_of(char, ids))
    spelt = spelled.spelling_of(text) / 1e6
    assert spelt > 0
    assert found.total.nats_a * len(text) == pytest.approx(nats_of(word, spelled.encode(text)) + spelt)
    assert {row.section for row in found.rows} == {"unit", "characters in the line"}
    assert [len(row.split("\t")) for row in tsv(found)] == [9] * (2 + len(found.rows) + len(found.shown))
    assert "a dog ran away\\r" in found.format()


def nats_of(one: Side, ids: Any) -> float:
    return evaluate(one.model, EncodedText(ids, 1, 1), one.tokenizer).total_nats


def test_what_does_not_fit_is_refused() -> None:
    char = side("char", learn_tokenizer("char", [TRAIN]), order=2)
    with pytest.raises(lmtrain.DataError, match=r"a reads 1 pieces of the text as <unk>.*tokenizer.unknown=spelled"):
        compare_lines(A, char, TEXT)
    with pytest.raises(lmtrain.DataError, match="char reads 1 pieces"):
        compare_lines(char, side("byte", learn_tokenizer("byte", []), order=2), "the z\n")
    with pytest.raises(lmtrain.SettingsError, match=r"form none.*form nfc"):
        compare_lines(A, side("c", learn_tokenizer("char", [TRAIN], normalize="nfc"), order=2), TEXT)
    with pytest.raises(lmtrain.DataError, match="The text is empty"):
        compare_tokens(A, B, IDS[:0])
    with pytest.raises(lmtrain.DataError, match="Line 2 of the text contains a token that stands for the end"):
        compare_lines(A, char, "the\ncat <eos> sat\n")


def test_models_of_words_with_other_vocabularies_hear_why_and_what_to_do(place: Path, call: Callable[..., Any]) -> None:
    common = ["data=text", "data.path=text.txt", "model=ngram", "tokenizer=word"]
    for name, size, more in (("five", 5, []), ("six", 6, []), ("spelt", 5, ["spelled"]), ("again", 6, ["spelled"])):
        unknown = [f"tokenizer.unknown={way}" for way in more]
        assert call(*common, f"tokenizer.vocab_size={size}", *unknown, f"hydra.run.dir={name}").code == 0
    remedy = r"Train both with one vocabulary, tokenizer\.vocabulary=RUN, or .* with tokenizer\.unknown=spelled\."
    refused = call("compare", "five", "six")
    assert refused.code == 3
    assert re.search(rf"five has a vocabulary of 5 \(word\), and six has a vocabulary of 6 \(word\)\. .*{remedy}", refused.err)
    refused = call("compare", "five", "six", "text.txt")
    assert refused.code == 3
    assert re.search(rf"five reads [\d,]+ pieces of the text as <unk>.*{remedy}", refused.err)
    assert "Give a file." in call("compare", "spelt", "again").err
    assert call("compare", "spelt", "again", "text.txt").code == 0
    assert call(*common, "tokenizer.vocab_size=5", "data.test_fraction=0", "hydra.run.dir=without").code == 0
    assert call(*common, "tokenizer.vocab_size=6", "data.test_fraction=0", "hydra.run.dir=too").code == 0
    assert re.search(r"No test text was saved with either.*the split valid", call("compare", "without", "too").err)


def test_the_resampled_texts_are_counted_for_the_winner() -> None:
    for pair, winner in (((A, B), "B"), ((B, A), "A")):
        found = compare_tokens(*pair, IDS)
        assert found.interval is not None
        if found.total.difference * (1 if winner == "B" else -1) < 0:
            winner = "AB".replace(winner, "")
        share = re.findall(r"; (\w) is better in ([\d.]+) % of the resampled texts", found.format())
        assert [letter for letter, _ in share] == [winner]
        assert float(share[0][1]) == pytest.approx(100 * (found.better_b if winner == "B" else 1 - found.better_b), rel=1e-3)
    assert "resampled" not in compare_tokens(A, A, IDS).format()


def test_the_command_and_python_say_the_same(place: Path, call: Callable[..., Any]) -> None:
    assert call("data=text", "data.path=text.txt", "model=ngram", "hydra.run.dir=counts").code == 0
    ended = call("compare", "run", "counts", "--json")
    assert ended.code == 0, ended.err
    found = lmtrain.load("run").compare(lmtrain.load("counts"))
    told = json.loads(ended.out)
    assert told["total"]["difference"] == found.total.difference
    assert tuple(told["interval"]) == found.interval
    assert told["rows"][0]["section"] == "times in the training text of run"
    text = call("compare", "run", "counts", "text.txt").out
    assert "B is better\n" in text
    (place / "few").write_text("the cat\n", encoding="utf-8")
    assert "one line gives no interval" in call("compare", "run", "counts", "few").out
    table = call("compare", "run", "counts", "few", "--tsv").out.splitlines()
    assert table[0].split("\t")[:2] == ["section", "group"]
    assert {len(row.split("\t")) for row in table} == {9}
    by_path = lmtrain.load("run").compare(lmtrain.load("counts"), "few", independent=True)
    by_blocks = lmtrain.load("run").compare(lmtrain.load("counts"), ["the c", "at\n"])
    assert [row.nats_a for row in by_path.rows] == pytest.approx([row.nats_a for row in by_blocks.rows], abs=1e-5)


def test_the_command_refuses_what_cannot_be(place: Path, call: Callable[..., Any]) -> None:
    (place / "empty").write_text("", encoding="utf-8")
    ended = call("compare", "run", "run", "empty")
    assert (ended.code, "The text is empty" in ended.err) == (3, True)
    ended = call("compare", "run", "run", "text.txt", "--split", "valid")
    assert (ended.code, "--split valid was given together with text.txt" in ended.err) == (2, True)
    assert call("compare", "run", "nowhere").code == 4
    lm = lmtrain.load("run")
    del lm._trained.texts["test"]
    with pytest.raises(lmtrain.DataError, match=r"No test text was saved with either model.*the split valid"):
        lm.compare(lm)
