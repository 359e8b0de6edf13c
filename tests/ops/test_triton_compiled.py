"""Every kernel of the Triton backend compiled for compute capability 9.0, which needs no GPU: that it compiles, that nothing
spills out of the registers, that shared memory is what the rule counts on, and that products run on tensor cores.

In a process of its own, because the other tests have switched Triton to its interpreter. As a script, prints a line for
every kernel.
"""

import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch

pytest.importorskip("triton", reason="Triton is not installed; pip install triton, or lmtrain[gpu]")


class Compiled(NamedTuple):
    """What the compiler says about a kernel. `shared_limit` is what `persistent.make_plan` reckons with, `held_bytes` the
    weight's share of it."""

    name: str
    num_registers: int
    stack_bytes: int
    shared_bytes: int
    shared_limit: int
    held_bytes: int
    multiplies_on_tensor_cores: bool
    reads_past_the_first_cache: bool


@pytest.fixture(scope="module")
def kernels() -> list[Compiled]:
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    done = subprocess.run([sys.executable, __file__], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return [Compiled(*json.loads(line)) for line in done.stdout.splitlines()]


@pytest.mark.slow
def test_every_kernel_compiles_for_a_gpu_and_stays_within_it(kernels: list[Compiled]) -> None:
    assert len(kernels) == 6 * 2 * 2 + 6 * 2 * 2 * 2 + 2 * 2
    for kernel in kernels:
        assert kernel.stack_bytes <= 32, kernel
        assert kernel.shared_bytes <= kernel.shared_limit <= 227 << 10, kernel


@pytest.mark.slow
def test_the_weight_lies_in_shared_memory_and_products_run_on_tensor_cores(kernels: list[Compiled]) -> None:
    persistent = [kernel for kernel in kernels if "_all" in kernel.name]
    assert len(persistent) == 6 * 2 * 2 * 2
    for kernel in persistent:
        assert kernel.multiplies_on_tensor_cores, kernel
        assert kernel.shared_bytes > kernel.held_bytes > 0, kernel
        assert kernel.reads_past_the_first_cache, kernel


# ---- the script


def compile_all() -> Iterator[Compiled]:
    """All kernels for bfloat16 and float32, plain and with every mask."""
    from lmtrain.ops.triton import cross_entropy, launch, persistent

    vars(persistent)["_describe"] = lambda device: (132, 227 << 10)
    vars(persistent)["_has_tensor_cores_for"] = lambda dtype: True
    for dtype in (torch.bfloat16, torch.float32):
        wide = {"ACCUMULATE": launch.TYPES[torch.float32]}
        for masked in (False, True):
            for name, num_gates, module in cells():
                own = {"NONLINEARITY": "tanh"} if name == "elman" else {}
                for kernel in (module._forward_step, module._backward_step):
                    options = launch.OPTIONS | wide | own | {"BLOCK": launch.BLOCK}
                    yield compile_kernel(name, kernel, dtype, masked, 650, options, 0, 0)
                for B, H in ((20, 650), (64, 1024)) if dtype == torch.bfloat16 else ((20, 200), (64, 640)):
                    plan = persistent.make_plan(torch.device("cuda"), dtype, num_gates, B, H)
                    assert plan is not None
                    shared = plan.shared_bytes(dtype, num_gates, H), num_gates * plan.units * H * dtype.itemsize
                    for kernel, length in ((module._forward_all, H), (module._backward_all, num_gates * H)):
                        yield compile_kernel(name, kernel, dtype, masked, H, plan.options(dtype, length) | own, *shared)
        rows = launch.OPTIONS | wide | {"BLOCK": cross_entropy.ROW_BLOCK, "num_warps": 8}
        yield compile_kernel("loss", cross_entropy._log_sums, dtype, True, 0, rows, 1 << 10, 0)
        tiles = launch.OPTIONS | wide | {"ROWS": cross_entropy.TILE_ROWS, "COLUMNS": cross_entropy.TILE_COLUMNS}
        yield compile_kernel("loss", cross_entropy._gradients, dtype, True, 0, tiles, 1 << 15, 0)


def cells() -> list[tuple[str, int, Any]]:
    from lmtrain.ops.triton import elman, gru, lstm

    return [("elman", 1, elman), ("gru", 3, gru), ("lstm", 4, lstm)]


MASKS = ("keep", "zoneout", "cell_zoneout", "direct", "candidates")
WIDE = (*MASKS[:-1], "product", "running_c", "running_d_c", "cells", "previous_cells", "c0", "candidate_bias", "bias",
        "losses", "log_sums", "sums")  # fmt: skip
INTEGERS = ("t", "T", "B", "H", "R", "V", "num_rows")


def compile_kernel(
    cell: str,
    kernel: Any,
    dtype: torch.dtype,
    masked: bool,
    hidden_size: int,
    options: dict[str, Any],
    shared_limit: int,
    held_bytes: int,
) -> Compiled:
    """Compiles one kernel; every parameter's type follows from its name."""
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    signature, constants, attributes = {}, {}, {}
    for number, name in enumerate(kernel.arg_names):
        signature[name] = "constexpr"
        if name in options:
            constants[name] = options[name]
        elif name in INTEGERS:
            signature[name] = "i32"
            if name == "H" and hidden_size % 16 == 0:
                attributes[number,] = [["tt.divisibility", 16]]
        elif name in MASKS and not masked and not (name == "candidates" and "d_states" in kernel.arg_names) and not (
            name == "direct" and cell == "gru"
        ):  # fmt: skip
            constants[name] = None
        else:
            narrow = "bf16" if dtype == torch.bfloat16 else "fp32"
            signature[name] = "*" + {"counters": "i32", "targets": "i64"}.get(name, "fp32" if name in WIDE else narrow)
            attributes[number,] = [["tt.divisibility", 16]]
    launch = {name: value for name, value in options.items() if not name.isupper()}
    source = ASTSource(kernel, signature=signature, constexprs=constants, attrs=attributes)
    made = triton.compile(source, target=GPUTarget("cuda", 90, 32), options=launch)
    usage = cuobjdump(made.asm["cubin"], "--dump-resource-usage")
    numbers = {key: int(value) for key, value in re.findall(r"(REG|STACK):(\d+)", usage)}
    return Compiled(
        f"{cell}.{kernel.__name__} {dtype} {hidden_size} {'masked' if masked else 'plain'}",
        numbers["REG"], numbers["STACK"], made.metadata.shared, shared_limit, held_bytes,
        "mma.sync" in made.asm["ptx"], "ld.global.cg.v4" in made.asm["ptx"],
    )  # fmt: skip


def cuobjdump(cubin: bytes, option: str) -> str:
    """Asks the tool that comes with Triton."""
    import tempfile

    import triton

    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory) / "kernel.cubin"
        path.write_bytes(cubin)
        tool = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
        return subprocess.run([tool, option, path], check=True, capture_output=True, text=True).stdout


if __name__ == "__main__":
    for compiled in compile_all():
        print(json.dumps(compiled), flush=True)
