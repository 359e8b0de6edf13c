"""Disturbs a small training at random moments, resumes it each time, and requires that not one bit of it was lost.

    python scripts/chaos.py --kills 50

One training runs undisturbed. The same one runs again and is disturbed as often as `--kills` says, at moments drawn from
`--seed`, each time in a new process that goes on with `resume=`:

    start    kill -9 at any time after the start, while PyTorch is imported or the text is read
    kill     kill -9 in the midst of training, evaluating or saving
    term     SIGTERM: has to save, to say how to go on, and to end with 143
    moment   SIGTERM or SIGINT exactly before or behind one thing that the loop does (a step, an evaluation, a sample, a save,
             a record ...), sometimes with SIGUSR1 some moments earlier: has to save, to say how to go on, and to end with 143
             or 130
    disk     no file can be written any more (a limit on their size); then space again and kill -9, or SIGTERM, which has to
             end with 6 because the last save fails
    damage   kill -9, then a bit of the newest checkpoint is flipped, or a file of it is cut, removed or made longer

After each of them the newest checkpoint must be whole (before it is damaged). The schedule and the average listen to
evaluations, so one that is lost or made twice shows. In the end the final weights, optimiser, averages, generators, carried
state, the best checkpoint and every logged number but the speeds must be those of the undisturbed training.
Exit code 1 where anything differs.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import resource
import runpy
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lmtrain.__main__ import main as lmtrain
from lmtrain.training.checkpoint import DIRECTORY, find_checkpoint, load_checkpoint, verify_checkpoint

KINDS = {"start": 1, "kill": 4, "term": 2, "moment": 4, "disk": 2, "damage": 3}  # how often each, in proportion
STEPS_PER_LIFE = 24
MOMENTS_PER_LIFE = 5 * STEPS_PER_LIFE
ROOT = Path(__file__).parents[1]
SETTINGS = [
    "data=text", "data.path=text.txt", "tokenizer=word", "model=lstm", "model.num_layers=2", "model.embed_size=12",
    "model.hidden_size=16", "model.dropout=0.3", "optimizer=sgd", "optimizer.learning_rate=4", "optimizer.averaging=nt_asgd",
    "optimizer.patience=3", "schedule=plateau", "schedule.factor=0.97", "schedule.patience=2",
    "trainer.batch_size=4", "trainer.chunk_length=8",
    "trainer.backward_length=20", "trainer.max_seconds=null", "trainer.log_every=1", "trainer.evaluate_every=7",
    "trainer.save_every=5", "trainer.sample_tokens=10", "trainer.num_threads=1", "trainer.precision=float32",
]  # fmt: skip
PATIENCE_SECONDS = 300.0

Identity = tuple[int, int]  # of a directory, whatever it is called


@dataclass(frozen=True)
class Disturbance:
    """What was done to a process, and how it went."""

    kind: str
    step: int  # last one that was recorded before
    exit_code: int
    remark: str


class LossError(Exception):
    """Something that must not happen did."""


def main() -> None:
    """Runs both trainings and compares them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=50, help="how often the training is disturbed (default: 50)")
    parser.add_argument("--seed", type=int, default=1, help="of the moments and kinds (default: 1)")
    parser.add_argument("--life", nargs=argparse.REMAINDER, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.life:
        live(*options.life)
        return
    place = Path(tempfile.mkdtemp(prefix="chaos-"))
    try:
        disturbances = run(place, options.kills, random.Random(options.seed))
    except LossError as failure:
        print(f"FAILED: {failure}\nEverything is still in {place}.")
        sys.exit(1)
    shutil.rmtree(place)
    counts = Counter(item.kind for item in disturbances)
    print(
        f"{len(disturbances)} disturbances ({', '.join(f'{kind} {number}' for kind, number in sorted(counts.items()))}), "
        "0 unreadable newest checkpoints, final state and all logged numbers bit-identical to the undisturbed training."
    )


def run(place: Path, num_kills: int, chance: random.Random) -> list[Disturbance]:
    """Both trainings in `place`; raises LossError where they differ."""
    write_text(place / "text.txt")
    num_steps = 2 * (num_kills + 2) * STEPS_PER_LIFE  # a life may last twice as long as it should: a full disk is waited for
    settings = [*SETTINGS, f"trainer.num_steps={num_steps}"]
    started_at = time.monotonic()
    finish(start(place, "whole", settings), "the undisturbed training")
    print(f"undisturbed: {num_steps} steps in {time.monotonic() - started_at:.0f} s")
    print(f"{'':>4}  {'kind':<8}{'at step':>8}{'exit':>6}  remark", flush=True)
    kinds = ["kill", "term", "moment", "disk", "damage"][:num_kills] + chance.choices([*KINDS], [*KINDS.values()], k=num_kills)
    disturbances: list[Disturbance] = []
    damaged: set[Identity] = set()
    for kind in kinds[:num_kills]:
        falls_back = bool(disturbances) and disturbances[-1].remark.startswith("step-")
        item = disturb(place, settings, kind, chance, damaged, falls_back)
        disturbances.append(item)
        print(f"{len(disturbances):>4}  {item.kind:<8}{item.step:>8}{item.exit_code:>6}  {item.remark}", flush=True)
    finish(start(place, "disturbed", settings), "the last process of the disturbed training")
    compare(place / "whole", place / "disturbed")
    print(f"took {time.monotonic() - started_at:.0f} s")
    return disturbances


def write_text(path: Path) -> None:
    chance = random.Random(0)
    words = [f"w{int(chance.paretovariate(1.1))}" for _ in range(6000)]
    path.write_text("\n".join(" ".join(words[i : i + 12]) for i in range(0, len(words), 12)) + "\n", encoding="utf-8")


def live(plan: str, *arguments: str) -> None:
    """Trains in this process, which sends itself signals at moments: plan is {"moment": number of the signal} as JSON."""

    def send(number: int) -> Callable[[], None]:
        return lambda: os.kill(os.getpid(), number)

    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell ignores it for what it runs in the background
    moments = runpy.run_path(str(ROOT / "tests" / "faults" / "moments.py"))["Moments"]
    with moments({int(moment): send(number) for moment, number in json.loads(plan).items()}):
        sys.argv[1:] = arguments
        lmtrain()


def start(place: Path, run_name: str, settings: list[str], plan: dict[int, int] | None = None) -> subprocess.Popen[str]:
    """A process that begins the training, or goes on with it, and sends itself signals as `plan` says."""
    begun = (place / run_name / "settings.json").exists()
    arguments = [f"resume={run_name}"] if begun else [*settings, f"hydra.run.dir={run_name}"]
    program = ["-m", "lmtrain"] if plan is None else [str(Path(__file__).resolve()), "--life", json.dumps(plan)]
    command = [sys.executable, *program, *arguments]
    # A pipe, because a full disk shall not silence it.
    return subprocess.Popen(command, cwd=place, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def finish(process: subprocess.Popen[str], what: str) -> None:
    shown, _ = process.communicate(timeout=PATIENCE_SECONDS)
    if process.returncode != 0:
        raise LossError(f"{what} ended with {process.returncode}: {shown[-2000:]}")


def disturb(
    place: Path, settings: list[str], kind: str, chance: random.Random, damaged: set[Identity], falls_back: bool
) -> Disturbance:
    """Starts a process, waits for its moment, does `kind` to it, and looks at what is left.

    `damaged` are the checkpoints that were spoilt; `falls_back` says that the newest one is.
    """
    directory, remark, plan = place / "disturbed", "", plan_of(kind, chance)
    process = start(place, "disturbed", settings, plan)
    if kind == "start":
        time.sleep(chance.uniform(0.0, 3.0))
    elif kind != "moment":
        wait_for_step(process, directory, last_step(directory) + chance.randint(1, STEPS_PER_LIFE))
        time.sleep(chance.uniform(0.0, 0.03))
    step, expected, words = last_step(directory), -signal.SIGKILL, ""
    if kind == "disk":
        limit_files(process.pid, 1)
        time.sleep(chance.uniform(0.05, 0.4))
        if chance.random() < 0.5:
            remark, expected, words = "full to the end, SIGTERM", 6, "cannot be saved"
        else:
            limit_files(process.pid, resource.RLIM_INFINITY)
            time.sleep(chance.uniform(0.0, 0.1))
            remark = "freed again, kill -9"
    elif kind == "term":
        expected, words = 128 + signal.SIGTERM, "python -m lmtrain resume="
    elif plan is not None:
        expected, words = 128 + max(plan.items())[1], "python -m lmtrain resume="
        remark = ", ".join(f"{signal.Signals(number).name} at moment {moment}" for moment, number in plan.items())
    if plan is None:
        process.send_signal(signal.SIGKILL if expected < 0 else signal.SIGTERM)
    shown, _ = process.communicate(timeout=PATIENCE_SECONDS)
    if process.returncode != expected or words not in shown:
        raise LossError(f"{kind}: exit code {process.returncode} instead of {expected}, or no {words!r}: {shown[-2000:]}")
    if "Traceback" in shown:
        raise LossError(f"{kind}: a traceback: {shown[-4000:]}")
    if falls_back and kind != "start" and "is damaged" not in shown:
        raise LossError(f"the damage of the checkpoint was not mentioned: {shown[-2000:]}")
    whole = whole_checkpoints(directory, damaged)
    if kind == "damage" and len(whole) < 2:
        kind, remark = "kill", "no second checkpoint to fall back to, so nothing was damaged"
    elif kind == "damage":
        remark = damage(whole, damaged, chance)
    return Disturbance(kind, step, process.returncode, remark)


def plan_of(kind: str, chance: random.Random) -> dict[int, int] | None:
    """At which moments a process shall send itself which signals; None where signals come from here."""
    if kind != "moment":
        return None
    moment = chance.randrange(MOMENTS_PER_LIFE)
    plan: dict[int, int] = {moment - chance.randint(1, 20): signal.SIGUSR1} if chance.random() < 0.4 else {}
    return {**plan, moment: chance.choice([signal.SIGTERM, signal.SIGINT])}


def wait_for_step(process: subprocess.Popen[str], directory: Path, step: int) -> None:
    """Returns as soon as `step` is recorded."""
    patience = time.monotonic() + PATIENCE_SECONDS
    while last_step(directory) < step:
        if process.poll() is not None or time.monotonic() > patience:
            raise LossError(f"the training did not come to step {step} (exit code {process.poll()})")
        time.sleep(0.001)


def last_step(directory: Path) -> int:
    """Of the last whole record; 0 where there is none."""
    try:
        with open(directory / "metrics.jsonl", "rb") as file:
            file.seek(max(0, file.seek(0, 2) - 4096))
            lines = file.read().split(b"\n")[:-1]
    except OSError:
        return 0
    return int(json.loads(lines[-1])["step"]) if lines and lines[-1].startswith(b"{") else 0


def limit_files(process_id: int, num_bytes: int) -> None:
    """Makes every write behind the first `num_bytes` of a file fail, as on a full disk."""
    resource.prlimit(process_id, resource.RLIMIT_FSIZE, (num_bytes, resource.RLIM_INFINITY))


def whole_checkpoints(directory: Path, damaged: set[Identity]) -> list[Path]:
    """All checkpoints but the `damaged`, the newest first. Each one of them verifies, or the script ends in error."""
    paths = [path for path in directory.glob("checkpoints/*") if DIRECTORY.fullmatch(path.name)]
    ordinals = {path: verify_checkpoint(path).ordinal for path in paths if identity(path) not in damaged}
    return sorted(ordinals, key=ordinals.__getitem__, reverse=True)


def identity(directory: Path) -> Identity:
    """Inode and time of the last entry: an inode alone may come again once its directory was removed."""
    status = directory.stat()
    return status.st_ino, status.st_mtime_ns


def damage(whole: list[Path], damaged: set[Identity], chance: random.Random) -> str:
    """Spoils a file of the newest checkpoint; says how."""
    newest = whole[0]
    file = chance.choice(sorted(newest.iterdir()))
    content = bytearray(file.read_bytes())
    match chance.choice(["flip", "cut", "remove", "prolong"]):
        case "flip":
            place = chance.randrange(len(content))
            content[place] ^= 1 << chance.randrange(8)
            file.write_bytes(content)
            how = f"a bit of {file.name} flipped"
        case "cut":
            file.write_bytes(content[: chance.randrange(len(content))])
            how = f"{file.name} cut"
        case "remove":
            file.unlink()
            how = f"{file.name} removed"
        case _:
            file.write_bytes(content + b"x")
            how = f"{file.name} made longer"
    damaged.add(identity(newest))
    return f"{newest.name}: {how}"


def compare(ours: Path, theirs: Path) -> None:
    """Raises LossError unless both runs ended in one state and recorded the same numbers."""
    first, second = (load_checkpoint(find_checkpoint(path, "last")) for path in (ours, theirs))
    for file in ("model", "training"):
        if first.tensors[file].keys() != second.tensors[file].keys():
            raise LossError(f"{file}.safetensors holds other tensors")
        for name, tensor in first.tensors[file].items():
            if not tensor.equal(second.tensors[file][name]):
                raise LossError(f"{file}.safetensors: {name} differs")
    states = [
        {**c.documents["training"]["state"], "elapsed_seconds": None, "evaluation_seconds": None} for c in (first, second)
    ]
    if states[0] != states[1]:
        raise LossError(f"the rest of the state differs: {[key for key in states[0] if states[0][key] != states[1].get(key)]}")
    if records(ours) != records(theirs):
        raise LossError("the recorded numbers differ")
    steps = [verify_checkpoint(find_checkpoint(path, "best")).step for path in (ours, theirs)]
    if steps[0] != steps[1]:
        raise LossError(f"the best checkpoint is that of step {steps[0]} instead of {steps[1]}")


def records(directory: Path) -> list[dict[str, Any]]:
    """Everything recorded but the speeds."""
    lines = (directory / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    return [{key: value for key, value in json.loads(line).items() if not key.startswith("perf/")} for line in lines]


if __name__ == "__main__":
    main()
