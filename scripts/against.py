"""How much faster a trained model is used than by an earlier commit: lines scored, texts written, each version in a process.

    git worktree add --detach ../before cc7bc2a
    python scripts/against.py ../before RUN FILE

RUN must be readable by both versions, so train it with the older one. Versions and precisions take turns; each first runs
once without being timed. The numbers that a version gives are printed, so that one sees that both did the same work. At the
end:

    git worktree remove ../before
"""

from __future__ import annotations

import argparse
import inspect
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any

WORKS = {"stream": "score --independent", "texts": "lm.score", "samples": "64 samples"}
VERSIONS = ("before", "now")


def main() -> None:
    """Starts both versions, lets them take turns, prints a row for each work."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("before", metavar="DIRECTORY", help="a checkout of the earlier commit")
    parser.add_argument("run", metavar="RUN")
    parser.add_argument("file", metavar="FILE", help="its first lines are scored")
    parser.add_argument("--lines", type=int, default=256)
    parser.add_argument("--tokens", type=int, default=32, help="of each sample")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--repeat", type=int, default=3)
    options = parser.parse_args()
    roots = (Path(options.before), Path(__file__).parents[1])
    workers = {name: _start(root, options) for name, root in zip(VERSIONS, roots, strict=True)}
    seconds: dict[tuple[str, str, str], list[float]] = {}
    for repeat in range(options.repeat + 1):
        for work in WORKS:
            for version in VERSIONS:
                for precision in ("float32", "bfloat16"):
                    answer = _ask(workers[version], work, precision)
                    if answer is None:  # what a version cannot do
                        continue
                    if repeat:
                        seconds.setdefault((work, version, precision), []).append(answer["seconds"])
                    else:
                        print(f"{WORKS[work]}, {version}, {precision}: {answer['result']:.6g}", file=sys.stderr)
    for worker in workers.values():
        assert worker.stdin is not None
        worker.stdin.close()
        worker.wait()
    print("| work | version | precision | best ms | times as fast as before in float32 |\n|---|---|---|---|---|")
    for (work, version, precision), times in seconds.items():
        ratio = min(seconds[work, "before", "float32"]) / min(times)
        print(f"| {WORKS[work]} | {version} | {precision} | {1e3 * min(times):.0f} | {ratio:.2f} |")


def _start(root: Path, options: argparse.Namespace) -> subprocess.Popen[str]:
    environment = os.environ | {"PYTHONPATH": str(root / "src"), "OMP_NUM_THREADS": str(options.threads)}
    arguments = [options.run, options.file, str(options.lines), str(options.tokens)]
    return subprocess.Popen(
        [sys.executable, __file__, "--work", *arguments],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env=environment,
        text=True,
    )


def _ask(worker: subprocess.Popen[str], work: str, precision: str) -> dict[str, float] | None:
    assert worker.stdin is not None
    assert worker.stdout is not None
    worker.stdin.write(f"{work} {precision}\n")
    worker.stdin.flush()
    answer: dict[str, float] | None = json.loads(worker.stdout.readline())
    return answer


def work(run: str, file: str, num_lines: str, num_tokens: str) -> None:
    """One version: what it is told to do on standard input, and how long that took on standard output."""
    import torch

    import lmtrain
    from lmtrain.inference.score import score_text
    from lmtrain.models.base import StatePolicy

    torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))
    with open(file, encoding="utf-8") as opened:
        lines = [line for _, line in zip(range(int(num_lines)), opened, strict=False)]
    sampling: Any = import_module("lmtrain.inference.sample")
    model: Any = lmtrain.load(run)
    network, tokenizer = model.network, model.tokenizer
    side_by_side: dict[str, Any] = {"independent": True} if "independent" in inspect.signature(score_text).parameters else {}

    def stream() -> float:
        network.forget_at(StatePolicy.line)
        return float(score_text(network, tokenizer, ["".join(lines)], **side_by_side).total_nats)

    def texts() -> float:
        return float(sum(result.total_nats for result in model.score(lines)))

    def samples() -> float:
        settings: Any = sampling.SampleSettings(max_tokens=int(num_tokens), allow_unk=True, statistics=False)
        drawn = sampling.sample(network, tokenizer, "", settings, num_samples=64)
        return float(sum(1 for draws in drawn for _ in draws))

    works: dict[str, Callable[[], float]] = {"stream": stream, "texts": texts, "samples": samples}
    for line in sys.stdin:
        name, precision = line.split()
        if precision == "bfloat16" and not side_by_side and name != "samples":
            print("null", flush=True)  # scoring knew float32 alone
            continue
        with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bfloat16"):
            started_at = time.perf_counter()
            result = works[name]()
            print(json.dumps({"seconds": time.perf_counter() - started_at, "result": result}), flush=True)


if __name__ == "__main__":
    if sys.argv[1:2] == ["--work"]:
        work(*sys.argv[2:])
    else:
        main()
