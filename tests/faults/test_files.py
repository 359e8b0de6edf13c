"""What is not ours is neither overwritten nor removed, what a process made goes with it, what is in the way ends no run."""

import itertools
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from lmtrain.data.cache import new_file
from lmtrain.errors import CheckpointError
from lmtrain.machine import RunningTime
from lmtrain.saved import load_trained
from lmtrain.training.checkpoint import find_checkpoint, load_checkpoint
from lmtrain.training.telemetry import Telemetry

Call = Callable[..., Any]
MISSING = ("TRAIN", "data.path=nosuch.txt")


def contents(directory: Path) -> dict[str, bytes | None]:
    return {
        str(path.relative_to(directory)): path.read_bytes() if path.is_file() and not path.is_symlink() else None
        for path in sorted(directory.rglob("*"))
    }


def fill(directory: Path, files: dict[str, str]) -> None:
    for name, text in files.items():
        (directory / name).parent.mkdir(parents=True, exist_ok=True)
        (directory / name).write_text(text)


# ---- where a run may begin, and what a refused one leaves

FOREIGN: dict[str, dict[str, str]] = {
    "settings": {"settings.json": '{"mine": 1}'},
    "a record": {"run.json": '{"mine": 1}'},
    "a log": {"lmtrain.log": "x"},
    "metrics": {"metrics.jsonl": "mine"},
    "files of another program of Hydra": {".hydra/hydra.yaml": "hydra: {job: {name: other}}", ".hydra/config.yaml": "a: 1"},
    "a damaged file of Hydra": {".hydra/hydra.yaml": "[" * 5000},
    "another's checkpoints": {"checkpoints/model.pt": "mine"},
    "a drawing": {"range_test.svg": "<svg/>"},
    "everything": {".hydra/notes": "precious", "settings.json": '{"mine":1}', "lmtrain.log": "x"},
    "settings beside what Hydra wrote for us": {".hydra/hydra.yaml": "hydra: {job: {name: lmtrain}}", "settings.json": "{}"},
}


@pytest.mark.parametrize(
    ("arguments", "files"),
    [pytest.param(("TRAIN",), files, id=f"good-{name}") for name, files in FOREIGN.items()]
    + [
        pytest.param(MISSING, files, id=f"refused-{name}", marks=[] if name in ("a log", "everything") else [pytest.mark.slow])
        for name, files in FOREIGN.items()
    ],
)
def test_a_directory_with_a_file_of_a_runs_name_that_no_run_wrote_is_refused_untouched(
    arguments: tuple[str, ...], files: dict[str, str], place: Path, call: Call
) -> None:
    fill(place / "mine", files)
    before = contents(place / "mine")
    ended = call(*arguments, "hydra.run.dir=mine")
    assert ended.code == 2
    assert "which no run wrote" in ended.err or "holds the checkpoints of another run" in ended.err
    assert contents(place / "mine") == before
    assert ended.err.count("\n") == 1


@pytest.mark.parametrize(
    "files",
    [{}, {".gitkeep": ""}, {"README.md": "mine", "notes/a.txt": "b"}, {"settings.json": "", ".hydra/notes": "precious"}],
    ids=["empty", ".gitkeep", "others", "nothing to lose"],
)
def test_a_run_begins_beside_files_of_other_names_and_a_refused_one_takes_only_its_own_away(
    files: dict[str, str], place: Path, call: Call
) -> None:
    (place / "mine").mkdir()
    fill(place / "mine", files)
    before = contents(place / "mine")
    assert call(*MISSING, "hydra.run.dir=mine").code == 3
    after = contents(place / "mine")
    assert after.keys() == before.keys()
    assert {name: after[name] for name in before if name != "settings.json"} == {
        name: before[name] for name in before if name != "settings.json"
    }
    assert call("TRAIN", "hydra.run.dir=mine").code == 0
    assert {name for name, text in before.items() if text} == {
        name for name, text in contents(place / "mine").items() if text and before.get(name) == text
    }
    assert {"hydra.yaml", "config.yaml", "overrides.yaml"} <= {path.name for path in (place / "mine" / ".hydra").iterdir()}


def test_the_working_directory_is_a_place_for_a_run(place: Path, call: Call) -> None:
    before = {path.name for path in place.iterdir()}
    assert call(*MISSING, "hydra.run.dir=.").code == 3
    assert {path.name for path in place.iterdir()} == before
    text = (place / "text.txt").read_bytes()
    assert call("TRAIN", "hydra.run.dir=.").code == 0
    assert (place / "text.txt").read_bytes() == text
    assert call("resume=.", "trainer.num_steps=7").code == 0


def test_a_new_directory_goes_with_the_run_that_was_refused(place: Path, call: Call) -> None:
    before = contents(place)
    for directory in ("new", "new/below", '"${now:%Y}_x"'):
        assert call(*MISSING, f"hydra.run.dir={directory}").code == 3
        assert contents(place).keys() == before.keys()
    (place / "there").mkdir()
    assert call(*MISSING, "hydra.run.dir=other/../there").code == 3
    assert (place / "there").is_dir()


def test_what_a_killed_process_left_before_its_first_checkpoint_is_no_hindrance(
    place: Path, call: Call, at_step: Callable[..., None]
) -> None:
    def interrupt(_: object) -> None:
        raise KeyboardInterrupt

    at_step({2: interrupt})
    assert call("TRAIN", "hydra.run.dir=cut").code == 130
    at_step({})
    fill(place / "cut", {"run.lock": '{"process": 1'})
    assert call("TRAIN", "hydra.run.dir=cut").code == 0


def test_a_foreign_file_is_met_before_hydra_writes_also_in_interpolated_directories(place: Path, call: Call) -> None:
    fill(place, {"lmtrain_6/settings.json": '{"mine": 1}'})
    before = contents(place / "lmtrain_6")
    ended = call("TRAIN", 'hydra.run.dir="${hydra:job.name}_${trainer.num_steps}"')
    assert (ended.code, "lmtrain_6 holds settings.json, which no run wrote." in ended.err) == (2, True)
    assert contents(place / "lmtrain_6") == before


def test_in_a_sweep_only_the_job_whose_place_is_taken_fails(place: Path, call: Call) -> None:
    fill(place / "sweep", {"1/.hydra/config.yaml": "mine", "1/.hydra/hydra.yaml": "a: 1", "notes.txt": "mine"})
    (place / "sweep" / "2").mkdir()
    before = contents(place / "sweep" / "1")
    ended = call("-m", "TRAIN", "trainer.batch_size=4,5,500", "hydra.sweep.dir=sweep")
    assert (ended.code, "2 of 3 jobs failed" in ended.err) in ((2, True), (3, True))
    assert contents(place / "sweep" / "1") == before
    assert (place / "sweep" / "0" / "checkpoints" / "best").exists()
    assert [*(place / "sweep" / "2").iterdir()] == [], "it was there before"
    assert (place / "sweep" / "notes.txt").read_text() == "mine"


def test_a_sweep_overwrites_no_list_of_another_program(place: Path, call: Call) -> None:
    fill(place / "sweep", {"multirun.yaml": "mine: 1"})
    ended = call("-m", "TRAIN", "trainer.batch_size=4,5", "hydra.sweep.dir=sweep")
    assert (ended.code, "holds a multirun.yaml, which no sweep of lmtrain wrote" in ended.err) == (2, True)
    assert contents(place / "sweep") == {"multirun.yaml": b"mine: 1"}
    (place / "sweep" / "multirun.yaml").unlink()
    for size in ("4,5", "6,7"):
        assert call("-m", "TRAIN", f"trainer.batch_size={size}", "hydra.sweep.dir=sweep", "hydra.sweep.subdir="
                    "'${trainer.batch_size}'").code == 0  # fmt: skip


def test_hydras_records_are_those_that_hydra_would_write(place: Path, call: Call) -> None:
    assert call("TRAIN", "hydra.run.dir=one").code == 0
    assert call("TRAIN", "hydra.run.dir=two", "hydra.output_subdir=.hydra").code == 0
    for name in ("config", "hydra", "overrides"):
        ours, theirs = ((place / run / ".hydra" / f"{name}.yaml").read_text() for run in ("one", "two"))
        theirs = re.sub(r"\btwo$", "one", theirs, flags=re.MULTILINE)
        given = {"    - hydra.output_subdir=.hydra", "  output_subdir: .hydra", "  output_subdir: null"}
        assert {*ours.splitlines()} ^ {*theirs.splitlines()} <= given
    assert call("TRAIN", "hydra.run.dir=three", "hydra.output_subdir=null").code == 0
    assert not (place / "three" / ".hydra").exists()


# ---- a directory that is removed while its run trains


def test_a_run_whose_directory_is_removed_saves_in_a_new_one_that_can_be_resumed(
    place: Path, call: Call, at_step: Callable[..., None]
) -> None:

    def remove(_: object) -> None:
        while Path("gone").exists():  # what writes for TensorBoard does so beside us
            shutil.rmtree("gone", ignore_errors=True)

    at_step({4: remove})
    ended = call("TRAIN", "trainer.log_every=1", "trainer.num_steps=8", "hydra.run.dir=gone")
    assert (ended.code, "was removed while its run trains; it is made again" in ended.out) == (0, True)
    assert [json.loads(line)["step"] for line in (place / "gone" / "metrics.jsonl").read_text().splitlines()][-1] == 8
    at_step({})
    assert call("resume=gone", "trainer.num_steps=9").code == 0


# ---- own files in the way or damaged


NAMES = ("metrics.jsonl", "lmtrain.log", "run.json", "tensorboard", "checkpoints/last")
KINDS = ("directory", "dangling link", "pipe", "file")
QUICK = [(name, KINDS[number % 4]) for number, name in enumerate(NAMES)] + [("metrics.jsonl", "pipe"), ("run.json", "file")]


@pytest.mark.parametrize(  # all of them, without a training: tests/training/test_run_directory.py
    ("name", "kind"),
    [*QUICK, *(pytest.param(*pair, marks=pytest.mark.slow) for pair in itertools.product(NAMES, KINDS) if pair not in QUICK)],
)
def test_nothing_that_stands_in_the_way_of_a_run_that_goes_on_prevents_it(
    name: str, kind: str, place: Path, call: Call
) -> None:
    path = place / "run" / name
    shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)
    {"directory": path.mkdir, "dangling link": lambda: path.symlink_to("/nowhere/at/all"), "file": path.touch,
     "pipe": lambda: os.mkfifo(path)}[kind]()  # fmt: skip
    ended = call("resume=run", "trainer.num_steps=8", "optimizer.learning_rate=0.001")
    assert (ended.code, "Traceback" in ended.err) == (0, False)


def test_a_record_of_any_bytes_prevents_no_training_and_loses_nothing(tmp_path: Path) -> None:
    good = b'{"step": 1, "train/tokens": 10}\n'
    for content in (
        b"[" * 100_000, b"\0" * 3000, b"\xff\xfe\n" * 9, b'{"step": "1"}\n', b'{"step": 1e999}\n', b"[]\n", b'{"step": true}\n',
        b'{"step": ' + b"1" * 5000 + b"}\n", b"{" * 2_000_000, b'{"step": 1, "a": [1]}\n', b"null\nnull\n", b'{"step": NaN}\n',
    ):  # fmt: skip
        path = tmp_path / "metrics.jsonl"
        path.write_bytes(good + content + b"\n" + good)
        with Telemetry(tmp_path, resume_step=1) as telemetry:
            telemetry.say("goes on")
        assert path.read_bytes() == good * 2
        (aside,) = tmp_path.glob("metrics-damaged-*.jsonl")
        assert aside.read_bytes() == good + content + b"\n" + good
        aside.unlink()


def test_a_torn_last_line_is_dropped_without_a_word(tmp_path: Path) -> None:
    (tmp_path / "metrics.jsonl").write_bytes(b'{"step": 1}\n{"step": 2, "tr')
    with Telemetry(tmp_path, resume_step=5):
        pass
    assert (tmp_path / "metrics.jsonl").read_bytes() == b'{"step": 1}\n'
    assert not [*tmp_path.glob("metrics-damaged-*")]


# ---- commands that are stopped

SLOW = """
import sys, time
import lmtrain.models.mixture, lmtrain.models.arpa
from lmtrain.__main__ import main
def wait(*_):
    print("working", flush=True)
    time.sleep(60)
lmtrain.models.mixture.fit_weights = wait
lmtrain.models.arpa._iter_lines = lambda *_: (text for text in [wait()])
main(sys.argv[1:])
"""


COMMANDS = {"mix": ["mix", "run", "run", "--output", "new/mixed"], "arpa": ["arpa", "counted", "--output", "model.arpa"]}
STOPS = itertools.product((signal.SIGINT, signal.SIGKILL, signal.SIGTERM, signal.SIGHUP), COMMANDS)


@pytest.mark.parametrize(
    ("number", "name"),
    [
        pytest.param(*stop, marks=[] if stop in ((signal.SIGINT, "mix"), (signal.SIGKILL, "arpa")) else [pytest.mark.slow])
        for stop in STOPS
    ],
)
def test_a_command_that_is_stopped_leaves_nothing_or_what_the_same_command_removes(
    number: signal.Signals, name: str, place: Path, call: Call
) -> None:
    command = COMMANDS[name]
    settings = ("model=ngram", "model.order=1", "model.state_policy=line", "tokenizer=word", "hydra.run.dir=counted")
    assert call("data=text", "data.path=text.txt", "trainer.sample_tokens=0", *settings).code == 0
    before = {path.name for path in place.iterdir()}
    process = subprocess.Popen([sys.executable, "-c", SLOW, *command], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
    assert process.stdout is not None
    while process.stdout.readline() != b"working\n":
        assert process.poll() is None
    (place / "model.arpa.1-0123abc.tmp").touch()
    process.send_signal(number)
    process.communicate()
    assert process.returncode == (-9 if number == signal.SIGKILL else 128 + number)
    left = {path.name for path in place.iterdir()} - before - {"model.arpa.1-0123abc.tmp"}
    assert bool(left) == (number == signal.SIGKILL)
    assert call(*command).code == 0
    product, _, mixed = command[-1].partition("/")
    assert {path.name for path in place.iterdir()} - before == {product, "model.arpa.1-0123abc.tmp"}
    assert not mixed or [path.name for path in (place / product).iterdir()] == [mixed]


# ---- a reader while training prunes


@pytest.mark.parametrize(
    ("pointer", "steps"), [("last", 60), *(pytest.param(name, 150, marks=pytest.mark.slow) for name in ("last", "best"))]
)
def test_a_reader_never_meets_the_pruner(pointer: Any, steps: int, place: Path, call: Call) -> None:
    ended: list[BaseException | None] = []
    num_read = 0

    def read() -> None:
        nonlocal num_read
        try:
            while not over.is_set():
                load_trained(place / "busy", prefer=pointer)
                num_read += 1
            ended.append(None)
        except BaseException as error:
            ended.append(error)

    over = threading.Event()
    assert call("TRAIN", "hydra.run.dir=busy", "trainer.num_steps=2", "trainer.save_every=1").code == 0
    reader = threading.Thread(target=read)
    reader.start()
    settings = (f"trainer.num_steps={steps}", "trainer.evaluate_every=2", "trainer.save_every=1", "trainer.keep=2")
    assert call("resume=busy", *settings).code == 0
    over.set()
    reader.join()
    assert ended == [None]
    assert num_read > 10


def test_a_checkpoint_that_was_removed_is_not_called_damaged(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from lmtrain.training import checkpoint

    chosen = checkpoint._chosen

    def remove_first(path: Path, *rest: Any) -> Any:
        shutil.rmtree(path)
        return chosen(path, *rest)

    found = checkpoint.find_checkpoint(place / "run", "last")
    monkeypatch.setattr(checkpoint, "_chosen", remove_first)
    with pytest.raises(CheckpointError, match=r"step-[\d-]+ was removed before it was read\. A run keeps"):
        load_trained(found)


# ---- time for which a process is stopped


STOPPED = """
import os, time
from lmtrain.machine import RunningTime
def work(seconds):
    until = time.process_time() + seconds
    while time.process_time() < until:
        pass
with RunningTime() as clock:
    work(0.3)
    first, wall = clock(), time.monotonic()
    print("working", flush=True)
    while time.monotonic() < wall + 2.5:
        work(0.01)
    print(clock() - first, time.monotonic() - wall, flush=True)
"""


def test_the_time_for_which_a_process_is_stopped_does_not_count() -> None:
    process = subprocess.Popen([sys.executable, "-c", STOPPED], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "working\n"
    process.send_signal(signal.SIGSTOP)
    time.sleep(3)
    process.send_signal(signal.SIGCONT)
    counted, wall = map(float, process.communicate()[0].split())
    assert wall > 2.9
    assert counted < 1.5


def test_time_that_is_waited_for_something_or_in_which_no_other_thread_gets_on_counts() -> None:
    with RunningTime() as clock:
        first, wall = clock(), time.monotonic()
        time.sleep(1.3)  # an evaluation, a disk
        sum(range(40_000_000))  # one call that keeps Python to itself
        assert clock() - first == pytest.approx(time.monotonic() - wall, abs=0.05)


@pytest.mark.slow
def test_a_run_that_is_suspended_trains_for_all_of_its_seconds(place: Path) -> None:
    settings = ["data=text", "data.path=text.txt", "model.hidden_size=8", "trainer.batch_size=2", "trainer.chunk_length=8",
                "trainer.num_threads=1", "trainer.num_steps=null", "trainer.max_seconds=4", "trainer.evaluate_every=100000",
                "trainer.log_every=1", "hydra.run.dir=stopped"]  # fmt: skip
    process = subprocess.Popen([sys.executable, "-m", "lmtrain", *settings], stdout=subprocess.DEVNULL)
    metrics = place / "stopped" / "metrics.jsonl"
    while not metrics.exists() or metrics.stat().st_size < 1000:
        assert process.poll() is None
        time.sleep(0.05)
    process.send_signal(signal.SIGSTOP)
    time.sleep(6)
    before = len(metrics.read_text().splitlines())
    process.send_signal(signal.SIGCONT)
    assert process.wait() == 0
    assert len(metrics.read_text().splitlines()) > 3 * before
    assert 4 <= load_checkpoint(find_checkpoint("stopped", "last")).documents["training"]["state"]["elapsed_seconds"] < 5


# ---- the cache of texts

WRITE = """
import sys, time
from pathlib import Path
from lmtrain.data.cache import new_file
with new_file(Path(sys.argv[1])) as file:
    file.write(b"x" * 100_000)
    file.flush()
    print("working", flush=True)
    time.sleep(60)
"""


def test_what_killed_builders_left_in_the_cache_goes_and_what_a_live_one_writes_stays(tmp_path: Path) -> None:
    foreign = ["notes.ids.12-0123abcd.tmp", f"{'0' * 32}.ids.12-0123abcd.tmp.old", f"{'0' * 32}.ids.x.tmp"]
    for name in foreign:
        (tmp_path / name).touch()
    builders = [
        subprocess.Popen([sys.executable, "-c", WRITE, str(tmp_path / f"{digit * 32}.ids")], stdout=subprocess.PIPE)
        for digit in "aaab"
    ]
    for builder in builders:
        assert builder.stdout is not None
        assert builder.stdout.readline() == b"working\n"
    killed, living = builders[:3], builders[3]
    for builder in killed:
        builder.kill()
        builder.communicate()
    assert len([*tmp_path.iterdir()]) == 4 + len(foreign)
    with new_file(tmp_path / f"{'c' * 32}.json") as file:
        file.write(b"{}")
    assert {path.name for path in tmp_path.iterdir()} == {
        *foreign, f"{'c' * 32}.json", next(path.name for path in tmp_path.glob(f"{'b' * 32}.ids.{living.pid}-*.tmp"))
    }  # fmt: skip
    living.send_signal(signal.SIGKILL)
    living.communicate()
