"""`mix` and `evaluate` say how much of a held-out text each model was trained on, and warn of too much."""

import json
import random
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from lmtrain.training.checkpoint import find_checkpoint

Call = Callable[..., Any]
WORDS = ["the", "cat", "sat", "on", "a", "mat", "and", "then", "ran", "away", "from", "it"]


def lines(seed: int, num: int = 300) -> list[str]:
    draw = random.Random(seed)
    return [" ".join(draw.choice(WORDS) for _ in range(12)) for _ in range(num)]


@pytest.fixture
def train(place: Path, call: Call) -> Callable[..., None]:
    """Counts the n-grams of a text into the run of a name; "byte", so that all have one vocabulary."""

    def train(name: str, text: list[str], *settings: str) -> None:
        Path(f"{name}.txt").write_text("\n".join(text) + "\n")
        ended = call("data=text", f"data.path={name}.txt", "tokenizer=byte", "model=ngram", "model.order=2",
                     "trainer.sample_tokens=0", "trainer.num_threads=1", f"hydra.run.dir={name}", *settings)  # fmt: skip
        assert ended.code == 0, ended.err

    return train


ALL = ("data.valid_fraction=0.005", "data.test_fraction=0")
OTHERS = {
    "the same text, cut differently": (lambda own: own, ALL, True),
    "the same text, shortened": (lambda own: own[40:], ALL, True),
    "the same text, appended to": (lambda own: own + lines(9), ALL, True),
    "the same lines, dealt anew": (lambda own: random.Random(4).sample(own, len(own)), ALL, True),
    "a few of its test lines": (lambda own: [*lines(9), *own[-3:], *lines(8)], ALL, True),
    "the same split of the same text": (lambda own: own, (), False),
    "another text": (lambda own: lines(9), ALL, False),
}


ALIKE = ("the same text, shortened", "the same text, appended to")


@pytest.mark.parametrize("kind", [pytest.param(k, marks=[pytest.mark.slow] if k in ALIKE else []) for k in OTHERS])
def test_a_part_that_was_trained_on_the_test_text_is_named(kind: str, train: Callable[..., None], call: Call) -> None:
    change, settings, is_found = OTHERS[kind]
    own = lines(1)
    train("clean", own)
    train("other", change(own), *settings)
    ended = call("mix", "clean", "other", "--output", "mixture")
    assert ended.code == 0, ended.err
    (said,) = re.findall(
        r"Of (\d+) distinct lines of the test text, 0.0% are in the training text of clean, (\d+\.\d)% in that of other",
        ended.out,
    )
    assert int(said[0]) > 10
    assert (float(said[1]) >= 1) is is_found
    named = re.findall(
        r"lmtrain: .*% of the distinct lines of the test text are in the training text of (\w+): the mixture will", ended.err
    )
    assert named == ["other"] * is_found

    ended = call("evaluate", "mixture")
    named = re.findall(
        r"% of the distinct lines of the test text are in the training text of (part \d) of mixture: .*Give a FILE", ended.err
    )
    assert named == ["part 2"] * is_found
    assert ended.code == call("evaluate", "clean").code == 0

    assert call("mix", "mixture", "clean", "--output", "again").code == 0
    named = re.findall(r"test text are in the training text of (part \d) of again", call("evaluate", "again").err)
    assert named == ["part 2"] * is_found, "the hashes of the parts are kept in a mixture of mixtures"


def test_validation_on_which_the_weights_are_fitted_is_looked_for_too(train: Callable[..., None], call: Call) -> None:
    own = lines(1)
    train("clean", own)
    train("other", own[:-15], *ALL)  # its last 15 lines are the test text
    ended = call("mix", "other", "clean", "--output", "mixture")
    assert ended.err.count("are in the training text of") == 0, "the texts are those of the first part"
    ended = call("mix", "clean", "other", "--output", "mixture2")
    assert "of the valid text are in the training text of other: the weights, which are fitted on it, favour" in ended.err
    assert "of the test text are" not in ended.err


def test_a_file_that_was_trained_on_is_found(train: Callable[..., None], call: Call) -> None:
    train("clean", lines(1))
    for name, text, share in (("seen", lines(1)[:60], 100), ("some", [*lines(5), *lines(1)[:6]], 2), ("new", lines(5), 0)):
        Path(name).write_text("\n".join(text) + "\n")
        ended = call("evaluate", "clean", "--text", name)
        assert re.search(rf"Of \d+ distinct lines of {name}, {share}\.\d% are in the training text of clean", ended.out)
        assert (f"of the distinct lines of {name} are in the training text of clean" in ended.err) is (share > 0)
        document = json.loads(call("evaluate", "clean", "--text", name, "--json").out)
        assert document["lines_in_training"] == [pytest.approx(share / 100, abs=0.005)]


def test_a_text_that_repeats_itself_by_nature_is_not_warned_of(train: Callable[..., None], call: Call) -> None:
    formula = [line for number, line in enumerate(lines(1, 600)) for line in ([line] if number % 20 else [line, lines(2)[0]])]
    train("formula", formula)
    ended = call("evaluate", "formula")
    assert re.search(r"[2-5]\.\d% are in the training text of formula", ended.out)
    assert "are in the training text" not in ended.err


def test_checkpoints_of_earlier_versions_cannot_be_checked_and_say_so(
    train: Callable[..., None], call: Call, place: Path
) -> None:
    import shutil

    shutil.copytree(Path(__file__).parents[1] / "fixtures" / "saved" / "mixture", "old")
    ended = call("evaluate", "old")
    assert ended.code == 0
    assert "is in the training text of part 1 of old, part 2 of old, part 3 of old cannot be told: no hashes" in ended.out
    assert json.loads(call("evaluate", "old", "--json").out)["lines_in_training"] == [None, None, None]


def test_an_arpa_file_tells_no_training_text_but_that_of_its_like_is_the_test_text(
    train: Callable[..., None], call: Call
) -> None:
    train("words", lines(1), "tokenizer=word")
    assert call("arpa", "words", "--output", "words.arpa").code == 0
    assert call("arpa", "words.arpa", "--output", "again", "--like", "words").code == 0
    assert (
        "is in the training text of again cannot be told: no hashes of its lines were saved." in call("evaluate", "again").out
    )
    ended = call("mix", "again", "words", "--output", "mixture")
    assert re.search(
        r"0\.0% are in the training text of words\. Whether the test text is in the training text of again", ended.out
    )


@pytest.mark.parametrize(
    "tensors",
    [
        {"train.0": torch.tensor([1, 1])}, {"train.0": torch.tensor([2, 1])}, {"train.0": torch.tensor([-1, 1])},
        {"train.0": torch.tensor([[1, 2]])}, {"train.0": torch.tensor([1.0, 2.0])}, {"train.1": torch.tensor([1, 2])},
        {"train": torch.tensor([1, 2])}, {"valid": torch.tensor(1)},
    ],
    ids=str,
)  # fmt: skip
def test_forged_hashes_are_refused(tensors: dict[str, torch.Tensor], place: Path, call: Call) -> None:
    import hashlib

    from lmtrain.files.durable import FileRecord
    from lmtrain.training import checkpoint as checkpoints

    directory = find_checkpoint("run", "best")
    save_file(tensors, directory / "lines.safetensors")
    content = (directory / "lines.safetensors").read_bytes()
    manifest = json.loads((directory / "manifest.json").read_text())
    manifest["files"]["lines.safetensors"] = vars(FileRecord(len(content), hashlib.sha256(content).hexdigest()))
    manifest["sha256"] = checkpoints._fingerprint(manifest)
    (directory / "manifest.json").write_text(json.dumps(manifest))
    ended = call("evaluate", "run")
    assert (ended.code, "Traceback" in ended.err) == (4, False), ended.err
