"""How fast texts are tokenised, and in how much memory of a process's own: a text of made-up words, written to the cache.

    python scripts/tokenise.py --megabytes 200 --shards 8 --workers 1
    python scripts/tokenise.py --megabytes 1000 --first-step

One process per tokenizer reads the text for the first time (hashing, counting, tokenising, checking), from its start to its
end. Memory is the largest RssAnon of that process; mapped pages are left out. With several workers, theirs is not counted.
`--first-step` then trains, from the command to its first step: with an empty cache, and with the text in it. Linux only.
"""

from __future__ import annotations

import argparse
import os
import random
import re
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

VOCABULARY = 100_000
SUBWORDS = ("bpe", "unigram")
READ = """
import sys
from lmtrain.data.corpus import load_corpus
source, cache, tokenizer, vocab_size, workers = sys.argv[1:]
least = 2 if tokenizer == "bpe" else 1  # as conf/tokenizer/bpe.yaml has it
load_corpus(source, tokenizer=tokenizer, cache_dir=cache, vocab_size=int(vocab_size), min_count=least, workers=int(workers))
"""


def write_text(directory: Path, megabytes: int, shards: int) -> None:
    """Words with about Zipf's frequencies, 20 per line; the first 4 MB are repeated in another order of lines."""
    draw = random.Random(1)
    letters = "abcdefghijklmnopqrstuvwxyzé"
    words = ["".join(draw.choices(letters, k=draw.randint(1, 11))) for _ in range(VOCABULARY)]
    lines: list[str] = []
    size = 0
    while size < 4_000_000:
        lines.append(" ".join(words[int(VOCABULARY ** draw.random()) - 1] for _ in range(20)) + "\n")
        size += len(lines[-1].encode())
    for number in range(shards):
        with open(directory / f"part-{number}.txt", "w", encoding="utf-8") as file:
            written = 0
            while written < megabytes * 1_000_000 / shards:
                draw.shuffle(lines)
                file.writelines(lines)
                written += size


def most_anonymous_memory(process: subprocess.Popen[bytes]) -> int:
    """The largest RssAnon of a process until it ends, in bytes."""
    most = 0
    while process.poll() is None:
        status = Path(f"/proc/{process.pid}/status").read_text(encoding="ascii")
        if found := re.search(r"RssAnon:\s*(\d+)", status):
            most = max(most, int(found[1]) * 1024)
        time.sleep(0.05)
    if process.returncode:
        sys.exit(process.returncode)
    return most


def processor_seconds() -> float:
    """What the processes took that have ended."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def seconds_to_first_step(source: Path, tokenizer: str, cache: str, workers: int) -> float:
    """From the start of the command to the report of its first step; then it is ended."""
    sizes = ["tokenizer.vocab_size=8000"] if tokenizer in SUBWORDS else []
    command = [
        sys.executable,
        "-m",
        "lmtrain",
        "model=lstm",
        "data=text",
        f"data.path={source}",
        f"tokenizer={tokenizer}",
        *sizes,
    ]
    command += [f"data.cache_dir={cache}", f"data.workers={workers}", "trainer.log_every=1", "trainer.num_steps=1"]
    began = time.monotonic()
    with tempfile.TemporaryDirectory() as directory:
        process = subprocess.Popen(
            command, cwd=directory, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, env=os.environ | {"PYTHONUNBUFFERED": "1"}
        )
        assert process.stdout is not None
        said = ""
        while not re.search(r"\bstep=1\b", said):
            if not (line := process.stdout.readline()):
                sys.exit(f"The training ended before its first step:\n{said}")
            said += line.decode()
        seconds = time.monotonic() - began
        process.kill()
        process.wait()
    return seconds


def row(directory: Path, tokenizer: str, workers: int, *, first_step: bool) -> str:
    """One row of the table."""
    files = list(directory.glob("part-*.txt"))
    source, size = files[0] if len(files) == 1 else directory, sum(file.stat().st_size for file in files)
    vocab_size = "8000" if tokenizer in SUBWORDS else "0"
    with tempfile.TemporaryDirectory() as cache:
        began, used = time.monotonic(), processor_seconds()
        command = [sys.executable, "-c", READ, str(source), cache, tokenizer, vocab_size, str(workers)]
        most = most_anonymous_memory(subprocess.Popen(command))
        seconds, cpu = time.monotonic() - began, processor_seconds() - used
        figures = [f"{size / seconds / 1e6:.0f}", f"{size / cpu / 1e6:.0f}", f"{most / 1e6:.0f}"]
        if first_step:
            known = seconds_to_first_step(source, tokenizer, cache, workers)
            if len(list(Path(cache).glob("*.ids"))) > 1:
                sys.exit(f"The training read the text of tokenizer={tokenizer} once more: its settings are not those of READ.")
            with tempfile.TemporaryDirectory() as empty:
                figures += [f"{seconds_to_first_step(source, tokenizer, empty, workers):.0f}", f"{known:.0f}"]
    return f"| {tokenizer} | {' | '.join(figures)} |"


def main() -> None:
    """Measures each tokenizer in a process of its own."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--megabytes", type=int, default=200)
    parser.add_argument("--shards", type=int, default=1)
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--tokenizers", nargs="+", default=["char", "byte", "word", "bpe", "unigram"])
    parser.add_argument("--first-step", action="store_true", help="also the seconds to the first step of training")
    options = parser.parse_args()
    heads = ["tokenizer", "MB/s", "MB per second of processor time", "anonymous memory, MB"]
    heads += ["s to the first step", "s to it with the text in the cache"] * options.first_step
    print(f"| {' | '.join(heads)} |\n{'|---' * len(heads)}|", flush=True)
    with tempfile.TemporaryDirectory() as directory:
        write_text(Path(directory), options.megabytes, options.shards)
        for tokenizer in options.tokenizers:
            print(row(Path(directory), tokenizer, options.workers, first_step=options.first_step), flush=True)


if __name__ == "__main__":
    main()
