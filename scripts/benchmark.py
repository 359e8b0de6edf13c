"""How fast one training step is, against the same step written with `torch.nn`, in one process on the same numbers.

    python scripts/benchmark.py --preset all --json benchmark.json
    python scripts/benchmark.py --device cuda --preset all --json benchmark_gpu.json
    python scripts/benchmark.py --preset ngram3 ngram5 --data DATA

Every contestant starts from the same weights and sees the same batch. First losses and gradients are compared; then the
contestants take turns, so that a machine that slows down slows all of them: a step to warm up, a step that is timed. Ours
keep the memory that tensors free, as in our training; the others have it as glibc gives it. `dropin650` is the plain way
itself, with `lmtrain.nn.LSTM` in the place of `torch.nn.LSTM` and nothing else of ours; `packed256` has these two modules
alone, over a packed sequence of texts of 1 to 63 steps. A row gives the median time of a step and how many times as fast it
is as `torch.nn`: in float32 (`ratio`: `torch.nn` modules, `cross_entropy`, `torch.optim.Adam` as one would write it), in
the row's own precision (`alike`), under autocast (`auto`), and both once more with `torch.nn` under our memory setting,
where freed blocks are kept (`kept`, `auto,k`; for rows that keep them too). `peak` is the fraction of the fastest square
product that the same run measured. What could not be measured is "-" here and null in the file.
`scripts/README.md` has the table and how to read it.

On a CPU, a second table has the parts of a step of ours, each timed alone, beside a **limit** (`benchmarks/roofline.py`): the
least time that its products need, each at the best rate measured for its own shape, or its bytes, at the bandwidth measured for
the cache in which they lie. `whole` is the step beside the sum of these limits.

`ngram3` and `ngram5` score the test text of DATA with an n-gram model of its training text, against KenLM's reader on the same
ARPA file (`pip install kenlm`); the ratio is to that. Without kenlm or without a text they are left out.

On a GPU, `torch.nn` is cuDNN, in float32, float32 with TF32, bfloat16 and float16. Ours is `eager`, Triton step by step (a)
and in one launch (b, where the weight fits on the chip), each also recorded as a CUDA graph. The recurrences alone give
microseconds per step and layer, forward and backward. Memory is what PyTorch allocates at most; a graph's stays reserved.
"""

from __future__ import annotations

import argparse
import functools
import gc
import json
import sys
from collections.abc import Callable, Iterator
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch

from benchmarks.machine import Machine
from benchmarks.measuring import (
    Contestant,
    LeftOutError,
    agrees,
    as_it_runs,
    describe_machine,
    float32_products,
    peak_gflops,
    peak_megabytes,
    seconds_of,
    with_memory_kept,
)  # fmt: skip
from benchmarks.ngrams import make_ngram_scorers
from benchmarks.pieces import make_generators, make_heads, make_packed, make_recurrences
from benchmarks.presets import CPU_PRESETS, GPU_PRESETS, PRESETS, Preset
from benchmarks.readme import tables
from benchmarks.roofline import Limit, compared, limits_of, work_of
from benchmarks.roofline import table as roofline_table
from benchmarks.rows import Row, make_row, medians_of, print_head, print_row
from benchmarks.steps import make_dropins, make_steps
from benchmarks.using import make_samplers, make_scorers
from lmtrain.errors import UserError
from lmtrain.ops.transforms import multiplies_bfloat16_in_plain_loops

MAKERS: dict[str, Callable[[Preset, torch.device], Iterator[Contestant]]] = {
    "step": make_steps,
    "dropin": make_dropins,
    "packed": make_packed,
    "recurrence": make_recurrences,
    "head": make_heads,
    "generate": make_generators,
    "score": make_scorers,
    "samples": make_samplers,
    "ngram": make_ngram_scorers,
}
CALLS_TO_WARM_UP = 5


def main() -> None:
    options = _parse()
    if options.table:
        try:
            print(tables([row for file in options.table for row in json.loads(Path(file).read_text())]))
        except (OSError, ValueError, KeyError, TypeError) as error:
            sys.exit(f"--table takes files that --json wrote since there is a roofline; {error!r} says what is wrong.")
        return
    if options.threads:
        torch.set_num_threads(options.threads)
    torch.set_flush_denormal(True)
    device = torch.device(options.device)
    print(describe_machine(device))
    names = list(CPU_PRESETS if device.type == "cpu" else GPU_PRESETS) if "all" in options.preset else options.preset
    rows: list[Row] = []
    failed = []
    for name in names:
        try:
            rows += run_preset(replace(PRESETS[name], data=options.data), options.repeat, device)
        except LeftOutError as error:
            print(f"\n{name} is left out: {error}.", flush=True)
        except (RuntimeError, UserError) as error:  # the other presets are worth having
            print(f"\n{name}: {error}", flush=True)
            failed.append(name)
        gc.collect()  # contestants, with what they hold on the device
        if options.json:
            document = json.dumps([asdict(row) for row in rows], indent=2, allow_nan=False)
            Path(options.json).write_text(document + "\n")
    if failed:
        sys.exit(f"failed: {', '.join(failed)}")
    if any(row.agrees is False for row in rows):
        sys.exit("a contestant does not agree with the plain float32 step")


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--preset", nargs="+", default=["all"], choices=["all", *PRESETS], metavar="NAME",
                        help=f"all, or some of {', '.join(PRESETS)}")  # fmt: skip
    parser.add_argument("--repeat", type=int, default=15, help="timed turns of every contestant (default: %(default)s)")
    parser.add_argument("--json", metavar="FILE", help="also write the rows there")
    parser.add_argument("--table", nargs="+", metavar="FILE",
                        help="only print what --json wrote there, as tables for a README")  # fmt: skip
    parser.add_argument("--data", metavar="DIR", default="", help="train.txt and test.txt, for ngram3 and ngram5")
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    parser.add_argument("--threads", type=int, default=0, help="of the CPU (default: PyTorch's own choice)")
    options = parser.parse_args()
    if options.repeat < 1:
        parser.error(f"--repeat is {options.repeat}; it must be at least 1")
    if options.threads < 0:
        parser.error(f"--threads is {options.threads}; it must be at least 1, or 0 for PyTorch's own choice")
    if options.device == "cuda" and not torch.cuda.is_available():
        parser.error("--device is cuda, but PyTorch sees no GPU here")
    return options


def run_preset(preset: Preset, repeat: int, device: torch.device) -> list[Row]:
    """Compares, times and prints one preset. A contestant that cannot run here (no memory, no kernel) is left out, with why."""
    torch.manual_seed(0)
    contestants = list(MAKERS[preset.part](preset, device))
    if device.type == "cpu" and multiplies_bfloat16_in_plain_loops():
        print("torch.nn in bfloat16 is left out: on this processor PyTorch multiplies it in plain loops.")
        contestants = [each for each in contestants if (each.backend, each.precision) != ("torch.nn", "bfloat16")]
    if device.type == "cpu":
        contestants = [each for contestant in contestants for each in (contestant, *with_memory_kept(contestant))]
    plain = contestants[0]
    with float32_products(plain.precision, device):
        expected = plain.probe() if plain.probe else {}
    agreements = _of_each(contestants, lambda contestant: agrees(contestant, expected, device))
    contestants = [contestant for contestant in contestants if contestant.name in agreements]
    warmed_up = _of_each(contestants, lambda contestant: _warm_up(contestant, device))  # which moves the weights
    contestants = [contestant for contestant in contestants if contestant.name in warmed_up]
    precisions = {contestant.precision for contestant in contestants} if preset.flops else ()
    peak = {precision: peak_gflops(precision, device) for precision in precisions}
    for _ in range(repeat):
        for contestant in contestants:
            with as_it_runs(contestant, device):
                for _ in range(contestant.first_runs):
                    contestant.run()  # its caches and its memory
                contestant.seconds.append(seconds_of(contestant.run, device))
    medians = medians_of(contestants)
    print_head(preset, peak)
    rows = []
    for contestant in contestants:
        with as_it_runs(contestant, device):
            megabytes = peak_megabytes(contestant.run, device)
            parts = contestant.parts() if contestant.parts else {}
        row = make_row(preset, contestant, plain, medians, peak, agreements[contestant.name], megabytes)
        row.parts = parts
        print_row(row)
        rows.append(row)
    if device.type == "cpu":
        try:
            _add_rooflines(preset, contestants, rows, device)
        except LeftOutError as error:
            print(f"There is no roofline: {error}.")
    return rows


def _add_rooflines(preset: Preset, contestants: list[Contestant], rows: list[Row], device: torch.device) -> None:
    """What each row could reach at best; prints the parts of those whose parts can be measured."""
    limits: dict[str, dict[str, Limit]] = {}
    for contestant, row in zip(contestants, rows, strict=True):
        if not work_of(preset, contestant.precision):
            continue
        if contestant.precision not in limits:
            limits[contestant.precision] = limits_of(preset, contestant.precision, machine())
        with as_it_runs(contestant, device):
            measured = contestant.roofline_parts() if contestant.roofline_parts else {}
        row.roofline = compared(measured, limits[contestant.precision], 1e3 * min(contestant.seconds))
        if measured or preset.part in ("head", "generate", "score", "samples"):
            print(roofline_table(f"{contestant.name}: each part alone, and its limit", row.roofline), flush=True)


@functools.cache
def machine() -> Machine:
    """This machine, measured once."""
    made = Machine()
    print(made.description())
    return made


def _of_each(contestants: list[Contestant], work: Callable[[Contestant], Any]) -> dict[str, Any]:
    """What `work` returns by name; says of those that cannot run here (no memory, no kernel) why, and leaves them out."""
    results = {}
    for contestant in contestants:
        try:
            results[contestant.name] = work(contestant)
        except (RuntimeError, UserError) as error:
            if contestant is contestants[0]:
                raise
            print(f"\n{contestant.name} cannot run here: {str(error).partition(chr(10))[0]}")
    return results


def _warm_up(contestant: Contestant, device: torch.device) -> None:
    with as_it_runs(contestant, device):
        for _ in range(CALLS_TO_WARM_UP):
            contestant.run()


if __name__ == "__main__":
    main()
