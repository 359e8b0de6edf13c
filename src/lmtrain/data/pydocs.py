"""A corpus that every Python brings along: the documentation of the interpreter that is running, about 2 MB.

    topics      the language reference as `help()` shows it (`pydoc_data.topics`)         one document per topic
    docstrings  of the standard library's modules, classes and functions                  one document per module

Docstrings are parsed from the sources with `ast`: nothing is imported or executed. The text does not depend on where Python
is installed, only on its version, which is part of the directory's name. The reference repeats whole sections, which would
put the same text into several splits; so a paragraph of at least 80 characters is left out if an earlier document has it.
Drawn tables are left out too, and long runs of spaces are shortened.

A document goes to one split as a whole. Topics and modules are each ranked by length; of every twenty, one is for validation
and its neighbour for the test. So every split has both kinds and all lengths, and about 90, 5 and 5 % of the characters.
"""

from __future__ import annotations

import ast
import hashlib
import json
import logging
import platform
import re
import sysconfig
import warnings
from collections.abc import Iterator
from pathlib import Path

from lmtrain.data.cache import new_file
from lmtrain.errors import DataError

log = logging.getLogger("lmtrain")

FORMAT = 2  # a change makes the cached text stale
SPLITS = ("train", "valid", "test")
MAX_INDENT = 8  # spaces at the beginning of a line
SHORT = 80  # characters below which a repeated paragraph is kept

SKIPPED = {"test", "tests", "idle_test", "idlelib", "lib2to3", "site-packages", "dist-packages", "lib-dynload", "__pycache__"}
LOCAL = re.compile(r"_sysconfigdata.*|sitecustomize|usercustomize")  # modules that differ between installations

Documents = dict[str, str]  # name -> text


def write_pydocs(cache_dir: str | Path) -> Path:
    """Returns a directory in `cache_dir` with train.txt, valid.txt and test.txt. If it is missing, it is made in two seconds.

    Raises DataError if this Python comes without its documentation, and ResourceError if `cache_dir` cannot be written.
    """
    topics, sources = _read_topics(), _read_sources()
    digest = hashlib.sha256(json.dumps([FORMAT, topics]).encode())
    for name, source in sources.items():
        digest.update(name.encode() + b"\0" + source + b"\0")
    directory = Path(cache_dir) / f"pydocs-{platform.python_version()}-{digest.hexdigest()[:12]}"
    if not _is_whole(directory):
        log.info("Collecting the documentation of Python %s into %s", platform.python_version(), directory)
        _write(directory, make_splits(topics, {name: module_text(source) for name, source in sources.items()}))
    return directory


def make_splits(topics: Documents, modules: Documents) -> dict[str, str]:
    """Returns the text of each split. Documents keep their order, topics first."""
    texts: dict[str, list[str]] = {split: [] for split in SPLITS}
    seen: set[str] = set()
    for documents in (topics, modules):
        fresh = _without_repeats(documents, seen)
        chosen = _deal(fresh)
        for name, text in fresh.items():
            texts[chosen[name]].append(text)
    return {split: "\n\n".join(parts) + "\n" for split, parts in texts.items()}


def module_text(source: bytes) -> str:
    """Returns the docstrings of a module's source in their order, separated by blank lines."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # invalid escapes in old sources
        tree = ast.parse(source)
    return "\n\n".join(_iter_docstrings(tree))


def _iter_docstrings(node: ast.AST) -> Iterator[str]:
    """Yields the docstrings of `node` and of what is defined in it, also under `if` or `try`, but not in expressions."""
    if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)):
        docstring = ast.get_docstring(node)
        if docstring:
            yield docstring
    for field in ("body", "handlers", "orelse", "finalbody"):
        children = getattr(node, field, None)
        for child in children if isinstance(children, list) else []:
            yield from _iter_docstrings(child)


def _read_topics() -> Documents:
    try:
        from pydoc_data.topics import topics
    except ImportError:
        raise _absent("the module pydoc_data.topics is missing") from None
    return dict(sorted(topics.items()))


def _read_sources() -> dict[str, bytes]:
    """Returns the source of every module of the standard library by its path there, in alphabetical order."""
    root = Path(sysconfig.get_path("stdlib"))
    sources = {
        path.relative_to(root).as_posix(): path.read_bytes()
        for path in root.rglob("*.py")
        if not SKIPPED.intersection(path.relative_to(root).parts) and not LOCAL.fullmatch(path.stem)
    }
    if not sources:
        raise _absent(f"there are no sources in {root}")
    return dict(sorted(sources.items()))


def _absent(what: str) -> DataError:
    return DataError(
        f"This Python ({platform.python_version()}) comes without its documentation: {what}.",
        "data=pydocs needs an ordinary installation of Python.",
        "Give a text of your own: data=text data.path=FILE.",
    )


def _without_repeats(documents: Documents, seen: set[str]) -> Documents:
    """Removes longer paragraphs that are in `seen`, and documents that become empty; adds all paragraphs to `seen`."""
    fresh = {}
    for name, text in documents.items():
        paragraphs = re.split(r"\n\s*\n", _tidy(text))
        keys = [" ".join(paragraph.split()) for paragraph in paragraphs]
        kept = [paragraph for paragraph, key in zip(paragraphs, keys, strict=True) if len(key) < SHORT or key not in seen]
        seen.update(keys)
        if any(kept):
            fresh[name] = "\n\n".join(kept)
    return fresh


def _tidy(text: str) -> str:
    """Removes control characters and halves of surrogate pairs, which docstrings may contain as escapes.

    It also removes drawn tables and long runs of spaces: a model of characters would learn to write more and more of them.
    """
    text = re.sub("[\x00-\x09\x0b-\x1f\x7f\ud800-\udfff]", "", text.expandtabs())
    text = re.sub("(?m) +$", "", text)
    text = re.sub(r"(?m)^ *[|+].*[|+](\n|\Z)", "", text)
    text = re.sub(f"(?m)^ {{{MAX_INDENT},}}", " " * MAX_INDENT, text)
    return re.sub(r"(?<=\S) {3,}", "  ", text).strip("\n")


def _deal(documents: Documents) -> dict[str, str]:
    """Returns the split of every document."""
    ranked = sorted(documents, key=lambda name: (-len(documents[name]), name))
    return {name: {6: "valid", 7: "test"}.get(rank % 20, "train") for rank, name in enumerate(ranked)}


def _write(directory: Path, texts: dict[str, str]) -> None:
    """Writes the splits, then their checksums."""
    checksums = {}
    for split, text in texts.items():
        data = text.encode()
        checksums[f"{split}.txt"] = hashlib.sha256(data).hexdigest()
        with new_file(directory / f"{split}.txt") as file:
            file.write(data)
    with new_file(directory / "sha256.json") as file:
        file.write(json.dumps(checksums).encode())


def _is_whole(directory: Path) -> bool:
    """Tells whether all files are there and have their checksums. The log names a damaged directory."""
    if not directory.exists():
        return False
    try:
        checksums = json.loads((directory / "sha256.json").read_bytes())
        found = {f"{split}.txt": (directory / f"{split}.txt").read_bytes() for split in SPLITS}
    except (OSError, ValueError):
        found, checksums = {}, None
    if {name: hashlib.sha256(data).hexdigest() for name, data in found.items()} == checksums:
        return True
    log.warning("The documentation in %s is incomplete or damaged and is collected again.", directory)
    return False
