"""The cache of compiled libraries: whose code is run, what is believed, and what is waited for.

A real compiler makes a library of empty functions here, in a tenth of a second: what it computes does not matter.
"""

import fcntl
import hashlib
import itertools
import logging
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from lmtrain.ops import backends
from lmtrain.ops.backends import Call
from lmtrain.ops.native import build, cache
from lmtrain.ops.native.cache import Cache, UnusableCacheError

pytestmark = pytest.mark.skipif(shutil.which("g++") is None, reason="there is no g++")

STUBS = " ".join(f'extern "C" void {entry}() {{}}' for entry in build.ENTRIES)
COMPILER = f"""#!/bin/sh
for last in "$@"; do :; done
while [ "$1" != -o ]; do [ "$1" = -shared ] && link=yes; shift; done
if [ "$link" ]; then echo '{STUBS}' | g++ -shared -fPIC -x c++ - -o "$2"; else touch "$2"; fi
"""
NOBODY = 65534


@pytest.fixture
def folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """The cache's folder (not made yet) of a process that has loaded nothing, with the quick compiler."""
    monkeypatch.setenv("CXX", script(tmp_path / "compiler", COMPILER))
    monkeypatch.setenv("LMTRAIN_CACHE", str(tmp_path / "cache"))
    forget(monkeypatch)
    return tmp_path / "cache" / "native"


def script(path: Path, text: str) -> str:
    path.write_text(text)
    path.chmod(0o755)
    return str(path)


def forget(monkeypatch: pytest.MonkeyPatch) -> None:
    """As in a new process."""
    monkeypatch.setattr(build, "_libraries", {})
    monkeypatch.setattr(build, "_reasons", {})


def again(monkeypatch: pytest.MonkeyPatch) -> str | None:
    forget(monkeypatch)
    return build.why_no_library()


def reason_of(monkeypatch: pytest.MonkeyPatch) -> str:
    reason = again(monkeypatch)
    assert reason is not None
    assert "\n" not in reason
    return reason


def the(folder: Path, pattern: str) -> Path:
    (path,) = folder.glob(pattern)
    return path


def is_whole(folder: Path) -> bool:
    """Whether there is one library, beside it its hash, and nothing that a build leaves."""
    library = the(folder, "*.so")
    return (
        library.with_suffix(".sha256").read_text() == hashlib.sha256(library.read_bytes()).hexdigest()
        and len(list(folder.iterdir())) == 3
    )


def give_to_another_user(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if os.geteuid() == 0:
        os.chown(path, NOBODY, NOBODY, follow_symlinks=False)
    else:
        own = os.geteuid()
        monkeypatch.setattr(os, "geteuid", lambda: own + 1)


def planted(path: Path, marker: Path) -> None:
    """A library that says in a file that its code has run."""
    code = f'#include <cstdio>\n{STUBS} __attribute__((constructor)) void run() {{ fopen("{marker}", "w"); }}'
    subprocess.run(["g++", "-shared", "-fPIC", "-x", "c++", "-", "-o", path], input=code, text=True, check=True)
    path.with_suffix(".sha256").write_text(hashlib.sha256(path.read_bytes()).hexdigest())


# --- whose code is run ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("how", ["of another user", "group", "others", "link", "other hash", "no hash", "link to hash"])
def test_a_planted_library_never_runs(how: str, folder: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    folder.mkdir(parents=True)
    path, marker = folder / f"{build._key('native')}.so", tmp_path / "it ran"
    planted(path, marker)
    if how == "of another user":
        give_to_another_user(path, monkeypatch)
        folder.chmod(0o755)
    elif how in ("group", "others"):
        path.chmod({"group": 0o775, "others": 0o757}[how])
    elif how == "other hash":
        path.with_suffix(".sha256").write_text("0" * 64)
    elif how == "no hash":
        path.with_suffix(".sha256").unlink()
    else:
        file = path if how == "link" else path.with_suffix(".sha256")
        file.rename(tmp_path / "elsewhere")
        file.symlink_to(tmp_path / "elsewhere")
    reason = again(monkeypatch)
    assert not marker.exists()
    assert reason is None or "belongs to another user" in reason  # without root it is the folder, too, that is another's
    assert reason or is_whole(folder)


def test_a_library_that_only_root_and_i_can_write_runs(folder: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    folder.mkdir(parents=True)
    planted(folder / f"{build._key('native')}.so", tmp_path / "it ran")
    assert again(monkeypatch) is None
    assert (tmp_path / "it ran").exists()  # so the test above could fail


@pytest.mark.parametrize(("mode", "word"), [(0o777, "writable by others"), (0o1777, "writable by others")])
def test_a_folder_that_everybody_can_write_is_refused(
    mode: int, word: str, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder.mkdir(parents=True)
    folder.chmod(mode)
    reason = reason_of(monkeypatch)
    assert word in reason
    assert "set LMTRAIN_CACHE to another folder" in reason
    assert not any(folder.iterdir())


def test_a_refusal_is_said_once_whatever_is_computed(
    folder: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(backends, "_told", set())
    folder.mkdir(parents=True)
    folder.chmod(0o777)
    with caplog.at_level(logging.INFO, "lmtrain"):
        for function in ("lstm", "linear_cross_entropy", "lstm"):
            assert backends.choose("auto", Call(function, "cpu", torch.float32, {})) == "eager"
    assert sum("writable by others" in message for message in caplog.messages) == 1
    assert [record.levelname for record in caplog.records] == ["WARNING", "INFO", "INFO"]


def test_a_folder_of_another_user_is_refused(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder.mkdir(parents=True)
    give_to_another_user(folder, monkeypatch)
    assert f"{folder} belongs to another user (uid " in reason_of(monkeypatch)


def test_a_folder_of_mine_that_my_group_can_write_is_made_mine_alone(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder.mkdir(parents=True)
    folder.chmod(0o775)  # as a umask of 002 leaves it
    assert again(monkeypatch) is None
    assert folder.stat().st_mode & 0o777 == 0o755


def test_a_link_in_place_of_the_folder_is_refused_and_one_above_it_is_followed(
    folder: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "elsewhere").mkdir()
    folder.parent.symlink_to("elsewhere")
    assert again(monkeypatch) is None
    shutil.rmtree(folder)
    (tmp_path / "third").mkdir()
    folder.symlink_to(tmp_path / "third")
    assert "cannot be used (it is a link)" in reason_of(monkeypatch)
    assert not any((tmp_path / "third").iterdir())


@pytest.mark.parametrize("umask", [0o000, 0o022, 0o002, 0o077])
def test_whatever_the_umask_nobody_else_can_write(umask: int, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = os.umask(umask)
    try:
        assert again(monkeypatch) is None
    finally:
        os.umask(before)
    made = [folder.parent, folder, *folder.iterdir()]
    assert [path for path in made if path.stat().st_mode & 0o022] == []
    assert is_whole(folder)


@pytest.mark.parametrize("kind", ["link", "dangling link", "folder", "pipe", "of another user"])
def test_a_lock_that_is_no_file_of_mine_is_neither_followed_nor_written(
    kind: str, folder: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    folder.mkdir(parents=True)
    lock, victim = folder / cache.LOCK, tmp_path / "victim.txt"
    if kind != "dangling link":
        victim.write_text("precious")
    if kind == "folder":
        lock.mkdir()
    elif kind == "pipe":
        os.mkfifo(lock)
    elif kind == "of another user":
        lock.write_text("")
        give_to_another_user(lock, monkeypatch)
    else:
        lock.symlink_to(victim)
    reason = reason_of(monkeypatch)
    assert f"{lock} is not a file that you alone can write; remove it" in reason or "another user" in reason
    assert not victim.exists() if kind == "dangling link" else victim.read_text() == "precious"
    assert not list(folder.glob("*.so"))


def test_a_folder_that_is_swapped_after_it_was_opened_changes_nothing(tmp_path: Path) -> None:
    opened = Cache(tmp_path / "cache")
    with opened.temporary_folder() as name:
        Path(opened.way_to(name), "native.so").write_bytes(b"mine")
        (tmp_path / "cache").rename(tmp_path / "moved")
        (tmp_path / "cache").mkdir()
        opened.store("key", f"{name}/native.so")
    assert opened.has("key")
    opened.close()
    assert not any((tmp_path / "cache").iterdir())
    assert {path.name for path in (tmp_path / "moved").iterdir()} == {"key.so", "key.sha256"}


# --- what is believed -----------------------------------------------------------------------------------------------


def rewrite(path: Path, content: bytes) -> None:
    """Under the same name, in another file: in place, it would be cut off under the process that has loaded it."""
    mode = path.stat().st_mode
    path.unlink()
    path.write_bytes(content)
    path.chmod(mode)


def cut(path: Path) -> None:
    rewrite(path, path.read_bytes()[: path.stat().st_size // 2])


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 3] ^= 1
    rewrite(path, content)


def link(path: Path) -> None:
    path.rename(path.with_suffix(".moved"))
    path.symlink_to(path.with_suffix(".moved"))


def pipe(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


def other_library(path: Path) -> None:
    """One that loads and has none of our functions."""
    subprocess.run(["g++", "-shared", "-fPIC", "-x", "c++", "-", "-o", path], input="int other;", text=True, check=True)


CHANGES: dict[str, Callable[[Path], object]] = {
    "nothing": lambda path: None, "absent": Path.unlink, "empty": lambda path: rewrite(path, b""), "cut": cut, "flip": flip,
    "rubbish": lambda path: rewrite(path, os.urandom(99)), "link": link, "pipe": pipe, "other library": other_library,
    "writable by the group": lambda path: path.chmod(0o664), "writable by others": lambda path: path.chmod(0o646),
    "longer": lambda path: rewrite(path, path.read_bytes() + b"\0"),
}  # fmt: skip
DOUBLE = [*itertools.product(CHANGES, CHANGES)]
SINGLE = [pair for pair in DOUBLE if "nothing" in pair]


@pytest.mark.parametrize(
    ("of_library", "of_hash"), [pytest.param(*p, marks=() if p in SINGLE else pytest.mark.slow) for p in DOUBLE]
)
def test_whatever_becomes_of_the_files_it_is_the_stored_library_that_is_loaded_or_a_new_one(
    of_library: str, of_hash: str, folder: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    assert again(monkeypatch) is None
    stored = the(folder, "*.so")
    content = stored.read_bytes()
    CHANGES[of_library](stored)
    CHANGES[of_hash](stored.with_suffix(".sha256"))
    caplog.clear()
    with caplog.at_level(logging.INFO, "lmtrain"):
        assert again(monkeypatch) is None
    is_as_it_was = (of_library, of_hash) == ("nothing", "nothing")
    assert any("compiling" in message for message in caplog.messages) is not is_as_it_was
    for file in folder.glob("*.moved"):
        file.unlink()
    assert is_whole(folder)
    assert stored.read_bytes() == content


def test_a_library_that_does_not_load_is_built_again_by_itself(
    folder: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """As one that was made for a newer C library: what is stored is whole, and of no use."""
    assert again(monkeypatch) is None
    library = the(folder, "*.so")
    for change in (lambda: rewrite(library, b"no library"), lambda: other_library(library)):
        change()
        library.with_suffix(".sha256").write_text(hashlib.sha256(library.read_bytes()).hexdigest())
        caplog.clear()
        with caplog.at_level(logging.INFO, "lmtrain"):
            assert again(monkeypatch) is None
        assert "does not load, and is built again" in caplog.messages[0]
        assert is_whole(folder)


BAD_COMPILERS = {
    "rubbish": 'for out in "$@"; do :; done; for word; do [ "$before" = -o ] && echo rubbish > "$word"; before=$word; done',
    "nothing": "exit 0",
    "half": COMPILER.replace("#!/bin/sh", "") + 'if [ "$link" ]; then head -c 9000 "$2" > half; mv half "$2"; fi',
    "others": COMPILER.replace("#!/bin/sh", "").replace("lmtrain_step", "some_function"),
    "crashing": COMPILER.replace("#!/bin/sh", "").replace(
        STUBS, STUBS + " __attribute__((constructor)) void run() { __builtin_trap(); }"
    ),
}


@pytest.mark.parametrize("kind", BAD_COMPILERS)
def test_a_bad_compile_is_refused_and_does_not_stay(
    kind: str, folder: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    script(tmp_path / "compiler", f"#!/bin/sh\n{BAD_COMPILERS[kind]}\n")
    reason = reason_of(monkeypatch)
    assert str(tmp_path / "compiler") in reason
    assert [path.name for path in folder.iterdir()] == [cache.LOCK]
    script(tmp_path / "compiler", COMPILER)
    assert again(monkeypatch) is None
    assert is_whole(folder)


def test_the_library_and_its_hash_are_on_disk_before_they_get_their_names(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    done: list[str] = []
    replace = os.replace
    monkeypatch.setattr(os, "fsync", lambda descriptor: done.append(Path(os.readlink(f"/proc/self/fd/{descriptor}")).name))
    monkeypatch.setattr(os, "replace", lambda a, b, **rest: (done.append(b.rpartition(".")[2]), replace(a, b, **rest)))
    assert again(monkeypatch) is None
    assert done == ["native.so", "native.so.sha256", "sha256", "so", "native"]


def test_what_killed_builds_left_is_removed_and_nothing_else(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("tmpabc_1234", "tmpzzzzzzzz", "tmp-of-mine", "other"):
        (folder / name).mkdir(parents=True)
        (folder / name / "native.so").write_text("half")
    assert again(monkeypatch) is None
    assert {path.name for path in folder.iterdir() if path.is_dir()} == {"tmp-of-mine", "other"}


# --- what is waited for ---------------------------------------------------------------------------------------------


@pytest.fixture
def held(folder: Path) -> Iterator[int]:
    folder.mkdir(parents=True)
    with (folder / cache.LOCK).open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield lock.fileno()


def test_a_lock_that_another_holds_is_waited_for_with_patience_and_a_line(
    held: int, folder: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(cache, "PATIENCE_SECONDS", 1.2)
    reason = reason_of(monkeypatch)
    assert f"another process has held {folder / cache.LOCK} for 1 s; end it, or remove that file" in reason
    waiting, out_of_use = caplog.messages
    assert waiting == f"waiting for another process that compiles the native backend ({folder / cache.LOCK}; at most 1 s)"
    assert out_of_use == f"The native backend is not used: {reason}."
    fcntl.flock(held, fcntl.LOCK_UN)
    assert again(monkeypatch) is None


def test_a_library_that_is_there_needs_no_lock(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert again(monkeypatch) is None
    with (folder / cache.LOCK).open() as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        assert again(monkeypatch) is None


def test_a_file_system_without_locks_is_built_on_all_the_same(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(descriptor: int, operation: int) -> None:
        raise OSError(95, "Operation not supported")

    monkeypatch.setattr(fcntl, "flock", refuse)
    (folder / "tmpabcd1234").mkdir(parents=True)  # it may be in use
    assert again(monkeypatch) is None
    assert (folder / "tmpabcd1234").is_dir()


def test_a_compiler_that_never_ends_is_ended_with_all_it_started(
    folder: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, tmp_path: Path
) -> None:
    script(tmp_path / "compiler", f"#!/bin/sh\nsleep 300 &\necho $! >> {tmp_path}/pids\nsleep 300\n")
    monkeypatch.setattr(build, "BUILD_SECONDS", 1.0)
    monkeypatch.setattr(build, "ANNOUNCED_SECONDS", 0.2)
    started_at = time.monotonic()
    reason = reason_of(monkeypatch)
    assert time.monotonic() - started_at < 10
    assert "had not compiled the native backend after 1 s and was ended" in reason
    assert "has not ended yet; it is given 1 s in all" in caplog.text
    assert [path.name for path in folder.iterdir()] == [cache.LOCK]
    pids = (tmp_path / "pids").read_text().split()
    assert len(pids) == len([*build.FOLDER.glob("*.cpp")])
    until = time.monotonic() + 10
    while any(is_running(pid) for pid in pids) and time.monotonic() < until:
        time.sleep(0.02)
    assert [pid for pid in pids if is_running(pid)] == []


def is_running(pid: str) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except OSError:
        return False


def test_a_build_that_is_interrupted_leaves_no_compiler_and_no_folder(
    folder: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    script(tmp_path / "compiler", f"#!/bin/sh\necho $$ >> {tmp_path}/pids\nexec sleep 300\n")
    started: list[subprocess.Popen[bytes]] = []

    def interrupt(process: subprocess.Popen[bytes], *rest: object) -> None:
        started.append(process)
        raise KeyboardInterrupt

    monkeypatch.setattr(build, "_wait", interrupt)
    with pytest.raises(KeyboardInterrupt):
        again(monkeypatch)
    assert started[0].returncode == -9
    assert [path.name for path in folder.iterdir()] == [cache.LOCK]


@pytest.mark.parametrize(
    ("said", "free", "cause"),
    [
        ("In file included\na.h:1: fatal error: no such thing\nmore", 9, "a.h:1: fatal error: no such thing"),
        ("\n cannot execute cc1plus\n", 9, " cannot execute cc1plus"),
        ("", 9, "it ended with 3"),
        ("", 0, "the disk of the cache folder is full"),
    ],
)
def test_what_a_compiler_says_is_quoted(
    said: str, free: int, cause: str, folder: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    script(tmp_path / "compiler", f"#!/bin/sh\nprintf '{said}' >&2\nexit 3\n")
    monkeypatch.setattr(os, "statvfs", lambda path: SimpleNamespace(f_bavail=free, f_frsize=1 << 20))
    assert reason_of(monkeypatch) == f"{tmp_path / 'compiler'} cannot compile the native backend: {cause}"


# --- causes, said by their names --------------------------------------------------------------------------------------


def test_a_file_system_that_runs_no_code_is_named_before_anything_is_compiled(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Cache, "runs_code", lambda self: False)
    reason = reason_of(monkeypatch)
    assert "runs no code (mounted noexec); set LMTRAIN_CACHE to another folder" in reason
    assert not any(folder.iterdir())


def test_noexec_is_read_from_the_file_system(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    opened = Cache(tmp_path)
    for flags, runs in ((0, True), (os.ST_NOEXEC | os.ST_RDONLY, False), (os.ST_NOSUID, True)):
        monkeypatch.setattr(os, "fstatvfs", lambda descriptor, flags=flags: SimpleNamespace(f_flag=flags))
        assert opened.runs_code() is runs
    opened.close()


def test_cxx_may_have_arguments_and_blanks(folder: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    compiler = script(tmp_path / "with blanks", f'#!/bin/sh\necho "$@" > {tmp_path}/arguments\nexec {tmp_path}/compiler "$@"\n')
    for command in (f'"{compiler}" -O1 -DNAME="a b"', compiler):
        monkeypatch.setenv("CXX", command)
        assert again(monkeypatch) is None
        assert (tmp_path / "arguments").read_text().startswith("-O1 -DNAME=a b -std" if command != compiler else "-std")
    assert len(list(folder.glob("*.so"))) == 2  # what was compiled otherwise is another library


@pytest.mark.parametrize(
    ("command", "words"),
    [
        ("no-such-compiler -O1", "CXX=no-such-compiler -O1 names no program on PATH; set CXX to a C++ compiler, or unset it"),
        ("g++ 'x", "CXX=g++ 'x cannot be read as a command (No closing quotation)"),
        ("  ", "CXX=   names no program on PATH"),
        ("/", "CXX=/ names no program"),
        ("FILE", "cannot be started (Exec format error)"),
    ],
)  # fmt: skip
def test_what_is_wrong_with_cxx_is_said(
    command: str, words: str, folder: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("CXX", command.replace("FILE", script(tmp_path / "no program", "\0")))
    assert words in reason_of(monkeypatch)


def test_g_plus_plus_and_no_cxx_are_the_same_compiler(monkeypatch: pytest.MonkeyPatch) -> None:
    keys = set()
    for command in ("g++", "", None):
        monkeypatch.setenv("CXX", command) if command is not None else monkeypatch.delenv("CXX")
        keys.add(build._key("portable"))
    assert len(keys) == 1


@pytest.mark.parametrize("value", [None, "~", "~/x", "~nobody-of-that-name/x"])
def test_without_a_home_the_reason_says_so(value: str | None, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import pwd

    monkeypatch.setattr(pwd, "getpwuid", {}.__getitem__)
    for name in ("HOME", "XDG_CACHE_HOME", "LMTRAIN_CACHE"):
        monkeypatch.delenv(name, raising=False)
    if value is not None:
        monkeypatch.setenv("LMTRAIN_CACHE", value)
    start = "you have" if value is None else f"LMTRAIN_CACHE={value} names"
    assert reason_of(monkeypatch) == f"{start} no home directory; set LMTRAIN_CACHE to a folder for what is compiled"


def test_a_tilde_in_lmtrain_cache_is_the_home(folder: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("LMTRAIN_CACHE", "~/compiled")
    assert again(monkeypatch) is None
    assert is_whole(tmp_path / "home" / "compiled" / "native")


def test_root_makes_nothing_in_the_home_of_another_user(folder: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    home = tmp_path / "home"
    home.mkdir()
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    if os.getuid() == 0:
        os.chown(home, NOBODY, NOBODY)
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.delenv("LMTRAIN_CACHE")
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    assert f"you are root, and {home} belongs to another user (uid {home.stat().st_uid})" in reason_of(monkeypatch)
    assert not any(home.iterdir())


def test_a_machine_without_proc_says_so(folder: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(build, "PROC", tmp_path / "none")
    assert reason_of(monkeypatch).startswith(f"there is no {tmp_path}/none, ")


def test_a_relative_cache_is_taken_from_where_one_is(folder: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("LMTRAIN_CACHE", "here")
    assert again(monkeypatch) is None
    assert is_whole(tmp_path / "here" / "native")


@pytest.mark.parametrize(
    ("place", "cause"), [("FILE", "Not a directory"), ("/proc/none", ""), ("L" * 300, "File name too long"), ("\udce4\n", None)]
)
def test_a_cache_that_cannot_be_made_is_named(
    place: str, cause: str | None, folder: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("LMTRAIN_CACHE", place.replace("FILE", str(tmp_path / "file")))
    if cause is None:  # a name of any bytes is a name
        assert again(monkeypatch) is None
        return
    reason = reason_of(monkeypatch)
    assert f"cannot be used ({cause}" in reason
    assert "set LMTRAIN_CACHE to another folder" in reason


def test_the_compiler_neither_writes_on_our_output_nor_reads_our_input(folder: Path, tmp_path: Path) -> None:
    script(tmp_path / "compiler", COMPILER.replace("#!/bin/sh", "#!/bin/sh\necho chatter; cat > /dev/null"))
    code = "from lmtrain.ops.native import build; print(build.why_no_library())"
    environment = {**os.environ, "CXX": str(tmp_path / "compiler"), "LMTRAIN_CACHE": str(tmp_path / "cache")}
    ended = subprocess.run(
        [sys.executable, "-c", code], input="our input", env=environment, capture_output=True, text=True, timeout=60, check=True
    )
    assert ended.stdout == "None\n"


def test_a_folder_is_closed_again_where_it_is_refused(tmp_path: Path) -> None:
    tmp_path.chmod(0o777)
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(3):
        with pytest.raises(UnusableCacheError):
            Cache(tmp_path)
    assert len(os.listdir("/proc/self/fd")) == before


def test_an_empty_home_is_no_root_directory(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import pwd

    monkeypatch.setattr(pwd, "getpwuid", {}.__getitem__)
    monkeypatch.setenv("HOME", "")
    monkeypatch.setenv("XDG_CACHE_HOME", "")
    monkeypatch.setenv("LMTRAIN_CACHE", "")
    assert reason_of(monkeypatch) == "you have no home directory; set LMTRAIN_CACHE to a folder for what is compiled"
