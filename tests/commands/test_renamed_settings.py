"""Settings that had another name once."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any


def test_the_old_name_of_vocab_size_is_refused_with_the_new_one_where_it_is_typed(
    place: Path, call: Callable[..., Any]
) -> None:
    for arguments in (["TRAIN", "tokenizer.max_size=9"], ["resume=run", "tokenizer.max_size=9"]):
        ended = call(*arguments)
        assert ended.code == 2
        assert "tokenizer.max_size is now called tokenizer.vocab_size. Type tokenizer.vocab_size=" in ended.err


def test_the_old_name_of_vocab_size_is_read_where_a_run_saved_it(place: Path, call: Callable[..., Any]) -> None:
    file = place / "run" / "settings.json"
    settings = json.loads(file.read_text())
    tokenizer = settings["tokenizer"]
    tokenizer["max_size"] = tokenizer.pop("vocab_size")
    del tokenizer["path"]
    file.write_text(json.dumps(settings))
    assert call("resume=run", "trainer.num_steps=8").code == 0
    assert json.loads(file.read_text())["tokenizer"]["vocab_size"] == 0
