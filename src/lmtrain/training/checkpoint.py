"""Checkpoints. Each is a directory that is complete or does not exist, and it is checked byte for byte before it is used.

    RUN/checkpoints/step-00000100/   manifest.json  model.safetensors  model.json  ...   complete by construction
                    last  best       files that name a checkpoint each, replaced atomically

Saving writes every file into `step-00000100.tmp-<process id>-<random>` beside the target and flushes it to the disk. The
last one is `manifest.json`, with the size and SHA-256 of every file. Then all is read back, the directory is renamed, and
`last` is moved. Older checkpoints are removed afterwards (`prune`), so a kill, a full disk or a power cut leaves one.
A step that is saved again gets a name of its own (`step-00000100-2`): nothing is removed before its successor exists.

Loading checks first and reads second. Tensors are in safetensors files, all else in JSON: nothing in a checkpoint is
code or names code, and no size in it is used before a file of that size was found. Neither format notices a flipped bit,
hence the hashes. Hashes tell damage, not malice: whoever can write a checkpoint can write its manifest.
"""

from __future__ import annotations

import dataclasses
import difflib
import hashlib
import json
import logging
import os
import platform
import re
import shutil
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from io import BufferedReader
from pathlib import Path
from typing import Any, Literal, TypeVar

import torch
from torch import Tensor

from lmtrain import __version__
from lmtrain.errors import CheckpointError, ResourceError, UnfitError, UserError, current_directory, is_out_of_memory
from lmtrain.expected import Whole, compare, within
from lmtrain.files.durable import (
    FileRecord,
    sync_directory,
    temporary_path,
    write_durably,
)
from lmtrain.files.strict_json import MAX_BYTES, parse_json, to_json
from lmtrain.files.tensors import iter_pieces, read_tensors
from lmtrain.files.unfinished import write_atomically
from lmtrain.machine import memory_bytes
from lmtrain.progress import Advance, watched
from lmtrain.shell import one_line
from lmtrain.training.left_over import remove_temporaries

log = logging.getLogger("lmtrain")

SCHEMA = 1
DIRECTORY = re.compile(r"step-(\d{8,18})(-\d{1,9})?")
VERSION = re.compile(r"[0-9][0-9a-z.+]{0,19}")  # as it may be typed into a shell
FILE = re.compile(r"([a-z][a-z0-9_]{0,63})\.(safetensors|json)")
Pointer = Literal["last", "best"]
BLOCK = 1 << 24  # bytes between two looks at how far it is
MAX_MOVES = 100  # of a pointer, while what it names is being opened
T = TypeVar("T")


@dataclass(frozen=True)
class Checkpoint:
    """Holds what was saved: `tensors["model"]["embedding.weight"]`, `documents["training"]["epoch"]`."""

    path: Path
    step: int
    tensors: dict[str, dict[str, Tensor]]
    documents: dict[str, Any]


@dataclass(frozen=True)
class Manifest:
    """Lists the files of a checkpoint. `ordinal` counts the saves of a run: the highest is the newest, whatever its step."""

    step: int
    ordinal: int
    files: dict[str, FileRecord]


class NewerSchemaError(CheckpointError):
    """Is raised for a checkpoint that a newer lmtrain wrote; nothing is wrong with it."""


class RemovedError(CheckpointError):
    """Is raised for a checkpoint that was found, and that the run which trains has removed since."""


Migration = Callable[[Checkpoint], Checkpoint]
MIGRATIONS: dict[int, Migration] = {}
"""`MIGRATIONS[n]` is a pure function from what schema n holds to what schema n + 1 holds."""


# ---- saving


def save_checkpoint(
    run_dir: Path, step: int, tensors: Mapping[str, Mapping[str, Tensor]], documents: Mapping[str, Any]
) -> Path:
    """Saves `tensors` as `<name>.safetensors` and `documents` as `<name>.json`, makes it `last`, returns its directory.

    Raises ResourceError, with the system's words, if it cannot be written or does not read back as written. Then only the
    unfinished directory is removed, and every earlier checkpoint stays as it was.
    """
    folder = run_dir / "checkpoints"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        ordinal = 1 + max((manifest.ordinal for _, manifest in _newest_first(run_dir)[0]), default=0)
        temporary = temporary_path(folder / f"step-{step:08d}")
        try:
            size = sum(tensor.nbytes for members in tensors.values() for tensor in members.values())
            with watched("Saving a checkpoint", size, "B") as advance:
                _write(temporary, step, ordinal, tensors, documents, advance)
            verify_checkpoint(temporary)
            target = _free_name(folder, step)
            os.rename(temporary, target)
        except BaseException:
            shutil.rmtree(temporary, ignore_errors=True)  # the next start removes what is left of it
            raise
        sync_directory(folder)
        mark(run_dir, "last", target)
    except OSError as error:
        raise ResourceError(
            f"The checkpoint of step {step} cannot be saved in {folder}: {error}.",
            "The checkpoints before it are as they were.",
            "Free some space there, or see that the disk is in order and writable.",
        ) from error
    except NewerSchemaError:
        raise
    except CheckpointError as error:
        raise ResourceError(
            f"The checkpoint of step {step} did not read back as it was written: {error.given} {error.allowed}",
            "The checkpoints before it are as they were.",
            "Check the disk and the memory of this machine.",
        ) from error
    return target


def mark(run_dir: Path, pointer: Pointer, path: Path) -> None:
    """Makes `last` or `best` of `run_dir` name the checkpoint `path`. Raises ResourceError if that cannot be written."""
    assert path.parent == run_dir / "checkpoints", f"{path} is not a checkpoint of {run_dir}"
    try:
        write_atomically(path.parent / pointer, path.name + "\n")
    except OSError as error:
        raise ResourceError(
            f"{path.parent / pointer} cannot be made to name {path.name}: {error}.",
            "It names what it named before; that checkpoint and this one are whole.",
            "Free some space there, or see that the disk is in order and writable.",
        ) from error


def prune(run_dir: Path, keep: int, spared_step: int | None = None) -> None:
    """Removes all checkpoints but the `keep` newest, `best`, `last`, and one of `spared_step`.

    While a run trains, `keep` is at least two: one checkpoint is no protection while the next one is being written. A warning
    names what cannot be removed. A step that was saved twice counts once. Each directory is renamed before it is removed, so
    a kill leaves no half of one behind.
    """
    folder = run_dir / "checkpoints"
    readable, unreadable = _newest_first(run_dir)
    kept_steps: set[int] = set()
    named = {_read_pointer(folder / pointer) for pointer in ("last", "best")}
    doomed = [path for path, _ in unreadable]
    for path, manifest in readable:
        is_wanted = len(kept_steps) < keep or manifest.step == spared_step
        if is_wanted and manifest.step not in kept_steps:
            kept_steps.add(manifest.step)
        else:
            doomed.append(path)
    for path in doomed:
        if path.name not in named:
            try:
                os.rename(path, temporary_path(path))
            except OSError as error:
                log.warning("%s cannot be removed (%s); it only takes space, and is tried again later.", path, error)
    remove_temporaries(folder)


def _write(
    directory: Path,
    step: int,
    ordinal: int,
    tensors: Mapping[str, Mapping[str, Tensor]],
    documents: Mapping[str, Any],
    advance: Advance,
) -> None:
    """Writes all files of a checkpoint and puts them on the disk, the manifest last."""
    for name in [f"{stem}.safetensors" for stem in tensors] + [f"{stem}.json" for stem in documents]:
        is_readable = FILE.fullmatch(name) and name != "manifest.json"
        assert is_readable, f"{name!r} would not be read back"
    directory.mkdir()
    files: dict[str, FileRecord] = {}
    for stem, members in tensors.items():
        files[f"{stem}.safetensors"] = write_durably(directory / f"{stem}.safetensors", _counted(iter_pieces(members), advance))
    for stem, document in documents.items():
        files[f"{stem}.json"] = write_durably(directory / f"{stem}.json", [to_json(document)])
    manifest = {
        "schema": SCHEMA,
        "step": step,
        "ordinal": ordinal,
        "lmtrain": __version__,
        "torch": torch.__version__,
        "python": platform.python_version(),
        "files": {name: dataclasses.asdict(record) for name, record in sorted(files.items())},
    }
    manifest["sha256"] = _fingerprint(manifest)
    write_durably(directory / "manifest.json", [to_json(manifest)])
    sync_directory(directory)


def _counted(pieces: Iterable[bytes | memoryview], advance: Advance) -> Iterator[bytes | memoryview]:
    """`pieces`, in blocks whose bytes are counted when they have been written."""
    for piece in pieces:
        for begin in range(0, len(piece), BLOCK):
            block = piece[begin : begin + BLOCK]
            yield block
            advance(len(block))


def _free_name(folder: Path, step: int) -> Path:
    """Returns `step-00000100`, with the first free number after it if that name is taken."""
    path, number = folder / f"step-{step:08d}", 1
    while path.exists():
        number += 1
        path = folder / f"step-{step:08d}-{number}"
    return path


def _fingerprint(manifest: Mapping[str, Any]) -> str:
    """Returns the SHA-256 of all that a manifest says, except of this number itself."""
    rest = {key: value for key, value in manifest.items() if key != "sha256"}
    return hashlib.sha256(json.dumps(rest, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


# ---- loading


def load_checkpoint(path: Path, names: Collection[str] | None = None, where_there: Collection[str] = ()) -> Checkpoint:
    """Returns the checkpoint in directory `path` (see `find_checkpoint`), verified before any of it is used.

    With `names`, for example {"model", "tokenizer"}, only the files of these names are hashed and read, and those files of the
    names `where_there` that exist; of the others, presence and size are checked. Raises CheckpointError, which names the file,
    what was expected and what was found.
    """
    tensors: dict[str, dict[str, Tensor]] = {}
    documents: dict[str, Any] = {}
    with (
        _verified(path, names, where_there) as (manifest, schema, files),
        watched("Reading a checkpoint", sum(manifest.files[name].size_bytes for name in files), "B") as advance,
    ):
        for name, file in files.items():
            stem, size_bytes = name.partition(".")[0], manifest.files[name].size_bytes
            try:
                if name.endswith(".json"):
                    documents[stem] = parse_json(file.read(MAX_BYTES + 1))
                else:
                    tensors[stem] = read_tensors(file, size_bytes)
            except (OSError, ValueError) as error:
                raise _damaged(path / name, f"It cannot be read: {error}.") from error
            advance(size_bytes)
    checkpoint = Checkpoint(path, manifest.step, tensors, documents)
    for older in range(schema, SCHEMA):
        checkpoint = MIGRATIONS[older](checkpoint)
    return checkpoint


def load_document(path: Path, name: str) -> Any:
    """Returns the document `<name>.json` of the checkpoint in directory `path`, verified; None if it has none."""
    manifest, file = _read_manifest(path)[0], path / f"{name}.json"
    if file.name not in manifest.files:
        return None
    try:
        with open(file, "rb") as opened:
            data = opened.read(manifest.files[file.name].size_bytes + 1)
        if hashlib.sha256(data).hexdigest() != manifest.files[file.name].sha256:
            raise _damaged(file, "Its SHA-256 is not the one that the manifest says.")
        return parse_json(data)
    except (OSError, ValueError) as error:
        raise _damaged(file, f"It cannot be read: {error}.") from error


def verify_checkpoint(path: Path) -> Manifest:
    """Reads and hashes every file of the checkpoint in `path`. Raises CheckpointError, which says what is wrong with which."""
    with _verified(path, None) as (manifest, _, _):
        return manifest


def newest_valid_checkpoint(run_dir: Path) -> Path:
    """Returns the checkpoint to resume from: the newest one that verifies. A warning names each damaged one that is newer.

    A checkpoint that a newer lmtrain wrote is not damaged, and raises: to go on from an older one would fork the run unasked.
    """
    readable, unreadable = _newest_first(run_dir)
    for _, error in unreadable:
        log.warning("%s  It is left out.", error.given)
    for path, _ in readable:
        try:
            verify_checkpoint(path)
        except NewerSchemaError:
            raise
        except CheckpointError as error:
            log.warning("%s %s  Falling back to the checkpoint before it.", error.given, error.allowed)
        else:
            return path
    num_damaged = len(readable) + len(unreadable)
    raise CheckpointError(
        f"Of the {num_damaged} checkpoints in {run_dir / 'checkpoints'} none is whole.",
        "A run is resumed from a checkpoint whose files are as they were written.",
        "Give another run, or start this one anew in another directory.",
    )


def scheduled_checkpoint(run_dir: Path, step: int | None) -> Path:
    """Returns the newest checkpoint of `step`, else `last`. Raises CheckpointError if there is none at all."""
    of_step = [path for path, manifest in _newest_first(run_dir)[0] if manifest.step == step]
    return of_step[0] if of_step else find_checkpoint(run_dir, "last")


@contextmanager
def believing(path: Path) -> Iterator[None]:
    """Turns an UnfitError within it into a CheckpointError: what a document says is used as if it were right.

    The hashes say that a checkpoint is as it was written, not that we wrote it.
    """
    try:
        yield
    except UnfitError as error:
        raise UnfitError(f"{path}/{error.field}", error.problem, error.range) from error
    except UserError as error:
        raise error if isinstance(error, CheckpointError) else _foreign(path, str(error)) from error
    except (LookupError, TypeError, ValueError, AttributeError, AssertionError, ArithmeticError, RuntimeError) as error:
        if is_out_of_memory(error):
            raise
        raise _foreign(path, f"{type(error).__name__}: {str(error)[:200]}") from error


def _foreign(path: Path, problem: str) -> CheckpointError:
    return CheckpointError(
        f"{path} is whole, but does not hold what lmtrain would have written ({problem}).",
        "Only checkpoints of this program are read.",
        "Use a checkpoint as it was written.",
    )


@contextmanager
def _verified(
    path: Path, names: Collection[str] | None, where_there: Collection[str] = ()
) -> Iterator[tuple[Manifest, int, dict[str, BufferedReader]]]:
    """Returns the manifest, its schema and the chosen files, open. All have their size; the chosen ones have their hash.

    All are opened before any is read, because reading may take long: a file that is removed meanwhile can still be read.
    """
    with ExitStack() as stack:
        try:
            manifest, schema = _read_manifest(path)
            found = {entry.name for entry in path.iterdir() if not entry.name.startswith(".")}  # .nfs0001, .DS_Store and such
            for name in sorted(found - manifest.files.keys() - {"manifest.json"}):
                raise _damaged(path / name, "The manifest does not know this file; a checkpoint holds nothing else.")
            for name, record in manifest.files.items():
                _check_size(path / name, record.size_bytes)
            files = {name: stack.enter_context(open(path / name, "rb")) for name in _chosen(path, manifest, names, where_there)}
        except (OSError, CheckpointError) as error:
            if not path.exists():
                raise RemovedError(
                    f"{path} was removed before it was read.",
                    "A run keeps its best checkpoint and as many of the newest as trainer.keep says.",
                    "Give the directory of the run, or a copy of the checkpoint.",
                ) from error
            raise error if isinstance(error, CheckpointError) else _damaged(path, f"It cannot be read: {error}.") from error
        with watched("Checking a checkpoint", sum(manifest.files[name].size_bytes for name in files), "B") as advance:
            for name, file in files.items():
                try:
                    sha256 = _sha256(file, advance)
                    file.seek(0)
                except OSError as error:
                    raise _damaged(path, f"It cannot be read: {error}.") from error
                if sha256 != manifest.files[name].sha256:
                    raise _damaged(path / name, f"Its SHA-256 is {sha256}, the manifest says {manifest.files[name].sha256}.")
        yield manifest, schema, files


def _sha256(file: BufferedReader, advance: Advance) -> str:
    """Of all of a file."""
    digest, block = hashlib.sha256(), memoryview(bytearray(1 << 20))
    while got := file.readinto(block):
        digest.update(block[:got])
        advance(got)
    return digest.hexdigest()


def _check_size(path: Path, size_bytes: int) -> None:
    if not path.is_file():
        raise _damaged(path, "It is not a regular file." if path.exists() else f"It is missing; it had {size_bytes} bytes.")
    if path.stat().st_size != size_bytes:
        raise _damaged(path, f"It has {path.stat().st_size} bytes, the manifest says {size_bytes}.")
    if size_bytes > memory_bytes():
        raise _damaged(path, f"It has {size_bytes} bytes, more than the {memory_bytes()} of this machine's memory.")


def _read_manifest(path: Path) -> tuple[Manifest, int]:
    """Returns the manifest in checkpoint directory `path` and its schema. It is checked by itself, without the files."""
    file = path / "manifest.json"
    try:
        if not file.is_file():
            raise _damaged(file, "It is missing or not a regular file.")
        with open(file, "rb") as opened:
            manifest = parse_json(opened.read(MAX_BYTES + 1))
    except (OSError, ValueError) as error:
        raise _damaged(file, f"It cannot be read: {error}.") from error
    if not isinstance(manifest, dict) or manifest.get("sha256") != _fingerprint(manifest):
        raise _damaged(file, "Its own SHA-256 does not agree with what it says.")
    match manifest:  # `schema`, `lmtrain` and `sha256` mean the same in every schema there will be
        case {"schema": int(schema), "lmtrain": str(version)} if schema > SCHEMA:
            raise NewerSchemaError(
                f"{path} was written by lmtrain {one_line(version[:40])}, in schema {schema}.",
                f"This lmtrain ({__version__}) reads schemas up to {SCHEMA}.",
                f'Type: pip install "lmtrain>={version}"' if VERSION.fullmatch(version) else "Install a newer lmtrain.",
            )
        case {"schema": int(schema), "step": step, "ordinal": ordinal, "files": dict(entries)} if schema >= 1:
            with believing(path), within("manifest.json: "):
                compare({"schema": Whole(1), "step": Whole(), "ordinal": Whole()},
                        {"schema": schema, "step": step, "ordinal": ordinal})  # fmt: skip
            return Manifest(step, ordinal, dict(_iter_records(file, entries))), schema
    raise _damaged(file, "It does not say schema, step, ordinal and files.")


def _iter_records(file: Path, entries: Mapping[str, Any]) -> Iterator[tuple[str, FileRecord]]:
    for name, entry in entries.items():
        match entry:
            case {"size_bytes": int(size_bytes), "sha256": str(sha256)} if FILE.fullmatch(name) and name != "manifest.json":
                yield name, FileRecord(size_bytes, sha256)
            case _:
                raise _damaged(file, f"It speaks of {name[:80]!r}; a file is called NAME.safetensors or NAME.json.")


def _chosen(path: Path, manifest: Manifest, names: Collection[str] | None, where_there: Collection[str]) -> list[str]:
    """Returns the files of `names` (None: all), and those of `where_there` that exist. CheckpointError if one is missing."""
    if names is None:
        return list(manifest.files)
    stems = {file.partition(".")[0] for file in manifest.files}
    for name in names:
        if name not in stems:
            raise CheckpointError(
                f"{path} has no {name}.json and no {name}.safetensors.",
                f"It holds {', '.join(sorted(manifest.files)) or 'nothing'}.",
                "Give a checkpoint that lmtrain's training saved.",
            )
    return [file for file in manifest.files if file.partition(".")[0] in {*names, *where_there}]


def _damaged(file: Path, problem: str) -> CheckpointError:
    return CheckpointError(
        f"{file} is damaged.",
        problem,
        "Take another checkpoint of the run, or put this one back from a copy.",
    )


# ---- finding


def find_checkpoint(path: str | Path, prefer: Pointer = "best") -> Path:
    """Returns the checkpoint directory that `path` means: one itself, the `best` or `last` of a run directory, or what such a
    file names.

    If there is no `best`, `last` is taken. Raises CheckpointError, which says what is found instead. Nothing is verified yet.
    """
    if path == "":
        raise CheckpointError("The path of a model is empty.", "A run or a checkpoint is a directory.", "Give its path.")
    if re.match(r"[A-Za-z][A-Za-z0-9+.-]+:/", str(path)):
        raise CheckpointError(
            f"{path} is an address on the network.",
            "Only directories of this machine are read.",
            "Download the checkpoint's directory and give its path.",
        )
    try:
        return _find(Path(path), prefer)
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read: {error}.", "", "Give a directory that you may read.") from error


def read_named(path: str | Path, prefer: Pointer, read: Callable[[Path], T]) -> T:
    """Returns what `read` makes of the checkpoint that `path` means. If training removes it first, the next one is read."""
    for _ in range(MAX_MOVES):
        found = find_checkpoint(path, prefer)
        try:
            return read(found)
        except RemovedError:
            if found == Path(path):
                raise
    return read(found)


def _find(path: Path, prefer: Pointer) -> Path:
    if path.is_file() and (named := _named_by(path)):
        return named
    _check_directory(path)
    if (path / "manifest.json").exists():
        return path
    folder = path / "checkpoints" if (path / "checkpoints").is_dir() else path
    for pointer in dict.fromkeys((prefer, "last")):
        if named := _named_by(folder / pointer):
            return named
    readable, _ = _newest_first(path) if folder != path else ([], [])
    if readable:  # a run that was killed between its first checkpoint and the writing of `last`
        return readable[0][0]
    raise CheckpointError(
        f"{path} holds no checkpoint.",
        "A run directory holds checkpoints/, and a checkpoint holds manifest.json.",
        f"There is: {_listing(folder)}.{_runs_below(path)}",
    )


def _named_by(file: Path) -> Path | None:
    """Returns the checkpoint that the pointer `file` names, beside it; None if it is no pointer."""
    name = _read_pointer(file)
    while name and not (file.parent / name / "manifest.json").exists():
        before, name = name, _read_pointer(file)
        if name == before:  # else training moved on between the two looks
            raise CheckpointError(
                f"{file} names {name}, which is not there.",
                f"There is: {_listing(file.parent)}.",
                "Give one of these directories.",
            )
    return file.parent / name if name else None


def _check_directory(path: Path) -> None:
    """Raises CheckpointError unless `path` is a directory, and says what is near it."""
    if path.is_dir():
        return
    if path.exists():
        inside = (path.parent / "manifest.json").exists() or path.name in ("last", "best")
        raise CheckpointError(
            f"{path} is a file.",
            "A checkpoint is a directory, and so is a run.",
            f"Give {path.parent}." if inside else "Give the directory that training wrote.",
        )
    near = next((parent for parent in path.absolute().parents if parent.is_dir()), Path("/"))
    missing = path.absolute().relative_to(near).parts[0]
    similar = difflib.get_close_matches(missing, [entry.name for entry in _entries(near)], n=1)
    raise CheckpointError(
        f"{path} does not exist (the working directory is {current_directory()}).",
        f"{near} holds {_listing(near)}.",
        f"Did you mean {near / similar[0]}?" if similar else "Give a run directory or a checkpoint directory.",
    )


def _read_pointer(path: Path) -> str | None:
    """Returns the name in the file `last` or `best`, if it is that of a checkpoint directory."""
    try:
        with open(path, "rb") as file:
            name = file.read(64).decode(errors="replace").strip()
    except OSError:
        return None
    return name if DIRECTORY.fullmatch(name) else None


def _newest_first(
    run_dir: Path,
) -> tuple[list[tuple[Path, Manifest]], list[tuple[Path, CheckpointError]]]:
    """Returns the checkpoints of a run whose manifest is readable, the last saved first; and the others."""
    readable: list[tuple[Path, Manifest]] = []
    unreadable: list[tuple[Path, CheckpointError]] = []
    for path in _entries(run_dir / "checkpoints"):
        if DIRECTORY.fullmatch(path.name):
            try:
                readable.append((path, _read_manifest(path)[0]))
            except NewerSchemaError:
                raise
            except CheckpointError as error:
                unreadable.append((path, error))
    readable.sort(key=lambda item: (item[1].ordinal, item[0].name), reverse=True)
    return readable, unreadable


def _entries(directory: Path) -> list[Path]:
    try:
        return sorted(directory.iterdir())
    except OSError:
        return []


def _listing(directory: Path) -> str:
    """Says what a directory holds, in a few words."""
    names = [one_line(entry.name) + "/" * entry.is_dir() for entry in _entries(directory) if not entry.name.startswith(".")]
    more = f" and {len(names) - 8} more" if len(names) > 8 else ""
    return ", ".join(names[:8]) + more if names else "nothing"


def _runs_below(path: Path) -> str:
    """Lists the run directories in `path`, which may be the directory of all runs."""
    runs = [str(entry) for entry in _entries(path) if (entry / "checkpoints").is_dir()]
    return f" Runs there: {', '.join(runs[-4:])}." if runs else ""
