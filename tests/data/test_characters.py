"""Normalisation of a text that comes in blocks, characters as they are typed, separators of words, lists of words."""

import json
import unicodedata
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

import lmtrain.config as config
from lmtrain.data.characters import FORMS, character_of, iter_normalized, normalized
from lmtrain.data.corpus import encode_file, load_corpus
from lmtrain.data.kinds import KINDS
from lmtrain.data.tokenizer import learn_tokenizer, load_tokenizer
from lmtrain.data.vocabulary import read_word_list
from lmtrain.errors import DataError, SettingsError, UnfitError

PARTS = [*"e\u0301\u0308aé ﬁⅧÅ\u1100\u1161\u11a8각क\u093c\n", "日本", "\u0344", "\u09c7\u09be", "ﬃ\u0323"]
texts = st.lists(st.one_of(st.sampled_from(PARTS), st.characters(codec="utf-8"))).map("".join)


@given(texts, st.lists(st.integers(0, 30), max_size=4), st.sampled_from([*FORMS, "none"]))
def test_blocks_cut_anywhere_are_normalised_as_the_whole_text(text: str, cuts: list[int], form: str) -> None:
    ends = sorted({min(cut, len(text)) for cut in cuts})
    blocks = [text[start:end] for start, end in zip([0, *ends], [*ends, len(text)], strict=True)]
    whole = text if form == "none" else unicodedata.normalize(form.upper(), text)
    assert "".join(iter_normalized(blocks, form)) == whole == normalized(text, form)


def test_a_text_without_ascii_is_normalised_at_its_end() -> None:
    assert list(iter_normalized(["e", "\u0301", "\u0301 x"], "nfc")) == ["é\u0301 ", "x"]
    assert list(iter_normalized([], "nfc")) == []


@pytest.mark.parametrize("name", ["char", "byte", "word"])
def test_what_is_learnt_scored_and_prompted_is_read_in_the_same_form(name: str) -> None:
    tokenizer = learn_tokenizer(name, ["caf", "e\u0301 ", "x\n"], normalize="nfc")
    assert tokenizer.encode("cafe\u0301").tolist() == tokenizer.encode("café").tolist()
    assert tokenizer.unknown_pieces("cafe\u0301") == []
    assert tokenizer.decode(tokenizer.encode("cafe\u0301")) == "café"
    cut = [number for ids in tokenizer.encode_blocks(["cafe", "\u0301 x"]) for number in ids.tolist()]
    assert cut == tokenizer.encode("café x").tolist()
    document = json.loads(json.dumps(tokenizer.to_json()))
    assert load_tokenizer(document).encode("cafe\u0301").tolist() == tokenizer.encode("café").tolist()
    assert load_tokenizer(*tokenizer.pack()).to_json() == document
    plain = learn_tokenizer(name, ["café x\n"])
    assert "normalize" not in plain.to_json()
    assert plain.fingerprint() != tokenizer.fingerprint()


def test_a_corpus_is_measured_and_cached_in_its_form(tmp_path: Path) -> None:
    text = tmp_path / "text.txt"
    text.write_text("cafe\u0301 x\n" * 40, encoding="utf-8")
    options = {"valid_fraction": 0.2, "test_fraction": 0.2, "cache_dir": tmp_path / "cache"}
    first, again = (load_corpus(text, tokenizer="char", normalize="nfc", **options) for _ in range(2))
    assert first.train.num_chars == len(first.train.ids)
    assert first.tokenizer.to_json() == again.tokenizer.to_json()
    assert again.tokenizer.normalize == "nfc"
    assert (first.valid.ids == again.valid.ids).all()
    assert load_corpus(text, tokenizer="char", **options).fingerprint != first.fingerprint
    assert encode_file(text, first.tokenizer).num_chars == 40 * len("café x\n")


def test_characters_are_typed_as_they_are_or_by_their_number() -> None:
    assert [character_of(typed) for typed in ("U+00A0", "u+3000", "·", "U+1F600")] == ["\xa0", "\u3000", "·", "😀"]
    for wrong in ("", "ab", "U+", "U+A0", "U+D800", "U+110000", "\n", "U+000A"):
        with pytest.raises(ValueError, match=r"such as U\+00A0"):
            character_of(wrong)


def test_separators_part_words_in_training_scoring_and_prompts() -> None:
    blocks = ["a\xa0b", "\u3000c a", "\xa0b\n"]
    tokenizer = learn_tokenizer("word", blocks, separators="\xa0\u3000")
    assert set(tokenizer.to_json()["tokens"]) == {"a", "b", "c", "<eos>", "<unk>"}
    ids = tokenizer.encode("".join(blocks)).tolist()
    assert [number for part in tokenizer.encode_blocks(blocks) for number in part.tolist()] == ids
    assert tokenizer.decode(ids) == "a b c a b\n"
    assert tokenizer.unknown_pieces("a\xa0d") == ["d"]
    assert tokenizer.make_decoder("a\xa0").push(ids[0]) == "a"
    assert load_tokenizer(tokenizer.to_json()).encode("a\xa0b").tolist() == ids[:2]
    assert learn_tokenizer("word", ["a\xa0b"]).unknown_pieces("a") == ["a"]


@pytest.mark.parametrize(
    ("more", "said"),
    [
        ({"normalize": "none"}, "normalize is 'none'. Allowed is one of nfc, nfd, nfkc"),
        ({"normalize": 3}, "normalize is 3"),
        ({"separators": ""}, "separators is ''"),
        ({"separators": "aa"}, "separators is 'aa'"),
        ({"separators": "\n"}, r"separators is '\n'"),
        ({"separators": ["a"]}, "separators is ['a']"),
    ],
)
def test_other_ways_of_reading_are_refused(more: dict[str, object], said: str) -> None:
    document = learn_tokenizer("word", ["a b\n"]).to_json()
    with pytest.raises(UnfitError) as caught:
        load_tokenizer(document | more)
    assert said in str(caught.value)
    with pytest.raises(UnfitError, match="separators is 'x'"):
        load_tokenizer({"format": 1, "name": "byte", "separators": "x"})


def test_the_settings_offer_what_there_is() -> None:
    assert ("none", *FORMS) == tuple(config.Normalization.__members__)
    assert list(KINDS) == ["char", "byte", "word", "bpe", "unigram", "file"]
    assert set(KINDS) == set(config.TokenizerName.__members__)


# ---- lists of words


def test_a_list_gives_every_text_the_same_vocabulary(tmp_path: Path) -> None:
    (tmp_path / "words.txt").write_bytes("the\nΟμήρου\r\nmat\n".encode())
    tokens = read_word_list(tmp_path / "words.txt")
    assert tokens == ["<eos>", "<unk>", "the", "Ομήρου", "mat"]
    tokenizers = [learn_tokenizer("word", [text], vocabulary=tokens) for text in ("the cat\n", "mat\n")]
    assert tokenizers[0].to_json() == tokenizers[1].to_json()
    assert tokenizers[0].unknown_pieces("the cat Ομήρου") == ["cat"]
    (tmp_path / "one.txt").write_text("the", encoding="utf-8")
    assert read_word_list(tmp_path / "one.txt")[2:] == ["the"]


def test_a_list_that_is_wrong_is_refused_in_one_paragraph(tmp_path: Path) -> None:
    (tmp_path / "my words.txt").write_text("a\n\nb c\na\n<unk>\n<eos>\n \t\nd\n", encoding="utf-8")
    with pytest.raises(DataError) as caught:
        read_word_list(tmp_path / "my words.txt")
    said = str(caught.value)
    assert (
        "is no list of words: line 2 is blank; line 3 holds blanks or is too long: 'b c'; line 4 is 'a' again, as line 1; "
        in said
    )
    assert "line 5 is <unk>, which is added anyway; line 6 is <eos>, which is added anyway; and 1 more." in said
    assert "my words.txt' > words.txt  and give that." in said
    (tmp_path / "empty.txt").write_text("")
    with pytest.raises(DataError, match="it has 0 words"):
        read_word_list(tmp_path / "empty.txt")


@pytest.mark.parametrize("options", [{"vocabulary": ["<eos>", "<unk>"]}, {"separators": "x"}])
def test_only_words_have_a_list_and_separators(options: dict[str, object]) -> None:
    with pytest.raises(SettingsError, match="for name=word"):
        learn_tokenizer("char", ["a"], **options)  # type: ignore[arg-type]
