"""What this machine can do at best, measured in this process: matrix products of a given shape, and bytes by where they lie.

A product is measured in the ways that are open to us, and the fastest counts: `torch.mm` (of bfloat16 by `multiply`, where
PyTorch has only plain loops for it), our `products.product` for one in float32, and the native kernel alone, with nothing
around it (`limits.cpp`, compiled here with that backend's flags). Bytes are read, or read and written back, in sets that fill
half of the cores' second-level caches, half of the third-level one, or neither.
"""

from __future__ import annotations

import ctypes
import functools
import os
import subprocess
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch

from benchmarks.measuring import LeftOutError, dtype_of, least_seconds
from lmtrain.ops.native import build, products
from lmtrain.ops.transforms import multiplies_bfloat16_in_plain_loops, multiply

CPU = torch.device("cpu")
CACHES = Path("/sys/devices/system/cpu/cpu0/cache")
SOURCE = Path(__file__).with_name("limits.cpp")
LEVELS = ("L2", "L3", "memory")
ROUNDS = 2  # of every measurement, because other work may slow a machine down for a second
LONG_SECONDS = 0.1  # what takes longer is repeated twice, the rest eight times
ENOUGH_BYTES = 1 << 28  # of one measurement of a bandwidth


@dataclass(frozen=True)
class Product:
    """`times` products [rows, inner] x [inner, columns] with the same right operand, one after the other.

    `layout` says for each operand of `torch.mm` whether it lies as written (n) or transposed (t).
    """

    rows: int
    inner: int
    columns: int
    times: int = 1
    layout: str = "nt"

    @property
    def flops(self) -> int:
        return 2 * self.rows * self.inner * self.columns * self.times

    def __str__(self) -> str:
        return f"{self.rows} x {self.inner} x {self.columns}" + (f", {self.times} times" if self.times > 1 else "")


class Machine:
    """The threads of this process. Measures what it is asked for, once. Raises LeftOutError where it cannot."""

    def __init__(self) -> None:
        self.threads = torch.get_num_threads()
        self.cache_bytes = cache_bytes(self.threads)
        self._library = compiled()
        self.seconds = functools.cache(self._measure_product)
        self.bytes_per_second = functools.cache(self._measure_bandwidth)

    def shares(self, set_bytes: int) -> dict[str, float]:
        """Which share of a set of bytes each level can hold at best, the nearest first; the threads share the set."""
        found, held = {}, 0
        for name, size in self.cache_bytes.items():
            found[name] = (min(size, set_bytes) - held) / set_bytes
            held = min(size, set_bytes)
        return {name: share for name, share in (found | {"memory": 1 - held / set_bytes}).items() if share}

    def description(self) -> str:
        """The bandwidths, in words."""
        shown = (
            f"{name} {self.bytes_per_second(name, False) / 1e9:.0f} and {self.bytes_per_second(name, True) / 1e9:.0f}"
            for name in (*self.cache_bytes, "memory")
        )
        sizes = ", ".join(f"{name} {size / (1 << 20):g} MB" for name, size in self.cache_bytes.items())
        return f"caches of {self.threads} threads: {sizes}; GB/s when reading and when updating: {', '.join(shown)}"

    def ways(self, product: Product, precision: str) -> dict[str, float]:
        """Seconds of all `times`, by the way in which it is computed."""
        left, right = laid_out(product, precision)
        out = torch.empty(product.rows, product.columns, dtype=left.dtype)
        slow = left.dtype == torch.bfloat16 and multiplies_bfloat16_in_plain_loops()
        run = functools.partial(multiply, torch.mm) if slow else functools.partial(torch.mm, out=out)
        found = {"torch": product.times * _least(lambda: run(left, right))}
        if precision == "float32" and product.times == 1:
            found["product"] = _least(lambda: products.product(left, right))
        turned = Product(product.columns, product.inner, product.rows)  # the other operand may be the one that is packed
        for one in [product] if product.times > 1 else [product, turned]:
            for by_rows in (False, True)[: 1 + (self.threads > 1)]:
                name = f"native{' turned' if one is turned else ''}{' by rows' if by_rows else ''}"
                found[name] = _least(self.native_product(one, precision, by_rows))
        return found

    def native_product(
        self, product: Product, precision: str, by_rows: bool, first: torch.Tensor | None = None
    ) -> Callable[[], None]:
        """The native product of random operands, packing included; `first` [rows, columns] gets a result."""
        M, K, N = product.rows, product.inner, product.columns
        bfloat16 = precision == "bfloat16"
        element = torch.float32 if self._library.benchmark_element_bytes(bfloat16) == 4 else torch.bfloat16
        left, right = operands(product, precision)
        depth = self._library.benchmark_depth(bfloat16, ctypes.c_long(K))
        padded = torch.zeros((M + 15) // 16 * 16 + 16, depth, dtype=element)
        padded[:M, :K] = left

        def run() -> None:
            self._library.benchmark_products(
                int(bfloat16), *map(ctypes.c_long, (product.times, M, K, N)), _pointer(padded), _pointer(right), int(by_rows),
                None if first is None else _pointer(first), ctypes.c_long(self.threads),
            )  # fmt: skip

        return run

    def _measure_product(self, product: Product, precision: str) -> float:
        return min(min(self.ways(product, precision).values()) for _ in range(ROUNDS))

    def _measure_bandwidth(self, level: str, updates: bool) -> float:
        """Bytes per second; those that are updated count twice, because they are read and written."""
        nearer = sum(size for name, size in self.cache_bytes.items() if name < level)  # "L2" < "L3" < "memory"
        size = max(self.cache_bytes[level] // 2, nearer) if level in self.cache_bytes else 4 * max(1 << 25, nearer)
        memory = torch.zeros(size // 4)
        times = max(1, ENOUGH_BYTES // size)

        def run() -> None:
            self._library.benchmark_passes(
                _pointer(memory), ctypes.c_long(len(memory)), ctypes.c_long(times), int(updates), ctypes.c_long(self.threads)
            )

        return (1 + updates) * times * size / min(_least(run) for _ in range(ROUNDS))


def operands(product: Product, precision: str) -> tuple[torch.Tensor, torch.Tensor]:
    """Left [rows, inner] and right [columns, inner], the same for the same product."""
    generator = torch.Generator().manual_seed(0)
    shapes = (product.rows, product.inner), (product.columns, product.inner)
    left, right = (torch.randn(*shape, generator=generator).to(dtype_of(precision)) for shape in shapes)
    return left, right


def laid_out(product: Product, precision: str) -> tuple[torch.Tensor, torch.Tensor]:
    """Left [rows, inner] and right [inner, columns] as they lie where the product is made."""
    shapes = (product.rows, product.inner), (product.inner, product.columns)
    left, right = (
        torch.randn(*shape).to(dtype_of(precision)) if kind == "n" else torch.randn(*shape[::-1]).to(dtype_of(precision)).T
        for shape, kind in zip(shapes, product.layout, strict=True)
    )
    return left, right


def cache_bytes(threads: int) -> dict[str, int]:
    """The caches that `threads` cores have together, by level: their own second-level ones, and the third, which they share."""
    found: dict[str, int] = {}
    for index in sorted(CACHES.glob("index*")):
        try:
            level, kind, size = ((index / name).read_text().strip() for name in ("level", "type", "size"))
            size_bytes = int(size.rstrip("KM")) << (20 if size.endswith("M") else 10)
        except (OSError, ValueError):
            continue
        if kind != "Instruction" and level in "23":
            found[f"L{level}"] = size_bytes * (threads if level == "2" else 1)
    return {name: found[name] for name in LEVELS if found.get(name)}


@functools.cache
def compiled() -> ctypes.CDLL:
    """`limits.cpp` as a library. Raises LeftOutError where it cannot be had."""
    if reason := build.why_no_library():
        raise LeftOutError(f"the native backend is missing: {reason}")
    isa = os.environ.get("LMTRAIN_NATIVE_ISA", "native")
    with tempfile.TemporaryDirectory() as folder:
        made = f"{folder}/limits.so"
        command = [
            *build._compiler(), *build.FLAGS, *build.LIBRARY_FLAGS, *build.ISA_FLAGS[isa], f"-I{build.FOLDER}", "-shared",
            str(SOURCE), "-o", made, *build._openmp_runtime(),
        ]  # fmt: skip
        ended = subprocess.run(command, capture_output=True, text=True)
        if ended.returncode:
            raise LeftOutError(f"{SOURCE.name} cannot be compiled: {ended.stderr.strip()[:300]}")
        library = ctypes.CDLL(made)
    library.benchmark_element_bytes.restype = library.benchmark_depth.restype = ctypes.c_long
    library.benchmark_products.restype = None
    library.benchmark_passes.restype = ctypes.c_double
    return library


def _least(run: Callable[[], object]) -> float:
    run()
    once = least_seconds(run, CPU, 1)
    return min(once, least_seconds(run, CPU, 2 if once > LONG_SECONDS else 8))


def _pointer(tensor: torch.Tensor) -> ctypes.c_void_p:
    return ctypes.c_void_p(tensor.data_ptr())
