import json
import logging

import pytest
import torch

from lmtrain.errors import CheckpointError
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
    document["dropout"]["device"] = "cuda"
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
    ],
)
def test_what_is_no_state_is_a_checkpoint_error_and_changes_nothing(document):
    before = generators(dropout=1)
    with pytest.raises(CheckpointError, match="random generators of this checkpoint cannot be restored"):
        load_random_document(document, before)
    assert torch.equal(before["dropout"].get_state(), torch.Generator().manual_seed(1).get_state())
