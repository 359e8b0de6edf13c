"""`score` as one types it: lines side by side, as a co-process, in other precisions."""

import json
import os
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import lmtrain

Call = Callable[..., Any]


def rows(out: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in out.splitlines()]


@pytest.mark.parametrize("run", ["run", "counted"])
def test_independent_lines_have_the_numbers_of_lines_alone_in_the_order_of_the_input(run: str, place: Path, call: Call) -> None:
    if run == "counted":
        assert call("data=text", "data.path=text.txt", "model=ngram", "tokenizer=word", "hydra.run.dir=counted").code == 0
    lines = ["the cat sat", "", "mat a on cat the ran away", "a", "the dog", "then " * 40]
    (place / "lines.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")
    *scored, total = rows(call("score", run, "lines.txt", "--independent", "--json").out)
    assert [row["line"] for row in scored] == [1, 2, 3, 4, 5, 6]
    assert total["total"]["state_policy"] == "line"
    for line, row in zip(lines, scored, strict=True):
        (place / "line.txt").write_text(line + "\n", encoding="utf-8")
        alone = rows(call("score", run, "line.txt", "--json").out)[0]
        assert row["log_prob"] == pytest.approx(alone["log_prob"], rel=1e-5)
        assert row["num_tokens"] == alone["num_tokens"]
    small = rows(call("score", run, "lines.txt", "--independent", "--json", "--batch-tokens", "1", "--threads", "1").out)
    assert [row["log_prob"] for row in small[:-1]] == pytest.approx([row["log_prob"] for row in scored], rel=1e-5)


def test_a_pipe_that_has_a_name_is_read_as_standard_input_is(place: Path, call: Call) -> None:
    """As a shell names what it makes of `<(command)`; and /dev/stdin is one, too."""
    text = "the cat\r\n\na mat ran é"
    Path("lines.txt").write_text(text, encoding="utf-8")
    expected = call("score", "run", "lines.txt", "--independent", "--json").out
    os.mkfifo("pipe")
    writer = threading.Thread(target=Path("pipe").write_text, args=(text, "utf-8"), daemon=True)
    writer.start()
    assert call("score", "run", "pipe", "--independent", "--json").out == expected
    writer.join()
    assert "is empty" in call("score", "run", os.devnull).err
    ended = call("score", "run", "pipe", "--independent", "--with", "run")  # which reads it once for each model
    assert (ended.code, "given together with the pipe pipe" in ended.err) == (2, True)


def test_precision_is_that_of_products_and_the_same_in_python(place: Path, call: Call) -> None:
    exact, rounded = (
        rows(call("score", "run", "text.txt", "--independent", "--json", "--precision", precision).out)[-1]["total"]
        for precision in ("float32", "bfloat16")
    )
    assert rounded["total_nats"] != exact["total_nats"]
    assert rounded["total_nats"] == pytest.approx(exact["total_nats"], rel=1e-2)
    one, other = (json.loads(call("evaluate", "run", "--json", "--precision", name).out) for name in ("float32", "bfloat16"))
    assert 0 < abs(one["total_nats"] - other["total_nats"]) < 0.01 * one["total_nats"]
    lm, text = lmtrain.load("run"), Path("text.txt").read_text(encoding="utf-8")[:200]
    assert 0 < abs(lm.score(text)[0].total_nats / lm.score(text, precision="bfloat16")[0].total_nats - 1) < 0.01
    assert 0 < abs(lm.perplexity([text]).perplexity / lm.perplexity([text], precision="bfloat16").perplexity - 1) < 0.05
    assert len(lm.sample(precision="bfloat16", max_tokens=3, num_samples=3)) == 3
    with pytest.raises(ValueError, match="precision='float16'; expected 'float32' or 'bfloat16'"):
        lm.score("the", precision="float16")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="batch_tokens=0"):
        lm.score("the", batch_tokens=0)


@pytest.mark.parametrize(
    "options", [["--independent"], *(pytest.param(rest, marks=pytest.mark.slow) for rest in ([], ["--independent", "--json"]))]
)
def test_a_co_process_answers_each_line_when_it_comes(place: Path, options: list[str]) -> None:
    command = [sys.executable, "-m", "lmtrain", "score", "run", "-", "--flush", *options]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, bufsize=0, env=os.environ) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        for number, line in enumerate(["the cat\n", "\n", "a mat ran é\n"], 1):
            process.stdin.write(line.encode())
            answer = process.stdout.readline().decode()  # for ever, if it waited for more
            if answer.startswith("line"):
                answer = process.stdout.readline().decode()
            assert (json.loads(answer)["line"] if "--json" in options else int(answer.split("\t")[0])) == number
        process.stdin.write(b"no end")
        process.stdin.close()
        assert process.stdout.readline().startswith((b"4\t", b'{"line": 4,'))
        process.stdout.read()
        assert process.wait() == 0


@pytest.mark.parametrize(
    ("options", "given"),
    [
        (["--batch-tokens", "9"], "--batch-tokens was given without --independent"),
        (["--flush", "--dynamic", "sgd"], "--flush was given together with --dynamic"),
        (["--independent", "--batch-tokens", "0"], "not a whole number from 1"),
        (["--threads", "0"], "not a whole number from 1"),
        (["--precision", "float16"], "float16"),
    ],
)
def test_options_that_do_not_fit_are_refused(options: list[str], given: str, place: Path, call: Call) -> None:
    ended = call("score", "run", "text.txt", *options)
    assert ended.code == 2
    assert given in ended.err


def test_threads_are_set(place: Path, call: Call) -> None:
    for command in (["score", "run", "text.txt"], ["evaluate", "run"], ["sample", "run", "--max-tokens", "2"]):
        torch.set_num_threads(1)
        assert call(*command, "--threads", "2").code == 0
        assert torch.get_num_threads() == 2
