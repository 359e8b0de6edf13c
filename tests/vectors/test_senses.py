"""Senses: clusters of windows on texts whose answer is known, silhouettes and Rand indices by their definitions, atoms."""

import doctest
from itertools import combinations
from pathlib import Path

import numpy as np
import pytest

import lmtrain.vectors.senses as senses
from lmtrain.errors import DataError, SettingsError
from lmtrain.vectors.atoms import learn_atoms, pursue
from lmtrain.vectors.retrain import _frequent, _renamed, retrain
from lmtrain.vectors.senses import adjusted_rand_index, find_senses, silhouette, spherical_kmeans
from lmtrain.vectors.table import Vectors
from lmtrain.vectors.text import Text, read_words

SHARED = Path(__file__).parents[3] / "shared" / "data"
SUBJECTS = {
    "money": ["loan", "cash", "pay", "debt", "save", "rate", "fund", "coin"],
    "river": ["water", "fish", "mud", "boat", "reed", "ford", "swim", "reeds"],
}


@pytest.fixture
def text(tmp_path: Path) -> Text:
    """Thirty lines about money, twenty about rivers, each with the word bank in it."""
    random = np.random.default_rng(1)
    lines = []
    for subject, number in (("money", 30), ("river", 20)):
        for _ in range(number):
            first, second = random.choice(SUBJECTS[subject], 2, replace=False)
            lines.append(f"the {first} bank {second} of")
    (tmp_path / "text.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return read_words(tmp_path / "text.txt", min_count=1)


@pytest.fixture
def vectors() -> Vectors:
    """Two directions, one for each subject; `the` and `of` in between."""
    random = np.random.default_rng(2)
    words = [*SUBJECTS["money"], *SUBJECTS["river"], "the", "of", "bank"]
    means = np.array([[1, 0, 0]] * 8 + [[0, 1, 0]] * 8 + [[0.1, 0.1, 1]] * 2 + [[1, 1, 0]])
    return Vectors(tuple(words), (means + random.normal(scale=0.05, size=means.shape)).astype(np.float32))


def test_a_word_gets_a_vector_for_each_sense_when_its_occurrences_are_renamed(text: Text, vectors: Vectors) -> None:
    pytest.importorskip("scipy")
    found = find_senses(vectors, text, ["bank"], number=2)
    again = retrain(text, found, min_count=1, size=4)
    assert again.names == {"bank_1": 30, "bank_2": 20}
    assert "bank" not in again.vectors, "every occurrence has words with vectors around it"
    for name, subject in zip(again.names, ("money", "river"), strict=True):
        near = [word for word, _ in again.near[name] if word in {*SUBJECTS["money"], *SUBJECTS["river"]}]
        assert set(near[:4]) <= set(SUBJECTS[subject])
    assert "bank_2 (20 times): " in again.format()
    assert again.cosines[0][:2] == ("bank_1", "bank_2")
    fewer = retrain(text, found, min_count=25, size=2)
    assert fewer.rare == ("bank_2",)
    assert "too rare for a vector" in fewer.format()
    with pytest.raises(DataError, match="No sense of bank was seen 31 times"):
        retrain(text, found, min_count=31, size=2)


def test_renaming_keeps_places_gaps_and_the_ends_of_lines(tmp_path: Path) -> None:
    pytest.importorskip("scipy")
    (tmp_path / "text.txt").write_text("a bank b rare\nbank_1 b bank a\na b bank_1\n", encoding="utf-8")
    text = read_words(tmp_path / "text.txt", min_count=1)
    bank = np.flatnonzero(text.ids == text.row("bank"))
    sense = senses.Sense(0.5, [], ())
    found = senses.Senses("bank", (sense, sense), 0.0, 2, 1, bank[1:], np.array([1]))
    renamed = _frequent(_renamed(text, found, ["bank__1", "bank__2"]), 1)
    words = [renamed.words[i] if i >= 0 else i for i in renamed.ids.tolist()]
    assert words == ["a", "bank", "b", "rare", -1, "bank_1", "b", "bank__2", "a", -1, "a", "b", "bank_1", -1]
    assert dict(zip(renamed.words, renamed.counts.tolist(), strict=True)) == {
        "a": 3, "b": 3, "bank_1": 2, "bank": 1, "rare": 1, "bank__2": 1
    }  # fmt: skip
    assert [*retrain(text, found, min_count=1, size=2).names] == ["bank__1", "bank__2"], "the text has a bank_1 already"
    rare = _frequent(text, 2)
    assert [rare.words[i] if i >= 0 else i for i in rare.ids.tolist()][:5] == ["a", "bank", "b", -2, -1]


def unit(rows: np.ndarray) -> np.ndarray:
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def test_the_senses_of_a_word_are_found_with_their_shares_words_and_windows(text: Text, vectors: Vectors) -> None:
    found = find_senses(vectors, text, ["bank"])
    assert [sense.share for sense in found.senses] == pytest.approx([0.6, 0.4])
    assert (found.num_occurrences, found.num_used, found.silhouette > 0.9) == (50, 50, True)
    for sense, subject in zip(found.senses, ("money", "river"), strict=True):
        assert {word for word, _ in sense.neighbours[:8]} == set(SUBJECTS[subject])
        assert len(sense.contexts) == 2
        assert all(any(word in context.split() for word in SUBJECTS[subject]) for context in sense.contexts)
        assert all(context.startswith("the ") and context.endswith(" of") for context in sense.contexts), "one line alone"
    assert "sense 2: 40.0% of the windows" in found.format()
    again = find_senses(vectors, text, ["bank"])
    assert again.to_json() == found.to_json()


@pytest.mark.parametrize("number", [1, 3, 50])
def test_a_number_that_is_given_is_kept(number: int, text: Text, vectors: Vectors) -> None:
    found = find_senses(vectors, text, ["bank"], number=number)
    assert 1 <= len(found.senses) <= number
    assert sum(sense.share for sense in found.senses) == pytest.approx(1)
    assert (found.to_json()["silhouette"] is None) == (number == 1)
    assert found.format()


def test_two_words_taken_as_one_are_told_apart(text: Text, vectors: Vectors) -> None:
    found = find_senses(vectors, text, ["loan", "water"], number=2)
    truth = (text.ids[found.positions] == text.row("water")).astype(np.int64)
    assert adjusted_rand_index(truth, found.labels) == 1
    assert all(word not in ("loan", "water") for sense in found.senses for word, _ in sense.neighbours)


def test_a_frequent_word_is_sampled_over_the_whole_text(text: Text, vectors: Vectors, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(senses, "MAX_WINDOWS", 20)
    found = find_senses(vectors, text, ["bank"], number=2)
    assert (found.num_occurrences, found.num_used) == (50, 17)
    assert len(found.senses) == 2


def test_words_without_usable_windows_are_refused(text: Text, vectors: Vectors) -> None:
    with pytest.raises(DataError, match=r"'bonk' is not among .*Did you mean bank\?"):
        find_senses(vectors, text, ["bonk"])
    with pytest.raises(DataError, match=r"bank has 50 windows .* 51 at least are needed"):
        find_senses(vectors, text, ["bank"], number=51)
    with pytest.raises(DataError, match=r"bank has 0 windows"):
        find_senses(Vectors(("x",), np.ones((1, 3), np.float32)), text, ["bank"])


def test_silhouettes_are_those_of_the_definition() -> None:
    random = np.random.default_rng(1)
    rows, labels = unit(random.normal(size=(40, 5))), random.integers(4, size=40)
    labels[0], labels[labels == 3] = 5, 2
    labels[0] = 3  # alone
    values = []
    for i in range(40):
        mean = {k: np.mean([1 - rows[i] @ rows[j] for j in range(40) if labels[j] == k and j != i] or [0]) for k in range(4)}
        own, other = mean[labels[i]], min(value for k, value in mean.items() if k != labels[i])
        values.append((other - own) / max(own, other) if (labels == labels[i]).sum() > 1 else 0)
    assert silhouette(rows, labels) == pytest.approx(np.mean(values))
    assert np.isnan(silhouette(rows, np.zeros(40, np.int64)))


def test_the_rand_index_is_that_of_pairs() -> None:
    random = np.random.default_rng(1)
    first, second = random.integers(3, size=30), random.integers(4, size=30)
    pairs = [(first[i] == first[j], second[i] == second[j]) for i, j in combinations(range(30), 2)]
    both, one, two = (sum(values) for values in zip(*[(a and b, a, b) for a, b in pairs], strict=True))
    expected = one * two / len(pairs)
    assert adjusted_rand_index(first, second) == pytest.approx((both - expected) / ((one + two) / 2 - expected))
    assert adjusted_rand_index(first, (first + 1) % 3) == 1
    assert doctest.testmod(senses).failed == 0


def test_clusters_are_a_fixed_point_and_the_same_on_every_run() -> None:
    random = np.random.default_rng(1)
    rows = unit(random.normal(size=(60, 4)))
    labels, centres = spherical_kmeans(rows, 3)
    assert (labels == (rows @ centres.T).argmax(1)).all()
    for cluster in range(3):
        assert centres[cluster] == pytest.approx(unit(rows[labels == cluster].sum(0, keepdims=True))[0])
    assert (spherical_kmeans(rows, 3)[0] == labels).all()
    same = np.tile(rows[:1], (5, 1))
    assert len(spherical_kmeans(same, 3)[0]) == 5, "rows that are all the same"


def test_matching_pursuit_finds_the_atoms_that_words_were_made_of() -> None:
    random = np.random.default_rng(1)
    dictionary = np.linalg.qr(random.normal(size=(12, 12)))[0].astype(np.float32)
    truth = np.zeros((40, 12), np.float32)
    for row in truth:
        row[random.choice(12, 3, replace=False)] = random.choice([-1, 1], 3) * random.uniform(0.3, 1, 3)
    words = truth @ dictionary
    chosen, coefficients = pursue(words, dictionary, 3)
    found = np.zeros_like(truth)
    np.put_along_axis(found, chosen, coefficients, axis=1)
    assert found == pytest.approx(truth, abs=1e-4)
    more, _ = pursue(words, dictionary, 5)
    assert all(len(set(row)) == 5 for row in more.tolist()), "no atom twice"


def test_atoms_explain_more_with_each_round_and_are_shown_by_their_words(vectors: Vectors) -> None:
    random = np.random.default_rng(1)
    atoms = unit(random.normal(size=(8, 6)))
    words = np.array([atoms[random.choice(8, 2, replace=False)].sum(0) for _ in range(80)], np.float32)
    table = Vectors(tuple(f"w{i}" for i in range(80)), words)
    first, last = (learn_atoms(table, number=8, sparsity=2, rounds=rounds) for rounds in (0, 15))
    assert first.explained < last.explained
    assert last.explained > 0.9
    assert np.linalg.norm(last.dictionary, axis=1) == pytest.approx(np.ones(8), abs=1e-5)
    of_word = last.of("w3", 4)
    assert 1 <= len(of_word) <= 2
    assert abs(of_word[0].coefficient) >= abs(of_word[-1].coefficient)
    assert [len(atom.neighbours) for atom in of_word] == [4] * len(of_word)
    assert last.to_json("w3") == learn_atoms(table, number=8, sparsity=2).to_json("w3")
    assert last.format("w3").splitlines()[1].startswith("  ")


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"number": 19}, "number=19 was given for 19 words"),
        ({"number": 4, "sparsity": 4}, "sparsity=4 was given for 4 atoms of 3"),
    ],
)
def test_dictionaries_that_there_cannot_be_are_refused(settings: dict[str, int], words: str, vectors: Vectors) -> None:
    with pytest.raises(SettingsError, match=words):
        learn_atoms(vectors, **settings)


def test_a_word_has_five_atoms_where_none_are_asked_for_or_as_many_as_there_can_be() -> None:
    random = np.random.default_rng(1)
    for size, number, expected in ((3, 8, 3), (6, 4, 4), (6, 8, 5)):
        table = Vectors(tuple(f"w{i}" for i in range(20)), random.normal(size=(20, size)).astype(np.float32))
        assert learn_atoms(table, number=number).to_json("w3")["sparsity"] == expected


def test_a_merged_word_lies_between_its_words() -> None:
    pytest.importorskip("scipy")
    from lmtrain.vectors.superposition import check_superposition

    random = np.random.default_rng(1)
    ids = random.integers(2, 40, size=3000).astype(np.int32)
    where = random.random(3000)
    for word, low, high, share in ((0, 2, 20, 0.4), (1, 20, 38, 0.2)):  # each among words of its own
        ids[(where < share) & (ids >= low) & (ids < high) & (np.roll(ids, 1) >= low) & (np.roll(ids, 1) < high)] = word
    text = Text(tuple(f"w{i}" for i in range(40)), ids, np.bincount(ids, minlength=40))
    found = check_superposition(text, "w0", "w1", size=10)
    assert found.frequency_share == pytest.approx(text.counts[0] / text.counts[:2].sum())
    assert found.cosine > 0.8
    assert 0 < found.fitted_share < 1
    assert f"fitted {found.fitted_share:.3f}" in found.format()
    with pytest.raises(SettingsError, match="'w0' was given twice"):
        check_superposition(text, "w0", "w0")


@pytest.mark.slow
@pytest.mark.skipif(not SHARED.is_dir(), reason="the data of ../shared are not there")
def test_on_brown_pseudo_words_are_told_apart_and_merged_words_are_sums() -> None:
    pytest.importorskip("scipy")
    from lmtrain.vectors.superposition import check_superposition
    from lmtrain.vectors.svd import train_svd

    text, whole = (read_words(SHARED / "brown", lowercase=True, min_count=count) for count in (5, 1))
    found = find_senses(train_svd(text), whole, ["water", "court"], number=2)
    truth = (whole.ids[found.positions] == whole.row("court")).astype(np.int64)
    assert adjusted_rand_index(truth, found.labels) >= 0.4
    for words in (("church", "market"), ("music", "blood"), ("president", "river"), ("january", "coffee")):
        result = check_superposition(text, *words)
        assert result.cosine >= 0.9
        assert -0.12 <= result.difference < 0
