"""Passages: each file is read once for all of its passages, which are its text whatever the blocks are."""

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lmtrain.data import text
from lmtrain.data.kinds import CHAR, WORD
from lmtrain.data.passages import Passage, read_passages, whole
from lmtrain.data.text import scan
from lmtrain.errors import DataError


@given(st.text("aé\n\r€😀", max_size=40), st.lists(st.integers(0, 40), max_size=4), st.integers(1, 9))
def test_passages_of_one_file_are_its_text_in_one_reading(tmp_path_factory, content, cuts, block_bytes):
    path = tmp_path_factory.mktemp("text") / "text.txt"
    path.write_bytes(content.encode())
    expected = content.replace("\r\n", "\n")
    facts = scan(path)
    ends = sorted(min(cut, len(expected)) for cut in cuts)
    passages = [Passage(facts, start, end) for start, end in itertools.pairwise([0, *ends, len(expected)])]
    num_readings, read = 0, text.iter_blocks

    def counted(*arguments):
        nonlocal num_readings
        num_readings += 1
        return read(*arguments)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(text, "BLOCK_BYTES", block_bytes)
        patch.setattr(text, "iter_blocks", counted)
        found = [[*blocks] for _, blocks in read_passages(passages, CHAR)]
    assert num_readings == 1
    assert ["".join(block.text for block in blocks) for blocks in found] == [expected[p.start : p.end] for p in passages]
    assert all(block.text.encode() == block.data and block.text for blocks in found for block in blocks)


def test_a_passage_that_begins_within_a_file_is_found(tmp_path):
    (tmp_path / "text.txt").write_text("abcdef")
    ((_, blocks),) = read_passages([Passage(scan(tmp_path / "text.txt"), 2, 5)], WORD)
    assert "".join(block.text for block in blocks) == "cde\n"


def test_a_text_that_has_changed_is_refused_at_its_last_passage(tmp_path):
    path = tmp_path / "text.txt"
    path.write_text("abcdef")
    facts = scan(path)
    path.write_text("abcdeg")
    (_, first), (_, last) = read_passages([Passage(facts, 0, 2), Passage(facts, 2, 3)], CHAR)
    assert "".join(block.text for block in first) == "ab"
    with pytest.raises(DataError, match="was changed while it was being read"):
        list(last)


def test_only_the_last_of_several_files_may_end_within_a_line(tmp_path):
    facts = []
    for name in ("a.txt", "b.txt"):
        (tmp_path / name).write_text(name)
        facts.append(scan(tmp_path / name))
    found = ["".join(block.text for block in blocks) for _, blocks in read_passages(whole(facts), CHAR)]
    assert found == ["a.txt\n", "b.txt"]
