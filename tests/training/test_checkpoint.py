"""The checkpoint contract: whole or not there, checked before it is believed, the one before it always left."""

import dataclasses
import errno
import hashlib
import json
import logging
import os
import pickle
import shutil
import stat
import tracemalloc
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lmtrain.errors import CheckpointError, ResourceError
from lmtrain.files import durable
from lmtrain.training import checkpoint
from lmtrain.training.checkpoint import (
    NewerSchemaError,
    find_checkpoint,
    load_checkpoint,
    mark,
    newest_valid_checkpoint,
    prune,
    save_checkpoint,
    verify_checkpoint,
)

TENSORS = {"model": {"weight": torch.arange(6.0).reshape(2, 3)}, "training": {"state.0": torch.ones(2, 4)}}
DOCUMENTS = {"model": {"hidden_size": 3}, "tokenizer": {"texts": ["a", "ü", "\n"]}, "training": {"step": 7}}
FILES = ["manifest.json", "model.json", "model.safetensors", "tokenizer.json", "training.json", "training.safetensors"]


def save(run_dir, step, fill=0.0):
    return save_checkpoint(run_dir, step, {**TENSORS, "model": {"weight": torch.full((2, 3), fill)}}, DOCUMENTS)


def names(run_dir):
    return sorted(entry.name for entry in (run_dir / "checkpoints").iterdir())


def forge(path, **changes):
    """Makes the manifest agree with whatever the files hold now, as somebody with bad intentions would."""
    manifest = json.loads((path / "manifest.json").read_text())
    for name, entry in manifest["files"].items():
        if (path / name).is_file():
            data = (path / name).read_bytes()
            entry |= {"size_bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}
    manifest |= changes
    manifest["sha256"] = checkpoint._fingerprint(manifest)
    (path / "manifest.json").write_text(json.dumps(manifest))


# ---- saving and loading


def test_a_checkpoint_comes_back_as_it_was_saved(tmp_path):
    path = save_checkpoint(tmp_path, 7, TENSORS, DOCUMENTS)
    loaded = load_checkpoint(path)
    assert (loaded.path, loaded.step, loaded.documents) == (tmp_path / "checkpoints" / "step-00000007", 7, DOCUMENTS)
    assert loaded.tensors.keys() == TENSORS.keys()
    for name, members in TENSORS.items():
        assert all(torch.equal(loaded.tensors[name][key], tensor) for key, tensor in members.items())


def test_a_run_holds_the_checkpoint_and_last_and_nothing_else(tmp_path):
    path = save(tmp_path, 7)
    assert names(tmp_path) == ["last", "step-00000007"]
    assert sorted(entry.name for entry in path.iterdir()) == FILES
    assert (tmp_path / "checkpoints" / "last").read_text() == "step-00000007\n"


def test_only_the_named_files_are_read(tmp_path):
    path = save(tmp_path, 7)
    loaded = load_checkpoint(path, {"model", "tokenizer"})
    assert (loaded.tensors.keys(), loaded.documents.keys()) == ({"model"}, {"model", "tokenizer"})
    with pytest.raises(CheckpointError, match=r"has no counts\.json and no counts\.safetensors"):
        load_checkpoint(path, {"model", "counts"})


def test_file_modes_follow_the_umask(tmp_path):
    before = os.umask(0o027)
    try:
        path = save(tmp_path, 7)
    finally:
        os.umask(before)
    assert stat.S_IMODE(path.stat().st_mode) == 0o750
    modes = {entry.name: stat.S_IMODE(entry.stat().st_mode) for entry in [*path.iterdir(), path.parent / "last"]}
    assert modes == dict.fromkeys([*FILES, "last"], 0o640)


def test_every_file_and_directory_is_on_the_disk_before_the_rename_and_the_rename_before_last(tmp_path, monkeypatch):
    events = []

    def spy(name, describe):
        original = getattr(os, name)
        monkeypatch.setattr(os, name, lambda *given: (events.append(describe(*given)), original(*given))[1])

    spy(
        "fsync",
        lambda descriptor: (
            Path(os.readlink(f"/proc/self/fd/{descriptor}")).name.partition(".tmp-")[0].partition(f".{os.getpid()}-")[0]
        ),
    )
    spy("rename", lambda source, target: f"rename to {target.name}")
    spy("replace", lambda source, target: f"replace {target.name}")
    save(tmp_path, 7)
    written, rest = events[:-5], events[-5:]
    assert sorted(written[:-2]) == FILES[1:]
    assert written[-2:] == ["manifest.json", "step-00000007"]
    assert rest == ["rename to step-00000007", "checkpoints", "last", "replace last", "checkpoints"]


def test_equal_states_make_equal_checkpoints(tmp_path):
    one, other = (save(tmp_path / run, 7) for run in ("one", "other"))
    assert all((one / name).read_bytes() == (other / name).read_bytes() for name in FILES)


@pytest.mark.parametrize("name", ["../model", "Model", "", "manifest", "a/b"])
def test_a_file_name_that_would_not_be_read_back_is_not_written(tmp_path, name):
    with pytest.raises(AssertionError, match="would not be read back"):
        save_checkpoint(tmp_path, 7, {}, {name: {}})
    assert names(tmp_path) == []


def test_the_checkpoint_of_schema_1_loads_for_ever():
    path = Path(__file__).parent / "fixtures" / "schema-1" / "step-00000003"
    loaded = load_checkpoint(find_checkpoint(path))
    assert loaded.step == 3
    assert loaded.documents == {
        "model": {"kind": "recurrent", "hidden_size": 2, "sizes": [1, 2.5, None, True]},
        "tokenizer": {"name": "char", "texts": ["\n", "a", "ü", "日"]},
        "training": {"step": 3, "best_nats": None},
    }
    weights = loaded.tensors["model"]
    assert weights["float32"].tolist() == [[0.0, 1.0, 2.0], [3.0, 4.0, 5.0]]
    assert weights["bfloat16"].tolist() == [0.5, -2.0]
    assert weights["int64"].tolist() == [1, -(1 << 40)]
    assert weights["bool"].tolist() == [True, False]
    assert weights["empty"].shape == (0, 4)
    assert loaded.tensors["training"]["state.0"].tolist() == [[1.0, 1.0]]


def test_an_older_schema_is_brought_up_to_date_step_by_step(tmp_path, monkeypatch):
    path = save(tmp_path, 7)

    def rename_hidden_size(old):
        return dataclasses.replace(old, documents=old.documents | {"model": {"size": old.documents["model"]["hidden_size"]}})

    def double_size(old):
        return dataclasses.replace(old, documents=old.documents | {"model": {"size": 2 * old.documents["model"]["size"]}})

    monkeypatch.setattr(checkpoint, "SCHEMA", 3)
    monkeypatch.setattr(checkpoint, "MIGRATIONS", {1: rename_hidden_size, 2: double_size})
    assert load_checkpoint(path).documents["model"] == {"size": 6}


def test_a_newer_schema_is_refused_with_what_to_install(tmp_path):
    path = save(tmp_path, 7)
    forge(path, schema=2, lmtrain="9.1.0")
    with pytest.raises(NewerSchemaError, match=r'lmtrain 9\.1\.0, in schema 2.*up to 1.*pip install "lmtrain>=9\.1\.0"'):
        load_checkpoint(path)
    with pytest.raises(NewerSchemaError):  # not damage: an older one is not used in its place
        newest_valid_checkpoint(tmp_path)


# ---- damage


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("cut", ["0", "1", "10", "half", "all but 1", "junk"])
def test_a_truncated_or_prolonged_file_is_named(tmp_path, name, cut):
    path = save(tmp_path, 7)
    data = (path / name).read_bytes()
    keep = {"0": 0, "1": 1, "10": 10, "half": len(data) // 2, "all but 1": len(data) - 1, "junk": len(data)}[cut]
    (path / name).write_bytes(data[:keep] + b"junk" * (cut == "junk"))
    if (name, cut) == ("manifest.json", "all but 1"):  # only the last line end is gone
        assert verify_checkpoint(path).step == 7
        return
    with pytest.raises(CheckpointError, match=name) as caught:
        load_checkpoint(path)
    if name != "manifest.json":
        assert f"It has {keep + 4 * (cut == 'junk')} bytes, the manifest says {len(data)}." in str(caught.value)


@pytest.mark.parametrize("name", FILES)
def test_a_flipped_bit_anywhere_is_noticed_and_the_file_named(tmp_path, name):
    path = save(tmp_path, 7)
    data = (path / name).read_bytes()
    for place in range(0, len(data), 1 if name == "manifest.json" else 7):
        for bit in (place % 8, 7 - place % 8):
            changed = bytearray(data)
            changed[place] ^= 1 << bit
            (path / name).write_bytes(changed)
            with pytest.raises(CheckpointError, match=name):
                verify_checkpoint(path)


def test_a_flipped_bit_shows_both_hashes(tmp_path):
    path = save(tmp_path, 7)
    file = path / "model.safetensors"
    data = bytearray(file.read_bytes())
    expected = hashlib.sha256(data).hexdigest()
    data[-1] ^= 1
    file.write_bytes(data)
    with pytest.raises(CheckpointError, match=f"SHA-256 is {hashlib.sha256(data).hexdigest()}, the manifest says {expected}"):
        load_checkpoint(path)


@pytest.mark.parametrize("name", FILES)
def test_a_missing_file_is_named(tmp_path, name):
    path = save(tmp_path, 7)
    (path / name).unlink()
    with pytest.raises(CheckpointError, match=rf"{name} is damaged\. It is missing"):
        load_checkpoint(path, {"model"})


def test_a_file_too_many_is_named_but_what_file_systems_leave_is_not(tmp_path):
    path = save(tmp_path, 7)
    (path / ".nfs000001").write_bytes(b"")
    verify_checkpoint(path)
    (path / "model.bin").write_bytes(b"")
    with pytest.raises(CheckpointError, match=r"model\.bin is damaged\. The manifest does not know this file"):
        load_checkpoint(path)


@pytest.mark.parametrize("kind", ["directory", "pipe", "link to a device"])
def test_what_is_not_a_regular_file_is_never_opened(tmp_path, kind):
    path = save(tmp_path, 7)
    for file in (path / "model.json", path / "manifest.json"):
        file.unlink()
        {
            "directory": file.mkdir,
            "pipe": lambda file=file: os.mkfifo(file),  # opening it would wait for ever
            "link to a device": lambda file=file: file.symlink_to("/dev/zero"),  # reading it would never end
        }[kind]()
        with pytest.raises(CheckpointError, match=rf"{file.name} is damaged\. It is .*not a regular file"):
            load_checkpoint(path)


def test_a_file_that_cannot_be_read_is_a_checkpoint_error(tmp_path, monkeypatch):
    path = save(tmp_path, 7)

    def fail(*_):
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(checkpoint, "_sha256", fail)
    with pytest.raises(CheckpointError, match="Input/output error"):
        load_checkpoint(path)


# ---- malice


class Payload:
    """Unpickling this writes a file."""

    def __init__(self, canary):
        self.canary = canary

    def __reduce__(self):
        return Path.touch, (self.canary,)


@pytest.mark.parametrize("name", FILES)
def test_a_malicious_pickle_does_not_run(tmp_path, name):
    path, canary = save(tmp_path, 7), tmp_path / "canary"
    payload = pickle.dumps(Payload(canary))
    pickle.loads(payload)
    assert canary.exists(), "the payload works"
    canary.unlink()
    (path / name).write_bytes(payload)
    if name != "manifest.json":
        forge(path)
    with pytest.raises(CheckpointError, match=name):
        load_checkpoint(path)
    assert not canary.exists()


def test_a_saved_torch_archive_does_not_run_either(tmp_path):
    path, canary = save(tmp_path, 7), tmp_path / "canary"
    torch.save(Payload(canary), path / "model.safetensors")
    forge(path)
    with pytest.raises(CheckpointError, match=r"model\.safetensors"):
        load_checkpoint(path)
    assert not canary.exists()


@pytest.mark.parametrize(
    "name",
    ["../last", "../../secret.json", "/etc/passwd", "/etc/x.json", "a/b.json", "..", "model.json\n", "model.pkl", ".json",
     "C:\\x.json", "MODEL.json", "manifest.json", "model.json\0.json"],
)  # fmt: skip
def test_a_manifest_cannot_name_a_file_elsewhere(tmp_path, name):
    path = save(tmp_path, 7)
    (tmp_path / "secret.json").write_text("{}")
    record = {"size_bytes": 2, "sha256": hashlib.sha256(b"{}").hexdigest()}
    forge(path, files={name: record})
    with pytest.raises(CheckpointError, match=r"manifest\.json is damaged\. It speaks of"):
        load_checkpoint(path)


@pytest.mark.parametrize(
    "changes",
    [{"schema": 0}, {"schema": "1"}, {"schema": None}, {"files": []}, {"files": {"model.json": 3}},
     {"files": {"model.json": {"size_bytes": "2", "sha256": ""}}}],
)  # fmt: skip
def test_a_manifest_of_another_form_is_refused(tmp_path, changes):
    path = save(tmp_path, 7)
    forge(path, **changes)
    with pytest.raises(CheckpointError, match=r"manifest\.json is damaged"):
        load_checkpoint(path)


@pytest.mark.parametrize("value", [None, "7", True, 1.5, 7.0, -1, 2**62, int("9" * 4300)])
@pytest.mark.parametrize("name", ["step", "ordinal"])
def test_a_count_that_no_run_comes_to_is_refused_by_name(tmp_path, name, value):
    path = save(tmp_path, 7)
    forge(path, **{name: value})
    with pytest.raises(CheckpointError, match=rf"step-00000007/manifest\.json: {name} is .* from 0 to 9007199254740992"):
        load_checkpoint(path)


def test_a_header_that_asks_for_terabytes_is_refused_before_anything_is_allocated(tmp_path):
    path = save(tmp_path, 7)
    header = json.dumps({"weight": {"dtype": "F32", "shape": [1 << 40], "data_offsets": [0, 1 << 42]}}).encode()
    (path / "model.safetensors").write_bytes(len(header).to_bytes(8, "little") + header + bytes(64))
    forge(path)
    tracemalloc.start()
    with pytest.raises(CheckpointError, match=r"model\.safetensors .*not a safetensors file"):
        load_checkpoint(path)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 1 << 26


def test_a_file_of_terabytes_with_nothing_in_it_is_refused_before_it_is_read(tmp_path, monkeypatch):
    path = save(tmp_path, 7)
    os.truncate(path / "model.safetensors", 1 << 42)  # takes no space on the disk
    manifest = json.loads((path / "manifest.json").read_text())
    manifest["files"]["model.safetensors"]["size_bytes"] = 1 << 42
    (path / "manifest.json").write_text(json.dumps(manifest | {"sha256": checkpoint._fingerprint(manifest)}))
    monkeypatch.setattr(hashlib, "file_digest", lambda *_: pytest.fail("read"))
    with pytest.raises(CheckpointError, match=r"4398046511104 bytes, more than the .* of this machine's memory"):
        load_checkpoint(path)


@pytest.mark.parametrize("name", FILES)
def test_any_bytes_in_any_file_are_a_checkpoint_error_or_what_they_say(tmp_path_factory, name):
    path = save(tmp_path_factory.mktemp("run"), 7)
    manifest, original = (path / "manifest.json").read_bytes(), (path / name).read_bytes()

    @settings(max_examples=settings.default.max_examples // 2)  # two files each
    @given(st.binary(max_size=300), st.integers(0, len(original)), st.integers(0, 40))
    def check(junk, place, num_cut):
        for data in (junk, original[:place] + junk[:20] + original[place + num_cut :]):
            (path / "manifest.json").write_bytes(manifest)
            (path / name).write_bytes(data)
            if name != "manifest.json":
                forge(path)
            try:
                load_checkpoint(path)
            except CheckpointError as error:
                assert str(path) in str(error)  # noqa: PT017 (most bytes raise, not all)

    check()


# ---- saving that fails


def fail_at(monkeypatch, number, code):
    """Lets the `number`th of the calls that change the disk fail."""
    calls = iter(range(1 << 30))

    def failing(original):
        def call(*given, **named):
            if next(calls) == number:
                raise OSError(code, os.strerror(code))
            return original(*given, **named)

        return call

    for module, name in ((os, "fsync"), (os, "rename"), (os, "replace"), (os, "mkdir"), (durable, "open")):
        original = open if name == "open" else getattr(module, name)
        monkeypatch.setattr(module, name, failing(original), raising=False)


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT, errno.EIO])
def test_whichever_call_fails_the_checkpoint_before_is_left_and_nothing_half_done(tmp_path, monkeypatch, code):
    before = save(tmp_path, 1, fill=1.0)
    for number in range(1, 100):  # call 0 makes the directory of all checkpoints, which is there already
        with monkeypatch.context() as patch:
            fail_at(patch, number, code)
            try:
                after = save(tmp_path, 2, fill=2.0)
            except ResourceError as error:
                assert os.strerror(code) in str(error)  # noqa: PT017 (the last round raises nothing)
            else:
                break
        newest = newest_valid_checkpoint(tmp_path)  # the one before, or the new one where only `last` could not be moved
        assert load_checkpoint(newest).step in (1, 2)
        assert torch.equal(load_checkpoint(before).tensors["model"]["weight"], torch.full((2, 3), 1.0))
        assert not [name for name in names(tmp_path) if ".tmp" in name]
        if newest != before:
            shutil.rmtree(newest)
            mark(tmp_path, "last", before)
    assert number > 15, "all the calls were tried"
    assert newest_valid_checkpoint(tmp_path) == after


def test_a_file_that_does_not_read_back_as_it_was_written_never_becomes_a_checkpoint(tmp_path, monkeypatch):
    before = save(tmp_path, 1)

    def write_wrongly(path, pieces):
        record = durable.write_durably(path, pieces)
        if path.name == "model.safetensors":
            data = bytearray(path.read_bytes())
            data[-3] ^= 4
            path.write_bytes(data)
        return record

    monkeypatch.setattr(checkpoint, "write_durably", write_wrongly)
    with pytest.raises(ResourceError, match=r"did not read back as it was written: .*model\.safetensors"):
        save(tmp_path, 2)
    assert names(tmp_path) == ["last", before.name]


def test_an_interrupted_save_leaves_nothing_behind(tmp_path, monkeypatch):
    def interrupt(*_):
        raise KeyboardInterrupt

    save(tmp_path, 1)
    monkeypatch.setattr(checkpoint, "verify_checkpoint", interrupt)
    with pytest.raises(KeyboardInterrupt):
        save(tmp_path, 2)
    assert names(tmp_path) == ["last", "step-00000001"]


def test_a_full_disk_while_best_is_moved_is_a_resource_error_and_best_stays(tmp_path, monkeypatch):
    one, two = save(tmp_path, 1), save(tmp_path, 2)
    mark(tmp_path, "best", one)
    fail_at(monkeypatch, 1, errno.ENOSPC)
    with pytest.raises(ResourceError, match=r"best cannot be made to name step-00000002: .*No space left"):
        mark(tmp_path, "best", two)
    assert find_checkpoint(tmp_path, "best") == one


# ---- which are kept


def test_the_newest_and_the_best_are_kept(tmp_path):
    for step in (1, 2, 3, 4, 5):
        path = save(tmp_path, step)
        if step == 2:
            mark(tmp_path, "best", path)
        prune(tmp_path, keep=2)
    assert names(tmp_path) == ["best", "last", "step-00000002", "step-00000004", "step-00000005"]


def test_keeping_none_keeps_what_last_and_best_name(tmp_path):
    for step in (1, 2, 3):
        path = save(tmp_path, step)
        if step == 2:
            mark(tmp_path, "best", path)
    prune(tmp_path, keep=0)
    assert names(tmp_path) == ["best", "last", "step-00000002", "step-00000003"]


def test_a_step_saved_again_stands_beside_the_first_until_it_is_pruned(tmp_path):
    save(tmp_path, 1)
    first = save(tmp_path, 2, fill=1.0)
    second = save(tmp_path, 2, fill=2.0)
    assert (first.name, second.name) == ("step-00000002", "step-00000002-2")
    assert newest_valid_checkpoint(tmp_path) == find_checkpoint(tmp_path, "last") == second
    prune(tmp_path, keep=2)
    assert names(tmp_path) == ["last", "step-00000001", "step-00000002-2"]


def test_after_going_back_the_newest_is_the_one_saved_last_not_the_one_of_the_highest_step(tmp_path):
    for step in (10, 90, 100):
        save(tmp_path, step)
    again = save(tmp_path, 20)
    assert newest_valid_checkpoint(tmp_path) == again
    prune(tmp_path, keep=2)
    assert names(tmp_path) == ["last", "step-00000020", "step-00000100"]


def test_a_checkpoint_that_cannot_be_removed_is_a_warning_and_goes_the_next_time(tmp_path, monkeypatch, caplog):
    def fail(path, *_, **__):
        raise OSError(errno.EBUSY, "Device or resource busy")

    for step in (1, 2, 3):
        save(tmp_path, step)
    with monkeypatch.context() as patch, caplog.at_level(logging.WARNING, "lmtrain"):
        patch.setattr(shutil, "rmtree", fail)
        prune(tmp_path, keep=2)
    assert "resource busy" in caplog.text
    assert newest_valid_checkpoint(tmp_path).name == "step-00000003"
    assert len(names(tmp_path)) == 4
    prune(tmp_path, keep=2)
    assert names(tmp_path) == ["last", "step-00000002", "step-00000003"]


def test_a_checkpoint_that_cannot_be_renamed_for_removal_is_a_warning(tmp_path, monkeypatch, caplog):
    for step in (1, 2, 3):
        save(tmp_path, step)

    def fail(*_):
        raise OSError(errno.EROFS, "Read-only file system")

    monkeypatch.setattr(os, "rename", fail)
    with caplog.at_level(logging.WARNING, "lmtrain"):
        prune(tmp_path, keep=2)
    assert "Read-only file system" in caplog.text
    assert newest_valid_checkpoint(tmp_path).name == "step-00000003"


# ---- which is resumed from


def test_resuming_falls_back_to_the_newest_whole_checkpoint_and_says_so(tmp_path, caplog):
    paths = [save(tmp_path, step) for step in (1, 2, 3, 4)]
    (paths[3] / "manifest.json").write_bytes(b"")
    with open(paths[2] / "model.safetensors", "r+b") as file:
        file.truncate(20)
    with caplog.at_level(logging.WARNING, "lmtrain"):
        assert newest_valid_checkpoint(tmp_path) == paths[1]
    assert "step-00000004/manifest.json is damaged" in caplog.text
    assert "step-00000003/model.safetensors is damaged. It has 20 bytes" in caplog.text
    assert "Falling back" in caplog.text


def test_a_run_without_a_whole_checkpoint_says_how_many_are_damaged(tmp_path):
    for step in (1, 2):
        (save(tmp_path, step) / "model.json").write_bytes(b"{}")
    with pytest.raises(CheckpointError, match=r"Of the 2 checkpoints in .* none is whole"):
        newest_valid_checkpoint(tmp_path)


def test_without_last_the_newest_is_still_found(tmp_path):
    paths = [save(tmp_path, step) for step in (1, 2)]
    (tmp_path / "checkpoints" / "last").unlink()
    assert newest_valid_checkpoint(tmp_path) == find_checkpoint(tmp_path) == paths[1]


# ---- finding


def test_a_run_means_its_best_or_its_last(tmp_path):
    one, two = save(tmp_path, 1), save(tmp_path, 2)
    assert find_checkpoint(tmp_path) == two, "without a best, the last"
    mark(tmp_path, "best", one)
    assert find_checkpoint(tmp_path) == find_checkpoint(str(tmp_path), "best") == one
    assert find_checkpoint(tmp_path, "last") == two
    assert find_checkpoint(tmp_path / "checkpoints", "last") == two


def test_the_file_of_a_pointer_means_what_it_names(tmp_path):
    one, two = save(tmp_path, 1), save(tmp_path, 2)
    mark(tmp_path, "best", one)
    assert find_checkpoint(tmp_path / "checkpoints" / "best", "last") == one
    assert find_checkpoint(tmp_path / "checkpoints" / "last") == two
    shutil.rmtree(two)
    with pytest.raises(CheckpointError, match=r"last names step-00000002, which is not there"):
        find_checkpoint(tmp_path / "checkpoints" / "last")


def test_a_checkpoint_that_was_moved_elsewhere_means_itself(tmp_path):
    moved = tmp_path / "my model, the best=one"
    save(tmp_path / "run", 1).rename(moved)
    assert find_checkpoint(moved) == moved
    assert load_checkpoint(moved).step == 1


@pytest.mark.parametrize("text", ["../../elsewhere", "/etc", "", "step-1", "step-00000001\nx", "\0", "x" * 1000])
def test_a_pointer_that_names_no_checkpoint_directory_is_not_followed(tmp_path, text):
    path = save(tmp_path, 1)
    (tmp_path / "checkpoints" / "best").write_text(text)
    assert find_checkpoint(tmp_path, "best") == path
    with pytest.raises(CheckpointError, match=r"best is a file.*Give .*/checkpoints"):
        find_checkpoint(tmp_path / "checkpoints" / "best")


def test_a_pointer_to_what_has_gone_says_what_there_is(tmp_path):
    save(tmp_path, 1), save(tmp_path, 2)
    shutil.rmtree(tmp_path / "checkpoints" / "step-00000002")
    with pytest.raises(CheckpointError, match=r"names step-00000002, which is not there.*There is: last, step-00000001/"):
        find_checkpoint(tmp_path)


@pytest.mark.parametrize(
    ("given_path", "words"),
    [
        ("https://example.org/model", "an address on the network.*Download"),
        ("s3://bucket/model", "an address on the network"),
        ("{}/runs/nope", "does not exist.*runs holds one/, other/.*Give a run directory"),
        ("{}/runs/onee", "Did you mean .*/runs/one"),
        ("{}/nope/nope/nope", "does not exist"),
        ("{}/runs/one/checkpoints/step-00000001/model.safetensors", "is a file.*Give .*/step-00000001"),
        ("{}/file.txt", "is a file.*Give the directory that training wrote"),
        ("{}/runs", "holds no checkpoint.*There is: one/, other/.*Runs there: .*/runs/one"),
        ("{}/runs/other", "holds no checkpoint.*There is: notes.txt"),
        ("{}/empty", "holds no checkpoint.*There is: nothing"),
        ("{}/" + "n" * 300, "cannot be read: .*File name too long"),
    ],
)
def test_what_is_no_checkpoint_is_described(tmp_path, given_path, words):
    save(tmp_path / "runs" / "one", 1)
    (tmp_path / "runs" / "other").mkdir()
    (tmp_path / "runs" / "other" / "notes.txt").touch()
    (tmp_path / "empty").mkdir()
    (tmp_path / "file.txt").touch()
    with pytest.raises(CheckpointError, match=words):
        find_checkpoint(given_path.format(tmp_path))
