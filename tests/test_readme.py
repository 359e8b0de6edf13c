"""What the READMEs say and a test can check: commands run, links lead somewhere, figures are those that scripts make."""

import gzip
import json
import re
import runpy
import shlex
import shutil
import subprocess
import sys
from contextlib import suppress
from dataclasses import fields
from pathlib import Path

import pytest

from lmtrain import config
from lmtrain.__main__ import COMMANDS, main
from lmtrain.application import check_overrides, register_schemas
from lmtrain.application.command import overrides_of
from lmtrain.settings import reading

ROOT = Path(__file__).parents[1]
NAMES = [
    "README.md", "conf/README.md", "scripts/README.md",
    *(
        f"src/lmtrain/{room}/README.md"
        for room in ("data", "distributed", "explain", "export", "inference", "ops", "tasks", "training", "vectors")
    ),
]  # fmt: skip
READMES = {name: (ROOT / name).read_text(encoding="utf-8") for name in NAMES}
README, RESULTS = READMES["README.md"], READMES["scripts/README.md"]
register_schemas()


# ---- commands


def code_blocks(text: str) -> str:
    """All code blocks but those that show an error, and the lines that are indented as code."""
    blocks = [block for block in re.findall(r"(?ms)^```\w*\n(.*?)^```$", text) if not block.startswith("$ ")]
    return "\n".join(blocks + re.findall(r"(?m)^    (\S.*)$", text))


def commands(pattern: str) -> list[str]:
    """What the group of a pattern finds in every command of a code block or a line, once."""
    found = []
    for text in READMES.values():
        lines = code_blocks(text).splitlines()
        lines += re.findall(r"(?<!`)`([^`\n]+)`(?!`)", text)
        found += [re.search(rf"{pattern}(?:\s+#.*)?$", line) for line in lines]
    return sorted({match[1] or "" for match in found if match})


SPACE = """settings: {data: text, data.path: my.txt, tokenizer: word, trainer.num_steps: 2, trainer.max_seconds: null}
space: {model.hidden_size: {low: 4, high: 8}}
"""
LMTRAIN = commands(r"python -m lmtrain(?: (.*?))?")
SETTINGS = [words for words in LMTRAIN if words.split(" ")[0] not in COMMANDS and words != "--help"]
OTHERS = [words for words in LMTRAIN if words.split(" ")[0] in COMMANDS]
SCRIPTS = commands(r"python scripts/(.*?)")
OF_A_MIXTURE = ["LONG", "LONG2", "MEDIUM", "MEDIUM2", "MEDIUM3"]
AS_IT_STANDS = ["mix", "sample"]  # in a table or in a sentence: the name of a command, not a command


def test_the_readmes_have_commands() -> None:
    assert len(SETTINGS) >= 12
    assert {words.split()[0] for words in OTHERS} == set(COMMANDS) - {"help"}
    assert {words.split()[0] for words in SCRIPTS} == {path.name for path in (ROOT / "scripts").glob("*.py")}


@pytest.mark.parametrize("words", SETTINGS)
def test_every_training_composes(words: str) -> None:
    typed = shlex.split(words.replace("--cfg job", ""))
    overrides = [word for word in overrides_of(typed) if not word.startswith(("resume=", "start_from"))]
    assert reading.read_config(check_overrides(overrides))


@pytest.mark.parametrize("words", OTHERS)
def test_every_command_is_parsed(words: str, capsys: pytest.CaptureFixture[str]) -> None:
    """With `--help` at its end, which ends a command as soon as all before it has been parsed."""
    main([*shlex.split(words), "--help"])
    assert capsys.readouterr().out.startswith("usage:")
    with pytest.raises(SystemExit):
        main([words.split()[0], "--no-such-option"])


@pytest.mark.parametrize("words", SCRIPTS)
def test_every_script_parses_its_arguments(
    words: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    name, *arguments = shlex.split(words)
    monkeypatch.syspath_prepend(str(ROOT / "scripts"))
    monkeypatch.setattr(sys, "argv", [name, *arguments, "--help"])
    with suppress(SystemExit):
        runpy.run_path(str(ROOT / "scripts" / name), run_name="__main__")
    assert capsys.readouterr().out.startswith("usage:")


def test_the_mistake_that_the_readme_shows_is_reported_so(tmp_path: Path) -> None:
    typed, shown = re.findall(r"(?ms)^```\n\$ python (.*?)\n(.*?)^```$", README)[0]
    ended = subprocess.run([sys.executable, *shlex.split(typed)], cwd=tmp_path, capture_output=True, text=True, timeout=60)
    assert ended.returncode == 2
    assert ended.stderr.split() == shown.split()


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with every file and run that the commands name."""
    place = tmp_path_factory.mktemp("readme")
    nouns = ("cat", "man", "woman", "king", "queen")
    lines = [f"the {noun} {verb} near the {other} .\n" for noun in nouns for verb in ("sat", "ran")
             for other in ("river", "door", "water", "court", "church", "market", "bank")]  # fmt: skip
    (place / "questions-words.txt").write_text(": family\nman woman king queen\n", encoding="utf-8")
    (place / "wordsim353.tsv").write_text("king\tqueen\t8.5\nman\twoman\t8.3\ncat\tbank\t1.0\n", encoding="utf-8")
    words = ("the", *nouns, "river", "door", "water", "court", "church", "market", "bank", "sat", "ran", "near")
    rows = (f"{word} {number % 5 - 2} {number % 3} {number} 1\n" for number, word in enumerate(words))
    (place / "brown.vec").write_text("".join(rows), encoding="utf-8")
    (place / "my.txt").write_text("".join(lines * 60), encoding="utf-8")
    (place / "TEXT").write_text("\n".join(lines * 60), encoding="utf-8")  # a document per line
    (place / "corpus").mkdir()
    with gzip.open(place / "corpus" / "part.jsonl.gz", "wt", encoding="utf-8") as records:
        records.writelines(f"{json.dumps({'text': line})}\n" for line in lines * 60)
    (place / "SPACE.yaml").write_text(SPACE, encoding="utf-8")
    (place / "FILE").write_text("the cat ran near the door .\nthe dog sat .\n", encoding="utf-8")
    for directory in (place / "DIRECTORY", place / "DATA"):
        directory.mkdir()
        for name, share in ("train", slice(0, None, 2)), ("valid", slice(1, None, 4)), ("test", slice(3, None, 4)):
            (directory / f"{name}.txt").write_text("".join((lines * 20)[share]), encoding="utf-8")
    for directory, text in (
        ("TAGS", "Ann I-PER\nsat O\nin O\nRome I-LOC\n\n"),
        ("TEXTS", "good a fine film\nbad a dull film\n"),
    ):
        (place / directory).mkdir()
        for name in ("train", "valid", "test"):
            (place / directory / f"{name}.txt").write_text(text * 8, encoding="utf-8")
    (place / "vectors.txt").write_text("ann 1 0 0 0\nrome 0 1 0 0\nin 0 0 1 0\n", encoding="utf-8")
    (place / "LIST").write_text("one\t-1.5\tthe cat ran\none\t-1.2\tthe cat slept\n", encoding="utf-8")
    scored = "id\tscore\tlog_prob\twords\tunknown\ttext\n"
    scored += "one\t-1.5\t-9\t3\t0\tthe cat ran\none\t-1.2\t-9\t3\t0\tthe cat slept\n"
    (place / "SCORED").write_text(scored, encoding="utf-8")
    (place / "REFERENCES").write_text("one\tthe cat ran\n", encoding="utf-8")
    small = "data=text data.path=my.txt tokenizer=word trainer.num_threads=1"
    lstm = f"{small} model.hidden_size=8 model.embed_size=8 trainer.num_steps=5"
    for settings, run, *others in (
        (lstm, "RUN", "RUN_A", "LSTM", "outputs/RUN", "outputs/sweep/0", "BEFORE", "AFTER", "CHARS", *OF_A_MIXTURE),
        (f"{lstm} model=window", "WINDOW"),
        (f"{small} model=ngram model.order=3", "RUN_B", "NGRAM5", "NGRAM7"),
        ("task=tag data.path=TAGS tokenizer.min_count=1 trainer.num_steps=4", "TAGGER"),
        ("task=classify data.path=TEXTS tokenizer.min_count=1 trainer.num_steps=4", "CLASSIFIER"),
    ):
        run_python(place, f"-m lmtrain {settings} hydra.run.dir={run}")
        for other in others:
            shutil.copytree(place / run, place / other)
    return place


def run_python(place: Path, arguments: str) -> str:
    arguments, _, output = arguments.partition(" > ")
    typed = [sys.executable, *shlex.split(arguments)]
    ended = subprocess.run(typed, cwd=place, capture_output=True, text=True, timeout=400)
    assert ended.returncode == 0, ended.stderr + ended.stdout
    if output:
        (place / output).write_text(ended.stdout, encoding="utf-8")
    return ended.stdout


@pytest.mark.slow
@pytest.mark.parametrize("words", SETTINGS)
def test_every_training_runs(words: str, place: Path) -> None:
    """Two steps of it, or twenty of a range test; a resumed run has had its steps."""
    words = re.sub(r"trainer\.num_steps=\d+", "trainer.num_steps=20", words)
    words = words.replace("tinyshakespeare/input.txt", "my.txt").replace("../shared/data/brown", "DATA")
    if "glove.6B.50d" in words:
        words = re.sub(r"\.\./shared/data/vectors/[\w.]+", "vectors.txt", words).replace(
            "model.embed_size=50", "model.embed_size=4"
        )
        words = words.replace("../shared/data/ner_wikigold", "TAGS")
    if launcher := re.search(r"hydra/launcher=([a-z]+)", words):
        pytest.importorskip(f"hydra_plugins.hydra_{launcher[1]}_launcher")
    few = "" if "trainer.num_steps=" in words or "resume=" in words else " trainer.num_steps=2"
    words = re.sub(r"resume=outputs/\d{4}-\S*", "resume=outputs/RUN", words)
    assert run_python(place, f"-m lmtrain{few} {words}")


@pytest.mark.slow
@pytest.mark.parametrize("words", [words for words in OTHERS if words not in AS_IT_STANDS])
def test_every_command_runs(words: str, place: Path) -> None:
    words = re.sub(r"outputs/\d{4}-\S*", "RUN", words).replace("../shared/data/brown", "DATA")
    words = re.sub(r"--trials \d+", "--trials 2", words)
    words = words.replace(" [FILE]", "").replace(" >> ~/.bashrc", "").replace("explain NAME", "explain chain")
    words = words.replace("runs DIR", "runs outputs")
    if "--method svd" in words or "--check-superposition" in words or "--retrain" in words:  # smaller, for a small text
        words += " --size 8"
    if "--method atoms" in words:
        words += " --num-atoms 4"
    if words.startswith("arpa RUN"):
        words = words.replace("RUN", "NGRAM5")
    if words.startswith("arpa FILE.arpa"):
        (place / "FILE.arpa").unlink(missing_ok=True)
        run_python(place, "-m lmtrain arpa NGRAM5 --output FILE.arpa")
    if made := re.search(r"--output (\S+)", words):  # which an earlier command may have made
        shutil.rmtree(place / made[1], ignore_errors=True)
        if (place / made[1]).is_file():
            (place / made[1]).unlink()
    assert run_python(place, f"-m lmtrain {words}")


@pytest.mark.slow
def test_tensorboard_reads_the_runs(place: Path) -> None:
    assert "val/perplexity" in run_python(place, "-m tensorboard.main --logdir outputs/RUN --inspect")


# ---- places, names


@pytest.mark.parametrize("name", NAMES)
def test_every_link_leads_somewhere(name: str) -> None:
    for target in re.findall(r"\]\(([^)]+)\)", READMES[name]):
        path, _, anchor = target.partition("#")
        file = (ROOT / name).parent / path if path else ROOT / name
        assert file.exists(), target
        heads = re.findall(r"(?m)^#+ (.*)$", file.read_text(encoding="utf-8"))
        assert not anchor or anchor in [re.sub(r"[^\w -]", "", head.lower()).replace(" ", "-") for head in heads], target


@pytest.mark.parametrize("name", NAMES)
def test_every_path_that_is_named_exists(name: str) -> None:
    text = READMES[name].replace("NAME.py", "lstm.py").replace("NAME.yaml", "lstm.yaml")
    text = text.replace("src/lmtrain/data/lstm.py", "").replace("conf/data/lstm.yaml", "")
    named = set(re.findall(r"(?<![\w/.])((?:src|conf|tests|scripts)/[\w/]*\w\.(?:py|md|yaml))", text))
    assert [path for path in sorted(named) if not (ROOT / path).exists()] == []


@pytest.mark.parametrize("name", NAMES)
def test_every_setting_that_is_named_exists(name: str) -> None:
    kinds = [cls for cls in vars(config).values() if isinstance(cls, type) and cls.__name__.endswith("Config")]
    for group, setting in re.findall(r"(?<!\w)(model|data|optimizer|schedule|trainer)\.(\w+)", READMES[name]):
        if setting not in ("py", "hiden_size", "path", "safetensors"):
            owners = [cls for cls in kinds if setting in {field.name for field in fields(cls)}]
            assert owners, f"{group}.{setting}"


@pytest.mark.parametrize("name", NAMES)
def test_every_setting_in_a_line_begins_with_a_group(name: str) -> None:
    codes = [code for code in re.findall(r"(?<!`)`([^`\n]+)`(?!`)", READMES[name]) if not {"(", "%"} & set(code)]
    typed = {word.partition("=")[0].lstrip("'") for code in codes for word in code.split() if re.match(r"'?[a-z_.]+=", word)}
    allowed = {*config.GROUPS, "task", "experiment", "resume", "hydra", "group", "name", "out", "x", "y", "z", "start_from"}
    assert {setting for setting in typed if setting.split(".")[0] not in allowed} == set()


def test_every_experiment_is_listed() -> None:
    section = READMES["conf/README.md"].partition("## Experiments")[2].partition("\n## ")[0]
    listed = [name for line in section.splitlines() if line.startswith("| `") for name in re.findall(r"`(\w+)`", line)]
    assert sorted(listed) == sorted(path.stem for path in (ROOT / "conf" / "experiment").glob("*.yaml"))


# ---- results on Brown


def table(text: str, heading: str) -> list[list[str]]:
    """The cells of the first table behind a heading, without its first row."""
    lines = [line for line in text.partition(f"\n{heading}\n")[2].partition("\n## ")[0].splitlines() if line.startswith("|")]
    end = next((i for i, line in enumerate(lines[2:], 2) if set(line) <= set("|-")), len(lines))
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines[2:end]]


def test_the_results_of_the_readme_are_some_of_them() -> None:
    """`tests/test_reproduce.py` has the other tables."""
    told, rows = table(README, "## Results"), table(RESULTS, "## Results on Brown")
    assert len(told) >= 5
    for model, *numbers in told:
        (row,) = [row for row in rows if row[1:3] == numbers]
        assert model.split(",")[0].strip("*") in row[0] or "Kneser-Ney" in row[0]


# ---- speed


def ratios() -> dict[str, list[float]]:
    """By preset: torch.nn under autocast, ours in float32, ours in bfloat16, each over torch.nn in float32."""
    return {
        match[1]: [float(cell.split()[0].strip("*")) for cell in row[2:5]]
        for row in table(RESULTS, "## Speed")
        if (match := re.match(r"`(\w+)`", row[0]))
    }


def test_the_speed_at_the_top_is_that_of_the_table() -> None:
    """Of the rows that train."""
    made = [ratios()[name] for name in ("lstm200", "lstm650", "gru650", "elman650", "char512")]
    float32, bfloat16 = [row[1] for row in made], [row[2] for row in made]
    autocast = [ours / theirs for theirs, _, ours in made]
    top = README.partition("## Two commands")[0]
    for least, most, digits in (
        (min(float32), max(float32), 2),
        (min(bfloat16), max(bfloat16), 1),
        (min(autocast), max(autocast), 1),
    ):
        assert f"{least:.{digits}f} to {most:.{digits}f} times as fast" in " ".join(top.split())


def test_the_speed_of_the_readme_is_that_of_the_table() -> None:
    told = table(README, "## Speed")
    assert len(told) >= 3
    for name, *cells in told:
        assert [float(cell.strip("*")) for cell in cells] == ratios()[name.split("`")[1]]


def test_the_table_of_speed_has_every_preset_of_a_training_step(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "scripts"))
    presets = runpy.run_path(str(ROOT / "scripts" / "benchmarks" / "presets.py"), run_name="presets_of_readme")
    elsewhere = {"dropin200", "dropin650", "packed256", "score200", "samples200", "ngram3", "ngram5"}  # in sentences
    assert {*ratios(), *elsewhere} == set(presets["CPU_PRESETS"])
