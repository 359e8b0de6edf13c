"""A count and its noun agree, in the helper and in what is said of one thing."""

import doctest

import numpy as np
import pytest

import lmtrain.quantity
from lmtrain.commands.cost import duration
from lmtrain.data.columns import Sentence
from lmtrain.inference.evaluate import Evaluation
from lmtrain.tasks.classify_score import ClassifyScore
from lmtrain.tasks.tag_score import score_tags


def test_the_docstring_is_true() -> None:
    assert doctest.testmod(lmtrain.quantity) == (0, 1)


@pytest.mark.parametrize(("number", "said"), [(1, "1 second"), (0.9999, "1 second"), (0, "0 seconds"), (1.2, "1.2 seconds")])
def test_a_number_that_reads_1_has_a_singular(number: float, said: str) -> None:
    assert duration(number) == said


def test_scores_of_one_thing_are_in_the_singular() -> None:
    tags = score_tags([Sentence(("a",), ("B-X",), 1)], [("O",)], known_entities=[], known_tags=["O"], judged_by="accuracy")
    assert "0.00 % of 1 tag is right" in tags.format()
    assert "counted as missed: 1 token with a tag that training lacks" in tags.format()
    assert "1 token scored, 1 of them <eos>" in Evaluation(1.0, 1, 1, 0, 0.0, 1, 1, 1, "carry").format()
    assert "· 1 character · 1 byte\n" in Evaluation(1.0, 1, 1, 0, 0.0, 1, 1, 1, "carry").format()
    texts = ClassifyScore(("a", "b"), np.array([0]), np.array([[0.9, 0.1]], np.float32), {}, 0)
    assert "of 1 text ·" in texts.format()
