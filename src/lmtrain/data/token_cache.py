"""The token ids of a corpus on the disk: arrays back to back in <key>.ids, and in <key>.json what they are.

    <key>.ids    for each split the ids, then for each split the hashes of its lines; the texts of the tokens and where they end
                 (of subwords, the document of the library, which has no such ends)
    <key>.json   {"manifest": {"recipe": ..., "splits": {"train": sizes, ...}, "tokenizer": ..., how long each array is,
                  "sha256": that of <key>.ids}, "sha256": that of the manifest}

A cache is used only if everything in it is what would have been written for this recipe. Anything else raises a ValueError,
and the caller builds the cache again: all that a cache is worth is the time that it saves.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, NoReturn

import numpy as np
from numpy.typing import NDArray

from lmtrain.data.cache import new_file
from lmtrain.data.overlap import MAX_HASHES, Hashes
from lmtrain.data.tokenizer import Tokenizer, load_tokenizer
from lmtrain.errors import CheckpointError
from lmtrain.progress import watched

SIZES = ("num_tokens", "num_chars", "num_bytes", "num_lines", "num_unk", "num_filled", "num_marked", "spelling_micronats")
MAX_JSON = 1 << 24  # bytes; a manifest has about 2,000, and up to 8 MB with words from which spelling is learnt
BLOCK = 1 << 20  # ids that are checked at a time
PART = "part"  # the one split of a cache of a part of a text, of which a single token is enough
SHA256 = frozenset("0123456789abcdef")


@dataclass(frozen=True)
class CachedSplit:
    """One split as it is cached: ids [N] (uint16 or int32), hashes of lines, and the sizes that SIZES names."""

    ids: NDArray[Any]
    lines: Hashes
    sizes: Mapping[str, int]
    sha256: str  # of the text


def ids_dtype(tokenizer: Tokenizer) -> np.dtype[Any]:
    """Returns the smallest type that holds the ids of `tokenizer`."""
    return np.dtype("uint16" if tokenizer.vocab_size <= 1 << 16 else "int32")


def hash_json(value: Any) -> str:
    """Returns the SHA-256 of a document."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


# ---- writing


class CacheWriter:
    """Writes the arrays of a cache: for each split, any number of `write_ids` and then `end_split`; `finish` at the end."""

    def __init__(self, file: BinaryIO, tokenizer: Tokenizer) -> None:
        self._file, self._tokenizer, self._digest = file, tokenizer, hashlib.sha256()
        self._dtype = ids_dtype(tokenizer)
        self._splits: dict[str, dict[str, Any]] = {}
        self._lines: dict[str, Hashes] = {}

    def write_ids(self, ids: NDArray[Any]) -> None:
        """Writes the next ids of the current split."""
        self._write(ids.astype(self._dtype, copy=False))

    def end_split(self, name: str, split: CachedSplit) -> None:
        """Says which split the ids since the last call belong to. The ids in `split` are ignored."""
        self._splits[name] = {**split.sizes, "sha256": split.sha256}
        self._lines[name] = split.lines

    def finish(self) -> dict[str, Any]:
        """Writes all arrays but the ids; returns the manifest without its recipe."""
        document, arrays = self._tokenizer.pack()
        for array in (*self._lines.values(), *arrays.values()):
            self._write(array)
        return {
            "dtype": self._dtype.name,
            "num_line_hashes": {name: len(lines) for name, lines in self._lines.items()},
            "splits": self._splits,
            "tokenizer": document,
            "num_text_bytes": len(arrays["bytes"]) if arrays else 0,
            "num_text_ends": len(arrays["ends"]) if arrays else 0,
            "vocab_size": self._tokenizer.vocab_size,
            "sha256": self._digest.hexdigest(),
        }

    def _write(self, array: NDArray[Any]) -> None:
        data = np.ascontiguousarray(array).data
        self._digest.update(data)
        self._file.write(data)


def write_cache(base: Path, recipe: Any, tokenizer: Tokenizer, fill: Callable[[CacheWriter], None]) -> None:
    """Writes what `fill` writes to `base`.ids, and then `base`.json, which makes the cache valid."""
    with new_file(base.with_suffix(".ids")) as file:
        writer = CacheWriter(file, tokenizer)
        fill(writer)
        manifest = {"recipe": recipe, **writer.finish()}
    with new_file(base.with_suffix(".json")) as file:
        file.write(json.dumps({"manifest": manifest, "sha256": hash_json(manifest)}).encode())


# ---- reading


def read_cache(base: Path, recipe: Any, *, is_new: bool = False) -> tuple[Tokenizer, dict[str, CachedSplit]]:
    """Returns the cache of `recipe`, ids as a memory map. Raises OSError if there is none, ValueError if it is unusable.

    `is_new`: it was written a moment ago, so that its checksum, which was made of the same memory, would tell nothing.
    """
    try:
        return _read(base, recipe, is_new=is_new)
    except (CheckpointError, KeyError, TypeError, AttributeError, OverflowError, RecursionError) as error:
        raise ValueError(f"{type(error).__name__}: {str(error)[:200]}") from None


def _read(base: Path, recipe: Any, *, is_new: bool) -> tuple[Tokenizer, dict[str, CachedSplit]]:
    if base.with_suffix(".json").stat().st_size > MAX_JSON:
        raise ValueError(f"the manifest has more than {MAX_JSON} bytes")
    document = json.loads(base.with_suffix(".json").read_bytes(), parse_constant=_refuse)
    manifest = document["manifest"]
    if hash_json(manifest) != document["sha256"]:
        raise ValueError("the manifest does not have its checksum")
    if manifest["recipe"] != recipe:
        raise ValueError("the manifest is that of another text or tokenizer")
    contents = np.memmap(base.with_suffix(".ids"), np.uint8, mode="r")
    arrays = _Arrays(contents)
    splits, line_hashes = manifest["splits"], manifest["num_line_hashes"]
    if list(splits) not in (["train", "valid"], ["train", "valid", "test"], [PART]) or list(line_hashes) != list(splits):
        raise ValueError("the splits are not train, valid and test")
    dtype = np.dtype({"uint16": "uint16", "int32": "int32"}[manifest["dtype"]])
    ids = {name: arrays.take(dtype, sizes["num_tokens"]) for name, sizes in splits.items()}
    lines = {name: np.array(arrays.take(np.dtype("int64"), number)) for name, number in line_hashes.items()}
    texts = arrays.take(np.dtype("uint8"), manifest["num_text_bytes"])
    ends = arrays.take(np.dtype("int64"), manifest["num_text_ends"])
    arrays.check_end()
    if not is_new:
        _check_sha256(contents, manifest["sha256"])
    tokenizer = load_tokenizer(manifest["tokenizer"], {"bytes": np.asarray(texts), "ends": np.array(ends)})
    if tokenizer.vocab_size != manifest["vocab_size"] or ids_dtype(tokenizer) != dtype:
        raise ValueError("the vocabulary has another size")
    for name in splits:
        _check_split(ids[name], lines[name], splits[name], tokenizer, least=1 if name == PART else 2)
    return tokenizer, {name: CachedSplit(ids[name], lines[name], sizes, sizes["sha256"]) for name, sizes in splits.items()}


class _Arrays:
    """Takes arrays from a file, one after the other."""

    def __init__(self, contents: NDArray[np.uint8]) -> None:
        self._contents, self._place = contents, 0

    def take(self, dtype: np.dtype[Any], length: Any) -> NDArray[Any]:
        start, end = self._place, self._place + dtype.itemsize * _count(length)
        if end > len(self._contents):
            raise ValueError(f"{end} bytes are announced, {len(self._contents)} are there")
        self._place = end
        return self._contents[start:end].view(dtype)

    def check_end(self) -> None:
        if self._place != len(self._contents):
            raise ValueError(f"{self._place} bytes are announced, {len(self._contents)} are there")


def _check_split(ids: NDArray[Any], lines: Hashes, sizes: Mapping[str, Any], tokenizer: Tokenizer, least: int) -> None:
    """Raises ValueError unless the ids are in the vocabulary and agree with the sizes, as far as ids can show."""
    if sizes.keys() != {*SIZES, "sha256"} or len(sizes["sha256"]) != 64 or not SHA256.issuperset(sizes["sha256"]):
        raise ValueError("a split does not have its sizes")
    counts = {name: _count(sizes[name]) for name in SIZES}
    num_unk = num_eos = 0
    for block in _blocks(ids):
        if int(block.max()) >= tokenizer.vocab_size or (block.dtype.kind == "i" and int(block.min()) < 0):
            raise ValueError("an id is outside the vocabulary")
        num_unk += 0 if tokenizer.unk_id is None else int(np.count_nonzero(block == tokenizer.unk_id))
        num_eos += int(np.count_nonzero(block == tokenizer.eos_id))
    num_chars, num_tokens = counts["num_chars"], counts["num_tokens"]
    fits = tokenizer.kind.fits(num_tokens, num_chars, counts["num_bytes"])
    if num_tokens < least or not fits or counts["num_unk"] != num_unk:
        raise ValueError("a split does not have as many tokens as its sizes say")
    if counts["spelling_micronats"] and (tokenizer.rare is None or not num_unk):
        raise ValueError("words are spelt where none is unknown")
    if not num_chars <= counts["num_bytes"] <= 4 * num_chars or not counts["num_lines"] <= min(num_chars, num_eos + 1):
        raise ValueError("the sizes of a split do not agree")
    if not counts["num_marked"] <= counts["num_filled"] <= num_chars or len(lines) > min(MAX_HASHES, num_chars):
        raise ValueError("the lines of a split do not agree with its size")
    if len(lines) and (lines[0] < 0 or not bool((lines[1:] > lines[:-1]).all())):
        raise ValueError("the hashes of the lines are not ascending")


def _check_sha256(contents: NDArray[np.uint8], sha256: str) -> None:
    digest = hashlib.sha256()
    for block in _blocks(contents):
        digest.update(block.data)
    if digest.hexdigest() != sha256:
        raise ValueError("the ids do not have their checksum")


def _blocks(array: NDArray[Any]) -> Iterator[NDArray[Any]]:
    with watched("Checking cached token ids", array.nbytes, "B") as advance:
        for start in range(0, len(array), BLOCK):
            block = array[start : start + BLOCK]
            yield block
            advance(block.nbytes)


def _count(number: Any) -> int:
    if type(number) is not int or not 0 <= number < 1 << 53:
        raise ValueError(f"{str(number)[:40]!r} is not a count")
    return number


def _refuse(constant: str) -> NoReturn:
    raise ValueError(f"{constant} is not a number of JSON")
