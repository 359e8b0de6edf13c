"""Several processes against one: how fast a step is, and that the losses are the same.

    python scripts/processes.py speed --preset lstm200 lstm650
    python scripts/processes.py losses TEXT

`speed`  Two processes of one thread take turns with one process of two threads (and of one) on the same batch, from the same
         weights. Losses are compared first. Milliseconds are the least of all turns, which other work on the machine distorts
         least: of a step, of what a step spends in the exchange of gradients, waiting for the other process included, and of an
         exchange `alone`, with nothing else to do. `overlapped` is what training does: the exchange of large gradients begins
         as soon as the backward pass has them.
`losses` Trains the same small LSTM with dropout in 1, 2 and 3 processes; prints the losses as a table.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.measuring import PRECISIONS, describe_machine
from benchmarks.models import draw_tokens, our_model, ways
from benchmarks.presets import PRESETS
from benchmarks.steps import PROGRESS, our_learner
from lmtrain.data.stream import Chunk
from lmtrain.distributed.group import Group, Processes
from lmtrain.distributed.launch import joined
from lmtrain.machine import keep_freed_memory

CPU = torch.device("cpu")
STEPS_TO_WARM_UP = 4
TEAMS = {"1 process of 2 threads": (1, 2), "1 process of 1 thread": (1, 1), "2 processes of 1 thread": (2, 1),
         "2 processes, overlapped": (2, 1)}  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    speed = commands.add_parser("speed")
    speed.add_argument("--preset", nargs="+", default=["lstm200", "lstm650"], choices=sorted(PRESETS), metavar="NAME")
    speed.add_argument("--precision", nargs="+", default=list(PRECISIONS["cpu"]), choices=PRECISIONS["cpu"])
    speed.add_argument("--repeat", type=int, default=15, help="timed turns (default: %(default)s)")
    losses = commands.add_parser("losses")
    losses.add_argument("text", type=Path, help="a text to learn")
    losses.add_argument("--steps", type=int, default=200)
    options = parser.parse_args()
    if options.command == "losses":
        print_losses(options.text.resolve(), options.steps)
        return
    print(describe_machine(CPU))
    for name in options.preset:
        for precision in options.precision:
            print_speed(name, precision, options.repeat)


# ---- speed


def print_speed(preset: str, precision: str, repeat: int) -> None:
    """Takes turns with all teams at one preset."""
    print(f"\n{preset}, {precision}\n{'':26}{'ms':>8}{'ratio':>7}{'exchange':>10}{'alone':>8}")
    with started(preset, precision) as teams:
        for pipes in teams.values():
            for _ in range(STEPS_TO_WARM_UP):
                last = [loss for loss, _, _ in asked(pipes, "step")]
            if (first := asked(next(iter(teams.values())), "loss")[0][0]) and abs(last[0] - first) > 1e-2 * abs(first):
                sys.exit(f"the losses differ: {last[0]} and {first}")
        taken: dict[str, list[tuple[float, float]]] = {name: [] for name in teams}
        for _ in range(repeat):
            for name, pipes in teams.items():
                asked(pipes, "step")  # its caches
                answers = asked(pipes, "step")
                taken[name].append((max(seconds for _, seconds, _ in answers), max(inside for _, _, inside in answers)))
        least = {name: [1e3 * min(column) for column in zip(*rows, strict=True)] for name, rows in taken.items()}
        plain = next(iter(least.values()))[0]
        for name, (whole, exchange) in least.items():
            alone = 1e3 * min(asked(teams[name], "exchange")[0][1] for _ in range(10))
            exchanged = f"{exchange:>10.1f}{alone:>8.1f}" if len(teams[name]) > 1 else ""
            print(f"{name:26}{whole:>8.1f}{plain / whole:>7.2f}{exchanged}", flush=True)


@contextmanager
def started(preset: str, precision: str) -> Iterator[dict[str, list[Connection]]]:
    """The processes of all teams, by the pipes over which they are asked."""
    context = multiprocessing.get_context("spawn")
    teams: dict[str, list[Connection]] = {}
    processes = []
    for name, (size, threads) in TEAMS.items():
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        teams[name] = []
        for rank in range(size):
            ours, theirs = context.Pipe()
            environment = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": size, "LOCAL_WORLD_SIZE": size,
                           "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}  # fmt: skip
            arguments = theirs, environment, preset, precision, threads, name.endswith("overlapped")
            processes.append(context.Process(target=serve, args=arguments, daemon=True))
            processes[-1].start()
            theirs.close()
            teams[name].append(ours)
    try:
        yield teams
    finally:
        for pipe in (pipe for pipes in teams.values() for pipe in pipes):
            with suppress(OSError):
                pipe.send("end")
        for process in processes:
            process.join(20)


def asked(pipes: list[Connection], word: str) -> list[tuple[float, float, float]]:
    """Of each process: the loss, the seconds, and those of them in the exchange."""
    for pipe in pipes:
        pipe.send(word)
    return [pipe.recv() for pipe in pipes]


def serve(pipe: Connection, environment: dict[str, Any], preset: str, precision: str, threads: int, overlaps: bool) -> None:
    """One process of a team: does what it is asked for, until "end"."""
    os.environ |= {name: str(value) for name, value in environment.items()}
    torch.set_num_threads(threads)
    torch.set_flush_denormal(True)
    keep_freed_memory(True)
    with joined() as group:
        exchange = Exchange(group, overlaps)
        step = Step(preset, precision, exchange)
        while (word := pipe.recv()) != "end":
            exchange.seconds_inside = 0.0
            began_at = time.perf_counter()
            if word == "step":
                step()
            elif word == "exchange" and group.size > 1:
                exchange.alone(step.learner.model)
                began_at += exchange.seconds_of_barrier
            pipe.send((step.loss, time.perf_counter() - began_at, exchange.seconds_inside))


class Step:
    """One training step of ours on a batch of a preset, of which this process has its columns."""

    def __init__(self, name: str, precision: str, exchange: Exchange) -> None:
        preset = PRESETS[name]
        torch.manual_seed(0)
        tokens_TB = draw_tokens(preset, CPU, preset.chunk_length + 1)
        way = ways(preset, CPU, precision)[-1]
        self.learner = our_learner(our_model(preset, way.backend, CPU), precision, CPU)
        if exchange.group.size > 1:
            self.learner.shared(exchange, preset.batch_size)
        self.chunk = Chunk(tokens_TB[:-1], tokens_TB[1:], starts_epoch=False, epoch=0, index=0)
        self.loss = 0.0

    def __call__(self) -> None:
        self.loss = self.learner.step(self.chunk, PROGRESS).loss or 0.0


class Exchange(Group):
    """A group whose exchange of gradients is timed, and begins within the backward pass only where it `overlaps`."""

    def __init__(self, group: Group, overlaps: bool) -> None:
        self.group, self.overlaps = group, overlaps
        self.rank, self.size = group.rank, group.size
        self.seconds_inside = self.seconds_of_barrier = 0.0

    def early_sums(self) -> AbstractContextManager[None]:
        return self.group.early_sums() if self.overlaps else nullcontext()

    def sum_gradients(self, parameters: Iterable[nn.Parameter], *numbers: Tensor) -> tuple[Tensor, ...]:
        began_at = time.perf_counter()
        sums = self.group.sum_gradients(parameters, *numbers)
        self.seconds_inside += time.perf_counter() - began_at
        return sums

    def take(self, *tensors: Tensor) -> None:
        began_at = time.perf_counter()
        self.group.take(*tensors)
        self.seconds_inside += time.perf_counter() - began_at

    def alone(self, model: nn.Module) -> None:
        """One exchange of gradients that are there."""
        began_at = time.perf_counter()
        assert isinstance(self.group, Processes)
        self.group.links.meet()
        self.seconds_of_barrier = time.perf_counter() - began_at
        self.group.sum_gradients(model.parameters())


# ---- losses


SETTINGS = [
    "model=lstm", "model.embed_size=64", "model.hidden_size=128", "model.dropout=0.3", "data=text", "trainer.batch_size=20",
    "trainer.chunk_length=35", "trainer.max_seconds=null", "trainer.log_every=1", "trainer.sample_tokens=0",
    "trainer.precision=float32", "trainer.final_split=none", "trainer.projector=false", "trainer.device=cpu",
    "optimizer.learning_rate=0.003", "trainer.clip_norm=1",
]  # fmt: skip


def print_losses(text: Path, steps: int) -> None:
    """Trains in 1, 2 and 3 processes; a table of losses at some steps, with the largest difference anywhere, validation too."""
    with tempfile.TemporaryDirectory() as place:
        curves = [_curve(text, steps, size, Path(place)) for size in (1, 2, 3)]
    print("| step | 1 process | 2 processes | 3 processes |\n|---|---|---|---|")
    shown = [n for n in (1, 10, 50, 100, 200, 500, 1000, 2000) if n < steps]
    for step in [*shown, steps]:
        print(f"| {step} | " + " | ".join(f"{curve[f'train {step}']:.6f}" for curve in curves) + " |")
    for size, curve in zip((2, 3), curves[1:], strict=True):
        most = max(abs(curve[name] / value - 1) for name, value in curves[0].items())
        print(f"The losses of {size} processes differ from those of one by {most:.1e} at most, relative.")


def _curve(text: Path, steps: int, size: int, place: Path) -> dict[str, float]:
    """Every recorded loss, in nats per token: "train STEP", and of validation."""
    run = place / str(size)
    torchrun = ["torch.distributed.run", "--standalone", f"--nproc-per-node={size}", "-m"] if size > 1 else []
    settings = [*SETTINGS, f"data.path='{text}'", f"data.cache_dir='{place / 'cache'}'", f"hydra.run.dir='{run}'"]
    settings += [f"trainer.num_steps={steps}", f"trainer.evaluate_every={steps}", "trainer.num_threads=1"]
    done = subprocess.run([sys.executable, "-m", *torchrun, "lmtrain", *settings], stdout=subprocess.DEVNULL, check=False)
    if done.returncode:
        sys.exit(f"a training by {size} processes ended with exit code {done.returncode}")
    records = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return {f"{name.partition('/')[0]} {record['step']}": value for record in records
            for name, value in record.items() if name.endswith("nats_per_token")}  # fmt: skip


if __name__ == "__main__":
    main()
