"""Unigram subwords: learnt alike whenever they are learnt, the library's own encoding, and the text itself."""

import json
import subprocess
import sys
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lmtrain.data import subword
from lmtrain.data.subword import PIECES, Subwords, canonical, learn_unigram, sha256_of
from lmtrain.data.tokenizer import learn_tokenizer, load_tokenizer
from lmtrain.errors import DataError, SettingsError

tokenizers = pytest.importorskip("tokenizers", reason="needs tokenizers, which the extra `subword` installs")

TEXTS = [
    "to be or not to be,\nthat is the question: don't they're we'll 'tis 1234 times\n" * 5,
    "Η γλώσσα μου έδωσαν ελληνική· το σπίτι φτωχικό στις αμμουδιές του Ομήρου;\n" * 3,
    "मैं हिन्दी में लिखता हूँ। यह एक वाक्य है॥ १२३ बार\n" * 3,
    "吾輩は猫である。名前はまだ無い。どこで生れたかとんと見当がつかぬ。\n" * 3,
    "if x:\r\n\treturn  [1, 22,  333]   \n\n\n    👩‍👩‍👧 🇬🇷 e\u0301\x00\x1b\u200b\u2028\ufeff\n",
]


@pytest.fixture(scope="module")
def subwords() -> Subwords:
    return Subwords(learn_unigram(TEXTS, vocab_size=400))


def test_two_trainings_learn_the_same_in_every_process(subwords: Subwords) -> None:
    code = (
        "import json, sys; from lmtrain.data.subword import learn_unigram, sha256_of; "
        "print(sha256_of(learn_unigram(json.load(sys.stdin), vocab_size=400)))"
    )
    run = [sys.executable, "-c", code]
    ended = subprocess.run(run, input=json.dumps(TEXTS), capture_output=True, text=True, check=True, timeout=60)
    assert ended.stdout.strip() == sha256_of(subwords.document)


def test_the_library_alone_learns_other_scores_each_time() -> None:
    """The reason for `_settled`: where this fails, the library has become repeatable, and it may go."""
    counts = subword.Counter(piece for text in TEXTS for piece in PIECES.findall(text))
    made = []
    for _ in range(2):
        trainer = tokenizers.trainers.UnigramTrainer(
            vocab_size=400, initial_alphabet=sorted(subword.BYTE_OF), show_progress=False, unk_token=None
        )
        made.append(subword._trained(tokenizers, tokenizers.models.Unigram(), trainer, counts)["model"]["vocab"])
    assert made[0] != made[1]
    assert {token for token, _ in made[0]} == {token for token, _ in made[1]}
    assert subword._settled(dict(made[0])) == subword._settled(dict(made[1]))


def test_where_equally_good_tokens_make_a_difference_it_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    documents = iter([{"model": {"vocab": [["a", 0.0]]}}, {"model": {"vocab": [["b", 0.0]]}}])
    monkeypatch.setattr(subword, "_trained_unigram", lambda *_: next(documents))
    with pytest.raises(SettingsError, match=r"learns other tokens of this text each time \(vocab_size=300\)"):
        learn_unigram(TEXTS, vocab_size=300)


characters = st.one_of(st.sampled_from([*" \n\t.,'09aZéα९हि日。", "👩‍👩‍👧", "a" * 70]), st.characters(codec="utf-8"))


@given(st.lists(characters).map("".join))
def test_any_text_is_encoded_as_the_library_does_it_and_comes_back(subwords: Subwords, text: str) -> None:
    ids = subwords.encode(text)
    assert b"".join(subwords.bytes[number] for number in ids).decode() == text
    expected = [number for piece in PIECES.findall(text) for number in subwords._encode_all([piece])[0]]
    assert ids.tolist() == expected
    parts = [text[start : start + 3] for start in range(0, len(text), 3)]
    np.testing.assert_array_equal(np.concatenate([*subwords.encode_blocks(parts)]), ids)


def test_ids_descend_in_frequency_and_the_vocabulary_is_bounded(subwords: Subwords) -> None:
    assert 257 <= len(subwords.bytes) <= 400
    counts = np.bincount(np.concatenate([subwords.encode(text) for text in TEXTS]), minlength=len(subwords.bytes))
    assert (counts[:-1] >= counts[1:]).all()


def test_a_tokenizer_comes_back_from_a_checkpoint_and_from_a_cache() -> None:
    tokenizer = learn_tokenizer("unigram", TEXTS, vocab_size=300)
    document: Any = json.loads(json.dumps(tokenizer.to_json()))
    assert (document["name"], tokenizer.name) == ("unigram", "unigram")
    beside = load_tokenizer(document, subwords=Subwords(json.loads(canonical(tokenizer.subword))))
    for again in (beside, load_tokenizer(*tokenizer.pack())):
        assert again.encode(TEXTS[2]).tolist() == tokenizer.encode(TEXTS[2]).tolist()
        assert again.fingerprint() == tokenizer.fingerprint()


def test_the_smallest_texts_are_learnt_and_an_empty_one_is_refused() -> None:
    assert len(Subwords(learn_unigram(["ab\n"], vocab_size=300)).bytes) == 256
    with pytest.raises(DataError, match="The training text is empty"):
        learn_unigram([""], vocab_size=300)
    with pytest.raises(SettingsError, match=r"^vocab_size=256 leaves no token"):
        learn_tokenizer("unigram", ["ab"], vocab_size=256)
