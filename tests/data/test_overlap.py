"""Hashes of lines: the same text is found wherever it was cut; other texts are not."""

import itertools
import random
from collections.abc import Iterable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lmtrain.data import overlap
from lmtrain.data.overlap import Hashes, LineHashes, find_overlap

WORDS = [letter + word for word in ("the", "of", "and", "in", "that", "at") for letter in "abcde"]


def hashes(blocks: Iterable[str] | str) -> Hashes:
    lines = LineHashes()
    for block in [blocks] if isinstance(blocks, str) else blocks:
        lines.add(block.encode())
    return lines.finish()


def prose(seed: int, num_words: int, end: str = "\n", words_per_line: int = 9) -> str:
    """Words drawn at random, with an end of line behind so many."""
    draw = random.Random(seed)
    words = [draw.choice(WORDS) + str(draw.randrange(50)) for _ in range(num_words)]
    return "".join(word + (end if number % words_per_line == 0 else " ") for number, word in enumerate(words, 1))


def share(text: str, other: str) -> float:
    return find_overlap(hashes(text), hashes(other)).share


lines = st.lists(st.text("ab \n\té", max_size=70).map(lambda text: text * 3), max_size=8).map("\n".join)
long_lines = st.integers(0, 5000).map(lambda seed: prose(seed, 400, end=" "))


@given(st.one_of(lines, long_lines), st.lists(st.integers(9, 2000), min_size=1, max_size=4))
def test_hashes_do_not_depend_on_where_a_text_is_cut_into_blocks(text, sizes):
    cuts = [0, *itertools.accumulate(itertools.islice(itertools.cycle(sizes), 1 + len(text) // min(sizes)))]
    blocks = [text[start:end] for start, end in itertools.pairwise(cuts)]
    assert hashes(blocks).tolist() == hashes(text).tolist()


CUTS = {
    "the same text": lambda text: text,
    "cut at another place": lambda text: text[: len(text) * 7 // 10],
    "without its beginning": lambda text: text[len(text) // 3 + 17 :],
    "with another text behind": lambda text: text + prose(7, 5000),
    "with another text before": lambda text: prose(8, 5000) + text,
    "with other spaces": lambda text: text.replace(" ", "  ").replace("\n", " \n\t"),
    "with blank lines": lambda text: text.replace("\n", "\n\n"),
    "without its last line end": lambda text: text.rstrip("\n"),
    "twice": lambda text: text + text,
}


@pytest.mark.parametrize("cut", CUTS)
@pytest.mark.parametrize(
    ("end", "words_per_line"), [("\n", 9), ("\n", 1), ("\n", 300), (" ", 9), ("", 9), ("\u3000", 1)],
    ids=["lines", "words as lines", "paragraphs", "one line", "one line with few spaces", "one line without spaces"],
)  # fmt: skip
def test_a_text_is_found_however_it_was_cut(cut, end, words_per_line):
    text = prose(1, 6000, end, words_per_line)
    if end == "\u3000":
        text = text.replace("\u3000", "")
    held_out = text[len(text) // 2 : len(text) // 2 + len(text) // 10]
    assert share(held_out, CUTS[cut](text)) > 0.85
    assert share(held_out, prose(3, 6000, end, words_per_line)) == 0


def test_lines_dealt_at_random_are_found_too():
    all_lines = prose(1, 9000).splitlines()
    random.Random(1).shuffle(all_lines)
    held_out = all_lines[:100]
    again = all_lines[:]
    random.Random(2).shuffle(again)
    assert share("\n".join(held_out), "\n".join(again)) == 1
    assert share("\n".join(held_out), "\n".join(all_lines[100:])) == 0


@pytest.mark.parametrize("percent", [1, 5, 50])
def test_the_share_is_that_of_the_lines(percent):
    held_out, other = prose(1, 9000).splitlines(), prose(2, 9000).splitlines()
    planted = random.Random(3).sample(held_out, percent * len(held_out) // 100)
    assert share("\n".join(held_out), "\n".join([*other, *planted])) == pytest.approx(percent / 100, abs=0.002)


def test_lines_that_say_nothing_are_not_taken_for_a_match():
    code = "".join(f"int function{n}(int x) {{\n    return x * {n * n};\n}}\n\n" for n in range(100))
    other = "".join(f"char* method{n}(char* y) {{\n    while (y[{n}]) y++;\n}}\n\n" for n in range(100))
    assert share(code, other) == 0
    dialogue = "".join(f"HE:\n{line}\nYes.\n\nSHE:\nNo!\n" for line in prose(1, 900).splitlines())
    assert share(dialogue, "".join(f"HE:\n{line}\nYes.\n\nSHE:\nNo!\n" for line in prose(2, 900).splitlines())) < 0.01
    assert share("}\n", "}\n") == 0, "too little to compare"


def test_samples_of_long_texts_are_compared_with_each_other(monkeypatch):
    text, other = prose(1, 40_000), prose(2, 40_000)
    whole = find_overlap(hashes(text), hashes(text[: len(text) // 2] + other))
    monkeypatch.setattr(overlap, "MAX_HASHES", 500)
    monkeypatch.setattr(overlap, "FRESH", 50)
    sample, samples = hashes(text), hashes(text[: len(text) // 2] + other)
    assert len(sample) == len(samples) == 500
    found = find_overlap(sample, samples)
    assert 100 < found.num_compared < 500
    assert found.share == pytest.approx(whole.share, abs=0.1)
    assert find_overlap(hashes(text), sample).share == 1
    assert find_overlap(hashes(prose(1, 900)), sample).share == 1, "a small text in a sample of a large one"
    assert find_overlap(hashes(prose(3, 900)), sample).share == 0


def test_a_line_without_end_is_not_held_in_memory():
    lines = LineHashes()
    for _ in range(50):
        lines.add(b"a" * 100_000)
        assert len(lines._rest) <= overlap.MAX_PIECE


def test_marked_lines_are_counted():
    lines = LineHashes()
    lines.add(b"<s> a b </s>\n\n  <s>c</s> \n<bos> d\ne <eos>\nf\n")
    lines.finish()
    assert (lines.num_filled, lines.num_marked) == (5, 3)
