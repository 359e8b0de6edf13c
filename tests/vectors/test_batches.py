"""What word vectors are learnt from: windows as defined, and batches that depend on the position alone; and that they learn."""

from collections import Counter
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from lmtrain.data.batches import Position, Shuffled
from lmtrain.errors import DataError
from lmtrain.models.word_vectors import GloveVectors, PredictedVectors
from lmtrain.vectors.batches import METHODS, Predictions, pair_batches, window_batches
from lmtrain.vectors.noise import Noise, keep_probabilities
from lmtrain.vectors.text import BREAK, GAP, Text

TEXT = Text(
    ("a", "b", "c", "d"), np.array([0, 1, GAP, 2, BREAK, 3, BREAK, 1, 0, BREAK, 2, GAP], np.int32), np.array([2, 2, 2, 1])
)


def every(batches: Shuffled, epoch: int = 0) -> list[Any]:
    return [batches.batch(Position(epoch, index)) for index in range(batches.num_batches(epoch))]


def test_noise_is_drawn_in_proportion_to_counts_raised_to_a_power() -> None:
    counts = np.array([1000, 100, 0, 10])
    drawn = Noise(counts).draw(np.random.RandomState(1), (200, 500))
    found = np.bincount(drawn.ravel(), minlength=4) / drawn.size
    assert found == pytest.approx(counts**0.75 / (counts**0.75).sum(), abs=0.005)
    assert drawn.dtype == np.int64


def test_frequent_words_are_passed_over_as_word2vec_does() -> None:
    counts = np.array([90, 9, 1])
    kept = keep_probabilities(counts, 0.01)
    assert kept == pytest.approx([(0.01 / 0.9) ** 0.5 + 0.01 / 0.9, (0.01 / 0.09) ** 0.5 + 0.01 / 0.09, 1])
    assert keep_probabilities(counts, 0).tolist() == [1, 1, 1]


def test_skipgram_predicts_each_neighbour_within_the_line_from_the_centre() -> None:
    batches = window_batches(TEXT, "skipgram", batch_size=2, window=1, num_negatives=3, subsample=0)
    found = [batch for epoch in (0, 1) for batch in every(batches, epoch)]
    rows = Counter((int(c), int(t)) for batch in found for c, t in zip(batch.contexts_NC[:, 0], batch.targets_N, strict=True))
    assert rows == {(0, 1): 4, (1, 0): 4}, "c stands behind a gap, d alone: they have no neighbour next to them"
    assert {batch.samples_NK.shape[1] for batch in found} == {3}
    assert [batch.num_items for batch in found] == [2, 2, 2, 2]


def test_cbow_predicts_the_centre_from_all_its_neighbours() -> None:
    batches = window_batches(TEXT, "cbow", batch_size=100, window=3, subsample=0)
    rows: set[tuple[int, frozenset[int]]] = set()
    for epoch in range(50):
        (batch,) = every(batches, epoch)
        near = [frozenset(c[c >= 0].tolist()) for c in batch.contexts_NC]
        rows |= set(zip(batch.targets_N.tolist(), near, strict=True))
    assert rows == {(0, frozenset({1})), (0, frozenset({1, 2})), (1, frozenset({0})), (1, frozenset({0, 2})),
                    (2, frozenset({1})), (2, frozenset({0, 1}))}, "windows of 1, 2 and 3"  # fmt: skip


@pytest.mark.parametrize("method", METHODS)
def test_a_batch_depends_on_seed_and_position_alone(method: str) -> None:
    ids = np.random.default_rng(1).integers(20, size=400).astype(np.int32)
    text = Text(tuple(map(str, range(20))), ids, np.bincount(ids))
    make: Callable[[int], Shuffled] = lambda seed: window_batches(text, method, batch_size=32, subsample=1e-2, seed=seed)  # noqa: E731
    batches = make(1)
    first = every(batches, 3)
    for index in (5, 0, 12):
        again = make(1).batch(Position(3, index))
        assert all(torch.equal(tensor, again.tensors()[name]) for name, tensor in first[index].tensors().items())
    assert not torch.equal(first[0].targets_N, batches.batch(Position(4, 0)).targets_N)
    assert not torch.equal(first[0].targets_N, make(2).batch(Position(3, 0)).targets_N)
    assert all(0 < batch.num_items == len(batch.samples_NK) for batch in first)
    assert isinstance(first[0].to(torch.device("cpu")), Predictions)


def test_no_batch_is_empty_however_much_is_passed_over() -> None:
    for method in METHODS:
        batches = window_batches(TEXT, method, batch_size=1, subsample=1e-12)
        assert min(batch.num_items for epoch in range(5) for batch in every(batches, epoch)) >= 1


def test_a_text_without_neighbours_is_refused() -> None:
    with pytest.raises(DataError, match="No two of the 2 words stand together"):
        window_batches(Text(("a", "b"), np.array([0, BREAK, 1], np.int32), np.array([1, 1])), "cbow", batch_size=2)


def test_counted_pairs_come_once_per_epoch() -> None:
    sparse = pytest.importorskip("scipy.sparse")
    counts = np.array([[0, 2, 0], [2, 0, 0.5], [0, 0.5, 1]])
    (batch,) = every(pair_batches(sparse.csr_array(counts), batch_size=100))
    seen = np.zeros((3, 3))
    seen[batch.words_N, batch.contexts_N] += batch.counts_N.numpy()
    assert (seen == counts).all()
    assert batch.num_items == 5
    with pytest.raises(DataError, match="No line of the text has two words"):
        pair_batches(sparse.csr_array((3, 3)), batch_size=2)


@pytest.mark.parametrize("method", [*METHODS, "glove"])
def test_words_of_one_subject_become_neighbours(method: str) -> None:
    """Two subjects of eight words each, a line of one subject at a time."""
    random, lines = np.random.default_rng(1), []
    for _ in range(300):
        lines += [*(random.integers(8, size=6) + 8 * random.integers(2)), BREAK]
    ids = np.array(lines, np.int32)
    text = Text(tuple(f"w{i}" for i in range(16)), ids, np.bincount(ids[ids >= 0]))
    generator = torch.Generator().manual_seed(1)
    if method == "glove":
        pytest.importorskip("scipy")
        from lmtrain.vectors.svd import count_pairs

        model: Any = GloveVectors(16, 8, generator, x_max=10)
        batches = pair_batches(count_pairs(text, window=5), batch_size=64)
    else:
        model = PredictedVectors(16, 8, generator)
        batches = window_batches(text, method, batch_size=128, subsample=0)
    optimizer, losses = torch.optim.Adam(model.parameters(), 0.02), []
    for epoch in range(20):
        for batch in every(batches, epoch):
            total, penalty = model.loss(batch, generator)
            assert not penalty
            optimizer.zero_grad()
            (total / batch.num_items).backward()
            optimizer.step()
            losses.append(total.item() / batch.num_items)
    assert losses[-1] < 0.9 * losses[0]
    unit = torch.nn.functional.normalize(model.vectors)
    cosines = unit @ unit.T
    assert cosines[:8, :8].mean() > cosines[:8, 8:].mean() + 0.3


@pytest.mark.parametrize("method", METHODS)
def test_without_noise_the_loss_is_that_of_a_softmax_over_all_words(method: str) -> None:
    model = PredictedVectors(4, 3, torch.Generator().manual_seed(1)).double()
    model.output_VE.data.normal_(generator=torch.Generator().manual_seed(2))
    for batch in every(window_batches(TEXT, method, batch_size=4, window=2, num_negatives=0, subsample=0)):
        assert batch.samples_NK.shape == (batch.num_items, 0)
        total, penalty = model.loss(batch, torch.Generator())
        assert not penalty
        hidden = [model.input_VE[row[row >= 0]].mean(0) for row in batch.contexts_NC]
        scores_NV = torch.stack(hidden) @ model.output_VE.T
        expected = torch.nn.functional.cross_entropy(scores_NV, batch.targets_N, reduction="sum")
        assert total.item() == pytest.approx(expected.item())
        found, wanted = (torch.autograd.grad(loss, [*model.parameters()]) for loss in (total, expected))
        assert all(torch.allclose(one, other) for one, other in zip(found, wanted, strict=True))
