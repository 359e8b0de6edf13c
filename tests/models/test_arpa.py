r"""ARPA files: there and back, what KenLM and SRILM write, and what nobody should."""

import gzip
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from lmtrain.errors import DataError, ResourceError, SettingsError
from lmtrain.models.arpa import read_arpa, write_arpa
from lmtrain.models.base import StatePolicy
from lmtrain.models.ngram import SMOOTHINGS, NgramModel

TOKENS = ["a", "<eos>", "b", "<unk>", "ß"]
EOS = 1

# As SRILM prunes: "a b c" is listed although "b c" is not, weights of 1 are left out, <s> has no probability,
# something stands before \data\.
SRILM = r"""written by hand

\data\
ngram 1=6
ngram 2=4
ngram 3=2

\1-grams:
-0.7	</s>
-99	<s>	-0.4
-1.9	<unk>
-0.5	a	-0.3
-0.6	b	-0.2
-0.9	c

\2-grams:
-0.25	<s> a	-0.15
-0.35	a b	-0.1
-0.45	b </s>
-0.55	c a

\3-grams:
-0.05	<s> a b
-0.08	a b c

\end\
"""
WORDS = {"</s>": 0, "<s>": 0, "<unk>": 1, "a": 2, "b": 3, "c": 4}


def log10_scores(model: NgramModel, words: str) -> list[float]:
    """log10 p of every word of a line that begins with <s>, which itself is not scored."""
    ids = torch.tensor([WORDS[word] for word in words.split()])[:, None]
    log_probs_TB, _ = model.target_log_probs(ids[:-1], ids[1:], model.initial_state(1))
    return (log_probs_TB[:, 0] / math.log(10)).tolist()


def trained(order: int, smoothing: str) -> NgramModel:
    model = NgramModel(vocab_size=len(TOKENS), eos_id=EOS, order=order, smoothing=smoothing)
    model.count(np.array([0, 2, EOS, 0, 2, 3, EOS, EOS, 4, 2, 0, 2, EOS, 0, EOS]))
    return model


@pytest.mark.parametrize("order", [1, 2, 3, 6])
@pytest.mark.parametrize("smoothing", SMOOTHINGS)
def test_scores_come_back_to_the_printed_precision(order: int, smoothing: str, tmp_path: Path) -> None:
    model = trained(order, smoothing)
    write_arpa(model, TOKENS, tmp_path / "model.arpa")
    again, tokens = read_arpa(tmp_path / "model.arpa")
    assert tokens == TOKENS
    assert (again.order, again.eos_id, again.state_policy) == (order, EOS, StatePolicy.line)
    ids = torch.randint(len(TOKENS), (300, 1), generator=torch.Generator().manual_seed(1))
    scores_TBV, _ = model.log_probs(ids, model.initial_state(1))
    torch.testing.assert_close(again.log_probs(ids, again.initial_state(1))[0], scores_TBV, rtol=2e-9, atol=1e-9)


def test_writing_twice_gives_the_same_bytes(tmp_path: Path) -> None:
    write_arpa(trained(3, "kneser_ney"), TOKENS, tmp_path / "once.arpa")
    write_arpa(*read_arpa(tmp_path / "once.arpa"), tmp_path / "twice.arpa")
    assert (tmp_path / "twice.arpa").read_bytes() == (tmp_path / "once.arpa").read_bytes()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["once.arpa", "twice.arpa"]


def test_file_follows_the_conventions_of_sentence_marks(tmp_path: Path) -> None:
    write_arpa(trained(2, "kneser_ney"), TOKENS, tmp_path / "model.arpa")
    lines = (tmp_path / "model.arpa").read_text(encoding="utf-8").splitlines()
    assert lines[:3] == ["\\data\\", "ngram 1=6", "ngram 2=10"]
    assert lines[-1] == "\\end\\"
    rows = [line.split("\t") for line in lines if "\t" in line]
    assert [row[0] for row in rows if row[1] == "<s>"] == ["-99"]
    assert not [row for row in rows if row[1].endswith(" <s>") or row[1].startswith("</s> ")]
    assert [row[1] for row in rows if row[1] == "<s> </s>"] == ["<s> </s>"]
    assert not [row for row in rows if row[1].endswith("</s>") and len(row) > 2]


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ("<s> a b c a", [-0.25, -0.05, -0.08, -0.55]),
        ("<s> b", [-0.4 - 0.6]),  # backs off from <s>
        ("<s> a a", [-0.25, -0.15 - 0.3 - 0.5]),  # from <s> a, then from a
        ("<s> c b </s>", [-0.4 - 0.9, -0.6, -0.45]),  # c has no weight; b </s> is listed, c b is not
        ("<s> a b </s>", [-0.25, -0.05, -0.1 - 0.45]),
        ("<s> <unk> a", [-0.4 - 1.9, -0.5]),
        ("<s> </s> a", [-0.4 - 0.7, -0.25]),  # after an empty line everything begins anew
    ],
)
def test_backing_off_is_worked_out_as_the_format_says(words: str, expected: list[float], tmp_path: Path) -> None:
    (tmp_path / "model.arpa").write_text(SRILM)
    model, tokens = read_arpa(tmp_path / "model.arpa")
    assert tokens == ["<eos>", "<unk>", "a", "b", "c"]
    assert log10_scores(model, words) == pytest.approx(expected, rel=1e-12)


def test_ids_can_be_those_of_another_model_with_the_same_words(tmp_path: Path) -> None:
    (tmp_path / "model.arpa").write_text(SRILM)
    model, tokens = read_arpa(tmp_path / "model.arpa")
    other_way_round, reversed_tokens = read_arpa(tmp_path / "model.arpa", tokens[::-1])
    assert reversed_tokens == tokens[::-1]
    ids = torch.randint(len(tokens), (50, 1), generator=torch.Generator().manual_seed(1))
    expected_TBV, _ = model.log_probs(ids, model.initial_state(1))
    made_TBV, _ = other_way_round.log_probs(len(tokens) - 1 - ids, other_way_round.initial_state(1))
    torch.testing.assert_close(made_TBV.flip(-1), expected_TBV)
    with pytest.raises(DataError, match=r"lacks x, and has besides c\. Allowed are exactly the 5 words"):
        read_arpa(tmp_path / "model.arpa", ["x", *tokens[:-1]])


def test_a_closed_vocabulary_gives_no_probability_to_unknown_words(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "model.arpa").write_text(SRILM.replace("-1.9\t<unk>\n", "").replace("ngram 1=6", "ngram 1=5"))
    model, tokens = read_arpa(tmp_path / "model.arpa")
    assert tokens == ["<eos>", "a", "b", "c", "<unk>"]
    assert "lists no <unk>" in caplog.text
    log_probs_TBV, _ = model.log_probs(torch.tensor([[1], [4], [2]]), model.initial_state(1))
    assert log_probs_TBV[:, 0, 4].tolist() == [-math.inf] * 3
    assert log_probs_TBV[:, 0, :4].isfinite().all()


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("ngram 1=6", "ngram 1=7", r"Line 15 of .* has 0 fields"),
        ("ngram 1=6", "ngram 1=5", r"Line 14 of .* cannot be read.*2-grams"),
        ("ngram 2=4", "ngram 2=999999999", r"Line 5 of .* announces too many"),
        ("ngram 2=4", "ngram 3=4", r"Line 5 of .* cannot be read.*ngram 2=NUMBER"),
        ("ngram 2=4", "ngram 2=-4", r"Line 5 of .* cannot be read"),
        ("ngram 1=6\nngram 2=4\nngram 3=2\n", "", r"Line 4 of .* cannot be read.*ngram 1=NUMBER"),
        ("\\data\\", "\\date\\", r"is no ARPA file: none of its lines is .data.\."),
        ("\\end\\", "", r"is missing.*ends too early"),
        ("\\end\\", "\\4-grams:", r"Line 26 of .* is not the end"),
        ("-0.5\ta\t-0.3", "-0.5\ta\tx", r"Line 12 of .* has 'x' where a number"),
        ("-0.5\ta\t-0.3", "nan\ta\t-0.3", r"Line 12 of .* has 'nan' where a number"),
        ("-0.5\ta\t-0.3", "0.5\ta\t-0.3", r"Line 12 of .* a probability above one"),
        ("-0.5\ta\t-0.3", "-0.5\ta\t1e300", r"Line 12 of .* an absurd back-off weight"),
        ("-0.5\ta\t-0.3", "-0.5\tb\t-0.3", r"Line 13 of .* repeats a word"),
        ("-0.5\ta\t-0.3", "-0.5\t<eos>\t-0.3", r"Line 12 of .* lists <eos>"),
        ("-0.5\ta\t-0.3", "-0.5\t<s>\t-0.3", r"Line 12 of .* repeats a word"),
        ("-0.5\ta\t-0.3", "-0.5\t\udcff\t-0.3", r"Line 12 of .* is not UTF-8"),
        ("-99\t<s>", "-99\ts", r"without <s> or </s>"),
        ("-0.35\ta b\t", "-0.35\tb a\t", r"Line 24 of .* first 2 words are not listed"),
        ("-0.55\tc a", "-0.55\ta b", r"Line 20 of .* repeats an n-gram"),
        ("-0.55\tc a", "-0.55\tc d", r"Line 20 of .* word 'd'"),
        ("-0.55\tc a", "-0.55\tc <s>", r"Line 20 of .* word '<s>'.*<s> only comes first"),
        ("-0.55\tc a", "-0.55\t</s> a", r"Line 20 of .* word '</s>'.*</s> only last"),
        ("-0.55\tc a", "-0.55\tc a b a", r"Line 20 of .* has 5 fields"),
        ("-0.05\t<s> a b", "-0.05\t<s> a b\t-1", r"Line 23 of .* has 5 fields"),
        ("-0.55\tc a", "-0.55\tc a" + " " * 70000, r"Line 20 of .* is too long"),
    ],
)
def test_damaged_file_is_refused_with_the_number_of_its_line(old: str, new: str, message: str, tmp_path: Path) -> None:
    assert SRILM.count(old) == 1
    (tmp_path / "model.arpa").write_text(SRILM.replace(old, new), encoding="utf-8", errors="surrogateescape")
    with pytest.raises(DataError, match=message):
        read_arpa(tmp_path / "model.arpa")


def test_more_orders_than_allowed_are_refused(tmp_path: Path) -> None:
    text = "\\data\\\n" + "".join(f"ngram {order}=0\n" for order in range(1, 12))
    (tmp_path / "model.arpa").write_text(text)
    with pytest.raises(DataError, match=r"Line 12 of .* at most 10"):
        read_arpa(tmp_path / "model.arpa")


def test_missing_file_and_directory_are_said(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"no file .*nowhere"):
        read_arpa(tmp_path / "nowhere")
    with pytest.raises(DataError, match="is a directory"):
        read_arpa(tmp_path)
    (tmp_path / "model.arpa.gz").write_bytes(gzip.compress(SRILM.encode()))
    with pytest.raises(DataError, match=r"is gzip.*Type  gzip -dc"):
        read_arpa(tmp_path / "model.arpa.gz")
    with pytest.raises(ResourceError, match=r"nowhere/model.arpa cannot be written: No such file"):
        write_arpa(trained(2, "add_k"), TOKENS, tmp_path / "nowhere" / "model.arpa")


@pytest.mark.parametrize("token", ["", "two words", "tab\t", "<s>", "</s>", "<eos>", "b", "\ud800"])
def test_token_that_would_not_come_back_is_refused_and_nothing_is_written(token: str, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"\(id 4\) cannot stand in an ARPA file"):
        write_arpa(trained(2, "add_k"), [*TOKENS[:4], token], tmp_path / "model.arpa")
    assert not list(tmp_path.iterdir())


def test_model_that_does_not_forget_at_line_ends_is_refused(tmp_path: Path) -> None:
    model = NgramModel(vocab_size=5, eos_id=EOS, state_policy=StatePolicy.carry)
    with pytest.raises(SettingsError, match=r"state_policy=carry.*state_policy=line"):
        write_arpa(model, TOKENS, tmp_path / "model.arpa")


def test_file_that_cannot_be_finished_leaves_the_old_one_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "model.arpa").write_text("old")

    def fail(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", fail)
    with pytest.raises(ResourceError, match="No space left"):
        write_arpa(trained(2, "add_k"), TOKENS, tmp_path / "model.arpa")
    assert [path.read_text() for path in tmp_path.iterdir()] == ["old"]


def readable_or_refused(path: Path) -> None:
    """Reads a file; what can be read can be used."""
    try:
        model, tokens = read_arpa(path)
    except DataError:
        return
    ids = torch.tensor([[model.eos_id], *[[number] for number in range(len(tokens))]])
    log_probs_TBV, _ = model.log_probs(ids, model.initial_state(1))
    assert not log_probs_TBV.isnan().any()
    model.table.check()


fuzzing = settings(suppress_health_check=[HealthCheck.function_scoped_fixture])


@fuzzing
@given(st.binary(max_size=200))
def test_random_bytes_are_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "model.arpa").write_bytes(content)
    readable_or_refused(tmp_path / "model.arpa")


@fuzzing
@given(st.data())
def test_edited_file_is_either_usable_or_refused(tmp_path: Path, data: st.DataObject) -> None:
    content = SRILM.encode()
    for _ in range(data.draw(st.integers(1, 3))):
        place = data.draw(st.integers(0, len(content)))
        pieces = st.sampled_from([b"", b"1", b"-", b"9", b"e", b" ", b"\t", b"\n", b"a", b"<s>", b"</s>", b"\xff", b"\x00"])
        content = content[:place] + data.draw(pieces) + content[place + data.draw(st.integers(0, 4)) :]
    (tmp_path / "model.arpa").write_bytes(content)
    readable_or_refused(tmp_path / "model.arpa")


@fuzzing
@given(st.data())
def test_file_with_lines_moved_or_missing_is_either_usable_or_refused(tmp_path: Path, data: st.DataObject) -> None:
    lines = SRILM.encode().splitlines(keepends=True)
    for _ in range(data.draw(st.integers(1, 2))):
        line = lines.pop(data.draw(st.integers(0, len(lines) - 1)))
        if data.draw(st.booleans()):
            lines.insert(data.draw(st.integers(0, len(lines))), line)
    (tmp_path / "model.arpa").write_bytes(b"".join(lines))
    readable_or_refused(tmp_path / "model.arpa")


def test_a_byte_order_mark_is_no_part_of_the_file(tmp_path: Path) -> None:
    (tmp_path / "model.arpa").write_text("\ufeff" + SRILM.partition("\n\n")[2], encoding="utf-8")
    assert read_arpa(tmp_path / "model.arpa")[1] == ["<eos>", "<unk>", "a", "b", "c"]
