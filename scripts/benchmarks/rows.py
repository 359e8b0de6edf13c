"""What a run of `scripts/benchmark.py` knows of a contestant, and how it is printed."""

from __future__ import annotations

import statistics
from dataclasses import dataclass, field

from benchmarks.measuring import Contestant, ratio
from benchmarks.presets import Preset
from benchmarks.roofline import Reached

COLUMNS = (
    ("ms", 9, "milliseconds_per_step", ".2f"), ("tokens/s", 11, "tokens_per_second", ",.0f"), ("ratio", 7, "ratio", ".2f"),
    ("alike", 7, "ratio_alike", ".2f"), ("auto", 7, "ratio_autocast", ".2f"), ("kept", 7, "ratio_kept", ".2f"),
    ("auto,k", 7, "ratio_autocast_kept", ".2f"), ("GFLOP/s", 9, "gflops", ".0f"), ("peak", 6, "fraction_of_peak", ".0%"),
    ("MB", 7, "peak_megabytes", ".0f"),
)  # fmt: skip


@dataclass
class Row:
    """What is known of a contestant; None where it was not measured.

    ratio                how many times as fast as `torch.nn` in float32
    ratio_alike          the same to `torch.nn` in the row's own precision
    ratio_autocast       the same to `torch.nn` under autocast, in bfloat16
    ratio_kept           the same in float32 where both keep the memory that tensors free; None for those that do not
    ratio_autocast_kept  the same under autocast
    roofline             the least time of the whole on this machine, and of the parts where these were measured
    """

    preset: str
    backend: str
    precision: str
    milliseconds_per_step: float
    tokens_per_second: float | None
    ratio: float | None
    ratio_alike: float | None
    gflops: float | None
    fraction_of_peak: float | None
    peak_megabytes: float
    agrees: bool | None
    parts: dict[str, float]
    ratio_autocast: float | None = None
    ratio_kept: float | None = None
    ratio_autocast_kept: float | None = None
    roofline: dict[str, Reached] = field(default_factory=dict)


def make_row(
    preset: Preset,
    contestant: Contestant,
    plain: Contestant,
    medians: dict[str, float],
    peak: dict[str, float | None],
    agrees: bool | None,
    megabytes: float,
) -> Row:
    """A row from the median seconds of all contestants by name; `plain` is the one that ratios are to."""
    seconds, precision = medians[contestant.name], contestant.precision
    gflops = ratio(preset.flops / 1e9, seconds) if preset.flops else None

    def to(backend: str, in_precision: str) -> float | None:
        return ratio(medians.get(f"{backend} {in_precision}"), seconds)

    def kept(in_precision: str) -> float | None:
        return to("torch.nn, memory kept", in_precision) if contestant.keeps_memory else None

    return Row(
        preset.name, contestant.backend, precision, 1e3 * seconds,
        ratio(contestant.num_tokens or preset.num_tokens, seconds), ratio(medians[plain.name], seconds),
        to("torch.nn", precision), gflops, ratio(gflops, peak.get(precision)), megabytes, agrees, {},
        to("torch.nn", "bfloat16"), kept("float32"), kept("bfloat16"),
    )  # fmt: skip


def medians_of(contestants: list[Contestant]) -> dict[str, float]:
    return {contestant.name: statistics.median(contestant.seconds) for contestant in contestants}


def print_head(preset: Preset, peak: dict[str, float | None]) -> None:
    if preset.part == "ngram":
        print(f"\n{preset.name}: Kneser-Ney of order {preset.order}, the test text of {preset.data}")
    else:
        print(f"\n{preset.name}: {preset.part}, {preset.cell} {preset.num_layers}x{preset.hidden_size}, B={preset.batch_size}, "
              f"T={preset.chunk_length}, V={preset.vocab_size}; matrix products reach "
              + ", ".join(f"{_written(peak[name], '.0f')} GFLOP/s in {name}" for name in sorted(peak)))  # fmt: skip
    print(
        f"{'backend':30}{'precision':>10}"
        + "".join(f"{title:>{width}}" for title, width, _, _ in COLUMNS)
        + "  agrees  parts (ms; recurrences on a GPU: microseconds per step)"
    )


def print_row(row: Row) -> None:
    shown = "".join(f"{_written(getattr(row, name), form):>{width}}" for _, width, name, form in COLUMNS)
    agrees_word = {True: "yes", False: "NO", None: "-"}[row.agrees]
    parts = " ".join(f"{name} {value:.1f}" for name, value in row.parts.items())
    print(f"{row.backend:30}{row.precision:>10}{shown}  {agrees_word:6}  {parts}", flush=True)


def _written(number: float | None, form: str) -> str:
    return "-" if number is None else format(number, form)
