r"""ARPA files: there and back, what KenLM and SRILM write, and what nobody should."""

import bz2
import gzip
import lzma
import math
import re
from collections.abc import Callable, Sequence
from itertools import product
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
        (
            "ngram 1=6",
            "ngram 1=7",
            r"Line 16 of .* shows that 6 1-grams .* announces 7\..* sed 's/\^ngram \*1 \*=\.\*/ngram 1=6/'",
        ),
        ("ngram 1=6", "ngram 1=5", r"Line 14 of .* shows that 6 1-grams are listed, where the head announces 5"),
        ("ngram 2=4", "ngram 2=999999999", r"Line 5 of .* announces too many"),
        ("ngram 2=4", "ngram 3=4", r"Line 5 of .* cannot be read.*ngram 2=NUMBER"),
        ("ngram 2=4", "ngram 2=-4", r"Line 5 of .* cannot be read"),
        ("ngram 1=6\nngram 2=4\nngram 3=2\n", "", r"Line 5 of .* cannot be read.*ngram 1=NUMBER"),
        ("\\data\\", "\\date\\", r"is no ARPA file: none of its lines is .data.\."),
        ("\\end\\", "", r"is missing.*ends too early"),
        ("\\end\\", "\\4-grams:", r"Line 26 of .* is not the end"),
        ("-0.5\ta\t-0.3", "-0.5\ta\tx", r"Line 12 of .* has 'x' where a number"),
        ("-0.5\ta\t-0.3", "nan\ta\t-0.3", r"Line 12 of .* has 'nan' where a number"),
        ("-0.5\ta\t-0.3", "0.5\ta\t-0.3", r"Line 12 of .* a probability above one"),
        ("-0.5\ta\t-0.3", "-0.5\ta\t1e300", r"Line 12 of .* a back-off weight that is too large"),
        ("-0.5\ta\t-0.3", "-0.5\tb\t-0.3", r"Line 13 of .* repeats a word"),
        ("-0.5\ta\t-0.3", "-0.5\t<eos>\t-0.3", r"Line 12 of .* lists <eos>"),
        ("-0.5\ta\t-0.3", "-0.5\t<s>\t-0.3", r"Line 12 of .* repeats a word"),
        (
            "-0.5\ta\t-0.3",
            "-0.5\t\udcff\t-0.3",
            r"Line 12 of .* is not UTF-8 .* Type  iconv -f LATIN1 -t UTF-8 \S+ >",
        ),
        ("-99\t<s>", "-99\ts", r"without <s> or </s>"),
        ("-0.55\tc a", "-0.55\ta b", r"Line 20 of .* repeats an n-gram"),
        ("-0.55\tc a", "-0.55\tc d", r"Line 20 of .* word 'd'"),
        ("-0.6\tb\t-0.2", "-0_6\tb\t-0.2", r"Line 13 of .* has '-0_6' where a number"),
        ("-0.6\tb\t-0.2", "-0x1\tb\t-0.2", r"Line 13 of .* has '-0x1' where a number"),
        ("-0.6\tb\t-0.2", "-0,6\tb\t-0.2", r"Line 13 of .* has '-0,6' where .* with a point"),
        ("-0.6\tb\t-0.2", "-0.6\tb\tinf", r"Line 13 of .* a back-off weight that is too large"),
        ("-0.6\tb\t-0.2", "inf\tb\t-0.2", r"Line 13 of .* a probability above one"),
        ("-0.6\tb\t-0.2", "-0.6\tb\t\u0661", r"Line 13 of .* where a number"),
        ("-0.55\tc a", "-0.55\tc a b a", r"Line 20 of .* has 5 fields"),
        ("-0.05\t<s> a b", "-0.05\t<s> a b\t-1", r"Line 23 of .* has a back-off weight in the highest order, 3"),
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
    with pytest.raises(DataError, match=r"Line 12 of .* at most 10\. Type  ngram -order 10 -lm \S+ -write-lm lower\.arpa"):
        read_arpa(tmp_path / "model.arpa")


def test_missing_file_and_directory_are_said(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"no file .*nowhere"):
        read_arpa(tmp_path / "nowhere")
    with pytest.raises(DataError, match="is a directory"):
        read_arpa(tmp_path)
    (tmp_path / "file").touch()
    with pytest.raises(ResourceError, match=r"file/model.arpa cannot be written: Not a directory"):
        write_arpa(trained(2, "add_k"), TOKENS, tmp_path / "file" / "model.arpa")


@pytest.mark.parametrize("token", ["", "two words", "tab\t", "<eos>", "b", "\ud800"])
def test_token_that_would_not_come_back_is_refused_and_nothing_is_written(token: str, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"\(id 4\) cannot stand in an ARPA file"):
        write_arpa(trained(2, "add_k"), [*TOKENS[:4], token], tmp_path / "model.arpa")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("word", ["<s>", "</s>", r"\<s>", r"\\</s>", "<s>x", r"\<eos>", r"\<unk>", "s>"])
def test_a_word_that_is_spelt_as_a_mark_of_lines_comes_back_as_it_is(word: str, tmp_path: Path) -> None:
    model, tokens = trained(3, "kneser_ney"), [*TOKENS[:4], word]
    write_arpa(model, tokens, tmp_path / "model.arpa")
    again, read = read_arpa(tmp_path / "model.arpa", tokens)
    assert read == tokens
    ids = torch.tensor([[EOS], [4], [3], [4]])
    one, other = (each.log_probs(ids, each.initial_state(1))[0] for each in (model, again))
    torch.testing.assert_close(one, other, rtol=1e-6, atol=1e-7)
    text = (tmp_path / "model.arpa").read_text(encoding="utf-8")
    assert len(re.findall(r"(?m)^\S+\t<s>(?:\t\S+)?$", text)) == 1


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


# ---- dialects


def read(tmp_path: Path, content: str | bytes) -> tuple[NgramModel, list[str]]:
    path = tmp_path / "written.arpa"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return read_arpa(path)


def by_definition(text: str) -> Callable[[Sequence[str], str], float]:
    """log10 p(w | h) from the lines of an ARPA file, by dictionaries and recursion, as the format says."""
    probs: dict[tuple[str, ...], float] = {}
    rests: dict[tuple[str, ...], float] = {}
    order = 0
    for line in text.splitlines():
        if line.startswith("\\"):
            order = int(line[1:].partition("-")[0]) if line.endswith("-grams:") else 0
        elif order and line.strip():
            log_prob, *rest = line.split()
            words = tuple(rest[:order])
            probs[words] = float(log_prob)
            rests[words] = float(rest[order]) if len(rest) > order else 0.0

    def p(history: Sequence[str], word: str) -> float:
        history = tuple(history)
        if (*history, word) in probs:
            return probs[*history, word]
        return rests.get(history, 0.0) + p(history[1:], word)

    return p


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("\\data\\", "\ufeffiARPA is not the first word here\r\n# a comment\n\n  \\data\\  "),
        ("ngram 1=6\nngram 2=4\nngram 3=2\n", "ngram  1=      6\n\nngram\t2 = 4\nngram 3=2\t\n\n\n"),
        ("ngram 3=2\n\n", "ngram 3=2\n"),  # no blank line after the numbers
        ("-99\t<s>", "0\t<s>"),  # KenLM
        ("-99\t<s>", "-1.7\t<s>"),
        ("-99\t<s>", "-inf\t<s>"),
        ("-0.5\ta\t-0.3", "-0.5\ta\t-3e-1"),
        ("-0.5\ta\t-0.3", "-.5 a -.3000000"),
        ("-0.5\ta\t-0.3", "\n-5E-01\ta\t-0.3\n\n"),
        ("-0.9\tc", "-0.9\tc\t0"),
        ("-0.9\tc", "-0.9\tc\t0.000000"),
        ("-0.9\tc", "-0.9\tc\t-0"),
        ("-0.05\t<s> a b\n", "-0.05\t<s> a b\t0\n"),  # a weight in the highest order
        ("-1.9\t<unk>", "-1.9\t<UNK>"),
        ("\\end\\\n", "\\end\\"),
        ("\\end\\\n", "\n\\end\\\nand more\n"),
        ("\n", "\r\n"),
        ("\t", " "),
        ("\\2-grams:", " \\2-grams: "),
        ("-0.55\tc a\n", "-0.55\tc a\n\n"),
    ],
)
def test_every_way_of_writing_the_same_model_is_read_as_the_same(old: str, new: str, tmp_path: Path) -> None:
    assert old in SRILM
    expected, tokens = read(tmp_path, SRILM)
    given, given_tokens = read(tmp_path, SRILM.replace(old, new))
    assert given_tokens == tokens
    ids = torch.randint(len(tokens), (200, 1), generator=torch.Generator().manual_seed(1))
    log_probs_TBV, _ = given.log_probs(ids, given.initial_state(1))
    torch.testing.assert_close(log_probs_TBV, expected.log_probs(ids, expected.initial_state(1))[0], rtol=1e-12, atol=0)


@pytest.mark.parametrize("pack", [gzip.compress, bz2.compress, lzma.compress])
def test_packed_files_are_read_and_damaged_ones_refused(pack: Callable[[bytes], bytes], tmp_path: Path) -> None:
    packed = pack(("\ufeff" + SRILM.partition("\n\n")[2]).encode())
    assert read(tmp_path, packed)[1] == ["<eos>", "<unk>", "a", "b", "c"]
    for damaged in (packed[:-12], packed[:20], packed[:30] + b"\x55" + packed[31:]):
        with pytest.raises(DataError, match=r"cannot be unpacked: .* Type  \w+ -t \S+  to test it|is no ARPA file"):
            read(tmp_path, damaged)
    broken = pack(SRILM.replace("-0.9\tc", "x\tc").encode())
    with pytest.raises(DataError, match=r"Line 14 of .*Type  \w+ -dc \S+ \| sed -n 14p  to see it"):
        read(tmp_path, broken)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"mmap lm http://kheafield.com/code format version 5\n\0", r"binary model of KenLM\. .* lmplz -o 3 < text\.txt"),
        (b"SRILM_BINARY_NGRAM_002\n", r"Type  ngram -lm \S+ -write-lm model\.arpa"),
        (b"iARPA\n\n\\data\\\n", r"\(iARPA\)\. .*Type  compile-lm \S+ --text=yes model\.arpa"),
        (b"\niARPA 3\n\\data\\\n", r"\(iARPA\)"),
        (b"qARPA 3 256 256 256\n\\data\\\n", r"\(qARPA\)\. .* quantize-lm"),
        (b"blmt 3 1 2 3\n", r"binary model of IRSTLM\. .*Type  compile-lm"),
        (b"\x28\xb5\x2f\xfd....", r"zstandard.*  zstd -dc|zstd decompressor error"),
        (SRILM.encode("utf-16"), r"UTF-16.*Type  iconv"),
        (b"some text\n", r"is no ARPA file.* lmplz -o 3 < text\.txt > model\.arpa"),
    ],
)
def test_what_is_no_arpa_file_is_named_with_what_to_type(content: bytes, message: str, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=message):
        read(tmp_path, content)


def test_n_grams_that_no_line_can_contain_are_left_out_with_a_warning(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    text = SRILM.replace("-0.55\tc a", "-0.55\tc a\n-0.1\tc <s>\n-0.2\t</s> <s>\n-0.3\t<s> <s>").replace(
        "ngram 2=4", "ngram 2=7"
    )
    model, _ = read(tmp_path, text)
    assert [len(keys) for keys in model.table.keys] == [5, 4, 2]
    assert caplog.text.count("n-grams that have them elsewhere are left out") == 1


@pytest.mark.parametrize("above", ["1e-7", "0.0001", "+9.9E-04"])
def test_a_probability_just_above_one_is_read_as_one(above: str, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    model, _ = read(tmp_path, SRILM.replace("-0.25\t<s> a", f"{above}\t<s> a"))
    assert log10_scores(model, "<s> a") == [0]
    assert "line 17: a probability just above one is read as one" in caplog.text


def test_a_log_of_zero_is_minus_99_or_less_or_infinity(tmp_path: Path) -> None:
    for zero in ("-99", "-99.0", "-inf", "-Infinity", "-1e3", "-100"):
        model, _ = read(tmp_path, SRILM.replace("-0.25\t<s> a", f"{zero}\t<s> a"))
        assert log10_scores(model, "<s> a") == [-math.inf]


def test_an_n_gram_is_used_although_its_context_is_not_listed(tmp_path: Path) -> None:
    text = SRILM.replace("ngram 3=2", "ngram 3=4").replace("-0.08\ta b c", "-0.08\ta b c\n-0.01\tb c a\n-0.02\tc c c")
    text = text.replace("ngram 3=4\n", "ngram 3=4\nngram 4=2\n").replace(
        "\\end\\", "\\4-grams:\n-0.03\tb b a c\n-0.04\tc a b c\n\n\\end\\"
    )
    check_against_the_definition(text, tmp_path)


def check_against_the_definition(text: str, tmp_path: Path) -> None:
    """Every word behind every context of up to four words that begins with <s> or any word."""
    model, tokens = read(tmp_path, text)
    p = by_definition(text)
    names = ["</s>" if token == "<eos>" else token for token in tokens]
    generator = np.random.default_rng(1)
    for _ in range(60):
        inner = [number for number in range(len(tokens)) if number != model.eos_id]
        context = [model.eos_id, *generator.choice(inner, generator.integers(0, 6)).tolist()]
        words = ["<s>", *(tokens[number] for number in context[1:])]
        log_probs_TBV, _ = model.log_probs(torch.tensor(context)[:, None], model.initial_state(1))
        expected = [p(words[max(0, len(words) - model.order + 1) :], name) for name in names]
        expected = [-math.inf if value <= -99 else value for value in expected]
        assert (log_probs_TBV[-1, 0] / math.log(10)).tolist() == pytest.approx(expected, rel=1e-9, abs=1e-12)


def spelt(value: float, draw: st.DrawFn) -> str:
    return draw(st.sampled_from([f"{value:.9g}", f"{value:.9e}", f"{value:.12f}", f"{value:.9E}"]))


@st.composite
def dialects(draw: st.DrawFn) -> str:
    """A random model, sparse in every order, as some program might write it."""
    order = draw(st.integers(1, 4))
    words = ["a", "b", "ß"][: draw(st.integers(1, 3))]
    tab, blank = draw(st.sampled_from([("\t", " "), (" ", " "), ("\t", "\t"), ("  ", " ")])), draw(st.sampled_from(["", "\n"]))
    values = st.floats(-5, -1)  # so that three weights of at most 0.3 leave any probability below one
    sections = []
    for length in range(1, order + 1):
        firsts = ["<s>", *words] if length > 1 else []
        ngrams = (
            [(*c, w) for c in product(firsts, *[words] * (length - 2)) for w in ["</s>", *words]]
            if length > 1
            else [(w,) for w in ["</s>", "<s>", "<unk>", *words]]
        )
        if length > 1:
            ngrams = [n for n in ngrams if draw(st.booleans())][:12]
        rows = []
        for ngram in draw(st.permutations(ngrams)):
            log_prob = draw(st.sampled_from(["-99", "0"])) if ngram == ("<s>",) else spelt(draw(values), draw)
            rest = ""
            if length < order and ngram[-1] != "</s>" and draw(st.booleans()):
                rest = tab[0] + spelt(draw(st.floats(-2, 0.3)), draw)
            elif draw(st.booleans()):
                rest = tab[0] + "0"
            rows.append(f"{log_prob}{tab[0]}{tab[1].join(ngram)}{rest}\n{blank * draw(st.integers(0, 1))}")
        sections.append((len(ngrams), f"\\{length}-grams:\n{''.join(rows)}\n"))
    numbers = "".join(f"ngram {length}={number}\n" for length, (number, _) in enumerate(sections, 1))
    before, body = draw(st.sampled_from(["", "x", "\n"])), "".join(section for _, section in sections)
    return f"{before}\n\\data\\\n{numbers}\n{body}\\end\\\n"


@fuzzing
@given(dialects())
def test_any_model_in_any_dialect_gives_the_probabilities_of_the_format(tmp_path: Path, text: str) -> None:
    check_against_the_definition(text, tmp_path)
    model, tokens = read(tmp_path, text.replace("\n", "\r\n"))
    write_arpa(model, tokens, tmp_path / "again.arpa")
    again, again_tokens = read_arpa(tmp_path / "again.arpa")
    assert again_tokens == tokens
    ids = torch.randint(len(tokens), (50, 1), generator=torch.Generator().manual_seed(1))
    torch.testing.assert_close(
        again.log_probs(ids, again.initial_state(1))[0], model.log_probs(ids, model.initial_state(1))[0], rtol=1e-8, atol=1e-8
    )


# ---- whether it is a distribution


def test_what_sums_to_three_is_read_with_a_warning(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    read(tmp_path, "\\data\\\nngram 1=4\n\n\\1-grams:\n-99 <s>\n0 </s>\n0 a\n0 <unk>\n\n\\end\\\n")
    assert "is no distribution: the probabilities of the 1-grams sum to 3 (1 of 1 contexts" in caplog.text


@pytest.mark.parametrize("smoothing", SMOOTHINGS)
def test_a_context_whose_probabilities_do_not_sum_to_one_is_named(
    smoothing: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    write_arpa(trained(3, smoothing), TOKENS, tmp_path / "model.arpa")
    read_arpa(tmp_path / "model.arpa")
    assert "is no distribution" not in caplog.text
    text = (tmp_path / "model.arpa").read_text(encoding="utf-8")
    line = next(line for line in text.splitlines() if "\ta b </s>" in line)
    read(tmp_path, text.replace(line, line.replace(line.split("\t")[0], "0")))
    assert "the probabilities behind 'a b' sum to 1." in caplog.text


@pytest.mark.parametrize("digits", [3, 4, 6])
def test_rounded_logarithms_are_a_distribution(digits: int, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    write_arpa(trained(3, "kneser_ney"), TOKENS, tmp_path / "model.arpa")
    text = (tmp_path / "model.arpa").read_text(encoding="utf-8")
    read(tmp_path, re.sub(r"-\d+\.\d+", lambda found: f"{float(found[0]):.{digits}f}", text))
    assert "is no distribution" not in caplog.text
