"""How fast texts are tokenised, and in how much memory of a process's own: a text of made-up words, written to the cache.

    python scripts/tokenise.py --megabytes 200 --shards 8 --workers 1

One process per tokenizer reads the text for the first time (hashing, counting, tokenising, checking). Memory is the largest
RssAnon of that process; mapped pages are left out. With several workers, theirs is not counted. Linux only.
"""

from __future__ import annotations

import argparse
import random
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

VOCABULARY = 100_000


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


def measure(directory: Path, tokenizer: str, workers: int) -> None:
    """Prints one row of the table."""
    from lmtrain.data.corpus import load_corpus

    most, ended = 0, threading.Event()

    def watch() -> None:
        nonlocal most
        while not ended.wait(0.05):
            status = Path("/proc/self/status").read_text(encoding="ascii").split("RssAnon:")[1]
            most = max(most, int(status.split()[0]) * 1024)

    thread = threading.Thread(target=watch)
    thread.start()
    files = list(directory.glob("part-*.txt"))
    size = sum(file.stat().st_size for file in files)
    began, used = time.monotonic(), time.process_time()
    with tempfile.TemporaryDirectory() as cache:
        options = {"vocab_size": 8000} if tokenizer == "bpe" else {}
        source = files[0] if len(files) == 1 else directory
        load_corpus(source, tokenizer=tokenizer, cache_dir=cache, workers=workers, **options)  # type: ignore[arg-type]
        seconds, cpu = time.monotonic() - began, time.process_time() - used
    ended.set()
    thread.join()
    print(f"| {tokenizer} | {size / seconds / 1e6:.0f} | {size / cpu / 1e6:.0f} | {most / 1e6:.0f} |", flush=True)


def main() -> None:
    """Measures each tokenizer in a process of its own."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--megabytes", type=int, default=200)
    parser.add_argument("--shards", type=int, default=1)
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--tokenizers", nargs="+", default=["char", "byte", "word", "bpe"])
    parser.add_argument("--measure", nargs=2, metavar=("DIRECTORY", "TOKENIZER"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.measure:
        measure(Path(options.measure[0]), options.measure[1], options.workers)
        return
    print("| tokenizer | MB/s | MB per second of processor time | anonymous memory, MB |\n|---|---|---|---|")
    with tempfile.TemporaryDirectory() as directory:
        write_text(Path(directory), options.megabytes, options.shards)
        for tokenizer in options.tokenizers:
            command = [sys.executable, __file__, "--workers", str(options.workers), "--measure", directory, tokenizer]
            subprocess.run(command, check=True)


if __name__ == "__main__":
    main()
