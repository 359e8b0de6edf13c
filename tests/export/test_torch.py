"""`export --format torch`: what the exported script computes where lmtrain cannot be imported."""

import ast
import json
import os
import re
import resource
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from importlib import metadata
from itertools import combinations
from pathlib import Path
from random import Random
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import nn

import lmtrain
from lmtrain.choices import Cell, names
from lmtrain.data.tokenizer import learn_tokenizer
from lmtrain.export.plain import KNOWN_CELLS, KNOWN_TOKENS
from lmtrain.export.torch_format import script_for
from lmtrain.inference.score import ScoredLine, score_text
from lmtrain.models.heads import MatrixHead
from lmtrain.models.recurrent import CELLS, ElmanLayer, GRULayer
from lmtrain.trained import Model

ALONE = """
import contextlib, io, json, runpy, sys, torch, traceback
class Barrier:
    def find_spec(self, name, path=None, target=None):
        assert name.partition(".")[0] not in ("lmtrain", "hydra", "safetensors"), name
sys.meta_path.insert(0, Barrier())
for calls in sys.stdin:
    answers = []
    try:
        for script, *arguments in json.loads(calls):
            sys.argv = [script, *arguments]
            out = io.StringIO()
            with contextlib.redirect_stdout(out):
                runpy.run_path(script, run_name="__main__")
            answers.append(out.getvalue())
    except BaseException:
        answers = traceback.format_exc()
    print(json.dumps(answers), flush=True)
"""
Alone = Callable[[list[list[str]]], list[str]]


@pytest.fixture(scope="module")
def alone() -> Iterator[Alone]:
    """What scripts print when they are called one after the other in a process that cannot import lmtrain."""
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    with subprocess.Popen([sys.executable, "-c", ALONE], stdin=-1, stdout=-1, text=True, env=environment, cwd="/") as process:
        stdin, stdout = process.stdin, process.stdout
        assert stdin is not None
        assert stdout is not None

        def call(calls: list[list[str]]) -> list[str]:
            stdin.write(json.dumps(calls) + "\n")
            stdin.flush()
            answers: list[str] = json.loads(stdout.readline())
            assert isinstance(answers, list), answers
            return answers

        yield call


def token_log_probs(lm: Model, text: str, **options: Any) -> tuple[list[int], list[float]]:
    """Ours: every token's id and log-probability."""
    lines: list[ScoredLine] = []
    policy = lm.network.state_policy
    score_text(lm.network, lm.tokenizer, [text], on_line=lines.append, per_token=True, **options)
    assert lm.network.state_policy is policy
    ids = [*lm.tokenizer.encode(text + "\n" * (lm.tokenizer.kind.ends_last_line and not text.endswith("\n")))]
    return ids, [-token.nats for line in lines for token in line.tokens or ()]


def printed_log_probs(out: str) -> tuple[list[int], list[float]]:
    rows = [line.split("\t") for line in out.splitlines() if line.startswith("\t")]
    return [int(row[1]) for row in rows], [float(row[2]) for row in rows]


def check_rows(out: str, lm: Model, text: str, **options: Any) -> None:
    """Compares the rows of lines: one per line of the text, wherever a word `<eos>` stands in it."""
    lines: list[ScoredLine] = []
    score_text(lm.network, lm.tokenizer, [text], on_line=lines.append, **options)
    rows = [line.split("\t") for line in out.splitlines() if re.match(r"\d+\t", line)]
    expected = [(str(line.number), str(line.num_tokens), str(line.num_unk)) for line in lines]
    assert [(number, tokens, unknown) for number, _, tokens, unknown in rows] == expected
    np.testing.assert_allclose([float(row[1]) for row in rows], [-line.total_nats for line in lines], atol=1e-4, rtol=1e-5)


def check(models: dict[str, Model], text_of: Callable[[str], str], prompt: str, tmp_path: Path, alone: Alone) -> None:
    """Exports each, and compares every token of its text, as it runs and line by line, and the greedy text."""
    calls = []
    for number, (name, lm) in enumerate(models.items()):
        (tmp_path / f"text{number}").write_text(text_of(name), encoding="utf-8", newline="")
        lm.export(tmp_path / str(number))
        script = str(tmp_path / str(number) / "model.py")
        calls += [[script, "score", str(tmp_path / f"text{number}"), "--per-token"]]
        calls += [[script, "score", str(tmp_path / f"text{number}"), "--per-token", "--independent"]]
        calls += [[script, "sample", "--prompt", prompt, "--max-tokens", "25", "--temperature", "0"]]
    answers = iter(alone(calls))
    for name, lm in models.items():
        text = text_of(name)
        expected = token_log_probs(lm, text)
        out = next(answers)
        found = printed_log_probs(out)
        check_rows(out, lm, text)
        assert found[0] == expected[0], name
        np.testing.assert_allclose(found[1], expected[1], atol=1e-5, rtol=0, err_msg=name)
        out = next(answers)
        line_by_line = printed_log_probs(out)[1]
        check_rows(out, lm, text, independent=True)
        read = text.replace(" <eos> ", "\n").replace("<eos>\n", "\n\n") if lm.tokenizer.kind.reads_eos else text
        total = sum(result.log_prob for result in lm.score(re.findall(r"[^\n]*\n|[^\n]+", read)))
        assert sum(line_by_line) == pytest.approx(total, abs=1e-4), name
        try:
            written = lm.sample(prompt, max_tokens=25, temperature=0)[0]
        except lmtrain.UserError:  # of maximum likelihood, which may leave nothing to draw but <unk>
            assert next(answers) == f"{prompt}\n", name
            continue
        above, end, line = prompt.rpartition("\n")
        whole = above + end + written + line if lm.tokenizer.reverse else prompt + written
        assert next(answers) == f"{whole}\n", name


def test_every_kind_of_model_gives_the_same_numbers_and_the_same_greedy_text(
    made: SimpleNamespace, tmp_path: Path, alone: Alone
) -> None:
    check(made.every_kind(), lambda name: made.TEXT + "unknown <eos> the\n<eos>\ncat", "the cat", tmp_path, alone)


def test_every_kind_of_token_becomes_the_same_ids(made: SimpleNamespace, tmp_path: Path, alone: Alone) -> None:
    text = "Ηé ﬁne ΣΑΣ ΟΔΟΣ·\u00a0x\n\nहिन्दी में\t日本語。 <eos\n \u2028a\r\x1cb\U0001f469\u200d\U0001f467 e\u0301"
    learnt = {
        "char": learn_tokenizer("char", [made.TEXT + "éहि"], normalize="nfd"),
        "byte": learn_tokenizer("byte", []),
        "word": learn_tokenizer("word", [made.TEXT, "fine σας हिन्दी x"], separators="·\u00a0", normalize="nfkc_lower"),
    }
    try:
        learnt["bpe"] = learn_tokenizer("bpe", [made.TEXT, text], vocab_size=300, normalize="nfc")
    except lmtrain.UserError:
        pytest.skip("the package tokenizers is not installed")
    models = {
        name: made.opened(made.model({"kind": "recurrent", "cell": "elman"}, tokenizer), tokenizer)
        for name, tokenizer in learnt.items()
    }
    check(models, lambda name: text, "हिन् the", tmp_path, alone)


@pytest.mark.parametrize("kind", ["word", "char"])
def test_a_backward_model_reads_lines_from_their_end(kind: str, made: SimpleNamespace, tmp_path: Path, alone: Alone) -> None:
    tokenizer = learn_tokenizer(kind, [made.TEXT], reverse=True)
    lm = made.opened(made.model({"kind": "recurrent"}, tokenizer), tokenizer)
    check({kind: lm}, lambda name: made.TEXT + "unknown the <eos> cat\ncat", "a line\nthe cat", tmp_path, alone)


def test_what_letters_of_unknown_words_cost_is_the_same(made: SimpleNamespace, tmp_path: Path, alone: Alone) -> None:
    tokenizer = learn_tokenizer("word", [made.TEXT, "κακό zebra zebu"], vocab_size=8, spelled=True, separators="/")
    lm = made.opened(made.model({"kind": "recurrent"}, tokenizer), tokenizer)
    text = "the cat/zebras κακό <unk>\n日本 the the\n"
    (tmp_path / "text").write_text(text, encoding="utf-8")
    lm.export(tmp_path / "out")
    out = alone([[str(tmp_path / "out" / "model.py"), "score", str(tmp_path / "text")]])[0]
    expected = score_text(lm.network, lm.tokenizer, [text]).spelling_nats
    assert expected is not None
    assert expected > 10
    assert float(out.splitlines()[-1].split()[0]) == pytest.approx(expected, abs=2e-4)
    assert out.endswith(" nats for the letters of unknown words\n")


@pytest.mark.parametrize(
    ("seed", "count"), [(1, 12), *(pytest.param(seed, 60, marks=pytest.mark.slow) for seed in range(2, 8))]
)
def test_settings_drawn_at_random_give_the_same_numbers(
    seed: int, count: int, made: SimpleNamespace, tmp_path: Path, alone: Alone
) -> None:
    random = Random(seed)
    ways: list[tuple[str, dict[str, Any]]] = [
        ("word", {}), ("word", {"reverse": True, "separators": "/"}), ("char", {"normalize": "lower"}), ("byte", {}),
        ("word", {"spelled": True, "vocab_size": 9, "normalize": "nfkc_lower"}), ("char", {"reverse": True}),
    ]  # fmt: skip
    models = {}
    for number in range(count):
        kind, options = random.choice(ways)
        tokenizer = learn_tokenizer(kind, [made.TEXT], **options)
        network, settings = made.drawn(random, tokenizer)
        models[f"{number}: {kind} {options} {settings}"] = made.opened(network, tokenizer)
    check(models, lambda name: made.TEXT + ("unknown/The\ncat" if "word" in name else "the cat"), "the cat", tmp_path, alone)


@pytest.mark.parametrize("format", ["torch", "safetensors", "onnx"])
@pytest.mark.parametrize("base", [ElmanLayer, GRULayer])
def test_what_somebody_has_added_is_refused_by_name(
    base: type, format: Any, made: SimpleNamespace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if format == "onnx":
        pytest.importorskip("onnxruntime")
    added = {
        "A cell of the kind mine": lambda lm: setattr(lm.network.layers[0], "__class__", type("MineLayer", (base,), {})),
        "A head of the kind MineHead": lambda lm: setattr(lm.network.head, "__class__", type("MineHead", (MatrixHead,), {})),
        "A tokenizer of the kind syllable": lambda lm: setattr(
            lm.tokenizer, "kind", replace(lm.tokenizer.kind, name="syllable")
        ),
    }
    for what, add in added.items():
        tokenizer = learn_tokenizer("word", [made.TEXT])
        cell = next(name for name, layer in CELLS.items() if layer is base)
        lm = made.opened(made.model({"kind": "recurrent", "cell": cell}, tokenizer), tokenizer)
        add(lm)
        monkeypatch.setitem(CELLS, "mine", type(lm.network.layers[0]))
        with pytest.raises(lmtrain.SettingsError, match=rf"^{what} cannot be exported\. `export` knows .*in export/plain\.py"):
            lm.export(tmp_path / "out", format=format)
        assert not (tmp_path / "out").exists()
        monkeypatch.undo()


def test_the_script_has_every_cell_and_every_kind_of_token_that_is_exported() -> None:
    for name in (*KNOWN_CELLS.values(), *KNOWN_TOKENS):
        assert f"-- only {name}\n" in (Path(script_for.__code__.co_filename).parent / "script.py").read_text(encoding="utf-8")
    assert tuple(KNOWN_CELLS.values()) == names(Cell)


def test_a_script_is_short_and_holds_only_what_its_model_needs(made: SimpleNamespace, tmp_path: Path) -> None:
    for number, (name, lm) in enumerate(made.every_kind().items()):
        lm.export(tmp_path / str(number))
        script = (tmp_path / str(number) / "model.py").read_text(encoding="utf-8")
        assert len(script.splitlines()) < 200, name
        assert max(map(len, script.splitlines())) <= 128
        assert not re.search("-- only|-- end|noqa|fmt:", script)
        assert ("def ngram" in script) == ("ngram" in name or "mixture" in name)
        assert ("lstm" in name) == ("chunk(4)" in script) or "mixture" in name


def test_scripts_stay_short_whatever_the_tokens_are() -> None:
    """Only a mixture of networks of several kinds and n-grams, with nearly all that tokens can need, is longer."""
    families: list[set[str]] = [
        {"window", "network"},
        {"lstm", "recurrent", "network"},
        {"gru", "recurrent", "network"},
        {"ngram"},
    ]
    tokens: list[set[str]] = [{"byte"}, {"subword", "normalized"}, {"word", "unknown", "spelled", "normalized"}]
    for own in tokens:
        for family in families:
            script = script_for(family | own | {"single", "reversed"})
            ast.parse(script)
            assert len(script.splitlines()) < 180
        for first, second in combinations(families, 2):
            script = script_for(first | second | own | {"mixture", "reversed"})
            ast.parse(script)
            assert len(script.splitlines()) < 200


@pytest.mark.parametrize(("cell", "layer"), [("lstm", nn.LSTM), ("gru", nn.GRU), ("elman", nn.RNN)])
def test_weights_fit_the_layers_of_torch(cell: str, layer: Any, made: SimpleNamespace, tmp_path: Path) -> None:
    """A program that knows torch.nn alone puts a network together from the safetensors."""
    lm = made.opened(made.model({"kind": "recurrent", "cell": cell, "hidden_sizes": [5, 7]}))
    lm.export(tmp_path / "out", format="safetensors")
    assert not (tmp_path / "out" / "model.py").exists()
    weights = load_file(tmp_path / "out" / "model.safetensors")
    parts: dict[str, Any] = {
        "embedding": nn.Embedding(lm.tokenizer.vocab_size, 6), "layers.0.rnn": layer(6, 5), "layers.1.rnn": layer(5, 7),
        "head": nn.Linear(7, lm.tokenizer.vocab_size),
    }  # fmt: skip
    for prefix, module in parts.items():
        module.load_state_dict({n.removeprefix(f"{prefix}."): w for n, w in weights.items() if n.startswith(f"{prefix}.")})
    x = torch.tensor([lm.tokenizer.eos_id, *lm.tokenizer.encode("the cat sat on")])[:, None]
    with torch.no_grad():
        for module in parts.values():
            x = module(x)[0] if isinstance(module, layer) else module(x)
    np.testing.assert_allclose(x.log_softmax(-1)[:-1, 0].numpy(), lm.log_probs("the cat sat on"), atol=1e-5)


@pytest.mark.parametrize("kind", ["torch", "safetensors"])
def test_the_command_writes_files_and_a_card(kind: str, place: Path, call: Callable[..., Any]) -> None:
    ended = call("export", "run", "--format", kind, "--output", "out")
    assert ended.code == 0, ended.err
    bill = lmtrain.load("run")._trained.texts["test"]
    card = Path("out/card.md").read_text(encoding="utf-8")
    for said in (
        "model.embed_size=6", "data.path=text.txt", "split         tokens", f"{len(bill.ids):,} tokens scored", "1 stream",
        f"torch {metadata.version('torch')}", "python -m lmtrain export run", "vocabulary of", "hydra.run.dir=run",
    ):  # fmt: skip
        assert said in card, said
    for name in ("config.json", {"torch": "weights.pt", "safetensors": "model.safetensors"}[kind]):
        assert f"`{name}`" in card
        assert name in ended.out
    assert sorted(path.name for path in Path("out").iterdir()) == sorted(lmtrain.load("run").export("again", format=kind).files)


def test_a_card_says_what_it_does_not_know(place: Path, call: Callable[..., Any]) -> None:
    Path("text.txt").write_text("another\ntext\nhere\n" * 20, encoding="utf-8")
    assert call("export", "run/checkpoints/best", "--output", "out").code == 0
    card = Path("out/card.md").read_text(encoding="utf-8")
    assert "The training text cannot be described: The text has changed" in card


def test_what_cannot_be_exported_is_said(place: Path, call: Callable[..., Any]) -> None:
    ended = call("export", "run", "--output", "text.txt")
    assert (ended.code, "text.txt is there already" in ended.err) == (2, True)
    ended = call("export", "run", "--output", "out", "--quantize", "int8")
    assert (ended.code, "--quantize int8 was given with --format torch" in ended.err) == (2, True)
    assert not Path("out").exists()
    with pytest.raises(lmtrain.SettingsError, match=r"directory=?.*text.txt is there already"):
        lmtrain.load("run").export("text.txt")
    lm = lmtrain.load("run")
    next(lm.network.parameters()).data[0] = float("nan")
    with pytest.raises(lmtrain.CheckpointError, match=r"embedding.weight hold numbers that are not finite"):
        lm.export("out")
    assert not Path("out").exists()


@pytest.mark.parametrize("kind", ["torch", "safetensors"])
def test_a_full_disk_is_said_and_leaves_nothing(kind: str, place: Path, call: Callable[..., Any]) -> None:
    """Where only small files may be written, as on a disk that is full: not the first one, not all weights, not their end."""
    assert call("TRAIN", "model.hidden_size=64", "hydra.run.dir=large").code == 0
    assert call("export", "large", "--format", kind, "--output", "whole").code == 0
    largest = max(file.stat().st_size for file in Path("whole").iterdir())
    before = sorted(place.iterdir())
    limit = resource.getrlimit(resource.RLIMIT_FSIZE)
    for size in (3000, largest // 2, largest - 100):
        resource.setrlimit(resource.RLIMIT_FSIZE, (size, limit[1]))
        try:
            ended = call("export", "large", "--format", kind, "--output", "out")
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, limit)
        assert ended.code == 6, ended.err
        assert "cannot be written: " in ended.err
        assert sorted(place.iterdir()) == before
