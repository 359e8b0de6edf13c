"""Nothing is silent for more than two seconds, and nothing that takes one or less says anything."""

import io
import sys
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

import lmtrain.data.corpus as corpus
import lmtrain.data.text as text
import lmtrain.data.token_cache as token_cache
import lmtrain.progress as progress
import lmtrain.tasks.language as language
import lmtrain.training.checkpoint as checkpoint
from lmtrain.progress import amount, watched

Call = Callable[..., Any]


@pytest.fixture(autouse=True)
def nobody_looks_on(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is seen depends on the pass alone."""
    monkeypatch.setattr(progress, "LOOK_SECONDS", 1e9)


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_a_pass_of_a_second_is_silent_and_a_longer_one_has_a_line_now_and_then(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    now = 0.0
    monkeypatch.setattr(progress.time, "monotonic", lambda: now)
    for seconds, lines in ((0.9, 0), (3.0, 2), (30.0, 4)):
        now = 0.0
        with watched("Reading a.txt", 100_000_000, "B") as advance:
            for part in range(1, 101):
                now = seconds * part / 100
                advance(1_000_000)
        shown = capsys.readouterr().err.splitlines()
        assert len(shown) == lines, shown
    assert shown[0] == "Reading a.txt: 4% of 100 MB at 3.33 MB/s, 29 s left"
    assert shown[-1] == "Reading a.txt: done, 100 MB in 30 s"


def test_on_a_terminal_there_is_a_bar_that_goes_when_it_is_done(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stderr", quiet := Terminal())
    with watched("Reading", 10, "B") as advance:
        advance(10)
    assert quiet.getvalue() == ""
    monkeypatch.setattr(sys, "stderr", shown := Terminal())
    monkeypatch.setattr(progress, "QUIET_SECONDS", 0.0)
    with watched("Reading", 10, "B") as advance:
        advance(5)
    assert "Reading:  50%" in shown.getvalue()


def test_a_pass_that_does_not_tell_how_far_it_is_is_looked_at_all_the_same(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Each pass waits until the thread has shown it."""
    monkeypatch.setattr(progress, "LOOK_SECONDS", 0.001)
    monkeypatch.setattr(progress, "QUIET_SECONDS", 0.0)
    shown = threading.Event()

    def noting(view: type[Any]) -> None:
        show = view._show
        monkeypatch.setattr(view, "_show", lambda *arguments: (show(*arguments), shown.set()))

    noting(progress._Lines)
    for what, unit, words in (("Compiling", "", "0 s so far"), ("Reading", "B", "0 s so far")):
        shown.clear()
        with watched(what, 10 * bool(unit), unit):
            assert shown.wait(60)
        assert f"{what}: {words}\n{what}: done, " in capsys.readouterr().err
    noting(progress._Bar)
    monkeypatch.setattr(sys, "stderr", terminal := Terminal())
    shown.clear()
    with watched("Compiling"):
        assert shown.wait(60)
    assert "Compiling: 00:00" in terminal.getvalue()
    assert not any(thread.name == "progress" for thread in threading.enumerate())


def test_what_is_counted_without_an_end_has_a_rate(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    now = 0.0
    monkeypatch.setattr(progress.time, "monotonic", lambda: now)
    with watched("Reading", unit="B") as advance:
        now = 2.0
        advance(5000)
    assert capsys.readouterr().err == "Reading: 5 kB at 2.5 kB/s\nReading: done, 5 kB in 2 s\n"


def test_saving_and_reading_a_checkpoint_and_a_sample_are_watched(
    place: Path, call: Call, monkeypatch: pytest.MonkeyPatch
) -> None:
    passes: list[tuple[str, int, list[int]]] = []

    @contextmanager
    def noted(what: str, total: int = 0, unit: str = "") -> Iterator[Callable[[int], None]]:
        passes.append((what, total, []))
        yield passes[-1][2].append

    monkeypatch.setattr(checkpoint, "BLOCK", 100)
    for module in (checkpoint, language):
        monkeypatch.setattr(module, "watched", noted)
    assert call("TRAIN", "trainer.sample_tokens=5", "hydra.run.dir=a").code == 0
    assert {"Saving a checkpoint", "Checking a checkpoint", "Reading a checkpoint", "Writing a sample"} <= {
        p[0] for p in passes
    }
    for what, total, done in passes:
        at_least, at_most = (total, total + 20_000) if what == "Saving a checkpoint" else (total, total)
        assert at_least <= sum(done) <= at_most, what
    assert max(max(done) for what, _, done in passes if what == "Saving a checkpoint") <= 100


def test_a_pass_that_fails_does_not_say_that_it_is_done(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(progress, "QUIET_SECONDS", 0.0)

    def fail() -> None:
        with watched("Reading", 0, "B") as advance:
            advance(0)
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fail()
    assert "done" not in capsys.readouterr().err


def test_amounts_are_short() -> None:
    assert [amount(n) for n in (0, 7, 1500, 2_500_000, 1.25e9)] == ["0 ", "7 ", "1.5 k", "2.5 M", "1.25 G"]


def test_every_long_pass_of_a_training_is_watched_from_its_beginning_to_its_end(
    place: Path, call: Call, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Hashing, tokenising, checking the ids, counting them, evaluating and the final test."""
    passes: list[tuple[str, int, list[int]]] = []

    @contextmanager
    def noted(what: str, total: int, unit: str) -> Iterator[Callable[[int], None]]:
        done: list[int] = []
        passes.append((what, total, done))
        yield done.append

    for module in (text, corpus, token_cache, language):
        monkeypatch.setattr(module, "watched", noted)
    assert call("TRAIN", "data.cache_dir=new", "trainer.evaluate_every=3", "hydra.run.dir=a").code == 0
    counts = Counter(what for what, _, _ in passes)
    assert {"Hashing and counting text.txt", "Tokenising text.txt",
            "Checking cached token ids", "Counting tokens"} <= counts.keys()  # fmt: skip
    assert counts["Evaluating"] == 5, "two in training, the final test, and the two simplest models beside it"
    for what, total, done in passes:
        assert sum(done) == total, what


def test_tiny_texts_say_nothing_of_it(place: Path, call: Call) -> None:
    ended = call("TRAIN", "data.cache_dir=new", "hydra.run.dir=a")
    assert not any(word in ended.out + ended.err for word in ("Hashing", "Tokenising", "Evaluating", "Counting", "Checking"))


def test_a_long_text_is_announced_before_it_is_read(place: Path, call: Call, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(text, "LONG_BYTES", 1000)
    ended = call("TRAIN", "hydra.run.dir=a")
    assert ended.out.startswith("Reading text.txt, 2.33 kB, once to hash and count it."), ended.out[:200]
