"""A language model of many words is told about the sampled softmax, where that learns more in the time given."""

from pathlib import Path

import pytest
import torch

from lmtrain.application import check_overrides, register_schemas
from lmtrain.settings.reading import read_config
from lmtrain.tasks.language import MANY_TOKENS, SAMPLED, Language

register_schemas()


@pytest.mark.parametrize(
    ("typed", "num_words", "is_told"),
    [
        ([], MANY_TOKENS, True),
        (["trainer.max_seconds=900"], MANY_TOKENS, True),
        (["trainer.max_seconds=901"], MANY_TOKENS, False),
        (["trainer.max_seconds=null", "trainer.num_epochs=1"], MANY_TOKENS, False),
        ([], 500, False),
        (SAMPLED.split(), MANY_TOKENS, False),
        (["model.head=adaptive"], MANY_TOKENS, False),
        (["model.maxent_order=3"], MANY_TOKENS, False),
        (["model=ngram"], MANY_TOKENS, False),
        (["model=window"], MANY_TOKENS, True),
        (["tokenizer=char"], MANY_TOKENS, False),
    ],
)
def test_samples_are_recommended_where_they_learn_more(tmp_path: Path, typed: list[str], num_words: int, is_told: bool) -> None:
    text = tmp_path / "text.txt"
    text.write_text("\n".join(f"w{number} a b c" for number in range(int(num_words * 1.2))), encoding="utf-8")
    given = ["data=text", f"data.path='{text}'", f"data.cache_dir='{tmp_path}'", "tokenizer=word", *typed]
    task = Language(read_config(check_overrides(given)), torch.device("cpu"))
    assert any(SAMPLED in line for line in task.iter_advice()) is is_told
