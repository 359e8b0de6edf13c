"""Tensors in safetensors files, by the library of that name, with Python's file objects around it.

The library checks every claim of a header against the bytes that there are before it allocates: no gaps, no overlaps,
nothing outside the file. What it leaves to its caller is done here: files are written through Python (so a full disk is
an OSError, and modes follow the umask), read no further than the manifest allows, and hold only types that we write.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from io import BufferedReader

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

DTYPES = (
    torch.float64, torch.float32, torch.float16, torch.bfloat16,
    torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8, torch.bool,
)  # fmt: skip


def iter_pieces(tensors: Mapping[str, Tensor]) -> Iterator[bytes | memoryview]:
    """The file that holds `tensors`, in pieces to be written one after the other.

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
    yield save({name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}, {"format": "pt"})


def read_tensors(file: BufferedReader, size_bytes: int) -> dict[str, Tensor]:
    """The tensors in `file`, which holds `size_bytes` from its present position on; ValueError says what is wrong with it.

    Allocates no more than twice `size_bytes`, whatever the header asks for.
    """
    data = file.read(size_bytes)
    if len(data) != size_bytes:
        raise ValueError(f"it has {len(data)} bytes instead of {size_bytes}")
    try:
        tensors = load(data)
    except (SafetensorError, ValueError, RuntimeError, TypeError, AttributeError, KeyError, OverflowError) as error:
        raise ValueError(f"it is not a safetensors file ({str(error)[:200]})") from None
    for name, tensor in tensors.items():
        if tensor.dtype not in DTYPES:
            raise ValueError(f"tensor {name[:80]!r} is of type {tensor.dtype}, which no checkpoint of ours holds")
        if tensor.dtype is torch.bool and tensor.view(torch.uint8).gt(1).any():
            raise ValueError(f"tensor {name[:80]!r} holds bytes that are neither true nor false")
    return tensors
