"""What unknown words cost when they are spelt: a distribution, the same however a text is cut, kept with a model."""

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from lmtrain.data.corpus import encode_file, load_corpus
from lmtrain.data.spelling import END, START, Spelling, choose_words
from lmtrain.data.tokenizer import learn_tokenizer, load_tokenizer
from lmtrain.errors import SettingsError, UnfitError

TEXT = "the cat sat\nthe zyx sat\nthe cat zzy αβγ\nthe the cat sat\n" * 3
SYMBOLS = [byte for byte in range(256) if byte not in b" \t\n\v\f\r"] + [END]


def spelling_of(words: dict[str, int], known: tuple[bytes, ...] = ()) -> Spelling:
    return Spelling(words, known)


@pytest.mark.parametrize("context", [START, b"   z", b"  zz", b"abcd", "  α".encode()])
def test_what_may_follow_sums_to_one(context: bytes) -> None:
    spelling = spelling_of({"zyx": 3, "zzy": 1, "αβγ": 2})
    assert math.fsum(spelling._probability(context, symbol) for symbol in SYMBOLS) == pytest.approx(1, abs=1e-12)


def test_words_of_every_length_sum_to_one_and_known_ones_take_no_share(monkeypatch: pytest.MonkeyPatch) -> None:
    """With an alphabet of two letters all words of up to 14 letters can be listed; longer ones are the rest."""
    monkeypatch.setattr("lmtrain.data.spelling.NUM_SYMBOLS", 3)
    words = {"a": 4, "ab": 2, "bab": 1}
    for known in ((), (b"a", b"bb")):
        spelling = spelling_of(words, known)
        layer, total = [b""], 0.0
        for _ in range(14):
            layer = [word + letter for word in layer for letter in (b"a", b"b")]
            total += math.fsum(math.exp(-spelling.micronats(word) / 1e6) for word in layer if word not in known)
        assert 0.995 < total <= 1


def test_probabilities_are_those_of_witten_and_bell() -> None:
    spelling = spelling_of({"ab": 1})
    unigram = dict.fromkeys((*b"ab", END), (1 + 3 / 251) / 6)
    assert spelling._probability(b"", ord("a")) == pytest.approx(unigram[ord("a")])
    assert spelling._probability(b"a", ord("b")) == pytest.approx((1 + unigram[ord("b")]) / 2)
    assert spelling._probability(b"a", ord("z")) == pytest.approx((3 / 251 / 6) / 2)


def test_only_so_many_words_teach_spelling(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lmtrain.data.spelling.MAX_WORDS", 2)
    assert choose_words({"c": 1, "b": 2, "a": 2}) == {"a": 2, "b": 2}
    monkeypatch.setattr("lmtrain.data.spelling.MAX_CHARS", 1)
    assert choose_words({"bb": 3, "a": 2}) == {}


def test_a_cost_does_not_depend_on_how_a_text_is_cut() -> None:
    tokenizer = learn_tokenizer("word", [TEXT], min_count=4, spelled=True)
    assert tokenizer.rare == {"zyx": 3, "zzy": 3, "αβγ": 3}
    text = "the zyx qq\n<unk> cat <eos> αβ"
    whole = sum(micronats for _, micronats in tokenizer.encode_spelt([text]))
    cost = tokenizer.spelling.micronats  # type: ignore[attr-defined]
    assert whole == sum(map(cost, (b"zyx", b"qq", b"<unk>", "αβ".encode())))
    for cut in range(1, len(text)):
        parts = list(tokenizer.encode_spelt([text[:cut], text[cut:]]))
        assert sum(micronats for _, micronats in parts) == whole
        assert [number for ids, _ in parts for number in ids.tolist()] == tokenizer.encode(text).tolist()
    assert cost(b"zyx") < cost(b"qqq")


def test_where_nothing_is_rare_all_words_teach_spelling() -> None:
    assert learn_tokenizer("word", ["a b\n"], spelled=True).rare == {"a": 1, "b": 1}
    listed = learn_tokenizer("word", ["a b b\n"], vocabulary=["<eos>", "<unk>", "a"], spelled=True)
    assert (listed.tokens, listed.rare) == (["<eos>", "<unk>", "a"], {"b": 2})
    with pytest.raises(SettingsError, match=r"spelled was given with name=char.*name=word"):
        learn_tokenizer("char", ["a"], spelled=True)


def test_it_comes_back_from_a_document_and_from_a_cache(tmp_path: Path) -> None:
    (tmp_path / "text.txt").write_text(TEXT, encoding="utf-8")
    options = {"valid_fraction": 0.3, "test_fraction": 0.2, "cache_dir": tmp_path / "cache", "min_count": 2}
    first, again = (load_corpus(tmp_path / "text.txt", tokenizer="word", spelled=True, **options) for _ in range(2))
    assert first.valid.spelling_micronats == again.valid.spelling_micronats
    assert (first.valid.spelling_micronats > 0) == (first.valid.num_unk > 0)
    assert again.tokenizer.to_json() == first.tokenizer.to_json()
    read = load_tokenizer(json.loads(json.dumps(first.tokenizer.to_json())))
    split = encode_file(tmp_path / "text.txt", read)
    assert split.spelling_micronats == encode_file(tmp_path / "text.txt", first.tokenizer).spelling_micronats
    assert load_corpus(tmp_path / "text.txt", tokenizer="word", **options).valid.spelling_micronats == 0


@pytest.mark.parametrize(
    "rare", [None, [], {"a": 0}, {"a": 1.0}, {"a b": 1}, {"a": 1, "b": 2}, {"<unk>": 1}, {"": 1}, {"a": True}]
)
def test_words_that_no_run_kept_are_refused(rare: object) -> None:
    document = learn_tokenizer("word", ["x y\n"]).to_json()
    with pytest.raises(UnfitError, match=r"^rare is"):
        load_tokenizer(document | {"rare": rare})
    with pytest.raises(UnfitError, match=r"^rare is"):
        load_tokenizer({"format": 1, "name": "byte", "rare": {"a": 1}})


def test_an_evaluation_says_that_unknown_words_are_spelt(place: Path, call: Callable[..., Any]) -> None:
    (place / "text.txt").write_text("".join(f"the cat sat on w{i:03}\n" for i in range(100)), encoding="utf-8")
    spelled = ["TRAIN", "tokenizer=word", "tokenizer.min_count=2", "tokenizer.unknown=spelled", "hydra.run.dir=made"]
    assert call(*spelled).code == 0
    bill = json.loads(call("evaluate", "made", "--json").out)
    assert bill["num_unk"] == 5
    assert bill["bits_per_character"] == pytest.approx((bill["total_nats"] + bill["spelling_nats"]) / math.log(2) / 100)
    said = call("evaluate", "made").out
    assert "5 <unk> (spelt by letters: " in said
    assert " per word · " in said
    (place / "test.txt").write_text("".join(f"the cat sat on w{i:03}\n" for i in range(95, 100)), encoding="utf-8")
    scored = json.loads(call("score", "made", "test.txt", "--json").out.splitlines()[-1])["total"]
    assert scored["spelling_nats"] == bill["spelling_nats"]
    assert scored["total_nats"] == pytest.approx(bill["total_nats"])
    assert "val/bits_per_character" in (place / "made" / "metrics.jsonl").read_text()
    assert call("resume=made", "trainer.num_steps=8").code == 0
    assert "tokenizer.unknown=spelled was given with tokenizer=char" in call("TRAIN", "tokenizer.unknown=spelled").err
