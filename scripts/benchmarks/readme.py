"""What `--json` of `scripts/benchmark.py` wrote, as tables for a README: ratios, and where the milliseconds are."""

from __future__ import annotations

from typing import Any

PRECISIONS = ("bfloat16", "float32")
RATIOS = ("ratio", "ratio_autocast", "ratio_kept", "ratio_autocast_kept")

Rows = list[dict[str, Any]]


def tables(rows: Rows) -> str:
    """Both tables; of ours the row with parts, or else the fastest."""
    ours = [row for row in rows if row["backend"].startswith("lmtrain")]
    ours.sort(key=lambda row: ("rest" in row["roofline"], -row["milliseconds_per_step"]))  # the last one counts
    best = {(row["preset"], row["precision"]): row for row in ours}
    presets = list(dict.fromkeys(row["preset"] for row in rows if (row["preset"], "bfloat16") in best))
    return f"{_ratios(presets, best, rows)}\n\n{_parts(presets, best)}"


def _ratios(presets: list[str], best: dict[tuple[str, str], dict[str, Any]], rows: Rows) -> str:
    titles = ["preset", "`torch.nn`, ms"]
    for precision in PRECISIONS:
        titles += [f"{precision}: to float32", "to autocast", "memory kept: to float32", "to autocast"]
    plain = {row["preset"]: row["milliseconds_per_step"] for row in reversed(rows)}  # the first one is the plain way
    lines = []
    for preset in presets:
        ratios = [best.get((preset, precision), {}).get(name) for precision in PRECISIONS for name in RATIOS]
        lines.append([f"`{preset}`", f"{plain[preset]:.4g}", *("-" if ratio is None else f"{ratio:.2f}" for ratio in ratios)])
    return _table(titles, lines)


def _parts(presets: list[str], best: dict[tuple[str, str], dict[str, Any]]) -> str:
    titles = ["preset", "part"]
    for precision in PRECISIONS:
        titles += [f"{precision}, ms", "limit", "reached", "bound by"]
    found: dict[tuple[str, str], dict[str, dict[str, Any]]] = {}
    for preset in presets:
        for precision in PRECISIONS:
            for part, reached in best.get((preset, precision), {"roofline": {}})["roofline"].items():
                found.setdefault((preset, part), {})[precision] = reached
    return _table(titles, [
        [f"`{preset}`", part, *(cell for precision in PRECISIONS for cell in _cells(reached.get(precision)))]
        for (preset, part), reached in found.items()
    ])  # fmt: skip


def _cells(reached: dict[str, Any] | None) -> list[str]:
    if reached is None:
        return ["-"] * 4
    forms = {"milliseconds": ".2f", "limit_milliseconds": ".2f", "fraction": ".0%"}
    shown = ["-" if reached[name] is None else format(reached[name], form) for name, form in forms.items()]
    return [*shown, reached["bound"]]


def _table(titles: list[str], lines: list[list[str]]) -> str:
    return "\n".join(f"| {' | '.join(line)} |" for line in (titles, ["---"] * len(titles), *lines))
