"""The native look-ups of n-grams against the plain ones, bit for bit, and against KenLM's reader."""

import copy
import itertools
import math
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor

from lmtrain.models.arpa import write_arpa
from lmtrain.models.base import StatePolicy
from lmtrain.models.ngram import SMOOTHINGS, NgramModel
from lmtrain.ops.native import build
from lmtrain.ops.native.ngrams import NgramIndex, NgramScorer, why_no_library

EOS = 0
MODELS = [*itertools.product((1, 2, 3, 5, 10), SMOOTHINGS, StatePolicy)]


@pytest.fixture(scope="module", autouse=True)
def _compiled() -> None:
    if reason := why_no_library():
        pytest.skip(reason)


def trained(order: int, smoothing: str, policy: StatePolicy, vocab_size: int = 7, size: int = 400) -> NgramModel:
    model = NgramModel(vocab_size=vocab_size, eos_id=EOS, order=order, smoothing=smoothing, state_policy=policy)
    model.count(text(size, vocab_size, seed=order))
    return model


def text(size: int, vocab_size: int, seed: int) -> np.ndarray[Any, Any]:
    """Words of which a few are frequent, `<eos>` among them, twice in a row too."""
    drawn = np.random.RandomState(seed).zipf(1.5, size) - 1
    return np.minimum(drawn, vocab_size - 1)


def as_stream(ids: np.ndarray[Any, Any], B: int) -> tuple[Tensor, Tensor]:
    columns = torch.from_numpy(ids).view(B, -1).T
    return columns[:-1], columns[1:]


def assert_alike(model: NgramModel, tokens_TB: Tensor, targets_TB: Tensor, state: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    """Both give the same bits; returns the state afterwards."""
    assert model.table.scorer is not None
    made_TB, next_state = model.target_log_probs(tokens_TB, targets_TB, state)
    expected_TB, expected_state = model.target_log_probs_reference(tokens_TB, targets_TB, state)
    assert torch.equal(made_TB, expected_TB)
    assert torch.equal(next_state[0], expected_state[0])
    return next_state


@pytest.mark.parametrize(("order", "smoothing", "policy"), MODELS)
def test_probabilities_and_state_equal_the_reference_bit_for_bit(order: int, smoothing: str, policy: StatePolicy) -> None:
    model = trained(order, smoothing, policy)
    for T, B in ((1, 1), (2, 1), (3, 17), (130, 3), (257, 1), (400, 2)):  # more and fewer steps than a thread takes at a time
        tokens_TB, targets_TB = as_stream(text((T + 1) * B, 7, seed=T), B)
        state = assert_alike(model, tokens_TB, targets_TB, model.initial_state(B))
        assert_alike(model, tokens_TB, targets_TB, state)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data(), st.sampled_from(MODELS))
def test_targets_that_are_not_the_next_tokens_and_states_half_full_are_alike_too(
    data: st.DataObject, of: tuple[int, str, StatePolicy]
) -> None:
    model = trained(*of, vocab_size=4, size=60)
    B, T = data.draw(st.integers(1, 3)), data.draw(st.integers(1, 12))
    words = st.integers(0, 3)

    def drawn(rows: int, of: st.SearchStrategy[int]) -> Tensor:
        return torch.tensor(data.draw(st.lists(of, min_size=rows * B, max_size=rows * B)), dtype=torch.int64).view(rows, B)

    assert_alike(model, drawn(T, words), drawn(T, words), (drawn(model.order - 1, st.integers(-1, 3)).T,))


@pytest.mark.parametrize("isa", ["avx2", pytest.param("portable", marks=pytest.mark.slow)])
@pytest.mark.parametrize("order", [1, 3, 5])
def test_builds_for_lesser_processors_agree_too(order: int, isa: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LMTRAIN_NATIVE_ISA", isa)
    if reason := why_no_library():
        pytest.skip(reason)
    model = trained(order, "kneser_ney", StatePolicy.line)
    tokens_TB, targets_TB = as_stream(text(902, 7, seed=5), 2)
    assert_alike(model, tokens_TB, targets_TB, model.initial_state(2))


def test_several_threads_compute_what_one_computes() -> None:
    model = trained(4, "kneser_ney", StatePolicy.line, vocab_size=300, size=9000)
    tokens_TB, targets_TB = as_stream(text(9003, 300, seed=1), 3)
    before, made = torch.get_num_threads(), []
    for threads in (1, 2, 5):
        torch.set_num_threads(threads)
        made.append(model.target_log_probs(tokens_TB, targets_TB, model.initial_state(3))[0])
    torch.set_num_threads(before)
    assert all(torch.equal(one, made[0]) for one in made)


def test_a_machine_without_the_library_computes_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    tokens_TB, targets_TB = as_stream(text(31, 7, seed=1), 1)
    made = [trained(3, "kneser_ney", StatePolicy.line) for _ in range(2)]
    with_library = made[0].target_log_probs(tokens_TB, targets_TB, made[0].initial_state(1))[0]
    monkeypatch.setattr("lmtrain.models.backoff.why_no_library", lambda: "there is no C++ compiler")
    assert made[1].table.scorer is None
    assert torch.equal(made[1].target_log_probs(tokens_TB, targets_TB, made[1].initial_state(1))[0], with_library)


def test_a_copy_of_a_model_that_has_scored_scores_alike() -> None:
    model = trained(3, "kneser_ney", StatePolicy.line)
    tokens_TB, targets_TB = as_stream(text(31, 7, seed=1), 1)
    expected = model.target_log_probs(tokens_TB, targets_TB, model.initial_state(1))[0]
    for copied in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert torch.equal(copied.target_log_probs(tokens_TB, targets_TB, copied.initial_state(1))[0], expected)


def test_places_are_those_of_the_plain_search() -> None:
    table = trained(3, "kneser_ney", StatePolicy.carry, vocab_size=50, size=3000).table
    random = np.random.RandomState(1)
    for order in (2, 3):
        below, keys = len(table.keys[order - 2]), table.keys[order - 1]
        index = NgramIndex(keys, num_below=below, vocab_size=50)
        contexts, words = random.randint(-1, below, (40, 101)), random.randint(0, 50, (40, 101))
        contexts[:2], words[:2] = np.divmod(keys[:202].reshape(2, 101), 50)
        expected = table.find(order, contexts.ravel(), words.ravel()).reshape(40, 101)
        assert (expected >= 0).sum() >= 202
        assert np.array_equal(index.find(contexts, words), np.where(contexts < 0, -1, expected))
        assert (index.find(np.array([below, 2**40, -5]), np.array([1, 1, 1])) == -1).all()
        assert (index.find(np.array([0, 0]), np.array([-1, 50])) == -1).all()


# ---- what is handed to C++ is looked at first


def parts(order: int = 3) -> tuple[list[NgramIndex], Any]:
    table = trained(order, "kneser_ney", StatePolicy.line).table
    sizes = [len(keys) for keys in table.keys]
    indexes = [NgramIndex(keys, num_below=n, vocab_size=7) for keys, n in zip(table.keys[1:], sizes, strict=False)]
    return indexes, table


def test_arrays_that_do_not_fit_together_never_reach_an_address() -> None:
    indexes, table = parts()
    keys = table.keys[1]
    spoilt = (keys[::2], keys.astype(np.int32), keys.astype(float), keys[None], keys - 10**6, keys + 10**6, keys.tolist(), None)
    for bad in spoilt:
        with pytest.raises((ValueError, TypeError)):
            NgramIndex(bad, num_below=7, vocab_size=7)
    for below, size in ((3, 7), (-1, 7), (7, 0), (7, -7), (1 << 62, 7)):
        with pytest.raises(ValueError, match="expected"):
            NgramIndex(keys, num_below=below, vocab_size=size)
    probs, rests = table.log_probs, table.log_rests
    for arguments in (
        (indexes[:1], probs, rests), (indexes[::-1], probs, rests), (indexes, probs, rests[:1]), (indexes, probs[:2], rests),
        (indexes, [probs[0], probs[2], probs[1]], rests), (indexes, [p.astype(np.float32) for p in probs], rests),
        (indexes, [p[::2] for p in probs], rests), (indexes, probs, rests[::-1]), ([], [probs[0][:0]] * 40, []),
    ):  # fmt: skip
        with pytest.raises(ValueError, match=r"expected|below has"):
            NgramScorer(*arguments)


def test_tokens_that_are_no_words_are_refused() -> None:
    indexes, table = parts()
    scorer = NgramScorer(indexes, table.log_probs, table.log_rests)
    fine = np.zeros((5, 2), np.int64), np.zeros((3, 2), np.int64)
    scorer.log_probs(*fine, eos_id=EOS, policy="line")
    for which, place, token in itertools.product((0, 1), ((2, 0), (2, 1)), (-1, 7, 2**40)):
        bad = [array.copy() for array in fine]
        bad[which][place] = token
        with pytest.raises(IndexError, match="no word: with V=7"):
            scorer.log_probs(*bad, eos_id=EOS, policy="line")
    for bad_shape in ((fine[0][1:], fine[1]), (fine[0], fine[1][:, :1]), (fine[0].astype(np.int32), fine[1])):
        with pytest.raises(ValueError, match="expected"):
            scorer.log_probs(*bad_shape, eos_id=EOS, policy="line")
    with pytest.raises(ValueError, match="policy is lines; expected carry"):
        scorer.log_probs(*fine, eos_id=EOS, policy="lines")


def test_keys_in_any_order_lead_nowhere_outside_the_arrays() -> None:
    """Tables from files are checked before; this one was not."""
    random = np.random.RandomState(2)
    for _ in range(50):
        keys = random.randint(0, 49, 30)
        keys[[0, -1]] = keys.min(), keys.max()
        index = NgramIndex(keys, num_below=7, vocab_size=7)
        assert (np.diff(index.begins.astype(np.int64)) >= 0).all()
        assert index.begins[-1] <= 30
        scorer = NgramScorer([index], [np.zeros(7), np.zeros(30)], [np.zeros(7)])
        scorer.log_probs(random.randint(0, 7, (41, 3)), random.randint(0, 7, (40, 3)), eos_id=EOS, policy="carry")


# ---- KenLM


@pytest.mark.parametrize("order", [2, 3, 5])
def test_probabilities_are_those_that_kenlm_reads_from_the_file(order: int, tmp_path: Path) -> None:
    kenlm = pytest.importorskip("kenlm", reason="kenlm is not installed (pip install kenlm)")
    words = ["<eos>", "<unk>", *(f"{letter}{number}" for letter in "aäб語" for number in range(20))]
    model = trained(order, "kneser_ney", StatePolicy.line, vocab_size=len(words), size=6000)
    write_arpa(model, words, tmp_path / "model.arpa")
    reader = kenlm.Model(str(tmp_path / "model.arpa"))
    ids = text(3000, len(words), seed=9)
    tokens_TB, targets_TB = torch.from_numpy(np.append(EOS, ids[:-1]))[:, None], torch.from_numpy(ids)[:, None]
    log_probs_T = model.target_log_probs(tokens_TB, targets_TB, model.initial_state(1))[0][:, 0].numpy()
    ends = np.flatnonzero(ids == EOS)
    for begin, end in itertools.pairwise([-1, *ends.tolist()]):
        line = " ".join(words[token] for token in ids[begin + 1 : end])
        theirs = [log10 * math.log(10) for log10, _, _ in reader.full_scores(line, bos=True, eos=True)]
        assert log_probs_T[begin + 1 : end + 1].tolist() == pytest.approx(theirs, rel=1e-5, abs=1e-5)
    assert len(ends) > 100


def test_every_source_file_has_an_entry_that_is_looked_for() -> None:
    declared = {path.stem: path.read_text() for path in build.FOLDER.glob("*.cpp")}
    assert all(any(f"{entry}(" in source for entry in build.ENTRIES) for source in declared.values())
