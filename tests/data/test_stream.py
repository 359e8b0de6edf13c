import doctest
import json
import re

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import lmtrain.data.stream
from lmtrain.data.batches import Position
from lmtrain.data.stream import Stream, num_tokens_needed
from lmtrain.errors import CheckpointError, DataError

fixed = settings(derandomize=True, deadline=None, database=None)
EOS = 60000


def make_stream(num_tokens, **options):
    """A stream over ids that tell their own place."""
    arguments = {"batch_size": 4, "chunk_length": 5, "eos_id": EOS, **options}
    return Stream(np.arange(num_tokens, dtype=np.uint16), **arguments)


def chunks_of(stream, epoch):
    return [stream.batch(Position(epoch, index)) for index in range(stream.num_batches(epoch))]


sizes = st.tuples(st.integers(1, 5), st.integers(1, 12), st.integers(0, 200), st.integers(0, 2**32 - 1), st.integers(0, 9))


def test_the_drawing_is_true():
    result = doctest.testmod(lmtrain.data.stream)
    assert result.failed == 0
    assert result.attempted > 5


@fixed
@given(sizes, st.sampled_from([{}, {"random_chunk_length": True}, {"keep_tail": True}]))
def test_every_target_appears_once_but_for_the_documented_remainder(size, options):
    batch_size, chunk_length, extra, seed, epoch = size
    num_tokens = num_tokens_needed(batch_size, chunk_length) + extra
    stream = make_stream(num_tokens, batch_size=batch_size, chunk_length=chunk_length, seed=seed, **options)
    seen = torch.cat([chunk.targets_TB.flatten() for chunk in chunks_of(stream, epoch)]).tolist()
    assert len(set(seen)) == len(seen) > 0
    offset = stream.offset(epoch)
    column_length = (num_tokens - offset) // batch_size
    tail = 0 if options else column_length % chunk_length
    assert offset < chunk_length
    assert num_tokens - len(seen) == offset + (num_tokens - offset) % batch_size + batch_size * tail
    left_out = set(range(num_tokens)) - set(seen)
    starts = [offset + column * column_length for column in range(batch_size + 1)]
    assert left_out == {
        *range(offset), *range(starts[-1], num_tokens), *(s - 1 - k for s in starts[1:] for k in range(tail)),
    }  # fmt: skip


@fixed
@given(sizes, st.sampled_from([{}, {"random_chunk_length": True}, {"keep_tail": True}]))
def test_columns_are_contiguous_and_inputs_are_the_ids_before(size, options):
    batch_size, chunk_length, extra, seed, epoch = size
    num_tokens = num_tokens_needed(batch_size, chunk_length) + extra
    stream = make_stream(num_tokens, batch_size=batch_size, chunk_length=chunk_length, seed=seed, **options)
    targets_SB = torch.cat([chunk.targets_TB for chunk in chunks_of(stream, epoch)])
    inputs_SB = torch.cat([chunk.inputs_TB for chunk in chunks_of(stream, epoch)])
    assert bool((targets_SB.diff(dim=0) == 1).all())
    first = stream.offset(epoch) == 0
    expected_SB = targets_SB - 1
    if first:
        expected_SB[0, 0] = EOS
    assert torch.equal(inputs_SB, expected_SB)


def test_chunks_are_contiguous_long_tensors_of_the_chunk_length():
    for chunk in chunks_of(make_stream(100), epoch=1):
        for tensor_TB in (chunk.inputs_TB, chunk.targets_TB):
            assert tensor_TB.dtype == torch.long
            assert tensor_TB.shape == (5, 4)
            assert tensor_TB.is_contiguous()


def test_a_chunk_says_where_it_stands():
    stream = make_stream(100, random_offset=False)
    chunk = stream.batch(Position(3, 2))
    assert (chunk.epoch, chunk.index, chunk.starts_epoch) == (3, 2, False)
    assert stream.batch(Position(3, 0)).starts_epoch


@pytest.mark.parametrize("random_length", [False, True])
def test_resuming_anywhere_gives_the_same_chunks(random_length):
    def walk(stream, position, count):
        for _ in range(count):
            chunk = stream.batch(position)
            yield chunk.epoch, chunk.index, chunk.inputs_TB.tolist(), chunk.targets_TB.tolist()
            position = stream.next(position)

    whole = list(walk(make_stream(97, random_chunk_length=random_length), Position(), 20))
    assert whole[-1][0] >= 2, "the walk crosses two ends of an epoch"
    for start, (epoch, index, _, _) in enumerate(whole):
        position = Position(**json.loads(json.dumps(Position(epoch, index).to_json())))
        resumed = walk(make_stream(97, random_chunk_length=random_length), position, 20 - start)
        assert list(resumed) == whole[start:]


def test_a_kept_tail_is_the_last_chunk_and_the_only_short_one():
    stream = make_stream(4 * 13 + 1, random_offset=False, keep_tail=True)
    assert [len(chunk.inputs_TB) for chunk in chunks_of(stream, 0)] == [5, 5, 3]
    stream = make_stream(4 * 15 + 1, random_offset=False, keep_tail=True)
    assert [len(chunk.inputs_TB) for chunk in chunks_of(stream, 0)] == [5, 5, 5]


def test_the_offset_changes_with_epoch_and_seed_and_with_nothing_else():
    offsets = [make_stream(1000, chunk_length=50, seed=1).offset(epoch) for epoch in range(40)]
    assert len(set(offsets)) > 20
    assert offsets == [make_stream(1000, chunk_length=50, seed=1).offset(epoch) for epoch in range(40)]
    assert offsets != [make_stream(1000, chunk_length=50, seed=2).offset(epoch) for epoch in range(40)]


def test_the_offset_can_be_switched_off():
    assert {make_stream(1000, random_offset=False).offset(epoch) for epoch in range(20)} == {0}


def test_offsets_and_lengths_are_the_same_on_every_machine_and_in_every_version():
    stream = make_stream(60000, batch_size=2, chunk_length=70, random_chunk_length=True)
    assert [stream.offset(epoch) for epoch in range(5)] == [28, 43, 54, 35, 67]
    assert [len(stream.batch(Position(0, index)).inputs_TB) for index in range(8)] == [69, 34, 41, 78, 71, 66, 71, 65]


def test_random_lengths_are_drawn_near_the_chunk_length_and_near_its_half():
    stream = make_stream(60000, batch_size=1, chunk_length=70, random_chunk_length=True)
    lengths = np.array([len(chunk.inputs_TB) for epoch in range(4) for chunk in chunks_of(stream, epoch)[:-1]])
    halves = lengths < 52
    assert 0.03 < halves.mean() < 0.07
    assert abs(lengths[~halves].mean() - 70) < 0.5
    assert abs(lengths[~halves].std() - 5) < 0.3
    assert abs(lengths[halves].mean() - 35) < 2


def test_random_lengths_never_fall_below_five_nor_below_a_shorter_chunk_length():
    for chunk_length, shortest in ((1, 1), (3, 3), (6, 5)):
        stream = make_stream(3000, batch_size=1, chunk_length=chunk_length, random_chunk_length=True)
        assert min(len(chunk.inputs_TB) for chunk in chunks_of(stream, 0)[:-1]) == shortest


def test_too_few_tokens_are_refused_with_the_largest_batch_that_fits():
    assert num_tokens_needed(20, 35) == 720
    make_stream(720, batch_size=20, chunk_length=35)
    with pytest.raises(DataError) as caught:
        make_stream(719, batch_size=20, chunk_length=35)
    assert str(caught.value) == (
        "The training split has 719 tokens, too few for batch_size=20 and chunk_length=35. "
        "They need at least batch_size x (chunk_length + 1) = 720 tokens. "
        "Type batch_size=19 or less, or chunk_length=34."
    )
    make_stream(719, batch_size=19, chunk_length=35)
    make_stream(719, batch_size=20, chunk_length=34)
    with pytest.raises(DataError, match=r"Type batch_size=1, or chunk_length=34\."):
        make_stream(71, batch_size=2, chunk_length=35)


def test_a_text_for_which_no_batch_is_small_enough_asks_for_more_text():
    with pytest.raises(DataError, match=r"Give more text\.$"):
        make_stream(35, batch_size=20, chunk_length=35)


@fixed
@given(sizes, st.sampled_from([{}, {"random_offset": False}, {"random_chunk_length": True}, {"keep_tail": True}]))
def test_what_lies_before_a_position_is_known_but_for_the_draws_of_earlier_epochs(size, options):
    batch_size, chunk_length, extra, seed, num_epochs = size
    num_tokens = num_tokens_needed(batch_size, chunk_length) + extra
    stream = make_stream(num_tokens, batch_size=batch_size, chunk_length=chunk_length, seed=seed, **options)
    position, num_chunks, num_read = Position(), 0, 0
    while position.epoch <= num_epochs % 3:
        chunks, tokens = stream.done_before(position)
        assert num_chunks in chunks
        assert num_read in tokens
        is_known = position.epoch == 0 or options == {"random_offset": False}
        assert not is_known or (len(chunks), len(tokens)) == (1, 1)
        num_chunks, num_read = num_chunks + 1, num_read + stream.batch(position).targets_TB.numel()
        position = stream.next(position)


def test_a_position_beyond_the_epoch_is_refused():
    stream = make_stream(100, random_offset=False)
    with pytest.raises(CheckpointError, match=re.escape("is batch 5 of epoch 0. This epoch has batches 0 to 4.")):
        stream.batch(Position(0, 5))
