"""Greek, Hindi and Japanese text of a few kilobytes through everything that can be done with a trained model."""

import itertools
import json
import os
import random
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import lmtrain

Call = Callable[..., Any]

GREEK = (
    ["Ο γάτος", "Η γιαγιά μου", "Το παιδί", "Ένας δάσκαλος", "Η θάλασσα", "Ο Ὀδυσσεύς"],
    [" βλέπει", " αγαπάει", " δεν ξέρει", " περιμένει"],
    [" τον ήλιο", " την πόλη.", " το μικρό σπίτι;", " τους φίλους της·", " όλες τις λέξεις!", " ψωμί και τυρί"],
)
HINDI = (
    ["लड़का", "मेरी दादी", "एक अध्यापक", "बिल्ली", "हमारा गाँव", "हिन्दी की किताब"],
    [" घर में", " स्कूल के पास", " धीरे-धीरे", " क्षण भर"],
    [" सोती है।", " रोटी खाता है।", " गीत गाती है", " नहीं जानता।", " श्रीमान को देखता है।", " पढ़ रही है"],
)
JAPANESE = (
    ["猫が", "私の祖母は", "先生が", "小さな子供は", "海が", "東京の町は"],
    ["静かに", "毎日", "友達と", "ゆっくり"],
    ["本を読む。", "パンを食べた。", "歌を歌っている。", "何も知らない。", "ｶﾞﾗｽを見た。", "眠っていた"],
)
LANGUAGES = {"greek": GREEK, "hindi": HINDI, "japanese": JAPANESE}
KINDS = {
    "bpe": ["tokenizer=bpe", "tokenizer.vocab_size=400"],
    "char": ["tokenizer=char", "data.normalize=nfd"],
    "byte": ["tokenizer=byte"],
    "word": ["tokenizer=word", "tokenizer.min_count=9", "tokenizer.unknown=spelled"],
}
EVERY = [pair for pair in itertools.product(LANGUAGES, KINDS) if pair != ("japanese", "word")]  # which has no blanks


def lines_of(language: str) -> list[str]:
    """144 sentences, some twice, in a shuffled order, with an empty line here and there."""
    lines = ["".join(parts) for parts in itertools.product(*LANGUAGES[language])]
    random.Random(1).shuffle(lines)
    return [line for number, line in enumerate(lines) for line in ([line, ""] if number % 20 == 7 else [line])] + lines[:40]


@pytest.mark.slow
@pytest.mark.parametrize(("language", "kind"), EVERY)
def test_a_text_goes_through_every_command(language: str, kind: str, place: Path, call: Call) -> None:
    if kind == "bpe":
        pytest.importorskip("tokenizers", reason="the package tokenizers is not installed")
    lines = lines_of(language)
    text = "\n".join(lines) + "\n"
    assert 4000 < len(text.encode()) < 20_000
    Path("text.txt").write_text(text, encoding="utf-8")
    sentence = next(line for line in lines[::-1] if line)
    train(call, kind)
    lm = lmtrain.load("net")
    if kind != "word":  # whose blanks and rare words do not come back as they stood
        read = "".join(lm.tokenizer.read([text]))
        assert lm.tokenizer.decode(lm.tokenizer.encode(text)) == read

    score(call, lm, sentence)
    lists(call, sentence)
    write(call, sentence)
    leave(call, lm, sentence)
    together(call, kind)


def train(call: Call, kind: str) -> None:
    assert call("TRAIN", *KINDS[kind], "model=gru", "hydra.run.dir=net").code == 0
    assert (
        call("data=text", "data.path=text.txt", *KINDS[kind], "model=ngram", "model.order=3", "hydra.run.dir=counts").code == 0
    )


def score(call: Call, lm: Any, sentence: str) -> None:
    """evaluate; score in a running text, line by line, by token and by word; the page."""
    bill = json.loads(call("evaluate", "net", "--text", "text.txt", "--json").out)
    assert bill["perplexity"] > 1
    assert bill["bits_per_character"] > 0
    for run in ("net", "counts"):
        *rows, total = map(json.loads, call("score", run, "text.txt", "--json", "--per-token").out.splitlines())
        assert len(rows) == Path("text.txt").read_text(encoding="utf-8").count("\n")
        assert sum(row["log_prob"] for row in rows) == pytest.approx(-total["total"]["total_nats"], rel=1e-6)
        apart = [json.loads(row) for row in call("score", run, "text.txt", "--json", "--independent").out.splitlines()]
        assert apart[-2]["log_prob"] == pytest.approx(lmtrain.load(run).score(f"{sentence}\n")[0].log_prob, abs=1e-4)
    words = call("score", "net", "text.txt", "--unit", "word").out.splitlines()
    assert next(row.split("\t")[2] for row in words if row.startswith("1\t")).startswith(sentence_start(lm))
    assert call("score", "net", "text.txt", "--html", "page.html").code == 0
    page = Path("page.html").read_text(encoding="utf-8")
    assert re.sub(r"<[^>]*>|⏎| ", "", page).count(sentence_start(lm)) > 0


def sentence_start(lm: Any) -> str:
    """The first word of the text, as the model reads it."""
    first = Path("text.txt").read_text(encoding="utf-8").split("\n")[0]
    return "".join(lm.tokenizer.read([first])).split()[0]


def lists(call: Call, sentence: str) -> None:
    """score --nbest and rescore."""
    wrong = "".join(random.Random(2).sample(sentence, len(sentence))).strip()
    Path("list").write_text(f"ένα\t-1\t{wrong}\nένα\t-1\t{sentence}\n二\t-2\t{sentence}\n", encoding="utf-8")
    Path("references").write_text(f"ένα\t{sentence}\n二\t{sentence}\n", encoding="utf-8")
    for run in ("net", "counts"):
        ended = call("score", run, "list", "--nbest")
        assert ended.code == 0, ended.err
        Path("scored").write_text(ended.out, encoding="utf-8")
        ended = call("rescore", "scored", "--references", "references")
        assert ended.code == 0, ended.err
        assert sentence in ended.out
        both = {"ένα": [(wrong, -1.0), (sentence, -1.0)], "二": [(sentence, -2.0)]}
        made = lmtrain.load(run).rescore(both, references={"ένα": sentence, "二": sentence})
        assert ended.out == "".join(f"{key}\t{best.text}\n" for key, best in made.best.items())
    ended = call("score", "net", "text.txt", "--independent", "--with", "counts", "--other-weight", "fit", "--json")
    assert ended.code == 0, ended.err
    assert "--other-weight 0." in ended.err or "--other-weight 1" in ended.err


def write(call: Call, sentence: str) -> None:
    """sample: prompts in the language, several at once, and one that ends at a stop string."""
    prompt = sentence[: len(sentence) // 2]
    for run in ("net", "counts"):
        ended = call("sample", run, "--prompt", prompt, "--max-tokens", "20", "--num-samples", "3", "--stop", r"\n")
        assert (ended.code, ended.out.count(prompt)) == (0, 3), ended.err
        out = call("sample", run, "--prompt", prompt, "--next", "3", "--json").out  # warnings, too, after a training in here
        rows = [json.loads(row) for row in out.splitlines() if row.startswith("{")]
        assert [(row["text"], row["probability"]) for row in rows] == lmtrain.load(run).next(prompt, top=3)


def leave(call: Call, lm: Any, sentence: str) -> None:
    """export in its three formats, the script in a process of its own; ARPA and back."""
    for run in ("net", "counts"):
        assert call("export", run, "--output", f"{run}.torch").code == 0
        environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"} | {"PYTHONUTF8": "1"}
        alone = [sys.executable, f"{run}.torch/model.py", "score", "text.txt"]
        shown = subprocess.run(alone, check=True, capture_output=True, text=True, env=environment, timeout=100).stdout
        ours = call("score", run, "text.txt").out
        rows, expected = (re.findall(r"(?m)^(\d+)\t(\S+)\t(\d+)\t(\d+)$", out) for out in (shown, ours))
        assert len(rows) == len(expected) > 100
        for row, of_ours in zip(rows, expected, strict=True):
            assert (row[0], row[2:]) == (of_ours[0], of_ours[2:])
            assert float(row[1]) == pytest.approx(float(of_ours[1]), abs=1e-3)
    assert call("export", "net", "--format", "safetensors", "--output", "net.safetensors").code == 0
    assert "bits per character" in Path("net.safetensors/card.md").read_text(encoding="utf-8")
    try:
        import onnx  # noqa: F401
        import onnxruntime  # noqa: F401
    except ImportError:
        pass
    else:
        ended = call("export", "net", "--format", "onnx", "--quantize", "int8", "--output", "net.onnx")
        assert "int8 costs" in ended.out, ended.err
    assert call("arpa", "counts", "--output", "counts.arpa").code == 0
    assert call("arpa", "counts.arpa", "--output", "back", "--like", "counts").code == 0
    texts = [f"{sentence}\n"]
    assert lmtrain.load("back").score(texts)[0].log_prob == pytest.approx(lmtrain.load("counts").score(texts)[0].log_prob)


def together(call: Call, kind: str) -> None:
    """compare by token and, with a model of other tokens, by line; mix."""
    ended = call("compare", "net", "counts", "text.txt", "--json")
    assert ended.code == 0, ended.err
    found = json.loads(ended.out)
    assert (found["unit"], len(found["shown"])) == ("token", 20)
    other = "byte" if kind != "byte" else "bpe"
    if kind != "char":  # which reads the text in another form
        assert call("data=text", "data.path=text.txt", *KINDS[other], "model=ngram", "hydra.run.dir=other").code == 0
        ended = call("compare", "counts", "other", "text.txt")
        assert ended.code == 0, ended.err
        assert "nats per character" in ended.out
    assert call("mix", "net", "counts", "--output", "mixture").code == 0
    assert json.loads(call("evaluate", "mixture", "--text", "text.txt", "--json").out)["perplexity"] > 1
