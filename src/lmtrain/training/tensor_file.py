"""Tensors in the safetensors format, written without a copy of them all and read without trusting a single number.

    8 bytes   little-endian length N of the header
    N bytes   JSON {"name": {"dtype": "F32", "shape": [2, 3], "data_offsets": [begin, end]}, ...}, padded with blanks
    the rest  the tensors' bytes, without gaps or overlaps, little-endian, row-major

Written through a Python file object, so that a full disk is an OSError and no more than one tensor is held twice. When
reading, every claim of the header is checked against the size of the file *before* anything is allocated: a header that
asks for terabytes has no file of terabytes behind it. Format: https://github.com/huggingface/safetensors#format
"""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Iterator, Mapping
from io import BufferedReader
from typing import Any

import torch
from torch import Tensor

from lmtrain.training.strict_json import parse_json

MAX_HEADER_BYTES = 16 << 20
MAX_AXES = 8

DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}
NAMES = {dtype: name for name, dtype in DTYPES.items()}


def iter_pieces(tensors: Mapping[str, Tensor]) -> Iterator[bytes | memoryview]:
    """The file that holds `tensors`, in pieces to be written one after the other.

    Tensors may lie on any device and be non-contiguous. Two names for one memory are refused: whoever reads them back
    would get two tensors, so the caller decides which name is kept.
    """
    _check_writable(tensors)
    # Wide types first, so that a reader that maps the file finds every tensor aligned.
    ordered = dict(sorted(tensors.items(), key=lambda item: (-item[1].element_size(), item[0])))
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    begin = 0
    for name, tensor in ordered.items():
        end = begin + tensor.numel() * tensor.element_size()
        header[name] = {"dtype": NAMES[tensor.dtype], "shape": list(tensor.shape), "data_offsets": [begin, end]}
        begin = end
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    assert len(text) <= MAX_HEADER_BYTES
    yield len(text).to_bytes(8, "little")
    yield text
    for tensor in ordered.values():
        flat = tensor.detach().cpu().contiguous().reshape(-1)
        yield flat.view(torch.uint8).numpy().data


def _check_writable(tensors: Mapping[str, Tensor]) -> None:
    assert sys.byteorder == "little", "the format is little-endian"
    memory: dict[tuple[torch.device, int], str] = {}
    for name, tensor in tensors.items():
        assert name != "__metadata__", "this name belongs to the format"
        assert tensor.layout is torch.strided, f"{name} is {tensor.layout}"
        assert tensor.dtype in NAMES, f"{name} is {tensor.dtype}"
        assert tensor.dim() <= MAX_AXES, f"{name} has {tensor.dim()} axes"
        if tensor.numel():
            other = memory.setdefault((tensor.device, tensor.data_ptr()), name)
            assert other == name, f"{name} and {other} are one memory: save one of them"


def read_tensors(file: BufferedReader, size_bytes: int) -> dict[str, Tensor]:
    """The tensors in `file`, which holds `size_bytes` from its present position on; ValueError says what is wrong with it.

    Allocates `size_bytes` at most, and the parsed header (at most 16 MiB of JSON).
    """
    entries = _read_header(file, size_bytes)
    tensors: dict[str, Tensor] = {}
    for name, (dtype, shape, num_bytes) in entries.items():
        raw = torch.empty(num_bytes, dtype=torch.uint8)
        if num_bytes and file.readinto(raw.numpy().data) != num_bytes:
            raise ValueError(f"it ends inside tensor {name[:80]!r}")
        if dtype is torch.bool and raw.gt(1).any():
            raise ValueError(f"tensor {name[:80]!r} holds bytes that are neither true nor false")
        tensors[name] = raw.view(dtype).reshape(shape)
    return tensors


def _read_header(file: BufferedReader, size_bytes: int) -> dict[str, tuple[torch.dtype, list[int], int]]:
    """dtype, shape and bytes of each tensor, in the order of their data, which fills the file exactly."""
    assert sys.byteorder == "little", "the format is little-endian"
    prefix = file.read(8)
    length = int.from_bytes(prefix, "little")
    if len(prefix) < 8 or length > size_bytes - 8:
        raise ValueError(f"a tensor file begins with the length of its header, which is within its {size_bytes} bytes")
    if length > MAX_HEADER_BYTES:
        raise ValueError(f"its header has {length} bytes, more than {MAX_HEADER_BYTES}")
    header = parse_json(file.read(length))
    if not isinstance(header, dict):
        raise ValueError("its header is not a JSON object")
    header.pop("__metadata__", None)
    claims = {name: _claim(name[:80], entry) for name, entry in header.items()}
    entries, end = {}, 0
    for name, (dtype, shape, begin, stop) in sorted(claims.items(), key=lambda item: item[1][2:]):
        if begin != end:
            raise ValueError(f"tensor {name[:80]!r} begins at byte {begin} of the data, the one before it ends at {end}")
        entries[name], end = (dtype, shape, stop - begin), stop
    if end != size_bytes - 8 - length:
        raise ValueError(f"its header speaks of {end} bytes of tensors, the file holds {size_bytes - 8 - length}")
    return entries


def _claim(name: str, entry: Any) -> tuple[torch.dtype, list[int], int, int]:
    """dtype, shape, begin and end that a header's entry claims, if they agree with each other."""
    match entry:
        case {"dtype": str(dtype_name), "shape": list(shape), "data_offsets": [begin, end], **rest} if not rest:
            if dtype_name not in DTYPES:
                raise ValueError(f"tensor {name!r} is of type {dtype_name[:20]!r}; known are {', '.join(DTYPES)}")
            numbers = [*shape, begin, end]
            if len(shape) > MAX_AXES or any(type(number) is not int or not 0 <= number < 1 << 60 for number in numbers):
                raise ValueError(f"tensor {name!r} has a shape or a place that cannot be")
            itemsize = DTYPES[dtype_name].itemsize
            if math.prod(max(size, 1) for size in shape) * itemsize >= 1 << 60 or math.prod(shape) * itemsize != end - begin:
                raise ValueError(f"tensor {name!r} of shape {shape} and type {dtype_name} does not fill {end - begin} bytes")
            return DTYPES[dtype_name], shape, begin, end
    raise ValueError(f"tensor {name!r} is not described by dtype, shape and data_offsets")
