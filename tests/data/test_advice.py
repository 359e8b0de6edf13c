"""What is remarked on before training: each kind of text on which numbers mean little, with its remedy, and no others."""

import base64
import random
from pathlib import Path

import pytest

from lmtrain.data.advice import iter_advice
from lmtrain.data.corpus import load_corpus

SHARED = Path(__file__).parents[3] / "shared" / "data"
STEMS = ["ka", "lo", "mi", "ren", "tus", "bel", "or", "dan", "ves", "qui", "ma", "sol"]


def word(rank: int) -> str:
    """The word of a rank, with the frequent ones shorter."""
    letters = ""
    while True:
        rank, stem = divmod(rank, len(STEMS))
        letters += STEMS[stem]
        if not rank:
            return letters


def sentences(seed: int, num: int, num_types: int = 400) -> list[str]:
    """Words with about Zipf's frequencies."""
    draw = random.Random(seed)
    return [" ".join(word(int(num_types ** draw.random()) - 1) for _ in range(draw.randrange(5, 15))) for _ in range(num)]


@pytest.fixture
def advise(tmp_path):
    def advise(text: str | tuple[str, str, str], tokenizer: str = "word", **options) -> list[str]:
        place = tmp_path / "text"
        if isinstance(text, str):
            place.write_text(text, encoding="utf-8")
            options = {"valid_fraction": 0.1, "test_fraction": 0.1, **options}
        else:
            place.mkdir()
            for name, content in zip(("train", "valid", "test"), text, strict=True):
                (place / f"{name}.txt").write_text(content, encoding="utf-8")
        advice = list(iter_advice(load_corpus(place, tokenizer=tokenizer, cache_dir=tmp_path / "cache", **options)))
        assert all("\n" not in line and "type " in line.lower() for line in advice), "one line, and what to type"
        return advice

    return advise


ORDINARY = "\n".join(sentences(1, 1500)) + "\n"


@pytest.mark.parametrize("tokenizer", ["char", "byte", "word"])
def test_an_ordinary_text_is_not_remarked_on(advise, tokenizer):
    assert advise(ORDINARY, tokenizer) == []


# ---- blanks that no word stands for


@pytest.mark.parametrize("made", ["indented", "justified", "spaced"])
def test_texts_with_many_blanks_are_remarked_on_for_words_alone(advise, made):
    change = {"indented": lambda line: "        " + line, "justified": lambda line: line.replace(" ", "  "),
              "spaced": lambda line: line.replace(" ", 8 * " ")}[made]  # fmt: skip
    text = "".join(change(line) + "\n" for line in sentences(1, 1500))
    (line,) = advise(text)
    share = 1 - len(ORDINARY) / len(text)
    assert line.startswith((f"{share - 0.005:.0%} of the characters", f"{share + 0.005:.0%} of the characters"))
    assert advise(text, "char") == advise(text, "byte") == []
    assert len(advise(text, "word", min_count=3)) == 1, "unknown words change little"


def test_double_spaces_behind_sentences_and_empty_lines_are_ordinary(advise):
    text = "".join(line.replace(" ", ".  ", 1) + "\n\n" for line in sentences(1, 1500))
    assert not any("blanks" in line for line in advise(text))


# ---- unknown tokens


def unknown(share: float, seed: int = 3) -> str:
    """Held-out lines with so many words that training has not."""
    draw = random.Random(2)
    words = [
        name if draw.random() > share else f"new{number}" for number, name in enumerate(" ".join(sentences(seed, 300)).split())
    ]
    return "\n".join(" ".join(words[start : start + 9]) for start in range(0, len(words), 9)) + "\n"


def test_an_unknown_word_that_training_never_has_is_remarked_on(advise):
    (line,) = advise((ORDINARY, unknown(0.2), unknown(0, 7)))
    assert "of the validation tokens are <unk>, but none of the training tokens" in line
    assert "Type tokenizer.min_count=" in line


def test_so_it_is_in_the_test_text_alone(advise):
    (line,) = advise((ORDINARY, unknown(0), unknown(0.1, 7)))
    assert "of the test tokens are <unk>, but none of the training tokens" in line


def test_what_is_said_to_be_typed_helps(advise, tmp_path):
    rare = "\n".join(f"{line} rare{number}" for number, line in enumerate(sentences(4, 1500))) + "\n"
    (line,) = advise((rare, unknown(0.2), unknown(0, 7)))
    assert "Type tokenizer.min_count=2, which" in line
    corpus = load_corpus(tmp_path / "text", tokenizer="word", min_count=2, cache_dir=tmp_path / "cache")
    assert list(iter_advice(corpus)) == []


def test_the_least_count_that_makes_some_words_unknown_is_said(advise):
    thrice = "\n".join(sentences(4, 300, 100) * 3) + "\n"
    (line,) = advise((thrice, unknown(0.2), unknown(0, 7)))
    assert int(line.split("min_count=")[1].split(",")[0]) >= 4


def test_nobody_is_told_to_make_most_of_the_training_text_unknown(advise):
    lines = advise(("a b\n" * 900, "a b a b a b a b x\n" * 90, "a b\n"))
    (line,) = [line for line in lines if "is not learnt" in line]
    assert "No words of the training text are rare. Type tokenizer=byte" in line
    assert "min_count" not in line


def test_an_unknown_word_that_training_has_too_seldom_is_remarked_on(advise):
    (line,) = advise((ORDINARY + "<unk>\n", unknown(0.2), unknown(0, 7)))
    assert "but only 0.01% of the training tokens" in line


def test_characters_that_training_never_has_are_remarked_on(advise):
    (line,) = advise((ORDINARY, ORDINARY.replace("a", "\u00e4")[:3000], ORDINARY[:3000].upper()), "char")[:1]
    assert "of the validation tokens are <unk>" in line


def test_a_few_unknown_ones_are_not_remarked_on(advise):
    assert advise((ORDINARY, unknown(0.001), unknown(0.001, 7))) == []


def test_texts_of_different_kinds_are_remarked_on(advise):
    other = "\n".join(f"neu{number} alt{number}" for number in range(500)) + "\n"
    (line,) = advise((ORDINARY, other, unknown(0)))
    assert "100% of the words of the validation text are <unk>, not known from the training text" in line


@pytest.mark.parametrize("options", [{"vocab_size": 6}, {"min_count": 5000}])
def test_a_vocabulary_that_leaves_hardly_a_word_is_remarked_on(advise, options):
    (line,) = advise(ORDINARY, **options)
    assert "of the words of the training text are <unk>" in line
    assert "Type a smaller tokenizer.min_count or a larger tokenizer.vocab_size, or tokenizer=byte" in line


# ---- words that do not end


def chinese(num: int, length: int, end: str = "") -> str:
    draw = random.Random(5)
    lines = [
        "".join(chr(0x4E00 + int(2000 * draw.random() ** 3)) for _ in range(draw.randrange(length // 2, length)))
        for _ in range(num)
    ]
    return "\n".join(line + end for line in lines) + "\n"


def joined(separator: str) -> str:
    return "\n".join(line.replace(" ", separator) for line in sentences(1, 1500)) + "\n"


ENDLESS = {
    "no spaces, long lines": chinese(800, 60),
    "no spaces, short lines": chinese(3000, 14),
    "commas": joined(","),
    "underscores": joined("_"),
    "encoded data": "\n".join(base64.b64encode(random.Random(n).randbytes(57)).decode() for n in range(1000)) + "\n",
    "encoded data in between": "".join(
        f"{line}\n" + (base64.b64encode(random.Random(n).randbytes(600)).decode() + "\n") * (n % 8 == 0)
        for n, line in enumerate(sentences(1, 1500))
    ),
    "names": "\n".join(f"{word(number * 37 + 5000)}{number}" for number in range(2000)) + "\n",
}  # fmt: skip


@pytest.mark.parametrize("kind", ENDLESS)
def test_words_that_do_not_end_or_never_come_again_are_remarked_on(advise, kind):
    (line,) = advise(ENDLESS[kind])
    assert "so a model of words learns next to nothing" in line
    assert line.endswith("Type tokenizer=char.")


@pytest.mark.parametrize("kind", ENDLESS)
def test_what_is_said_to_be_typed_helps_against_endless_words(advise, kind):
    assert [line for line in advise(ENDLESS[kind], "char") if "<unk>" not in line] == []


@pytest.mark.parametrize(
    ("separator", "name", "typed"),
    [
        ("\u200b", "U+200B (zero width space)", "U+200B"), ("\u3000", "U+3000 (ideographic space)", "U+3000"),
        ("\xa0", "U+00A0 (no-break space)", "U+00A0"), ("\x1f", "U+001F (a control character)", "U+001F"),
    ],
)  # fmt: skip
def test_another_kind_of_space_is_named_with_what_replaces_it(advise, separator, name, typed):
    (line,) = advise(joined(separator))
    assert f"Most words hold {name}" in line
    assert f"type  tokenizer.separators=[{typed}] " in line


# ---- lines


@pytest.mark.parametrize("tokenizer", ["char", "word"])
@pytest.mark.parametrize("marks", [("<s> ", " </s>"), ("<s>", "</s>"), ("<s> ", ""), ("", " </s>"), ("<bos> ", "")])
def test_marked_lines_are_remarked_on(advise, marks, tokenizer):
    start, end = marks
    *_, line = advise("".join(f"{start}{line}{end}\n" for line in sentences(1, 1500)), tokenizer)
    assert "100% of the training lines are marked <s> ... </s>" in line
    assert r"sed -E 's/^<(s|bos|sos)> *//; s/ *<(\/s|eos)>$//' FILE > text.txt" in line


@pytest.mark.parametrize("tokenizer", ["char", "byte", "word"])
def test_splits_that_share_their_lines_are_remarked_on(advise, tokenizer):
    held_out = "\n".join(sentences(1, 1500)[200:400]) + "\n"
    (line,) = advise((ORDINARY, held_out, "\n".join(sentences(6, 100)) + "\n"), tokenizer)
    assert "100% of the distinct lines of the validation text are in the training text as well" in line
    assert "awk '!seen[$0]++' FILE > text.txt" in line


def test_validation_and_test_that_share_their_lines_are_remarked_on(advise):
    lines = sentences(6, 200)
    (line,) = advise((ORDINARY, "\n".join(lines[:120]), "\n".join(lines[80:])))
    assert "of the distinct lines of the test text are in the validation text as well" in line


# ---- no false alarm


@pytest.mark.skipif(not SHARED.is_dir(), reason=f"there are no texts in {SHARED}")
@pytest.mark.parametrize(
    ("name", "tokenizer", "options"),
    [
        ("brown", "word", {}), ("brown", "char", {}), ("tinyshakespeare/input.txt", "char", {}),
        ("tinyshakespeare/input.txt", "byte", {}), ("tinyshakespeare/input.txt", "word", {"min_count": 2}),
    ],
)  # fmt: skip
def test_usual_corpora_are_not_remarked_on(name, tokenizer, options, tmp_path):
    assert list(iter_advice(load_corpus(SHARED / name, tokenizer=tokenizer, cache_dir=tmp_path, **options))) == []


# ---- order


@pytest.mark.parametrize("tokenizer", ["char", "byte", "word"])
def test_a_sorted_list_is_remarked_on_and_a_shuffled_one_is_not(advise, tokenizer):
    text = "\n".join(sorted(sentences(1, 1500), key=str.casefold)) + "\n"
    (line,) = advise(text, tokenizer)
    assert "in alphabetical order" in line
    assert "data.split=shuffled_lines" in line
    assert advise(text, tokenizer, split="shuffled_lines") == []


@pytest.mark.parametrize("tokenizer", ["char", "word"])
def test_a_text_of_one_line_is_remarked_on(advise, tokenizer):
    (line,) = advise(" ".join(sentences(1, 1500)), tokenizer)
    assert "The training text is a single line" in line
