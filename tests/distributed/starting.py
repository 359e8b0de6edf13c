"""Processes as torchrun starts them, and what their runs hold. Loaded by `runpy`, as tests/ is no package."""

import json
import os
import socket
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import torch

from lmtrain.training.checkpoint import find_checkpoint, load_checkpoint

SOURCE = Path(__file__).parents[2] / "src"
SMALL = [
    "data=text", "data.path=text.txt", "data.cache_dir=cache", "model.embed_size=6", "model.hidden_size=8",
    "trainer.batch_size=5", "trainer.chunk_length=10", "trainer.num_steps=12", "trainer.max_seconds=null",
    "trainer.log_every=2", "trainer.sample_tokens=0", "trainer.precision=float32", "trainer.evaluate_every=6",
    "trainer.final_split=none", "trainer.projector=false", "trainer.device=cpu", "model.dropout=0.3",
]  # fmt: skip


def environment(**more: str) -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items() if name not in ("RANK", "WORLD_SIZE")}
    return kept | {"PYTHONPATH": str(SOURCE), "OMP_NUM_THREADS": "1"} | more


def start(
    size: int,
    arguments: Sequence[str],
    limit: Callable[[], None] | None = None,
    *,
    fault: str = "",
    apart: bool = False,
    script: str = "faulty.py",
) -> list[subprocess.Popen]:
    """What torchrun starts, without torchrun; `limit` is called in the first process, before it begins.

    fault  what shall happen to which process when: see faulty.py
    script "unlike.py" instead: see there
    apart  each process has its own directory to work in, and takes itself for the first one of its machine
    """
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    common = {"WORLD_SIZE": str(size), "LOCAL_WORLD_SIZE": str(size), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    if size == 1:
        common = {}
    program = [str(Path(__file__).with_name(script)), *[fault] * bool(fault)]
    if script == "faulty.py" and not fault:
        program = ["-m", "lmtrain"]
    return [
        subprocess.Popen(
            [sys.executable, *program, *arguments], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
            env=environment(**(common | (own(rank) if size > 1 else {}) | ({"LOCAL_RANK": "0"} if apart else {}))),
            preexec_fn=None if rank else limit, cwd=f"machine{rank}" if apart else None,
        )
        for rank in range(size)
    ]  # fmt: skip


def own(rank: int) -> dict[str, str]:
    return {"RANK": str(rank), "LOCAL_RANK": str(rank), "TORCHELASTIC_ERROR_FILE": f"error{rank}.json"}


def ended(processes: list[subprocess.Popen]) -> tuple[list[int], list[str]]:
    """Exit codes, and what was said on standard error."""
    said = [process.communicate(timeout=60)[1] for process in processes]
    return [process.returncode for process in processes], said


def train(size: int, directory: str, *more: str) -> None:
    codes, said = ended(start(size, [*SMALL, f"hydra.run.dir={directory}", *more]))
    assert codes == [0] * size, "".join(said)


def tensors(directory: str) -> dict[str, torch.Tensor]:
    checkpoint = load_checkpoint(find_checkpoint(Path(directory), "last"))
    files = checkpoint.tensors
    return {f"{file}.{name}": tensor for file in ("model", "training") for name, tensor in files[file].items()}


def losses(directory: str) -> list[float]:
    records = [json.loads(line) for line in Path(directory, "metrics.jsonl").read_text().splitlines()]
    return [value for record in records for name, value in record.items() if name.endswith("nats_per_token")]


def assert_same_run(one: str, other: str) -> None:
    torch.testing.assert_close(losses(other), losses(one), rtol=1e-5, atol=0)
    torch.testing.assert_close(tensors(other), tensors(one), rtol=1e-3, atol=2e-5)


def said_once(said: list[str]) -> str:
    """What all processes together said on standard error: one message of ours, and no traceback."""
    together = "".join(said)
    assert together.count("lmtrain: ") == 1, together
    assert "Traceback" not in together, together
    return together
