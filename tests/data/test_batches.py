"""Batches of examples that stand for themselves: each once per epoch, in an order that the seed and the epoch alone decide."""

import re
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lmtrain.data.batches import Position, Shuffled, random_of
from lmtrain.errors import CheckpointError


def shuffled(num_items: int, batch_size: int, seed: int = 1) -> Shuffled:
    def make(numbers: Any, position: Position) -> Any:
        return SimpleNamespace(numbers=numbers, epoch=position.epoch, index=position.index, num_items=len(numbers))

    return Shuffled(num_items, make, batch_size=batch_size, seed=seed)


@given(st.integers(1, 60), st.integers(1, 70), st.integers(0, 2**32 - 1))
def test_every_example_comes_once_per_epoch_and_the_position_says_how_many_came(items: int, size: int, seed: int) -> None:
    batches = shuffled(items, size, seed)
    position, num_steps, seen = Position(), 0, list[int]()
    while position.epoch < 2:
        batch: Any = batches.batch(position)
        assert (batch.epoch, batch.index) == (position.epoch, position.index)
        assert batches.least_items <= batch.num_items <= batches.batch_size <= max(size, 1)
        assert batches.done_before(position) == (range(num_steps, num_steps + 1), range(len(seen), len(seen) + 1))
        seen += batch.numbers.tolist()
        following = batches.next(position)
        assert batches.previous(following) == position
        position, num_steps = following, num_steps + 1
    assert sorted(seen[:items]) == sorted(seen[items:]) == list(range(items))


def test_the_order_changes_with_the_epoch_and_the_seed_and_with_nothing_else() -> None:
    def order(batches: Shuffled, epoch: int) -> list[int]:
        each: list[Any] = [batches.batch(Position(epoch, index)) for index in range(batches.num_batches(epoch))]
        return [number for batch in each for number in batch.numbers.tolist()]

    batches = shuffled(50, 7)
    first = order(batches, 0)
    assert first != list(range(50))
    assert order(batches, 1) != first
    assert order(shuffled(50, 7, seed=2), 0) != first
    assert order(batches, 0) == first, "whatever was asked for in between"
    assert order(shuffled(50, 9), 0) == first, "batches are cut from one order"


def test_a_position_beyond_the_epoch_is_refused() -> None:
    with pytest.raises(CheckpointError, match=re.escape("is batch 2 of epoch 3. This epoch has batches 0 to 1.")):
        shuffled(10, 5).batch(Position(3, 2))


def test_draws_depend_on_their_purpose_and_numbers() -> None:
    draws = [random_of(*key).random_sample() for key in (("a", 1, 2), ("a", 1, 3), ("b", 1, 2), ("a", 12))]
    assert len(set(draws)) == 4
    assert draws[0] == random_of("a", 1, 2).random_sample()
    assert np.array_equal(random_of("a", 1, 2).permutation(5), random_of("a", 1, 2).permutation(5))
