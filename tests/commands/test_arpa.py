"""N-gram models through ARPA files and back, by the commands that one types."""

import json
import math
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from lmtrain.data.packed import open_unpacked
from lmtrain.saved import arpa_symbols
from lmtrain.trained import load

Call = Callable[..., Any]

COUNTED = ["data=text", "data.path=text.txt", "tokenizer=word", "model=ngram", "trainer.num_threads=1"]

BY_HAND = r"""
\data\
ngram 1=5
ngram 2=3

\1-grams:
-0.7	</s>
-99	<s>	-0.4
-1.9	<unk>
-0.5	the	-0.3
-0.6	cat

\2-grams:
-0.25	<s> the
-0.35	the cat
-0.45	cat </s>

\end\
""".replace(r"\t", "\t")


@pytest.fixture
def counts(place: Path, call: Call) -> Path:
    """A run of an n-gram model."""
    assert call(*COUNTED, "model.order=3", "hydra.run.dir=counts").code == 0
    return place / "counts"


def scores(call: Call, run: str) -> list[float]:
    """The log-probability of every line, as printed with six digits."""
    ended = call("score", run, "text.txt")
    assert ended.code == 0, ended.err
    return [float(row.split("\t")[1]) for row in ended.out.splitlines() if re.match(r"\d+\t", row)]


def test_a_model_comes_back_with_the_same_scores(counts: Path, call: Call) -> None:
    ended = call("arpa", "counts", "--output", "counts.arpa")
    assert (ended.code, ended.err) == (0, "")
    listed = re.findall(r"ngram \d=(\d+)", Path("counts.arpa").read_text(encoding="utf-8"))
    assert f"Saved in counts.arpa: order 3, n-grams of each order: {', '.join(listed)}." in ended.out
    assert call("arpa", "counts.arpa", "--output", "again").code == 0
    assert scores(call, "again") == pytest.approx(scores(call, "counts"), abs=2e-6)
    assert call("sample", "again", "--prompt", "the cat", "--max-tokens", "5").out.startswith("the cat")
    ended = call("evaluate", "again")
    assert ended.code == 3
    assert "Saved are: none. Type --text FILE." in ended.err


def test_a_model_with_the_vocabulary_of_another_can_be_mixed_with_it(counts: Path, call: Call) -> None:
    assert call("TRAIN", "tokenizer=word", "hydra.run.dir=neural").code == 0
    assert call("arpa", "counts", "--output", "counts.arpa").code == 0
    assert call("arpa", "counts.arpa", "--output", "again", "--like", "neural").code == 0
    assert call("mix", "again", "neural", "--output", "a mixture").out.endswith("evaluate 'a mixture'\n")
    nats = {run: json.loads(call("evaluate", run, "--json").out)["total_nats"] for run in ("counts", "again", "neural")}
    assert nats["again"] == pytest.approx(nats["counts"], rel=1e-8)
    assert json.loads(call("evaluate", "a mixture", "--json").out)["total_nats"] < max(nats.values())


def test_what_another_program_wrote_is_scored_as_the_format_says(place: Path, call: Call) -> None:
    (place / "hand.arpa").write_text(BY_HAND, encoding="utf-8")
    (place / "lines.txt").write_text("the cat\n\nthe dog\n", encoding="utf-8")
    assert call("arpa", "hand.arpa", "--output", "hand").code == 0
    rows = call("score", "hand", "lines.txt").out.splitlines()[1:4]
    log10 = [float(row.split("\t")[1]) / math.log(10) for row in rows]
    assert log10 == pytest.approx([-0.25 - 0.35 - 0.45, -0.4 - 0.7, -0.25 - 0.3 - 1.9 - 0.7], abs=1e-6)


@pytest.mark.parametrize("kind", ["char", "byte", "bpe"])
def test_characters_bytes_and_subwords_come_back(kind: str, place: Path, call: Call) -> None:
    text = "the cat\tsat\u00a0on <s> a <unk> mat\n\nΟ δρόμος है 日本語\x00\x1c <eos>\n" * 30
    (place / "text.txt").write_text(text, encoding="utf-8")
    if kind == "bpe":
        pytest.importorskip("tokenizers", reason="the package tokenizers is not installed")
    size = ["tokenizer.vocab_size=290"] * (kind == "bpe")
    ended = call(
        "data=text", "data.path=text.txt", f"tokenizer={kind}", *size, "model=ngram", "model.order=4", "hydra.run.dir=n"
    )
    assert ended.code == 0, ended.err
    assert call("arpa", "n", "--output", "n.arpa").code == 0
    file = (place / "n.arpa").read_text(encoding="utf-8")
    assert all(len(line.split(" ")) == 2 for line in file.partition("\\2-grams:\n")[2].partition("\n\n")[0].splitlines())
    ended = call("arpa", "n.arpa", "--output", "again", "--like", "n")
    assert (ended.code, ended.err) == (0, "")
    assert scores(call, "again") == pytest.approx(scores(call, "n"), abs=1e-4)
    assert json.loads(call("evaluate", "again", "--json").out)["total_nats"] == pytest.approx(
        json.loads(call("evaluate", "n", "--json").out)["total_nats"]
    )
    assert call("mix", "again", "n", "--output", "mixture").code == 0


def test_characters_are_scored_by_kenlm_as_by_us(place: Path, call: Call) -> None:
    kenlm = pytest.importorskip("kenlm", reason="the package kenlm is not installed")
    assert (
        call("data=text", "data.path=text.txt", "tokenizer=char", "model=ngram", "model.order=4", "hydra.run.dir=n").code == 0
    )
    assert call("arpa", "n", "--output", "n.arpa").code == 0
    model = kenlm.Model("n.arpa")
    lines = (place / "text.txt").read_text(encoding="utf-8").splitlines()[:10]
    spaced = [" ".join("<0x20>" if character == " " else character for character in line) for line in lines]
    assert [model.score(line) * math.log(10) for line in spaced] == pytest.approx(scores(call, "n")[:10], abs=1e-3)


def test_every_token_has_a_name_of_its_own() -> None:
    from types import SimpleNamespace

    texts = ["\n", "<eos>", "<0x3C>eos>", "a", "<unk>", "é"]
    tokenizer: Any = SimpleNamespace(vocab_size=6, eos_id=0, unk_id=None, symbol=texts.__getitem__)
    assert arpa_symbols(tokenizer) == ["<eos>", "<0x3C>eos>", "<0x3C>0x3C>eos>", "a", "<0x3C>unk>", "é"]
    tokenizer.unk_id = 4
    assert arpa_symbols(tokenizer)[4] == "<unk>"


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["text.txt", "--output", "new"], 3, r"text\.txt is no ARPA file: none of its lines is .data.\."),
        (["nowhere.arpa", "--output", "new"], 4, r"nowhere\.arpa does not exist"),
        (["run", "--output", "new.arpa"], 2, r"holds no n-gram model\. .* Give a run of model=ngram\."),
        (["run", "--output", "text.txt"], 2, r"--output text\.txt is there already"),
        (["run", "--output", "new.arpa", "--like", "run"], 2, r"--like run was given, but run is not a file"),
        (["hand.arpa", "--output", "new", "--like", "run"], 3, r"hand\.arpa has another vocabulary: it lacks .*<0x20>"),
        (["broken.arpa", "--output", "new"], 3, r"Line 9 of broken\.arpa has 'x' where a number is needed"),
        (["run"], 2, r"required: --output"),
    ],
    ids=str,
)
def test_what_cannot_be_done_is_said_and_leaves_nothing(
    arguments: list[str], code: int, words: str, place: Path, call: Call
) -> None:
    (place / "hand.arpa").write_text(BY_HAND, encoding="utf-8")
    (place / "broken.arpa").write_text(BY_HAND.replace("-1.9", "x"), encoding="utf-8")
    before = sorted(place.iterdir())
    ended = call("arpa", *arguments)
    assert (ended.code, ended.out) == (code, "")
    assert re.search(words, ended.err), ended.err
    assert sorted(place.iterdir()) == before


def test_the_text_that_was_counted_is_in_the_state_of_training_alone(counts: Path, call: Call) -> None:
    from safetensors.torch import load_file

    (checkpoint,) = counts.glob("checkpoints/step-*")
    assert "counted_ids" not in load_file(checkpoint / "model.safetensors")
    assert [*load_file(checkpoint / "training.safetensors")] == ["counted_ids"]


# ---- pruning


def test_a_pruned_run_is_evaluated_written_and_resumed_with_the_numbers_it_was_started_with(place: Path, call: Call) -> None:
    assert call(*COUNTED, "model.order=3", "hydra.run.dir=whole").code == 0
    assert call(*COUNTED, "model.order=3", "model.prune=[0,0,9]", "hydra.run.dir=pruned").code == 0
    sizes = {}
    for run in ("whole", "pruned"):
        assert call("arpa", run, "--output", f"{run}.arpa").code == 0
        head = (place / f"{run}.arpa").read_text(encoding="utf-8").split("\\1-grams:")[0]
        sizes[run] = [int(line.partition("=")[2]) for line in head.splitlines() if line.startswith("ngram ")]
        assert call("evaluate", run).code == 0
        assert call("arpa", f"{run}.arpa", "--output", f"{run}-again").code == 0
    assert sizes["pruned"][:2] == sizes["whole"][:2]
    assert 0 < sizes["pruned"][2] < sizes["whole"][2]
    ended = call("resume=pruned", "model.prune=[0,0,1]")
    assert ended.code == 2
    assert "model.prune" in ended.err
    assert call("resume=pruned").code == 0
    assert "3-gram, kneser_ney, pruned 0 0 9" in repr(load("pruned"))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["model.prune=[1]"], r"model\.prune=\[1\] was given\. .*no word is left out"),
        (["model.prune=[0,2,1]"], r"model\.prune=\[0,2,1\] was given\. .*do not fall from order to order"),
        (
            ["model.order=2", "model.prune=[0,0,1]"],
            r"prune=\[0,0,1\] was given with model\.order=2\. .*at most one number for each order",
        ),
        (["model.prune=[0,-1]"], r"model\.prune"),
        (["model.prune=[0,x]"], r"model\.prune"),
        (["model.prune=3"], r"model\.prune"),
        (["model.prune=[0,1]", "model.smoothing=add_k"], r"needs model\.smoothing=kneser_ney"),
    ],
)
def test_numbers_to_prune_by_that_make_no_sense_are_refused(
    arguments: list[str], message: str, place: Path, call: Call
) -> None:
    ended = call(*COUNTED, *arguments, "hydra.run.dir=bad")
    assert ended.code == 2
    assert re.search(message, ended.err)
    assert "Traceback" not in ended.err
    assert not (place / "bad").exists()


@pytest.mark.parametrize("name", ["m.arpa.gz", "m.arpa.bz2", "new/m.arpa.xz"])
def test_a_file_is_packed_as_its_name_says(name: str, counts: Path, call: Call) -> None:
    assert call("arpa", "counts", "--output", "plain.arpa").code == 0
    assert call("arpa", "counts", "--output", name).code == 0
    with open_unpacked(Path(name)) as (file, packer):
        assert packer is not None
        assert file.read() == Path("plain.arpa").read_bytes()
    assert call("arpa", name, "--output", "again").code == 0
    refused = call("arpa", "counts", "--output", "m.arpa.zst")
    assert (refused.code, "Allowed are .gz, .bz2 and .xz" in refused.err, Path("m.arpa.zst").exists()) == (2, True, False)
