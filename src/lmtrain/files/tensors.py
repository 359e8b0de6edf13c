"""Tensors in safetensors files, written and read without a second copy of them in memory.

    8 bytes            how long the header is, little-endian
    header             JSON: {"weight": {"dtype": "F32", "shape": [2, 3], "data_offsets": [0, 24]}, ...}, spaces at its end
    data               the tensors one after the other, from where the header ends

The library of that name would hold the file and all its tensors at once, and a table of n-grams may fill half of the memory.
This file writes the same bytes, which the tests compare. Every claim of a header is checked before anything is allocated: no
gaps, no overlaps, nothing outside the file, sizes that fit shapes and types. What the library refuses is refused here.
Files are written through Python (so a full disk is an OSError, and modes follow the umask), read no further than the manifest
allows, and hold only types that we write.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from io import BufferedReader
from typing import Any, NamedTuple

import torch
from torch import Tensor

from lmtrain.files.strict_json import MAX_BYTES, parse_json

NAMES = {
    "BOOL": torch.bool, "U8": torch.uint8, "I8": torch.int8, "I16": torch.int16, "F16": torch.float16,
    "BF16": torch.bfloat16, "I32": torch.int32, "F32": torch.float32, "F64": torch.float64, "I64": torch.int64,
}  # fmt: skip
"""The types that we write, in the library's order: the last ones come first in a file, so that every tensor is aligned."""
FOREIGN = {"U16": torch.uint16, "U32": torch.uint32, "U64": torch.uint64}
DTYPES = tuple(NAMES.values())
MAX_DIMENSIONS = 64  # PyTorch's own limit


def iter_pieces(tensors: Mapping[str, Tensor]) -> Iterator[bytes | memoryview]:
    """Yields the file that holds `tensors`, in pieces to be written one after the other.

    Tensors may lie on any device and be non-contiguous. Two names for one memory are refused: whoever reads them back
    would get two tensors, so the caller decides which name is kept.
    """
    memory: dict[tuple[torch.device, int], str] = {}
    for name, tensor in tensors.items():
        assert tensor.layout is torch.strided, f"{name} is {tensor.layout}"
        assert tensor.dtype in DTYPES, f"{name} is {tensor.dtype}"
        if tensor.numel():
            other = memory.setdefault((tensor.device, tensor.data_ptr()), name)
            assert other == name, f"{name} and {other} are one memory: save one of them"
    in_order = sorted(tensors.items(), key=lambda item: (-DTYPES.index(item[1].dtype), item[0].encode()))
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    size_bytes = 0
    for name, tensor in in_order:
        begin, size_bytes = size_bytes, size_bytes + tensor.numel() * tensor.element_size()
        dtype = next(key for key, value in NAMES.items() if value is tensor.dtype)
        header[name] = {"dtype": dtype, "shape": list(tensor.shape), "data_offsets": [begin, size_bytes]}
    text = json.dumps(header, ensure_ascii=False, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    yield len(text).to_bytes(8, "little") + text
    for _, tensor in in_order:
        if tensor.numel():
            yield _bytes_of(tensor.detach().cpu().contiguous())


def read_tensors(file: BufferedReader, size_bytes: int) -> dict[str, Tensor]:
    """Returns the tensors in `file`, which holds `size_bytes` from its present position on. Raises ValueError for a wrong one.

    Allocates no more than `size_bytes` for them, whatever the header asks for.
    """
    entries, place = _read_header(file, size_bytes)
    for entry in entries:
        if entry.dtype not in DTYPES:
            raise ValueError(f"tensor {entry.name[:80]!r} is of type {entry.dtype}, which no checkpoint of ours holds")
    tensors: dict[str, Tensor] = {}
    for entry in entries:
        tensor = torch.empty(entry.shape, dtype=entry.dtype)
        got = file.readinto(_bytes_of(tensor)) if entry.size_bytes else 0
        place += got
        if got != entry.size_bytes:
            raise ValueError(f"it has {place} bytes instead of {size_bytes}")
        if tensor.dtype is torch.bool and tensor.view(torch.uint8).gt(1).any():
            raise ValueError(f"tensor {entry.name[:80]!r} holds bytes that are neither true nor false")
        tensors[entry.name] = tensor
    return tensors


class _Entry(NamedTuple):
    """What a header says about a tensor. Entries are sorted by their beginning."""

    begin: int
    end: int
    name: str
    dtype: torch.dtype
    shape: tuple[int, ...]

    @property
    def size_bytes(self) -> int:
        return self.end - self.begin


def _read_header(file: BufferedReader, size_bytes: int) -> tuple[list[_Entry], int]:
    """Returns the tensors of a file in the order of their data, and how many bytes have been read."""
    head = file.read(min(8, size_bytes))
    length = int.from_bytes(head, "little")
    text = file.read(length) if len(head) == 8 and length <= min(size_bytes - 8, MAX_BYTES) else b""
    read = len(head) + len(text)
    if read < min(8, size_bytes) or (text and len(text) < length):
        raise ValueError(f"it has {read} bytes instead of {size_bytes}")
    try:
        if length > MAX_BYTES:
            raise ValueError(f"its header has {length} bytes, more than {MAX_BYTES}")
        if len(text) < 2 or len(text) != length:
            raise ValueError("its header is longer than the file" if length else "it has no header")
        document = parse_json(text, _natural)
        if not isinstance(document, dict):
            raise ValueError("its header is no object")
        _check_metadata(document.get("__metadata__"))
        entries = sorted(_entry(name, claim) for name, claim in document.items() if name != "__metadata__")
        end = 0
        for entry in entries:
            if entry.begin != end:
                raise ValueError(f"tensor {entry.name[:80]!r} begins at {entry.begin} instead of {end}")
            end = entry.end
        if end != size_bytes - read:
            raise ValueError(f"its tensors come to {end} bytes, and {size_bytes - read} are there")
    except ValueError as error:
        raise ValueError(f"it is not a safetensors file ({str(error)[:200]})") from None
    return entries, read


def _entry(name: str, claim: Any) -> _Entry:
    match claim:
        case {"dtype": str(key), "shape": list(shape), "data_offsets": [begin, end]} if len(claim) == 3:
            dtype = (NAMES | FOREIGN).get(key)
            are_whole = all(type(number) is int and number >= 0 for number in (*shape, begin, end))
            if _is_text(name) and dtype is not None and are_whole and len(shape) <= MAX_DIMENSIONS:
                fits = math.prod(max(size, 1) for size in shape) < 1 << 60  # PyTorch multiplies even where one is 0
                if fits and math.prod(shape) * dtype.itemsize == end - begin:
                    return _Entry(begin, end, name, dtype, tuple(shape))
    raise ValueError(f"tensor {name[:80]!r} is described by {str(claim)[:80]}")


def _check_metadata(claim: Any) -> None:
    """Raises ValueError unless there is nothing, or names with one text each."""
    if claim is not None and not (isinstance(claim, dict) and all(map(_is_text, (*claim, *claim.values())))):
        raise ValueError(f"__metadata__ is {str(claim)[:80]}")


def _is_text(value: Any) -> bool:
    """Tells whether it is a string that UTF-8 can hold: JSON's escapes can also write one half of a surrogate pair."""
    return isinstance(value, str) and not any("\ud800" <= character <= "\udfff" for character in value)


def _natural(digits: str) -> int:
    """Returns the number that a header gives; those with a sign are refused, also -0."""
    if digits.startswith("-"):
        raise ValueError(f"{digits[:80]} has a sign")
    return int(digits)


def _bytes_of(tensor: Tensor) -> memoryview:
    """Returns the memory of a tensor in one piece."""
    return tensor.reshape(-1).view(torch.uint8).numpy().data
