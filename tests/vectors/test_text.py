"""Texts as word vectors read them: the files of the training split, and where lines end."""

from pathlib import Path

import numpy as np

from lmtrain.vectors.text import BREAK, read_words


def test_all_files_of_the_training_split_are_read_and_no_line_reaches_into_the_next_file(tmp_path: Path) -> None:
    (tmp_path / "train").mkdir()
    for name, text in (("train/1.txt", "a b\na b"), ("train/2.txt", "c d\nc d\n"), ("valid.txt", "a\n"), ("test.txt", "a\n")):
        (tmp_path / name).write_text(text, encoding="utf-8")
    text = read_words(tmp_path, min_count=1)
    assert text.words == ("a", "b", "c", "d")
    assert [int(number) for number in np.diff(np.flatnonzero(text.ids == BREAK))] == [3, 3, 3]
