import json
import logging

import pytest
import torch

from lmtrain.errors import UnfitError
from lmtrain.training.random_state import load_random_document, random_document


def generators(**seeds):
    return {name: torch.Generator().manual_seed(seed) for name, seed in seeds.items()}


def test_restored_generators_draw_what_the_first_ones_would_have():
    first = generators(dropout=1, sampling=2)
    for generator in first.values():
        torch.randn(7, generator=generator)  # an odd number: one normal deviate is kept back in the state
    document = json.loads(json.dumps(random_document(first)))
    second = generators(dropout=3, sampling=4)
    load_random_document(document, second)
    for name in first:
        assert torch.equal(torch.randn(9, generator=first[name]), torch.randn(9, generator=second[name]))


def test_a_state_of_another_device_is_left_out_with_a_warning(caplog):
    document = random_document(generators(dropout=1))
    document["dropout"] = {"device": "cuda", "state": "00" * 16}
    other = generators(dropout=2)
    with caplog.at_level(logging.WARNING, "lmtrain"):
        load_random_document(document, other)
    assert "'dropout' was saved on cuda and is on cpu now" in caplog.text
    assert torch.equal(other["dropout"].get_state(), torch.Generator().manual_seed(2).get_state())


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_a_generator_on_a_gpu_goes_on_where_it_was():
    first, second = (torch.Generator("cuda").manual_seed(seed) for seed in (1, 2))
    torch.rand(5, device="cuda", generator=first)
    load_random_document(json.loads(json.dumps(random_document({"dropout": first}))), {"dropout": second})
    one, other = (torch.rand(5, device="cuda", generator=generator) for generator in (first, second))
    assert torch.equal(one, other)


@pytest.mark.parametrize(
    "document",
    [
        None,
        [],
        {},
        {"other": {"device": "cpu", "state": ""}},
        {"dropout": 1},
        {"dropout": {"device": "cpu"}},
        {"dropout": {"device": "cpu", "state": "not hexadecimal"}},
        {"dropout": {"device": "cpu", "state": ""}},
        {"dropout": {"device": "cpu", "state": "00" * 5056}},
        {"dropout": {"device": "cpu", "state": "ff" * 5056}},
        {"dropout": {"device": "cpu", "state": "00" * 5057}},
        {"dropout": {"device": "cuda", "state": "00" * 15}},
        {"dropout": {"device": "cuda", "state": "01" * 16}},
        {"dropout": {"device": "tpu", "state": "00" * 16}},
    ],
)
def test_what_is_no_state_is_a_checkpoint_error_and_changes_nothing(document):
    before = generators(dropout=1)
    with pytest.raises(UnfitError):
        load_random_document(document, before)
    assert torch.equal(before["dropout"].get_state(), torch.Generator().manual_seed(1).get_state())


def forged(start: int, value: bytes) -> dict[str, dict[str, str]]:
    """The document of a generator with some bytes of its state replaced."""
    document = random_document(generators(dropout=1))
    state = bytearray.fromhex(document["dropout"]["state"])
    state[start : start + len(value)] = value
    document["dropout"]["state"] = state.hex()
    return document


@pytest.mark.parametrize("left", [-1, 0, 2, 300, 624, 625, 2**31 - 1])
@pytest.mark.parametrize("after", [0, 1, 300, 624, 625, 2**32, 2**63])
def test_a_generator_that_would_read_beyond_its_words_is_refused(left, after):
    """PyTorch itself takes `left` = `next` = 624, and then reads 623 words of what lies behind its table."""
    document = forged(8, left.to_bytes(4, "little", signed=True) + (1).to_bytes(4, "little") + after.to_bytes(8, "little"))
    if left + after == 625 and left > 0 and after > 0:
        load_random_document(document, generators(dropout=2))
        return
    with pytest.raises(UnfitError, match=rf"dropout has a state that is at word {after} with {left} left of 624"):
        load_random_document(document, generators(dropout=2))


@pytest.mark.parametrize(
    ("start", "value"), [(12, b"\0"), (24, b"\xff" * 8), (5016, b"\xff" * 8), (5040, b"\2"), (5052, b"\2")]
)
def test_a_generator_that_no_generator_ever_was_is_refused(start, value):
    with pytest.raises(UnfitError, match="dropout has a state"):
        load_random_document(forged(start, value), generators(dropout=2))


@pytest.mark.parametrize("num_draws", [0, 1, 623, 624, 625, 1000])
def test_every_state_that_a_generator_can_be_in_is_taken(num_draws):
    first, second = generators(dropout=1), generators(dropout=2)
    torch.rand(num_draws, generator=first["dropout"])
    torch.randn(1, generator=first["dropout"])
    load_random_document(json.loads(json.dumps(random_document(first))), second)
    assert torch.equal(*(torch.rand(700, generator=own["dropout"]) for own in (first, second)))
