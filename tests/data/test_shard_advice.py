"""Shards of very different kinds are named before training, with what to type; parts of one corpus are not."""

import random
from pathlib import Path

import pytest

from lmtrain.data.advice import iter_advice
from lmtrain.data.corpus import load_corpus
from lmtrain.data.shards import LEAST

SHARED = Path(__file__).parents[3] / "shared" / "data"
LANGUAGES = {  # syllables, with which words are made
    "one": ["the", "ing", "and", "er", "on", "st", "wa", "be", "li", "ow", "ght", "ee"],
    "other": ["szcz", "prz", "owa", "nie", "rze", "ły", "ów", "ck", "dzi", "ją", "kie", "go"],
    "third": ["то", "на", "ст", "ов", "ени", "при", "ко", "ра", "ль", "ый"],
}


def prose(language: str, seed: int, num_words: int = 1500) -> str:
    draw = random.Random(seed)
    words = ["".join(draw.choices(LANGUAGES[language], k=draw.randint(1, 3))) for _ in range(num_words)]
    return "".join(word + ("\n" if number % 9 == 0 else " ") for number, word in enumerate(words, 1)) + "\n"


def code(seed: int) -> str:
    return "".join(f"    if (x[{n}] != {n * seed}) {{ return f(x, {n}); }}\n" for n in range(200))


@pytest.fixture
def advise(tmp_path):
    def advise(shards: list[str], **options) -> list[str]:
        place = tmp_path / "shards"
        place.mkdir()
        for number, content in enumerate(shards, 1):
            (place / f"part-{number}.txt").write_text(content, encoding="utf-8")
        corpus = load_corpus(place, cache_dir=tmp_path / "cache", **{"tokenizer": "word", **options})
        return [line for line in iter_advice(corpus) if "data.split=shuffled_lines" in line]

    return advise


@pytest.mark.parametrize("tokenizer", ["char", "byte", "word"])
@pytest.mark.parametrize("odd", [prose("other", 9), prose("third", 9), code(7)], ids=["language", "script", "code"])
def test_a_shard_of_another_kind_is_named(advise, odd, tokenizer):
    shards = [prose("one", number) for number in range(5)]
    (said,) = advise([*shards[:3], odd, *shards[3:]], tokenizer=tokenizer)
    assert said.startswith("part-4.txt differs in kind from the other shards")
    assert "Type data.split=shuffled_lines, or data.split=shuffled_documents" in said


def test_two_shards_that_differ_are_both_named(advise):
    (said,) = advise([prose("one", 1), prose("other", 2)])
    assert "part-1.txt" in said
    assert "part-2.txt differ in kind" in said


def test_many_that_differ_are_counted(advise):
    (said,) = advise([prose("one", number) for number in range(5)] + [prose("third", number) for number in range(5)])
    assert "and 7 more differ in kind" in said


def test_shards_of_one_kind_and_short_ones_are_not_remarked_on(advise):
    short = prose("third", 1)[: LEAST - 1]
    assert advise([*(prose("one", number, 400 + 900 * number) for number in range(5)), short]) == []


def test_a_text_that_is_shuffled_is_not_remarked_on(advise):
    assert advise([prose("one", 1), prose("one", 2), prose("third", 3)], split="shuffled_lines") == []


def test_a_shard_that_holds_nearly_all_is_named(advise):
    (said,) = advise([prose("one", 1, 30_000), prose("one", 2, 300), prose("one", 3, 300)])
    assert said.startswith("part-1.txt holds 98% of the text")


@pytest.mark.parametrize("num", [7, pytest.param(60, marks=pytest.mark.slow)])
@pytest.mark.parametrize("name", ["brown/train.txt", "tinyshakespeare/input.txt", "ner_wikigold/train.txt", "cls_mr/train.txt"])
def test_parts_of_a_natural_corpus_are_of_one_kind(advise, name, num):
    if not (SHARED / name).exists():
        pytest.skip(f"there is no {SHARED / name}")
    text = (SHARED / name).read_text(encoding="utf-8", errors="replace")[:600_000]
    size = len(text) // num
    assert advise([text[number * size : (number + 1) * size] for number in range(num)], tokenizer="char") == []
