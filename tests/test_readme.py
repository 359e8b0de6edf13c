"""What the README says and a test can check: its commands compose, its results are those that `scripts/reproduce.py` makes."""

import re
import runpy
import shlex
from pathlib import Path
from typing import Any

import pytest

from lmtrain.__main__ import COMMANDS, main
from lmtrain.application import _overrides, check_overrides, register_schemas
from lmtrain.settings import reading

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
register_schemas()
REPRODUCE = runpy.run_path(str(ROOT / "scripts" / "reproduce.py"))


def code_blocks() -> str:
    """All code blocks, and the lines that are indented as code."""
    blocks = re.findall(r"(?ms)^```\w*\n(.*?)^```$", README) + re.findall(r"(?m)^    (\S.*)$", README)
    return "\n".join(blocks)


def commands() -> list[list[str]]:
    """The arguments of every `python -m lmtrain` in a code block that ends as it should: those behind `$ ` show an error."""
    lines = [line for line in code_blocks().splitlines() if not line.startswith("$ ")]
    found = [re.search(r"python -m lmtrain(?: (.*?))?(?:\s+#.*)?$", line) for line in lines]
    return [shlex.split(match[1] or "") for match in found if match]


TRAININGS = [words for words in commands() if not words or words[0] not in COMMANDS]
OTHERS = [words for words in commands() if words and words[0] in COMMANDS]


def test_the_readme_has_commands() -> None:
    assert len(TRAININGS) >= 7
    assert {words[0] for words in OTHERS} == set(COMMANDS) - {"help", "settings"}


@pytest.mark.parametrize("words", TRAININGS, ids=" ".join)
def test_every_training_in_the_readme_composes(words: list[str]) -> None:
    overrides = [word for word in _overrides(words) if not word.startswith("resume=")]
    assert reading.read_config(check_overrides(overrides))


@pytest.mark.parametrize("words", OTHERS, ids=" ".join)
def test_every_command_in_the_readme_is_parsed(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    """With `--help` at its end, which ends a command as soon as all before it has been parsed."""
    main([*words, "--help"])
    assert capsys.readouterr().out.startswith("usage:")
    with pytest.raises(SystemExit):
        main([*words[:1], "--no-such-option"])


def rows() -> list[list[str]]:
    """The cells of the table of results on Brown."""
    table = README.partition("## Results on Brown")[2].partition("\n\nThe example's own")[0]
    lines = [line for line in table.splitlines() if line.startswith("| ")][1:]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]


def test_the_results_are_those_that_reproduce_makes() -> None:
    told = [tuple(None if cell == "-" else float(cell.strip("*")) for cell in row[1:3]) for row in rows()]
    assert told == [(valid, test) for _, _, valid, test in REPRODUCE["ROWS"]]


@pytest.mark.parametrize(("row", "made"), list(zip(rows(), REPRODUCE["ROWS"], strict=True)), ids=lambda value: str(value[0]))
def test_the_command_of_a_result_is_the_one_that_reproduce_runs(row: list[str], made: Any) -> None:
    name, method, *_ = made
    command = re.search(r"`(.*?)`", row[3])
    assert command
    words = command[1].split()
    if name in REPRODUCE["MIXTURES"] and not method:
        assert len(words) - words.index("mix") - 3 == len(REPRODUCE["MIXTURES"][name])
    elif method:
        assert words[0] == "evaluate"
        assert words[2:] == method.split()
        assert words[1] == ("MIX" if name in REPRODUCE["MIXTURES"] else name)
    elif row[3].startswith("the same with"):
        assert set(words) <= set(REPRODUCE["TRAININGS"][name].split())
    else:
        assert sorted(words) == sorted([*REPRODUCE["TRAININGS"][name].split(), "data.path=DATA"])


def test_what_reproduce_runs_composes() -> None:
    for settings in REPRODUCE["TRAININGS"].values():
        assert reading.read_config(check_overrides([*settings.split(), "data.path=DATA"]))
    trained = {*REPRODUCE["TRAININGS"], *REPRODUCE["MIXTURES"]}
    assert {name for name, *_ in REPRODUCE["ROWS"]} == trained
    assert {part for parts in REPRODUCE["MIXTURES"].values() for part in parts} <= set(REPRODUCE["TRAININGS"])


def test_the_speed_at_the_top_is_that_of_the_table() -> None:
    """Of the rows that train: torch.nn under autocast, ours in float32, ours in bfloat16, each over torch.nn in float32."""
    names = ("lstm200", "lstm650", "gru650", "elman650", "char512")
    ratios = []
    for name in names:
        cells = re.search(rf"(?m)^\| `{name}`.*$", README)
        assert cells
        ratios.append([float(cell.strip().split()[0].strip("*")) for cell in cells[0].split("|")[3:6]])
    float32, bfloat16 = [row[1] for row in ratios], [row[2] for row in ratios]
    autocast = [ours / theirs for theirs, _, ours in ratios]
    top = README.partition("Two lines, on Python")[0]
    for least, most, digits in (
        (min(float32), max(float32), 2),
        (min(bfloat16), max(bfloat16), 1),
        (min(autocast), max(autocast), 1),
    ):
        assert f"{least:.{digits}f} to {most:.{digits}f} times as fast" in " ".join(top.split())
